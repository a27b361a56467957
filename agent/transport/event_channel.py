"""The data channel by which a peer and the agent send each other events; knows no aiortc."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from agent.clock import SYSTEM_CLOCK, Clock
from agent.errors import SessionError, TransportClosed
from agent.realtime.events import error_event
from agent.transport.websocket_pace import DEFAULT_PACE, Pacer, too_many_events

EVENTS_LABEL = "oai-events"
_MAX_MESSAGES = 1024
MAX_WAITING_BYTES = 8 << 20
_MAX_BUFFERED_BYTES = 1 << 20


class EventChannel:
    """One channel of that label; without one, what is sent goes nowhere and nothing comes."""

    def __init__(
        self,
        heard: Callable[[], None],
        end: Callable[[SessionError | None], None],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """`heard` is told of each message; `end` is asked for when the connection has to end."""
        self._heard = heard
        self._end = end
        self._pacer = Pacer(DEFAULT_PACE, clock)
        self._waiting_bytes = 0
        self._channel: Any = None
        self._messages: asyncio.Queue[str | bytes | None] = asyncio.Queue(_MAX_MESSAGES + 1)

    def use(self, channel: Any) -> bool:
        """Whether `channel`, which the peer has opened, is the one."""
        if channel.label != EVENTS_LABEL or self._channel is not None:
            return False
        self._channel = channel
        channel.on("message", self._on_message)
        channel.on("close", lambda: self._end(None))
        return True

    async def messages(self) -> AsyncIterator[str | bytes]:
        """Client events as they came, no faster than a client may send, until `finish`."""
        while (message := await self._messages.get()) is not None:
            self._waiting_bytes -= len(message)
            if not await self._pacer.admit(len(message)):
                self.send(json.dumps(too_many_events(self._pacer.pace)))
                self._end(TransportClosed("the client sends more events than it may"))
                return
            yield message

    def send(self, message: str) -> None:
        """Send one event; a peer that lets more than 1 MiB pile up is disconnected.

        In place of one that is longer than its side takes, it is told that there was one.
        """
        channel = self._channel
        if channel is None or channel.readyState != "open":
            return
        if channel.bufferedAmount > _MAX_BUFFERED_BYTES:
            self._end(TransportClosed("the peer does not read its events"))
            return
        try:
            channel.send(message)
        except ValueError:
            self._tell_of_lost(message)

    def _tell_of_lost(self, message: str) -> None:
        text = (
            f"An event of {len(message)} characters is longer than your data channel takes "
            "('max-message-size' of its description) and was not sent; a WebSocket takes it."
        )
        lost = error_event(text, kind="server_error", code="event_too_large")
        try:
            self._channel.send(json.dumps(lost))
        except ValueError:
            self._end(TransportClosed("the peer takes no event of any length"))

    def finish(self) -> None:
        """No more messages; to be called once."""
        self._messages.put_nowait(None)

    def _on_message(self, message: str | bytes) -> None:
        self._heard()
        self._waiting_bytes += len(message)
        if self._messages.qsize() >= _MAX_MESSAGES or self._waiting_bytes > MAX_WAITING_BYTES:
            self._end(TransportClosed("the peer sends events faster than they can be read"))
        else:
            self._messages.put_nowait(message)
