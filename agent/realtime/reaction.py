"""What the protocol wants done: events to send and actions for the session to carry out."""

from dataclasses import dataclass
from typing import TypeAlias

from agent.commands import Command
from agent.realtime.events import Event
from agent.realtime.question import Question
from agent.types import SessionSettings, SoundFormat


@dataclass(frozen=True, slots=True)
class CancelTurn:
    """Stop generating `turn`; what is already queued may play out."""

    turn: int


@dataclass(frozen=True, slots=True)
class ClearPlayout:
    """Drop all queued speech at once, then report it by `playout_cleared`."""


@dataclass(frozen=True, slots=True)
class CloseCall:
    """Hang up once the events of this reaction are sent."""

    reason: str


@dataclass(frozen=True, slots=True)
class PlayoutReport:
    """The client says that it plays the packet of `rtp_timestamp` (0 … 2³² − 1) when its own
    clock, whose origin only it knows, stands at `at_ms`. Both may be nonsense."""

    rtp_timestamp: int
    at_ms: float


@dataclass(frozen=True, slots=True)
class HeardReport:
    """The client says that it has played the first `heard_ms` of `turn`, clamped to what there is.

    It knows its loudspeaker; where sound comes inside of events nobody else does.
    """

    turn: int
    heard_ms: int


@dataclass(frozen=True, slots=True)
class RestoreSettings:
    """The engine refused an update: these settings hold (again), which the engine knows."""

    settings: SessionSettings


@dataclass(frozen=True, slots=True)
class AnswerAside:
    """Answer `question` for an out-of-band response; None: no more of that answer."""

    response_id: str
    question: Question | None


@dataclass(frozen=True, slots=True)
class HearAudio:
    """The user's sound as it came inside of an event."""

    data: bytes
    coding: SoundFormat


Action: TypeAlias = (
    Command
    | AnswerAside
    | CancelTurn
    | ClearPlayout
    | CloseCall
    | HearAudio
    | HeardReport
    | PlayoutReport
    | RestoreSettings
)
"""A `Command` is for the engine, all else for the session."""
NOT_FOR_THE_ENGINE = (
    AnswerAside,
    CancelTurn,
    ClearPlayout,
    CloseCall,
    HearAudio,
    HeardReport,
    PlayoutReport,
    RestoreSettings,
)


@dataclass(frozen=True, slots=True)
class Reaction:
    """What to tell the client, in order and ready for `json.dumps`, and what to do."""

    events: tuple[Event, ...] = ()
    actions: tuple[Action, ...] = ()
    is_refusal: bool = False
    """Whether a client event was not obeyed; then the events say why, and nothing has changed."""
    is_aside: bool = False
    """Whether the events are of an out-of-band response, which is no part of the conversation."""
