"""Calls that nobody makes: a unit a second, each at a phase of its own, to load an engine with."""

import random
from collections.abc import Iterable

import numpy as np

from agent.types import UNIT_SAMPLES, Unit, VideoFrame

PICTURE_SHAPE = (720, 1280, 3)
"""What browsers send of a camera."""
UNIT_S = 1.0
_ROOM_LEVEL = 0.01
"""A quiet room's noise: what a unit costs does not depend on what is heard in it."""
_SECONDS = 4
_PICTURES = 2
_PHASE_SEED = 6


class Material:
    """What callers send, made once and shared."""

    def __init__(self, *, camera: bool) -> None:
        rng = np.random.default_rng(_PHASE_SEED)
        noise = rng.standard_normal((_SECONDS, UNIT_SAMPLES)) * _ROOM_LEVEL
        self._seconds = noise.astype(np.float32)
        count = _PICTURES if camera else 0
        self._pictures = [rng.integers(0, 255, PICTURE_SHAPE, np.uint8) for _ in range(count)]

    def unit(self, index: int) -> Unit:
        """The second of that number, with one picture where there is a camera."""
        shown = self._pictures[index % _PICTURES :][:1]
        pictures = tuple(VideoFrame(rgb, index * UNIT_SAMPLES) for rgb in shown)
        return Unit(index, self._seconds[index % _SECONDS], UNIT_SAMPLES, pictures)


class Caller:
    """One call's microphone, and its camera if it has one."""

    def __init__(self, number: int, begins_s: float, material: Material, index: int = 0) -> None:
        """Its next unit, of that `index`, is complete up to a second after `begins_s`."""
        self.number = number
        self.index = index
        self._material = material
        self.next_s = begins_s + random.Random(_PHASE_SEED * 1000 + number).random() * UNIT_S
        """When its next unit is complete."""

    def take(self) -> Unit:
        """The next unit; the one after it is complete a second later."""
        unit = self._material.unit(self.index)
        self.index += 1
        self.next_s += UNIT_S
        return unit


def next_due_s(callers: Iterable[Caller], most_s: float) -> float:
    """When the next unit of any of them is complete, or `most_s` if that is before."""
    return min((caller.next_s for caller in callers), default=most_s)
