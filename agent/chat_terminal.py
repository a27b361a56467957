"""The terminal of `voice-agent chat`: answers to stdout, everything else to stderr."""

import contextlib
import importlib
from typing import TYPE_CHECKING, TextIO

from agent.errors import AgentError

if TYPE_CHECKING:
    from agent.chat_types import ChatDelta
    from agent.media.talk import Note

_COMMANDS = """\
/clear   forget what was said
/help    list the commands
/quit    end, as do /exit, exit, quit and Ctrl-D
Ctrl-C   stop an answer
A file that a line names, as in `describe ~/dog.jpg`, is attached to it: pictures, sound, video."""
_INVISIBLE = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])
"""Control characters, less tabulator and line feed: an answer shall not steer the terminal."""


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

    def show(self, said: "ChatDelta | Note") -> None:
        """A piece of the answer, of the reasoning before it, or a note."""
        from agent.chat_types import ChatDelta

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
