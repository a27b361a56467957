"""Reference voices: which there are, which can be spoken with, how they are added and removed.

    voices = Voices(VoiceStore(folder, assets / "ref_audio"), VoiceLimits(), vocoder)
    await voices.start()                      # from here on, what is not prepared gets prepared
    added = await voices.add(details, data)   # examined, kept, soon ready
    voices.ready_ids()                        # what a call may pick

Recordings are decoded and judged, and voices prepared, in a process of its own (`voices_workshop`);
files are written in threads. All of it belongs to one event loop.
"""

import asyncio
import contextlib
import logging
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, ParamSpec, TypeAlias, TypeVar

from agent.clock import SYSTEM_CLOCK, Clock
from agent.errors import AgentError, CapacityError, EngineError, RequestError
from agent.media.recording import RecordingLimits
from agent.vocoder.voice_store import StoredVoice, VoiceStore
from agent.voices_bench import BenchSettings, VocoderFiles
from agent.voices_recording import Examined
from agent.voices_shelf import (
    VoiceDetails,
    VoiceNotFound,
    VoiceShelf,
    VoiceStorageError,
    checked_details,
)
from agent.voices_workshop import Workshop

if TYPE_CHECKING:
    from agent.model_settings import VoicesSection

__all__ = [
    "Added",
    "ListedVoice",
    "VocoderFiles",
    "VoiceDetails",
    "VoiceLimits",
    "VoiceNotFound",
    "VoiceRefused",
    "VoiceStatus",
    "VoiceStorageError",
    "VoiceUnwanted",
    "Voices",
    "checked_details",
]

VoiceStatus: TypeAlias = Literal["stored", "prepared", "preparing", "ready", "failed"]
"""`stored`: kept, but no vocoder is there that could speak with it; `prepared`: kept in the form
of some vocoder, of which the command line cannot say whether it is the server's."""

_LOOK_S = 5.0
"""How soon is seen what somebody else has done to the folder, the command line above all."""
_TURN_S = 5.0
_TRY_AGAIN_S = (10.0, 60.0, 300.0, 1200.0)
"""After what may pass: a process that was ended, a full disk. Then it is final."""
_PATH = re.compile(r"(?:/[^\s/:'\"(),;]+)+/([^\s/:'\"(),;]+)")
P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)


class VoiceUnwanted(AgentError):
    """Whoever wanted the voice has left; nothing was kept."""


class VoiceRefused(RequestError):
    """A voice cannot be cloned from this recording; the message says why."""

    code = "recording_refused"


@dataclass(frozen=True, slots=True)
class VoiceLimits:
    """What may be added: how many, how large a file, how long a recording; `reserved` ids: none."""

    voices: int = 64
    file_bytes: int = 20_971_520
    recording_s: float = 120.0
    reserved: frozenset[str] = frozenset()

    @classmethod
    def of(cls, section: "VoicesSection", reserved: frozenset[str] = frozenset()) -> "VoiceLimits":
        """As they are set."""
        return cls(section.max_voices, section.max_file_bytes, section.max_recording_s, reserved)

    def of_recordings(self) -> RecordingLimits:
        """As the decoder wants them."""
        return RecordingLimits(file_bytes=self.file_bytes, longest_s=self.recording_s)


@dataclass(frozen=True, slots=True)
class ListedVoice:
    """A voice and how far it is; `error` says why it failed, the last time if it is tried again."""

    voice: StoredVoice
    status: VoiceStatus
    error: str = ""

    def as_json(self) -> dict[str, object]:
        """What the API and the command line show of it, and nothing that is private."""
        voice = self.voice
        return {
            "id": voice.id,
            "object": "audio.voice",
            "name": voice.name,
            "created_at": voice.created_at,
            "built_in": voice.built_in,
            "status": self.status,
            "error": self.error or None,
            "language": voice.language,
            # Somebody may have written the file by hand; JSON knows no such numbers.
            "duration_s": voice.duration_s if math.isfinite(voice.duration_s) else 0.0,
            "notes": list(voice.notes),
        }


@dataclass(frozen=True, slots=True)
class Added:
    """A new voice, and what was found out about its recording."""

    listed: ListedVoice
    examined: Examined


@dataclass(frozen=True, slots=True)
class _Setback:
    """A preparation that failed and is tried again."""

    tries: int
    due_s: float
    why: str


class Voices:
    """The voices of one server."""

    def __init__(
        self,
        store: VoiceStore,
        limits: VoiceLimits,
        vocoder: VocoderFiles | None = None,
        *,
        workshop: Workshop | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.limits = limits
        self._store = store
        self._vocoder = vocoder
        self._shelf = VoiceShelf(store, limits.voices, limits.reserved)
        self._workshop = workshop or Workshop(
            BenchSettings(store.own, store.built_in, limits.of_recordings(), vocoder)
        )
        self._clock = clock
        self._key = ""
        self._voices: tuple[StoredVoice, ...] = ()
        self._ready: frozenset[str] = frozenset()
        self._failed: dict[str, str] = {}
        """Why, by the digests of recordings."""
        self._setbacks: dict[str, _Setback] = {}
        self._reading, self._turn = asyncio.Lock(), asyncio.Lock()
        self._news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Find what is there, and begin to prepare what is not prepared."""
        await self._sweep()
        await self._refresh()
        loop = asyncio.get_running_loop()
        self._tasks.append(loop.create_task(self._watch(), name="voices-watch"))
        if self._vocoder is not None:
            self._tasks.append(loop.create_task(self._keep_prepared(), name="voices-prepare"))

    async def close(self) -> None:
        """End the process and whatever is being done; no half of it stays."""
        for task in self._tasks:
            task.cancel()
        await self._workshop.close()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks.clear()

    def ready_ids(self) -> tuple[str, ...]:
        """What a call may pick: the voices that the vocoder can speak with now; never waits."""
        return tuple(voice.id for voice in self._voices if voice.digest in self._ready)

    async def listed(self) -> tuple[ListedVoice, ...]:
        """All voices: those that come with the program first."""
        await self._refresh()
        return tuple(map(self._listed, self._voices))

    async def check(self, data: bytes) -> Examined:
        """What would be said of a recording; nothing is kept. As `Workshop.examine`."""
        return await self._workshop.examine(data)

    async def add(
        self, details: VoiceDetails, data: bytes, is_wanted: Callable[[], bool] = lambda: True
    ) -> Added:
        """Keep a recording as a voice, which is prepared next, if it is still wanted by then.

        VoiceRefused when it cannot be cloned from, RequestError when it is no recording or no more
        voices may be added, CapacityError, VoiceStorageError, VoiceUnwanted.
        """
        # Before the work is done; `put` looks again.
        await asyncio.to_thread(self._shelf.expect_room)
        examined = await self._workshop.examine(data)
        if not examined.accepted:
            raise VoiceRefused(
                f"The recording cannot be used: {examined.refusal}", param="audio_sample"
            )
        if not is_wanted():
            raise VoiceUnwanted("the voice was given up before it was kept")
        voice = await self._in_turn(self._shelf.put, details, examined)
        if not is_wanted():
            # A recording of somebody is not to stay where nobody knows of it.
            await self._in_turn(self._shelf.remove, voice.id)
            raise VoiceUnwanted("the voice was given up while it was kept")
        log.info("the voice %s was added", voice.id)
        # The same recording may have failed before the vocoder's files were mended.
        self._failed.pop(voice.digest, None)
        self._setbacks.pop(voice.digest, None)
        await self._refresh()
        self._news.set()
        return Added(self._listed(voice), examined)

    async def remove(self, voice_id: str) -> None:
        """Delete a voice with all that was made of it.

        VoiceNotFound; RequestError for one that comes with the program; VoiceStorageError.
        """
        await self._in_turn(self._shelf.remove, voice_id)
        log.info("the voice %s was removed", voice_id)
        await self._refresh()

    def _listed(self, voice: StoredVoice) -> ListedVoice:
        if self._vocoder is None:
            return ListedVoice(voice, "stored")
        if voice.digest in self._ready:
            return ListedVoice(voice, "ready")
        if voice.digest in self._failed:
            return ListedVoice(voice, "failed", self._failed[voice.digest])
        setback = self._setbacks.get(voice.digest)
        return ListedVoice(voice, "preparing", setback.why if setback else "")

    async def _in_turn(self, work: Callable[P, T], *given: P.args, **more: P.kwargs) -> T:
        """Have the folder changed. CapacityError when others are at it for too long."""
        # One thread at a time may wait for the folder's lock: all else here needs threads, too.
        try:
            async with asyncio.timeout(_TURN_S):
                await self._turn.acquire()
        except TimeoutError as error:
            raise CapacityError(
                "too many changes of voices wait; try again later", retry_after_s=_TURN_S
            ) from error
        try:
            return await asyncio.to_thread(work, *given, **more)
        finally:
            self._turn.release()

    # ---- what is on the disk ------------------------------------------------------------------

    async def _refresh(self) -> None:
        # One after the other, or what was read first could win.
        async with self._reading:
            try:
                self._voices, self._ready = await asyncio.to_thread(self._read)
            except OSError as error:
                log.warning("the voices in %s cannot be read: %s", self._store.own, error.strerror)
        digests = {voice.digest for voice in self._voices}
        self._failed = {each: why for each, why in self._failed.items() if each in digests}
        self._setbacks = {each: why for each, why in self._setbacks.items() if each in digests}

    def _read(self) -> tuple[tuple[StoredVoice, ...], frozenset[str]]:
        if self._vocoder is not None and not self._key:
            self._key = self._vocoder.key()
        voices = self._store.voices()
        if not self._key:
            return voices, frozenset()
        digests = {voice.digest for voice in voices}
        return voices, frozenset(
            each for each in digests if self._store.is_prepared(each, self._key)
        )

    async def _watch(self) -> None:
        """See what others do to the folder; never returns."""
        seen = await asyncio.to_thread(self._changed_at)
        while True:
            await self._clock.sleep_until(self._clock.now_s() + _LOOK_S)
            now = await asyncio.to_thread(self._changed_at)
            if now != seen:
                # Who changed it may have been ended halfway.
                is_swept = await self._sweep()
                await self._refresh()
                self._news.set()
                seen = now if is_swept else seen

    async def _sweep(self) -> bool:
        """Whether it is done; not while somebody else is at it."""
        try:
            await self._in_turn(self._shelf.sweep)
        except CapacityError:
            return False
        except AgentError as error:
            log.warning("%s", error)
        return True

    def _changed_at(self) -> int:
        """When a voice was added or removed last, by whomever."""
        with contextlib.suppress(OSError):
            return self._store.own.stat().st_mtime_ns
        return 0

    # ---- preparation --------------------------------------------------------------------------

    async def _keep_prepared(self) -> None:
        """Prepare what can be spoken with but is not prepared yet; never returns."""
        while True:
            self._news.clear()
            lacking = [voice for voice in self._voices if self._listed(voice).status == "preparing"]
            due_s, now_s = [self._due_s(voice) for voice in lacking], self._clock.now_s()
            ready = [voice for voice, at_s in zip(lacking, due_s, strict=True) if at_s <= now_s]
            if ready:
                await self._prepare(ready[0])
            elif lacking:
                await self._news_until(min(due_s))
            else:
                await self._news.wait()

    def _due_s(self, voice: StoredVoice) -> float:
        setback = self._setbacks.get(voice.digest)
        return setback.due_s if setback else -math.inf

    async def _news_until(self, due_s: float) -> None:
        loop = asyncio.get_running_loop()
        first = [
            loop.create_task(self._news.wait(), name="voices-news"),
            loop.create_task(self._clock.sleep_until(due_s), name="voices-again"),
        ]
        try:
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in first:
                task.cancel()
            await asyncio.wait(first)

    async def _prepare(self, voice: StoredVoice) -> None:
        why = await self._tried(voice)
        try:
            # It may have been removed meanwhile.
            await self._in_turn(self._shelf.drop_if_gone, voice.digest)
        except AgentError as error:
            log.warning("%s", error)
        await self._refresh()
        if not why and voice.digest not in self._ready:
            # Not to be tried for ever, should it not have been removed.
            self._failed[voice.digest] = "it was prepared, but its form is not there"
        if why and any(each.id == voice.id for each in self._voices):
            log.warning("the voice %s cannot be spoken with: %s", voice.id, why)

    async def _tried(self, voice: StoredVoice) -> str:
        """Why it was not prepared, with all paths; notes what is to become of it."""
        try:
            await self._in_turn(self._shelf.make_folder)
            why = await self._workshop.prepare(voice, self._key)
        except (CapacityError, EngineError, VoiceStorageError) as error:
            why = f"it could not be prepared: {error}"
            before = self._setbacks.get(voice.digest)
            tries = before.tries if before else 0
            if tries < len(_TRY_AGAIN_S):
                due_s = self._clock.now_s() + _TRY_AGAIN_S[tries]
                self._setbacks[voice.digest] = _Setback(tries + 1, due_s, self._without_paths(why))
                return why
        if why:
            self._failed[voice.digest] = self._without_paths(why)
        return why

    def _without_paths(self, text: str) -> str:
        """For those who are not to know where things lie here; the log has it whole."""
        vocoder = (self._vocoder.folder,) if self._vocoder else ()
        for folder in (self._store.own, self._store.built_in, *vocoder):
            text = text.replace(str(folder), folder.name)
        return _PATH.sub(r"\1", text)
