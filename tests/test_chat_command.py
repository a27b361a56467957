"""`voice-agent chat`: lines in, answers out, files, commands, Ctrl-C, exit status."""

import contextlib
import io
import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agent import chat_command
from agent.__main__ import main
from agent.chat_command import ChatOptions, converse
from agent.chat_loop import Interrupts
from agent.chat_terminal import Terminal
from agent.config import Config
from agent.errors import WorkerLost
from tests.rig.attached import RED, picture
from tests.rig.reading_engine import ReadingEngine

ROOT = Path(__file__).resolve().parent.parent
PLAIN = ChatOptions()


class Closing(ReadingEngine):
    """Knows whether it was closed."""

    started = closed = False

    async def close(self) -> None:
        self.closed = True


def chat(
    typed: str, options: ChatOptions = PLAIN, engine: Closing | None = None
) -> tuple[int, str, str]:
    """Exit status, what went to stdout and to stderr."""
    reading = engine or Closing()

    async def start() -> ReadingEngine:
        reading.started = True
        return reading

    out, err = io.StringIO(), io.StringIO()
    status = converse(start, Config(), options, Terminal(io.StringIO(typed), out, err))
    assert reading.closed == reading.started
    return status, out.getvalue(), err.getvalue()


def test_one_message_a_line() -> None:
    status, out, err = chat("hello\n\n  and you  \n")
    assert status == 0 and err == ""
    assert out == "user: hello\nuser: hello\nassistant: user: hello\nuser: and you\n"


@pytest.mark.parametrize("word", ["exit", "quit", "QUIT", "/exit", "/quit"])
def test_words_that_end_it(word: str) -> None:
    assert chat(f"one\n{word}\ntwo\n")[1] == "user: one\n"


def test_what_was_said_can_be_forgotten() -> None:
    _, out, err = chat("one\n/clear\ntwo\n")
    assert out == "user: one\nuser: two\n" and err == "(forgotten)\n"


def test_a_file_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "my dog.png").write_bytes(picture(RED))
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    typed = f"see '{tmp_path}/my dog.png'\nsee {tmp_path}/bad.png\nstill there?\n"
    status, out, err = chat(typed)
    assert out.startswith("user: see + [red 40x30]\n") and "still there?" in out
    assert "(attached my dog.png (picture))" in err
    assert "voice-agent: bad.png: the picture is damaged" in err and status == 1


def test_one_message_from_the_command_line() -> None:
    options = ChatOptions("what is\nthis", system="be brief", thinking=True, max_tokens=40)
    status, out, err = chat("not read\n", options)
    assert status == 0
    assert out == "system: be brief\nuser: what is\nthis\nmax_tokens=40\nthinking=True\n"
    assert err == "Let me see.\n"


def test_all_of_stdin_as_one_message() -> None:
    assert chat("line one\nline two\n", ChatOptions("-"))[1] == "user: line one\nline two\n"
    status, out, err = chat("", ChatOptions("-"))
    assert (status, out, err) == (1, "", "voice-agent: there is nothing to say\n")


def test_a_message_is_read_with_its_files_before_the_engine_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "dog.png").write_bytes(picture(RED))
    for name, told in (("none.png", "there is no file"), ("bad.png", "the picture is damaged")):
        for options in (ChatOptions(f"see {tmp_path}/{name}"), ChatOptions("-")):
            engine = Closing()
            status, out, err = chat(f"see {tmp_path}/{name}", options, engine)
            assert status == 1 and out == "" and told in err
            assert not engine.started
    status, out, err = chat("", ChatOptions(f"see {tmp_path}/dog.png"))
    assert (status, out) == (0, "user: see + [red 40x30]\n")
    assert err == "(attached dog.png (picture))\n"


def test_help_lists_the_commands_and_asks_nobody() -> None:
    engine = Closing()
    status, out, err = chat("/help\n", engine=engine)
    assert status == 0 and out == "" and not engine.requests
    for command in ("/clear", "/help", "/quit", "Ctrl-C"):
        assert any(line.startswith(command) for line in err.splitlines())


QUIET = """
import logging, sys
from agent import chat_command
from agent.__main__ import main
from tests.rig.reading_engine import ReadingEngine

async def start(config):
    logging.getLogger("agent.engines").warning("no vocoder is installed")
    logging.getLogger("agent.fleet").error("the process was lost")
    print(logging.getLogger().getEffectiveLevel(), file=sys.stderr)
    return ReadingEngine()

chat_command._start = start
sys.exit(main(["chat", "--message", "hi", *sys.argv[1:]]))
"""


@pytest.mark.parametrize(("more", "level"), [([], 40), (["--set", "logging.level=debug"], 10)])
def test_warnings_that_concern_calls_are_kept_out_of_a_chat(more: list[str], level: int) -> None:
    command = [sys.executable, "-c", QUIET, *more]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and result.stdout == "user: hi\n", result.stderr
    assert ("vocoder" in result.stderr) == (level == 10)
    assert "the process was lost" in result.stderr and f"{level}\n" in result.stderr


def test_an_engine_that_fails_is_said_and_the_next_line_asked() -> None:
    engine = Closing(failing=WorkerLost("the engine's process died"))
    status, out, err = chat("a b c\nd e f\n", engine=engine)
    assert (
        status == 1
        and out == "user: a\nuser: d\n"
        and err.count("voice-agent: the engine's process died") == 2
    )
    assert len(engine.requests) == 2


def test_an_answer_does_not_steer_the_terminal() -> None:
    assert chat("a\x1b[2Jb\tc\x07\n")[1] == "user: a[2Jb\tc\n"


def test_an_engine_that_cannot_chat(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--engine", "echo", "--message", "hello"]) == 1
    said = capsys.readouterr().err
    assert "the echo engine cannot chat" in said
    assert "--engine minicpm-o --model" in said and "voice-agent doctor" in said, "what to do"


def test_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Config] = []

    async def start(config: Config) -> ReadingEngine:
        seen.append(config)
        return ReadingEngine()

    monkeypatch.setattr(chat_command, "_start", start)
    arguments = ["--engine", "minicpm-o", "--model", "/models/x", "--set", "chat.max_sound_s=5"]
    assert main(["chat", *arguments, "--message", "hi", "--max-tokens", "7"]) == 0
    assert capsys.readouterr().out == "user: hi\nmax_tokens=7\n"
    [config] = seen
    assert (config.engine.name, config.model.source) == ("minicpm-o", "/models/x")
    assert config.chat.max_sound_s == 5
    for wrong in ("0", "x"):
        with pytest.raises(SystemExit) as stopped:
            main(["chat", "--max-tokens", wrong])
        assert stopped.value.code == 2
    assert main(["chat", "--set", "chat.max_sounds=-1"]) == 2


ON_A_TERMINAL = """
import asyncio, fcntl, signal, sys, termios
from agent.chat_command import ChatOptions, converse
from agent.chat_loop import Interrupts
from agent.chat_terminal import Terminal
from agent.config import Config
from tests.rig.reading_engine import ReadingEngine

# Whoever is started in the background ignores Ctrl-C from the beginning.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The terminal sends its signals to those whose terminal it is.
fcntl.ioctl(0, termios.TIOCSCTTY, 0)

class Held(ReadingEngine):
    async def chat(self, request):
        async for event in super().chat(request):
            yield event
            if "hold" in repr(request.messages[-1]):
                await asyncio.Event().wait()

async def start():
    return Held()

terminal = Terminal(sys.stdin, sys.stdout, sys.stderr)
sys.exit(converse(start, Config(), ChatOptions(), terminal))
"""


def test_ctrl_c_stops_an_answer_and_ctrl_d_ends() -> None:
    mine, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL],
        cwd=ROOT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "dumb"},
        start_new_session=True,
    )
    os.close(theirs)
    try:
        _await(mine, "Ctrl-D ends.)", "> ")
        os.write(mine, b"hold it\n")
        _await(mine, "user:")
        _interrupt(mine, "(stopped)")
        _interrupt(mine, "exit or Ctrl-D ends")
        os.write(mine, b"next\n")
        # The word that had come by then is remembered.
        _await(mine, "user: hold it", "assistant: user:", "user: next", "> ")
        os.write(mine, b"\x04")
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(mine)


def test_ctrl_c_is_heard_once_where_something_goes_on_and_nowhere_else() -> None:
    before, interrupts = signal.getsignal(signal.SIGINT), Interrupts()
    with interrupts.taken_over():
        signal.raise_signal(signal.SIGINT)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt), interrupts.heard():
                signal.raise_signal(signal.SIGINT)
        with contextlib.suppress(KeyboardInterrupt), interrupts.heard():
            try:
                signal.raise_signal(signal.SIGINT)
            finally:
                signal.raise_signal(signal.SIGINT)  # the second, while the first is dealt with
                dealt_with = True
        signal.raise_signal(signal.SIGINT)
    assert dealt_with
    assert signal.getsignal(signal.SIGINT) is before


def _interrupt(descriptor: int, word: str) -> None:
    """Press Ctrl-C, and again and again, until `word` comes, and a prompt behind it.

    One that comes in the moment in which a line begins to be read, or an answer to be waited for,
    Python itself does not hear of before the next key.
    """
    text = ""
    for _ in range(15):
        os.write(descriptor, b"\x03" * 3)
        while select.select([descriptor], [], [], 2)[0]:
            text += os.read(descriptor, 4096).decode()
            if "> " in text.partition(word)[2]:
                return
    raise AssertionError(f"waited for {word!r}, got {text!r}")


def _await(descriptor: int, *words: str) -> None:
    """Read until all of `words` came, one after the other."""
    text = ""
    for word in words:
        while word not in text:
            ready, _, _ = select.select([descriptor], [], [], 30)
            assert ready, f"waited for {word!r}, got {text!r}"
            text += os.read(descriptor, 4096).decode()
        text = text.split(word, 1)[1]
