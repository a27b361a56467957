"""The documented sequences of server events, checked over a whole call or a stretch of it.

A response: created → output_item.added → conversation.item.added → content_part.added →
output_audio_buffer.started → transcript deltas → the closing chain → response.done → (playout)
output_audio_buffer.stopped or .cleared. A barge-in: cleared → response.done (unless done before)
→ conversation.item.truncated, with nothing in between. The user: speech_started → speech_stopped
→ committed → item.added → item.done.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Event = Mapping[str, Any]


class OrderError(AssertionError):
    """An event that the documented order does not allow where it stands."""


AUDIO_CHAIN = [
    "response.output_audio.done",
    "response.output_audio_transcript.done",
    "response.content_part.done",
    "response.output_item.done",
    "conversation.item.done",
    "response.done",
]
TEXT_CHAIN = ["response.output_text.done", *AUDIO_CHAIN[2:]]
OPENING = [
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
]
USER_CHAIN = [
    "input_audio_buffer.speech_started",
    "input_audio_buffer.speech_stopped",
    "input_audio_buffer.committed",
    "conversation.item.added",
    "conversation.item.done",
]
NEEDS_ITEM = (
    "conversation.item.done",
    "conversation.item.retrieved",
    "conversation.item.truncated",
    "conversation.item.deleted",
    "conversation.item.input_audio_transcription.",
)
DELTAS = ("response.output_audio_transcript.delta", "response.output_text.delta")


@dataclass
class _Response:
    id: str
    item_id: str = ""
    seen: list[str] = field(default_factory=list)
    text: str = ""
    status: str = "in_progress"
    audio: bool = False
    buffer: str = "empty"


def check_order(events: Iterable[Event]) -> None:
    """`OrderError` naming the first event that is out of place.

    Takes the events of a call from its start, as they came; events of `voice_agent.*` may stand
    anywhere, errors and answers to requests anywhere but inside a barge-in.
    """
    checker = _Checker()
    for number, event in enumerate(events):
        try:
            checker.take(event)
        except OrderError as error:
            raise OrderError(f"event {number}, {event['type']}: {error}") from None


def _require(condition: object, message: str) -> None:
    if not condition:
        raise OrderError(message)


class _Checker:
    def __init__(self) -> None:
        self.event_ids: set[str] = set()
        self.items: set[str] = set()
        self.deleted: set[str] = set()  # their last events may follow; their ids are free again
        self.responses: dict[str, _Response] = {}
        self.by_item: dict[str, _Response] = {}
        self.tool_items: set[str] = set()
        self.open: _Response | None = None
        self.users: dict[str, list[str]] = {}
        self.speech_start_ms: dict[str, int] = {}
        self.expected: tuple[str, str] | None = None  # (type, response or item id)

    def take(self, event: Event) -> None:
        kind = event["type"]
        _require(event["event_id"] not in self.event_ids, "event_id used twice")
        self._check_session(kind)
        self.event_ids.add(event["event_id"])
        if kind.startswith("voice_agent."):
            return
        self._check_expected(event)
        if kind.startswith("response."):
            self._response_event(event)
        elif kind.startswith("output_audio_buffer."):
            self._buffer_event(event)
        elif kind.startswith(("conversation.item.", "input_audio_buffer.")):
            self._item_event(event)

    def _check_session(self, kind: str) -> None:
        first = not self.event_ids
        _require(first == (kind == "session.created"), "session.created comes first, and once")

    def _check_expected(self, event: Event) -> None:
        if self.expected is None:
            return
        kind, about = self.expected
        known = event.get("item_id") or event.get("response", {}).get("id")
        _require((event["type"], known) == (kind, about), f"expected {kind} of {about}")
        self.expected = None

    # ---- responses ----------------------------------------------------------------------------

    def _response_event(self, event: Event) -> None:
        kind = event["type"]
        if kind == "response.created":
            self._created(event["response"])
            return
        if kind == "response.done":
            self._done(event["response"])
            return
        response = self.open
        _require(response and event["response_id"] == response.id, "not the open response")
        assert response is not None
        if event["output_index"] > 0:
            self._tool_event(event)
        elif kind == "response.output_item.added":
            response.item_id = event["item"]["id"]
            self.by_item[response.item_id] = response
            self._step(response, kind)
        elif kind in DELTAS:
            self._delta(response, event)
        else:
            self._content_event(response, event)

    def _created(self, document: Mapping[str, Any]) -> None:
        _require(self.open is None, f"{self.open and self.open.id} is still open")
        _require(document["id"] not in self.responses, "response id used twice")
        _require(document["status"] == "in_progress", "created, yet not in progress")
        self.open = self.responses[document["id"]] = _Response(document["id"])
        self._step(self.open, "response.created")

    def _content_event(self, response: _Response, event: Event) -> None:
        kind = event["type"]
        if kind == "response.content_part.added":
            response.audio = event["part"]["type"] == "audio"
        if kind == "response.output_audio_transcript.done":
            _require(event["transcript"] == response.text, "transcript is not its deltas")
        if kind == "response.output_text.done":
            _require(event["text"] == response.text, "text is not its deltas")
        if kind == "response.content_part.done":
            part = event["part"]
            said = part["transcript"] if response.audio else part["text"]
            _require(said == response.text, "part is not its deltas")
        self._step(response, kind)

    def _delta(self, response: _Response, event: Event) -> None:
        _require(response.seen == OPENING, "delta outside of the open content part")
        spoken = event["type"] == "response.output_audio_transcript.delta"
        _require(spoken == response.audio, "delta does not fit the content part")
        if spoken:
            _require(response.buffer != "empty", "transcript before output_audio_buffer.started")
        response.text += event["delta"]

    def _step(self, response: _Response, kind: str) -> None:
        """The next link of the one chain; a response that says nothing has no content part."""
        chain = OPENING + (AUDIO_CHAIN if response.audio else TEXT_CHAIN)
        seen = [*response.seen, kind]
        silent = [*OPENING[:3], *AUDIO_CHAIN[3:]]
        fits = seen in (chain[: len(seen)], silent[: len(seen)])
        _require(fits, f"after {response.seen[-1:]}")
        if response.audio and kind == AUDIO_CHAIN[0]:
            _require(response.buffer != "empty", "audio done before it started")
        response.seen = seen

    def _done(self, document: Mapping[str, Any]) -> None:
        response = self.open
        _require(response and document["id"] == response.id, "not the open response")
        assert response is not None
        status = document["status"]
        _require(status != "in_progress", "done, yet in progress")
        if status in ("completed", "incomplete"):
            self._step(response, "response.done")
        details = document.get("status_details")
        _require((status == "completed") == (details is None), "status_details")
        outputs = [item["id"] for item in document["output"]]
        _require(outputs[:1] == [response.item_id], "output without its item")
        response.status = status
        self.open = None
        spoken = response.audio or "response.content_part.added" not in response.seen
        if response.buffer == "cleared" and spoken:
            self.expected = ("conversation.item.truncated", response.item_id)

    def _tool_event(self, event: Event) -> None:
        item_id = event.get("item_id") or event["item"]["id"]
        if event["type"] == "response.output_item.added":
            _require(event["item"]["status"] == "in_progress", "clients would call it twice")
            self.tool_items.add(item_id)
        _require(item_id in self.tool_items, "function call not announced")

    # ---- loudspeaker --------------------------------------------------------------------------

    def _buffer_event(self, event: Event) -> None:
        response = self.responses.get(event["response_id"])
        _require(response, "unknown response")
        assert response is not None
        what = event["type"].rpartition(".")[2]
        if what == "started":
            _require(response.buffer == "empty", f"buffer is {response.buffer}")
            _require(response.seen[3:4] or response.status != "in_progress", "no content part yet")
            playing = [r for r in self.responses.values() if r.buffer == "started"]
            _require(not playing, "another response is still playing")
        if what == "stopped":
            _require(response.buffer == "started", f"buffer is {response.buffer}")
            _require(response.status != "in_progress", "stopped before response.done")
        if what == "cleared":
            self._cleared(response)
        response.buffer = what

    def _cleared(self, response: _Response) -> None:
        """A barge-in leads at once to response.done and conversation.item.truncated."""
        if response is self.open:
            self.expected = ("response.done", response.id)
        elif response.buffer == "started":
            self.expected = ("conversation.item.truncated", response.item_id)

    # ---- items --------------------------------------------------------------------------------

    def _item_event(self, event: Event) -> None:
        kind = event["type"]
        item_id = event.get("item_id") or event.get("item", {}).get("id")
        if kind in USER_CHAIN and self._is_user(event, item_id):
            self._user_event(kind, item_id, event)
        if kind == "conversation.item.added":
            self._added(event, item_id)
        elif kind.startswith(NEEDS_ITEM):
            _require(item_id in self.items, "item was not added")
        if kind == "conversation.item.deleted":
            self.deleted.add(item_id)
        response = self.by_item.get(item_id)
        if kind == "conversation.item.done" and response and response is self.open:
            self._step(response, kind)

    def _added(self, event: Event, item_id: str) -> None:
        _require(item_id not in self.items - self.deleted, "item added twice")
        self.deleted.discard(item_id)
        before = event.get("previous_item_id")
        _require(before is None or before in self.items, "previous_item_id is unknown")
        self.items.add(item_id)
        response = self.by_item.get(item_id)
        if response is not None:
            self._step(response, "conversation.item.added")

    def _is_user(self, event: Event, item_id: str) -> bool:
        return event["type"].startswith("input_audio_buffer.") or item_id in self.users

    def _user_event(self, kind: str, item_id: str, event: Event) -> None:
        if kind == USER_CHAIN[0]:
            self.users[item_id] = []
            self.speech_start_ms[item_id] = event["audio_start_ms"]
        if kind == USER_CHAIN[2] and item_id not in self.users:
            self.users[item_id] = USER_CHAIN[:2]  # committed by the client: no detector spoke
        seen = self.users.get(item_id)
        _require(seen is not None, "speech was never started")
        assert seen is not None
        _require(kind == USER_CHAIN[len(seen)], f"after {seen[-1:]}")
        if kind == USER_CHAIN[1]:
            _require(event["audio_end_ms"] >= self.speech_start_ms[item_id], "ends before it began")
        self.users[item_id] = [*seen, kind]
