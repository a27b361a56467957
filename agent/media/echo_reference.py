"""What an echo canceller is fed: the far end, aligned with the echo that it is to explain.

Two clocks of samples at 16 kHz run here. The far index counts what was sent; the near index counts
the microphone, whole frames of padding included. A lag is near index minus far index of what
belongs together.
"""

from dataclasses import dataclass

import numpy as np

from agent.media.echo_far import FarEnd
from agent.media.echo_fraction import LOOK_AHEAD_SAMPLES, read_between
from agent.types import MIC_FRAME_SAMPLES, FloatArray


@dataclass(frozen=True, slots=True)
class Alignment:
    """At near index `at` the reference lags by `lag` samples, growing by `drift_ppm`."""

    at: int
    lag: float
    drift_ppm: float = 0.0

    def far_position(self, near_index: int) -> float:
        """Where in the far end the reference stands at `near_index`."""
        return near_index - self.lag - self.drift_ppm * 1e-6 * (near_index - self.at)


class Reference:
    """Reads the far end along an alignment; without one, as it arrives.

    An aligned reference goes on sample by sample whatever arrival does: sound that comes late is
    still read where it belongs. Its drift is followed by reading between the samples.
    """

    # So long the reference waits for sound that a sender owes before it believes it gone.
    _patience_frames = 20

    def __init__(
        self, far: FarEnd, near_index: int = 0, alignment: Alignment | None = None
    ) -> None:
        self.near_index = near_index
        """Near index behind the last frame that was read for."""
        self._far = far
        self._start = far.anchor
        self._fraction = 0.0
        self._held_samples = 0.0
        self._drift = 0.0
        self._aligned = alignment is not None
        self._short_frames = 0
        if alignment is not None:
            self._drift = alignment.drift_ppm * 1e-6
            self._place(alignment.far_position(near_index))

    @property
    def lag(self) -> float:
        """Near index minus the far index that goes with it."""
        return self.near_index - self._start - self._fraction

    @property
    def drift_ppm(self) -> float:
        """How fast the lag grows."""
        return self._drift * 1e6

    @property
    def spare_samples(self) -> float:
        """How much further the reference could run ahead before it meets sound not yet sent."""
        return self._far.anchor - (self._start + self._fraction) - LOOK_AHEAD_SAMPLES

    def release(self, drift_ppm: float = 0.0) -> None:
        """Go on sample by sample from here, the lag growing by `drift_ppm`."""
        self._aligned = True
        self._drift = drift_ppm * 1e-6

    def settle(self) -> None:
        """Take the place where it stands, compared with arrival, for the one to keep."""
        self._held_samples = self._far.anchor - self._start - self._fraction

    def padding(self, skipped: int) -> int:
        """How much silence the microphone needs before its next frame, in whole frames.

        `skipped` is what the far end has just skipped. What the reference is ahead of arrival
        already need not be skipped once more.
        """
        if not self._aligned:
            return skipped
        ahead = self._start + self._fraction + self._held_samples - self._far.met
        padding = min(skipped, max(0, skipped - round(ahead)))
        return padding - padding % MIC_FRAME_SAMPLES

    def read(self, count: int) -> FloatArray:
        """The next `count` samples, after the far end has advanced."""
        self.near_index += count
        return self._read_aligned(count) if self._aligned else self._read_arrived(count)

    def _read_arrived(self, count: int) -> FloatArray:
        met, self._start = self._far.met, self._far.anchor
        taken = np.zeros(count, np.float32)
        have = min(count, self._start - met)
        taken[:have] = self._far.read(met, have)
        return taken

    def _read_aligned(self, count: int) -> FloatArray:
        between = bool(self._drift or self._fraction)
        self._wait_or_give_up(count + LOOK_AHEAD_SAMPLES * between)
        start, step = self._start, 1.0 - self._drift
        if not between:
            self._start += count
            return self._far.read(start, count)
        taken = read_between(self._far.read, start, self._fraction, step, count)
        self._place(start + self._fraction + count * step)
        return taken

    def _wait_or_give_up(self, needed: int) -> None:
        """Deal with a reference that has run into sound that has not come."""
        short = self._start + needed - self._far.received
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
