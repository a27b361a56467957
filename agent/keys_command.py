"""`voice-agent keys`: API keys made, listed and removed.

A server that runs on the same keys file follows within a second. A key is shown once, when it is
made: the file keeps its hash alone.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.clock import SYSTEM_CLOCK
from agent.errors import RequestError

if TYPE_CHECKING:
    from agent.config import Config
    from agent.keys import ApiKey

_SECTIONS = ("auth",)
"""Whose settings the help names."""
_SPAN = re.compile(r"([1-9][0-9]{0,4})([mhd])")
_SECONDS = {"m": 60, "h": 3600, "d": 86_400}


def add_to(commands: Any, add_settings: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add the subcommand to argparse's `commands`; `add_settings` adds --config and --set."""
    keys = commands.add_parser("keys", help="the API keys that the server asks for")
    keys.sections = _SECTIONS
    verbs = keys.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, does: Callable[[argparse.Namespace], int], words: str) -> Any:
        parser = verbs.add_parser(name, help=words, description=words)
        parser.sections = _SECTIONS
        parser.add_argument("--file", metavar="PATH", help="where keys are (auth.keys_file)")
        add_settings(parser)
        parser.set_defaults(command=does)
        return parser

    _add_add(verb("add", _add, "make a key; it is printed once, and never again"))
    verb("list", _list, "list all keys by name, with their limits")
    remove = verb(
        "remove", _remove, "make a key and its secrets good for nothing, and end its calls"
    )
    remove.add_argument("name", metavar="NAME")


def _add_add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="who or what it is for")
    parser.add_argument("--max-calls", type=int, metavar="N", help="calls at a time")
    parser.add_argument(
        "--max-chats", type=int, metavar="N", help="chats, and texts read aloud, at a time"
    )
    parser.add_argument("--requests-per-minute", type=int, metavar="N")
    parser.add_argument(
        "--voices", default="", metavar="ID,ID", help="voices that it may use; without, all"
    )
    parser.add_argument(
        "--expires", default="", metavar="WHEN", help="a date, the last it is good on, or 90d, 12h"
    )
    parser.add_argument(
        "--no-file",
        action="store_true",
        help="keep nothing; print the line for the settings (auth.keys), which takes no limits",
    )


# ---- verbs ------------------------------------------------------------------------------------


def _add(arguments: argparse.Namespace) -> int:
    from agent.keys import add_key, new_key

    text = new_key()
    key = _described(arguments, text)
    if arguments.no_file:
        _expect_no_limits(key)
        _say(f"The key of {key.name}; only its hash goes into the settings, it is shown this once:")
        sys.stdout.write(text + "\n")
        _say(f"VOICE_AGENT__AUTH__KEYS={key.name}:{key.sha256}")
        return 0
    file = _file(arguments)
    add_key(file, key)
    _warn_of_unknown(key.voices, _config(arguments))
    _say(f"The key of {key.name}; {file} keeps its hash alone, it is shown this once:")
    sys.stdout.write(text + "\n")
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from agent.keys import given_key, read_keys

    file = _file(arguments)
    config = _config(arguments)
    rows = [_row(given_key(text), "settings") for text in config.auth.keys]
    rows += [_row(key, "file") for key in (read_keys(file) if file.exists() else ())]
    if not rows:
        _say(f"There is no key ({file}).")
        return 0
    sys.stdout.write(_table([_HEADER, *rows]))
    return 0


def _remove(arguments: argparse.Namespace) -> int:
    from agent.keys import remove_key

    file = _file(arguments)
    if not file.exists():
        raise RequestError(f"{file}: there is no key")
    remove_key(file, arguments.name)
    sys.stdout.write(f"Removed the key {arguments.name}.\n")
    return 0


# ---- what they are told -----------------------------------------------------------------------


def _file(arguments: argparse.Namespace) -> Path:
    from agent.keys import keys_file

    return keys_file(_config(arguments))


def _config(arguments: argparse.Namespace) -> "Config":
    from agent.config import load_config

    overrides = list(arguments.set)
    if arguments.file:
        overrides.append(f"auth.keys_file={arguments.file}")
    return load_config(arguments.config, os.environ, overrides)


def _described(arguments: argparse.Namespace, text: str) -> "ApiKey":
    from agent.keys import (
        MOST_CALLS,
        MOST_CHATS,
        MOST_REQUESTS_PER_MINUTE,
        MOST_VOICES,
        ApiKey,
        checked_name,
        sha256_of,
    )

    voices = tuple(filter(None, (each.strip() for each in arguments.voices.split(","))))
    if len(voices) > MOST_VOICES or (arguments.voices and not voices):
        raise RequestError(f"--voices: name 1 to {MOST_VOICES} ids, with commas in between")
    now_s = int(SYSTEM_CLOCK.unix_s())
    return ApiKey(
        checked_name(arguments.name),
        sha256_of(text),
        max_calls=_number("--max-calls", arguments.max_calls, MOST_CALLS),
        max_chats=_number("--max-chats", arguments.max_chats, MOST_CHATS),
        requests_per_minute=_number(
            "--requests-per-minute", arguments.requests_per_minute, MOST_REQUESTS_PER_MINUTE
        ),
        voices=voices,
        expires_at=_expiry(arguments.expires, now_s),
        created_at=now_s,
    )


def _number(flag: str, value: int | None, most: int) -> int | None:
    if value is not None and not 1 <= value <= most:
        raise RequestError(f"{flag}: got {value}, allowed is 1 to {most}")
    return value


def _expiry(text: str, now_unix_s: int) -> int | None:
    if not text:
        return None
    if span := _SPAN.fullmatch(text):
        return now_unix_s + int(span[1]) * _SECONDS[span[2]]
    try:
        last = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC) + timedelta(days=1)
    except (ValueError, OverflowError) as error:
        raise RequestError(
            f"--expires: {text[:40]!r} is neither a date such as 2030-12-31 nor 90d, 12h or 30m"
        ) from error
    if last.timestamp() <= now_unix_s:
        raise RequestError(f"--expires: {text} is over")
    return int(last.timestamp())


def _warn_of_unknown(voices: Sequence[str], config: "Config") -> None:
    """No mistake in itself: a voice may be added after the key that is for it."""
    if not voices:
        return
    from agent.model_hub.voice import voices_folder
    from agent.resources import assets_folder
    from agent.vocoder.voice_store import VoiceStore

    store = VoiceStore(voices_folder(config), assets_folder() / "ref_audio")
    known = [voice.id for voice in store.voices()]
    for voice in voices:
        if voice not in known:
            _say(
                f"voice-agent: there is no voice {voice[:64]!r} yet, which this key is for; "
                f"there are: {', '.join(known) or 'none'}"
            )


def _expect_no_limits(key: "ApiKey") -> None:
    limits = (key.max_calls, key.max_chats, key.requests_per_minute, key.voices, key.expires_at)
    if any(limits):
        raise RequestError("--no-file: a key in the settings has no limits of its own; drop them")


# ---- what they show ---------------------------------------------------------------------------

_HEADER = ("NAME", "CALLS", "CHATS", "REQUESTS/MIN", "VOICES", "EXPIRES", "MADE", "IN")


def _row(key: "ApiKey", place: str) -> tuple[str, ...]:
    numbers = (key.max_calls, key.max_chats, key.requests_per_minute)
    limits = (str(number) if number else "-" for number in numbers)
    expires = _date(key.expires_at)
    if key.has_expired(SYSTEM_CLOCK.unix_s()):
        expires += " (over)"
    voices = ",".join(key.voices) or "all"
    return (key.name, *limits, voices, expires, _date(key.created_at), place)


def _date(unix_s: int | None) -> str:
    return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%d %H:%M}Z" if unix_s else "-"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines) + "\n"


def _say(text: str) -> None:
    """On stderr: stdout holds the key alone, for scripts."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
