"""Stored voices in memory: whose they are, how long they stay, what becomes of damaged ones."""

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
import pytest

from agent.engines.minicpm_o import _warm
from agent.engines.voices import StoredVoices
from agent.errors import CheckpointError, RequestError, VocoderError
from agent.interfaces import VoiceKey
from agent.types import MIC_RATE_HZ
from agent.vocoder import voice_store
from agent.vocoder.voice import SpeakerPrompt
from agent.vocoder.voice_store import RECORDING, StoredVoice, VoiceStore
from tests.rig.stored_voices import store_voice

KEY = "0" * 16
IDS = ("anna", "bert", "carl", "dora", "emil")


class Shelf:
    """Voices on the disk of whose recordings prompts are written by hand."""

    def __init__(self, folder: Path) -> None:
        self.own = folder / "own"
        (folder / "built_in").mkdir()
        self.store = VoiceStore(self.own, folder / "built_in")

    def add(self, voice_id: str, pitch_hz: float, language: str = "en") -> None:
        store_voice(self.own, voice_id, seconds=1.0, pitch_hz=pitch_hz, language=language)
        prompt = SpeakerPrompt(
            np.arange(30, dtype=np.int32),
            np.full((60, 80), pitch_hz, np.float32),
            np.zeros(192, np.float32),
        )
        self.store.keep_prompt(self.store.find(voice_id).digest, KEY, prompt)

    def delete(self, voice_id: str) -> None:
        self.store.prompt_path(self.store.find(voice_id).digest, KEY).unlink()
        shutil.rmtree(self.own / voice_id)

    def damage(self, voice_id: str) -> None:
        path = self.store.prompt_path(self.store.find(voice_id).digest, KEY)
        path.write_bytes(b"PK\x03\x04junk")

    def open(self, recent: int = 2) -> StoredVoices:
        return StoredVoices(self.store, KEY, recent)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    """Five voices."""
    made = Shelf(tmp_path)
    for at, voice_id in enumerate(IDS):
        made.add(voice_id, 100.0 + 10 * at)
    return made


def code_of(voices: StoredVoices, voice_id: str) -> str | None:
    with pytest.raises(RequestError) as refusal:
        voices.resolve(voice_id)
    assert refusal.value.param == "voice"
    return refusal.value.code


# ---- whose they are -----------------------------------------------------------------------------


def test_a_renamed_voice_keeps_its_key_and_its_sound(shelf: Shelf) -> None:
    voices = shelf.open()
    key = voices.resolve("anna")
    before = voices.samples(key)
    assert len(before) == MIC_RATE_HZ
    shutil.move(shelf.own / "anna", shelf.own / "zoe")
    assert voices.resolve("zoe") is key
    np.testing.assert_array_equal(voices.samples(key), before)
    fresh = shelf.open()
    np.testing.assert_array_equal(fresh.samples(fresh.resolve("zoe")), before)


def test_another_recording_in_its_place_is_not_heard_under_the_old_key(shelf: Shelf) -> None:
    voices = shelf.open()
    key = voices.resolve("anna")
    before, prompt = voices.samples(key), voices.prompt(key)
    shelf.delete("anna")
    shelf.add("anna", 333.0)
    np.testing.assert_array_equal(voices.samples(key), before)
    assert voices.prompt(key) is prompt
    other = voices.resolve("anna")
    assert other != key and not np.allclose(voices.samples(other), before)


def test_a_recording_that_is_not_the_one_that_was_added_is_refused(shelf: Shelf) -> None:
    shutil.copy(shelf.own / "bert" / RECORDING, shelf.own / "anna" / RECORDING)
    voices = shelf.open()
    assert code_of(voices, "anna") == "voice_damaged"
    assert voices.resolve("bert")


# ---- how long they stay -------------------------------------------------------------------------


def test_a_call_keeps_its_voice_however_many_others_are_asked_for(shelf: Shelf) -> None:
    voices = shelf.open(recent=1)
    key = voices.resolve("anna")
    prompt = voices.prompt(key)
    for _ in range(3):
        for voice_id in IDS[1:]:
            voices.resolve(voice_id)
    assert voices.prompt(key) is prompt and len(voices.samples(key))
    assert voices.resolve("anna") is key


def test_the_last_few_stay_without_a_call_and_no_more(shelf: Shelf) -> None:
    voices = shelf.open(recent=2)
    prompts = {each: ref(voices.prompt(voices.resolve(each))) for each in IDS}
    gc.collect()
    assert [each for each in IDS if prompts[each]() is not None] == ["dora", "emil"]
    voices.resolve("dora")
    voices.resolve("anna")
    gc.collect()
    assert prompts["dora"]() is not None and prompts["emil"]() is None


def test_a_key_that_nobody_holds_is_of_no_voice(shelf: Shelf) -> None:
    voices = shelf.open(recent=1)
    text = str(voices.resolve("anna"))
    voices.resolve("bert")
    gc.collect()
    with pytest.raises(VocoderError, match="not there any more"):
        voices.prompt(text)
    with pytest.raises(CheckpointError, match="not there any more"):
        voices.samples(text)


@pytest.mark.parametrize("look", ["resolve", "ids", "refusal"])
def test_a_deleted_voice_is_dropped_as_soon_as_another_is_looked_for(
    shelf: Shelf, look: str
) -> None:
    voices = shelf.open(recent=4)
    prompt = ref(voices.prompt(voices.resolve("anna")))
    kept = ref(voices.prompt(voices.resolve("carl")))
    shelf.delete("anna")
    if look == "resolve":
        voices.resolve("bert")
    elif look == "ids":
        assert voices.ids() == IDS[1:]
    else:
        assert code_of(voices, "anna") == "voice_not_found"
    gc.collect()
    assert prompt() is None and kept() is not None


def test_a_deleted_voice_stays_with_the_call_that_speaks_with_it(shelf: Shelf) -> None:
    voices = shelf.open()
    key = voices.resolve("anna")
    prompt = ref(voices.prompt(key))
    shelf.delete("anna")
    voices.ids()
    assert voices.prompt(key) is prompt() and len(voices.samples(key))
    del key
    gc.collect()
    assert prompt() is None


def test_a_voice_is_found_without_reading_the_others(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counting(facts: Path, *rest: Any, **more: Any) -> Iterator[StoredVoice]:
        read.append(facts.parent.name)
        return reading(facts, *rest, **more)

    reading = voice_store._read
    monkeypatch.setattr(voice_store, "_read", counting)
    shelf.open().resolve("dora")
    assert set(read) == {"built_in", "dora"}
    shelf.open().ids()
    assert set(read) == {"built_in", *IDS}


# ---- what is damaged ----------------------------------------------------------------------------


def test_a_damaged_prompt_is_refused_by_name_and_passed_over_where_none_is_picked(
    shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    shelf.damage("anna")
    shelf.add("mei", 300.0, language="zh")
    shelf.damage("mei")
    voices = shelf.open()
    assert code_of(voices, "anna") == "voice_damaged"
    assert "anna" in caplog.text
    bert = voices.resolve("bert")
    assert voices.resolve("") is voices.resolve("", "en") is voices.resolve("", "zh") is bert
    shelf.delete("anna")
    shelf.add("anna", 100.0)
    assert voices.resolve("") is voices.resolve("anna") is not bert


def test_where_all_are_damaged_none_is_found(shelf: Shelf) -> None:
    for voice_id in IDS:
        shelf.damage(voice_id)
    assert code_of(shelf.open(), "") == "voice_damaged"
    shutil.rmtree(shelf.own)
    assert code_of(shelf.open(), "") == "voice_not_found"


class Throat:
    """A vocoder that fails with the voices it is given."""

    lag_ms = 0

    def __init__(self, *hoarse: str) -> None:
        self.hoarse = hoarse
        self.spoken: list[str] = []
        self.tokens = 0

    def prepare(self, voice: str) -> None:
        raise AssertionError("it is opened at once")

    def open(self, voice: str) -> "Throat":
        if voice in self.hoarse:
            raise VocoderError("hoarse")
        self.spoken.append(voice)
        return self

    def push(self, tokens: range) -> np.ndarray:
        self.tokens += len(tokens)
        return np.zeros(0, np.float32)

    def finish(self) -> np.ndarray:
        return np.zeros(0, np.float32)


class Heard:
    """Voices by their ids; `a` is damaged."""

    def ids(self) -> tuple[str, ...]:
        return ("a", "b", "c")

    def resolve(self, voice_id: str, language: str = "") -> VoiceKey:
        if voice_id == "a":
            raise RequestError("damaged", param="voice", code="voice_damaged")
        return VoiceKey(voice_id)

    def duplex(self, key: VoiceKey) -> None:
        pass

    turns = duplex


def test_the_start_warms_up_with_the_first_voice_that_works() -> None:
    throat = Throat("b")
    _warm(throat, Heard(), lengths=False)
    assert throat.spoken == ["c"] and throat.tokens >= 50
    thorough = Throat("b")
    _warm(thorough, Heard(), lengths=True)
    assert thorough.spoken == ["c"] * 25 and thorough.tokens == 2 * sum(range(1, 26)) + 25 * 50
    with pytest.raises(CheckpointError, match="none of the voices"):
        _warm(Throat("b", "c"), Heard(), lengths=False)
