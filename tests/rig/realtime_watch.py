"""A call under watch: every event that it emits is checked to the letter as it comes."""

import json
from typing import Any

import numpy as np

from agent.realtime import Action, Allowance, Limits, Reaction, RealtimeCall
from agent.types import (
    SPEECH_RATE_HZ,
    Abilities,
    EngineEvent,
    SessionSettings,
    SpeechAudio,
    TextDelta,
    TurnEnded,
    TurnStarted,
    Wire,
)
from tests.rig.realtime_schema import check_event, check_order

ABLE = Abilities(duplex=True, speech=True, typed_text=True)


class Watched:
    """Drives a `RealtimeCall`; `events` and `actions` hold all that came out of it so far."""

    def __init__(
        self,
        *,
        abilities: Abilities = ABLE,
        settings: SessionSettings | None = None,
        limits: Limits | None = None,
        wire: Wire = "webrtc",
        allowance: Allowance = tuple,
        is_omni: bool = False,
    ) -> None:
        settings = settings or SessionSettings(model="echo")
        self.wire = wire
        self.call = RealtimeCall(
            "rtc_test", settings, abilities, limits or Limits(), wire, allowance=allowance
        )
        self.is_omni = is_omni
        if is_omni:
            self.call.use_omni()
        self.events: list[dict[str, Any]] = []
        self.actions: list[Action] = []
        self._generated: dict[int, int] = {}
        self.take(self.call.open())

    def take(self, reaction: Reaction) -> list[dict[str, Any]]:
        """Check and keep what a method of the call returned."""
        events = [check_event(event, is_omni=self.is_omni) for event in reaction.events]
        self.events += events
        self.actions += reaction.actions
        return events

    def send(self, kind: str, **fields: object) -> list[dict[str, Any]]:
        """A client event; returns what it leads to."""
        return self.take(self.call.receive(json.dumps({"type": kind, **fields})))

    def engine(self, *events: EngineEvent) -> list[dict[str, Any]]:
        """What the engine says; returns what it leads to."""
        return [told for event in events for told in self.take(self.call.engine(event))]

    def start(self, turn: int) -> list[dict[str, Any]]:
        """The engine starts a turn."""
        return self.engine(TurnStarted(turn))

    def text(self, turn: int, text: str) -> list[dict[str, Any]]:
        """The engine says a piece of text."""
        return self.engine(TextDelta(0, turn, text))

    def sound(self, turn: int, ms: int) -> list[dict[str, Any]]:
        """The engine makes `ms` milliseconds of sound."""
        start = self._generated.get(turn, 0)
        samples = np.zeros(ms * SPEECH_RATE_HZ // 1000, np.float32)
        self._generated[turn] = start + len(samples)
        return self.engine(SpeechAudio(turn, 0, start, samples))

    def end(self, turn: int, reason: Any = "completed") -> list[dict[str, Any]]:
        """The engine has generated all of a turn."""
        return self.engine(TurnEnded(turn, reason))

    def speak(self, turn: int, *pieces: tuple[str, int]) -> None:
        """A turn is started and generated piece by piece (text, ms), being played meanwhile."""
        self.start(turn)
        for number, (text, ms) in enumerate(pieces):
            self.text(turn, text)
            self.sound(turn, ms)
            if number == 0:
                self.take(self.call.playout_started(turn))

    def spoken(self, turn: int, *pieces: tuple[str, int]) -> None:
        """The same to the end of generation; the sound is still being played."""
        self.speak(turn, *pieces)
        self.end(turn)

    def sent(self, turn: int, data: bytes = b"\x01\x02") -> list[str]:
        """Sound of a turn goes out inside of an event; the types of what the client is told."""
        return kinds(self.take(self.call.speech_sent(turn, data)))

    def drained(self, turn: int) -> list[str]:
        """All of a turn was played, or sent."""
        return kinds(self.take(self.call.playout_drained(turn)))

    def user_says(self, start: int = 16_000, end: int = 40_000) -> str:
        """The user speaks; the id of the item that it becomes."""
        self.take(self.call.speech_started(start))
        self.take(self.call.speech_ended(end))
        item_id: str = self.last("input_audio_buffer.committed")["item_id"]
        return item_id

    def retrieve(self, item_id: str) -> dict[str, Any]:
        """An item, as the client retrieves it."""
        (retrieved,) = self.send("conversation.item.retrieve", item_id=item_id)
        item: dict[str, Any] = retrieved["item"]
        return item

    def last(self, kind: str) -> dict[str, Any]:
        """The newest event of a type."""
        return next(event for event in reversed(self.events) if event["type"] == kind)

    def error(self) -> dict[str, Any]:
        """The body of the newest `error`."""
        body: dict[str, Any] = self.last("error")["error"]
        return body

    def refused(self, kind: str, **fields: object) -> tuple[str | None, str | None]:
        """Send what must be refused, with all else unchanged; code and param of the error."""
        settings, told, actions = self.call.settings, len(self.events), list(self.actions)
        (error,) = self.send(kind, event_id="client_7", **fields)
        assert error["type"] == "error"
        assert error["error"]["type"] == "invalid_request_error"
        assert error["error"]["event_id"] == "client_7"
        now = (self.call.settings, len(self.events), self.actions)
        assert now == (settings, told + 1, actions)
        return error["error"].get("code"), error["error"].get("param")

    def heard(self) -> object:
        """The words of the agent's newest item that were heard."""
        item_id = self.last("response.output_item.added")["item"]["id"]
        (part,) = self.retrieve(item_id)["content"]
        return part["transcript"]

    def finish(self) -> None:
        """The whole call was in the documented order."""
        check_order(self.events, self.wire)


def message(text: str, **fields: object) -> dict[str, object]:
    """A typed message by the user."""
    content = [{"type": "input_text", "text": text}]
    return {"type": "message", "role": "user", "content": content, **fields}


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """The types, without our extension."""
    return [event["type"] for event in events if not event["type"].startswith("voice_agent.")]
