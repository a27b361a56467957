"""A unit before its second is over: what it holds, when it is tried, when that was wrong."""

from dataclasses import replace

import numpy as np
import pytest

from agent.media.audio import level_dbfs
from agent.media.early_unit import EarlyUnit, EarlyUnitRules
from agent.media.room_tone import RoomTone
from agent.media.units import UnitBuilder
from agent.media.vad import Judged
from agent.types import FloatArray, SessionSettings, TurnDetection, Unit, VideoFrame

SETTINGS = SessionSettings(model="echo", early_units=True)
FRAME = 160
SILENCE_FRAMES = 6  # of the detector: 192 ms


def picture(captured_at: int) -> VideoFrame:
    return VideoFrame(np.zeros((2, 2, 3), np.uint8), captured_at)


def sound(first: int, samples: int) -> FloatArray:
    """Samples that tell their place on the microphone's clock."""
    return np.arange(first, first + samples, dtype=np.float32)


def fill(builder: UnitBuilder, samples: FloatArray) -> list[Unit]:
    frames = np.split(samples, range(FRAME, len(samples), FRAME))
    return [unit for frame in frames if (unit := builder.push(frame)) is not None]


# ---- what it holds ----------------------------------------------------------------------------


def test_a_tried_unit_holds_what_came_and_then_silence() -> None:
    builder = UnitBuilder()
    fill(builder, sound(0, 16_000 + 4800))
    builder.add_picture(picture(17_000))
    silence = np.full(16_000, -1.0, np.float32)
    unit = builder.try_early(silence, picture(20_000))
    assert (unit.index, unit.samples_valid, unit.speculative) == (1, 4800, True)
    assert (unit.start, unit.end) == (16_000, 20_800)
    np.testing.assert_array_equal(unit.audio[:4800], sound(16_000, 4800))
    assert (unit.audio[4800:] == -1).all() and unit.audio.shape == (16_000,)
    assert [one.captured_at for one in unit.pictures] == [20_000]


def test_a_unit_that_was_retracted_comes_as_if_it_had_never_been_tried() -> None:
    builder, other = UnitBuilder(2), UnitBuilder(2)
    for one in (builder, other):
        fill(one, sound(0, 4800))
        one.add_picture(picture(4000))
    builder.try_early(np.zeros(16_000, np.float32), picture(4800))
    fill(builder, sound(4800, 1600))
    builder.retract()
    fill(other, sound(4800, 1600))
    for one in (builder, other):
        one.add_picture(picture(9000))
    (ours,), (theirs,) = (fill(one, sound(6400, 9600)) for one in (builder, other))
    np.testing.assert_array_equal(ours.audio, theirs.audio)
    assert [one.captured_at for one in ours.pictures] == [4000, 9000]
    told = [
        (unit.index, unit.samples_valid, unit.speculative, unit.start) for unit in (ours, theirs)
    ]
    assert told[0] == told[1] == (0, 16_000, False, 0)
    (after,) = fill(builder, sound(16_000, 16_000))
    assert (after.index, after.start) == (1, 16_000)


def test_a_retracted_unit_has_the_picture_it_was_tried_with_when_there_is_no_newer_one() -> None:
    builder = UnitBuilder()
    fill(builder, sound(0, 4800))
    builder.try_early(np.zeros(16_000, np.float32), picture(4800))
    builder.retract()
    (unit,) = fill(builder, sound(4800, 11_200))
    assert [one.captured_at for one in unit.pictures] == [4800]
    (unit,) = fill(builder, sound(16_000, 16_000))
    assert unit.pictures == ()


@pytest.mark.parametrize("ends_early", [False, True])
def test_behind_a_unit_that_stands_no_sample_is_lost_or_doubled(ends_early: bool) -> None:
    builder = UnitBuilder()
    fill(builder, sound(0, 4800))
    tried = builder.try_early(np.zeros(16_000, np.float32))
    builder.add_picture(picture(5000))
    assert fill(builder, sound(4800, 8000)) == []
    if ends_early:
        builder.stand()
        assert builder.tried is None and builder.filled == 8000
    units = fill(builder, sound(12_800, 24_000))
    assert [unit.index for unit in units] == [1, 2]
    assert [unit.start for unit in units] == [4800, 20_800]
    assert units[0].start == tried.end
    heard = np.concatenate([tried.audio[: tried.samples_valid], *(unit.audio for unit in units)])
    np.testing.assert_array_equal(heard, sound(0, len(heard)))
    assert [one.captured_at for one in units[0].pictures] == [5000]
    assert not any(unit.speculative for unit in units)


def test_a_call_that_ends_while_a_unit_is_tried_ends_with_what_came_since() -> None:
    builder = UnitBuilder()
    fill(builder, sound(0, 4800))
    builder.try_early(np.zeros(16_000, np.float32))
    fill(builder, sound(4800, 1600))
    last = builder.finish()
    assert last is not None and (last.index, last.start, last.samples_valid) == (1, 4800, 1600)


def test_each_unit_has_its_pictures_wherever_it_begins() -> None:
    builder = UnitBuilder(2)
    fill(builder, sound(0, 4800))
    builder.try_early(np.zeros(16_000, np.float32))
    builder.stand()
    wanted = []
    for start in range(4800, 36_800, FRAME):
        if builder.wants_picture(FRAME):
            wanted.append(start + FRAME - 4800)
            builder.add_picture(picture(start))
        fill(builder, sound(start, FRAME))
    assert wanted == [8000, 16_000, 24_000, 32_000]


# ---- the room's tone --------------------------------------------------------------------------


def noise(samples: int, seed: int = 1) -> FloatArray:
    """Of a fan: mostly low."""
    white = np.random.default_rng(seed).standard_normal(samples + 50)
    low = np.convolve(white, np.ones(50) / 50, "valid")[:samples]
    return np.asarray(0.01 * low / low.std(), np.float32)


def bands_db(samples: FloatArray) -> list[float]:
    power = np.abs(np.fft.rfft(samples)) ** 2 / len(samples)
    parts = np.split(power, [len(power) // 32, len(power) // 8, len(power) // 2])
    return [float(10 * np.log10(part.mean())) for part in parts]


def listened(samples: FloatArray) -> RoomTone:
    tone = RoomTone()
    for frame in np.split(samples, len(samples) // FRAME):
        tone.push(frame)
    return tone


def test_silence_is_made_to_sound_like_that_of_the_room() -> None:
    heard = noise(3200)
    made = listened(heard).silence(3200, 16_000, seed=4)
    assert made.shape == (16_000,) and made.dtype == np.float32
    assert abs(level_dbfs(made) - level_dbfs(heard)) < 3
    for ours, theirs in zip(bands_db(made), bands_db(noise(16_000, 2)), strict=True):
        assert abs(ours - theirs) < 5
    again = listened(heard).silence(3200, 16_000, seed=4)
    np.testing.assert_array_equal(made, again)


def test_neither_the_word_before_nor_a_breath_in_it_is_in_that_silence() -> None:
    heard = noise(6400)
    heard[:3200] += 0.3 * np.sin(np.arange(3200)).astype(np.float32)
    heard[4000:4800] *= 10
    made = listened(heard).silence(3200, 16_000, seed=4)
    assert abs(level_dbfs(made) - level_dbfs(noise(3200))) < 3


def test_a_muted_microphone_goes_on_being_silent() -> None:
    assert not listened(np.zeros(3200, np.float32)).silence(3200, 16_000, 1).any()
    assert not RoomTone().silence(3200, 16_000, 1).any()


# ---- when it is tried -------------------------------------------------------------------------


class Watched:
    """A policy that gets frames of the detector, as likely as the test says."""

    def __init__(self, **settings: object) -> None:
        self.policy = EarlyUnit(EarlyUnitRules())
        self.policy.update(replace(SETTINGS, **settings))  # type: ignore[arg-type]
        self.now = 0

    def hear(self, *likelihoods: float) -> "Watched":
        for likelihood in likelihoods:
            self.now += 512
            self.policy.hear(Judged(self.now, likelihood))
        return self

    def is_due(self, filled: int = 8000) -> bool:
        return self.policy.is_due(self.now, filled)


SPOKEN = (0.9,) * 8
SILENT = (0.05,) * SILENCE_FRAMES


def test_it_is_tried_when_speech_is_followed_by_sure_silence() -> None:
    watched = Watched().hear(*SPOKEN)
    for _ in range(SILENCE_FRAMES - 1):
        assert not watched.hear(0.05).is_due()
    assert watched.hear(0.05).is_due()


@pytest.mark.parametrize(
    ("likelihoods", "why"),
    [
        (SILENT * 3, "nobody spoke"),
        ((0.9,) * 3 + SILENT, "a cough"),
        (SPOKEN + (0.3,) * 8, "a silence that is none"),
        (SPOKEN + SILENT[1:] + (0.3, *SILENT[1:]), "silence with something in it"),
    ],
)
def test_it_is_not_tried_after(likelihoods: tuple[float, ...], why: str) -> None:
    assert not Watched().hear(*likelihoods).is_due(), why


def test_neither_a_unit_that_has_hardly_begun_nor_one_that_is_nearly_over_is_tried() -> None:
    watched = Watched().hear(*SPOKEN, *SILENT)
    assert [watched.is_due(filled) for filled in (160, 2912, 3072, 13_440, 13_600)] == [
        False,
        False,
        True,
        True,
        False,
    ]


def test_one_pause_is_tried_once() -> None:
    watched = Watched().hear(*SPOKEN, *SILENT)
    watched.policy.tried(watched.now)
    assert not watched.hear(*SILENT * 4).is_due()
    assert watched.hear(*SPOKEN, *SILENT).is_due()


def test_who_is_eager_is_quicker_and_who_is_not_waits() -> None:
    due_after = {}
    for eagerness in (0.0, 0.5, 1.0):
        watched = Watched(eagerness=eagerness).hear(*SPOKEN)
        while not watched.is_due():
            watched.hear(0.05)
        due_after[eagerness] = watched.now // 512 - len(SPOKEN)
    assert due_after == {0.0: 9, 0.5: 6, 1.0: 5}


@pytest.mark.parametrize(
    ("detection", "frames"),
    [
        (TurnDetection(silence_duration_ms=1000), 12),
        (TurnDetection(silence_duration_ms=10_000), 20),
        (TurnDetection(silence_duration_ms=100), 4),
        (TurnDetection("semantic_vad", eagerness="low"), 8),
        (TurnDetection("semantic_vad", eagerness="high"), 6),
        (TurnDetection("semantic_vad", silence_duration_ms=1000), 6),
    ],
)
def test_who_asks_for_longer_silence_gets_it(detection: TurnDetection, frames: int) -> None:
    watched = Watched(turn_detection=detection).hear(*SPOKEN)
    while not watched.is_due(12_000):
        watched.hear(0.05)
    assert watched.now // 512 - len(SPOKEN) == frames


@pytest.mark.parametrize(
    "settings",
    [
        {"early_units": False},
        {"turn_detection": None},
        {"turn_detection": TurnDetection(create_response=False)},
        {"mode": "half_duplex"},
        {"output_modalities": ("text",)},
    ],
)
def test_it_is_not_tried_where(settings: dict[str, object]) -> None:
    watched = Watched(**settings).hear(*SPOKEN, *SILENT)
    assert not watched.is_due()
    watched.policy.update(SETTINGS)
    assert watched.is_due()


def test_before_any_settings_nothing_is_tried() -> None:
    watched = Watched()
    watched.policy = EarlyUnit()
    assert not watched.hear(*SPOKEN, *SILENT).is_due()


def test_it_was_wrong_once_the_user_speaks_again() -> None:
    watched = Watched().hear(*SPOKEN, *SILENT)
    watched.policy.tried(watched.now)
    assert not watched.hear(0.05, 0.4).policy.was_wrong
    assert watched.hear(0.6).policy.was_wrong
    watched.policy.tried(watched.now)
    assert not watched.policy.was_wrong
