"""The documented sequences of server events, checked over a whole call or a stretch of it.

A response: created → output_item.added → conversation.item.added → content_part.added →
output_audio_buffer.started → transcript deltas → the closing chain → response.done → (playout)
output_audio_buffer.stopped or .cleared. However a response ends, what it has opened is closed; one
that is cut off may end before its content part or its sound began. A barge-in: cleared → the
closing chain with response.done (unless done before) → conversation.item.truncated, with nothing in
between. The user: speech_started → speech_stopped → committed → item.added → item.done. Of a
response that only calls a function there is no message.

Responses out of band stand anywhere (`aside_order`), and their items in no conversation.

On a WebSocket there is no output buffer: `response.output_audio.delta` stands within the open
content part, and a response is done when its last sample was sent. Where a client asked for
vLLM-Omni's API, `response.speak` stands in an audio part, once and before anything of it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.rig.aside_order import AsideOrder, AsideOrderError

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
TOOL_CHAIN = [
    "response.output_item.added",
    "conversation.item.added",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.output_item.done",
    "conversation.item.done",
]
MESSAGE_START = OPENING[1:]
DELTAS = ("response.output_audio_transcript.delta", "response.output_text.delta")
SOUND = "response.output_audio.delta"
Wire = Literal["webrtc", "websocket"]


@dataclass
class _Output:
    """An item of a response."""

    id: str
    is_call: bool
    seen: list[str] = field(default_factory=list)
    text: str = ""
    audio: bool = False
    begun: bool = False
    """Whether any of it was told, or that it is spoken."""


@dataclass
class _Response:
    id: str
    outputs: list[_Output] = field(default_factory=list)
    status: str = "in_progress"
    buffer: str = "empty"
    is_cut: bool = False

    @property
    def message(self) -> _Output | None:
        return next((output for output in self.outputs if not output.is_call), None)


def check_order(events: Iterable[Event], wire: Wire = "webrtc") -> None:
    """`OrderError` naming the first event that is out of place.

    Takes the events of a call from its start, as they came; events of `voice_agent.*` may stand
    anywhere, errors and answers to requests anywhere but inside a barge-in.
    """
    checker = _Checker(wire)
    for number, event in enumerate(events):
        try:
            checker.take(event)
        except (OrderError, AsideOrderError) as error:
            raise OrderError(f"event {number}, {event['type']}: {error}") from None


def _require(condition: object, message: str) -> None:
    if not condition:
        raise OrderError(message)


class _Checker:
    def __init__(self, wire: Wire) -> None:
        self.spoken_by_events = wire == "websocket"
        self.event_ids: set[str] = set()
        self.items: set[str] = set()
        self.deleted: set[str] = set()  # their last events may follow; their ids are free again
        self.responses: dict[str, _Response] = {}
        self.by_item: dict[str, _Output] = {}
        self.open: _Response | None = None
        self.asides = AsideOrder()
        self.users: dict[str, list[str]] = {}
        self.speech_start_ms: dict[str, int] = {}
        self.expected: tuple[str, str] | None = None  # (type, response or item id)
        self.closing: _Response | None = None  # the buffer was cleared: it ends, and nothing else

    def take(self, event: Event) -> None:
        kind = event["type"]
        _require(event["event_id"] not in self.event_ids, "event_id used twice")
        self._check_session(kind)
        self.event_ids.add(event["event_id"])
        if kind.startswith("voice_agent.") or self.asides.take(event):
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
        known = event.get("item_id") or event.get("response", event.get("item", {})).get("id")
        if self.closing is not None:
            message = self.closing.message
            ends = event["type"] in (*AUDIO_CHAIN, *TEXT_CHAIN)
            ends = ends and known in (self.closing.id, message and message.id)
            _require(ends, f"expected response.done of {self.closing.id}")
            return
        if self.expected is None:
            return
        kind, about = self.expected
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
        if kind == "response.listen":
            return
        response = self.open
        _require(response and event["response_id"] == response.id, "not the open response")
        assert response is not None
        if kind == "response.output_item.added":
            self._announced(response, event)
        output = self._output(response, event)
        if kind in DELTAS:
            self._delta(response, output, event)
        elif kind == SOUND:
            self._sound(output)
        elif kind == "response.speak":
            self._speaks(output)
        else:
            self._content_event(response, output, event)

    def _created(self, document: Mapping[str, Any]) -> None:
        _require(document["conversation_id"], "it is in no conversation")
        _require(self.open is None, f"{self.open and self.open.id} is still open")
        _require(document["id"] not in self.responses, "response id used twice")
        _require(document["status"] == "in_progress", "created, yet not in progress")
        self.open = self.responses[document["id"]] = _Response(document["id"])

    def _announced(self, response: _Response, event: Event) -> None:
        item = event["item"]
        is_call = item["type"] == "function_call"
        _require(item["status"] == "in_progress", "clients would call it twice")
        _require(is_call or response.message is None, "a second message")
        output = self.by_item[item["id"]] = _Output(item["id"], is_call)
        response.outputs.append(output)
        self.expected = ("conversation.item.added", output.id)

    def _output(self, response: _Response, event: Event) -> _Output:
        """The item that an event is about, which is at its index."""
        index, item_id = event["output_index"], event.get("item_id") or event["item"]["id"]
        _require(index < len(response.outputs), "output item was not added")
        output = response.outputs[index]
        _require(output.id == item_id, "another item stands at that output_index")
        return output

    def _content_event(self, response: _Response, output: _Output, event: Event) -> None:
        kind = event["type"]
        if kind == "response.content_part.added":
            output.audio = event["part"]["type"] == "audio"
        if kind == "response.output_audio_transcript.done":
            _require(event["transcript"] == output.text, "transcript is not its deltas")
        if kind == "response.output_text.done":
            _require(event["text"] == output.text, "text is not its deltas")
        if kind == "response.content_part.done":
            part = event["part"]
            said = part["transcript"] if output.audio else part["text"]
            _require(said == output.text, "part is not its deltas")
        if output.audio and kind == AUDIO_CHAIN[0] and not self.spoken_by_events:
            response.is_cut = response.buffer == "empty"
        self._step(output, kind)

    def _delta(self, response: _Response, output: _Output, event: Event) -> None:
        _require(output.seen == MESSAGE_START, "delta outside of the open content part")
        spoken = event["type"] == "response.output_audio_transcript.delta"
        _require(spoken == output.audio, "delta does not fit the content part")
        if spoken and not self.spoken_by_events:
            _require(response.buffer != "empty", "transcript before output_audio_buffer.started")
        output.text += event["delta"]
        output.begun = True

    def _sound(self, output: _Output) -> None:
        _require(self.spoken_by_events, "sound has a track of its own here")
        _require(output.audio, "sound in a content part that is none")
        _require(output.seen == MESSAGE_START, "sound outside of the open content part")
        output.begun = True

    def _speaks(self, output: _Output) -> None:
        _require(output.audio and output.seen == MESSAGE_START, "not in an open audio part")
        _require(not output.begun, "it speaks already")
        output.begun = True

    def _step(self, output: _Output, kind: str) -> None:
        """The next link of the one chain."""
        end = (AUDIO_CHAIN if output.audio else TEXT_CHAIN)[:-1]
        seen = [*output.seen, kind]
        chain = TOOL_CHAIN if output.is_call else MESSAGE_START + end
        if not output.is_call and MESSAGE_START[2] not in seen:
            chain = MESSAGE_START[:2] + end[-2:]
        _require(seen == chain[: len(seen)], f"after {output.seen[-1:]}")
        output.seen = seen

    def _done(self, document: Mapping[str, Any]) -> None:
        response = self.open
        _require(response and document["id"] == response.id, "not the open response")
        assert response is not None
        status = document["status"]
        _require(status != "in_progress", "done, yet in progress")
        unfinished = [o.id for o in response.outputs if o.seen[-1] != "conversation.item.done"]
        _require(not unfinished, f"done before {unfinished}")
        if status in ("completed", "incomplete"):
            _require(not response.is_cut, "audio done before it started")
            part = response.message is None or MESSAGE_START[2] in response.message.seen
            _require(part, "a message without content")
        details = document.get("status_details")
        _require((status == "completed") == (details is None), "status_details")
        outputs = [item["id"] for item in document["output"]]
        _require(outputs == [output.id for output in response.outputs], "output is not its items")
        response.status = status
        self.open = self.closing = None
        message = response.message
        spoken = message and (message.audio or MESSAGE_START[2] not in message.seen)
        if response.buffer == "cleared" and spoken and message:
            self.expected = ("conversation.item.truncated", message.id)

    # ---- loudspeaker --------------------------------------------------------------------------

    def _buffer_event(self, event: Event) -> None:
        _require(not self.spoken_by_events, "there is no output buffer on a WebSocket")
        response = self.responses.get(event["response_id"])
        _require(response, "unknown response")
        assert response is not None
        what = event["type"].rpartition(".")[2]
        if what == "started":
            _require(response.buffer == "empty", f"buffer is {response.buffer}")
            begun = response.message and MESSAGE_START[2] in response.message.seen
            _require(begun or response.status != "in_progress", "no content part yet")
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
            self.closing = response
        elif response.buffer == "started" and response.message:
            self.expected = ("conversation.item.truncated", response.message.id)

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
            if not self.open or self.by_item.get(item_id) not in self.open.outputs:
                self.by_item.pop(item_id, None)  # clients make it anew with what was heard
        output = self.by_item.get(item_id)
        if kind == "conversation.item.done" and output:
            self._step(output, kind)

    def _added(self, event: Event, item_id: str) -> None:
        _require(item_id not in self.items - self.deleted, "item added twice")
        _require(item_id not in self.asides.items, "an item out of band joins the conversation")
        self.deleted.discard(item_id)
        before = event.get("previous_item_id")
        _require(before is None or before in self.items, "previous_item_id is unknown")
        self.items.add(item_id)
        output = self.by_item.get(item_id)
        if output is not None:
            self._step(output, "conversation.item.added")

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
