"""Finds the files that a typed line names, however terminals and people write them down.

`describe /tmp/a.jpg`, `'/tmp/my dog.jpg'` as a terminal writes a file that was dropped on it,
`/tmp/my\\ dog.jpg`, `@a.jpg`, `file:///tmp/my%20dog.jpg`, `~/a.jpg`, and `/tmp/my dog.jpg` with
its space as it is.
"""

import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

_SUFFIXES = frozenset(
    ".jpg .jpeg .png .gif .webp .bmp .tif .tiff .avif .heic .heif .wav .mp3 .flac .ogg .oga .opus "
    ".aac .m4a .aiff .aif .amr .wma .caf .au .mp4 .m4v .mov .webm .mkv .avi .mpg .mpeg .ts .wmv "
    ".flv .3gp".split()
)
"""What a bare word must end in to be taken for a file and not for a word."""
_OPENING, _TRAILING = "([{<", ".,;:!?)]}>"
_MOST_WORDS = 32
"""Of a path whose spaces are neither quoted nor escaped."""
_TOKEN = re.compile(
    r"""(?P<at>@?)(?:'(?P<single>[^']*)'|"(?P<double>[^"]*)"|(?P<bare>(?:\\.|[^\s\\])+))"""
)


@dataclass(frozen=True, slots=True)
class Named:
    """A file of the line; `is_there` is false for one that is named but does not exist."""

    path: Path
    is_there: bool = True


def find_named(line: str) -> list[str | Named]:
    """The line in its order: what is text, stripped and never empty, and the files in between."""
    found: list[str | Named] = []
    text_from = at = 0
    while (start := _next_word(line, at)) < len(line):
        end, named = _named_at(line, start)
        if named is not None:
            found.extend(_text(line[text_from:start]))
            found.append(named)
            text_from = end
        at = end
    if not found:
        return [line.strip()] if line.strip() else []
    found.extend(_text(line[text_from:]))
    return found


def _next_word(line: str, at: int) -> int:
    while at < len(line) and (line[at].isspace() or line[at] in _OPENING):
        at += 1
    return at


def _text(piece: str) -> Iterator[str]:
    # Punctuation that stood around a file says nothing any more.
    if piece.strip(_OPENING + _TRAILING + string.whitespace):
        yield piece.strip()


def _named_at(line: str, start: int) -> tuple[int, Named | None]:
    """The end of the word at `start`, and the file that it names, if it does."""
    match = _TOKEN.match(line, start)
    if match is None:
        return _end_of_word(line, start), None
    quoted = match["single"] if match["single"] is not None else match["double"]
    marked = bool(match["at"])
    if quoted is not None:
        named = _file(quoted, marked)
        return (match.end(), named) if named else (_end_of_word(line, start), None)
    return _bare(line, start, match, marked)


def _bare(line: str, start: int, match: "re.Match[str]", marked: bool) -> tuple[int, Named | None]:
    word = match["bare"]
    if spaced := _with_spaces(line, match.start("bare")):
        return spaced
    for candidate in (word, word.rstrip(_TRAILING)):
        if candidate and (named := _existing(_unescaped(candidate), marked)):
            return match.start("bare") + len(candidate), named
    candidate = word.rstrip(_TRAILING)
    missing = _file(_unescaped(candidate), marked)
    return (match.start("bare") + len(candidate), missing) if missing else (match.end(), None)


def _with_spaces(line: str, start: int) -> tuple[int, Named] | None:
    """The longest path that begins here and exists, its spaces as they are."""
    if not line.startswith(("/", "~", "./", "../"), start):
        return None
    ends = [found.end() for found in re.finditer(r"\S+", line[start:])][:_MOST_WORDS]
    for end in reversed(ends):
        for candidate in (line[start : start + end], line[start : start + end].rstrip(_TRAILING)):
            path = _path(candidate)
            if path is not None and _is_file(path):
                return start + len(candidate), Named(path)
    return None


def _existing(text: str, marked: bool) -> Named | None:
    named = _file(text, marked)
    return named if named is not None and named.is_there else None


def _file(text: str, marked: bool) -> Named | None:
    """The file that `text` names: one that exists, or one that is clearly meant to."""
    path = _path(text)
    if path is None:
        return None
    has_suffix = path.suffix.lower() in _SUFFIXES
    is_address = text.startswith(("/", "~", "./", "../", "file:"))
    if _is_file(path) and (marked or is_address or has_suffix or "/" in text):
        return Named(path)
    is_meant = (has_suffix and (marked or is_address)) or text.startswith("file:")
    return Named(path, is_there=False) if is_meant else None


def _path(text: str) -> Path | None:
    if text.startswith("file:"):
        parts = urlsplit(text)
        text = unquote(parts.path) if parts.netloc in ("", "localhost") else ""
    if not text or "\0" in text:
        return None
    try:
        return Path(text).expanduser()
    except RuntimeError:
        # There is no such user.
        return None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


def _end_of_word(line: str, start: int) -> int:
    found = re.compile(r"\S+").match(line, start)
    return found.end() if found else start + 1
