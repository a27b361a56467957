"""How the `echo` engine calls functions: `/name {"an": "argument"}`, typed, or as it is made to."""

import json
import re
import secrets
from collections.abc import Iterable, Sequence

from agent.engines.echo_items import Item
from agent.types import SessionSettings, Tool, ToolCalled

MAX_CALLS = 16
"""Calls that one text may hold."""
_COMMAND = re.compile(r"\s*/([A-Za-z0-9_-]{1,64})[ \t]*")


def due_calls(
    settings: SessionSettings, items: Sequence[Item], instructions: str
) -> list[tuple[str, str]]:
    """Name and arguments of the functions that an answer consists of; none: it is spoken.

    A function's result is answered in words, whatever `tool_choice` says: else a client that does
    not take the choice back would never hear of it.
    """
    if settings.tool_choice == "none" or not settings.tools:
        return []
    asked = [one.text for one in items if one.text][-1:]
    for text in (*asked, instructions):
        if calls := typed_calls(text, settings.tools):
            return calls
    if settings.tool_choice == "auto" or any(one.is_result for one in items):
        return []
    named = [one.name for one in settings.tools if one.name == settings.tool_choice]
    return [((named or [settings.tools[0].name])[0], "{}")]


def typed_calls(text: str, tools: Iterable[Tool]) -> list[tuple[str, str]]:
    """The calls that a text consists of; [] for a text that is, or holds, anything else."""
    names = {one.name for one in tools}
    calls: list[tuple[str, str]] = []
    at, end = 0, len(text.rstrip())
    while at < end:
        found = _COMMAND.match(text, at)
        if found is None or found[1] not in names or len(calls) == MAX_CALLS:
            return []
        at, arguments = found.end(), "{}"
        if text[at : at + 1] == "{":
            read = _json_end(text, at)
            if read < 0:
                return []
            at, arguments = read, text[at:read]
        if text[at : at + 1].strip():
            return []
        calls.append((found[1], arguments))
    return calls


def _json_end(text: str, at: int) -> int:
    """Where the JSON object that begins at `at` ends; −1 where it is none."""
    try:
        return json.JSONDecoder().raw_decode(text, at)[1]
    except (ValueError, RecursionError):
        return -1


def called(turn: int, name: str, arguments: str) -> ToolCalled:
    """The event, with a fresh id."""
    return ToolCalled(turn, f"call_{secrets.token_hex(12)}", name, arguments)
