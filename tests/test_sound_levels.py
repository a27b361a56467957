"""What recordings are told apart by: clipping before they were coded, and where speech is."""

from functools import lru_cache

import numpy as np
import pytest

from agent import resources
from agent.media.recording import decode_recording
from agent.types import FloatArray
from agent.vocoder.reference_audio import ReferenceLimits, inspect_recording
from agent.vocoder.sound_levels import clipped_share, heaping, measure
from agent.vocoder.voice_store import read_recording
from tests.rig.attached import sound
from tests.rig.voices import AGENT_TEXT, say

RATE_HZ = 24_000
LIMITS = ReferenceLimits()
CODED = [("mp3", "mp3", 24_000), ("mp4", "aac", 24_000), ("webm", "libopus", 48_000)]
BUILT_IN = ["clara", "james", "mei"]


@lru_cache(maxsize=8)
def _clean(voice: str) -> FloatArray:
    """f32 [T] at 24 kHz, peak 0.9."""
    if voice in BUILT_IN:
        samples = read_recording(resources.assets_folder() / "ref_audio" / f"{voice}.wav")
    else:
        samples = say(AGENT_TEXT[:140], RATE_HZ, voice)
    return (samples * np.float32(0.9 / np.abs(samples).max())).astype(np.float32)


def _clipped(voice: str, by_db: float) -> FloatArray:
    return np.clip(_clean(voice) * 10 ** (by_db / 20), -0.9, 0.9).astype(np.float32)


def _resampled(samples: FloatArray, to_hz: int) -> FloatArray:
    length = len(samples) * to_hz // RATE_HZ
    changed = np.fft.irfft(np.fft.rfft(samples), length) * (to_hz / RATE_HZ)
    return changed.astype(np.float32)


def _stored(samples: FloatArray, container: str, codec: str, rate_hz: int) -> FloatArray:
    coded = sound(container, codec, _resampled(samples, rate_hz), rate_hz)
    return decode_recording(coded).samples


@pytest.mark.parametrize("voice", [*BUILT_IN, "en-us", "fr"])
def test_clean_speech_does_not_heap_up_however_it_was_stored(voice: str) -> None:
    clean = _clean(voice)
    forms = [clean[None], _resampled(clean, 48_000)[None], *(_stored(clean, *c) for c in CODED)]
    assert max(heaping(each) for each in forms) < 0.8 * LIMITS.likely_clipped_heaping


@pytest.mark.parametrize("voice", [*BUILT_IN, "en-us", "fr"])
def test_clipped_speech_heaps_up_however_it_was_stored(voice: str) -> None:
    clipped = _clipped(voice, 12.0)
    forms = [_resampled(clipped, 48_000)[None], *(_stored(clipped, *coder) for coder in CODED)]
    assert min(heaping(each) for each in forms) > 1.2 * LIMITS.clipped_heaping


def test_flat_tops_alone_do_not_tell_what_was_coded() -> None:
    clipped = _clipped("mei", 12.0)
    assert clipped_share(clipped[None]) > 0.1
    coded = _stored(clipped, *CODED[0])
    assert clipped_share(coded) < LIMITS.clipped_share
    report = inspect_recording(coded, 24_000)
    assert report.refusal == "it was clipped before it was stored; record it again at a lower level"


def test_what_is_hardly_clipped_is_taken_with_a_warning() -> None:
    coded = _resampled(_clipped("clara", 6.0), 48_000)
    report = inspect_recording(coded, 48_000)
    assert report.accepted
    assert [(f.code, f.severity) for f in report.findings] == [("clipped", "warning")]


def test_one_side_is_enough() -> None:
    clean = _clean("en-us")
    ceiling = 0.25 * clean.max()
    clipped = _resampled(np.minimum(clean, ceiling), 48_000)[None]
    assert heaping(clipped) > LIMITS.clipped_heaping
    assert heaping(-clipped) == pytest.approx(heaping(clipped), rel=1e-3)


@pytest.mark.parametrize("gain", [1.0, 0.01])
@pytest.mark.parametrize("offset", [0.0, 0.05])
def test_level_offset_and_16_bits_make_no_clipping(gain: float, offset: float) -> None:
    coarse = np.round((_clean("james") * gain + offset) * 32767) / 32767
    assert heaping(coarse.astype(np.float32)[None]) < 0.6 * LIMITS.likely_clipped_heaping


def test_nothing_heaps_up_where_there_is_nothing() -> None:
    assert heaping(np.zeros((2, 1000), np.float32)) == 0
    assert heaping(np.ones((1, 1000), np.float32)) == 0


def test_spans_are_frames_of_speech_in_order() -> None:
    tone = (0.2 * np.sin(np.arange(5 * RATE_HZ) * 0.05)).astype(np.float32)
    levels = measure(tone, RATE_HZ, [(0.5, 1.0), (2.25, 4.0)])
    assert levels.spans() == [(50, 100), (225, 400)]
    assert len(levels.powers) == len(levels.active) == 500
    assert levels.powers.mean() == pytest.approx(0.02, rel=0.01)
