"""The voice of the model engine from files on the disk: vocoder, reference voices, whole turns."""

import gc
import itertools
import shutil
from dataclasses import replace
from pathlib import Path
from weakref import ref

import numpy as np
import pytest
import torch

from agent.commands import Interrupt
from agent.duplex.engine import DuplexEngine
from agent.engines import EngineSettings, ModelSettings, VoiceSettings
from agent.engines.minicpm_o import abilities, load_core, load_parts
from agent.engines.voices import load_voice
from agent.errors import CheckpointError, RequestError, VocoderError
from agent.types import FloatArray, SessionSettings, SpeechAudio, TurnEnded, TurnStarted
from agent.vocoder.voice_store import PREPARED
from tests.rig.scripted_engine import decisions
from tests.rig.stored_voices import store_voice
from tests.rig.tiny_checkpoint import shared_checkpoint
from tests.rig.tiny_mind import second
from tests.rig.tiny_vocoder import write_cosyvoice2, write_token2wav

CPU = torch.device("cpu")
ANNA, BERT = 210.0, 110.0


@pytest.fixture(scope="module")
def vocoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `causal`, `classic` and `cosyvoice2`."""
    folder = tmp_path_factory.mktemp("vocoders")
    write_token2wav(folder / "causal", "causal")
    write_token2wav(folder / "classic", "classic")
    write_cosyvoice2(folder / "cosyvoice2")
    return folder


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The voices anna and bert."""
    store_voice(tmp_path / "voices", "anna", pitch_hz=ANNA)
    store_voice(tmp_path / "voices", "bert", pitch_hz=BERT)
    return tmp_path / "voices"


@pytest.fixture
def built_in(tmp_path: Path) -> Path:
    """No voice comes with the program."""
    (tmp_path / "assets" / "ref_audio").mkdir(parents=True)
    return tmp_path / "assets" / "ref_audio"


def settings_of(vocoders: Path, kind: str, own: Path) -> VoiceSettings:
    name = "cosyvoice2" if kind == "cosyvoice2" else "token2wav"
    return VoiceSettings(name, vocoders / kind, own)  # type: ignore[arg-type]


# ---- voices -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["causal", "classic", "cosyvoice2"])
def test_every_vocoder_speaks_in_the_voices_of_the_store(
    vocoders: Path, own: Path, built_in: Path, kind: str
) -> None:
    vocoder, voices = load_voice(settings_of(vocoders, kind, own), built_in, CPU)
    assert voices.ids() == ("anna", "bert")
    assert voices.resolve("") == voices.resolve("anna") != voices.resolve("bert")
    said = {}
    for voice in ("anna", "bert"):
        stream = vocoder.open(voices.resolve(voice))
        said[voice] = np.concatenate([stream.push(list(range(100, 150))), stream.finish()])
        assert len(said[voice]) == 50 * 960
    assert not np.allclose(said["anna"], said["bert"])


def test_a_call_keeps_the_voice_it_began_with_whatever_becomes_of_its_name(
    vocoders: Path, own: Path, built_in: Path
) -> None:
    vocoder, voices = load_voice(settings_of(vocoders, "causal", own), built_in, CPU)
    key = voices.resolve("anna")
    before = voices.samples(key)
    shutil.rmtree(own / "anna")
    with pytest.raises(RequestError, match="no voice 'anna'"):
        voices.resolve("anna")
    assert len(vocoder.open(key).push(list(range(60))))
    store_voice(own, "anna", pitch_hz=300.0)
    with pytest.raises(RequestError, match="still being prepared"):
        voices.resolve("anna")
    # What is prepared meanwhile can be spoken with at once, and is another voice.
    load_voice(settings_of(vocoders, "causal", own), built_in, CPU)
    assert voices.resolve("anna") != key
    assert len(voices.samples(voices.resolve("anna"))) == len(before)
    with pytest.raises(VocoderError, match="not there any more"):
        vocoder.open("0" * 64)


def test_what_is_prepared_of_a_voice_goes_with_its_key_and_not_before(
    vocoders: Path, own: Path, built_in: Path
) -> None:
    settings = replace(settings_of(vocoders, "causal", own), prepared_voices=1)
    vocoder, voices = load_voice(settings, built_in, CPU)
    made: list[str] = []
    prepare = vocoder.speaking.voice
    vocoder.speaking.voice = lambda prompt, name: (made.append(name), prepare(prompt, name))[1]
    calls = {each: voices.resolve(each) for each in ("anna", "bert")}
    for _ in range(3):
        for key in calls.values():
            vocoder.open(key)
    assert made == list(calls.values())
    prompts = [ref(voices.prompt(key)) for key in calls.values()]
    calls.clear()
    del key
    gc.collect()
    # Only the last one stays for who may ask for it next.
    assert [prompt() is None for prompt in prompts] == [True, False]
    vocoder.open(voices.resolve("bert"))
    vocoder.open(voices.resolve("anna"))
    assert len(made) == 3


def test_a_damaged_prompt_is_made_anew_at_the_start(
    vocoders: Path, own: Path, built_in: Path
) -> None:
    load_voice(settings_of(vocoders, "causal", own), built_in, CPU)
    for path in (own / PREPARED).iterdir():
        path.write_bytes(b"PK\x03\x04junk")
    _, voices = load_voice(settings_of(vocoders, "causal", own), built_in, CPU)
    assert voices.resolve("anna") != voices.resolve("bert")


def test_without_a_choice_the_first_voice_of_the_language_speaks(
    vocoders: Path, own: Path, built_in: Path
) -> None:
    store_voice(own, "mei", pitch_hz=250.0, language="zh")
    _, voices = load_voice(settings_of(vocoders, "causal", own), built_in, CPU)
    mei = voices.resolve("mei")
    assert voices.resolve("", "zh") == voices.resolve("", "zh-TW") == mei
    assert voices.resolve("", "fr") == voices.resolve("") == voices.resolve("anna")
    assert voices.resolve("bert", "zh") == voices.resolve("bert")


def test_a_damaged_recording_is_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, vocoders: Path, own: Path, built_in: Path
) -> None:
    engine = load_core(
        engine_settings(tmp_path_factory, vocoders, own, built_in), lambda done, total: None
    )
    (own / "bert" / "recording.wav").write_bytes(b"RIFF")
    with pytest.raises(RequestError, match="the voice 'bert' cannot be used"):
        engine.open(1, SessionSettings("m", voice="bert"))
    engine.open(2, SessionSettings("m", voice="anna"))


def test_voices_are_prepared_once(vocoders: Path, own: Path, built_in: Path) -> None:
    load_voice(settings_of(vocoders, "causal", own), built_in, CPU)
    kept = sorted((own / PREPARED).iterdir())
    times = [path.stat().st_mtime_ns for path in kept]
    assert len(kept) == 2 and all(path.stat().st_mode & 0o777 == 0o600 for path in kept)
    load_voice(settings_of(vocoders, "causal", own), built_in, CPU)
    assert [path.stat().st_mtime_ns for path in kept] == times
    assert sorted((own / PREPARED).iterdir()) == kept


def test_without_any_voice_there_is_nothing_to_speak_with(
    vocoders: Path, tmp_path: Path, built_in: Path
) -> None:
    with pytest.raises(CheckpointError, match="no voice to speak with"):
        load_voice(settings_of(vocoders, "causal", tmp_path / "none"), built_in, CPU)


# ---- the whole engine ----------------------------------------------------------------------------


@pytest.fixture
def engine(
    tmp_path_factory: pytest.TempPathFactory, vocoders: Path, own: Path, built_in: Path
) -> DuplexEngine:
    """The tiny model, which speaks a sentence every third unit."""
    parts = load_parts(engine_settings(tmp_path_factory, vocoders, own, built_in))
    vocabulary = parts.runner.model.vocabulary
    voiced = replace(parts, script=lambda: decisions(vocabulary, turn_units=3))
    return DuplexEngine(voiced, abilities(voiced))


def engine_settings(
    factory: pytest.TempPathFactory, vocoders: Path, own: Path, built_in: Path
) -> EngineSettings:
    model = ModelSettings(shared_checkpoint(factory), device="cpu", context_tokens=2048)
    return EngineSettings(built_in.parent, 2, model, settings_of(vocoders, "causal", own))


def heard(engine: DuplexEngine, number: int, units: int, first: int = 0) -> list[object]:
    """What call `number` says while it listens to so many units."""
    said: list[object] = []
    for index in range(first, first + units):
        engine.push(number, second(index))
        while engine.idle_s() == 0.0:
            said += [event for to, event in engine.work() if to == number]
    return said


def sound_of(events: list[object], turn: int = 1) -> FloatArray:
    pieces = [one for one in events if isinstance(one, SpeechAudio) and one.turn == turn]
    for piece, following in itertools.pairwise(pieces):
        assert following.start == piece.start + len(piece.samples)
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    return np.concatenate([piece.samples for piece in pieces])


def test_the_engine_says_that_it_speaks_and_with_which_voices(
    tmp_path_factory: pytest.TempPathFactory, vocoders: Path, own: Path, built_in: Path
) -> None:
    settings = engine_settings(tmp_path_factory, vocoders, own, built_in)
    voiced = load_core(settings, lambda done, total: None).abilities
    assert voiced.speech and voiced.text_to_speech and voiced.voices == ("anna", "bert")
    silent = load_core(replace(settings, voice=None), lambda done, total: None).abilities
    assert not silent.speech and not silent.text_to_speech and silent.voices == ()


def test_a_turn_is_heard_whole_in_the_voice_of_its_call(engine: DuplexEngine) -> None:
    sounds = {}
    for number, voice in enumerate(("anna", "bert")):
        engine.open(number, SessionSettings("m", voice=voice))
    for number, voice in enumerate(("anna", "bert")):
        sounds[voice] = sound_of(heard(engine, number, 9))
    assert len(sounds["anna"]) % 960 == 0 and len(sounds["anna"]) > 2 * 24_000
    shortest = min(map(len, sounds.values()))
    assert not np.allclose(sounds["anna"][:shortest], sounds["bert"][:shortest])
    with pytest.raises(RequestError, match="no voice 'carl'"):
        engine.open(9, SessionSettings("m", voice="carl"))


def test_an_interrupted_turn_is_dropped_and_the_next_one_starts_clean(engine: DuplexEngine) -> None:
    engine.open(1, SessionSettings("m"))
    said: list[object] = []
    index = 0
    while not any(isinstance(event, TurnStarted) for event in said):
        said += heard(engine, 1, 1, index)
        index += 1
    engine.control(1, Interrupt(1, 100))
    said = heard(engine, 1, 9, index)
    assert [event for event in said if isinstance(event, SpeechAudio) and event.turn == 1] == []
    ends = [(one.turn, one.reason) for one in said if isinstance(one, TurnEnded)]
    assert (1, "interrupted") in ends and (2, "completed") in ends
    assert len(sound_of(said, turn=2)) >= 960
