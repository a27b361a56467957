"""`WS /v1/realtime`: a call whose sound goes inside of events, and the sideband of any call.

`?model=…` opens a call; any name will do, as stock clients send OpenAI's. `?call_id=rtc_…` attaches
to one that is in progress. `?duplex=1` asks for the events of vLLM-Omni's duplex API. Browsers,
which cannot set headers, name their key as a subprotocol beside `realtime`; that one is answered.
"""

import asyncio
import contextlib
import logging

from aiohttp import WSCloseCode, hdrs, web

from agent.api.caller import caller_of
from agent.api.calls import max_event_bytes
from agent.api.realtime import CALLS, CALLS_PATH, prefix_of
from agent.api.sideband import Sideband
from agent.errors import RequestError
from agent.realtime.omni import asks_for_omni
from agent.transport.websocket import WebSocketTransport
from agent.transport.websocket_pace import DEFAULT_PACE

log = logging.getLogger(__name__)

HEARTBEAT_S = 15.0
"""A client that is silent for so long is asked whether it is there; it has half of that to say so.
"""
PACE = DEFAULT_PACE
_CLOSE_S = 3.0
_CODES = {
    "shutdown": WSCloseCode.GOING_AWAY,
    "failed": WSCloseCode.INTERNAL_ERROR,
    "max_duration": WSCloseCode.POLICY_VIOLATION,
    "revoked": WSCloseCode.POLICY_VIOLATION,
}
"""How the socket of a call closes that ended so; all others as agreed."""


class UpgradeRequired(RequestError):
    """Plain HTTP where a WebSocket is meant."""

    status = 426
    code = "websocket_required"


def add_routes(router: web.UrlDispatcher) -> None:
    """Add this file's endpoint."""
    router.add_get("/v1/realtime", open_socket)


async def open_socket(request: web.Request) -> web.WebSocketResponse:
    """A call of its own, or with `call_id` a sideband."""
    calls = request.app[CALLS]
    call_id = request.query.get("call_id")
    socket = _socket(request, max_event_bytes(calls.config, "websocket"))
    is_omni = asks_for_omni(request.query.get("duplex", ""))
    if call_id:
        session = calls.owned_by(call_id, caller_of(request))
        return await _attach(request, socket, Sideband(session, is_omni=is_omni))
    transport = WebSocketTransport(PACE)
    session = await calls.open_socket(transport, caller_of(request), is_omni=is_omni)
    # Nothing in the protocol names the call; whoever wants to attach to it needs to know.
    socket.headers[hdrs.LOCATION] = f"{prefix_of(request)}{CALLS_PATH}/{session.call_id}"
    try:
        await socket.prepare(request)
        transport.begin(socket)
        outcome = await session.over()
    finally:
        # If the client went before it was there, or this server waits for it no longer.
        transport.give_up()
    code = transport.close_code
    await _close(request, socket, _CODES.get(outcome, code), outcome)
    return socket


async def _attach(
    request: web.Request, socket: web.WebSocketResponse, sideband: Sideband
) -> web.WebSocketResponse:
    with sideband:
        await socket.prepare(request)
        code, reason = await sideband.run(socket)
    await _close(request, socket, code, reason)
    return socket


def _socket(request: web.Request, bytes_most: int) -> web.WebSocketResponse:
    """Not compressed: base64 of sound hardly gets smaller, and takes the time of other calls.

    Up to twice the longest event is read, to be refused by an event; beyond it closes with 1009.
    """
    socket = web.WebSocketResponse(
        protocols=("realtime",),
        heartbeat=HEARTBEAT_S,
        compress=False,
        max_msg_size=2 * bytes_most,
    )
    if not socket.can_prepare(request):
        raise UpgradeRequired(
            "this is a WebSocket; connect with ws:// or wss://, or POST an SDP offer to "
            "/v1/realtime/calls"
        )
    return socket


async def _close(
    request: web.Request, socket: web.WebSocketResponse, code: int, reason: str
) -> None:
    """Say goodbye, and hang up on whoever does not answer."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_CLOSE_S):
            await socket.close(code=code, message=reason.encode())
    if request.transport is not None:
        request.transport.abort()
