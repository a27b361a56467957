"""One response: one turn of the agent, or one function call of its own, as the protocol tells it.

The chain of events is fixed (a client builds its history from it); this class knows what each
link looks like, `Responses` knows when it is due.
"""

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Literal, TypeAlias

from agent.commands import Respond
from agent.realtime.events import Event, new_id, server_event, usage_object
from agent.realtime.items import Item, SpokenItem, ToolCallItem, added, done
from agent.realtime.settings import speech_output, token_limit
from agent.types import SessionSettings, TurnEndReason, Usage, Wire

Status: TypeAlias = Literal["in_progress", "completed", "cancelled", "incomplete", "failed"]
StopReason: TypeAlias = Literal["turn_detected", "client_cancelled", "max_output_tokens"]
Buffer: TypeAlias = Literal["empty", "playing", "stopped"]
_COUNTS = tuple(one.name for one in fields(Usage))


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an out-of-band response failed, as its `status_details` tell it."""

    type: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client asked of the response to come; nothing where it comes by itself."""

    respond: Respond = field(default_factory=Respond)
    metadata: Mapping[str, str] = field(default_factory=dict)

    def applied(self, settings: SessionSettings) -> SessionSettings:
        """The settings that hold for it, as far as the response object tells them."""
        modalities, limit = self.respond.output_modalities, self.respond.max_output_tokens
        return replace(
            settings,
            output_modalities=settings.output_modalities if modalities is None else modalities,
            max_output_tokens=settings.max_output_tokens if limit is None else limit,
        )


@dataclass(slots=True)
class Response:
    """A turn under way or over; `buffer` says whether its sound is still to come, on, or over.

    Its message joins the conversation with the first word or sound: a turn that only calls a
    function has none.
    """

    turn: int
    item: SpokenItem
    settings: SessionSettings
    conversation_id: str | None
    """None: out of band."""
    wire: Wire = "webrtc"
    metadata: Mapping[str, str] = field(default_factory=dict)
    withdrawn: bool = False
    """Whether the client cancelled it before it began."""
    id: str = field(default_factory=lambda: new_id("resp"))
    status: Status = "in_progress"
    stop_reason: StopReason | None = None
    error_code: str | None = None
    failure: Failure | None = None
    """Instead of `error_code`, where the call goes on."""
    ended: TurnEndReason | None = None
    usage: Usage = field(default_factory=Usage)
    buffer: Buffer = "empty"
    drained: bool = False
    told_words: bool = False
    """Whether the client was told any of its words: they wait for the first sample."""
    lost_ms: int = 0
    """Sound up to here was dropped before its turn to play."""
    cut_by: StopReason = "turn_detected"
    """Who is to blame, should the engine not get to the end of it."""
    previous_id: str | None = None
    output: list[Item] = field(default_factory=list)
    """Its items, each at its `output_index`."""

    @property
    def closed(self) -> bool:
        """Whether `response.done` was sent."""
        return self.status != "in_progress"

    @property
    def has_message(self) -> bool:
        """Whether its message was announced."""
        return self.item in self.output

    @property
    def live(self) -> bool:
        """Whether text goes out as it comes: text at once, speech from its first sample on."""
        return self.item.shape == "text" or self.buffer != "empty"

    @property
    def waits(self) -> bool:
        """Whether all is generated and only playout is behind.

        Where sound has a track of its own, its first sample must have been played; where it comes
        inside of events, its last one must have been sent.
        """
        if self.closed or self.ended is None or self.item.shape == "text":
            return False
        return not self.drained if self.wire == "websocket" else self.buffer == "empty"

    @property
    def pending_sound(self) -> bool:
        """Whether sound was generated that has not been played to its end or dropped."""
        return self.buffer == "playing" or (self.buffer == "empty" and self.item.generated_ms > 0)

    def took(self, usage: Usage | None) -> None:
        """So much by now, if anybody knows: never less than before, also of what was forgotten."""
        if usage is not None:
            known = self.usage
            most = (max(getattr(known, name), getattr(usage, name)) for name in _COUNTS)
            self.usage = Usage(*most)

    # ---- the links of the chain ---------------------------------------------------------------

    def created(self) -> Event:
        """`response.created`."""
        return server_event("response.created", response=self.document())

    def message_added(self, previous_id: str | None) -> list[Event]:
        """The message joins the conversation; its content part follows when its type is known."""
        self.previous_id = previous_id
        self.output.append(self.item)
        return [
            self._output_item("response.output_item.added", self.item),
            added(self.item, previous_id),
        ]

    def part_added(self) -> Event:
        """`response.content_part.added`."""
        return self._content("response.content_part.added", part=self.item.part(""))

    def delta(self, text: str) -> Event:
        """A piece of text."""
        self.told_words = True
        name = "text" if self.item.shape == "text" else "audio_transcript"
        return self._content(f"response.output_{name}.delta", delta=text)

    def audio_delta(self, data: bytes) -> Event:
        """A piece of sound, in the session's output format."""
        delta = base64.b64encode(data).decode("ascii")
        return self._content("response.output_audio.delta", delta=delta)

    def buffered(self, what: Literal["started", "stopped", "cleared"]) -> list[Event]:
        """`output_audio_buffer.*`, where there is such a buffer: not inside of events."""
        if self.wire == "websocket":
            return []
        return [server_event(f"output_audio_buffer.{what}", response_id=self.id)]

    def closing(self) -> list[Event]:
        """From the end of the content to `response.done`; call `finish` first.

        The same however it ended: clients settle a message by `response.output_item.done`, and stop
        waiting for its sound by `response.output_audio.done`.
        """
        events: list[Event] = []
        if self.has_message:
            events += self._content_closing() if self.item.shape != "undecided" else []
            events.append(self._output_item("response.output_item.done", self.item))
            events.append(done(self.item, self.previous_id))
        return [*events, self.finished()]

    def finished(self) -> Event:
        """`response.done`."""
        return server_event("response.done", response=self.document())

    def truncated(self, end_ms: int) -> list[Event]:
        """`conversation.item.truncated`, by the server itself.

        Not where sound comes inside of events: there the client alone knows what was heard, and
        truncates itself.
        """
        if self.wire == "websocket" or not self.has_message:
            return []
        event = server_event(
            "conversation.item.truncated",
            item_id=self.item.id,
            content_index=0,
            audio_end_ms=end_ms,
        )
        return [event]

    def tool_call(self, item: ToolCallItem, previous_id: str | None) -> list[Event]:
        """A whole function call: stock clients act on `output_item.done` with its arguments."""
        index = len(self.output)
        self.output.append(item)
        where = {
            "response_id": self.id,
            "item_id": item.id,
            "output_index": index,
            "call_id": item.call_id,
        }
        opening = [
            self._output_item("response.output_item.added", item),
            added(item, previous_id),
        ]
        item.status = "completed"
        text = item.arguments
        arguments = "response.function_call_arguments"
        return [
            *opening,
            server_event(f"{arguments}.delta", delta=text, **where),
            server_event(f"{arguments}.done", arguments=text, name=item.name, **where),
            self._output_item("response.output_item.done", item),
            done(item, previous_id),
        ]

    def silence(self) -> None:
        """Its sound is over: what was heard of it, only a cut can tell from now on."""
        self.buffer = "stopped"
        self.item.sounded_ms = None

    def finish(self, status: Status, reason: StopReason | None = None) -> None:
        """Settle how it ended; a second call changes nothing."""
        if self.closed:
            return
        self.status = status
        self.stop_reason = reason
        if self.item.status == "in_progress":
            self.item.status = "completed" if status == "completed" else "incomplete"

    def document(self) -> dict[str, object]:
        """The response object; `output` and `usage` come when it is done."""
        told: dict[str, object] = {
            "id": self.id,
            "object": "realtime.response",
            "status": self.status,
            "status_details": None,
            "output": [],
            "conversation_id": self.conversation_id,
            "output_modalities": list(self.settings.output_modalities),
            "max_output_tokens": token_limit(self.settings),
            "audio": {"output": speech_output(self.settings)},
        }
        if self.metadata:
            told["metadata"] = dict(self.metadata)
        if not self.closed:
            return told
        told["output"] = [item.content() for item in self.output]
        told["usage"] = usage_object(self.usage)
        if self.status != "completed":
            told["status_details"] = self._status_details()
        return told

    def _status_details(self) -> dict[str, object]:
        details: dict[str, object] = {"type": self.status}
        if self.stop_reason is not None:
            details["reason"] = self.stop_reason
        if self.status == "failed" and self.failure is not None:
            details["error"] = asdict(self.failure)
        elif self.status == "failed":
            message = "The engine failed; the call is over."
            code = self.error_code or "engine_error"
            details["error"] = {"type": "server_error", "code": code, "message": message}
        return details

    def _content_closing(self) -> list[Event]:
        said = self.item.said() if self.told_words else ""
        if self.item.shape == "text":
            texts = [self._content("response.output_text.done", text=said)]
        else:
            texts = [
                self._content("response.output_audio.done"),
                self._content("response.output_audio_transcript.done", transcript=said),
            ]
        return [*texts, self._content("response.content_part.done", part=self.item.part(said))]

    def _content(self, type_: str, **fields: object) -> Event:
        return server_event(
            type_,
            response_id=self.id,
            item_id=self.item.id,
            output_index=self.output.index(self.item),
            content_index=0,
            **fields,
        )

    def _output_item(self, type_: str, item: Item) -> Event:
        return server_event(
            type_, response_id=self.id, output_index=self.output.index(item), item=item.content()
        )
