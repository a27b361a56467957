"""Which part of a long recording is cloned from."""

from itertools import pairwise

import numpy as np
import pytest

from agent.types import FloatArray
from agent.vocoder.excerpt import Excerpt, cut, excerpts
from agent.vocoder.reference_audio import (
    PreparedRecording,
    improve_recording,
    inspect_recording,
    prepare_recording,
)
from agent.vocoder.sound_levels import SoundLevels, measure
from tests.rig.voices import talk

RATE_HZ = 16_000
Spans = list[tuple[float, float]]


def _noise(seconds: float, level_db: float) -> FloatArray:
    drawn = np.random.default_rng(7).standard_normal(int(seconds * RATE_HZ))
    return (drawn * 10 ** (level_db / 20)).astype(np.float32)


def _syllables(spans: Spans, seconds: float) -> FloatArray:
    """Four a second at −20 dBFS in `spans`, −70 between and around them."""
    sound = _noise(seconds, -70.0)
    at_s = np.arange(len(sound)) / RATE_HZ
    for from_s, to_s in spans:
        sound[(at_s >= from_s) & (at_s < to_s) & (at_s * 4 % 1 < 0.7)] *= 316
    return sound


def _levels(spans: Spans, seconds: float) -> SoundLevels:
    return measure(_syllables(spans, seconds), RATE_HZ, spans)


def _chosen(spans: Spans, seconds: float) -> list[Excerpt]:
    return excerpts(_levels(spans, seconds), 15.0)


def _message(prepared: PreparedRecording) -> str:
    return next(f.message for f in prepared.report.findings if f.code == "too_long")


# ---- what is chosen -----------------------------------------------------------------------------


def test_what_fits_is_kept_with_its_pauses() -> None:
    (only,) = _chosen([(1.0, 4.0), (9.0, 15.5)], 20.0)
    assert only.is_all and not only.has_shorter_pauses
    assert only.pieces == ((90, 1560),) and only.kept_s == pytest.approx(14.7)
    assert _chosen([], 20.0) == []


def test_the_part_with_the_most_speech_is_taken() -> None:
    first, *_ = _chosen([(0.5, 4.0), (13.0, 17.0), (17.5, 21.0), (21.5, 26.0), (40.0, 42.0)], 50.0)
    assert first.speech == ((1300, 1700), (1750, 2100), (2150, 2600))
    assert first.pieces == ((1290, 2610),) and first.start_s == 12.9


def test_long_pauses_are_shortened() -> None:
    first, *_ = _chosen([(1.0, 5.0), (6.5, 10.0), (10.3, 13.0), (30.0, 33.0), (50.0, 53.0)], 60.0)
    assert first.pieces == ((90, 520), (630, 1320), (2980, 3310))
    assert first.has_shorter_pauses and first.kept_s == pytest.approx(14.5)
    spoken = [(0.1, 4.1), (4.5, 8.0), (8.3, 11.0), (11.4, 14.4)]
    assert first.spoken_s() == [pytest.approx(each) for each in spoken]


def test_of_parts_that_are_as_good_the_earliest_is_taken() -> None:
    spans = [(1.0, 13.0), (16.0, 28.2), (31.0, 43.0)]
    chosen = _chosen(spans, 50.0)
    assert [each.speech[0][0] for each in chosen] == [100, 1600, 3100]


@pytest.mark.parametrize("length_s", [3.0, 9.0, 14.7, 15.2, 31.0])
def test_never_longer_than_allowed_and_no_part_twice(length_s: float) -> None:
    spans = [(a, a + length_s) for a in np.arange(0.0, 90.0, length_s + 0.3).tolist()]
    chosen = _chosen(spans, 130.0)
    assert 1 < len(chosen) <= 8
    assert all(a[1] <= b[0] for each in chosen for a, b in pairwise(each.speech))
    assert all(each.kept_s + each.missing_tail_s <= 15.001 for each in chosen)
    first = set(chosen[0].speech)
    assert all(len(first & set(each.speech)) <= len(each.speech) / 2 for each in chosen[1:])


def test_speech_without_a_pause_is_cut_at_its_quietest() -> None:
    sound = _syllables([(0.0, 12.0), (12.2, 18.0)], 18.0)
    first, *_ = excerpts(measure(sound, RATE_HZ, [(0.0, 18.0)]), 15.0)
    assert first.speech[0] == (0, pytest.approx(1208, abs=10))


def test_the_cleaner_part_is_taken() -> None:
    sound = np.concatenate([talk(15.0, RATE_HZ), talk(14.0, RATE_HZ)])
    sound[: 15 * RATE_HZ] += _noise(15.0, -29.0)
    prepared = prepare_recording(sound, RATE_HZ)
    assert prepared.report.accepted and prepared.report.snr_db > 30
    assert int(_message(prepared).partition(":")[2][:2]) >= 14


# ---- how it is cut out --------------------------------------------------------------------------


def test_pieces_fade_into_each_other_and_are_as_long_as_they_are() -> None:
    at_s = np.arange(20 * RATE_HZ) / RATE_HZ
    hum = np.stack([np.sin(2 * np.pi * 50 * at_s), np.cos(2 * np.pi * 50 * at_s)])
    pieces = ((100, 333), (517, 700), (1001, 1100))
    joined = cut(hum.astype(np.float32), RATE_HZ, Excerpt(pieces, pieces, is_all=False))
    assert joined.shape == (2, round(5.15 * RATE_HZ))
    steepest = 2 * np.pi * 50 / RATE_HZ + 2 / (0.01 * RATE_HZ)
    assert np.abs(np.diff(joined)).max() < 1.05 * steepest
    np.testing.assert_allclose(joined[:, : 2 * RATE_HZ], hum[:, RATE_HZ : 3 * RATE_HZ], atol=1e-6)


def test_what_is_judged_is_what_is_cloned() -> None:
    """A little speech, a long pause, and then a lot: most of the first 15 s would be silence."""
    sound = np.concatenate([talk(4.0, RATE_HZ), _noise(9.0, -80.0), talk(40.0, RATE_HZ)])
    prepared = prepare_recording(sound, RATE_HZ)
    assert prepared.report.accepted and prepared.report.duration_s == 53.0
    kept = measure(prepared.samples, RATE_HZ)
    assert kept.share(kept.start_s, kept.end_s) > 0.8
    assert prepared.report.speech_s == pytest.approx(kept.end_s - kept.start_s, abs=0.1)
    assert prepared.report.snr_db == pytest.approx(kept.speech_dbfs - kept.noise_dbfs, abs=1.0)
    assert _message(prepared).startswith(
        f"only the {len(prepared.samples) / RATE_HZ:.1f} s from 0:"
    )


def test_noise_in_what_is_cloned_is_not_made_good_by_silence_elsewhere() -> None:
    noisy = talk(14.0, RATE_HZ) + _noise(14.0, -29.0)
    sound = np.pad(noisy, (5 * RATE_HZ, 30 * RATE_HZ))
    findings = {f.code: f.severity for f in inspect_recording(sound, RATE_HZ).findings}
    assert findings["noisy"] == "refused"


def test_noise_in_half_of_what_is_cloned_is_heard() -> None:
    sound = talk(14.0, RATE_HZ)
    assert inspect_recording(sound, RATE_HZ).snr_db > 30
    sound[: 7 * RATE_HZ] += _noise(7.0, -29.0)
    report = inspect_recording(sound, RATE_HZ)
    assert report.snr_db < 15 and "noisy" in {f.code for f in report.findings}


def test_a_clipped_part_is_passed_over() -> None:
    shouted = np.clip(talk(20.0, RATE_HZ) * 8, -1, 1)
    spoken = np.concatenate([shouted, np.zeros(RATE_HZ), talk(12.0, RATE_HZ)]).astype(np.float32)
    assert inspect_recording(spoken[: 20 * RATE_HZ], RATE_HZ).refusal
    prepared = prepare_recording(spoken, RATE_HZ)
    assert prepared.report.accepted and prepared.report.clipped_share == 0
    assert int(_message(prepared).partition(":")[2][:2]) >= 20


def test_it_is_chosen_the_same_every_time_and_with_a_little_more_noise() -> None:
    sound = np.pad(talk(50.0, RATE_HZ), RATE_HZ)
    once = prepare_recording(sound, RATE_HZ)
    np.testing.assert_array_equal(once.samples, improve_recording(sound, RATE_HZ))
    again = prepare_recording(sound + _noise(52.0, -75.0), RATE_HZ)
    assert _message(again).partition("from")[2] == _message(once).partition("from")[2]


def test_only_so_much_is_looked_at_and_that_is_said() -> None:
    sound = np.pad(talk(8.0, RATE_HZ), (65 * RATE_HZ, 0))
    refusal = "it is silent in its first 60 s, and no more is looked at"
    assert inspect_recording(sound, RATE_HZ).refusal == refusal
    beginning = sound[: 60 * RATE_HZ]
    assert prepare_recording(beginning, RATE_HZ, duration_s=73.0).report.refusal == refusal
    assert prepare_recording(beginning, RATE_HZ).report.refusal == "it is silent"
    hissing = sound + _noise(73.0, -40.0)
    assert "speech could be found in its first 60 s" in inspect_recording(hissing, RATE_HZ).refusal
