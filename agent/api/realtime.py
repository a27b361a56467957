"""`/v1/realtime/calls`: an SDP offer in, an SDP answer out, as OpenAI's Realtime API does it."""

import asyncio
import json

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from agent.api.caller import caller_of
from agent.api.calls import Calls
from agent.errors import RequestError

CALLS = web.AppKey("calls", Calls)

_BODY_TIMEOUT_S = 10.0
_OFFER_TYPES = ("application/sdp", "multipart/form-data")


class WrongContentType(RequestError):
    """The body is of a type that this endpoint does not take."""

    status = 415
    code = "unsupported_media_type"


class SlowBody(RequestError):
    """The body did not come in time."""

    status = 408
    code = "request_timeout"


def add_routes(router: web.UrlDispatcher) -> None:
    """Add this file's endpoints."""
    router.add_post("/v1/realtime/calls", open_call)
    router.add_post("/v1/realtime/calls/{call_id}/hangup", hang_up)
    router.add_delete("/v1/realtime/calls/{call_id}", hang_up)


async def open_call(request: web.Request) -> web.Response:
    """201 with the answer and the call's `Location`."""
    calls = request.app[CALLS]
    with calls.reading():
        offer, session = await _read_in_time(request)
    answered = await calls.open(offer, session, caller_of(request))
    return web.Response(
        status=201,
        text=answered.sdp,
        content_type="application/sdp",
        headers={hdrs.LOCATION: f"/v1/realtime/calls/{answered.call_id}"},
    )


async def hang_up(request: web.Request) -> web.Response:
    """200 once the call is gone."""
    await request.app[CALLS].hang_up(request.match_info["call_id"], caller_of(request))
    return web.Response(status=200)


async def _read_in_time(request: web.Request) -> tuple[str, object]:
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            return await _read_offer(request)
    except TimeoutError as error:
        raise SlowBody(f"the body did not come within {_BODY_TIMEOUT_S:.0f} s") from error
    except (web.RequestPayloadError, HttpProcessingError) as error:
        raise RequestError(f"the body cannot be read: {error}", code="invalid_body") from error


async def _read_offer(request: web.Request) -> tuple[str, object]:
    if request.content_type == "application/sdp":
        return _text(await request.read(), "sdp"), None
    if request.content_type == "multipart/form-data":
        return await _read_form(request)
    raise WrongContentType(
        f"Content-Type is {request.content_type!r}; send {' or '.join(_OFFER_TYPES)}",
        param="Content-Type",
    )


async def _read_form(request: web.Request) -> tuple[str, object]:
    try:
        form = await request.post()
    except (ValueError, LookupError, AssertionError, RuntimeError) as error:
        raise RequestError(
            f"the multipart body cannot be read: {error}", code="invalid_multipart"
        ) from error
    if "sdp" not in form:
        raise RequestError(
            "the multipart body has no part 'sdp'", param="sdp", code="missing_required_parameter"
        )
    session = _json(_part(form["session"]), "session") if "session" in form else None
    return _text(_part(form["sdp"]), "sdp"), session


def _part(value: str | bytes | bytearray | web.FileField) -> bytes:
    if isinstance(value, web.FileField):
        return value.file.read()
    return value.encode() if isinstance(value, str) else bytes(value)


def _text(body: bytes, param: str) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"{param} is not UTF-8 text", param=param) from error


def _json(body: bytes, param: str) -> object:
    try:
        document: object = json.loads(_text(body, param))
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f"{param} is not JSON: {error}", param=param, code="invalid_json"
        ) from error
    return document
