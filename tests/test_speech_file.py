"""Speech as files: decoded it is what went in, as long, and however it was cut."""

import io
import os
import subprocess
import sys
import wave
from pathlib import Path

import av
import numpy as np
import pytest

from agent.media.audio import from_pcm16, to_pcm16
from agent.media.speech_file import (
    AAC_DELAY_SAMPLES,
    CONTENT_TYPES,
    SPEECH_FORMATS,
    SpeechFile,
    SpeechFormat,
    WavFile,
    settled,
    wav_header,
)
from agent.types import FloatArray

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = 2 * 24_000 + 777
CODED: tuple[SpeechFormat, ...] = ("mp3", "opus", "aac", "flac")
BEFORE = {"aac": AAC_DELAY_SAMPLES}
FILLED = {"mp3": 575, "aac": 1023}
"""At most, behind the sound."""
FIRST_BYTES = {"mp3": 2304, "opus": 2400, "aac": 3072, "flac": 2304}
"""After at most so many samples there is something to send."""


def speech(samples: int = SAMPLES) -> FloatArray:
    """Something in the band of a voice that resembles itself at no other time."""
    noise = np.random.default_rng(5).standard_normal(samples + 32)
    smooth = np.convolve(noise, np.hanning(33), "valid")[:samples]
    found: FloatArray = (0.2 * smooth / np.abs(smooth).max()).astype(np.float32)
    return found


def made(form: SpeechFormat, pieces: list[FloatArray]) -> bytes:
    file = SpeechFile(form)
    return b"".join([file.push(piece) for piece in pieces]) + file.finish()


def decoded(form: SpeechFormat, file: bytes) -> FloatArray:
    """At 24 kHz, less the silence before it that `aac` cannot tell of."""
    if form == "pcm":
        return from_pcm16(file)
    kind = {"opus": "ogg"}.get(form, form)
    resampler = av.AudioResampler("flt", "mono", 24_000)
    with av.open(io.BytesIO(file), format=kind) as source:
        frames = [made for frame in source.decode(audio=0) for made in resampler.resample(frame)]
    frames += resampler.resample(None)
    samples = np.concatenate([frame.to_ndarray().ravel() for frame in frames])
    return samples[BEFORE.get(form, 0) :].astype(np.float32)


@pytest.mark.parametrize("form", SPEECH_FORMATS)
def test_what_comes_out_is_what_went_in_and_as_long(form: SpeechFormat) -> None:
    sound = speech()
    heard = decoded(form, made(form, [sound]))
    # What resamples 48 kHz for this test may keep or add a sample or two.
    assert -2 <= len(heard) - SAMPLES <= FILLED.get(form, 2)
    error = heard[: SAMPLES - 2] - sound[: len(heard)][: SAMPLES - 2]
    error_db = 10 * np.log10(np.mean(error**2) / np.mean(sound**2))
    assert error_db < (-70 if form in ("flac", "wav", "pcm") else -10), "at no other place"


@pytest.mark.parametrize("form", SPEECH_FORMATS)
def test_in_pieces_as_in_one_go(form: SpeechFormat) -> None:
    sound = speech()
    cuts = np.sort(np.random.default_rng(6).integers(0, SAMPLES, 60))
    whole = made(form, [sound])
    assert made(form, np.split(sound, cuts)) == whole, "empty pieces among them"
    assert made(form, np.split(sound, range(480, SAMPLES, 480))) == whole


@pytest.mark.parametrize("form", CODED)
def test_sound_leaves_while_it_is_made(form: SpeechFormat) -> None:
    file, sound = SpeechFile(form), speech()
    sent = [len(file.push(sound[at : at + 240])) for at in range(0, SAMPLES, 240)]
    seen = np.cumsum(sent)
    assert seen[FIRST_BYTES[form] // 240 + 1] > 0
    # Never more than 150 ms behind: what is not sent by the end is the last of it.
    rest = len(file.finish())
    assert rest < 0.1 * (seen[-1] + rest)
    gaps = np.diff(np.flatnonzero(sent))
    assert gaps.max() * 240 <= 3600


def test_samples_at_once() -> None:
    for form, header in (("pcm", 0), ("wav", 44)):
        file = SpeechFile(form)  # type: ignore[arg-type]
        assert len(file.push(speech(1))) == header + 2
        assert len(file.push(speech(3))) == 6 and file.finish() == b""


@pytest.mark.parametrize("form", ["pcm", "wav", "flac"])
def test_what_is_too_loud_is_clipped_and_does_not_wrap(form: SpeechFormat) -> None:
    loud = np.array([1.0, -1.0, 1.7, -9.0, 0.5, 32767.4 / 32768] * 200, np.float32)
    heard = np.rint(decoded(form, made(form, [loud])) * 32768)
    assert heard[:6].tolist() == [32767, -32768, 32767, -32768, 16384, 32767]


@pytest.mark.parametrize("form", CODED)
def test_what_is_too_loud_keeps_its_sign_where_it_is_coded(form: SpeechFormat) -> None:
    loud = 3 * np.sin(2 * np.pi * 200 * np.arange(24_000) / 24_000).astype(np.float32)
    heard = decoded(form, made(form, [loud]))[2000:20_000]
    assert np.mean(np.sign(heard) == np.sign(loud[2000:20_000])) > 0.95


def test_a_wav_that_is_sent_states_no_size_and_a_settled_one_its_own() -> None:
    sound = speech(1000)
    file = made("wav", [sound])
    assert file[4:8] == file[40:44] == b"\xff" * 4
    with wave.open(io.BytesIO(settled("wav", bytearray(file), 1000))) as read:
        assert (read.getframerate(), read.getnchannels(), read.getsampwidth()) == (24_000, 1, 2)
        assert read.readframes(read.getnframes()) == to_pcm16(sound).tobytes()
    assert len(settled("wav", made("wav", []), 0)) == 44 == len(wav_header())
    assert settled("mp3", bytearray(b"abc"), 3) == b"abc"


def test_a_flac_that_is_sent_states_no_length_and_a_settled_one_its_own() -> None:
    sound = speech(SAMPLES)
    sent = made("flac", [sound])
    whole = settled("flac", bytearray(sent), SAMPLES)
    lengths = []
    for file in (sent, whole):
        with av.open(io.BytesIO(file)) as read:
            lengths.append(read.streams.audio[0].duration)
    assert lengths == [None, SAMPLES]
    # Nothing else of it has changed.
    assert np.array_equal(decoded("flac", whole), decoded("flac", sent))
    assert [at for at, (a, b) in enumerate(zip(sent, whole, strict=True)) if a != b] == [24, 25]
    assert settled("flac", made("flac", []), 0) == made("flac", [])


def test_what_was_pushed_is_counted() -> None:
    file = SpeechFile("opus")
    for count in (3, 0, 700):
        file.push(np.zeros(count, np.float32))
    assert file.samples == 703


@pytest.mark.parametrize("form", SPEECH_FORMATS)
def test_a_file_without_sound_ends_in_order(form: SpeechFormat) -> None:
    assert len(made(form, [])) == len(made(form, [speech(1)[:0]]))
    assert form in CONTENT_TYPES and SpeechFile(form).content_type.startswith("audio/")


def test_a_wav_on_the_disk(tmp_path: Path) -> None:
    sound, path = speech(5000), tmp_path / "a.wav"
    file = WavFile(path)
    for piece in np.split(sound, [7, 7, 4000]):
        file.push(piece)
    file.finish()
    file.finish()
    assert path.read_bytes() == settled("wav", made("wav", [sound]), 5000) and file.samples == 5000
    with pytest.raises(FileNotFoundError):
        WavFile(tmp_path / "none" / "a.wav")


LONG = """
import resource, sys
import numpy as np
from agent.media.speech_file import SpeechFile
second = (0.3 * np.sin(np.arange(24_000) / 9)).astype(np.float32)
for form in ("mp3", "opus", "aac", "flac"):
    file = SpeechFile(form)
    for number in range(150):
        file.push(second)
        if number == 20:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    file.finish()
    print(form, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_sound() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", LONG],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    # What is encoded after the first 20 s is 6 MB of PCM, and about 1 MB as a file.
    assert {line.split()[0] for line in run.stdout.splitlines()} == set(CODED)
    assert all(int(line.split()[1]) < 700 for line in run.stdout.splitlines()), run.stdout
