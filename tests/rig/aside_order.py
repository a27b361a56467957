"""The documented order of responses out of band, each by itself: they are told among all others.

created → for each item: output_item.added → what it holds → output_item.done → response.done. No
event of them is about the conversation, and `conversation_id` is null.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Event = Mapping[str, Any]

_TEXT = "response.output_text"
_ARGUMENTS = "response.function_call_arguments"
_ITEM, _PART = "response.output_item", "response.content_part"
MESSAGE = [
    f"{_ITEM}.added", f"{_PART}.added", f"{_TEXT}.done", f"{_PART}.done", f"{_ITEM}.done",
]  # fmt: skip
CALL = [f"{_ITEM}.added", f"{_ARGUMENTS}.delta", f"{_ARGUMENTS}.done", f"{_ITEM}.done"]


class AsideOrderError(AssertionError):
    """An event out of band that stands where it must not."""


def _require(condition: object, message: str) -> None:
    if not condition:
        raise AsideOrderError(message)


@dataclass
class _Output:
    id: str
    chain: list[str]
    seen: list[str] = field(default_factory=list)
    text: str = ""


@dataclass
class _Aside:
    outputs: list[_Output] = field(default_factory=list)
    is_done: bool = False


class AsideOrder:
    """Follows those of a call."""

    def __init__(self) -> None:
        self._asides: dict[str, _Aside] = {}
        self.items: set[str] = set()
        """Theirs, which must join no conversation."""

    def take(self, event: Event) -> bool:
        """Whether the event is of a response out of band, and then in its place."""
        document = event.get("response", {})
        known = event.get("response_id") or document.get("id")
        if event["type"] == "response.created" and document["conversation_id"] is None:
            _require(known not in self._asides, "response id used twice")
            _require(document["status"] == "in_progress", "created, yet not in progress")
            self._asides[known] = _Aside()
            return True
        aside = self._asides.get(known)
        if aside is None:
            return False
        _require(not aside.is_done, "it is done")
        if event["type"] == "response.done":
            _done(aside, document)
        else:
            self._content(aside, event)
        return True

    def _content(self, aside: _Aside, event: Event) -> None:
        kind, index = event["type"], event["output_index"]
        if kind == f"{_ITEM}.added":
            item = event["item"]
            _require(item["status"] == "in_progress", "clients would call it twice")
            chain = CALL if item["type"] == "function_call" else MESSAGE
            _require(index == len(aside.outputs), "output_index")
            aside.outputs.append(_Output(item["id"], chain))
            self.items.add(item["id"])
        output = aside.outputs[index]
        _require(output.id == (event.get("item_id") or event["item"]["id"]), "another item")
        if kind == f"{_TEXT}.delta":
            _require(output.seen == MESSAGE[:2], "delta outside of the open content part")
            output.text += event["delta"]
            return
        output.seen.append(kind)
        _require(output.seen == output.chain[: len(output.seen)], f"after {output.seen[-2:-1]}")
        if kind == f"{_TEXT}.done":
            _require(event["text"] == output.text, "text is not its deltas")


def _done(aside: _Aside, document: Mapping[str, Any]) -> None:
    aside.is_done = True
    _require(document["conversation_id"] is None, "it has joined a conversation")
    _require(document["status"] != "in_progress", "done, yet in progress")
    details = document.get("status_details")
    _require((document["status"] == "completed") == (details is None), "status_details")
    left_open = [output.id for output in aside.outputs if output.seen != output.chain]
    _require(not left_open, f"done before {left_open}")
    told = [item["id"] for item in document["output"]]
    _require(told == [output.id for output in aside.outputs], "output is not its items")
