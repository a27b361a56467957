"""A second client of a call in progress: sees every event, and may send all but sound."""

import asyncio
import json
import sys
from typing import Self

from aiohttp import WSCloseCode, WSMsgType, web

from agent.clock import SYSTEM_CLOCK
from agent.errors import AgentError, RequestError
from agent.realtime.client_events import (
    EXTENSION,
    client_event_id,
    read_message,
    uses_extension,
)
from agent.realtime.events import Event, error_event, server_event
from agent.realtime.limits import Limits
from agent.realtime.omni import SERVER_EVENTS, uses_omni
from agent.session import Session
from agent.transport.websocket_pace import DEFAULT_PACE, Pacer
from agent.transport.websocket_writer import EventWriter

_MOST_REASON = 100
"""A close frame has room for 123 bytes."""
_NO_SOUND = "input_audio_buffer.append"
_LOOKED_AT = Limits(max_sideband_bytes=sys.maxsize)
"""Of how long an event may be, the socket and the call decide."""


class Sideband:
    """Attached to `session` from the beginning to the end of the `with`; `run` it in between.

    One that does not read is dropped, one that sends too much made to wait; the call takes no
    notice. Events of our extension are for those who use it themselves: some clients end at what
    they do not know. So are those of vLLM-Omni's API, in a call whose client has asked for it.
    """

    def __init__(self, session: Session, *, is_omni: bool = False) -> None:
        """`is_omni`: this one has asked for it, too."""
        self._session = session
        self._writer = EventWriter(self._on_stuck)
        self._pacer = Pacer(DEFAULT_PACE, SYSTEM_CLOCK)
        self._stuck = asyncio.Event()
        self._extended, self._is_omni = False, is_omni
        self._state: Event | None = None

    def __enter__(self) -> Self:
        """`CapacityError` when too many are attached."""
        self._tell(server_event("session.created", session=self._session.document))
        self._leave = self._session.watch(self._told)
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
            await self._pacer.hold_back(len(message.data))
            event = _event(message.data)
            if event.get("type") == _NO_SOUND:
                self._refuse_sound(event)
                continue
            if uses_extension(event):
                self._extend()
            self._is_omni |= uses_omni(event)
            try:
                self._session.receive(message.data, self._tell)
            except AgentError as error:
                # The call itself hears of it when it next tells its engine something.
                return WSCloseCode.INTERNAL_ERROR, str(error)[:_MOST_REASON]

    def _refuse_sound(self, event: Event) -> None:
        text = "Sound comes from the call's own client; a sideband sends all but that."
        code, event_id = "no_audio_on_sideband", client_event_id(event)
        self._tell(error_event(text, param="type", code=code, event_id=event_id))

    def _extend(self) -> None:
        """From now on our extension, too, and first of all what the state is."""
        if not self._extended and self._state is not None:
            self._send(self._state)
        self._extended = True

    def _told(self, event: Event) -> None:
        """What the call's client is told, who may come later, and is greeted then."""
        if event["type"] != "session.created":
            self._tell(event)

    def _tell(self, event: Event) -> None:
        kind = str(event["type"])
        if kind == "voice_agent.state":
            self._state = event
        if kind in SERVER_EVENTS:
            is_known = self._is_omni
        else:
            is_known = self._extended or not kind.startswith(EXTENSION)
        if is_known:
            self._send(event)

    def _send(self, event: Event) -> None:
        self._writer.send(json.dumps(event, allow_nan=False))

    def _on_stuck(self) -> None:
        self._stuck.set()


def _event(data: str | bytes) -> Event:
    """What this side looks at itself; empty where it is no event, of which the call tells."""
    try:
        return read_message(data, _LOOKED_AT, is_client=False)
    except RequestError:
        return {}
