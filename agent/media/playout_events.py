"""What playout tells those who follow it."""

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class PlayoutStarted:
    """The first sample of `turn` was pulled."""

    turn: int


@dataclass(frozen=True, slots=True)
class PlayoutDrained:
    """The last sample of `turn`, which had been ended, was pulled; or it had none at all."""

    turn: int


@dataclass(frozen=True, slots=True)
class Flushed:
    """Cut off: `turn`, of which `played_ms` had been pulled (the fade-out not counted).

    `unheard` are the turns that waited behind it.
    """

    turn: int
    played_ms: int
    unheard: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Ducked:
    """Silent for now: `turn` is held at its millisecond `at_ms`."""

    turn: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class Resumed:
    """`turn` goes on at its millisecond `at_ms`."""

    turn: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class SentSpan:
    """Samples `start` … `start + samples` of `turn` are those from `position` on in all that was
    ever pulled (24 kHz).

    The spans of a turn join without gap or overlap. A stretch that is faded out and in again
    counts where it comes back, so the spans add up to what `played_ms` says.
    """

    position: int
    turn: int
    start: int
    samples: int


PlayoutEvent: TypeAlias = PlayoutStarted | PlayoutDrained
