"""Calls: opened, found, steered and ended, and what clients need for that."""

from agent.api.client_secrets import LEAST_SECONDS, MOST_SECONDS
from agent.api.openapi.refusals import ACCESS, BODY, refusals
from agent.api.openapi.shapes import (
    JSON,
    Schema,
    answer,
    body,
    header,
    listing,
    one_of,
    parameter,
    ref,
    reply,
    text,
    thing,
    whole,
)

SDP, FORM, FRAGMENT = "application/sdp", "multipart/form-data", "application/trickle-ice-sdpfrag"
_TAG = header("Of the ICE session; for `If-Match`.", '^"[^"]+"$')
_CALL_ID = parameter("path", "call_id", text("As `Location` ends with, `rtc_…`.", least=1))
_IF_MATCH = parameter(
    "header",
    "If-Match",
    text("The `ETag` of the ICE session, or `*`. A fragment needs it; `*` restarts ICE."),
)
_SDP: Schema = {"type": "string", "description": "An SDP offer; it needs no candidates."}

SCHEMAS: dict[str, Schema] = {
    "Call": reply(
        {
            "id": text(),
            "object": {"type": "string", "const": "realtime.call"},
            "status": one_of("connecting", "in_progress"),
            "session": ref("SessionInForce"),
        }
    ),
    "IceServer": reply(
        {"urls": listing(text(), least=1), "username": text(), "credential": text()},
        may_lack=("username", "credential"),
        about="As browsers take it: an `RTCIceServer`.",
    ),
}


def paths() -> dict[str, Schema]:
    """By path and method."""
    one = "/v1/realtime/calls/{call_id}"
    return {
        "/v1/realtime": {"get": _socket()},
        "/v1/realtime/calls": {"post": _open(), "options": _types()},
        one: {
            "parameters": [_CALL_ID],
            "get": _show(),
            "patch": _steer(),
            "delete": _end("deleteCall", "End a call (WHIP)"),
        },
        f"{one}/hangup": {"parameters": [_CALL_ID], "post": _end("hangUpCall", "End a call")},
        f"{one}/reject": {
            "parameters": [_CALL_ID],
            "post": _end("rejectCall", "End a call that was not wanted"),
        },
        f"{one}/accept": {"parameters": [_CALL_ID], "post": _accept()},
        f"{one}/refer": {"parameters": [_CALL_ID], "post": _refer()},
        "/v1/realtime/client_secrets": {"post": _secret()},
        "/v1/realtime/ice-servers": {"get": _servers()},
    }


def _socket() -> Schema:
    return {
        "operationId": "connectSocket",
        "tags": ["Calls"],
        "summary": "A call by WebSocket, or a sideband of any call",
        "description": "Speaks the events listed below. Without `call_id` it is a call of its own, "
        "whose sound goes inside of events; with it, it sees and steers the call of that id. "
        "Browsers give their key as the subprotocol `openai-insecure-api-key.KEY` beside "
        "`realtime`.",
        "parameters": [
            parameter("query", "model", text("Any: the server has one.")),
            parameter("query", "call_id", text("The call to attach to.")),
            parameter(
                "query",
                "duplex",
                text("`1`: with the events of vLLM-Omni's duplex API, by which it is told apart."),
            ),
        ],
        "responses": {
            "101": answer("From here on it is a WebSocket."),
            **refusals(400, 404, 426, 503, *ACCESS),
        },
    }


def _open() -> Schema:
    form = {
        "type": "object",
        "properties": {"sdp": _SDP, "session": ref("Session")},
        "required": ["sdp"],
    }
    headers = {
        "Location": header("The call; its id is the last part.", "^(/.*)?/v1/realtime/calls/rtc_"),
        "ETag": _TAG,
        "Accept-Patch": header("What PATCH takes."),
        "Link": header('STUN and TURN servers, `rel="ice-server"`.', always=False),
    }
    return {
        "operationId": "openCall",
        "tags": ["Calls"],
        "summary": "Open a call over WebRTC",
        "description": "The offer alone, or a form that holds it together with the session. This "
        "is also the endpoint for WHIP. The data channel `oai-events` carries the events listed "
        "below; without one the agent hears and speaks all the same. `X-Forwarded-Prefix` of a "
        "proxy stands before the `Location`.",
        "parameters": [parameter("query", "model", text("Any: the server has one.", most=256))],
        "requestBody": body({SDP: _SDP, FORM: form}),
        "responses": {
            "201": answer(
                "The call stands as soon as both sides have found each other.",
                {SDP: {"type": "string"}},
                headers,
            ),
            **refusals(*BODY, *ACCESS, 503),
        },
    }


def _types() -> Schema:
    return {
        "operationId": "askCallTypes",
        "tags": ["Calls"],
        "summary": "What may be posted (WHIP)",
        "responses": {
            "204": answer("In the header.", headers={"Accept-Post": header("Content types.")}),
            **refusals(403, 421),
        },
    }


def _show() -> Schema:
    return {
        "operationId": "showCall",
        "tags": ["Calls"],
        "summary": "How a call stands",
        "responses": {
            "200": answer("The call, with its session.", {JSON: ref("Call")}),
            **refusals(404, *ACCESS),
        },
    }


def _steer() -> Schema:
    fragment: Schema = {
        "type": "string",
        "description": "An RFC 8840 fragment: `a=ice-ufrag`, `a=ice-pwd`, `a=candidate` lines.",
    }
    whole_offer = "An offer that differs from the first in its ICE alone, as after `restartIce()`."
    return {
        "operationId": "steerCall",
        "tags": ["Calls"],
        "summary": "Late candidates, or another way through the network",
        "description": 'As WHIP (RFC 9725) has it: a fragment with `If-Match: "<ETag>"` adds '
        "candidates, one with `If-Match: *` and new credentials restarts ICE. Browsers may send a "
        "whole new offer instead.",
        "parameters": [_IF_MATCH],
        "requestBody": body({FRAGMENT: fragment, SDP: text(whole_offer)}),
        "responses": {
            "200": answer(
                "ICE is restarted: this side's fragment, or the answer to the offer.",
                {FRAGMENT: {"type": "string"}, SDP: {"type": "string"}},
                {"ETag": _TAG},
            ),
            "204": answer("The candidates are tried.", headers={"ETag": _TAG}),
            **refusals(404, 409, 412, 422, 428, 503, *BODY, *ACCESS),
        },
    }


def _end(name: str, summary: str) -> Schema:
    return {
        "operationId": name,
        "tags": ["Calls"],
        "summary": summary,
        "responses": {"200": answer("The call is gone."), **refusals(404, *ACCESS)},
    }


def _accept() -> Schema:
    return {
        "operationId": "acceptCall",
        "tags": ["Calls"],
        "summary": "Change the session of a call",
        "description": "Calls are taken as they come; what is sent here holds from now on, as "
        "after `session.update`.",
        "requestBody": body({JSON: ref("Session")}),
        "responses": {"200": answer("It holds."), **refusals(404, 503, *BODY, *ACCESS)},
    }


def _refer() -> Schema:
    return {
        "operationId": "referCall",
        "tags": ["Calls"],
        "summary": "Transfer a SIP call: never possible here",
        "responses": refusals(400, 404, *ACCESS),
    }


def _secret() -> Schema:
    expiry = thing(
        {
            "anchor": {"type": "string", "const": "created_at"},
            "seconds": whole(LEAST_SECONDS, MOST_SECONDS, "600 unless it is said."),
        }
    ) | {"additionalProperties": False}
    asked = thing({"expires_after": expiry, "session": ref("Session")})
    told = reply(
        {"value": text("`ek_…`"), "expires_at": whole(0), "session": ref("SessionInForce")}
    )
    return {
        "operationId": "makeClientSecret",
        "tags": ["Keys"],
        "summary": "A short-lived key for a browser",
        "description": "It opens calls, each with the session that it is bound to, until it "
        "expires; calls outlive it.",
        "requestBody": body({JSON: asked | {"additionalProperties": False}}, required=False),
        "responses": {
            "200": answer("The secret, told this once.", {JSON: told}),
            **refusals(*BODY, *ACCESS, 503),
        },
    }


def _servers() -> Schema:
    told = reply({"ice_servers": listing(ref("IceServer"))})
    return {
        "operationId": "listIceServers",
        "tags": ["Calls"],
        "summary": "STUN and TURN servers that help to reach this one",
        "responses": {
            "200": answer("For `new RTCPeerConnection`.", {JSON: told}),
            **refusals(*ACCESS),
        },
    }
