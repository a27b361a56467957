"""What a half-duplex call has heard and seen of late: its units, and the utterances in them."""

from collections import deque
from dataclasses import dataclass, replace

import numpy as np

from agent.types import MIC_RATE_HZ, UNIT_SAMPLES, ByteArray, FloatArray, Unit

MAX_UTTERANCE_S = 60
"""Of a longer one the end is heard."""
MAX_PICTURES = 16  # of one turn: the newest


@dataclass(frozen=True, slots=True)
class Utterance:
    """What the user said: samples on the microphone's clock."""

    start: int
    end: int
    answer: bool


class HeardUnits:
    """The newest units."""

    def __init__(self) -> None:
        self.units: deque[Unit] = deque(maxlen=MAX_UTTERANCE_S + 1)
        self._camera: deque[tuple[int, ByteArray]] = deque(maxlen=MAX_PICTURES)

    @property
    def until(self) -> int:
        """The microphone's sample behind the last."""
        return self.units[-1].end if self.units else 0

    @property
    def newest(self) -> int:
        """The last one's index; −1 before the first."""
        return self.units[-1].index if self.units else -1

    @property
    def is_tried(self) -> bool:
        """Whether the last one may be taken back."""
        return bool(self.units) and self.units[-1].speculative

    def take(self, unit: Unit) -> None:
        """The next unit, or one that comes again."""
        self.forget(unit.index)
        self.units.append(replace(unit, pictures=()))
        self._camera.extend((unit.start, one.rgb) for one in unit.pictures)

    def forget(self, unit: int) -> None:
        """Unit `unit` was only tried: it comes again. Nothing was answered but what it held."""
        if self.units and self.units[-1].index == unit:
            start = self.units.pop().start
            kept = [shown for shown in self._camera if shown[0] < start]
            self._camera = deque(kept, maxlen=MAX_PICTURES)

    def sound(self, utterance: Utterance) -> FloatArray:
        """Its sound, as far as it is still kept; what is no number is silence."""
        pieces = [
            unit.audio[: unit.samples_valid][
                max(0, utterance.start - at) : max(0, utterance.end - at)
            ]
            for unit in self.units
            for at in (unit.start,)
        ]
        sound = np.concatenate(pieces)[-MAX_UTTERANCE_S * MIC_RATE_HZ :]
        return np.nan_to_num(sound, nan=0.0, posinf=0.0, neginf=0.0).clip(-1, 1)

    def pictures(self, utterance: Utterance) -> list[ByteArray]:
        """What the camera saw meanwhile, each [H, W, 3]."""
        first = utterance.start - UNIT_SAMPLES
        return [rgb for at, rgb in self._camera if first < at <= utterance.end]
