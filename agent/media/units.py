"""Cuts the microphone into the engine's one-second units and hangs the newest pictures on them."""

from collections import deque

import numpy as np

from agent.types import UNIT_SAMPLES, FloatArray, Unit, VideoFrame


class UnitBuilder:
    """Collects sound until a unit is full; of the pictures since the last unit, the newest stay."""

    def __init__(self, pictures_per_unit: int = 1) -> None:
        self._index = 0
        self._audio = np.zeros(UNIT_SAMPLES, np.float32)
        self._filled = 0
        self._pictures: deque[VideoFrame] = deque(maxlen=pictures_per_unit)

    @property
    def pictures_per_unit(self) -> int:
        """How many pictures a unit carries at most; older ones give way to newer ones."""
        return self._pictures.maxlen or 0

    @pictures_per_unit.setter
    def pictures_per_unit(self, count: int) -> None:
        self._pictures = deque(self._pictures, maxlen=count)

    def add_picture(self, picture: VideoFrame) -> None:
        """A picture for the unit that is being filled."""
        self._pictures.append(picture)

    def push(self, frame: FloatArray) -> Unit | None:
        """The next 10 ms at 16 kHz [160]; a unit each hundredth time, else None: not yet full.

        Any other length that divides the second will do as well.
        """
        if UNIT_SAMPLES % len(frame):
            raise ValueError(f"a unit cannot be made of frames of {len(frame)} samples")
        self._audio[self._filled : self._filled + len(frame)] = frame
        self._filled += len(frame)
        return self._take() if self._filled == UNIT_SAMPLES else None

    def finish(self) -> Unit | None:
        """The unit begun, its rest silent; None when nothing came since the last one."""
        return self._take() if self._filled else None

    def _take(self) -> Unit:
        unit = Unit(self._index, self._audio, self._filled, tuple(self._pictures))
        self._index += 1
        # The unit keeps the array that was filled: nothing is copied, nothing is written again.
        self._audio = np.zeros(UNIT_SAMPLES, np.float32)
        self._filled = 0
        self._pictures.clear()
        return unit
