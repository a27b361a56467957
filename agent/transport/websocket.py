"""WebSocket: a client of the Realtime API behind the seam `Transport`, its sound inside of events.

The socket belongs to whoever accepted it, who closes it once the call is over: `close_code` says
how this side means to part.
"""

import asyncio
from collections.abc import AsyncIterator

from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from agent.clock import SYSTEM_CLOCK, Clock
from agent.errors import PeerTimeout, SessionError, TransportClosed
from agent.interfaces import SpeechSource
from agent.transport.websocket_microphone import WebSocketMicrophone
from agent.transport.websocket_pace import DEFAULT_PACE, Pacer, SocketPace
from agent.transport.websocket_writer import EventWriter
from agent.types import AudioFrame, LinkQuality, VideoFrame

LEAST_EVENT_BYTES = 4 << 20
"""No bound on a client's events is below that: it is a minute of PCM16 in base64."""


class WebSocketTransport:
    """One client. `begin` when the socket is accepted; `give_up` if it never is, or is let go."""

    def __init__(self, pace: SocketPace = DEFAULT_PACE, clock: Clock = SYSTEM_CLOCK) -> None:
        self._pacer = Pacer(pace, clock)
        self._writer = EventWriter(self._on_stuck)
        self._socket: web.WebSocketResponse | None = None
        self._ready = asyncio.Event()
        self._ended = asyncio.Event()
        self._reason: SessionError | None = None
        self.ears = WebSocketMicrophone(clock)
        """The microphone for `input_audio_buffer.append`."""
        self.close_code: int = WSCloseCode.OK

    # ---- whoever accepts the socket -----------------------------------------------------------

    def begin(self, socket: web.WebSocketResponse) -> None:
        """The client is there."""
        self._socket = socket
        self._writer.begin(socket)
        self.ears.begin()
        self._ready.set()

    def give_up(self) -> None:
        """There is no socket, now or any longer; nothing happens once the call is over."""
        self._end(TransportClosed("the socket is gone"))
        self._ready.set()

    # ---- what a session uses ------------------------------------------------------------------

    async def connected(self) -> None:
        """Return when the socket is there; `TransportClosed` when it never will be."""
        await self._ready.wait()
        if self._reason is not None:
            raise self._reason

    async def microphone(self) -> AsyncIterator[AudioFrame]:
        """10 ms frames at 16 kHz on one unbroken time line."""
        async for frame in self.ears.frames():
            yield frame
        if self._reason is not None:
            raise self._reason

    async def messages(self) -> AsyncIterator[str | bytes]:
        """Client events as they come; none is read before the one before it was dealt with, nor
        while plenty of sound waits: whoever sends a long recording at once is made to wait."""
        while (message := await self._next()) is not None:
            yield message
        if self._reason is not None:
            raise self._reason

    async def latest_picture(self, now_at: int) -> VideoFrame | None:
        """None: pictures come inside of items here."""
        return None

    def play(self, source: SpeechSource) -> None:
        """Nothing pulls `source`: the session sends its sound inside of events."""

    def speech_position(self, rtp_timestamp: int) -> int | None:
        """None: nothing here has an RTP timestamp."""
        return None

    def link(self) -> LinkQuality:
        """Unknown."""
        return LinkQuality()

    def send(self, message: str) -> None:
        """Queue one event; a client that does not read is disconnected, not buffered."""
        self._writer.send(message)

    async def close(self) -> None:
        """Write what is still to be said, and no more. Idempotent."""
        self._end(None)
        await self._writer.finish()

    # ---- inside -------------------------------------------------------------------------------

    async def _next(self) -> str | bytes | None:
        """The next event; None when there is none any more."""
        await self._writer.room()
        await self.ears.room()
        if self._socket is None or self._ended.is_set():
            return None
        message = await self._socket.receive()
        if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
            self._end(_why(message))
            return None
        data: str | bytes = message.data
        await self._pacer.hold_back(len(data))
        return data

    def _on_stuck(self) -> None:
        self.close_code = WSCloseCode.POLICY_VIOLATION
        self._end(TransportClosed("the client does not read its events"))

    def _end(self, reason: SessionError | None) -> None:
        if not self._ended.is_set():
            self._reason = reason
            self._ended.set()
            self.ears.finish()


def _why(message: WSMessage) -> SessionError | None:
    """Why the socket has no more events; None when the client said goodbye."""
    if message.type is not WSMsgType.ERROR:
        return None
    if isinstance(message.data, TimeoutError):
        return PeerTimeout("the client no longer answers")
    return TransportClosed(f"the connection to the client broke: {message.data}")
