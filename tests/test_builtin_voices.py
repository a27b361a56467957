"""The voices that come with the program: sound, named, and fit to be spoken with."""

import json
import re
from pathlib import Path

import pytest
import torch

from agent import resources
from agent.types import SPEECH_RATE_HZ
from agent.vocoder.preparing import FITS, prepare_voices, vocoder_key
from agent.vocoder.reference_audio import improve_recording, inspect_recording
from agent.vocoder.sound_levels import measure
from agent.vocoder.voice_store import StoredVoice, VoiceStore, digest_of, read_recording
from tests.rig.tiny_vocoder import write_cosyvoice2, write_token2wav

FOLDER = resources.assets_folder() / "ref_audio"
BUILT_IN = VoiceStore(own=Path("/nowhere"), built_in=FOLDER).voices()
EACH = pytest.mark.parametrize("voice", BUILT_IN, ids=lambda voice: voice.id)
NO_VOICES = {"echo_greeting.wav"}


def _files() -> set[str]:
    return {path.name for path in FOLDER.iterdir()} - {"SOURCES.md"}


def test_the_default_is_english_and_there_is_one_in_chinese() -> None:
    assert [(voice.id, voice.language) for voice in BUILT_IN] == [
        ("clara", "en"),
        ("james", "en"),
        ("mei", "zh"),
    ]
    assert all(voice.built_in and voice.name.lower() == voice.id for voice in BUILT_IN)
    assert all(voice.notes for voice in BUILT_IN)


def test_they_are_found_beside_those_that_were_added(tmp_path: Path) -> None:
    store = VoiceStore(own=tmp_path, built_in=FOLDER)
    assert store.voices() == BUILT_IN
    assert store.find("") == BUILT_IN[0]
    assert store.find("mei").recording == FOLDER / "mei.wav"


@EACH
def test_what_is_said_of_a_recording_is_so(voice: StoredVoice) -> None:
    stored = json.loads((FOLDER / f"{voice.id}.json").read_text(encoding="utf-8"))
    assert stored["digest"] == voice.digest == digest_of(voice.recording.read_bytes())
    samples = read_recording(voice.recording)
    assert voice.duration_s == pytest.approx(len(samples) / SPEECH_RATE_HZ, abs=0.01)
    assert 6 <= voice.duration_s <= 10


@EACH
def test_nothing_is_to_be_said_against_a_recording(voice: StoredVoice) -> None:
    samples = read_recording(voice.recording)
    report = inspect_recording(samples, SPEECH_RATE_HZ)
    assert report.findings == ()
    assert report.level_dbfs == pytest.approx(-23, abs=0.5)
    assert report.snr_db > 40
    levels = measure(samples, SPEECH_RATE_HZ)
    assert levels.start_s <= 0.11
    assert voice.duration_s - levels.end_s <= 0.13


@EACH
def test_a_recording_cannot_be_made_any_better(voice: StoredVoice) -> None:
    samples = read_recording(voice.recording)
    again = improve_recording(samples, SPEECH_RATE_HZ)
    assert abs(len(again) - len(samples)) <= SPEECH_RATE_HZ // 50
    assert abs(again).max() == pytest.approx(abs(samples).max(), rel=0.02)


@pytest.mark.parametrize("vocoder", ["token2wav", "cosyvoice2"])
def test_a_vocoder_can_speak_with_every_one(tmp_path: Path, vocoder: str) -> None:
    folder = tmp_path / vocoder
    (write_token2wav if vocoder == "token2wav" else write_cosyvoice2)(folder)
    store = VoiceStore(own=tmp_path / "voices", built_in=FOLDER)
    torch.set_num_threads(1)
    assert prepare_voices(store, BUILT_IN, folder, FITS[vocoder]) == {}
    for voice in BUILT_IN:
        prompt = store.prompt(voice.digest, vocoder_key(folder, FITS[vocoder]))
        assert prompt is not None
        assert len(prompt.speech_tokens) == pytest.approx(25 * voice.duration_s, abs=2)


def test_every_file_has_its_source_and_every_source_its_file() -> None:
    rows = [
        line.split("|")[1]
        for line in (FOLDER / "SOURCES.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    ]
    assert set(re.findall(r"`([^`]+)`", " ".join(rows))) == _files()
    voices = {f"{voice.id}.{kind}" for voice in BUILT_IN for kind in ("wav", "json")}
    assert _files() == voices | NO_VOICES
