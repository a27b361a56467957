"""Function calls in what the model writes: found as the text comes; in pieces = in one go.

A call is `<tool_call>`, a JSON object with name and arguments, `</tool_call>`. No part of a tag is
ever shown, and a call of nothing that there is stays text.
"""

import json
import logging
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass

from agent.chat_types import ChatToolCall
from agent.duplex.tool_prompt import CLOSE_CALL, OPEN_CALL

log = logging.getLogger(__name__)

MAX_CALLS = 16
"""Calls of one answer; what looks like more is text."""
MAX_CALL_CHARS = 32_768
"""Of a longer call, all is text."""
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"\\]{1,64})"\s*,\s*"arguments"\s*:\s*')


@dataclass(frozen=True, slots=True)
class WrittenCall:
    """A call as it was written; not `is_whole`: the answer ended within it."""

    name: str
    arguments: str
    is_whole: bool = True

    def told(self) -> ChatToolCall:
        """The call with an id of its own."""
        return ChatToolCall(new_call_id(), self.name, self.arguments)


def new_call_id() -> str:
    """A fresh id."""
    return f"call_{secrets.token_hex(12)}"


def parse_call(body: str, names: Collection[str], *, is_whole: bool = True) -> WrittenCall | None:
    """What stands between the tags; None where it calls none of `names`.

    Arguments are the very letters that were written, be they JSON or not; those that stand in a
    JSON string are what is in it.
    """
    head = _HEAD.match(body)
    if head is None:
        return _reordered(body, names)
    if head[1] not in names:
        return None
    rest = body[head.end() :]
    value, end = _value(rest)
    if end and rest[end:].strip() == "}":
        return WrittenCall(head[1], value if isinstance(value, str) else rest[:end])
    if is_whole:
        return WrittenCall(head[1], rest.strip().removesuffix("}").rstrip())
    return WrittenCall(head[1], rest.strip(), is_whole=False)


def known_call(body: str, names: Collection[str]) -> WrittenCall | None:
    """The same where a call of nothing that there is cannot be shown as text: it is logged."""
    call = parse_call(body, names)
    if call is None:
        log.warning("the model called none of %s: %.200r", ", ".join(names), body)
    return call


def _value(text: str) -> tuple[object, int]:
    """The JSON value that `text` begins with, and where it ends; 0: there is none."""
    try:
        return json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None, 0


def _reordered(body: str, names: Collection[str]) -> WrittenCall | None:
    """A call whose name does not come first, or that has no arguments."""
    call, end = _value(body.strip())
    if not isinstance(call, dict) or end != len(body.strip()):
        return None
    name, arguments = call.get("name"), call.get("arguments", {})
    if not isinstance(name, str) or name not in names:
        return None
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return WrittenCall(name, text)


class CallReader:
    """Parts an answer's text into what is shown and calls: `push`, then `finish`.

    The line break that the template writes between words and a call is not shown, nor are blanks
    behind a call.
    """

    def __init__(self, names: Collection[str], *, most: int = MAX_CALLS) -> None:
        self._names = frozenset(names)
        self._most = most
        self._waiting = self._break = ""
        self._calls: list[WrittenCall] = []
        self._count = 0
        self._is_behind = self._has_met_tag = self._is_off = False
        self.inside = False
        """Whether a call is being written."""
        self.letters = 0
        """Letters shown before the first tag: what may be said aloud."""

    @property
    def is_over(self) -> bool:
        """Whether there were as many calls as there may be."""
        return self._count >= self._most

    def take(self) -> list[WrittenCall]:
        """The calls since the last time."""
        calls, self._calls = self._calls, []
        return calls

    def push(self, text: str) -> str:
        """The next text → what of it, and of what was before, is sure to be words."""
        self._waiting += text
        shown: list[str] = []
        while self._step(shown):
            pass
        return "".join(shown)

    def finish(self) -> str:
        """No text follows → what turned out to be words. What was written of a call is a call."""
        rest, self._waiting = self._waiting, ""
        if not self.inside:
            return self._shown(rest)
        self.inside = False
        return self._closed(rest, is_whole=False)

    def _step(self, shown: list[str]) -> bool:
        """Go on to the next tag, if it is there."""
        if self.inside:
            return self._step_inside(shown)
        is_off = self._is_off or self.is_over
        at = -1 if is_off else self._waiting.find(OPEN_CALL)
        if at < 0:
            keep = 0 if is_off else _overlap(self._waiting)
            shown.append(self._shown(self._waiting[: len(self._waiting) - keep]))
            self._waiting = self._waiting[len(self._waiting) - keep :]
            return False
        words = self._waiting[:at]
        shown.append(self._shown(words.removesuffix("\n")))
        self._break = "\n" if words.endswith("\n") else ""
        self._waiting = self._waiting[at + len(OPEN_CALL) :]
        self.inside = self._has_met_tag = True
        return True

    def _step_inside(self, shown: list[str]) -> bool:
        at = self._waiting.find(CLOSE_CALL)
        if at < 0 and len(self._waiting) < MAX_CALL_CHARS + len(CLOSE_CALL):
            return False  # the tag may yet come in time
        self.inside = False
        if at < 0 or at > MAX_CALL_CHARS:
            # Too long to be one: it was words, and so is the rest.
            shown.append(self._break + OPEN_CALL)
            self._is_behind, self._is_off = False, True
            return True
        body, self._waiting = self._waiting[:at], self._waiting[at + len(CLOSE_CALL) :]
        shown.append(self._closed(body, is_whole=True))
        return True

    def _closed(self, body: str, *, is_whole: bool) -> str:
        """A call is over → its text, where it was none."""
        call = parse_call(body, self._names, is_whole=is_whole)
        if call is None:
            self._is_behind = False
            return self._break + OPEN_CALL + body + (CLOSE_CALL if is_whole else "")
        self._calls.append(call)
        self._count += 1
        self._is_behind = True
        return ""

    def _shown(self, text: str) -> str:
        if self._is_behind:
            text = text.lstrip()
            self._is_behind = not text
        if not self._has_met_tag:
            self.letters += len(text)
        return text


def _overlap(text: str) -> int:
    """How many letters at the end of `text` may belong to a tag, or be the line break before it."""
    for tag in (f"\n{OPEN_CALL}", OPEN_CALL):
        longest = min(len(text), len(tag) - 1)
        for count in range(longest, 0, -1):
            if text.endswith(tag[:count]):
                return count
    return 0
