"""One echo canceller with its reference, and a second one that learns to take its place."""

from typing import Protocol

import numpy as np

from agent.media.echo_align import Move
from agent.media.echo_far import FarEnd, History
from agent.media.echo_reference import Reference
from agent.types import MIC_FRAME_SAMPLES, FloatArray


class AudioProcessing(Protocol):
    """WebRTC's, as pywebrtc-audio offers it."""

    def process(self, near: FloatArray, far: FloatArray) -> FloatArray:
        """Both [160 * k] at 16 kHz; the near end without the echo of the far end."""


class Lane:
    """AEC3 and the reference that it is fed."""

    _smoothing = 0.05

    def __init__(self, apm: AudioProcessing, reference: Reference) -> None:
        self.reference = reference
        self.far: FloatArray = np.zeros(MIC_FRAME_SAMPLES, np.float32)
        """The reference of the last 10 ms."""
        self.residual = 0.0
        """Energy of what was left in 10 ms, over the last 200 ms."""
        self._apm = apm

    def process(self, near: FloatArray) -> FloatArray:
        """Microphone [160 * k] in; its last 10 ms [160] without echo out."""
        far = self.reference.read(len(near))
        cleaned = self._apm.process(near, far)[-MIC_FRAME_SAMPLES:]
        self.far = far[-MIC_FRAME_SAMPLES:]
        self.residual += self._smoothing * (float(np.dot(cleaned, cleaned)) - self.residual)
        return cleaned


class Rival:
    """A canceller with another alignment, on trial beside the one in use.

    It begins with what both ends have heard lately, faster than real time, and then has some
    seconds in which to be as good.
    """

    _frames_at_once = 4
    _patience_frames = 600
    _least_frames = 10
    # As good, give or take 2 dB, for a while, or better by 6 dB at once.
    _as_good, _as_good_frames = 1.6, 50
    _better = 0.25

    def __init__(self, apm: AudioProcessing, far: FarEnd, near: History, move: Move) -> None:
        start = max(move.since, near.oldest)
        start += (near.end - start) % MIC_FRAME_SAMPLES
        self.lane = Lane(apm, Reference(far, start, move.alignment))
        self._frames = 0

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
        self._frames += 1
        return cleaned if self._proved(residual) else None

    def _proved(self, residual: float) -> bool:
        if self._frames < self._least_frames:
            return False
        ours = self.lane.residual
        if ours <= self._better * residual:
            return True
        return self._frames >= self._as_good_frames and ours <= self._as_good * residual
