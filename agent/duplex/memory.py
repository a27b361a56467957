"""What one conversation remembers between two units, and ways back to an earlier point."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from agent.duplex.audio_encoder import (
    BLOCK_FRAMES,
    OVERLAP_FRAMES,
    AudioSnapshot,
    AudioStream,
)
from agent.duplex.kv_cache import KvCache, KvCopy, KvStream
from agent.duplex.mel import StreamingMel
from agent.duplex.pictures import Patches
from agent.duplex.policy import Floor, Outcome, Spoken, first_unheard, heard_tokens
from agent.duplex.random_source import RandomSource
from agent.duplex.sampling import History
from agent.duplex.slots import Slots
from agent.duplex.tokens import TextStream, Token, without_specials
from agent.duplex.usage import Held
from agent.duplex.window import UnitSpan, Window
from agent.errors import EngineError
from agent.types import FloatArray

KEPT_UNITS = 16
"""Units whose vectors are kept so that they can be fed again; an interruption reaches no further
back than what is still being played, a few seconds."""


@dataclass(frozen=True, slots=True)
class UnitRecord:
    """One unit as it lies in the cache, with what it takes to feed it again."""

    unit: int
    senses: Tensor  # [n, W]: `<unit>`, pictures, sound, text that was put in
    outcome: Outcome
    spoken: Spoken
    audio: int = 0
    pictures: int = 0
    """Vectors among the senses."""

    @property
    def ids(self) -> tuple[int, ...]:
        """What follows the senses, down to `</unit>`."""
        return (*self.outcome.fed, self.outcome.terminator, Token.END_UNIT)

    @property
    def span(self) -> UnitSpan:
        length = len(self.senses) + len(self.ids)
        outcome = self.outcome
        return UnitSpan(
            length,
            outcome.listened,
            outcome.said,
            self.audio,
            self.pictures,
            len(outcome.fed),
            outcome.turn,
        )


@dataclass(slots=True)
class Memory:
    """Everything but the contents of the caches and the state of the random source."""

    llm: KvStream
    speech: KvStream
    audio: AudioStream
    window: Window
    text: TextStream
    history: History
    mel: StreamingMel = field(default_factory=StreamingMel)
    floor: Floor = field(default_factory=Floor)
    records: tuple[UnitRecord, ...] = ()
    """The newest units, oldest first; at most KEPT_UNITS, and no more than the window holds."""
    tail: tuple[int, ...] = ()
    """Ids that are decided but not fed yet: they go with the next unit's prefill."""
    put_in: tuple[int, ...] = ()
    """Text for the next unit."""
    pictures: tuple[list[Patches], ...] = ()
    """Those for the next unit that did not come with it."""
    sounds: tuple[FloatArray, ...] = ()
    """Recordings for the next unit."""
    turn_ms: int = 0
    """How long the turn that goes on sounds up to now."""
    is_uncut: bool = False
    """Whether it has yet to be seen if units are to be forgotten."""
    way_back: "Snapshot | None" = None
    """Where it may go back to: what is in the caches up to there is not lost."""

    @property
    def context_tokens(self) -> int:
        """Positions of the LLM that the conversation takes, the tail counted."""
        return self.llm.length + len(self.tail)

    def held(self, turn: int) -> Held:
        """What is in the context, without the vectors of a voice in its prompt; `turn` is the
        newest. What is being forgotten is not in it any more."""
        units = self.window.units
        return Held(
            self.window.length,
            sum(one.audio for one in units),
            sum(one.pictures for one in units),
            sum(one.generated for one in units if one.turn == turn),
        )

    def copy(self) -> "Memory":
        return replace(
            self,
            llm=replace(self.llm),
            speech=replace(self.speech),
            audio=replace(self.audio),
            window=self.window.copy(),
            text=self.text.copy(),
            history=self.history.copy(),
            mel=self.mel.clone(),
            floor=self.floor.copy(),
            way_back=None,
        )

    def remember(self, record: UnitRecord) -> None:
        """A unit is over; its last ids wait to be fed."""
        self.window.add(record.span)
        self.records = (*self.records, record)[-KEPT_UNITS:]

    def forget_speech(self) -> None:
        """The turn's speech is over or given up."""
        self.speech.length = 0
        self.turn_ms = 0


# ---- an interruption ----------------------------------------------------------------------------


def retold(records: Sequence[UnitRecord], turn: int, heard_ms: int) -> list[UnitRecord]:
    """The newest units as they are to be fed again after `turn` was interrupted; [] if nothing is.

    From the first unit on that holds text which was not heard: it keeps what was heard and ends
    the turn, and the turn's later units listen. Where all was heard but the turn goes on, its last
    unit ends it. A turn that has called a function stays whole: the function does its work.
    """
    of_turn = [i for i, record in enumerate(records) if record.outcome.turn == turn]
    if not of_turn or any(records[i].outcome.called is not None for i in of_turn):
        return []
    unheard = first_unheard([records[i].spoken for i in of_turn], heard_ms)
    if unheard is None and any(records[i].outcome.ends_turn for i in of_turn):
        return []
    first = of_turn[-1 if unheard is None else unheard]
    cut = _cut_short(records[first], heard_ms)
    later = [_listening(one) if one.outcome.turn == turn else one for one in records[first + 1 :]]
    return [cut, *later]


def _cut_short(record: UnitRecord, heard_ms: int) -> UnitRecord:
    words = without_specials(record.outcome.said)
    said = (*words[: heard_tokens(record.spoken, heard_ms)], Token.TURN_EOS)
    outcome = replace(
        record.outcome,
        fed=(*record.outcome.fed[:1], *said),
        said=said,
        terminator=Token.CHUNK_EOS,
        listened=False,
        ends_turn="interrupted",
    )
    return replace(record, outcome=outcome, spoken=replace(record.spoken, said=said))


def _listening(record: UnitRecord) -> UnitRecord:
    outcome = Outcome(fed=(), said=(), terminator=Token.LISTEN, listened=True, turn=0)
    return replace(record, outcome=outcome, spoken=replace(record.spoken, said=()))


# ---- going back, and leaving the slot -----------------------------------------------------------


@dataclass(slots=True)
class Snapshot:
    """A point to go back to, once, over units that were only tried.

    The caches are not copied: what is in them up to here mostly stays as it is. Whoever is about
    to change it has it kept first.
    """

    memory: Memory
    random: RandomSource
    llm: KvCopy | None = None
    speech: KvCopy | None = None
    audio: AudioSnapshot | None = None


def take_snapshot(memory: Memory, random: RandomSource) -> Snapshot:
    """Where `memory` is now. It can go back there until the next one is taken."""
    memory.way_back = Snapshot(memory.copy(), random.copy())
    return memory.way_back


def keep_llm(memory: Memory, slots: Slots) -> None:
    """The LLM's cache is about to be changed other than at its end."""
    point = memory.way_back
    if point is not None and point.llm is None:
        point.llm = _kept(slots.llm, memory.llm, point.memory.llm)


def keep_speech(memory: Memory, slots: Slots) -> None:
    """The speech LM is about to begin at its first position."""
    point = memory.way_back
    if point is not None and point.speech is None and point.memory.speech.length:
        point.speech = _kept(slots.speech, memory.speech, point.memory.speech)


def keep_audio(memory: Memory, slots: Slots) -> None:
    """The audio encoder is about to hear a second: perhaps it forgets all before."""
    point, audio = memory.way_back, memory.audio
    forgets = audio.cached_frames + BLOCK_FRAMES + OVERLAP_FRAMES >= slots.audio.positions
    if point is not None and point.audio is None and forgets:
        then = replace(point.memory.audio, slot=audio.slot)
        point.audio = slots.audio.snapshot(then)


def _kept(cache: KvCache, now: KvStream, then: KvStream) -> KvCopy:
    """In the host's memory: this is rare, and that of the device is all given away."""
    return cache.copy(replace(then, slot=now.slot), torch.device("cpu"))


def go_back(memory: Memory, snapshot: Snapshot, random: RandomSource, slots: Slots) -> Memory:
    """The memory that goes on from `snapshot`; EngineError when that was left behind for good."""
    if memory.way_back is not snapshot:
        raise EngineError("the conversation has moved on too far to go back")
    back = snapshot.memory.copy()
    back.llm.slot, back.speech.slot = memory.llm.slot, memory.speech.slot
    back.audio.slot = memory.audio.slot
    if snapshot.llm is not None:
        slots.llm.put_back(back.llm, snapshot.llm)
    if snapshot.speech is not None:
        slots.speech.put_back(back.speech, snapshot.speech)
    if snapshot.audio is not None:
        slots.audio.restore(back.audio, snapshot.audio)
    random.drawn = snapshot.random.drawn
    return back


class Slotted(Protocol):
    """What remembers where its streams are: in the same slot of every cache."""

    llm: KvStream
    speech: KvStream
    audio: AudioStream


@dataclass(frozen=True, slots=True)
class Parked:
    """The contents of a slot in the host's memory."""

    llm: KvCopy
    speech: KvCopy
    audio: AudioSnapshot

    @classmethod
    def of(cls, memory: Slotted, slots: Slots) -> "Parked":
        host = torch.device("cpu")
        audio = slots.audio.snapshot(memory.audio)
        return cls(
            slots.llm.copy(memory.llm, host),
            slots.speech.copy(memory.speech, host),
            replace(audio, keys=audio.keys.to(host), values=audio.values.to(host)),
        )

    def put_back(self, memory: Slotted, slots: Slots, slot: int) -> None:
        """Fill `slot`, which is the conversation's from now on."""
        memory.llm.slot = memory.speech.slot = memory.audio.slot = slot
        slots.llm.put_back(memory.llm, self.llm)
        slots.speech.put_back(memory.speech, self.speech)
        slots.audio.restore(memory.audio, self.audio)


def new_memory(
    slot: int, window: Window, decode: Callable[[Sequence[int]], str], history: History
) -> Memory:
    """That of a conversation in which nothing was said."""
    return Memory(
        llm=KvStream(slot),
        speech=KvStream(slot),
        audio=AudioStream(slot),
        window=window,
        text=TextStream(decode),
        history=history,
    )
