"""Reads the YAML files beside a vocoder's weights as plain data.

Those files name classes to be made and functions to be called; here a tag is dropped and nothing is
ever run. The part of YAML that they are written in: nested mappings, lists, plain and quoted
scalars, comments. `!ref <name>` is replaced by the top-level value of that name.
"""

import re
from collections.abc import Mapping
from typing import Any, NoReturn

from agent.errors import CheckpointError

_MOST_CHARACTERS = 1_000_000
_MOST_LINE = 2_000
_MOST_DEPTH = 32
_ENTRY = re.compile(r"""("[^"]*"|'[^']*'|[^\s:\-\[\]{}!&*|>'"%@`][^:]*?)\s*:(?:\s+(.*))?$""")
_TAG = re.compile(r"!\S*\s*")
_REFERENCE = re.compile(r"!ref\s+<([^<>]+)>$")
_INTEGER = re.compile(r"[-+]?[0-9]+$")
_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$")
_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}


class Reference(str):
    """A `!ref` that is not a plain name from the top level; its text, not its value."""

    __slots__ = ()


def parse_plain_yaml(text: str, name: str = "the file") -> dict[str, Any]:
    """The document as nested dicts, lists, strings, numbers, truths and None; CheckpointError."""
    if len(text) > _MOST_CHARACTERS:
        raise CheckpointError(f"{name}: is too long to be the settings of a vocoder")
    return _Reader(_lines(text, name), name).mapping(0, None, 0)


def _lines(text: str, name: str) -> list[tuple[int, int, str]]:
    """(line number, indentation, content) of what is no comment; open brackets run on."""
    found: list[tuple[int, int, list[str]]] = []
    brackets = 0
    for number, raw in enumerate(text.splitlines(), 1):
        if len(raw) > _MOST_LINE:
            raise CheckpointError(f"{name}: line {number} is too long")
        line = _without_comment(raw).rstrip()
        content = line.lstrip(" ")
        if not content or line.startswith(("---", "%YAML")):
            continue
        if brackets > 0:
            found[-1][2].append(content)
        else:
            brackets = 0
            found.append((number, len(line) - len(content), [content]))
        brackets += sum(content.count(one) for one in "[{")
        brackets -= sum(content.count(one) for one in "]}")
    return [(number, indent, " ".join(parts)) for number, indent, parts in found]


def _without_comment(line: str) -> str:
    """What stands before a `#` that starts a word outside of quotes."""
    quote = ""
    for at, character in enumerate(line):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"" and (at == 0 or line[at - 1] in " [{,:"):
            quote = character
        elif character == "#" and (at == 0 or line[at - 1].isspace()):
            return line[:at]
    return line


class _Reader:
    """One pass over the lines; `at` is the next one."""

    def __init__(self, lines: list[tuple[int, int, str]], name: str) -> None:
        self._lines = lines
        self._name = name
        self._at = 0

    def mapping(self, indent: int, top: Mapping[str, Any] | None, depth: int) -> dict[str, Any]:
        """The entries at this indentation; `top` is what references may name, so far."""
        found: dict[str, Any] = {}
        while self._at < len(self._lines) and self._lines[self._at][1] >= indent:
            number, own, line = self._lines[self._at]
            entry = _ENTRY.match(line)
            if own != indent or entry is None or depth > _MOST_DEPTH:
                self._reject(number)
            key = entry.group(1).strip("'\"")
            if key in found:
                self._reject(number)
            self._at += 1
            found[key] = self._value(
                entry.group(2) or "", indent, found if top is None else top, depth
            )
        if depth == 0 and self._at < len(self._lines):
            self._reject(self._lines[self._at][0])
        return found

    def _value(self, text: str, indent: int, top: Mapping[str, Any], depth: int) -> Any:
        """What stands after the colon, or the block below it."""
        if text.startswith(("|", ">", "&", "*")):
            self._reject(self._lines[self._at - 1][0])
        reference = _REFERENCE.match(text)
        if reference:
            return top.get(reference.group(1), Reference(text))
        if text.startswith("!ref"):
            return Reference(text)
        rest = _TAG.sub("", text, count=1) if text.startswith("!") else text
        below = self._lines[self._at] if self._at < len(self._lines) else None
        if rest or below is None:
            return _scalar(rest)
        if below[2].startswith("- ") and below[1] >= indent:
            return self._list(below[1])
        return self.mapping(below[1], top, depth + 1) if below[1] > indent else _scalar("")

    def _list(self, indent: int) -> list[Any]:
        found = []
        while self._at < len(self._lines) and self._lines[self._at][1] == indent:
            line = self._lines[self._at][2]
            if not line.startswith("- "):
                break
            found.append(_scalar(_TAG.sub("", line[2:].strip())))
            self._at += 1
        return found

    def _reject(self, number: int) -> NoReturn:
        raise CheckpointError(f"{self._name}: line {number} is not in the YAML that is read here")


def _scalar(text: str) -> Any:
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    if text.startswith("[") and text.endswith("]"):
        inside = text[1:-1].strip().rstrip(",")
        if "[" in inside or "{" in inside:
            return text
        return [_scalar(_TAG.sub("", one.strip())) for one in inside.split(",")] if inside else []
    lowered = text.lower()
    if lowered in _WORDS:
        return _WORDS[lowered]
    if _INTEGER.match(text):
        return int(text)
    return float(text) if _NUMBER.match(text) else text
