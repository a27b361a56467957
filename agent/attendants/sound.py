"""The microphone's last minute, by the units that the engine was told."""

from collections import deque
from dataclasses import dataclass

import numpy as np

from agent.commands import Retract
from agent.types import MIC_RATE_HZ, FloatArray, Unit

KEPT_S = 60
"""3.8 MB. What is longer is heard from there on."""


@dataclass(frozen=True, slots=True)
class _Piece:
    index: int
    start: int
    samples: FloatArray


class SoundMemory:
    """Samples at 16 kHz on the microphone's clock."""

    def __init__(self) -> None:
        self._pieces: deque[_Piece] = deque(maxlen=KEPT_S + 1)
        self.end = 0
        """Behind the last sample that came."""

    def push(self, unit: Unit) -> None:
        """The next unit; one that was only tried is replaced when it comes again."""
        self._drop(unit.index)
        self._pieces.append(_Piece(unit.index, unit.start, unit.audio[: unit.samples_valid]))
        self.end = unit.end

    def take_back(self, retract: Retract) -> None:
        """That unit comes again, whole."""
        if self._drop(retract.unit):
            self.end = self._pieces[-1].start + len(self._pieces[-1].samples) if self._pieces else 0

    def forget(self) -> None:
        """Keep nothing of what was heard so far."""
        self._pieces.clear()

    def sound(self, start: int, end: int) -> FloatArray:
        """What was heard from sample `start` to `end` [T], its last minute at most."""
        start = max(start, end - KEPT_S * MIC_RATE_HZ)
        parts = [
            piece.samples[max(0, start - piece.start) : max(0, end - piece.start)]
            for piece in self._pieces
        ]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def _drop(self, index: int) -> bool:
        is_last = bool(self._pieces) and self._pieces[-1].index == index
        if is_last:
            self._pieces.pop()
        return is_last
