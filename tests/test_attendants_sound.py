"""The microphone's last minute: by sample, whatever became of the units that it came in."""

import numpy as np

from agent.attendants.sound import SoundMemory
from agent.commands import Retract
from agent.types import UNIT_SAMPLES, FloatArray, Unit


def unit(
    index: int, valid: int = UNIT_SAMPLES, inserted: int = 0, first: int | None = None
) -> Unit:
    """Whose samples are their own places on the microphone's clock, from `first` on."""
    start = index * UNIT_SAMPLES - inserted if first is None else first
    audio = np.zeros(UNIT_SAMPLES, np.float32)
    audio[:valid] = np.arange(start, start + valid)
    return Unit(index, audio, valid, speculative=valid < UNIT_SAMPLES, inserted_samples=inserted)


def places(start: int, end: int) -> FloatArray:
    return np.arange(start, end, dtype=np.float32)


def test_what_is_asked_for_is_found_across_units() -> None:
    memory = SoundMemory()
    for index in range(3):
        memory.push(unit(index))
    assert memory.end == 3 * UNIT_SAMPLES
    assert np.array_equal(memory.sound(8_000, 40_000), places(8_000, 40_000))
    assert memory.sound(100, 100).size == 0


def test_a_unit_that_was_only_tried_is_replaced_by_the_whole_one() -> None:
    memory = SoundMemory()
    memory.push(unit(0))
    memory.push(unit(1, 8_000))
    assert memory.end == 24_000
    memory.take_back(Retract(1))
    assert memory.end == 16_000
    memory.push(unit(1))
    assert np.array_equal(memory.sound(0, 32_000), places(0, 32_000))


def test_one_that_comes_again_untold_is_there_once() -> None:
    memory = SoundMemory()
    memory.push(unit(0, 8_000))
    memory.push(unit(0))
    assert np.array_equal(memory.sound(0, 16_000), places(0, 16_000))


def test_one_that_stands_is_followed_by_what_came_behind_it() -> None:
    memory = SoundMemory()
    memory.push(unit(0, 8_000))
    memory.push(unit(1, inserted=8_000))
    assert memory.end == 24_000
    assert np.array_equal(memory.sound(0, 24_000), places(0, 24_000))


def test_only_a_minute_is_kept() -> None:
    memory = SoundMemory()
    for index in range(200):
        memory.push(unit(index))
    sound = memory.sound(0, 200 * UNIT_SAMPLES)
    assert np.array_equal(sound, places(140 * UNIT_SAMPLES, 200 * UNIT_SAMPLES))
    memory.forget()
    assert memory.sound(0, 200 * UNIT_SAMPLES).size == 0
