"""The API keys in force: those of the settings and those of the keys file, which is followed."""

import logging
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from agent.clock import SYSTEM_CLOCK, Clock
from agent.config import Config
from agent.errors import AuthError, ConfigError
from agent.keys import (
    ApiKey,
    KeyFileError,
    checked_keys,
    given_key,
    keys_file,
    matching,
    read_keys,
)

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class KeyRefused(AuthError):
    """No key, or one that opens nothing; `reason` is for the metrics."""

    code = "invalid_api_key"

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class KeyRing:
    """Finds who holds a key. Follows its file within a second; what is broken there changes
    nothing, and neither does its loss: a disk that is gone for a moment is no revocation."""

    def __init__(
        self, given: Sequence[ApiKey] = (), file: Path | None = None, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        """`KeyFileError` for a file that is there and cannot be used; None: there is none."""
        self._given = tuple(given)
        self._file = file
        self._clock = clock
        self._seen = _looks(file) if file is not None else ()
        self._keys = checked_keys(self._given, "auth.keys")
        if self._seen:
            self._keys = self._read()
        self._asks = bool(self._keys)
        self._look_at_s = clock.now_s() + _LOOK_EVERY_S

    @classmethod
    def of(cls, config: Config, clock: Clock = SYSTEM_CLOCK) -> "KeyRing":
        """The keys that `config` names. `ConfigError` when they cannot be read."""
        file = keys_file(config)
        if config.auth.keys_file and not file.exists():
            raise ConfigError(
                f"auth.keys_file: {file} does not exist; `voice-agent keys add NAME` makes it"
            )
        try:
            return cls([given_key(text) for text in config.auth.keys], file, clock)
        except KeyFileError as error:
            raise ConfigError(f"auth.keys_file: {error}") from error

    @property
    def asks(self) -> bool:
        """Whether a key is needed. Once it is, it stays so, even when the last key is removed."""
        self._follow()
        return self._asks

    def holder_of(self, key: str) -> ApiKey:
        """What is remembered of `key`. `KeyRefused`."""
        self._follow()
        found = matching(key, self._keys)
        if not found:
            raise KeyRefused("incorrect API key provided", reason="unknown_key")
        return self._unexpired(found[0])

    def still(self, sha256: str) -> ApiKey:
        """What holds now for the key of that hash. `KeyRefused`, too, when it is gone.

        By its name it could be another one: who replaces a key means to be rid of the old one.
        """
        self._follow()
        for key in self._keys:
            if key.sha256 == sha256:
                return self._unexpired(key)
        raise KeyRefused("the API key behind this was removed", reason="removed_key")

    def _unexpired(self, key: ApiKey) -> ApiKey:
        if key.has_expired(self._clock.unix_s()):
            raise KeyRefused("the API key has expired", reason="expired_key")
        return key

    # ---- the file -----------------------------------------------------------------------------

    def _follow(self) -> None:
        now_s = self._clock.now_s()
        if self._file is None or now_s < self._look_at_s:
            return
        self._look_at_s = now_s + _LOOK_EVERY_S
        before = self._seen
        try:
            self._seen = _looks(self._file)
            if self._seen == before:
                return
            self._keys = self._read()
        except KeyFileError as error:
            log.error("auth.keys_file: %s; the %d keys so far stay", error, len(self._keys))
            return
        self._asks = self._asks or bool(self._keys)
        log.info("auth.keys_file: %s was read, %d keys now", self._file, len(self._keys))

    def _read(self) -> tuple[ApiKey, ...]:
        assert self._file is not None
        keys = (*self._given, *read_keys(self._file))
        if self._seen and self._seen[-1] & _OTHERS:
            log.warning("%s is open to others; chmod 600 would close it", self._file)
        return checked_keys(keys, f"auth.keys and {self._file}")


def _looks(file: Path) -> tuple[int, ...]:
    """What changes with the file's content; nothing where there is none. `KeyFileError`."""
    try:
        found = os.stat(file)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        raise KeyFileError(f"{file}: cannot be read: {error.strerror}") from error
    return found.st_mtime_ns, found.st_size, found.st_ino, stat.S_IMODE(found.st_mode)
