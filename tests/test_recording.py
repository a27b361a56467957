"""Recordings at their own rate, with all their channels."""

import numpy as np
import pytest

from agent.errors import RequestError
from agent.media.recording import RecordingLimits, decode_recording
from tests.rig.attached import RED, film, picture, sound, tone, wav

LIMITS = RecordingLimits(file_bytes=5_000_000, longest_s=10, kept_s=4, kept_values=1_000_000)


@pytest.mark.parametrize(
    ("container", "codec", "rate_hz"),
    [
        ("mp3", "mp3", 44_100),
        ("ogg", "libopus", 48_000),
        ("webm", "libopus", 48_000),
        ("mp4", "aac", 44_100),
        ("adts", "aac", 32_000),
        ("flac", "flac", 96_000),
        ("aiff", "pcm_s16be", 11_025),
    ],
)
def test_rate_length_and_sound_stay(container: str, codec: str, rate_hz: int) -> None:
    made = tone(2.0, rate_hz)
    recording = decode_recording(sound(container, codec, made, rate_hz))
    assert recording.rate_hz == rate_hz and recording.samples.shape[0] == 1
    assert recording.duration_s == pytest.approx(2.0, abs=0.06)
    assert recording.samples.shape[1] == round(recording.duration_s * rate_hz)
    middle = recording.samples[0, rate_hz // 2 : rate_hz]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert spectrum.argmax() * rate_hz / len(middle) == pytest.approx(440, abs=4)
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.354, abs=0.02)


def test_channels_are_not_mixed() -> None:
    left, right = tone(1.0, 48_000), tone(1.0, 48_000, 700.0)
    both = (np.stack((left, right), 1) * 32768).astype(np.int16)
    recording = decode_recording(wav(both, 48_000))
    assert recording.samples.shape == (2, 48_000)
    assert np.array_equal(recording.samples, both.T.astype(np.float32) / 32768)


def test_eight_channels_are_read() -> None:
    """In the planar form that the decoder gives, the library would read beyond the last one."""
    made = np.zeros((16_000, 8), np.int16)
    made[:, 7] = (tone(1.0) * 32767).astype(np.int16)
    recording = decode_recording(wav(made))
    assert recording.samples.shape == (8, 16_000)
    assert np.array_equal(recording.samples, made.T.astype(np.float32) / 32768)
    film_of_eight = decode_recording(film([RED] * 2, tone(2.0), layout="7.1"))
    assert film_of_eight.samples.shape[0] == 8 and np.abs(film_of_eight.samples).max() > 0.3


def test_a_film_s_sound() -> None:
    recording = decode_recording(film([RED] * 3, tone(3.0)))
    assert recording.rate_hz == 16_000 and recording.duration_s == pytest.approx(3.0, abs=0.2)


def test_what_is_long_is_measured_but_not_kept() -> None:
    recording = decode_recording(wav(tone(6.0)), LIMITS)
    assert recording.samples.shape == (1, 4 * 16_000) and recording.duration_s == 6.0


def test_loud_floats_are_clipped_to_one() -> None:
    assert np.abs(decode_recording(wav(4 * tone(1.0))).samples).max() == 1.0


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (b"", "invalid_media", "empty"),
        (b"#!/bin/sh", "unsupported_media", "this is text; supported are WAV"),
        (b"#EXTM3U\nhttp://127.0.0.1/", "unsupported_media", "a playlist"),
        (picture(RED), "unsupported_media", "this is a picture; supported are WAV"),
        (film([RED]), "invalid_media", "no sound"),
        (wav(tone(11.0)), "media_too_long", "longer than the 10 s"),
        (wav(tone(2.0))[:30_000], "invalid_media", "incomplete"),
        (wav(np.full(16_000, np.nan, np.float32)), "invalid_media", "no finite numbers"),
        (wav(np.zeros((100, 9), np.int16)), "unsupported_media", "9 channels"),
        (wav(np.zeros(1000, np.int16), 384_000), "unsupported_media", "384,000 Hz"),
        (wav(np.zeros((200_000, 6), np.int16), 96_000), "media_too_large", "too large"),
        (wav(np.zeros(0, np.int16)), "invalid_media", ""),
        (bytes(5_000_001), "file_too_large", "at most 5,000,000"),
    ],
)
def test_what_cannot_be_read(data: bytes, code: str, words: str) -> None:
    with pytest.raises(RequestError) as raised:
        decode_recording(data, LIMITS)
    assert raised.value.code == code and words in str(raised.value)
