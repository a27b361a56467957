"""What crosses between the server and the process of an engine: frozen data only.

Conversations and chats go by number; a `ticket` is what an answer is asked for by.
"""

from dataclasses import dataclass
from typing import TypeAlias

from agent.chat_types import AnswerRequest, ChatEvent
from agent.commands import Command
from agent.errors import AgentError
from agent.types import (
    Abilities,
    EngineEvent,
    Load,
    SessionSettings,
    SpeechEnded,
    SpeechStarted,
    Unit,
)

# ---- to the engine ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Open:
    """Start conversation `number`; answered."""

    ticket: int
    number: int
    settings: SessionSettings


@dataclass(frozen=True, slots=True)
class Chat:
    """Start chat `number`; answered."""

    ticket: int
    number: int
    request: AnswerRequest


@dataclass(frozen=True, slots=True)
class Push:
    """What conversation `number` hears next."""

    number: int
    item: Unit | SpeechStarted | SpeechEnded


@dataclass(frozen=True, slots=True)
class Control:
    """Carry out a command; answered."""

    ticket: int
    number: int
    command: Command


@dataclass(frozen=True, slots=True)
class Finish:
    """Conversation or chat `number` is over."""

    number: int


@dataclass(frozen=True, slots=True)
class Stop:
    """End the process."""


ToEngine: TypeAlias = Open | Chat | Push | Control | Finish | Stop


# ---- from the engine --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Progress:
    """So many bytes of all of them are loaded."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The engine is loaded and listens."""

    name: str
    abilities: Abilities
    load: Load


@dataclass(frozen=True, slots=True)
class Unable:
    """The engine cannot be loaded; the process ends."""

    error: AgentError


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of a ticket: nothing went wrong, or `error`."""

    ticket: int
    error: AgentError | None


@dataclass(frozen=True, slots=True)
class Said:
    """What one piece of work made the engine say, to whom, in order."""

    events: tuple[tuple[int, EngineEvent | ChatEvent], ...]


@dataclass(frozen=True, slots=True)
class Pulse:
    """The thread that does the work is alive, and so full is the engine."""

    load: Load


FromEngine: TypeAlias = Progress | Ready | Unable | Answered | Said | Pulse
Message: TypeAlias = ToEngine | FromEngine
