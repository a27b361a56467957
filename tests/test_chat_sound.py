"""`voice-agent chat --speak`: answers as files, and out of the loudspeaker where there is one."""

import io
from pathlib import Path

import numpy as np
import pytest

from agent import chat_command, chat_sound
from agent.__main__ import main
from agent.chat_command import ChatOptions, SpeakOptions, converse
from agent.chat_sound import AnswerFiles, SpokenAnswers
from agent.chat_terminal import Terminal
from agent.chat_types import ChatAudio
from agent.config import Config
from agent.errors import AgentError, RequestError, WorkerLost
from agent.media.speech_file import SpeechFile, settled
from agent.types import FloatArray
from tests.rig.reading_engine import ReadingEngine
from tests.rig.speaking_engine import SpeakingEngine, sound_of

SPEAKS = "\nspeaks=True"


def file_of(sound: FloatArray) -> bytes:
    file = SpeechFile("wav")
    return settled("wav", file.push(sound) + file.finish(), len(sound))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and no player."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    return tmp_path


def add_player(here: Path, name: str, script: str) -> None:
    player = here / "bin" / name
    player.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    player.chmod(0o755)


def chat(
    typed: str,
    speak: SpeakOptions,
    message: str | None = None,
    engine: ReadingEngine | None = None,
) -> tuple[int, str, str]:
    """Exit status, what went to stdout and to stderr."""

    async def start() -> ReadingEngine:
        return engine or SpeakingEngine()

    out, err = io.StringIO(), io.StringIO()
    options = ChatOptions(message, speak=speak)
    terminal = Terminal(io.StringIO(typed), out, err)
    status = converse(start, Config(), options, terminal)
    return status, out.getvalue(), err.getvalue()


# ---- files ------------------------------------------------------------------------------------


def test_each_answer_is_a_file(here: Path) -> None:
    (here / "answer-2.wav").write_bytes(b"of yesterday")
    engine = SpeakingEngine()
    status, out, err = chat("one\n/clear\ntwo\n", SpeakOptions("ben", plays=False), engine=engine)
    voiced = f"{SPEAKS}\nvoice='ben'"
    assert status == 0 and out == f"user: one{voiced}\nuser: two{voiced}\n"
    assert (here / "answer-1.wav").read_bytes() == file_of(sound_of("user:", f"one{voiced}"))
    assert (here / "answer-3.wav").read_bytes() == file_of(sound_of("user:", f"two{voiced}"))
    assert (here / "answer-2.wav").read_bytes() == b"of yesterday"
    assert err == "(answer-1.wav: 0.4 s)\n(forgotten)\n(answer-3.wav: 0.4 s)\n"
    assert engine.requests[0].voice == "ben" and engine.requests[0].speaks


def test_one_message_goes_where_it_is_told(here: Path) -> None:
    out = here / "said.wav"
    out.write_bytes(b"of yesterday")
    assert chat("", SpeakOptions(out=out, plays=False), "hi")[0] == 0
    assert out.read_bytes() == file_of(sound_of("user:", f"hi{SPEAKS}"))
    chat("hi\n", SpeakOptions(out=out, plays=False))
    assert (here / "said-1.wav").read_bytes() == out.read_bytes()
    chat("", SpeakOptions(plays=False), "hi")
    assert (here / "answer-1.wav").read_bytes() == out.read_bytes()


def test_an_answer_that_breaks_off_keeps_its_sound_and_is_not_played(here: Path) -> None:
    add_player(here, "aplay", f"echo played >> {here}/log")
    engine = SpeakingEngine(failing=WorkerLost("the engine's process died"))
    status, _, err = chat("a b c\n", SpeakOptions(), engine=engine)
    assert status == 1 and "process died" in err
    assert (here / "answer-1.wav").read_bytes() == file_of(sound_of("user:", "a"))
    assert not (here / "log").exists()


def test_a_voice_that_fails_is_told(here: Path) -> None:
    engine = SpeakingEngine()
    engine.fails_after = 1
    status, out, err = chat("a b\n", SpeakOptions(plays=False), engine=engine)
    assert status == 0 and out == f"user: a b{SPEAKS}\n"
    assert "the sound ends before the words" in err and "answer-1.wav: 0.2 s" in err
    engine.fails_after = 0
    assert "answer-" not in chat("a b\n", SpeakOptions(plays=False), engine=engine)[2]


def test_a_file_that_cannot_be_written_is_an_error(here: Path) -> None:
    status, _, err = chat("", SpeakOptions(out=here / "none" / "a.wav", plays=False), "hi")
    assert status == 1 and "a.wav: cannot be written: No such file" in err


def test_sound_in_pieces_is_one_file(here: Path) -> None:
    told: list[str] = []
    answers = SpokenAnswers(AnswerFiles(here / "x.wav"), False, told.append)
    for piece in np.split(sound_of("a", "b"), [1, 1, 5000]):
        answers.push(ChatAudio(piece))
    answers.end(is_whole=True)
    answers.end(is_whole=True)
    assert (here / "x-1.wav").read_bytes() == file_of(sound_of("a", "b"))
    assert told == [f"{here}/x-1.wav: 0.4 s"]
    named = SpokenAnswers(AnswerFiles(here / "bin", numbered=False), False, told.append)
    with pytest.raises(AgentError, match="bin: cannot be written: Is a directory"):
        named.push(ChatAudio(sound_of("a")))


# ---- players ----------------------------------------------------------------------------------


def test_answers_are_played_one_after_the_other(here: Path) -> None:
    add_player(here, "aplay", f'echo "$@" >> {here}/log')
    add_player(here, "ffplay", f"echo wrong >> {here}/log")
    status, _, err = chat("one\ntwo\n", SpeakOptions())
    assert status == 0 and "not played" not in err
    expected = [f"--quiet {here}/answer-{number}.wav" for number in (1, 2)]
    assert (here / "log").read_text("utf-8").splitlines() == expected


def test_who_wants_it_quiet_hears_nothing(here: Path) -> None:
    add_player(here, "aplay", f"echo played >> {here}/log")
    chat("one\n", SpeakOptions(plays=False))
    assert (here / "answer-1.wav").exists() and not (here / "log").exists()


@pytest.mark.parametrize(
    ("name", "script", "told"),
    [
        ("aplay", "echo tried >> log; echo no card >&2; exit 1", "aplay: no card"),
        ("paplay", "echo tried >> log; exit 3", "paplay: exit status 3"),
        ("ffplay", "echo tried >> log; echo audio open failed >&2", "ffplay: audio open failed"),
    ],
)
def test_a_player_that_does_not_play_is_asked_once(
    here: Path, name: str, script: str, told: str
) -> None:
    add_player(here, name, script)
    status, out, err = chat("one\n/clear\ntwo\n", SpeakOptions())
    assert status == 0 and out.count("user:") == 2
    assert err.count(f"(not played: {told})") == 1 == err.count("not played")
    assert (here / "log").read_text("utf-8") == "tried\n"
    assert (here / "answer-2.wav").exists()


def test_a_player_that_never_ends_is_ended(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_sound, "_SPARE_S", 0.0)
    add_player(here, "afplay", "while :; do :; done")
    assert "not played: afplay did not end in time" in chat("one\n", SpeakOptions())[2]


def test_no_player_is_told_once() -> None:
    err = chat("one\ntwo\n", SpeakOptions())[2]
    assert err.count("not played: there is no player here; looked for paplay") == 1


# ---- the command line -------------------------------------------------------------------------


def test_the_flags(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    engine = SpeakingEngine()

    async def start(config: Config) -> ReadingEngine:
        return engine

    monkeypatch.setattr(chat_command, "_start", start)
    flags = ["--speak", "--voice", "anna", "--out", "x.wav", "--quiet"]
    assert main(["chat", "--message", "hi", *flags]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"user: hi{SPEAKS}\nvoice='anna'\n"
    assert captured.err == "(x.wav: 0.4 s)\n" and Path("x.wav").is_file()
    assert main(["chat", "--message", "hi"]) == 0
    assert not engine.requests[-1].speaks
    assert main(["chat", "--message", "hi", "--speak", "--voice", "carla"]) == 1
    assert "no such voice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--voice", "anna"], "--voice is for answers that are spoken: add --speak"),
        (["--out", "a.wav"], "--out is for"),
        (["--quiet"], "--quiet is for"),
        (["--speak", "--out", "a.mp3"], "end its name in .wav"),
        (["--speak", "--out", "none/a.wav"], "there is no such folder"),
    ],
)
def test_flags_that_do_not_fit_end_it_before_the_engine_is_loaded(
    flags: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def start(config: Config) -> ReadingEngine:
        raise AssertionError("loaded")

    monkeypatch.setattr(chat_command, "_start", start)
    assert main(["chat", "--message", "hi", *flags]) == 2
    assert told in capsys.readouterr().err


def test_an_engine_without_a_voice_is_not_asked() -> None:
    class Mute(ReadingEngine):
        closed = False

        async def close(self) -> None:
            self.closed = True

    engine = Mute()
    with pytest.raises(RequestError, match="the reading engine cannot speak answers"):
        chat("", SpeakOptions(), "hi", engine)
    assert not engine.requests and engine.closed
