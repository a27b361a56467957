"""The conversation's items, and for speech: which words were heard.

Each piece of the agent's text is kept with the milliseconds of sound that its turn had when the
piece came: where the piece starts to be audible. Cutting the sound at `t` keeps the words that had
sounded in full by then (`heard_words`).
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, TypeAlias

from agent.errors import RequestError
from agent.realtime.events import Event, server_event
from agent.realtime.heard_words import words_before
from agent.realtime.limits import Limits
from agent.types import Role

ItemStatus: TypeAlias = Literal["in_progress", "completed", "incomplete"]
Part: TypeAlias = Mapping[str, str | None]
Shape: TypeAlias = Literal["undecided", "audio", "text"]

_STILL_GROW = 32
"""Of the newest items the text may still grow, since others began before they were complete."""


@dataclass(slots=True)
class MessageItem:
    """A message that the client put in: its `parts` as they are told back.

    Sound and pictures are named, never sent back: the client has them, and a server that kept them
    would hold megabytes for every call.
    """

    id: str
    role: Role
    parts: tuple[Part, ...]

    @property
    def chars(self) -> int:
        """How much text is kept."""
        return sum(len(value or "") for part in self.parts for value in part.values())

    def content(self) -> dict[str, object]:
        """The item in OpenAI's shape."""
        return _message(self.id, self.role, "completed", self.parts)


@dataclass(slots=True)
class UserSpeechItem:
    """What the user said aloud; `transcript` None until somebody writes it down.

    The sound itself is not kept, so `retrieve` gives none of it back.
    """

    id: str
    duration_s: float = 0.0
    transcript: str | None = None

    @property
    def chars(self) -> int:
        """How much text is kept."""
        return len(self.transcript or "")

    def content(self) -> dict[str, object]:
        """The item in OpenAI's shape; the transcript is null, not absent, while unknown."""
        part = {"type": "input_audio", "transcript": self.transcript}
        return _message(self.id, "user", "completed", [part])


@dataclass(slots=True)
class ToolCallItem:
    """The agent calls a function, or did so in a history that the client puts in."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: ItemStatus = "in_progress"
    is_history: bool = False

    @property
    def chars(self) -> int:
        """How much text is kept."""
        return len(self.arguments)

    def content(self) -> dict[str, object]:
        """The item in OpenAI's shape."""
        return _item(self.id, "function_call", self.status) | {
            "call_id": self.call_id,
            "name": self.name,
            "arguments": self.arguments if self.status == "completed" else "",
        }


@dataclass(slots=True)
class ToolResultItem:
    """What the function returned."""

    id: str
    call_id: str
    output: str

    @property
    def chars(self) -> int:
        """How much text is kept."""
        return len(self.output)

    def content(self) -> dict[str, object]:
        """The item in OpenAI's shape."""
        return _item(self.id, "function_call_output", "completed") | {
            "call_id": self.call_id,
            "output": self.output,
        }


@dataclass(slots=True)
class SpokenItem:
    """What the agent says in one turn: its words, and up to where they were heard."""

    id: str
    limits: Limits
    shape: Shape = "undecided"
    status: ItemStatus = "in_progress"
    generated_ms: int = 0
    cut_ms: int | None = None
    """Nothing beyond was or will be heard; None while nothing is cut off."""
    sounded_ms: int | None = None
    """So much was heard by now; None unless it is playing or waits for that."""
    pieces: list[tuple[int, str]] = field(default_factory=list)  # (start_ms, text)
    chars: int = 0
    """How much text is kept."""

    def say(self, text: str) -> None:
        """Keep a piece of text that starts where the sound has got to."""
        if self.chars + len(text) > self.limits.max_transcript_chars:
            return
        self.chars += len(text)
        if len(self.pieces) < self.limits.max_pieces:
            self.pieces.append((self.generated_ms, text))
            return
        start_ms, last = self.pieces[-1]
        self.pieces[-1] = (start_ms, last + text)

    def cut(self, end_ms: int) -> int:
        """Nothing after `end_ms` was heard; returns where the cut really is. Never grows back."""
        bound = self.generated_ms if self.cut_ms is None else min(self.generated_ms, self.cut_ms)
        self.cut_ms = max(0, min(end_ms, bound))
        self.status = "incomplete"
        return self.cut_ms

    def said(self) -> str:
        """Every word that was generated."""
        return "".join(text for _, text in self.pieces)

    def heard(self) -> str:
        """The words before the cut; all of them while there is none."""
        return self._words(self.cut_ms)

    def heard_so_far(self) -> str:
        """The words that were heard by now, should it still be playing."""
        ends_ms = [end for end in (self.cut_ms, self.sounded_ms) if end is not None]
        return self._words(min(ends_ms, default=None))

    def part(self, text: str) -> dict[str, object]:
        """A content part of a response event that holds `text`."""
        if self.shape == "text":
            return {"type": "text", "text": text}
        return {"type": "audio", "transcript": text}

    def content(self) -> dict[str, object]:
        """The item in OpenAI's shape, with the words up to the cut; empty at the start."""
        return self._content(self.heard())

    def content_so_far(self) -> dict[str, object]:
        """The same with the words that were heard by now, should it still be playing."""
        return self._content(self.heard_so_far())

    def _words(self, end_ms: int | None) -> str:
        if end_ms is None or self.shape == "text":
            return self.said()
        return words_before(self.pieces, self.generated_ms, end_ms)

    def _content(self, words: str) -> dict[str, object]:
        if self.shape == "undecided" or (self.status == "in_progress" and not self.pieces):
            return _message(self.id, "assistant", self.status, [])
        kind, name = ("output_audio", "transcript")
        if self.shape == "text":
            kind, name = ("output_text", "text")
        return _message(self.id, "assistant", self.status, [{"type": kind, name: words}])


Item: TypeAlias = MessageItem | UserSpeechItem | ToolCallItem | ToolResultItem | SpokenItem


class Items:
    """The items in their order; of more, or longer ones, than `limits` has the oldest forgotten."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._order: list[str] = []
        self._by_id: OrderedDict[str, Item] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self._chars = 0

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._by_id

    def __iter__(self) -> Iterator[Item]:
        return (self._by_id[item_id] for item_id in self._order)

    def get(self, item_id: str, unknown: str = "item_not_found") -> Item:
        """The item; `RequestError` of the code `unknown` when there is none."""
        item = self._by_id.get(item_id)
        if item is None:
            raise RequestError(
                f"There is no item '{item_id[:64]}' in this conversation.",
                param="item_id",
                code=unknown,
            )
        return item

    def last_speech(self) -> UserSpeechItem | None:
        """What the user said last; None before the first word."""
        for item in reversed(self._by_id.values()):
            if isinstance(item, UserSpeechItem):
                return item
        return None

    def tool_call(self, call_id: str) -> ToolCallItem | None:
        """The newest function call of that id; None when it is forgotten or was none."""
        for item in reversed(self._by_id.values()):
            if isinstance(item, ToolCallItem) and item.call_id == call_id:
                return item
        return None

    def tool_result_id(self, call_id: str) -> str:
        """The id of the newest result of that function call; "" when there is none."""
        for item in reversed(self._by_id.values()):
            if isinstance(item, ToolResultItem) and item.call_id == call_id:
                return item.id
        return ""

    def add(self, item: Item, after: str | None = None) -> str | None:
        """Put `item` behind `after` (an id, or "root" for the front; None for the end).

        Returns the id of the item before it, None at the front.
        """
        at = self._place(after)
        self._order.insert(at, item.id)
        self._by_id[item.id] = item
        previous = self._order[at - 1] if at else None
        self._forget_oldest()
        return previous

    def remove(self, item_id: str) -> None:
        """Forget an item; `RequestError` when there is none."""
        self.get(item_id)
        del self._by_id[item_id]
        self._order.remove(item_id)
        self._chars -= self._sizes.pop(item_id)

    def _forget_oldest(self) -> None:
        for item in islice(reversed(self._by_id.values()), _STILL_GROW):
            self._chars += item.chars - self._sizes.get(item.id, 0)
            self._sizes[item.id] = item.chars
        limits = self._limits
        while len(self) > limits.max_items or (
            self._chars > limits.max_items_chars and len(self) > 1
        ):
            self.remove(next(iter(self._by_id)))

    def _place(self, after: str | None) -> int:
        if after is None:
            return len(self._order)
        if after == "root":
            return 0
        if after not in self._by_id:
            raise RequestError(
                f"There is no item '{after[:64]}' to put this one behind.",
                param="previous_item_id",
                code="item_not_found",
            )
        return self._order.index(after) + 1


def added(item: Item, previous_id: str | None) -> Event:
    """`conversation.item.added`."""
    return server_event(
        "conversation.item.added", previous_item_id=previous_id, item=item.content()
    )


def done(item: Item, previous_id: str | None) -> Event:
    """`conversation.item.done`."""
    return server_event("conversation.item.done", previous_item_id=previous_id, item=item.content())


def _item(item_id: str, kind: str, status: ItemStatus) -> dict[str, object]:
    return {"id": item_id, "object": "realtime.item", "type": kind, "status": status}


def _message(
    item_id: str, role: Role, status: ItemStatus, content: Sequence[Part]
) -> dict[str, object]:
    return _item(item_id, "message", status) | {"role": role, "content": list(content)}
