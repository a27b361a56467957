"""`voice-agent chat`: a turn-based conversation in the terminal, files attached by their paths.

Answers go to stdout and everything else to stderr, so that a pipe holds answers alone. With
`--speak` they are heard too: each becomes a WAV, which is played when it is complete. The event
loop runs in a thread of its own, since the engine is to be attended to while the user types.
"""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from agent.chat_loop import Interrupts, Run, background
from agent.chat_terminal import Terminal
from agent.errors import AgentError, ConfigError, UnsupportedError

if TYPE_CHECKING:
    from agent.chat_sound import SpokenAnswers
    from agent.chat_types import ChatAudio, ChatDelta, ChatPart
    from agent.config import Config
    from agent.interfaces import Engine
    from agent.media.files import MediaLimits
    from agent.media.talk import Note, Talk

    _Parts: TypeAlias = tuple[ChatPart, ...]

_EXIT_FAILED = 1
_LEAVE = ("exit", "quit", "/exit", "/quit")
_CLEAR = "/clear"
_HELP = "/help"
_HINT = (
    "Name files in a line to attach them. /help lists the commands, Ctrl-C stops an answer, "
    "exit or Ctrl-D ends."
)
_ANSWERS = Path("answer.wav")
_CHATTERS = (
    "What chats is the model: --engine minicpm-o --model PATH_OR_ID "
    "(`voice-agent doctor` says what it lacks)."
)


@dataclass(frozen=True, slots=True)
class SpeakOptions:
    """How answers are heard: in `voice`, kept in `out` (None: where they are usually kept)."""

    voice: str = ""
    out: Path | None = None
    plays: bool = True


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What the command line says about the conversation. `message` "-" is all of stdin.

    `speak` None: answers are words alone.
    """

    message: str | None = None
    system: str = ""
    thinking: bool = False
    max_tokens: int | None = None
    speak: SpeakOptions | None = None


def add_to(commands: Any, add_settings: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add the subcommand to argparse's `commands`; `add_settings` adds --config and --set."""
    chat = commands.add_parser("chat", help="chat in the terminal, with files by their paths")
    chat.add_argument("--engine", metavar="NAME", help="what answers (engine.name)")
    chat.add_argument(
        "--model",
        metavar="PATH_OR_ID",
        help="the checkpoint: a folder or owner/name (model.source)",
    )
    chat.add_argument(
        "--message", metavar="TEXT", help="ask this and end; - reads all of stdin as one message"
    )
    chat.add_argument("--system", metavar="TEXT", default="", help="the system message")
    chat.add_argument("--thinking", action="store_true", help="reason before answering")
    chat.add_argument("--max-tokens", metavar="N", type=_positive, help="longest answer")
    _add_speech(chat)
    add_settings(chat)
    chat.set_defaults(command=_run)


def _add_speech(chat: argparse.ArgumentParser) -> None:
    chat.add_argument(
        "--speak",
        action="store_true",
        help="speak the answers: each is written to a WAV, and played if there is a player "
        "(paplay, pw-play, aplay, afplay or ffplay)",
    )
    chat.add_argument("--voice", metavar="ID", help="the voice that speaks, of `voices list`")
    chat.add_argument(
        "--out",
        metavar="FILE.wav",
        type=Path,
        help="where an answer is written: with --message this file, else this name with numbers "
        "(answer-1.wav, answer-2.wav, ...; no file is overwritten by a numbered one)",
    )
    chat.add_argument("--quiet", action="store_true", help="write spoken answers, play none")


def _speak_options(arguments: argparse.Namespace) -> SpeakOptions | None:
    if arguments.speak:
        _check_out(arguments.out)
        return SpeakOptions(arguments.voice or "", arguments.out, not arguments.quiet)
    for name in ("voice", "out", "quiet"):
        if getattr(arguments, name):
            raise ConfigError(f"--{name} is for answers that are spoken: add --speak")
    return None


def _check_out(out: Path | None) -> None:
    """Before the engine is loaded, which may take minutes."""
    if out is not None and out.suffix.lower() != ".wav":
        raise ConfigError(f"--out {out}: what is written is a WAV; end its name in .wav")
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise ConfigError(f"--out {out}: there is no such folder, or this is one")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _run(arguments: argparse.Namespace) -> int:
    config = _config(arguments)
    _start_logging(config.logging.level)
    options = ChatOptions(
        arguments.message,
        arguments.system,
        arguments.thinking,
        arguments.max_tokens,
        _speak_options(arguments),
    )
    terminal = Terminal(sys.stdin, sys.stdout, sys.stderr)
    return converse(lambda: _start(config), config, options, terminal)


def _config(arguments: argparse.Namespace) -> "Config":
    from agent.config import load_config

    overrides = list(arguments.set)
    for key, value in (("engine.name", arguments.engine), ("model.source", arguments.model)):
        if value is not None:
            overrides.append(f"{key}={value}")
    return load_config(arguments.config, os.environ, overrides)


def _start_logging(level: str) -> None:
    """Errors alone, also of the engine's process: warnings are about calls. All for `debug`."""
    shown = logging.DEBUG if level == "debug" else logging.ERROR
    logging.basicConfig(level=shown, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


async def _start(config: "Config") -> "Engine":
    started = await importlib.import_module("agent.api.loading").start(config)
    engine: Engine = started.engine
    if not engine.abilities.chat:
        await engine.close()
        raise UnsupportedError(
            f"the {engine.name} engine cannot chat; it was taken because: "
            f"{started.choice.reason}. {_CHATTERS}"
        )
    return engine


# ---- the conversation -------------------------------------------------------------------------


def converse(
    start: Callable[[], Awaitable["Engine"]],
    config: "Config",
    options: ChatOptions,
    terminal: Terminal,
) -> int:
    """Talk until the user leaves; the exit status: 1 when one of several lines failed.

    `start` gives the engine, which is closed in the end.
    """
    with background() as run:
        message: _Parts | None = None
        if options.message is not None:
            # Before the engine is loaded, which may take minutes.
            try:
                message = run(_message(config, options.message, terminal))
            except AgentError as error:
                terminal.complain(error)
                return _EXIT_FAILED
        engine = run(_awaited(start))
        try:
            _check_voice(engine, options)
            hearing = _Hearing(terminal, _answers(options, terminal))
            talk = _talk(engine, config, options)
            return _Conversation(talk, hearing, run).hold(message)
        except BrokenPipeError:
            # Nobody reads any more; the interpreter would complain when it flushes at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return _EXIT_FAILED
        finally:
            run(engine.close())


async def _awaited(start: Callable[[], Awaitable["Engine"]]) -> "Engine":
    return await start()


async def _message(config: "Config", message: str, terminal: Terminal) -> "_Parts":
    from agent.media.talk import attach

    text = terminal.everything() if message == "-" else message
    return await attach(text, _limits(config), terminal.show)


def _check_voice(engine: "Engine", options: ChatOptions) -> None:
    if options.speak is not None and not engine.abilities.text_to_speech:
        raise UnsupportedError(f"the {engine.name} engine cannot speak answers; leave --speak out")


def _answers(options: ChatOptions, terminal: Terminal) -> "SpokenAnswers | None":
    if options.speak is None:
        return None
    from agent.chat_sound import AnswerFiles, SpokenAnswers

    is_named = options.message is not None and options.speak.out is not None
    files = AnswerFiles(options.speak.out or _ANSWERS, numbered=not is_named)
    return SpokenAnswers(files, options.speak.plays, terminal.note)


def _talk(engine: "Engine", config: "Config", options: ChatOptions) -> "Talk":
    from agent.chat_types import ChatMessage, ChatRequest, ChatText
    from agent.media.talk import Talk

    system = ChatMessage("system", (ChatText(options.system),))
    usual = ChatRequest(
        (system,) if options.system else (),
        options.max_tokens,
        thinking=options.thinking,
        speaks=options.speak is not None,
        voice=options.speak.voice if options.speak else "",
    )
    return Talk(engine, usual, _limits(config))


def _limits(config: "Config") -> "MediaLimits":
    from agent.media.files import MediaLimits

    chat = config.chat
    return MediaLimits(
        file_bytes=chat.max_item_bytes,
        picture_pixels=chat.max_picture_pixels,
        sound_s=chat.max_sound_s,
        video_s=chat.max_video_s,
    )


class _Hearing:
    """Where an answer goes: its words to the terminal, its sound to a file."""

    def __init__(self, terminal: Terminal, answers: "SpokenAnswers | None") -> None:
        self.terminal = terminal
        self._answers = answers

    def show(self, said: "ChatDelta | ChatAudio | Note") -> None:
        """A piece of the answer, or a note."""
        from agent.chat_types import ChatAudio

        if not isinstance(said, ChatAudio):
            self.terminal.show(said)
        elif self._answers is not None:
            self._answers.push(said)

    def end(self, *, is_whole: bool) -> None:
        """The answer is over; one that is not whole was stopped, or failed."""
        self.terminal.end_answer()
        if self._answers is not None:
            self._answers.end(is_whole=is_whole)


class _Conversation:
    """Lines in, answers out."""

    def __init__(self, talk: "Talk", hearing: _Hearing, run: Run) -> None:
        self._talk = talk
        self._hearing = hearing
        self._terminal = hearing.terminal
        self._run = run
        self._interrupts = Interrupts()
        self._has_failed = False

    def hold(self, message: "_Parts | None") -> int:
        """Ask `message` alone, or line after line; the exit status."""
        if message is not None:
            self._turn(self._talk.ask(message, self._hearing.show))
            return _EXIT_FAILED if self._has_failed else 0
        if self._terminal.is_interactive:
            with self._interrupts.taken_over():
                self._lines()
        else:
            self._lines()
        return _EXIT_FAILED if self._has_failed and not self._terminal.is_interactive else 0

    def _lines(self) -> None:
        if self._terminal.is_interactive:
            self._terminal.note(_HINT)
        while True:
            try:
                with self._interrupts.heard():
                    line = self._terminal.ask().strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                if not self._terminal.is_interactive:
                    raise
                self._terminal.note("exit or Ctrl-D ends")
                continue
            if line.lower() in _LEAVE:
                return
            if line == _CLEAR:
                self._talk.clear()
                self._terminal.note("forgotten")
            elif line == _HELP:
                self._terminal.show_help()
            elif line:
                self._turn(self._talk.say(line, self._hearing.show))

    def _turn(self, asking: Coroutine[Any, Any, None]) -> None:
        try:
            self._answer(asking)
        except KeyboardInterrupt:
            if not self._terminal.is_interactive:
                raise
            self._terminal.note("stopped")
        except AgentError as error:
            self._has_failed = True
            self._terminal.complain(error)

    def _answer(self, asking: Coroutine[Any, Any, None]) -> None:
        is_whole = False
        try:
            with self._interrupts.heard():
                self._run(asking)
            is_whole = True
        finally:
            self._hearing.end(is_whole=is_whole)
