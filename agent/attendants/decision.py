"""The question whether a function is to be called now, and what the answer to it means."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from agent.attendants.asking import Answer
from agent.attendants.transcript import Entry
from agent.chat_types import (
    ChatMessage,
    ChatPart,
    ChatRequest,
    ChatSound,
    ChatText,
    ChatToolCall,
)
from agent.types import Tool

MOST_TOKENS = 256
MOST_CALLS = 4
MOST_CHARS = 6_000
"""Of all that was said; what is older is left out."""
_DECIDE = (
    "You listen to a voice call between a user and an assistant, and decide whether a function is "
    "to be called now. Call one only if the user's last words ask for what it does, if all that it "
    "requires was said, and if it was not called for that already. If not, answer with one word: "
    "no."
)
_RUNNING = "It has not returned yet."


def decision_request(
    entries: Sequence[Entry], item_id: str, tools: Sequence[Tool], choice: str = "auto"
) -> ChatRequest:
    """Ask whether what was said in the item, after all that was said before it, calls for one.

    `choice` is the call's `tool_choice`; a function's name leaves only that one to be called.
    """
    named = tuple(tool for tool in tools if tool.name == choice)
    messages = (ChatMessage("system", (ChatText(_DECIDE),)), *_messages(_until(entries, item_id)))
    return ChatRequest(
        messages,
        max_tokens=MOST_TOKENS,
        greedy=True,
        tools=named or tuple(tools),
        tool_choice=choice,
    )


def called(answer: Answer, tools: Sequence[Tool]) -> tuple[list[ChatToolCall], bool]:
    """The calls in an answer that can be made, and whether it held others."""
    names = {tool.name for tool in tools}
    good = [call for call in answer.calls if call.name in names and _is_object(call.arguments)]
    return good[:MOST_CALLS], len(good) < len(answer.calls)


def _is_object(arguments: str) -> bool:
    try:
        return isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        return False


def _until(entries: Sequence[Entry], item_id: str) -> list[Entry]:
    """The newest entries up to that item: how the agent has begun to answer it tells nothing."""
    ids = [entry.item_id for entry in entries]
    heard = entries[: ids.index(item_id) + 1] if item_id in ids else entries
    kept: list[Entry] = []
    room = MOST_CHARS
    for entry in reversed(heard):
        room -= len(entry.text) + len(entry.result)
        if room < 0 and kept:
            break
        kept.insert(0, entry)
    return kept


def _messages(entries: Sequence[Entry]) -> Iterator[ChatMessage]:
    """What one side said in a row is one message; a call comes with its result."""
    open_: ChatMessage | None = None
    for entry in entries:
        if entry.call is None and open_ is not None and open_.role == entry.role:
            open_ = replace(open_, content=(*open_.content, _part(entry)))
            continue
        if open_ is not None:
            yield open_
        open_ = None
        if entry.call is None:
            open_ = ChatMessage(entry.role, (_part(entry),))
        else:
            yield ChatMessage("assistant", (), calls=(entry.call,))
            yield ChatMessage("tool", (ChatText(entry.result or _RUNNING),))
    if open_ is not None:
        yield open_


def _part(entry: Entry) -> ChatPart:
    if entry.sound is not None:
        return ChatSound(entry.sound)
    return ChatText(f"{entry.text} — (interrupted)" if entry.is_cut else entry.text)
