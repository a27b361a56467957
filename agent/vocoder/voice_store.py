"""Reference voices on the disk: which there are, their recordings, and what was made of them.

    store = VoiceStore(own=folder, built_in=assets / "ref_audio")
    voice = store.find("anna")
    prompt = store.prompt(voice.digest, key)  # once a vocoder's `key` was prepared

A voice is a folder `<id>` with `recording.wav` (24 kHz mono, 16 bit) and `voice.json`; those that
come with the program are two files, `<id>.wav` and `<id>.json`. What is made of a recording is kept
under its content's hash, in `prepared/`. But for that this file only reads; voices are added and
removed by `agent.voices`. All files are their owner's alone.
"""

import hashlib
import io
import json
import wave
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from agent.errors import CheckpointError, RequestError
from agent.types import SPEECH_RATE_HZ, FloatArray

if TYPE_CHECKING:
    # It loads torch, which the server does without.
    from agent.vocoder.voice import SpeakerPrompt

RECORDING = "recording.wav"
FACTS = "voice.json"
PREPARED = "prepared"
_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
MAX_ID_CHARACTERS = 64
_DIGEST_CHARACTERS = 64
_DIGITS = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class StoredVoice:
    """A voice that can be picked by its `id`. `digest` is that of its recording's bytes."""

    id: str
    name: str
    digest: str
    recording: Path
    built_in: bool
    language: str = ""
    created_at: int = 0
    """Seconds since 1970; 0 of those that are built in."""
    consent: str = ""
    """What whoever added it declared about the speaker's consent."""
    duration_s: float = 0.0
    notes: tuple[str, ...] = field(default=())
    """What is to be said about the recording, in sentences for the user."""


def is_voice_id(text: str) -> bool:
    """Whether a voice may be named so: small letters, digits and dashes; safe in a path."""
    return 0 < len(text) <= MAX_ID_CHARACTERS and set(text) <= _ID_CHARACTERS


class VoiceStore:
    """The voices of two folders; `own` may not be there yet. Holds nothing in memory."""

    def __init__(self, own: Path, built_in: Path) -> None:
        self.own = own
        self._built_in = built_in

    @property
    def built_in(self) -> Path:
        """The folder of those that come with the program."""
        return self._built_in

    def voices(self) -> tuple[StoredVoice, ...]:
        """All of them: those that come with the program first, in the order of their ids.

        A folder that holds no sound voice is left out.
        """
        found: dict[str, StoredVoice] = {}
        for voice in (*self._those_built_in(), *self._those_added()):
            found.setdefault(voice.id, voice)
        return tuple(found.values())

    def find(self, voice_id: str) -> StoredVoice:
        """The voice of that id, the first one for ""; RequestError when there is none."""
        for voice in self._named(voice_id) if voice_id else self.voices():
            return voice
        known = ", ".join(voice.id for voice in self.voices()) or "none at all"
        raise RequestError(
            f"There is no voice '{voice_id[:MAX_ID_CHARACTERS]}'; there are: {known}.",
            param="voice",
            code="voice_not_found",
        )

    def holds(self, voice_id: str, digest: str) -> bool:
        """Whether the voice of that id is there, and of that recording."""
        return any(voice.digest == digest for voice in self._named(voice_id))

    def prompt_path(self, digest: str, key: str) -> Path:
        """Where the vocoder's form of a recording is kept."""
        return self.own / PREPARED / f"{digest[:32]}-{key}.npz"

    def is_prepared(self, digest: str, key: str) -> bool:
        """Whether `prompt` has something to give."""
        return self.prompt_path(digest, key).is_file()

    def prompt(self, digest: str, key: str) -> "SpeakerPrompt | None":
        """The recording in the form of vocoder `key`; None when it was not prepared yet.

        CheckpointError when what is kept is damaged.
        """
        from agent.vocoder.voice import SpeakerPrompt

        if not self.is_prepared(digest, key):
            return None
        return SpeakerPrompt.load(self.prompt_path(digest, key))

    def keep_prompt(self, digest: str, key: str, prompt: "SpeakerPrompt") -> None:
        """Keep what `prompt` gives back. OSError."""
        path = self.prompt_path(digest, key)
        # Of the folders that `parents` makes only the last one would get the mode.
        self.own.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        prompt.save(path)

    def _named(self, voice_id: str) -> Iterator[StoredVoice]:
        """The voice of that id, without reading what is known of others."""
        if is_voice_id(voice_id):
            facts = self._built_in / f"{voice_id}.json"
            yield from _read(facts, facts.with_suffix(".wav"), voice_id, built_in=True)
            home = self.own / voice_id
            yield from _read(home / FACTS, home / RECORDING, voice_id, built_in=False)

    def _those_built_in(self) -> Iterator[StoredVoice]:
        for facts in sorted(self._built_in.glob("*.json")):
            yield from _read(facts, facts.with_suffix(".wav"), facts.stem, built_in=True)

    def _those_added(self) -> Iterator[StoredVoice]:
        if not self.own.is_dir():
            return
        for folder in sorted(self.own.iterdir()):
            facts = folder / FACTS
            if is_voice_id(folder.name) and facts.is_file():
                yield from _read(facts, folder / RECORDING, folder.name, built_in=False)


def read_recording(path: Path) -> FloatArray:
    """The samples f32 [T] of a stored recording; CheckpointError when it is not one of ours."""
    try:
        return decode_recording(path.read_bytes())
    except (OSError, CheckpointError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error


def decode_recording(data: bytes) -> FloatArray:
    """The samples f32 [T] of a recording's file; CheckpointError when it is not one of ours."""
    try:
        with wave.open(io.BytesIO(data), "rb") as file:
            form = (file.getframerate(), file.getnchannels(), file.getsampwidth())
            if form != (SPEECH_RATE_HZ, 1, 2):
                raise CheckpointError("is not 24 kHz, mono, 16 bit")
            samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    except (wave.Error, EOFError, ValueError) as error:
        raise CheckpointError(f"is no recording: {error}") from error
    return samples.astype(np.float32) / np.float32(32768)


def digest_of(recording: bytes) -> str:
    """What a recording is kept under: the hash of its file's bytes, in hex."""
    return hashlib.sha256(recording).hexdigest()


def _read(facts: Path, recording: Path, voice_id: str, *, built_in: bool) -> Iterator[StoredVoice]:
    """The voice, or nothing where it is damaged."""
    try:
        stored = json.loads(facts.read_text(encoding="utf-8"))
        if not isinstance(stored, dict) or not recording.is_file():
            return
        digest = str(stored.get("digest", "")) or digest_of(recording.read_bytes())
        voice = StoredVoice(
            id=voice_id,
            name=str(stored.get("name", voice_id)),
            digest=digest,
            recording=recording,
            built_in=built_in,
            language=str(stored.get("language", "")),
            created_at=int(stored.get("created_at", 0)),
            consent=str(stored.get("consent", "")),
            duration_s=float(stored.get("duration_s", 0.0)),
            notes=tuple(map(str, stored.get("notes", ()))),
        )
    except (OSError, ValueError, TypeError, OverflowError, RecursionError):
        return
    if _is_digest(voice.digest):
        yield voice


def _is_digest(text: str) -> bool:
    """It becomes part of a path."""
    return len(text) == _DIGEST_CHARACTERS and set(text) <= _DIGITS
