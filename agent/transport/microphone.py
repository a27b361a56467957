"""The microphone: packets as they come, 10 ms frames for whoever listens; knows no aiortc."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from agent.clock import Clock
from agent.media.jitter import LineCounts, MicrophoneLine, RtpAudio
from agent.transport.beat import Beat
from agent.types import AudioFrame

MAX_FRAMES = 200
"""2 s: a listener that is further behind loses the oldest."""

_FRAMES_AT_ONCE = 8
_MAX_ARRIVED = 512
"""10 s of packets; of more, in the few milliseconds until they are looked at, the oldest go."""
_TIMER_SLACK_S = 0.001


class RtpPacket(Protocol):
    """What is read of a packet."""

    sequence_number: int
    timestamp: int
    payload: bytes


def _raised(error: Exception) -> None:
    raise error


class Microphone:
    """Feeds a `MicrophoneLine` and wakes it when it wants to go on without a packet."""

    def __init__(
        self,
        clock: Clock,
        heard: Callable[[], None],
        failed: Callable[[Exception], None] = _raised,
        beat: Beat | None = None,
    ) -> None:
        """`heard` is told of each packet, `failed` of what taking one in raised.

        On a `beat` shared with others, packets wait a few milliseconds for those of other calls.
        """
        self._line: MicrophoneLine | None = None
        self._clock = clock
        self._heard = heard
        self._failed = failed
        self._beat = Beat() if beat is None else beat
        self._arrived: deque[tuple[RtpAudio, float]] = deque(maxlen=_MAX_ARRIVED)
        self._frames: deque[AudioFrame] = deque(maxlen=MAX_FRAMES)
        self._news = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_s = 0.0
        self._asked = False
        self._joined = False
        self._rests = False
        self._ended = False

    def listen(self, line: MicrophoneLine) -> None:
        """Packets go to `line` from now on."""
        self._line = line

    def push(self, packet: RtpPacket) -> None:
        """A packet from the wire."""
        if self._ended or self._line is None:
            return
        self._heard()
        self.go_on()
        packet_in = RtpAudio(packet.sequence_number, packet.timestamp, packet.payload)
        self._arrived.append((packet_in, self._clock.now_s()))
        if not self._asked:
            self._asked = True
            self._beat.do(self._take_in, self._failed)

    def begin(self) -> None:
        """The call stands: time goes on from here, packets or none."""
        if self._line is not None and not self._ended:
            if not self._joined:
                self._beat.join()
                self._joined = True
            self._line.begin(self._clock.now_s())
            self._give([], self._line)

    def rest(self) -> None:
        """No time passes from here to the next packet, or until it is to `go_on`."""
        if self._ended or self._rests:
            return
        self._rests = True
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def go_on(self) -> None:
        """The rest is over, if there was one."""
        if self._rests and self._line is not None and not self._ended:
            self._rests = False
            self._line.skip(self._clock.now_s())
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
        if self._joined:
            self._joined = False
            self._beat.leave()
        if self._timer:
            self._timer.cancel()
        self._news.set()

    def _take_in(self) -> None:
        """What has arrived, by the time when it did."""
        self._asked = False
        arrived = self._arrived
        while arrived and self._line is not None and not self._ended:
            packet, at_s = arrived.popleft()
            self._give(self._line.push(packet, at_s), self._line)

    def _give(self, frames: list[AudioFrame], line: MicrophoneLine) -> None:
        if frames:
            self._frames.extend(frames)
            self._news.set()
        if (due_s := line.due_s()) is not None:
            self._wake_at(due_s)

    def _wake_at(self, due_s: float) -> None:
        """A timer that is too early only asks again: most packets need not touch it."""
        if self._timer is not None:
            if self._wakes_s <= due_s + _TIMER_SLACK_S:
                return
            self._timer.cancel()
        self._wakes_s = max(due_s, self._clock.now_s())
        wait_s = self._wakes_s - self._clock.now_s()
        self._timer = asyncio.get_running_loop().call_later(max(0.0, wait_s), self._advance)

    def _advance(self) -> None:
        self._timer = None
        # What came in time is not late because it waits for the beat, which sets the timer anew.
        if self._line is not None and not self._ended and not self._asked:
            self._give(self._line.advance(self._clock.now_s()), self._line)
