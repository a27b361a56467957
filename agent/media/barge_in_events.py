"""What the barge-in policy tells: to fall silent, to go on, to give up, and who speaks."""

from dataclasses import dataclass
from typing import TypeAlias

from agent.types import SpeechEnded, SpeechStarted


@dataclass(frozen=True, slots=True)
class DuckDue:
    """The agent must fall silent and hold its place, at sample `at` (16 kHz) of the microphone."""

    at: int


@dataclass(frozen=True, slots=True)
class ResumeDue:
    """It was nothing: the agent goes on where it ducked."""

    at: int


@dataclass(frozen=True, slots=True)
class BargeInDue:
    """The agent must give up what it is saying, at sample `at` (16 kHz) of the microphone."""

    at: int


BargeInEvent: TypeAlias = SpeechStarted | SpeechEnded | DuckDue | ResumeDue | BargeInDue
