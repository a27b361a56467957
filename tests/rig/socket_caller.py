"""A plain WebSocket client of the Realtime API, which knows nothing of the server but its URL."""

import asyncio
import base64
import json
import socket
import time
from collections.abc import Callable

import aiohttp
import numpy as np
from aiohttp import AddrInfoType

from agent.types import FloatArray

RATE_HZ = 24_000
Event = dict[str, object]


class SocketCaller:
    """One client. `dial`, then `say`, `send`, `wait_for`; at the end `hang_up`.

    It reads all the time, unless it is told to be `deaf`.
    """

    def __init__(
        self, base_url: str, query: str = "model=gpt-realtime", *, deaf: bool = False
    ) -> None:
        self._url = f"{base_url}/v1/realtime?{query}"
        self._deaf = deaf
        self._http: aiohttp.ClientSession | None = None
        self._reading: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self.events: list[Event] = []
        self.arrived_s: list[float] = []
        self.close_code: int | None = None
        self.location = ""
        self.closed = False

    async def dial(self, **options: object) -> None:
        """Connect, and wait for `session.created`."""
        connector = aiohttp.TCPConnector(socket_factory=_narrow if self._deaf else None)
        self._http = aiohttp.ClientSession(connector=connector)
        self.socket = await self._http.ws_connect(self._url, max_msg_size=0, **options)  # type: ignore[arg-type]
        self.location = self.socket._response.headers.get("Location", "")
        if not self._deaf:
            self._reading = asyncio.ensure_future(self._read())
            await self.wait_for("session.created")

    async def send(self, kind: str, **fields: object) -> None:
        """One client event."""
        await self.socket.send_str(json.dumps({"type": kind, **fields}))

    async def say(self, data: bytes) -> None:
        """Append sound as it is."""
        await self.send("input_audio_buffer.append", audio=base64.b64encode(data).decode())

    async def say_live(self, data: bytes, ms: int, bytes_per_s: int = 2 * RATE_HZ) -> None:
        """Append sound in pieces of `ms`, at the pace of speech."""
        size = bytes_per_s * ms // 1000
        due_s = time.monotonic()
        for begin in range(0, len(data), size):
            await self.say(data[begin : begin + size])
            due_s += ms / 1000
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))

    def types(self, *, extensions: bool = False) -> list[str]:
        """The types of all events so far."""
        names = [str(event["type"]) for event in self.events]
        return [name for name in names if extensions or not name.startswith("voice_agent.")]

    def of(self, kind: str) -> list[Event]:
        """All events of one type."""
        return [event for event in self.events if event["type"] == kind]

    def sound(self, response_id: str | None = None) -> bytes:
        """What came in `response.output_audio.delta`, of one response or of all."""
        deltas = self.of("response.output_audio.delta")
        wanted = [one for one in deltas if response_id in (None, one["response_id"])]
        return b"".join(base64.b64decode(str(one["delta"])) for one in wanted)

    async def wait_for(
        self,
        kind: str,
        matching: Callable[[Event], bool] = lambda _: True,
        *,
        after: int = 0,
        timeout_s: float = 30,
    ) -> Event:
        """The first event of type `kind` that matches, counted from position `after`."""
        async with asyncio.timeout(timeout_s):
            while True:
                for event in self.events[after:]:
                    if event["type"] == kind and matching(event):
                        return event
                assert not self.closed, f"closed with {self.close_code} before {kind} came"
                self._news.clear()
                await self._news.wait()

    async def wait_until_closed(self, timeout_s: float = 20) -> int | None:
        """Until the server has closed the socket; with which code."""
        async with asyncio.timeout(timeout_s):
            while not self.closed:
                self._news.clear()
                await self._news.wait()
        return self.close_code

    async def was_dropped(self, timeout_s: float = 20) -> bool:
        """Whether a `deaf` one finds, once it reads, that the server has left it."""
        async with asyncio.timeout(timeout_s):
            while True:
                message = await self.socket.receive()
                if message.type is not aiohttp.WSMsgType.TEXT:
                    return message.type is not aiohttp.WSMsgType.BINARY

    async def hang_up(self) -> None:
        """Close, and leave nothing open."""
        if self._http is None:
            return
        await self.socket.close()
        if self._reading is not None:
            await self._reading
        await self.close_http()

    async def close_http(self) -> None:
        """Where there is no socket to close."""
        if self._http is not None:
            await self._http.close()

    async def _read(self) -> None:
        async for message in self.socket:
            assert message.type is aiohttp.WSMsgType.TEXT, message
            self.events.append(json.loads(message.data))
            self.arrived_s.append(time.monotonic())
            self._news.set()
        self.closed, self.close_code = True, self.socket.close_code
        self._news.set()


def _narrow(address: AddrInfoType) -> socket.socket:
    """A socket behind which little piles up: whoever does not read is soon not written to."""
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    return made


def pcm16(samples: FloatArray) -> bytes:
    """−1..1 to PCM16."""
    return (np.clip(samples, -1, 32767 / 32768) * 32768).round().astype("<i2").tobytes()
