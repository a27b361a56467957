"""`voice-agent voices`: list, check, add, remove, say; what is printed, exit status."""

import io
import json
import stat
import wave
from pathlib import Path

import av
import numpy as np
import pytest

from agent import voices_command
from agent.__main__ import main
from agent.chat_types import SpeechRequest
from agent.errors import EngineError, VocoderError
from agent.vocoder.voice_store import VoiceStore
from agent.voices import VocoderFiles
from agent.voices_command import spoken as read_aloud
from agent.voices_shelf import LEAST_CONSENT_WORDS
from tests.rig.attached import tone, wav
from tests.rig.speaking_engine import WORD_SAMPLES, SpeakingEngine
from tests.rig.tiny_vocoder import write_token2wav
from tests.rig.voice_bench import CONSENT, coded, spoken


class Command:
    """Runs `voice-agent voices`, its data in one folder."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.data = folder / "voices"
        self.store = VoiceStore(self.data, folder / "nowhere")
        self.recording = folder / "anna.mp3"
        self.recording.write_bytes(coded("mp3", "mp3", 44_100))
        self.quiet = ["--set", f"model.folder={folder}/models"]
        self._capsys = capsys

    def __call__(self, verb: str, *arguments: object) -> tuple[int, str, str]:
        """Exit status, what went to stdout and to stderr."""
        line = ["voices", verb, "--data", str(self.data), *self.quiet, *map(str, arguments)]
        status = main(line)
        printed = self._capsys.readouterr()
        return status, printed.out, printed.err

    def add(self, *more: object) -> tuple[int, str, str]:
        return self("add", self.recording, "--name", "Anna", "--consent", CONSENT, *more)

    def listed(self, *more: object) -> dict[str, dict[str, object]]:
        status, out, _ = self("list", "--json", *more)
        assert status == 0
        return {voice["id"]: voice for voice in json.loads(out)["data"]}


@pytest.fixture
def voices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    # What lies in the caches of whoever runs the tests is none of their matter.
    for name in ("HF_HOME", "HF_HUB_CACHE", "MODELSCOPE_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    return Command(tmp_path, capsys)


def test_a_voice_is_added_listed_and_removed(voices: Command) -> None:
    status, out, err = voices.add("--language", "en")
    assert status == 0 and err == ""
    assert out.startswith("4.2 s at 44,100 Hz, 1 channel(s); 4.2 s of speech at -23 dBFS, ")
    assert "Added the voice anna (Anna), 4.3 s." in out
    assert out.splitlines()[-1].startswith("A running server prepares it by itself within seconds;")
    listed = voices.listed()
    assert {"anna", "clara", "james", "mei"} <= set(listed)
    assert listed["anna"]["status"] == "stored" and listed["anna"]["language"] == "en"
    assert listed["clara"]["built_in"] is True
    table = voices("list")[1].splitlines()
    assert table[0].split() == ["ID", "NAME", "LANGUAGE", "SECONDS", "STATUS", "FROM"]
    assert table[-1].split() == ["anna", "Anna", "en", "4.3", "stored", "added"]
    assert CONSENT not in "\n".join(table)
    assert stat.S_IMODE((voices.data / "anna" / "recording.wav").stat().st_mode) == 0o600
    assert voices.store.find("anna").consent == CONSENT
    status, out, _ = voices("remove", "anna")
    assert (status, out) == (0, "Removed the voice anna (Anna).\n")
    assert "anna" not in voices.listed()


def test_with_a_vocoder_a_voice_is_ready_at_once(voices: Command, tmp_path: Path) -> None:
    folder = write_token2wav(tmp_path / "token2wav")
    known = ("--set", f"vocoder.folder={folder}")
    status, out, err = voices.add(*known)
    assert (status, err) == (0, "") and out.endswith("It is ready to be spoken with.\n")
    listed = voices.listed(*known)
    assert (listed["anna"]["status"], listed["clara"]["status"]) == ("ready", "stored")
    voice, key = voices.store.find("anna"), VocoderFiles("token2wav", folder).key()
    assert voices.store.prompt(voice.digest, key) is not None
    # For whom it is prepared cannot be said without one, only that it is.
    listed = voices.listed()
    assert (listed["anna"]["status"], listed["clara"]["status"]) == ("prepared", "stored")
    # Beside a model it is found, too, as the server finds it.
    (tmp_path / "model" / "assets").mkdir(parents=True)
    folder.rename(tmp_path / "model" / "assets" / "token2wav")
    assert voices.listed("--model", tmp_path / "model")["anna"]["status"] == "ready"


def test_a_vocoder_without_its_files_is_a_wrong_setting_and_nothing_is_added(
    voices: Command, tmp_path: Path
) -> None:
    status, _, err = voices.add("--set", f"vocoder.folder={tmp_path}/empty")
    assert status == 2 and "vocoder.folder" in err and "anna" not in voices.listed()


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (wav(tone(6)), 1, "refused: No speech could be found in it.\nIt cannot be used."),
        (wav(np.zeros(48_000, np.int16)), 1, "refused: It is silent."),
        (spoken(), 0, "4.2 s of speech at -23 dBFS, 40 dB above what is around it\nIt can be"),
    ],
)
def test_check_explains(
    voices: Command, tmp_path: Path, data: bytes, status: int, words: str
) -> None:
    (tmp_path / "file").write_bytes(data)
    found, out, err = voices("check", tmp_path / "file")
    assert (found, err) == (status, "") and words in out
    found, out, _ = voices("check", tmp_path / "file", "--json")
    assert found == status and json.loads(out)["accepted"] is (status == 0)
    assert not voices.data.exists()


def test_what_cannot_be_added_is_explained_and_leaves_nothing(
    voices: Command, tmp_path: Path
) -> None:
    voices.recording.write_bytes(wav(tone(6)))
    status, out, err = voices.add()
    assert status == 1 and "No speech could be found in it." in out
    assert err == f"voice-agent: {voices.recording}: cannot be used; nothing was added\n"
    voices.recording.write_text("hello")
    refused = voices.add()[2]
    assert "this is text" in refused and str(voices.recording) in refused
    assert str(voices.recording) in voices("check", voices.recording)[2]
    assert "larger than 1,024 bytes" in _large(voices)
    status, _, err = voices("check", tmp_path / "none.wav")
    assert status == 1 and "none.wav: cannot be read: No such file" in err
    status, _, err = voices("add", voices.recording, "--name", "Anna", "--consent", "yes")
    assert status == 1 and f"in at least {LEAST_CONSENT_WORDS} words" in err
    assert "anna" not in voices.listed()


def _large(voices: Command) -> str:
    voices.recording.write_bytes(bytes(2048))
    return voices.add("--set", "voices.max_file_bytes=1024")[2]


def test_consent_cannot_be_left_out(voices: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        voices("add", voices.recording, "--name", "Anna")
    assert raised.value.code == 2 and "--consent" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["list", "check", "add", "remove", "say"])
def test_the_help_names_the_settings_of_voices(
    capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    with pytest.raises(SystemExit):
        main(["voices", verb, "--help"])
    text = capsys.readouterr().out
    assert text.endswith("Those of [voices], [vocoder], [model] count here.\n")
    if verb == "add":
        assert f"at least {LEAST_CONSENT_WORDS} words" in " ".join(text.split())


def test_the_number_of_voices_and_the_limit_are_told(voices: Command) -> None:
    voices.add()
    status, _, err = voices.add("--set", "voices.max_voices=1")
    assert status == 1 and "1 of at most 1 are there (voices.max_voices)" in err


def test_a_voice_is_found_by_its_name(voices: Command, tmp_path: Path) -> None:
    voices.add()
    facts = voices.data / "anna" / "voice.json"
    facts.write_text(facts.read_text().replace('"Anna"', '"Anna Lee"'))
    assert voices("remove", "anna  LEE")[:2] == (0, "Removed the voice anna (Anna Lee).\n")
    voices.add()
    voices.add()
    facts = voices.data / "anna-2" / "voice.json"
    facts.write_text(facts.read_text().replace("Anna (2)", "ANNA"))
    status, _, err = voices("remove", "Anna")
    assert status == 1 and "several voices are named 'Anna'; use an id: anna, anna-2" in err
    assert voices("remove", "anna")[0] == 0, "an id comes before any name"


def test_voices_that_cannot_be_removed(voices: Command) -> None:
    status, _, err = voices("remove", "anna")
    assert status == 1 and "there is no voice 'anna'" in err
    status, _, err = voices("remove", "clara")
    assert status == 1 and "comes with the program" in err


# ---- say ----------------------------------------------------------------------------------------


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> SpeakingEngine:
    speaking = SpeakingEngine()

    async def start(config: object) -> SpeakingEngine:
        return speaking

    monkeypatch.setattr(voices_command, "_start", start)
    return speaking


@pytest.mark.parametrize("ending", ["wav", "mp3", "ogg", "opus", "flac"])
def test_say_writes_the_format_of_the_file_s_ending(
    voices: Command, engine: SpeakingEngine, tmp_path: Path, ending: str
) -> None:
    voices.add()
    out = tmp_path / f"said.{ending}"
    status, printed, err = voices("say", "anna", "one two three", "-o", out, "--seed", 7)
    assert (status, err) == (0, "") and printed.startswith(f"Wrote {out}")
    assert engine.spoken == [SpeechRequest("one two three", "anna", "en", 7)]
    with av.open(str(out)) as file:
        samples = sum(frame.samples * 24_000 // frame.sample_rate for frame in file.decode(audio=0))
    assert 3 * WORD_SAMPLES <= samples < 3 * WORD_SAMPLES + 1500
    if ending == "flac":
        assert _stated_samples(out) == 3 * WORD_SAMPLES
    if ending == "wav":
        with wave.open(io.BytesIO(out.read_bytes())) as written:
            assert written.getnframes() == 3 * WORD_SAMPLES


def _stated_samples(path: Path) -> int:
    """What its header says: before a packet is read, a FLAC's length comes from nowhere else."""
    with av.open(str(path)) as file:
        stream = file.streams.audio[0]
        assert stream.time_base is not None
        return round((stream.duration or 0) * stream.time_base * 24_000)


def test_say_in_chinese(voices: Command, engine: SpeakingEngine, tmp_path: Path) -> None:
    voices.add()
    voices("say", "anna", "你好 Anna", "-o", tmp_path / "a.wav")
    voices("say", "anna", "你好 Anna", "-o", tmp_path / "a.wav", "--language", "en")
    assert [order.language for order in engine.spoken] == ["zh", "en"]


def test_what_cannot_be_said_is_told_before_anything_is_loaded(
    voices: Command, engine: SpeakingEngine, tmp_path: Path
) -> None:
    status, _, err = voices("say", "nobody", "hi", "-o", tmp_path / "a.wav")
    assert status == 1 and "There is no voice 'nobody'" in err
    status, _, err = voices("say", "clara", "hi", "-o", tmp_path / "a.txt")
    assert status == 1 and "the file's ending" in err
    status, _, err = voices("say", "clara", " \n", "-o", tmp_path / "a.wav")
    assert status == 1 and "there is no text to say" in err
    status, _, err = voices("say", "clara", "hi", "-o", tmp_path / "none" / "a.wav")
    assert status == 1 and f"there is no folder {tmp_path}/none" in err
    (tmp_path / "b.wav").mkdir()
    status, _, err = voices("say", "clara", "hi", "-o", tmp_path / "b.wav")
    assert status == 1 and "b.wav: is a folder" in err
    assert engine.spoken == []


def test_a_voice_is_said_by_its_name_and_no_empty_language_is_offered(
    voices: Command,
    engine: SpeakingEngine,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    voices.add()
    assert voices("say", "ANNA", "hi", "-o", tmp_path / "a.wav")[0] == 0
    assert [order.voice for order in engine.spoken] == ["anna"]
    with pytest.raises(SystemExit):
        main(["voices", "say", "--help"])
    assert "--language {en,zh}" in capsys.readouterr().out


def test_an_engine_without_a_voice_says_why_it_was_taken_and_what_helps(
    voices: Command, tmp_path: Path
) -> None:
    status, _, err = voices("say", "clara", "hi", "-o", tmp_path / "a.wav", "--engine", "echo")
    assert status == 1 and "the echo engine has no voice that reads texts" in err
    assert "it was taken because: " in err and "--engine minicpm-o --model " in err
    assert not (tmp_path / "a.wav").exists()


class Closing(SpeakingEngine):
    """Knows whether it was closed."""

    closed = False

    async def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("failing", "words", "kind"),
    [
        (None, "failed on the way", VocoderError),
        (RuntimeError("out of memory"), "out of memory", EngineError),
    ],
)
async def test_a_voice_that_fails_leaves_no_file_and_no_engine(
    failing: Exception | None, words: str, kind: type[Exception]
) -> None:
    engine = Closing(failing=failing)
    if failing is None:
        engine.fails_after = 1

    async def start() -> SpeakingEngine:
        return engine

    with pytest.raises(kind, match=words):
        await read_aloud(start, SpeechRequest("one two three four"), "wav")
    assert engine.closed


def test_ids_that_stock_clients_ask_for_are_not_given_away(voices: Command) -> None:
    status, _, _ = voices("add", voices.recording, "--name", "Alloy", "--consent", CONSENT)
    assert status == 0 and voices.listed()["alloy-2"]["name"] == "Alloy"


def test_arguments_that_are_no_text_are_said(voices: Command) -> None:
    consent = ("--consent", "This is \udcff mine, really.")
    status, _, err = voices("add", voices.recording, "--name", "Anna", *consent)
    assert status != 0 and "no text" in err and "Traceback" not in err
    assert not list(voices.data.glob(".new-*"))
