"""Who an engine works for: calls and chats, and what it needs of either."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Protocol

from agent.chat_types import ChatDone, FinishReason
from agent.commands import Command
from agent.duplex.answer import AnswerPiece
from agent.duplex.call_parts import CallVoices
from agent.duplex.engine_loop import Task
from agent.duplex.job import Job
from agent.duplex.voice_line import VoiceLine
from agent.duplex.work import Work
from agent.scheduler import Shown
from agent.types import SessionSettings, SpeechEnded, SpeechStarted, Unit


class Call(Protocol):
    """What the engine needs of a call, whichever way it takes turns."""

    def push(self, item: Unit | SpeechStarted | SpeechEnded) -> None: ...

    def control(self, command: Command) -> None: ...

    def goes_on_under(self, settings: SessionSettings) -> bool: ...

    @property
    def has_work(self) -> bool: ...

    @property
    def voices(self) -> CallVoices: ...

    @property
    def sees(self) -> bool: ...

    def ease(self, shown: Shown) -> None: ...

    def next_job(self) -> Job | None: ...

    def give_up(self, then: Callable[[], None]) -> None: ...

    def park(self) -> None: ...

    def unpark(self) -> None: ...

    def close(self) -> None: ...


class Asked(Protocol):
    """A chat, or a text that is read aloud."""

    @property
    def prompt_tokens(self) -> int: ...

    @property
    def is_voiced(self) -> bool: ...

    def begin(self) -> Generator[Work, None, None]: ...

    def advance(self) -> Generator[Work, None, AnswerPiece]: ...

    def close(self) -> None: ...


@dataclass(slots=True)
class Line:
    """One call: how it takes turns now, what it says, what it is at."""

    call: Call
    voice: VoiceLine
    settings: SessionSettings
    voices: CallVoices
    """Of the call that is to begin anew; `call` knows what it has itself."""
    since_s: float
    task: Task | None = None
    paused_s: float | None = None
    parked: bool = False
    stale: bool = False
    """While it was parked it was told to begin anew: it does when it is resumed."""

    @property
    def has_work(self) -> bool:
        """Whether it is at something, or has something to begin."""
        return self.task is not None or (not self.parked and self.call.has_work)


@dataclass(slots=True)
class Asking:
    """One chat or reading, and what it is at."""

    chat: Asked
    since_s: float
    task: Task | None = None
    begun: bool = False
    answer_tokens: int = 0
    speech_tokens: int = 0
    has_called: bool = False
    over: bool = False

    def done(self, finish: FinishReason) -> ChatDone:
        """What is told at the end."""
        chat = self.chat
        reason: FinishReason = "tool_calls" if self.has_called and finish == "stop" else finish
        return ChatDone(
            reason, chat.prompt_tokens, self.answer_tokens, self.speech_tokens, chat.is_voiced
        )
