"""What a conversation asks of the model: one kind of work each, of a size of its own.

A conversation says what it needs next and waits; whoever runs it does the work, for one
conversation at a time (`Runner`) or for many together. Nothing here decides anything.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from torch import Generator as RandomSource
from torch import Tensor

from agent.clock import SYSTEM_CLOCK, Clock
from agent.duplex.audio_encoder import AudioStream
from agent.duplex.kv_cache import KvStream
from agent.duplex.model import DuplexModel
from agent.duplex.pictures import Patches
from agent.duplex.sampling import Drawing, SpeechSampling
from agent.duplex.slots import Slots
from agent.duplex.speech_lm import SpeechCall, speak, speak_on

T = TypeVar("T")


class Work(Protocol):
    """One piece of work; its answer is in it once it was run."""

    @property
    def stage(self) -> str:
        """The name that its time is counted under."""

    def run(self, model: DuplexModel, slots: Slots) -> None:
        """Do it, for this conversation alone."""


class TokenSampler(Protocol):
    """How tokens are drawn; holds nothing of any conversation."""

    def choose(self, logits: Tensor, drawings: Sequence[Drawing]) -> list[int]:
        """The next token of each row of `logits` [B, V]; one read from the device."""


@dataclass(slots=True)
class Look:
    """Pictures, patched → vectors."""

    pieces: Sequence[Patches]
    vectors: Tensor = field(default_factory=lambda: torch.empty(0))  # [N, queries, W]
    stage = "vision"

    def run(self, model: DuplexModel, slots: Slots) -> None:
        self.vectors = model.eyes.see(self.pieces)


@dataclass(slots=True)
class Hear:
    """A second of mel → vectors."""

    mel: Tensor
    stream: AudioStream
    vectors: Tensor = field(default_factory=lambda: torch.empty(0))  # [10, W]
    stage = "audio"

    def run(self, model: DuplexModel, slots: Slots) -> None:
        self.vectors = model.ears.hear([self.mel], [self.stream], slots.audio)[0]


@dataclass(slots=True)
class HearRecording:
    """The mel [80, T] of at most 30 s of a recording → vectors.

    `block_frames` as in `Ears.hear_recordings`: None lets every frame see every other.
    """

    mel: Tensor
    block_frames: int | None
    vectors: Tensor = field(default_factory=lambda: torch.empty(0))  # [n, W]
    stage = "audio"

    def run(self, model: DuplexModel, slots: Slots) -> None:
        (self.vectors,) = model.ears.hear_recordings([self.mel], self.block_frames)


@dataclass(slots=True)
class HearLive:
    """A piece of a user's turn, as it comes → vectors."""

    mel: Tensor
    stream: AudioStream
    vectors: Tensor = field(default_factory=lambda: torch.empty(0))  # [n, W]
    stage = "audio"

    def run(self, model: DuplexModel, slots: Slots) -> None:
        self.vectors = model.ears.hear_untrimmed(self.mel, self.stream, slots.audio)


@dataclass(slots=True)
class Read:
    """The LLM's next positions [T, W] → the state at the last of them."""

    embeddings: Tensor
    stream: KvStream
    state: Tensor = field(default_factory=lambda: torch.empty(0))  # [W]

    @property
    def stage(self) -> str:
        return "prefill" if len(self.embeddings) > 1 else "decode"

    def run(self, model: DuplexModel, slots: Slots) -> None:
        states = model.llm.read(self.embeddings[None], [self.stream], slots.llm)
        self.state = states[0, -1]


@dataclass(slots=True)
class Choose:
    """A state → the next token: one row of the head."""

    state: Tensor
    sampler: TokenSampler
    drawing: Drawing
    token: int = -1
    stage = "decode"

    def run(self, model: DuplexModel, slots: Slots) -> None:
        logits = model.llm.logits(self.state[None])
        (self.token,) = self.sampler.choose(logits, [self.drawing])


@dataclass(slots=True)
class Speak:
    """What a unit said → its speech tokens."""

    said: Sequence[int]
    states: Sequence[Tensor]
    stream: KvStream
    sampling: SpeechSampling
    generator: RandomSource
    may_end: bool
    tokens: list[int] = field(default_factory=list)
    stage = "speech"

    def run(self, model: DuplexModel, slots: Slots) -> None:
        condition = model.speech.condition(self.said, self.states)
        turn = (self.stream, slots.speech)
        self.tokens = speak(
            model.speech, condition, turn, self.sampling, self.generator, may_end=self.may_end
        )


@dataclass(slots=True)
class SpeakOn:
    """The next second of a chunk of an answer; to be asked for again until the call has ended."""

    call: SpeechCall
    stream: KvStream
    sampling: SpeechSampling
    generator: RandomSource
    stage = "speech"

    def run(self, model: DuplexModel, slots: Slots) -> None:
        turn = (self.stream, slots.speech)
        speak_on(model.speech, self.call, turn, self.sampling, self.generator)


@dataclass(frozen=True, slots=True)
class Runner:
    """Does the work of one conversation at a time: weights, caches, and a clock."""

    model: DuplexModel
    slots: Slots
    clock: Clock = SYSTEM_CLOCK

    def run(self, steps: Generator[Work, None, T]) -> tuple[T, tuple[tuple[str, float], ...]]:
        """Do one conversation's steps to their end → the result, and milliseconds by stage.

        On a GPU a stage's time ends where its answer is read; what is not read counts later.
        """
        spent_ms: dict[str, float] = {}
        while True:
            try:
                work = next(steps)
            except StopIteration as stop:
                result: T = stop.value
                return result, tuple(spent_ms.items())
            begun_s = self.clock.now_s()
            work.run(self.model, self.slots)
            took_ms = (self.clock.now_s() - begun_s) * 1000
            spent_ms[work.stage] = spent_ms.get(work.stage, 0.0) + took_ms
