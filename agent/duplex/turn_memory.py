"""What a half-duplex conversation remembers, and ways back to an earlier point.

The LLM's cache is [system][round][round]…; a round is a user's turn with the answer to it. The
window counts rounds at their true lengths. The reference counts an answer's text tokenised anew,
without its header, never forgets the first round, and nothing at all where answers are not spoken:
so it would cut in the middle of a message.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from agent.duplex.audio_encoder import AudioSnapshot, AudioStream
from agent.duplex.kv_cache import KvStream
from agent.duplex.mel import TURN_BASED, StreamingMel
from agent.duplex.policy import Spoken, heard_tokens
from agent.duplex.random_source import RandomSource
from agent.duplex.slots import Slots
from agent.duplex.usage import Held
from agent.duplex.window import UnitSpan, Window
from agent.errors import EngineError


@dataclass(slots=True)
class TurnMemory:
    """Everything but the contents of the caches and the state of the random source."""

    llm: KvStream
    speech: KvStream
    audio: AudioStream
    window: Window
    mel: StreamingMel = field(default_factory=lambda: StreamingMel(TURN_BASED))
    """Of the user's turn, where it is heard live."""
    is_open: bool = False
    """Whether the user's turn has begun, and more of it may come."""
    has_heard: bool = False
    """Whether there was sound in it."""
    answers: int = 0
    """How many answers were begun."""
    answer_at: int = 0
    """Where the last answer's first token stands."""
    chunks: tuple[Spoken, ...] = ()
    """The last answer as it sounds; no more than its tokens."""
    codes: tuple[int, ...] = ()
    """Its newest speech tokens, as far as a penalty looks back."""
    rewrites: int = 0
    """How often the LLM's cache was changed other than at its end."""
    audio_in: int = 0
    pictures_in: int = 0
    """Vectors of the newest round."""
    has_called: bool = False
    """Whether the last answer called a function, and somebody was told."""

    def copy(self) -> "TurnMemory":
        return replace(
            self,
            llm=replace(self.llm),
            speech=replace(self.speech),
            audio=replace(self.audio),
            window=self.window.copy(),
            mel=self.mel.clone(),
        )

    def open_turn(self) -> None:
        """The user begins, and with it a round."""
        self.window.add(UnitSpan(0, listened=True))
        self.is_open = True
        self.audio_in = self.pictures_in = 0

    def count(self, sounds: Sequence[tuple[int, int]], pictures: Sequence[tuple[int, int]]) -> None:
        """What comes next of the newest round holds vectors in these bounds."""
        self.audio_in += sum(stop - start for start, stop in sounds)
        self.pictures_in += sum(stop - start for start, stop in pictures)

    def close_turn(self) -> None:
        """What comes next is not the user's; what was heard live is forgotten."""
        self.is_open = self.has_heard = False
        self.mel = StreamingMel(TURN_BASED)
        self.audio.cached_frames = self.audio.chunks = 0

    def abandon_turn(self) -> None:
        """Forget the user's turn as far as it was read; what comes next begins it again."""
        if self.is_open:
            self.llm.length = self.window.length - self.window.units[-1].length
            self.window.drop_newest()
            newest = self.window.units[-1] if self.window.units else UnitSpan(0, listened=True)
            self.audio_in, self.pictures_in = newest.audio, newest.pictures
            self.rewrites += 1
        self.close_turn()

    def settle(self) -> None:
        """The cache's end has moved: so long is the newest round now."""
        before = self.window.length - self.window.units[-1].length if self.window.units else 0
        if not self.window.units:
            before = self.window.protected
            self.window.add(UnitSpan(0, listened=True))
        length = self.llm.length - before
        span = UnitSpan(length, listened=True, audio=self.audio_in, pictures=self.pictures_in)
        self.window.replace_newest([span])

    @property
    def held(self) -> Held:
        """What is in the context, without the vectors of a voice in its system message."""
        units = self.window.units
        return Held(
            self.llm.length,
            sum(one.audio for one in units),
            sum(one.pictures for one in units),
            self.llm.length - self.answer_at if self.answers and not self.is_open else 0,
        )

    def begin_answer(self) -> None:
        """Its header was read."""
        self.close_turn()
        self.answers += 1
        self.answer_at = self.llm.length
        self.chunks, self.codes = (), ()
        self.speech.length = 0
        self.has_called = False

    def give_up_answer(self, heard_ms: int) -> int:
        """Forget what was not heard of the last answer → how many of its tokens.

        Nothing of one that has called a function, which does its work meanwhile.
        """
        if self.has_called:
            self.speech.length = 0
            self.chunks = ()
            return 0
        kept = self.answer_at
        for chunk in self.chunks:
            heard = heard_tokens(chunk, heard_ms)
            kept += heard
            if heard < len(chunk.said):
                break
        gone = self.llm.length - kept
        self.llm.length = kept
        self.speech.length = 0
        self.chunks = ()
        self.rewrites += bool(gone)
        self.settle()
        return gone


# ---- going back, and leaving the slot -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TurnSnapshot:
    """A point to go back to, once, while no answer is under way.

    The LLM's cache is not copied: what is in it up to here stays as it is, as long as nothing of
    it is forgotten; then the snapshot is too old.
    """

    memory: TurnMemory
    random: RandomSource
    heard: AudioSnapshot | None
    """What the encoder has heard live of the user's turn."""


def take_turn_snapshot(memory: TurnMemory, random: RandomSource, slots: Slots) -> TurnSnapshot:
    """Where `memory` is now."""
    heard = slots.audio.snapshot(memory.audio) if memory.audio.cached_frames else None
    return TurnSnapshot(memory.copy(), random.copy(), heard)


def go_back_to(
    memory: TurnMemory, snapshot: TurnSnapshot, random: RandomSource, slots: Slots
) -> TurnMemory:
    """The memory that goes on from `snapshot`; EngineError when that is too old."""
    if memory.rewrites != snapshot.memory.rewrites:
        raise EngineError("the conversation has moved on too far to go back")
    back = snapshot.memory.copy()
    back.rewrites = memory.rewrites + 1
    back.llm.slot = back.speech.slot = back.audio.slot = memory.llm.slot
    if snapshot.heard is not None:
        slots.audio.restore(back.audio, snapshot.heard)
    random.drawn = snapshot.random.drawn
    return back
