"""The far end as the echo canceller hears it: kept in step with the microphone, then aligned.

Two clocks of samples at 16 kHz run here. The far index counts what was sent; the near index counts
the microphone, whole frames of padding included. Where the one stands when the other is at some
sample is a lag: near index minus far index.
"""

from collections import deque

import numpy as np

from agent.media.audio import Resampler
from agent.media.echo_fraction import LOOK_AHEAD_SAMPLES, read_between
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
        self._line = _History(2 * FAR_RING_SAMPLES)
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


class Reference:
    """What the canceller is fed: the far end, held back as long as its echo needs.

    While nothing is known, the reference is the far end as it arrives (`lead` 0). `hold_back`
    makes it later, and from then on it goes on sample by sample whatever arrival does: sound that
    comes late is still read where it belongs. `follow_drift` lets it run slower or faster than
    the microphone, read between the samples.
    """

    # So long the reference waits for sound that a sender owes before it believes it gone.
    _patience_frames = 20

    def __init__(self) -> None:
        self.far = FarEnd()
        self.near_index = 0
        """Near index behind the last frame that was taken."""
        self._start = 0
        self._fraction = 0.0
        self._held_samples = 0.0
        self._drift = 0.0
        self._free = False
        self._short_frames = 0

    @property
    def lag(self) -> float:
        """Near index minus the far index that the reference gives it."""
        return self.near_index - self._start - self._fraction

    @property
    def arrival_lag(self) -> int:
        """The same, had the reference gone by arrival alone."""
        return self.near_index - self.far.anchor

    @property
    def drift_ppm(self) -> float:
        """How much faster the microphone counts than the echo, as `follow_drift` was told."""
        return self._drift * 1e6

    def take(self) -> FloatArray:
        """The reference of the next 10 ms [160], before it what is to be skipped: [160 * k]."""
        count = MIC_FRAME_SAMPLES + self._follow(self.far.advance())
        taken = self._read(count)
        self.near_index += count
        if not self._free:
            self._start = self.far.anchor
        return taken

    def release(self) -> None:
        """Go on sample by sample from here, whatever arrival does."""
        self._free = True

    def hold_back(self, samples: float) -> None:
        """Make the reference so much later (negative: earlier) from the next frame on."""
        self._free = True
        self._held_samples += samples
        self._place(self._start + self._fraction - samples)

    def follow_drift(self, ppm: float) -> None:
        """From here on the lag of the echo grows by `ppm` samples in a million."""
        self._free = True
        self._drift = ppm * 1e-6

    @property
    def spare_samples(self) -> float:
        """How much further the reference could run ahead before it meets sound not yet sent."""
        return self.far.anchor - (self._start + self._fraction) - LOOK_AHEAD_SAMPLES

    def _follow(self, skipped: int) -> int:
        """Keep the place after what arrival did; how much silence to pad the microphone with."""
        if not self._free:
            self._start = self.far.met
            return skipped
        # What the reference is ahead of arrival already need not be skipped once more.
        ahead = self._start + self._fraction + self._held_samples - self.far.met
        padding = min(skipped, max(0, skipped - round(ahead)))
        return padding - padding % MIC_FRAME_SAMPLES

    def _read(self, count: int) -> FloatArray:
        if not self._free:
            have = self.far.anchor - self._start
            taken = np.zeros(count, np.float32)
            taken[:have] = self.far.read(self._start, have)
            return taken
        self._wait_or_give_up(count)
        step = 1.0 - self._drift
        taken = (
            read_between(self.far.read, self._start, self._fraction, step, count)
            if self._drift or self._fraction
            else self.far.read(self._start, count)
        )
        self._place(self._start + self._fraction + count * step)
        return taken

    def _wait_or_give_up(self, count: int) -> None:
        """Deal with a reference that has run into sound that has not come."""
        ahead = LOOK_AHEAD_SAMPLES if self._drift or self._fraction else 0
        short = self._start + count + ahead - self.far.received
        if short <= 0:
            self._short_frames = 0
            return
        self._short_frames += 1
        # A little is drift that cannot be followed any further; much is a sender that stalls.
        if short <= 2 * LOOK_AHEAD_SAMPLES or self._short_frames > self._patience_frames:
            self._start -= short

    def _place(self, position: float) -> None:
        self._start = int(np.floor(position))
        self._fraction = position - self._start


class _History:
    """The newest samples of a stream by their index since it began."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._buffer = np.zeros(capacity + capacity // 4, np.float32)
        self._filled = 0
        self.end = 0
        """Index behind the newest sample."""

    def append(self, samples: FloatArray) -> None:
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
