"""Cuts the microphone into the engine's one-second units and hangs the newest pictures on them.

A unit may be tried before its second is over: `try_early` gives what there is of it, completed
with silence. Then either it stands, and the next unit begins where the sound of it ended; or it is
retracted, and comes as if it had never been tried.
"""

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
        self._inserted = 0
        self._tried: Unit | None = None
        self._shown_since: deque[VideoFrame] = deque(maxlen=pictures_per_unit)
        self._spare: VideoFrame | None = None

    @property
    def pictures_per_unit(self) -> int:
        """How many pictures a unit carries at most; older ones give way to newer ones."""
        return self._pictures.maxlen or 0

    @pictures_per_unit.setter
    def pictures_per_unit(self, count: int) -> None:
        self._pictures = deque(self._pictures, maxlen=count)
        self._shown_since = deque(self._shown_since, maxlen=count)

    @property
    def filled(self) -> int:
        """Samples of the unit that is being filled."""
        return self._filled

    @property
    def tried(self) -> Unit | None:
        """The unit that is being filled as it was tried; None if it was not."""
        return self._tried

    def wants_picture(self, samples: int) -> bool:
        """Whether the next so many samples are the last of a part of the unit that has a picture
        of its own."""
        count = self.pictures_per_unit
        begin, end = self._filled * count, (self._filled + samples) * count
        return begin // UNIT_SAMPLES != end // UNIT_SAMPLES

    def add_picture(self, picture: VideoFrame) -> None:
        """A picture for the unit that is being filled."""
        self._pictures.append(picture)
        if self._tried is not None:
            self._shown_since.append(picture)

    def push(self, frame: FloatArray) -> Unit | None:
        """The next 10 ms at 16 kHz [160]; a unit when one is full, else None.

        Any other length that divides the second will do as well. A unit that was tried stands when
        its second is over.
        """
        if UNIT_SAMPLES % len(frame):
            raise ValueError(f"a unit cannot be made of frames of {len(frame)} samples")
        self._audio[self._filled : self._filled + len(frame)] = frame
        self._filled += len(frame)
        if self._filled == UNIT_SAMPLES and self._tried is not None:
            self.stand()
        return self._take() if self._filled == UNIT_SAMPLES else None

    def finish(self) -> Unit | None:
        """The unit begun, its rest silent; None when nothing came since the last one."""
        self.stand()
        return self._take() if self._filled else None

    # ---- early units --------------------------------------------------------------------------

    def try_early(self, silence: FloatArray, picture: VideoFrame | None = None) -> Unit:
        """The unit begun, completed with the beginning of `silence` [16000], and with `picture`.

        To be asked for while none is tried, and something came since the last unit.
        """
        audio = self._audio.copy()
        audio[self._filled :] = silence[: UNIT_SAMPLES - self._filled]
        shown = deque(self._pictures, maxlen=self._pictures.maxlen)
        if picture is not None:
            shown.append(picture)
        self._spare = picture
        self._shown_since.clear()
        self._tried = Unit(
            self._index, audio, self._filled, tuple(shown), True, inserted_samples=self._inserted
        )
        return self._tried

    def stand(self) -> None:
        """The tried unit was the whole one; what came since begins the next. Else does nothing."""
        tried, self._tried = self._tried, None
        if tried is None:
            return
        since = self._audio[tried.samples_valid : self._filled]
        self._begin_next()
        self._inserted += UNIT_SAMPLES - tried.samples_valid
        self._audio[: len(since)] = since
        self._filled = len(since)
        self._pictures.extend(self._shown_since)

    def retract(self) -> None:
        """The unit was never tried."""
        self._tried = None

    def _take(self) -> Unit:
        pictures = tuple(self._pictures)
        if not pictures and self._spare is not None and self.pictures_per_unit:
            # The camera has no newer one than that which the unit was tried with.
            pictures = (self._spare,)
        unit = Unit(
            self._index, self._audio, self._filled, pictures, inserted_samples=self._inserted
        )
        self._begin_next()
        return unit

    def _begin_next(self) -> None:
        self._index += 1
        # The unit keeps the array that was filled: nothing is copied, nothing is written again.
        self._audio = np.zeros(UNIT_SAMPLES, np.float32)
        self._filled = 0
        self._pictures.clear()
        self._spare = None
