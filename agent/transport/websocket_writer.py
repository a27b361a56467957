"""Server events on their way to one socket: a bounded queue and the task that writes it."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Protocol

MAX_QUEUED_BYTES = 1 << 20
"""16 s of speech: whoever is further behind does not read."""
STUCK_S = 10.0
"""So long one event may take to be handed to the network."""
_EASY_BYTES = 1 << 18
_FLUSH_S = 2.0


class TextSocket(Protocol):
    """What events are written to."""

    async def send_str(self, data: str) -> None:
        """Hand `data` to the network; waits while that takes no more."""


class EventWriter:
    """`send` never waits; `stuck` is told once when the reader does not keep up.

    Events may be sent before the socket is there: they wait for `begin`.
    """

    def __init__(self, stuck: Callable[[], None]) -> None:
        self._stuck = stuck
        self._waiting: deque[str] = deque()
        self._bytes = 0
        self._news = asyncio.Event()
        self._empty, self._easy = asyncio.Event(), asyncio.Event()
        self._empty.set()
        self._easy.set()
        self._task: asyncio.Task[None] | None = None
        self._given_up = False

    def begin(self, socket: TextSocket) -> None:
        """Write to `socket` from now on; to be `finish`ed."""
        self._task = asyncio.get_running_loop().create_task(self._write_to(socket))

    def send(self, message: str) -> None:
        """One more event."""
        if self._given_up:
            return
        if self._bytes + len(message) > MAX_QUEUED_BYTES:
            self._give_up()
            self._stuck()
            return
        self._bytes += len(message)
        self._waiting.append(message)
        self._empty.clear()
        if self._bytes > _EASY_BYTES:
            self._easy.clear()
        self._news.set()

    async def room(self) -> None:
        """Wait until most of what waits is written: whoever is not done with the answers so far
        is not asked for more, and the loop serves others meanwhile."""
        await asyncio.sleep(0)
        await self._easy.wait()

    async def finish(self) -> None:
        """Write what waits, if that takes no longer than a moment, and nothing more."""
        if self._task is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_S):
                await self._empty.wait()
        self._give_up()
        self._task.cancel()
        await asyncio.wait((self._task,))

    def _give_up(self) -> None:
        self._given_up = True
        self._waiting.clear()
        self._empty.set()
        self._easy.set()

    async def _write_to(self, socket: TextSocket) -> None:
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                while self._waiting:
                    await self._write(socket, self._waiting[0])
                self._empty.set()
        except TimeoutError:
            self._give_up()
            self._stuck()
        except ConnectionError:
            # Whoever reads from the socket hears of its end, too.
            self._give_up()

    async def _write(self, socket: TextSocket, message: str) -> None:
        async with asyncio.timeout(STUCK_S):
            await socket.send_str(message)
        if self._waiting:
            self._waiting.popleft()
            self._bytes -= len(message)
        if self._bytes <= _EASY_BYTES:
            self._easy.set()
