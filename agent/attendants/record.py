"""What all attendants of one call go by: its settings, its floor, its words and its sound."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agent.attendants.floor import Floor
from agent.attendants.sound import KEPT_S, SoundMemory
from agent.attendants.transcript import Transcript
from agent.clock import SYSTEM_CLOCK, Clock
from agent.commands import AddAudio, ClearInput, Command, CommitInput, Retract
from agent.interfaces import CallDesk
from agent.types import (
    MIC_RATE_HZ,
    FloatArray,
    SpeechEnded,
    SpeechStarted,
    Tool,
    Transcription,
    Unit,
)

_MOST_PENDING = 4
"""Utterances whose end has not come in yet."""


@dataclass(frozen=True, slots=True, eq=False)
class Utterance:
    """What the user said in one go, whole. `committed_s` is when the client was told so."""

    item_id: str
    sound: FloatArray  # [T] at 16 kHz
    committed_s: float
    is_cut: bool = False
    """Its beginning is too long ago."""


@dataclass(slots=True)
class _Pending:
    item_id: str
    start: int
    end: int | None
    committed_s: float


class CallSettings:
    """The session object in force, as its client was told."""

    def __init__(self) -> None:
        self._session: Mapping[str, Any] = {}
        self.tools: tuple[Tool, ...] = ()
        """The client's own."""

    def told(self, session: Mapping[str, Any]) -> None:
        """It has changed."""
        self._session = session
        self.tools = tuple(_tool(one) for one in session.get("tools", ()))

    @property
    def tool_choice(self) -> str:
        """ "auto", "none", "required" or a function's name."""
        choice = self._session.get("tool_choice", "auto")
        return choice if isinstance(choice, str) else str(choice.get("name", "auto"))

    @property
    def uses_side_channel(self) -> bool:
        """Whether functions are decided on beside the conversation."""
        return bool(self._session.get("voice_agent", {}).get("tools") == "side")

    @property
    def language(self) -> str:
        """Of the conversation."""
        return str(self._session.get("voice_agent", {}).get("language", "en"))

    @property
    def transcription(self) -> Transcription | None:
        """How the user's speech is to be written down; None: not at all."""
        audio = self._session.get("audio", {}).get("input", {})
        wanted = audio.get("transcription")
        return None if wanted is None else Transcription(**wanted)


class CallRecord:
    """An attendant that only watches; it comes before those who ask it."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK, *, shows_sound: bool = False) -> None:
        """`shows_sound`: what was said aloud may be asked for at any time, so it is kept."""
        self._clock = clock
        self._shows_sound = shows_sound
        self.settings = CallSettings()
        self.floor = Floor()
        self.transcript = Transcript()
        self.on_utterance: list[Callable[[Utterance], None]] = []
        """Told of each utterance when all of its sound is there."""
        self._memory = SoundMemory()
        self._speech_id = ""
        self._speech_at: int | None = None
        self._speech_ends = False
        self._silence_id = ""
        self._free_from = 0
        self._pending: list[_Pending] = []

    @property
    def _keeps_sound(self) -> bool:
        settings = self.settings
        wanted = settings.uses_side_channel or settings.transcription is not None
        return wanted or self._shows_sound

    def told_client(self, event: Mapping[str, Any]) -> None:
        """The server event that was just sent.

        Of speech it says when that is, but not by which clock: a client that sends its sound inside
        of events is told by its own. What the engine is told next is by the microphone's.
        """
        self.floor.told_client(event)
        self.transcript.told_client(event)
        match event["type"]:
            case "session.created" | "session.updated":
                self.settings.told(event["session"])
            case "input_audio_buffer.speech_started":
                self._speech_id, self._speech_at = event["item_id"], None
            case "input_audio_buffer.speech_stopped" if self._speech_at is not None:
                self._free_from = max(self._free_from, self._speech_at)
            case "input_audio_buffer.timeout_triggered":
                self._silence_id = event["item_id"]
            case "input_audio_buffer.committed":
                self._committed(event["item_id"])

    def told_engine(self, item: Unit | SpeechStarted | SpeechEnded | Command) -> None:
        """What the engine is told next."""
        self.floor.told_engine(item)
        match item:
            case Unit():
                self._hear(item)
            case SpeechStarted(at=at) if self._speech_at is None:
                self._speech_at = at
            case SpeechEnded(at=at) if self._speech_ends:
                self._speech_ends = False
                self._end_at(at)
            case Retract():
                self._memory.take_back(item)
            case AddAudio(item_id=item_id, samples=samples):
                self._attach(item_id, samples)
            case CommitInput(at=at):
                self._end_at(at)
            case ClearInput(at=at):
                self._begin_at(at)
        # Here, and not when it is committed: then the transcript does not have it yet.
        self._settle()

    async def run(self, desk: CallDesk) -> None:
        """It has nothing to do."""

    def awaits(self, item_id: str) -> bool:
        """Whether some of that utterance has not come in yet."""
        return any(pending.item_id == item_id for pending in self._pending)

    # ---- utterances -----------------------------------------------------------------------------

    def _committed(self, item_id: str) -> None:
        """By the detector or by the client: where it ended, the engine is told next."""
        if item_id == self._silence_id:
            return
        begun = self._free_from
        if item_id == self._speech_id and self._speech_at is not None:
            begun, self._speech_ends = self._speech_at, True
        if not self._keeps_sound:
            return
        self._pending.append(_Pending(item_id, begun, None, self._clock.now_s()))
        del self._pending[:-_MOST_PENDING]

    def _begin_at(self, at: int) -> None:
        """What came before `at` is no part of what is committed last, or next."""
        self._free_from = self._time_of(at)
        if self._pending and self._pending[-1].end is None:
            self._pending[-1].start = self._free_from

    def _end_at(self, at: int) -> None:
        """What is committed last ends there."""
        self._free_from = self._time_of(at)
        if self._pending and self._pending[-1].end is None:
            self._pending[-1].end = self._free_from

    def _time_of(self, at: int) -> int:
        return at if at >= 0 else self._memory.end

    def _hear(self, unit: Unit) -> None:
        if not self._keeps_sound:
            self._memory.forget()
        self._memory.push(unit)

    def _settle(self) -> None:
        while self._pending:
            first = self._pending[0]
            if first.end is None or first.end > self._memory.end:
                return
            del self._pending[0]
            self._whole(first, first.end)

    def _whole(self, pending: _Pending, end: int) -> None:
        sound = self._memory.sound(pending.start, end)
        self._attach(pending.item_id, sound)
        is_cut = end - pending.start > KEPT_S * MIC_RATE_HZ
        utterance = Utterance(pending.item_id, sound, pending.committed_s, is_cut)
        for tell in self.on_utterance:
            tell(utterance)

    def _attach(self, item_id: str, sound: FloatArray) -> None:
        if self.settings.uses_side_channel or self._shows_sound:
            self.transcript.attach(item_id, sound)


def _tool(one: Mapping[str, Any]) -> Tool:
    parameters = json.dumps(one.get("parameters", {}), ensure_ascii=False)
    return Tool(one["name"], one.get("description", ""), parameters)
