"""API keys: what is remembered of each, and the file that holds them.

Of a key only its hash is kept. It is 256 random bits, so there is nothing to guess: a plain SHA-256
is as strong as a slow hash, and costs a request nothing.

The file holds one JSON object a line: `name` and `sha256`, and where they were given `max_calls`,
`max_chats`, `requests_per_minute`, `voices`, `expires_at` and `created_at` (Unix seconds).
"""

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agent.config import Config, data_folder
from agent.errors import AgentError

KEY_PREFIX = "va_"
MOST_KEYS = 1000
MOST_REQUESTS_PER_MINUTE = 1_000_000
MOST_CALLS = 1000
MOST_CHATS = 1000
MOST_VOICES = 100

_MOST_FILE_BYTES = 1_048_576
_MOST_VOICE_CHARS = 256
_LAST_S = 253_402_300_799
"""The end of the year 9999, the last that a date can be written of."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class KeyFileError(AgentError):
    """Keys that cannot be read, or kept; the message names no content."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is remembered of a key. None: no limit of its own; no `voices`: all."""

    name: str
    sha256: str
    max_calls: int | None = None
    max_chats: int | None = None
    requests_per_minute: int | None = None
    voices: tuple[str, ...] = ()
    expires_at: int | None = None
    created_at: int | None = None

    def has_expired(self, now_unix_s: float) -> bool:
        """Whether it opens nothing any more."""
        return self.expires_at is not None and now_unix_s >= self.expires_at


# ---- the key itself ---------------------------------------------------------------------------


def new_key() -> str:
    """256 random bits that are safe in a header, a URL and a WebSocket's subprotocol."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def sha256_of(key: str) -> str:
    """What is remembered of it, 64 hexadecimal digits."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def matching(key: str, known: Iterable[ApiKey]) -> list[ApiKey]:
    """Those of `known` that are this key: one, or none.

    All are compared, each in constant time: how long it takes says nothing of how close a guess is.
    """
    digest = sha256_of(key)
    return [each for each in known if hmac.compare_digest(each.sha256, digest)]


def checked_name(name: str) -> str:
    """`name`, when a key may be called so. `KeyFileError`."""
    if not _NAME.fullmatch(name):
        raise KeyFileError(
            "a key's name has up to 64 letters, digits, dots, dashes, underscores and @"
        )
    return name


def given_key(text: str) -> ApiKey:
    """A key of the settings: `name:sha256`. `ValueError`, which does not repeat it."""
    name, _, digest = text.rpartition(":")
    if not _NAME.fullmatch(name) or not _SHA256.fullmatch(digest):
        raise ValueError("not name:sha256")
    return ApiKey(name, digest)


# ---- the file ---------------------------------------------------------------------------------


def keys_file(config: Config) -> Path:
    """Where `voice-agent keys` keeps them; need not exist."""
    named = config.auth.keys_file
    return Path(named).expanduser() if named else data_folder(config) / "keys.jsonl"


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """All keys of a file. `KeyFileError` names the file and the line, never what stands there."""
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_FILE_BYTES + 1)
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > _MOST_FILE_BYTES:
        raise KeyFileError(f"{path}: is larger than {_MOST_FILE_BYTES:,} bytes")
    keys = []
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            try:
                keys.append(_key_of(line))
            except (ValueError, RecursionError) as error:
                # The text of some errors holds the line, and perhaps a key pasted there.
                reason = str(error) if type(error) is ValueError else "is no JSON object"
                raise KeyFileError(f"{path}: line {number}: {reason}") from None
    return checked_keys(keys, str(path))


def checked_keys(keys: Sequence[ApiKey], origin: str) -> tuple[ApiKey, ...]:
    """`keys`, when they can stand together. `KeyFileError`."""
    if len(keys) > MOST_KEYS:
        raise KeyFileError(f"{origin}: holds more than {MOST_KEYS} keys")
    seen: set[str] = set()
    for key in keys:
        if key.name in seen:
            raise KeyFileError(f"{origin}: two keys are called {key.name}")
        seen.add(key.name)
    return tuple(keys)


def add_key(path: Path, key: ApiKey) -> None:
    """Keep one more. `KeyFileError`, also when its name is taken."""

    def add(keys: tuple[ApiKey, ...]) -> Sequence[ApiKey]:
        if any(each.name == key.name for each in keys):
            raise KeyFileError(f"{path}: a key is called {key.name} already; remove it first")
        return (*keys, key)

    _change(path, add)


def remove_key(path: Path, name: str) -> None:
    """Forget one. `KeyFileError`, also when there is none of that name."""

    def remove(keys: tuple[ApiKey, ...]) -> Sequence[ApiKey]:
        kept = [each for each in keys if each.name != name]
        if len(kept) == len(keys):
            raise KeyFileError(f"{path}: no key is called {name[:64]!r}")
        return kept

    _change(path, remove)


def _change(path: Path, change: Callable[[tuple[ApiKey, ...]], Sequence[ApiKey]]) -> None:
    """Readable by its owner alone, and never seen half written."""
    try:
        # Through a link, which is to stay one.
        target = path.resolve()
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone_in(target.parent):
            keys = checked_keys(change(read_keys(target) if target.exists() else ()), str(path))
            _replace(target, "".join(_line_of(key) for key in keys))
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be written: {error.strerror}") from error


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Held while a file there is read and replaced: of two changes at a time none is lost."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(draft, flags, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


# ---- a line -----------------------------------------------------------------------------------


def _line_of(key: ApiKey) -> str:
    every = {name: getattr(key, name) for name in ApiKey.__slots__}
    return json.dumps({name: value for name, value in every.items() if value or value == 0}) + "\n"


def _key_of(line: bytes) -> ApiKey:
    """`ValueError`, of that very class where its text may be shown."""
    document = json.loads(line)
    if not isinstance(document, dict):
        raise ValueError("is no JSON object")
    unknown = sorted(document.keys() - set(ApiKey.__slots__))
    if unknown:
        raise ValueError(f"has fields that are none of: {', '.join(ApiKey.__slots__)}")
    name, digest = document.get("name"), document.get("sha256")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError("'name' is no name of a key")
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise ValueError("'sha256' is no hash: 64 small hexadecimal digits")
    return ApiKey(
        name,
        digest,
        max_calls=_number(document, "max_calls", MOST_CALLS),
        max_chats=_number(document, "max_chats", MOST_CHATS),
        requests_per_minute=_number(document, "requests_per_minute", MOST_REQUESTS_PER_MINUTE),
        voices=_voices(document),
        expires_at=_number(document, "expires_at", _LAST_S),
        created_at=_number(document, "created_at", _LAST_S),
    )


def _number(document: Mapping[str, object], field: str, most: int) -> int | None:
    value = document.get(field)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ValueError(f"'{field}' is no whole number from 1 to {most}")
    return value


def _voices(document: Mapping[str, object]) -> tuple[str, ...]:
    value = document.get("voices")
    if value is None:
        return ()
    # An empty list would mean all of them, which whoever wrote it cannot have meant.
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_VOICES:
        raise ValueError(f"'voices' is no list of 1 to {MOST_VOICES} ids")
    if not all(isinstance(each, str) and 1 <= len(each) <= _MOST_VOICE_CHARS for each in value):
        raise ValueError("'voices' holds something that is no id of a voice")
    return tuple(value)
