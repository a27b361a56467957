"""What a conversation asks of the model: one kind of work each, of a size of its own.

A conversation says what it needs next and waits; whoever runs it does the work, alone or together
with that of others (`agent.duplex.lanes`). Nothing here decides anything.
"""

import logging
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from agent.duplex.audio_encoder import AudioStream
from agent.duplex.kv_cache import KvStream
from agent.duplex.model import DuplexModel
from agent.duplex.pictures import Patches
from agent.duplex.random_source import RandomSource
from agent.duplex.sampling import Drawing, SpeechSampling
from agent.duplex.slots import Slots
from agent.duplex.speech_lm import SpeechCall, speak, speak_on
from agent.errors import VocoderError
from agent.interfaces import VocoderStream
from agent.torch_parts.device import breaks_device
from agent.types import FloatArray

log = logging.getLogger(__name__)

LaneName: TypeAlias = Literal["vision", "audio", "llm", "speech", "voice"]
"""What works on it: the part of the model, or the vocoder."""
NO_SOUND: FloatArray = np.zeros(0, np.float32)


class Work(Protocol):
    """One piece of work; its answer is in it once it was run."""

    @property
    def stage(self) -> str:
        """The name that its time is counted under."""

    @property
    def lane(self) -> LaneName:
        """Where it is done."""

    def run(self, model: DuplexModel, slots: Slots) -> None:
        """Do it, for this conversation alone."""


@dataclass(frozen=True, slots=True)
class Together:
    """Pieces of work for different lanes that do not need each other: each is done on its own."""

    parts: Sequence[Work]

    @property
    def stage(self) -> str:
        return self.parts[0].stage

    @property
    def lane(self) -> LaneName:
        return self.parts[0].lane

    def run(self, model: DuplexModel, slots: Slots) -> None:
        """One after the other."""
        for part in self.parts:
            part.run(model, slots)


def alongside(*several: Generator[Work, None, None]) -> Generator[Work, None, None]:
    """All of these, each piece by piece, along with a piece of each of the others.

    Theirs must be for different lanes, and not need each other. What fails ends all of them.
    """
    running = list(several)
    try:
        while running:
            parts = list[Work]()
            for steps in running[:]:
                work = next(steps, None)
                if work is None:
                    running.remove(steps)
                else:
                    parts += work.parts if isinstance(work, Together) else [work]
            if parts:
                yield Together(parts) if len(parts) > 1 else parts[0]
    finally:
        for steps in several:
            steps.close()


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
    lane: LaneName = "vision"

    def run(self, model: DuplexModel, slots: Slots) -> None:
        self.vectors = model.eyes.see(self.pieces)


@dataclass(slots=True)
class Hear:
    """A second of mel → vectors."""

    mel: Tensor
    stream: AudioStream
    vectors: Tensor = field(default_factory=lambda: torch.empty(0))  # [10, W]
    stage = "audio"
    lane: LaneName = "audio"

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
    lane: LaneName = "audio"

    def run(self, model: DuplexModel, slots: Slots) -> None:
        (self.vectors,) = model.ears.hear_recordings([self.mel], self.block_frames)


@dataclass(slots=True)
class HearLive:
    """A piece of a user's turn, as it comes → vectors."""

    mel: Tensor
    stream: AudioStream
    vectors: Tensor = field(default_factory=lambda: torch.empty(0))  # [n, W]
    stage = "audio"
    lane: LaneName = "audio"

    def run(self, model: DuplexModel, slots: Slots) -> None:
        self.vectors = model.ears.hear_untrimmed(self.mel, self.stream, slots.audio)


@dataclass(frozen=True, slots=True)
class Choice:
    """How a token is drawn, and for whom."""

    sampler: TokenSampler
    drawing: Drawing


@dataclass(slots=True)
class Read:
    """The LLM's next positions, `ids` and behind them `vectors` [n, W] → the state at the last,
    and the token that is chosen to follow, where there is a choice."""

    stream: KvStream
    ids: Sequence[int] = ()
    vectors: Tensor | None = None
    choice: Choice | None = None
    state: Tensor = field(default_factory=lambda: torch.empty(0))  # [W]
    token: int = -1
    lane: LaneName = "llm"

    @property
    def count(self) -> int:
        """How many positions."""
        return len(self.ids) + (0 if self.vectors is None else len(self.vectors))

    @property
    def stage(self) -> str:
        return "prefill" if self.count > 1 else "decode"

    def embeddings(self, model: DuplexModel) -> Tensor:
        """All of it, [T, W]."""
        if self.vectors is None:
            return model.llm.embed(self.ids)
        return torch.cat([model.llm.embed(self.ids), self.vectors]) if self.ids else self.vectors

    def run(self, model: DuplexModel, slots: Slots) -> None:
        states = model.llm.read(self.embeddings(model)[None], [self.stream], slots.llm)
        self.state = states[0, -1]
        if self.choice is not None:
            self.token = _chosen(model, self.state, self.choice)


@dataclass(slots=True)
class Choose:
    """A state [W] → the next token: one row of the head."""

    state: Tensor
    choice: Choice
    token: int = -1
    stage = "decode"
    lane: LaneName = "llm"

    def run(self, model: DuplexModel, slots: Slots) -> None:
        self.token = _chosen(model, self.state, self.choice)


def _chosen(model: DuplexModel, state: Tensor, choice: Choice) -> int:
    (token,) = choice.sampler.choose(model.llm.logits(state[None]), [choice.drawing])
    return token


@dataclass(slots=True)
class Speak:
    """What a unit said → its speech tokens."""

    said: Sequence[int]
    states: Sequence[Tensor]
    stream: KvStream
    sampling: SpeechSampling
    random: RandomSource
    may_end: bool
    tokens: list[int] = field(default_factory=list)
    stage = "speech"
    lane: LaneName = "speech"

    def run(self, model: DuplexModel, slots: Slots) -> None:
        condition = model.speech.condition(self.said, self.states)
        turn = (self.stream, slots.speech)
        self.tokens = speak(
            model.speech, condition, turn, self.sampling, self.random, may_end=self.may_end
        )


@dataclass(slots=True)
class SpeakOn:
    """The next second of a chunk of an answer; to be asked for again until the call has ended."""

    call: SpeechCall
    stream: KvStream
    sampling: SpeechSampling
    random: RandomSource
    stage = "speech"
    lane: LaneName = "speech"

    def run(self, model: DuplexModel, slots: Slots) -> None:
        turn = (self.stream, slots.speech)
        speak_on(model.speech, self.call, turn, self.sampling, self.random)


@dataclass(slots=True)
class Voice:
    """A turn's next speech tokens, and with the `last` of them its end → sound [T] at 24 kHz.

    What goes wrong is kept for who asked, so are memory that ran out and faults of the vocoder's
    own: they cost a turn its sound, and no more. A broken GPU is everybody's, and raised.
    """

    stream: VocoderStream
    tokens: Sequence[int] = ()
    last: bool = False
    samples: FloatArray = field(default_factory=lambda: NO_SOUND)
    error: VocoderError | None = None
    stage = "vocoder"
    lane: LaneName = "voice"

    def run(self, model: DuplexModel, slots: Slots) -> None:
        try:
            parts = [self.stream.push(self.tokens)] if self.tokens else []
            parts += [self.stream.finish()] if self.last else []
            self.samples = np.concatenate(parts) if parts else NO_SOUND
        except (VocoderError, RuntimeError) as error:
            self.error = voice_failure(error)


def voice_failure(error: VocoderError | RuntimeError) -> VocoderError:
    """What whoever wanted sound is told of `error`; raised again where nothing works now."""
    if isinstance(error, VocoderError):
        return error
    if breaks_device(error):
        raise error
    # Without the error as its cause, whose frames would hold on to the device's memory.
    log.warning("the vocoder failed", exc_info=error)
    return VocoderError(f"the vocoder failed: {str(error) or type(error).__name__}")
