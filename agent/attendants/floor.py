"""Who has the floor in a call: whether the agent may be asked to speak now."""

from collections.abc import Mapping
from typing import Any

from agent.commands import Command, ForceListen, Pause, Resume
from agent.types import SpeechEnded, SpeechStarted, Unit


class Floor:
    """Follows what client and engine are told."""

    def __init__(self) -> None:
        self.turns = 0
        """How often the agent has begun to say something."""
        self.user_speaks = False
        self._responses = 0
        self._active = ""
        self._listens_only = False
        self._pausing = False
        self._paused = False

    @property
    def is_free(self) -> bool:
        """Whether nobody speaks, and the agent may."""
        held = self.user_speaks or self._listens_only or self._pausing or self._paused
        return not (held or self._active)

    @property
    def responses(self) -> int:
        """How many were begun."""
        return self._responses

    def told_client(self, event: Mapping[str, Any]) -> None:
        """The next server event."""
        match event["type"]:
            case "input_audio_buffer.speech_started":
                self.user_speaks = True
            case "input_audio_buffer.speech_stopped":
                self.user_speaks = False
            case "response.created":
                self._responses += 1
                self._active = event["response"]["id"]
            case "response.done":
                self._active = ""
            case "response.output_item.added":
                self.turns += event["item"]["type"] == "message"
            case "voice_agent.state":
                self._paused = event["state"] == "paused"
                self._pausing = self._pausing and not self._paused
            case "error":
                self._pausing = False  # it may have been refused

    def told_engine(self, item: Unit | SpeechStarted | SpeechEnded | Command) -> None:
        """The next thing that the engine is told."""
        match item:
            case Pause():
                self._pausing = True
            case Resume():
                self._pausing = self._paused = False
            case ForceListen(on=on):
                self._listens_only = on
