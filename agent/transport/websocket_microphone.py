"""The user's sound out of events, as an unbroken microphone for the session."""

import asyncio
from collections.abc import AsyncIterator

from agent.clock import Clock
from agent.transport.websocket_line import TimeLine
from agent.types import AudioFrame, SoundFormat

_FRAMES_AT_ONCE = 8
_PLENTY_S = 30.0


class WebSocketMicrophone:
    """An `EventMicrophone`: a `TimeLine` that wakes whoever listens when it has something."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._line = TimeLine(clock.now_s())
        self._news = asyncio.Event()
        self._taken = asyncio.Event()
        self._ended = False

    def begin(self) -> None:
        """The call stands: its time begins now."""
        self._line = TimeLine(self._clock.now_s())

    @property
    def end(self) -> int:
        """Where what was appended so far ends, on the microphone's clock (16 kHz)."""
        return self._line.end

    def push(self, data: bytes, coding: SoundFormat) -> None:
        """The next sound; `RequestError` when too much of it waits."""
        self._line.push(data, coding, self._clock.now_s())
        self._news.set()

    async def room(self) -> None:
        """Wait as long as plenty of sound waits to be heard."""
        while self._line.waiting_s > _PLENTY_S and not self._ended:
            self._taken.clear()
            await self._taken.wait()

    def committed(self) -> int:
        """Where what was appended since the last commit begins; it ends at `end`."""
        self._news.set()
        return self._line.committed()

    def dropped(self) -> int:
        """What waits is given up; where the microphone goes on."""
        self._taken.set()
        return self._line.drop()

    def client_at(self, position: int) -> int:
        """How much the client had appended by `position`, in samples at 16 kHz."""
        return self._line.client_at(position)

    async def frames(self) -> AsyncIterator[AudioFrame]:
        """10 ms at a time until `finish`; to be iterated by one task."""
        given = 0
        while not self._ended:
            due = self._line.take(self._clock.now_s())
            self._taken.set()
            for frame in due:
                yield frame
                given += 1
                if given % _FRAMES_AT_ONCE == 0:
                    # A recording of one call must not make all others late.
                    await asyncio.sleep(0)
            await self._rest()

    def finish(self) -> None:
        """No more frames."""
        self._ended = True
        self._news.set()
        self._taken.set()

    async def _rest(self) -> None:
        """Until there may be more."""
        if self._ended:
            return
        now_s = self._clock.now_s()
        wait_s = max(0.0, self._line.due_s(now_s) - now_s)
        timer = asyncio.get_running_loop().call_later(wait_s, self._news.set)
        try:
            await self._news.wait()
        finally:
            timer.cancel()
        self._news.clear()
