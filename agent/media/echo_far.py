"""The far end: what was sent, kept in step with the microphone."""

from collections import deque

import numpy as np

from agent.media.audio import Resampler
from agent.types import MIC_FRAME_SAMPLES, MIC_RATE_HZ, SPEECH_RATE_HZ, FloatArray

FAR_RING_SAMPLES = 2 * MIC_RATE_HZ
"""What may wait for the microphone at most; beyond that the oldest is dropped. As much of what
was heard already is kept: the reference of an echo that comes late."""

FAR_DELAY_SAMPLES = Resampler(SPEECH_RATE_HZ, MIC_RATE_HZ).delay_samples
"""How much the far end is late by its change of rate."""

_INBOX_FRAMES = 128
_SAMPLES_PER_MS = MIC_RATE_HZ // 1000


class FarEnd:
    """What was sent, and how far the microphone is with it.

    AEC3 finds echoes up to some 400 ms after their far end, but none before it. So the far end
    may be early, never late, and lateness is what waits here: the backlog. Sound that was missing
    when the microphone asked (silence is fed instead) makes it grow, and so does a microphone
    that stalls and skips what it missed. What is real backlog, and what only waits for the next
    burst of near frames, shows in the smallest backlog over a while, looked at just before each
    push and only when the microphone moved since the last one: after a mere delay, near frames
    come in a burst and take it down to nothing.
    """

    # (backlog above which to act, pushes in a row that must show it). The further the far end has
    # fallen behind its echo, the sooner: a voice detector opens after 96 ms of uncancelled echo.
    _limits = ((150 * _SAMPLES_PER_MS, 2), (60 * _SAMPLES_PER_MS, 4), (30 * _SAMPLES_PER_MS, 50))
    _kept = MIC_FRAME_SAMPLES

    def __init__(self) -> None:
        self._inbox: deque[FloatArray] = deque(maxlen=_INBOX_FRAMES)
        self._resampler = Resampler(SPEECH_RATE_HZ, MIC_RATE_HZ)
        self._line = History(2 * FAR_RING_SAMPLES)
        self._lowest: deque[int] = deque(maxlen=max(pushes for _, pushes in self._limits))
        self._near_moved = False
        self.anchor = 0
        """Far index that the microphone's next sample meets, going by arrival alone."""
        self.met = 0
        """The same before the last `advance`: what was skipped and taken begins here."""

    @property
    def received(self) -> int:
        """Far index behind the newest sample."""
        return self._line.end

    def push(self, samples: FloatArray) -> None:
        """Sound [T] at 24 kHz; only noted here, so that any thread may call."""
        self._inbox.append(samples)

    def advance(self) -> int:
        """10 ms of microphone are due; how many samples were skipped before them, whole frames."""
        skipped = 0
        while self._inbox:
            skipped = max(skipped, self._note_backlog())
            self._line.append(self._resampler.push(self._inbox.popleft()))
            self.anchor = max(self.anchor, self.received - FAR_RING_SAMPLES)
        self._near_moved = True
        self.met = self.anchor
        self.anchor = min(self.received, self.anchor + skipped + MIC_FRAME_SAMPLES)
        return skipped

    def read(self, start: int, count: int) -> FloatArray:
        """`count` samples from far index `start` on; silence where there are none."""
        return self._line.read(start, count)

    def _note_backlog(self) -> int:
        """How many samples to skip, whole frames, judging by the backlog before this push."""
        if not self._near_moved:
            return 0
        self._near_moved = False
        self._lowest.append(self.received - self.anchor)
        excess = self._excess()
        if excess:
            self._lowest.clear()
        return excess - excess % MIC_FRAME_SAMPLES

    def _excess(self) -> int:
        seen = list(self._lowest)
        for tolerated, pushes in self._limits:
            if len(seen) >= pushes and seen[-1] > tolerated and min(seen[-pushes:]) > tolerated:
                return min(seen[-pushes:]) - self._kept
        return 0


class History:
    """The newest samples of a stream by their index since it began."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._buffer = np.zeros(capacity + capacity // 4, np.float32)
        self._filled = 0
        self.end = 0
        """Index behind the newest sample."""

    @property
    def oldest(self) -> int:
        """Index of the oldest sample that is still there."""
        return self.end - min(self._filled, self._capacity)

    def append(self, samples: FloatArray) -> None:
        """The next samples [T]."""
        newest = samples[-self._capacity :]
        if self._filled + len(newest) > len(self._buffer):
            kept = min(self._filled, self._capacity - len(newest))
            self._buffer[:kept] = self._buffer[self._filled - kept : self._filled]
            self._filled = kept
        self._buffer[self._filled : self._filled + len(newest)] = newest
        self._filled += len(newest)
        self.end += len(samples)

    def read(self, start: int, count: int) -> FloatArray:
        """`count` samples from index `start` on; silence where they are gone or not yet there."""
        first = start - self.end + self._filled
        if first >= 0 and first + count <= self._filled:
            return self._buffer[first : first + count].copy()
        samples = np.zeros(count, np.float32)
        begin, stop = max(first, 0), min(first + count, self._filled)
        if begin < stop:
            samples[begin - first : stop - first] = self._buffer[begin:stop]
        return samples
