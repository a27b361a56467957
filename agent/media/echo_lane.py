"""One echo canceller with its reference, and a second one that learns to take its place."""

from typing import Protocol

import numpy as np

from agent.media.audio import falling_edge
from agent.media.echo_align import Move
from agent.media.echo_far import FarEnd, History
from agent.media.echo_reference import Reference
from agent.types import MIC_FRAME_SAMPLES, FloatArray

DELAY_SAMPLES = 128
"""8 ms, AEC3's filter bank; measured by correlating output with input."""
FALLING = falling_edge(MIC_FRAME_SAMPLES)
"""The way out of a frame, when one signal takes the place of another."""

_PRIMING_SAMPLES = 2 * MIC_FRAME_SAMPLES


class AudioProcessing(Protocol):
    """WebRTC's, as pywebrtc-audio offers it."""

    def process(self, near: FloatArray, far: FloatArray) -> FloatArray:
        """Both [160 * k] at 16 kHz; the near end without the echo of the far end."""


class Lane:
    """AEC3 and the reference that it is fed."""

    _smoothing = 0.05
    # The longest lead of the reference, and the room.
    _awake_frames = 120

    def __init__(self, apm: AudioProcessing, reference: Reference) -> None:
        self.reference = reference
        self.far: FloatArray = np.zeros(MIC_FRAME_SAMPLES, np.float32)
        """The reference of the last 10 ms."""
        self.residual = 0.0
        """Energy of what was left in 10 ms, over the last 200 ms."""
        self._apm = apm
        self._silent_frames = 0

    def process(self, near: FloatArray) -> FloatArray:
        """Microphone [160 * k] in; its last 10 ms [160] without echo out."""
        return self._cancel(near, self.reference.read(len(near)))

    def doze(self, near: FloatArray, history: History) -> FloatArray:
        """The same, but AEC3 rests when the far end has long been silent, and so has its echo.

        `history` ends with `near`. Without an echo AEC3 only delays, and takes out what is below
        100 Hz; what it knows of the room it keeps.
        """
        far = self.reference.read(len(near))
        rested = self._silent_frames > self._awake_frames
        # Whether it holds anything but zeros; `any` takes nearly twice as long.
        self._silent_frames = 0 if np.dot(far, far) else self._silent_frames + 1
        if rested and self._silent_frames:
            self.far = far[-MIC_FRAME_SAMPLES:]
            return delayed(history)
        if rested:
            return self._wake(near, far, history)
        cleaned = self._cancel(near, far)
        if self._silent_frames > self._awake_frames:
            return cleaned * FALLING + delayed(history) * (1.0 - FALLING)
        return cleaned

    def _wake(self, near: FloatArray, far: FloatArray, history: History) -> FloatArray:
        """Fill the filter bank with what came just before, then go on."""
        before = history.read(history.end - len(near) - _PRIMING_SAMPLES, _PRIMING_SAMPLES)
        self._apm.process(before, np.zeros(_PRIMING_SAMPLES, np.float32))
        cleaned = self._cancel(near, far)
        return delayed(history) * FALLING + cleaned * (1.0 - FALLING)

    def _cancel(self, near: FloatArray, far: FloatArray) -> FloatArray:
        cleaned = self._apm.process(near, far)[-MIC_FRAME_SAMPLES:]
        self.far = far[-MIC_FRAME_SAMPLES:]
        self.residual += self._smoothing * (float(np.dot(cleaned, cleaned)) - self.residual)
        return cleaned


def delayed(history: History) -> FloatArray:
    """The newest 10 ms of the microphone, as late as AEC3 would give them."""
    return history.read(history.end - MIC_FRAME_SAMPLES - DELAY_SAMPLES, MIC_FRAME_SAMPLES)


class Rival:
    """A canceller with another alignment, on trial beside the one in use.

    It begins with what both ends have heard lately, faster than real time and maybe several times
    over, and then has some seconds in which to be as good.
    """

    _frames_at_once = 8
    _patience_frames = 600
    _least_frames = 5
    # As good, give or take 2 dB, for a while, or better by 3 dB at once.
    _as_good, _as_good_frames = 1.6, 50
    _better = 0.5

    def __init__(self, apm: AudioProcessing, far: FarEnd, near: History, move: Move) -> None:
        self._apm = apm
        self._far = far
        self._move = move
        self._passes_left = move.passes
        self._frames = 0
        self.lane = self._begin(near)

    @property
    def beaten(self) -> bool:
        """Whether it had its time and was not as good."""
        return self._frames > self._patience_frames

    def advance(self, near: History, residual: float) -> FloatArray | None:
        """Learn from some 10 ms of `near`; the newest without echo [160] when it takes over.

        `residual` is what the canceller in use leaves.
        """
        cleaned = np.zeros(0, np.float32)
        for _ in range(self._frames_at_once):
            at = self.lane.reference.near_index
            if at < near.end:
                cleaned = self.lane.process(near.read(at, MIC_FRAME_SAMPLES))
        if self.lane.reference.near_index < near.end:
            return None
        if self._passes_left > 1:
            self._passes_left -= 1
            self.lane = self._begin(near)
            return None
        self._frames += 1
        return cleaned if self._proved(residual) else None

    def _begin(self, near: History) -> Lane:
        """The same canceller, at the beginning of what is to be learnt."""
        start = max(self._move.since, near.oldest)
        start += (near.end - start) % MIC_FRAME_SAMPLES
        return Lane(self._apm, Reference(self._far, start, self._move.alignment))

    def _proved(self, residual: float) -> bool:
        if self._frames < self._least_frames:
            return False
        ours = self.lane.residual
        if ours <= self._better * residual:
            return True
        return self._frames >= self._as_good_frames and ours <= self._as_good * residual
