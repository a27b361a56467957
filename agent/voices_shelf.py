"""Adds voices to a store and takes them away: whole or not at all, also with several at it.

A server and the command line may share one folder. A new voice is written beside the others under
a name that is none, and appears by being renamed; a lock on the folder makes ids and numbers hold.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import tempfile
import time
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.errors import AgentError, CapacityError, RequestError
from agent.vocoder.voice_store import (
    FACTS,
    PREPARED,
    RECORDING,
    StoredVoice,
    VoiceStore,
    digest_of,
    is_voice_id,
)
from agent.voices_recording import Examined

_LOCK = ".lock"
_NEW, _GONE = ".new-", ".gone-"
_FORGOTTEN_S = 3600
"""A form half written that is so old was left behind when a process was ended."""
_LOCK_S, _LOCK_LOOK_S = 5.0, 0.02
_RETRY_AFTER_S = 5.0
_DIGEST_IN_NAME = 32
MOST_NAME, MOST_CONSENT = 80, 2000
LEAST_CONSENT_WORDS = 3
"""Of the scripts without spaces each character counts."""
_SLUG_CHARACTERS = 40
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z0-9]{2,8}){0,2}", re.IGNORECASE)
_LETTERS = str.maketrans({"æ": "ae", "ø": "o", "œ": "oe", "ł": "l", "đ": "d", "ð": "d", "þ": "th"})
_JOINERS = "\u200c\u200d"
"""Between letters, the spelling of some languages asks for them; elsewhere nobody sees them."""
_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")
"""They count as printable, and print nothing."""
_WIDE = 0x2E80
"""From here on the scripts begin that put no spaces between words."""
log = logging.getLogger(__name__)


class VoiceNotFound(RequestError):
    """No voice has that id."""

    status = 404
    code = "voice_not_found"


class VoiceStorageError(AgentError):
    """The disk or its rights do not let voices be kept."""

    code = "voices_not_kept"


@dataclass(frozen=True, slots=True)
class VoiceDetails:
    """What is said about a voice; `consent` is what the uploader declares about the speaker's."""

    name: str
    consent: str
    language: str = ""


def checked_details(name: str, consent: str, language: str = "") -> VoiceDetails:
    """What somebody typed, without what is around it; RequestError names what cannot be used."""
    name = unicodedata.normalize("NFC", " ".join(name.split()))
    consent, language = consent.strip(), language.strip()
    if len(name) > MOST_NAME or not _is_readable(name):
        raise RequestError(
            f"name is to be 1 to {MOST_NAME} printable characters", param="name", code="bad_name"
        )
    if _words(consent) < LEAST_CONSENT_WORDS or len(consent) > MOST_CONSENT:
        raise RequestError(
            f"consent is to say, in at least {LEAST_CONSENT_WORDS} words, that the speaker agrees "
            'to have the voice cloned, such as "This is my own voice." It is kept with the voice; '
            f"{MOST_CONSENT:,} characters at most.",
            param="consent",
            code="consent_required",
        )
    if any(unicodedata.category(each) in ("Cc", "Cs") and each not in "\t\n\r" for each in consent):
        raise RequestError(
            "consent holds characters that are no text", param="consent", code="bad_consent"
        )
    if language and not _LANGUAGE.fullmatch(language):
        raise RequestError(
            f"language is a code such as en or zh, not {language[:20]!r}",
            param="language",
            code="bad_language",
        )
    return VoiceDetails(name, consent, language.lower())


class VoiceShelf:
    """Writes what a `VoiceStore` reads. Everything here waits for the disk.

    No voice gets one of the ids `reserved`. Whatever changes the folder raises CapacityError when
    others hold its lock for longer than `lock_s`.
    """

    def __init__(
        self,
        store: VoiceStore,
        most_voices: int,
        reserved: frozenset[str] = frozenset(),
        lock_s: float = _LOCK_S,
    ) -> None:
        self._store = store
        self._most = most_voices
        self._reserved = reserved
        self._lock_s = lock_s

    def expect_room(self) -> None:
        """RequestError when no voice can be added any more."""
        if not self._most:
            raise RequestError(
                "no voices may be added here (voices.max_voices)", code="too_many_voices"
            )
        kept = sum(not voice.built_in for voice in self._store.voices())
        if kept >= self._most:
            raise RequestError(
                f"no further voice can be kept: {kept} of at most {self._most} are there "
                "(voices.max_voices); remove one first",
                code="too_many_voices",
            )

    def put(self, details: VoiceDetails, examined: Examined) -> StoredVoice:
        """Keep a recording that was accepted as a voice of its own.

        One whose name is taken gets the next number: `anna-2`, "Anna (2)". RequestError without
        room, VoiceStorageError.
        """
        with self._alone():
            self.expect_room()
            voices = self._store.voices()
            voice_id = _free_id(details.name, self._taken(voices))
            facts = {
                "name": _free_name(details.name, {voice.name for voice in voices}),
                "language": details.language,
                "consent": details.consent,
                "created_at": int(time.time()),
                "digest": digest_of(examined.recording),
                "duration_s": round(examined.duration_s, 2),
                "notes": list(examined.notes),
            }
            self._write(voice_id, facts, examined.recording)
            return self._store.find(voice_id)

    def remove(self, voice_id: str) -> StoredVoice:
        """Delete a voice and what was made of it, unless another one has the same recording.

        VoiceNotFound; RequestError for one that comes with the program; VoiceStorageError.
        """
        with self._alone():
            voice = self._expect(voice_id)
            if voice.built_in:
                raise RequestError(
                    f"the voice '{voice_id}' comes with the program and cannot be removed",
                    code="voice_is_built_in",
                )
            # At once it is no voice any more; a file that cannot be deleted keeps no half of it.
            gone = Path(tempfile.mkdtemp(dir=self._store.own, prefix=_GONE))
            os.rename(voice.recording.parent, gone / "voice")
            shutil.rmtree(gone)
            self._drop(voice.digest)
        return voice

    def sweep(self) -> None:
        """Delete what nobody needs: forms of voices that are gone, and what ended halfway.

        VoiceStorageError.
        """
        if not self._store.own.is_dir():
            return
        with self._alone():
            prepared = list((self._store.own / PREPARED).glob("*.npz"))
            kept = {voice.digest[:_DIGEST_IN_NAME] for voice in self._store.voices()}
            for path in prepared:
                if path.name[:_DIGEST_IN_NAME] not in kept:
                    path.unlink(missing_ok=True)
            for path in self._left_behind():
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)

    def make_folder(self) -> None:
        """Make the folder, its owner's alone, so that nobody makes another one. As `sweep`."""
        with self._alone():
            pass

    def drop_if_gone(self, digest: str) -> None:
        """Delete what was made of a recording while its voice was removed. VoiceStorageError."""
        with self._alone():
            self._drop(digest)

    # ---- the folder -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Held while the folder changes, by one process and thread at a time."""
        own = self._store.own
        try:
            _make_private(own)
            descriptor = os.open(own / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                self._lock(descriptor)
                yield
            finally:
                os.close(descriptor)
        except OSError as error:
            why = error.strerror or str(error)
            raise VoiceStorageError(f"voices cannot be kept in {own}: {why}") from error

    def _lock(self, descriptor: int) -> None:
        """Wait for it, but not for ever: threads that wait are wanted elsewhere."""
        until_s = time.monotonic() + self._lock_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() >= until_s:
                    raise CapacityError(
                        "somebody else is changing the voices; try again later",
                        retry_after_s=_RETRY_AFTER_S,
                    ) from error
                time.sleep(_LOCK_LOOK_S)
            else:
                return

    def _expect(self, voice_id: str) -> StoredVoice:
        found = [voice for voice in self._store.voices() if voice.id == voice_id]
        if not found:
            raise VoiceNotFound(f"there is no voice '{voice_id[:64]}'")
        return found[0]

    def _taken(self, voices: tuple[StoredVoice, ...]) -> set[str]:
        """Also the folders of damaged voices."""
        folders = {path.name for path in self._store.own.iterdir()}
        return folders | {voice.id for voice in voices} | {PREPARED} | self._reserved

    def _write(self, voice_id: str, facts: dict[str, object], recording: bytes) -> None:
        # mkdtemp makes the folder 0700.
        fresh = Path(tempfile.mkdtemp(dir=self._store.own, prefix=_NEW))
        try:
            _write_private(fresh / RECORDING, recording)
            text = json.dumps(facts, ensure_ascii=False, indent=1)
            _write_private(fresh / FACTS, text.encode())
            os.rename(fresh, self._store.own / voice_id)
        finally:
            # Nothing is there any more once it has become a voice.
            shutil.rmtree(fresh, ignore_errors=True)

    def _drop(self, digest: str) -> None:
        if not any(voice.digest == digest for voice in self._store.voices()):
            start = digest[:_DIGEST_IN_NAME]
            for path in (self._store.own / PREPARED).glob(f"{start}-*.npz"):
                path.unlink(missing_ok=True)

    def _left_behind(self) -> Iterator[Path]:
        own, now_s = self._store.own, time.time()
        # Whoever makes these holds the lock until they are gone.
        for start in (_NEW, _GONE):
            yield from own.glob(f"{start}*")
        for path in (own / PREPARED).glob(".*.npz.*"):
            if now_s - path.stat().st_mtime > _FORGOTTEN_S:
                yield path


def _make_private(folder: Path) -> None:
    """The folder and whatever it lacks above it, its owner's alone; one that is not becomes so."""
    # Of the folders that `parents` makes only the last one would get the mode.
    for each in (*reversed(folder.parents), folder):
        if not each.exists():
            each.mkdir(mode=0o700, exist_ok=True)
    mode = stat.S_IMODE(folder.stat().st_mode)
    if not mode & 0o077:
        return
    try:
        folder.chmod(mode & ~0o077)
    except PermissionError:
        log.warning("others may read the voices in %s (mode %o)", folder, mode)
    else:
        log.warning("others might read the voices in %s (mode %o): not any more", folder, mode)


def _write_private(path: Path, data: bytes) -> None:
    """A new file that is its owner's alone from the start, and on the disk when this returns."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


# ---- names --------------------------------------------------------------------------------------


def _free_id(name: str, taken: set[str]) -> str:
    base = _slug(name)
    if base not in taken:
        return base
    number = 2
    while f"{base}-{number}" in taken:
        number += 1
    return f"{base}-{number}"


def _free_name(name: str, taken: set[str]) -> str:
    if name not in taken:
        return name
    number = 2
    while f"{name} ({number})" in taken:
        number += 1
    return f"{name} ({number})"


def _slug(name: str) -> str:
    """The name in small letters, digits and dashes; of other scripts a short hash."""
    plain = unicodedata.normalize("NFKD", name.casefold().translate(_LETTERS))
    letters = [character for character in plain if character.isalnum()]
    kept = [character for character in letters if character.isascii()]
    slug = re.sub(r"[^a-z0-9]+", "-", _ascii(plain)).strip("-")[:_SLUG_CHARACTERS].strip("-")
    if not is_voice_id(slug) or 2 * len(kept) < len(letters):
        return f"voice-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
    return slug


def _ascii(text: str) -> str:
    """Without accents, and whatever else is not ASCII as a space."""
    bare = (each for each in text if not unicodedata.combining(each))
    return "".join(each if each.isascii() else " " for each in bare)


def _words(text: str) -> int:
    """Words that hold a letter, and letters of the scripts that write them without spaces."""
    letters = ([each for each in word if each.isalpha()] for word in text.split())
    return sum(max(1, sum(ord(each) >= _WIDE for each in word)) for word in letters if word)


def _is_readable(name: str) -> bool:
    """Whether it prints, and something of it can be seen."""
    bare = "".join(
        each for at, each in enumerate(name) if each not in _JOINERS or not _joins(name, at)
    )
    seen = (each not in _BLANK and unicodedata.category(each)[0] in "LNPS" for each in bare)
    return bare.isprintable() and any(seen)


def _joins(name: str, at: int) -> bool:
    """Whether what stands there is between letters, which may have marks."""
    around = name[at - 1 : at] + name[at + 1 : at + 2]
    return len(around) == 2 and all(unicodedata.category(each)[0] in "LM" for each in around)
