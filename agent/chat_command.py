"""`voice-agent chat`: a turn-based conversation in the terminal, files attached by their paths.

Answers go to stdout and everything else to stderr, so that a pipe holds answers alone. The event
loop runs in a thread of its own, since the engine is to be attended to while the user types.
"""

import argparse
import asyncio
import contextlib
import importlib
import logging
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO, TypeAlias, TypeVar

from agent.errors import AgentError, UnsupportedError

if TYPE_CHECKING:
    from agent.chat_types import ChatAudio, ChatDelta, ChatPart
    from agent.config import Config
    from agent.interfaces import Engine
    from agent.media.files import MediaLimits
    from agent.media.talk import Note, Talk

    _Parts: TypeAlias = tuple[ChatPart, ...]

Result = TypeVar("Result")

_EXIT_FAILED = 1
_LEAVE = ("exit", "quit", "/exit", "/quit")
_CLEAR = "/clear"
_STOP_S = 10.0
_HELP = "/help"
_HINT = (
    "Name files in a line to attach them. /help lists the commands, Ctrl-C stops an answer, "
    "exit or Ctrl-D ends."
)
_COMMANDS = """\
/clear   forget what was said
/help    list the commands
/quit    end, as do /exit, exit, quit and Ctrl-D
Ctrl-C   stop an answer
A file that a line names, as in `describe ~/dog.jpg`, is attached to it: pictures, sound, video."""
_INVISIBLE = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])
"""Control characters, less tabulator and line feed: an answer shall not steer the terminal."""


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What the command line says about the conversation. `message` "-" is all of stdin."""

    message: str | None = None
    system: str = ""
    thinking: bool = False
    max_tokens: int | None = None


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
    add_settings(chat)
    chat.set_defaults(command=_run)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _run(arguments: argparse.Namespace) -> int:
    config = _config(arguments)
    _start_logging(config.logging.level)
    options = ChatOptions(
        arguments.message, arguments.system, arguments.thinking, arguments.max_tokens
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
            f"the {engine.name} engine cannot chat; it was taken because: {started.choice.reason}"
        )
    return engine


# ---- the terminal -----------------------------------------------------------------------------


class Terminal:
    """Where lines come from and answers go to."""

    def __init__(self, stdin: TextIO, stdout: TextIO, stderr: TextIO) -> None:
        self.is_interactive = stdin.isatty() and stdout.isatty()
        self._stdin = stdin
        self._stdout = stdout
        self._stderr = stderr
        self._is_reasoning = False
        self._is_answering = False
        for stream in (stdin, stdout, stderr):
            # What cannot be written or read is no reason to end.
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")
        if self.is_interactive:
            with contextlib.suppress(ImportError):
                importlib.import_module("readline")  # lets `input` be edited

    def ask(self) -> str:
        """The user's next line; EOFError after the last."""
        if self.is_interactive:
            return input("> ")
        line = self._stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")

    def everything(self) -> str:
        """All that is still to be read."""
        return self._stdin.read()

    def show(self, said: "ChatDelta | ChatAudio | Note") -> None:
        """A piece of the answer, of the reasoning before it, or a note; sound is not shown."""
        from agent.chat_types import ChatAudio, ChatDelta

        if isinstance(said, ChatAudio):
            return
        if not isinstance(said, ChatDelta):
            self.note(said.text)
            return
        if self._is_reasoning and not said.reasoning:
            self._write(self._stderr, "\n")
        self._is_reasoning = said.reasoning
        self._is_answering |= not said.reasoning
        text = said.text.translate(_INVISIBLE)
        self._write(self._stderr if said.reasoning else self._stdout, text)

    def end_answer(self) -> None:
        """The answer is over, or was given up."""
        if self._is_reasoning:
            self._write(self._stderr, "\n")
        if self._is_answering:
            self._write(self._stdout, "\n")
        self._is_reasoning = self._is_answering = False

    def note(self, text: str) -> None:
        """A line about the conversation."""
        self.end_answer()
        self._write(self._stderr, f"({text.translate(_INVISIBLE)})\n")

    def show_help(self) -> None:
        """What can be typed besides questions."""
        self.end_answer()
        self._write(self._stderr, f"{_COMMANDS}\n")

    def complain(self, error: AgentError) -> None:
        """A line about what went wrong."""
        self.end_answer()
        self._write(self._stderr, f"voice-agent: {str(error).translate(_INVISIBLE)}\n")

    def _write(self, stream: TextIO, text: str) -> None:
        stream.write(text)
        stream.flush()


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
    with _background() as run:
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
            return _Conversation(_talk(engine, config, options), terminal, run).hold(message)
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


def _talk(engine: "Engine", config: "Config", options: ChatOptions) -> "Talk":
    from agent.chat_types import ChatMessage, ChatRequest, ChatText
    from agent.media.talk import Talk

    system = ChatMessage("system", (ChatText(options.system),))
    usual = ChatRequest(
        (system,) if options.system else (), options.max_tokens, thinking=options.thinking
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


class _Conversation:
    """Lines in, answers out."""

    def __init__(self, talk: "Talk", terminal: Terminal, run: "_Run") -> None:
        self._talk = talk
        self._terminal = terminal
        self._run = run
        self._has_failed = False

    def hold(self, message: "_Parts | None") -> int:
        """Ask `message` alone, or line after line; the exit status."""
        if message is not None:
            self._turn(self._talk.ask(message, self._terminal.show))
            return _EXIT_FAILED if self._has_failed else 0
        self._lines()
        return _EXIT_FAILED if self._has_failed and not self._terminal.is_interactive else 0

    def _lines(self) -> None:
        if self._terminal.is_interactive:
            self._terminal.note(_HINT)
        while True:
            try:
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
                self._turn(self._talk.say(line, self._terminal.show))

    def _turn(self, asking: Coroutine[Any, Any, None]) -> None:
        try:
            self._run(asking)
        except KeyboardInterrupt:
            if not self._terminal.is_interactive:
                raise
            self._terminal.note("stopped")
        except AgentError as error:
            self._has_failed = True
            self._terminal.complain(error)
        else:
            self._terminal.end_answer()


# ---- the event loop ---------------------------------------------------------------------------


class _Run:
    """Runs coroutines on a loop in another thread, one at a time; Ctrl-C cancels the one."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def __call__(self, work: Coroutine[Any, Any, Result]) -> Result:
        """What `work` returns; KeyboardInterrupt once it has ended, if Ctrl-C did that."""
        outcome: Future[Result] = Future()
        begun: list[asyncio.Task[Result]] = []

        def begin() -> None:
            begun.append(self._loop.create_task(work))
            begun[0].add_done_callback(lambda task: _hand_over(task, outcome))

        def give_up() -> None:
            if begun:
                begun[0].cancel()
            else:
                work.close()
                _cancel(outcome)

        try:
            self._loop.call_soon_threadsafe(begin)
            return outcome.result()
        except KeyboardInterrupt:
            # It may have come before `begin` was even called; the two keep their order.
            self._loop.call_soon_threadsafe(give_up)
            wait((outcome,), _STOP_S)
            raise
        except CancelledError as error:
            raise KeyboardInterrupt from error


def _hand_over(task: "asyncio.Task[Result]", outcome: "Future[Result]") -> None:
    if task.cancelled():
        _cancel(outcome)
    elif error := task.exception():
        outcome.set_exception(error)
    else:
        outcome.set_result(task.result())


def _cancel(outcome: "Future[Result]") -> None:
    outcome.cancel()
    # Only now do those who wait for it hear of it.
    outcome.set_running_or_notify_cancel()


@contextlib.contextmanager
def _background() -> Iterator[_Run]:
    ready: Future[asyncio.AbstractEventLoop] = Future()
    over = asyncio.Event()

    async def stay() -> None:
        ready.set_result(asyncio.get_running_loop())
        await over.wait()

    # Not `daemon`: what the engine has started ends in order.
    thread = threading.Thread(target=lambda: asyncio.run(stay()), name="chat")
    thread.start()
    loop = ready.result()
    try:
        yield _Run(loop)
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
