"""One response: one turn of the agent as the protocol tells it.

The chain of events is fixed (a client builds its history from it); this class knows what each
link looks like, `Responses` knows when it is due.
"""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from agent.realtime.events import Event, new_id, no_usage, server_event
from agent.realtime.items import Item, SpokenItem, ToolCallItem, added, done
from agent.realtime.settings import speech_output
from agent.types import SessionSettings, TurnEndReason

Status: TypeAlias = Literal["in_progress", "completed", "cancelled", "incomplete", "failed"]
StopReason: TypeAlias = Literal["turn_detected", "client_cancelled", "max_output_tokens"]
Buffer: TypeAlias = Literal["empty", "playing", "stopped"]


@dataclass(slots=True)
class Response:
    """A turn under way or over; `buffer` says whether its sound is still to come, on, or over."""

    turn: int
    item: SpokenItem
    settings: SessionSettings
    conversation_id: str
    metadata: dict[str, str] = field(default_factory=dict)
    id: str = field(default_factory=lambda: new_id("resp"))
    status: Status = "in_progress"
    stop_reason: StopReason | None = None
    error_code: str | None = None
    ended: TurnEndReason | None = None
    buffer: Buffer = "empty"
    drained: bool = False
    lost_ms: int = 0
    """Sound up to here was dropped before its turn to play."""
    previous_id: str | None = None
    tools: list[ToolCallItem] = field(default_factory=list)

    @property
    def closed(self) -> bool:
        """Whether `response.done` was sent."""
        return self.status != "in_progress"

    @property
    def live(self) -> bool:
        """Whether text goes out as it comes: text at once, speech from its first sample on."""
        return self.item.shape == "text" or self.buffer != "empty"

    @property
    def waits_for_sound(self) -> bool:
        """Whether all is generated and only the first sample has yet to be played."""
        return not self.closed and self.ended is not None and not self.live

    @property
    def pending_sound(self) -> bool:
        """Whether sound was generated that has not been played to its end or dropped."""
        return self.buffer == "playing" or (self.buffer == "empty" and self.item.generated_ms > 0)

    # ---- the links of the chain ---------------------------------------------------------------

    def opening(self) -> list[Event]:
        """`response.created` up to the item; the content part follows when its type is known."""
        return [
            server_event("response.created", response=self.document()),
            self._output_item("response.output_item.added", 0, self.item),
            added(self.item, self.previous_id),
        ]

    def part_added(self) -> Event:
        """`response.content_part.added`."""
        return self._content("response.content_part.added", part=self.item.part(""))

    def delta(self, text: str) -> Event:
        """A piece of text."""
        name = "text" if self.item.shape == "text" else "audio_transcript"
        return self._content(f"response.output_{name}.delta", delta=text)

    def buffered(self, what: Literal["started", "stopped", "cleared"]) -> Event:
        """`output_audio_buffer.*`."""
        return server_event(f"output_audio_buffer.{what}", response_id=self.id)

    def closing(self) -> list[Event]:
        """From the end of the content to `response.done`; call `finish` first."""
        events = self._content_closing() if self.item.shape != "undecided" else []
        events.append(self._output_item("response.output_item.done", 0, self.item))
        events.append(done(self.item, self.previous_id))
        events.append(self.finished())
        return events

    def finished(self) -> Event:
        """`response.done`."""
        return server_event("response.done", response=self.document())

    def truncated(self, end_ms: int) -> Event:
        """`conversation.item.truncated`."""
        return server_event(
            "conversation.item.truncated",
            item_id=self.item.id,
            content_index=0,
            audio_end_ms=end_ms,
        )

    def tool_call(self, item: ToolCallItem, previous_id: str | None) -> list[Event]:
        """A whole function call: stock clients act on `output_item.done` with its arguments."""
        self.tools.append(item)
        index = len(self.tools)
        where = {
            "response_id": self.id,
            "item_id": item.id,
            "output_index": index,
            "call_id": item.call_id,
        }
        opening = [
            self._output_item("response.output_item.added", index, item),
            added(item, previous_id),
        ]
        item.status = "completed"
        text = item.arguments
        arguments = "response.function_call_arguments"
        return [
            *opening,
            server_event(f"{arguments}.delta", delta=text, **where),
            server_event(f"{arguments}.done", arguments=text, name=item.name, **where),
            self._output_item("response.output_item.done", index, item),
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
            "output": [],
            "conversation_id": self.conversation_id,
            "output_modalities": list(self.settings.output_modalities),
            "audio": {"output": speech_output(self.settings)},
        }
        if self.metadata:
            told["metadata"] = dict(self.metadata)
        if not self.closed:
            return told
        output: list[Item] = [self.item, *self.tools]
        told["output"] = [item.content() for item in output]
        told["usage"] = no_usage()
        if self.status != "completed":
            told["status_details"] = self._status_details()
        return told

    def _status_details(self) -> dict[str, object]:
        details: dict[str, object] = {"type": self.status}
        if self.stop_reason is not None:
            details["reason"] = self.stop_reason
        if self.status == "failed":
            details["error"] = {"type": "server_error", "code": self.error_code or "engine_error"}
        return details

    def _content_closing(self) -> list[Event]:
        said = self.item.said()
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
            output_index=0,
            content_index=0,
            **fields,
        )

    def _output_item(self, type_: str, index: int, item: Item) -> Event:
        return server_event(type_, response_id=self.id, output_index=index, item=item.content())
