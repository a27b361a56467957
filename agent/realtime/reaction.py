"""What the protocol wants done: events to send and actions for the session to carry out."""

from dataclasses import dataclass
from typing import TypeAlias

from agent.realtime.events import Event
from agent.types import Command


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


Action: TypeAlias = Command | CancelTurn | ClearPlayout | CloseCall


@dataclass(frozen=True, slots=True)
class Reaction:
    """What to tell the client, in order and ready for `json.dumps`, and what to do."""

    events: tuple[Event, ...] = ()
    actions: tuple[Action, ...] = ()
