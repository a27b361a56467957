"""Recordings to clone from: what is said of them, and how they are made fit."""

from functools import lru_cache

import numpy as np
import pytest

from agent.errors import RequestError
from agent.media.audio import level_dbfs
from agent.types import FloatArray
from agent.vocoder.reference_audio import (
    ReferenceLimits,
    ReferenceReport,
    improve_recording,
    inspect_recording,
)
from agent.vocoder.sound_levels import measure
from tests.rig.voices import AGENT_TEXT, say

RATE_HZ = 24_000
TEXT = AGENT_TEXT[:140]


@lru_cache(maxsize=4)
def _speech(rate_hz: int = RATE_HZ) -> FloatArray:
    return say(TEXT, rate_hz)


def _noise(samples: int, level_db: float) -> FloatArray:
    drawn = np.random.default_rng(5).standard_normal(samples) * 10 ** (level_db / 20)
    return drawn.astype(np.float32)


def _codes(report: ReferenceReport) -> dict[str, str]:
    return {finding.code: finding.severity for finding in report.findings}


def _inspected(samples: FloatArray, rate_hz: int = RATE_HZ) -> dict[str, str]:
    return _codes(inspect_recording(samples, rate_hz))


# ---- what is said of them -----------------------------------------------------------------------


@pytest.mark.parametrize("voice", ["en-us", "de", "fr"])
def test_clean_speech_is_accepted_without_a_word(voice: str) -> None:
    report = inspect_recording(say(TEXT, RATE_HZ, voice), RATE_HZ)
    assert report.accepted and not report.findings and report.refusal == ""
    assert report.speech_share > 0.8
    assert report.snr_db > 30
    assert abs(report.level_dbfs + 23) < 1


@pytest.mark.parametrize("snr_db", [30, 20, 15, 10, 5])
def test_noise_is_measured_and_judged(snr_db: int) -> None:
    speech = _speech()
    noisy = np.pad(speech, (0, RATE_HZ)) + _noise(len(speech) + RATE_HZ, -23.0 - snr_db)
    report = inspect_recording(noisy, RATE_HZ)
    assert abs(report.snr_db - snr_db) < 2.5
    expected = None if snr_db >= 20 else "warning" if snr_db >= 10 else "refused"
    assert _codes(report).get("noisy") == expected


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_clipping_is_found_at_any_level(scale: float) -> None:
    clipped = (np.clip(_speech() * 6, -1, 1) * scale).astype(np.float32)
    report = inspect_recording(clipped, RATE_HZ)
    assert _codes(report)["clipped"] == "refused"
    flat = float(np.mean(np.abs(clipped) >= scale))
    assert abs(report.clipped_share - flat) < 0.1 * flat


def test_peaks_that_only_touch_full_scale_are_not_clipping() -> None:
    speech = _speech() / np.abs(_speech()).max()
    assert inspect_recording(speech, RATE_HZ).clipped_share == 0


def test_sound_that_is_no_speech_is_refused() -> None:
    assert _inspected(_noise(6 * RATE_HZ, -20))["no_speech"] == "refused"
    assert _inspected(np.zeros(6 * RATE_HZ, np.float32)) == {"silent": "refused"}


def test_a_recording_of_pauses_is_refused() -> None:
    second, pause = _speech()[:RATE_HZ], np.zeros(3 * RATE_HZ, np.float32)
    gaps = np.concatenate([second, pause, second, pause, second])
    assert _inspected(gaps)["little_speech"] == "refused"


def test_a_silent_end_is_told() -> None:
    speech = _speech()
    click = speech[: RATE_HZ // 4]
    late = np.concatenate([speech, np.zeros(int(1.8 * RATE_HZ), np.float32), click])
    assert _inspected(late) == {"silent_end": "warning"}


@pytest.mark.parametrize(("seconds", "severity"), [(2.0, "refused"), (3.3, None)])
def test_length_counts_speech_not_silence(seconds: float, severity: str | None) -> None:
    around = np.pad(_speech()[: int(seconds * RATE_HZ)], 2 * RATE_HZ)
    assert _inspected(around).get("too_short") == severity


def test_rates_and_bands() -> None:
    assert _inspected(_speech(8_000), 8_000) == {"low_rate": "warning"}
    spectrum = np.fft.rfft(_speech())
    spectrum[int(3400 / (RATE_HZ / 2) * len(spectrum)) :] = 0
    telephone = np.fft.irfft(spectrum).astype(np.float32)
    assert _inspected(telephone) == {"narrow_band": "warning"}
    for rate_hz in (0, -1, 4_000, 47_999):
        assert _inspected(_speech(), rate_hz) == {"unusable_rate": "refused"}


def test_what_cannot_be_measured_is_refused_not_raised() -> None:
    broken = _speech().copy()
    broken[1000] = np.nan
    assert _inspected(broken) == {"not_finite": "refused"}
    assert _inspected(np.zeros(0, np.float32)) == {"too_short": "refused"}
    assert _inspected(np.zeros((2, 0), np.float32)) == {"too_short": "refused"}


def test_quiet_speech_is_told() -> None:
    assert _inspected(_speech() * np.float32(0.05)) == {"quiet": "warning"}


def test_a_detector_may_say_where_speech_is() -> None:
    hum = (0.2 * np.sin(np.arange(6 * RATE_HZ) * 0.05)).astype(np.float32)
    spans = [(1.0, 4.5)]
    report = inspect_recording(np.pad(hum, RATE_HZ), RATE_HZ, speech=spans)
    assert report.speech_s == pytest.approx(3.5) and report.speech_share == 1
    assert "no_speech" not in _codes(report)
    assert inspect_recording(_speech(), RATE_HZ, speech=[]).refusal


def test_limits_can_be_changed() -> None:
    assert _codes(inspect_recording(_speech(), RATE_HZ, ReferenceLimits(shortest_s=10))) == {
        "too_short": "refused"
    }


# ---- how they are made fit ----------------------------------------------------------------------


def test_silence_is_trimmed_and_a_tail_is_left() -> None:
    speech = _speech()
    improved = improve_recording(np.pad(speech, (2 * RATE_HZ, 3 * RATE_HZ)), RATE_HZ)
    spoken = measure(improved, RATE_HZ)
    assert spoken.start_s < 0.15
    assert 0.1 < len(improved) / RATE_HZ - spoken.end_s < 0.16
    assert abs(len(improved) - len(speech)) < 0.35 * RATE_HZ
    assert improved[0] == 0 and np.abs(improved[-2:]).max() < 1e-3


def test_a_long_recording_is_cut_in_a_pause() -> None:
    long = np.tile(np.pad(_speech(), (0, RATE_HZ // 2)), 4)
    assert _inspected(long) == {"too_long": "warning"}
    improved = improve_recording(long, RATE_HZ)
    assert 0.6 * 14 < len(improved) / RATE_HZ <= 15
    end = improved[-int(0.1 * RATE_HZ) :]
    assert level_dbfs(end) < level_dbfs(improved) - 30


def test_speech_without_a_pause_is_cut_in_time() -> None:
    long = np.tile(_speech(), 5)
    length_s = len(improve_recording(long, RATE_HZ, speech=[(0.0, 40.0)])) / RATE_HZ
    assert 0.6 * 15 < length_s <= 15


@pytest.mark.parametrize("gain", [0.1, 1.0, 2.0])
def test_speech_is_levelled_and_freed_of_its_offset(gain: float) -> None:
    shifted = (_speech() * gain * 0.5 + 0.05).astype(np.float32)
    improved = improve_recording(shifted, RATE_HZ)
    assert measure(improved, RATE_HZ).speech_dbfs == pytest.approx(-23, abs=0.3)
    assert abs(float(improved.mean())) < 1e-3
    assert np.abs(improved).max() <= 10 ** (-1 / 20) + 1e-6


def test_peaks_hold_the_level_down() -> None:
    improved = improve_recording(_speech(), RATE_HZ, ReferenceLimits(level_dbfs=-10))
    assert np.abs(improved).max() == pytest.approx(10 ** (-1 / 20), abs=1e-5)


def test_the_better_channel_is_taken_where_mixing_would_weaken_it() -> None:
    speech = _speech()
    alone = improve_recording(speech, RATE_HZ)
    for stereo in (
        np.stack([speech, -speech]),
        np.stack([np.zeros_like(speech), speech]),
        np.stack([speech, speech * 0.5]),
    ):
        report = inspect_recording(stereo, RATE_HZ)
        assert report.channels == 2 and _codes(report) == {"channels": "note"}
        np.testing.assert_allclose(improve_recording(stereo, RATE_HZ), alone, atol=1e-4)


def test_what_is_refused_is_not_made_fit() -> None:
    with pytest.raises(RequestError, match=r"1\.9 s of speech|2\.0 s of speech"):
        improve_recording(_speech()[: 2 * RATE_HZ], RATE_HZ)
