"""`/v1/realtime/calls`: an SDP offer in, an SDP answer out, as OpenAI's Realtime API does it.

The same endpoint is that of WHIP (RFC 9725); what becomes of a call is `call_resource`'s.
"""

import re

from aiohttp import hdrs, web

from agent.api.bodies import SlowBody, WrongContentType, as_json, as_text, expect_type, in_time
from agent.api.caller import caller_of
from agent.api.calls import Calls
from agent.api.form_parts import form_parts, form_start
from agent.api.ice_servers import as_json as ice_server_json
from agent.api.ice_servers import as_link, ice_servers
from agent.errors import RequestError

CALLS = web.AppKey("calls", Calls)
__all__ = ["CALLS", "SlowBody", "WrongContentType", "add_routes"]

SDP, FORM = "application/sdp", "multipart/form-data"
ICE_FRAGMENT = "application/trickle-ice-sdpfrag"
CALLS_PATH = "/v1/realtime/calls"
_MOST_MODEL_CHARACTERS = 256
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+){1,8}/?")


def add_routes(router: web.UrlDispatcher) -> None:
    """Add this file's endpoints."""
    router.add_post(CALLS_PATH, open_call)
    router.add_options(CALLS_PATH, tell_types)
    router.add_get("/v1/realtime/ice-servers", tell_ice_servers)


async def open_call(request: web.Request) -> web.Response:
    """201 with the answer and the call's `Location`."""
    calls = request.app[CALLS]
    model = _asked_model(request)
    with calls.reading(caller_of(request)):
        offer, session = await _read_offer(request)
    answered = await calls.open(offer, _with_model(session, model), caller_of(request))
    # Not as text, which would add a charset: there are clients that compare the type as a whole.
    response = web.Response(status=201, body=answered.sdp.encode(), content_type=SDP)
    response.headers.update(
        {
            hdrs.LOCATION: f"{prefix_of(request)}{CALLS_PATH}/{answered.call_id}",
            hdrs.ETAG: f'"{answered.ice_tag}"',
            "Accept-Patch": f"{ICE_FRAGMENT}, {SDP}",
        }
    )
    for server in ice_servers(calls.config, _user(request)):
        response.headers.add(hdrs.LINK, as_link(server))
    return response


async def tell_types(request: web.Request) -> web.Response:
    """What may be posted."""
    return web.Response(status=204, headers={"Accept-Post": f"{SDP}, {FORM}"})


async def tell_ice_servers(request: web.Request) -> web.Response:
    """The STUN and TURN servers that help to reach this one, as browsers take them."""
    servers = ice_servers(request.app[CALLS].config, _user(request))
    body = {"ice_servers": [ice_server_json(each) for each in servers]}
    return web.json_response(body, headers={hdrs.CACHE_CONTROL: "no-store"})


def _user(request: web.Request) -> str:
    return caller_of(request).key or "caller"


def prefix_of(request: web.Request) -> str:
    """Under which a proxy serves all this, where it says so (Traefik does)."""
    said = request.headers.get("X-Forwarded-Prefix", "")
    return said.rstrip("/") if _PREFIX.fullmatch(said) else ""


def _asked_model(request: web.Request) -> str:
    model = request.query.get("model", "")
    if len(model) > _MOST_MODEL_CHARACTERS:
        raise RequestError(
            f"'model' has more than {_MOST_MODEL_CHARACTERS} characters",
            param="model",
            code="too_long",
        )
    return model


def _with_model(session: object, model: str) -> object:
    """The session, with the model that the address names unless it names one itself."""
    if not model:
        return session
    if session is None:
        return {"type": "realtime", "model": model}
    return {"model": model, **session} if isinstance(session, dict) else session


# ---- the body ---------------------------------------------------------------------------------


async def _read_offer(request: web.Request) -> tuple[str, object]:
    """The offer and the session that came with it, if any."""
    kind = expect_type(request, SDP, FORM)
    async with in_time():
        if kind == SDP:
            return as_text(await request.read(), "sdp"), None
        return await _read_form(request)


async def _read_form(request: web.Request) -> tuple[str, object]:
    start = form_start(request)
    parts = _parts(await request.read(), start)
    if "sdp" not in parts:
        raise RequestError(
            "the multipart body has no part 'sdp'", param="sdp", code="missing_required_parameter"
        )
    session = None
    if "session" in parts:
        session = as_json(as_text(parts["session"], "session"), "session")
    return as_text(parts["sdp"], "sdp"), session


def _parts(body: bytes, start: bytes) -> dict[str, bytes]:
    return {name: body[begin:end] for name, begin, end in form_parts(body, start)}
