"""Who said what in a call, as its client was told, kept to be shown to a model."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.chat_types import ChatToolCall
from agent.types import MIC_RATE_HZ, FloatArray, Role

MOST_ENTRIES = 24
MOST_CHARS = 2_000
"""Of one entry; what is longer keeps its end."""
MOST_SOUND_SAMPLES = 30 * MIC_RATE_HZ
"""Of all entries together: the newest."""

_TEXTS = ("text", "transcript")
_DELTAS = ("response.output_audio_transcript.delta", "response.output_text.delta")
_WRITTEN = "conversation.item.input_audio_transcription.completed"


@dataclass(slots=True, eq=False)
class Entry:
    """What somebody said: in writing, or as sound [T] at 16 kHz where nobody has written it.

    Or a function that was called by the agent, and what it returned ("" before it has).
    """

    item_id: str
    role: Role
    text: str = ""
    sound: FloatArray | None = None
    is_cut: bool = False
    """The user did not hear its end."""
    call: ChatToolCall | None = None
    result: str = ""

    @property
    def is_known(self) -> bool:
        """Whether there is anything to show."""
        return bool(self.text or self.call or self.sound is not None)


class Transcript:
    """The newest entries in their order; what was deleted is not among them."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, Entry] = OrderedDict()

    @property
    def entries(self) -> Sequence[Entry]:
        """Those with something to show."""
        return [one for one in self._entries.values() if one.is_known]

    def last_of(self, role: Role) -> Entry | None:
        """The newest of those that somebody said, known or not yet."""
        said = (one for one in reversed(self._entries.values()) if one.role == role)
        return next(said, None)

    def find(self, item_id: str) -> Entry | None:
        """The entry of an item; None when it is forgotten or was none."""
        return self._entries.get(item_id)

    def attach(self, item_id: str, sound: FloatArray) -> None:
        """How an entry sounds, unless it is in writing already; older sound makes room for it."""
        entry = self.find(item_id)
        if entry is None or entry.text:
            return
        entry.sound = sound[-MOST_SOUND_SAMPLES:]
        room = MOST_SOUND_SAMPLES
        for one in reversed(self._entries.values()):
            room -= 0 if one.sound is None else len(one.sound)
            if room < 0:
                one.sound = None

    def told_client(self, event: Mapping[str, Any]) -> None:
        """The next server event."""
        match event["type"]:
            case "conversation.item.added":
                self._add(event["item"])
            case "conversation.item.deleted":
                self._entries.pop(event["item_id"], None)
            case "conversation.item.truncated":
                if (entry := self.find(event["item_id"])) is not None:
                    entry.is_cut = True
            case "response.done":
                for item in event["response"].get("output", ()):
                    self._settle(item)
            case kind if kind in _DELTAS:
                self._write(event["item_id"], event["delta"])
            case kind if kind == _WRITTEN:
                if (entry := self.find(event["item_id"])) is not None:
                    entry.text, entry.sound = _short(event["transcript"]), None

    def _add(self, item: Mapping[str, Any]) -> None:
        item_id, kind = item["id"], item["type"]
        if kind == "function_call_output":
            self._returned(item)
        elif kind == "function_call":
            self._entries[item_id] = Entry(item_id, "assistant", call=_call_of(item))
        elif kind == "message":
            self._entries[item_id] = Entry(item_id, _ROLES[item["role"]], _short(_text_of(item)))
        while len(self._entries) > MOST_ENTRIES:
            self._entries.popitem(last=False)

    def _returned(self, item: Mapping[str, Any]) -> None:
        for entry in self._entries.values():
            if entry.call is not None and entry.call.call_id == item["call_id"]:
                entry.result = _short(item["output"])

    def _write(self, item_id: str, text: str) -> None:
        if (entry := self.find(item_id)) is not None:
            entry.text = _short(entry.text + text)

    def _settle(self, item: Mapping[str, Any]) -> None:
        """A response is done: of what it said, the words that were heard by then."""
        entry = self.find(item.get("id", ""))
        if entry is None:
            return
        if item["type"] == "function_call":
            entry.call = _call_of(item)
            return
        entry.text = _short(_text_of(item))
        entry.is_cut = entry.is_cut or item.get("status") == "incomplete"


_ROLES: dict[str, Role] = {"user": "user", "system": "system", "assistant": "assistant"}


def _call_of(item: Mapping[str, Any]) -> ChatToolCall:
    return ChatToolCall(item["call_id"], item["name"], item["arguments"])


def _text_of(item: Mapping[str, Any]) -> str:
    parts = (part.get(name) for part in item.get("content", ()) for name in _TEXTS)
    return " ".join(part for part in parts if part)


def _short(text: str) -> str:
    return text if len(text) <= MOST_CHARS else "… " + text[-MOST_CHARS:]
