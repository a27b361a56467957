"""A second client of a call in progress: sees every event, and may send all but sound."""

import asyncio
import json
from collections.abc import Mapping
from typing import Self

from aiohttp import WSCloseCode, WSMsgType, web

from agent.clock import SYSTEM_CLOCK
from agent.errors import AgentError
from agent.realtime.events import error_event, server_event
from agent.session import Session
from agent.transport.websocket import too_many_events
from agent.transport.websocket_pace import DEFAULT_PACE, Pacer
from agent.transport.websocket_writer import EventWriter

_MOST_REASON = 100
"""A close frame has room for 123 bytes."""
_NO_SOUND = "input_audio_buffer.append"


class Sideband:
    """Attached to `session` from the beginning to the end of the `with`; `run` it in between.

    One that does not read, or sends too much, is dropped; the call takes no notice.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._writer = EventWriter(self._on_stuck)
        self._pacer = Pacer(DEFAULT_PACE, SYSTEM_CLOCK)
        self._stuck = asyncio.Event()

    def __enter__(self) -> Self:
        """`CapacityError` when too many are attached."""
        self._tell(server_event("session.created", session=self._session.document))
        self._leave = self._session.watch(self._tell)
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    async def run(self, socket: web.WebSocketResponse) -> tuple[int, str]:
        """Until call, client or patience are at an end: the code to close with, and why."""
        self._writer.begin(socket)
        reading = asyncio.ensure_future(self._read(socket))
        over = asyncio.ensure_future(self._session.over())
        stuck = asyncio.ensure_future(self._stuck.wait())
        waited = (reading, over, stuck)
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if stuck.done():
                return WSCloseCode.POLICY_VIOLATION, "does not read"
            if reading.done() and not over.done():
                return reading.result()
            return WSCloseCode.OK, "the call is over"
        finally:
            for task in waited:
                task.cancel()
            await asyncio.wait(waited)
            await self._writer.finish()

    async def _read(self, socket: web.WebSocketResponse) -> tuple[int, str]:
        while True:
            await self._writer.room()
            message = await socket.receive()
            if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                return WSCloseCode.OK, ""
            if not await self._pacer.admit(len(message.data)):
                self._tell(too_many_events(self._pacer.pace))
                return WSCloseCode.POLICY_VIOLATION, "too many events"
            if _is_sound(message.data):
                text = "Sound comes from the call's own client; a sideband sends all but that."
                self._tell(error_event(text, param="type", code="no_audio_on_sideband"))
                continue
            try:
                self._session.receive(message.data, self._tell)
            except AgentError as error:
                # The call itself hears of it when it next tells its engine something.
                return WSCloseCode.INTERNAL_ERROR, str(error)[:_MOST_REASON]

    def _tell(self, event: dict[str, object]) -> None:
        self._writer.send(json.dumps(event, allow_nan=False))

    def _on_stuck(self) -> None:
        self._stuck.set()


def _is_sound(data: str | bytes) -> bool:
    """Whether it is an event that only the call's own client may send; what is none, is not."""
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(event, Mapping) and event.get("type") == _NO_SOUND
