"""The error object, and which refusals each kind of request may meet."""

from agent.api.openapi.shapes import JSON, Schema, answer, header, one_of, ref, reply, text

_ABOUT = {
    400: "What was sent cannot be served; `param` names the field, by its dotted path.",
    401: "No key, or one that is not known.",
    403: "The key is good, but not for this; or a page of another site asks.",
    404: "There is no such thing.",
    408: "The body did not come in time.",
    409: "Not as long as it stands like this.",
    412: "`If-Match` names another ICE session.",
    413: "The body is too large.",
    415: "The body is of a type that is not taken here.",
    421: "The server is not called so.",
    422: "It changes more of the call than can be changed.",
    426: "This is a WebSocket.",
    428: "`If-Match` has to be sent.",
    429: "Too many requests, calls or wrong keys; `Retry-After` says how long to wait.",
    500: "The server failed; its log says why.",
    501: "The engine cannot do this.",
    503: "No room at the moment; `Retry-After` says when to try again.",
}
_WAITS = (429, 503)
ACCESS = (401, 403, 421, 429)
"""What everybody may meet who uses the API."""
BODY = (400, 408, 413, 415)
"""What every request with a body may meet."""

SCHEMAS: dict[str, Schema] = {
    "Error": reply(
        {
            "error": reply(
                {
                    "message": text("In words, for people."),
                    "type": one_of(
                        "invalid_request_error",
                        "permission_error",
                        "rate_limit_error",
                        "server_error",
                    ),
                    "code": {"type": ["string", "null"], "description": "For programs."},
                    "param": {"type": ["string", "null"], "description": "The field at fault."},
                }
            )
        },
        about="What every refusal looks like, as OpenAI's do.",
    )
}


def refusals(*statuses: int) -> dict[str, Schema]:
    """The responses of these statuses."""
    return {str(status): _refusal(status) for status in sorted(set(statuses))}


def _refusal(status: int) -> Schema:
    headers = None
    if status in _WAITS:
        headers = {"Retry-After": header("In whole seconds.", "^[0-9]+$")}
    return answer(_ABOUT[status], {JSON: ref("Error")}, headers)
