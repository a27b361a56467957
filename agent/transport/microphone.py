"""The microphone: packets as they come, 10 ms frames for whoever listens; knows no aiortc."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from agent.clock import Clock
from agent.media.jitter import LineCounts, MicrophoneLine, RtpAudio
from agent.types import AudioFrame

MAX_FRAMES = 200
"""2 s: a listener that is further behind loses the oldest."""

_FRAMES_AT_ONCE = 8


class RtpPacket(Protocol):
    """What is read of a packet."""

    sequence_number: int
    timestamp: int
    payload: bytes


class Microphone:
    """Feeds a `MicrophoneLine` and wakes it when it wants to go on without a packet."""

    def __init__(self, clock: Clock, heard: Callable[[], None]) -> None:
        """`heard` is told of each packet."""
        self._line: MicrophoneLine | None = None
        self._clock = clock
        self._heard = heard
        self._frames: deque[AudioFrame] = deque(maxlen=MAX_FRAMES)
        self._news = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False

    def listen(self, line: MicrophoneLine) -> None:
        """Packets go to `line` from now on."""
        self._line = line

    def push(self, packet: RtpPacket) -> None:
        """A packet from the wire."""
        if self._ended or self._line is None:
            return
        self._heard()
        packet_in = RtpAudio(packet.sequence_number, packet.timestamp, packet.payload)
        self._give(self._line.push(packet_in, self._clock.now_s()), self._line)

    def begin(self) -> None:
        """The call stands: time goes on from here, packets or none."""
        if self._line is not None and not self._ended:
            self._line.begin(self._clock.now_s())
            self._give([], self._line)

    @property
    def counts(self) -> LineCounts:
        """What became of the packets so far."""
        return self._line.counts if self._line is not None else LineCounts()

    async def frames(self) -> AsyncIterator[AudioFrame]:
        """10 ms at a time until `end`; to be iterated by one task."""
        while True:
            given = 0
            while self._frames:
                yield self._frames.popleft()
                given += 1
                if given % _FRAMES_AT_ONCE == 0:
                    # A backlog of one call must not make all others late.
                    await asyncio.sleep(0)
            if self._ended:
                return
            self._news.clear()
            await self._news.wait()

    def end(self) -> None:
        """No more frames than those that wait."""
        self._ended = True
        if self._timer:
            self._timer.cancel()
        self._news.set()

    def _give(self, frames: list[AudioFrame], line: MicrophoneLine) -> None:
        if frames:
            self._frames.extend(frames)
            self._news.set()
        if (due_s := line.due_s()) is not None:
            self._wake_at(asyncio.get_running_loop(), due_s - self._clock.now_s())

    def _wake_at(self, loop: asyncio.AbstractEventLoop, wait_s: float) -> None:
        """A timer that is too early only asks again: most packets need not touch it."""
        due = loop.time() + max(0.0, wait_s)
        if self._timer is not None and self._timer.when() <= due + 0.001:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(due, self._go_on)

    def _go_on(self) -> None:
        self._timer = None
        if self._line is not None and not self._ended:
            self._give(self._line.advance(self._clock.now_s()), self._line)
