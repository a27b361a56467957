import numpy as np
import pytest

from agent.media.units import UnitBuilder
from agent.types import Unit, VideoFrame


def picture(captured_at: int) -> VideoFrame:
    return VideoFrame(np.zeros((2, 2, 3), np.uint8), captured_at)


def fill(builder: UnitBuilder, signal: np.ndarray, frame_samples: int = 160) -> list[Unit]:
    frames = np.split(signal, range(frame_samples, len(signal), frame_samples))
    return [unit for frame in frames if (unit := builder.push(frame)) is not None]


def test_every_second_is_a_unit_with_exactly_that_sound() -> None:
    signal = np.arange(48_000, dtype=np.float32)
    units = fill(UnitBuilder(), signal)
    assert [unit.index for unit in units] == [0, 1, 2]
    assert all(unit.samples_valid == 16_000 for unit in units)
    np.testing.assert_array_equal(np.concatenate([unit.audio for unit in units]), signal)


def test_frames_of_another_length_make_the_same_units() -> None:
    signal = np.arange(32_000, dtype=np.float32)
    for once, again in zip(
        fill(UnitBuilder(), signal), fill(UnitBuilder(), signal, 320), strict=True
    ):
        np.testing.assert_array_equal(once.audio, again.audio)
    with pytest.raises(ValueError, match="300 samples"):
        UnitBuilder().push(np.zeros(300, np.float32))


def test_finish_pads_the_unit_begun_and_says_how_much_of_it_is_real() -> None:
    builder = UnitBuilder()
    fill(builder, np.ones(16_000 + 480, np.float32))
    last = builder.finish()
    assert last is not None and last.index == 1 and last.samples_valid == 480
    assert last.audio.shape == (16_000,)
    assert last.audio[:480].all() and not last.audio[480:].any()
    assert builder.finish() is None


def test_newest_pictures_of_a_unit_stay_and_go_with_it() -> None:
    builder = UnitBuilder(pictures_per_unit=2)
    for at in range(3):
        builder.add_picture(picture(at))
    first, second = fill(builder, np.zeros(32_000, np.float32))
    assert [one.captured_at for one in first.pictures] == [1, 2]
    assert second.pictures == ()


def test_pictures_per_unit_changes_while_pictures_wait() -> None:
    builder = UnitBuilder(pictures_per_unit=3)
    for at in range(3):
        builder.add_picture(picture(at))
    builder.pictures_per_unit = 1
    assert builder.pictures_per_unit == 1
    (unit,) = fill(builder, np.zeros(16_000, np.float32))
    assert [one.captured_at for one in unit.pictures] == [2]
    builder.pictures_per_unit = 0
    builder.add_picture(picture(9))
    (unit,) = fill(builder, np.zeros(16_000, np.float32))
    assert unit.pictures == ()


def test_a_unit_once_given_is_not_written_again() -> None:
    builder = UnitBuilder()
    (first,) = fill(builder, np.ones(16_000, np.float32))
    fill(builder, np.zeros(16_000, np.float32))
    assert first.audio.all()
