"""token2wav as a vocoder: voices prepared once, and any number of streams that share them.

    voice = token2wav.voice(prompt, "anna")  # once per voice
    stream = token2wav.open(voice)  # once per turn
    sound = stream.push(tokens)  # … and at the end stream.finish()

A stream owns the windows: 25 tokens at a time, and three more to look ahead at, which come again at
the head of the next window.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from agent.errors import VocoderError
from agent.interfaces import VocoderBatch, VocoderPush
from agent.types import FloatArray
from agent.vocoder.batched.batches import Batch
from agent.vocoder.batched.places import Full
from agent.vocoder.batched.turn import Chunk, TurnState, VoicePlace, begun
from agent.vocoder.config import SILENCE_TOKEN, TOKEN_SAMPLES
from agent.vocoder.flow import Flow, FlowState, Noise
from agent.vocoder.hift_stream import VocoderTail
from agent.vocoder.late_failure import made_of
from agent.vocoder.one_by_one import done_one_by_one
from agent.vocoder.prepared_voice import BatchedVoice, Machine, PreparedVoice
from agent.vocoder.voice import SpeakerPrompt

LEAD_TOKENS = 3
"""Silence that the model expects before the first token of a turn."""
_LEAST_HOP_TOKENS = 4
"""What HiFT's tail of eight frames needs of the first chunk."""
_LEAST_EAGER_TOKENS = 5
_MOST_HOP_TOKENS = 50
_LEAST_PROMPT_TOKENS = 25
"""Under a second nothing can be said in that voice."""
_MOST_PROMPT_TOKENS = 750
_MOST_WHOLE_TOKENS = 1500
"""A minute: what everything sees everything of grows with the square."""

Lead: TypeAlias = Literal["dropped", "heard", "none"]
"""The silence before a turn: dropped is told to the model, but its sound is left out; heard plays
its 120 ms, as the reference; none does not tell the model."""


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """How a turn is cut into chunks.

    A smaller first hop is heard sooner. `eager` waits for no full hop: of each push it says all
    that can be said in chunks of at least five tokens, as the reference's duplex mode; and where
    the turn ends with a push, its last hop is not made in two for what it had only looked at.
    """

    first_hop_tokens: int = 25
    hop_tokens: int = 25
    eager: bool = False
    lead: Lead = "dropped"

    def __post_init__(self) -> None:
        for name in ("first_hop_tokens", "hop_tokens"):
            value = getattr(self, name)
            if not _LEAST_HOP_TOKENS <= value <= _MOST_HOP_TOKENS:
                raise ValueError(
                    f"{name} is {value}, expected {_LEAST_HOP_TOKENS} to {_MOST_HOP_TOKENS}"
                )
        if self.eager and self.hop_tokens < _LEAST_EAGER_TOKENS:
            raise ValueError(f"hop_tokens is {self.hop_tokens}, too little for eager chunks")

    def most_tokens(self, lookahead: int) -> int:
        """What a chunk has at most."""
        return max(self.first_hop_tokens, self.hop_tokens) + (lookahead if self.eager else 0)


class Sounding(Protocol):
    """What turns mel into sound; `name` is the voice's, and seeds what is random."""

    def open_tail(self, name: str) -> VocoderTail:
        """For one turn, in pieces."""
        ...

    def whole(self, mel: Tensor, name: str) -> Tensor:
        """An utterance at once: f32 [1, M, T] → [480 T]."""
        ...


class Token2wav:
    """Shared by all streams; the weights and voices hold nothing of a turn.

    A chunk that is not finite is computed once more by `exact`, the same flow in float32, and the
    stream stays there; a second failure is a `VocoderError`.
    """

    machine: Machine | None = None
    """What makes the chunks of many streams at once; without one they are made one by one. To be
    given before any voice is prepared."""

    def __init__(
        self,
        flow: Flow,
        sounding: Sounding,
        settings: StreamSettings,
        noise: Noise,
        exact: Callable[[], Flow],
    ) -> None:
        self.flow = flow
        self.settings = settings
        self.sounding = sounding
        self.noise = noise
        self._exact = exact
        self._begun: Batch | None = None

    @property
    def lag_ms(self) -> int:
        """How much of a turn's sound comes before that of its first token."""
        return 40 * LEAD_TOKENS if self.settings.lead == "heard" else 0

    @property
    def most_pushes(self) -> int:
        """How many go together."""
        return 1 if self.machine is None else self.machine.most

    def begin(self, pushes: Sequence[VocoderPush]) -> VocoderBatch:
        """See `BatchVocoder`. A batch that was not taken is finished first."""
        if self.machine is None:
            return done_one_by_one(pushes)
        if self._begun is not None:
            self._begun.settle()
        self._begun = Batch(self.machine, pushes, [_stream_of(push) for push in pushes])
        return self._begun

    @torch.inference_mode()
    def voice(self, prompt: SpeakerPrompt, name: str) -> PreparedVoice:
        """Compute a voice once; `VocoderError` when the prompt is not what this model knows."""
        self._check(prompt)
        device = self.flow.device
        tokens = torch.tensor(prompt.speech_tokens, dtype=torch.long, device=device)
        mel = torch.tensor(prompt.mel, device=device)
        embedding = torch.tensor(prompt.embedding, device=device)
        state = self.flow.setup(tokens, mel, embedding, self.noise)
        if not state.is_finite and self.flow.dtype != torch.float32:
            state = self._exact().setup(tokens, mel, embedding, self.noise)
        if not state.is_finite:
            raise VocoderError("the voice gave numbers that are not finite")
        return self._batched(PreparedVoice(state, tokens, mel, embedding, name))

    def _batched(self, voice: PreparedVoice) -> PreparedVoice:
        """The same, known to the machine where that is possible."""
        if self.machine is None or voice.state.dtype != self.flow.dtype:
            return voice
        memory = self.machine.packed(voice.state)
        try:
            place = self.machine.place(memory, voice.name)
        except Full:
            return voice
        return replace(voice, state=memory.state, batched=BatchedVoice(memory, place))

    def open(self, voice: PreparedVoice) -> "Token2wavStream":
        """A stream for one turn in that voice."""
        return Token2wavStream(self, voice)

    @torch.inference_mode()
    def whole(self, voice: PreparedVoice, tokens: Sequence[int]) -> FloatArray:
        """An utterance at once, everything seeing everything: the sound f32 [960 n]."""
        self.check_tokens(tokens)
        if len(tokens) > _MOST_WHOLE_TOKENS:
            raise VocoderError(f"{len(tokens)} tokens are too many at once; use a stream")
        if not tokens:
            return np.zeros(0, np.float32)
        said = self._tensor(tokens)
        prompt = (voice.prompt_tokens, voice.prompt_mel, voice.embedding)
        mel = self.flow.whole(said, *prompt, self.noise)
        if not _is_finite(mel) and self.flow.dtype != torch.float32:
            mel = self._exact().whole(said, *prompt, self.noise)
        _require_finite(mel, "flow")
        sound = self.sounding.whole(mel, voice.name)
        _require_finite(sound, "HiFT")
        return sound.cpu().numpy()

    def advance(
        self, state: FlowState, tokens: Sequence[int], *, final: bool
    ) -> tuple[Tensor, FlowState]:
        """The next tokens as in `Flow.chunk`, in float32 where less does not do."""
        said = self._tensor(tokens)
        flow = self.flow if state.dtype == self.flow.dtype else self._exact()
        mel, after = flow.chunk(state, said, self.noise, final=final)
        if not _is_finite(mel) and state.dtype != torch.float32:
            mel, after = self._exact().chunk(state.to(torch.float32), said, self.noise, final=final)
        _require_finite(mel, "flow")
        return mel, after

    def check_tokens(self, tokens: Sequence[int]) -> None:
        """`VocoderError` for an id that is no speech token, such as the end of a turn."""
        vocabulary = self.flow.config.vocabulary
        wrong = [token for token in tokens if not 0 <= token < vocabulary]
        if wrong:
            raise VocoderError(f"{wrong[0]} is no speech token: they go from 0 to {vocabulary - 1}")

    def _check(self, prompt: SpeakerPrompt) -> None:
        self.check_tokens(prompt.speech_tokens.tolist())
        count = len(prompt.speech_tokens)
        if not _LEAST_PROMPT_TOKENS <= count <= _MOST_PROMPT_TOKENS:
            raise VocoderError(f"a voice of {count / 25:.1f} s; 1 s to 30 s can be spoken with")
        config = self.flow.config
        has = (prompt.mel.shape[1], prompt.embedding.shape[0])
        wants = (config.mel_bins, config.speaker_width)
        if has != wants:
            raise VocoderError(
                f"a voice of {has[0]} mel bands and an embedding of {has[1]}; "
                f"this model wants {wants[0]} and {wants[1]}"
            )

    def _tensor(self, tokens: Sequence[int]) -> Tensor:
        return torch.tensor(list(tokens), dtype=torch.long, device=self.flow.device)


class Token2wavStream:
    """One turn's `VocoderStream`; drop it to give the turn up.

    As long as a machine makes its chunks it has a `memory`; else a state of its own.
    """

    def __init__(self, shared: Token2wav, voice: PreparedVoice) -> None:
        self._shared = shared
        self._voice = voice
        self._state: FlowState | TurnState = voice.state
        if shared.machine is not None and voice.batched is not None:
            self._state = begun(voice.batched.place, shared.machine.rooms)
        self._tail = shared.sounding.open_tail(voice.name)
        lead = 0 if shared.settings.lead == "none" else LEAD_TOKENS
        self._waiting = [SILENCE_TOKEN] * lead
        self._to_drop = lead * TOKEN_SAMPLES if shared.settings.lead == "dropped" else 0
        self._next_hop = shared.settings.first_hop_tokens
        self._received = 0
        self._over = False
        self._failure = ""

    @property
    def nbytes(self) -> int:
        """What its memory of the flow takes beside that of the voice."""
        if isinstance(self._state, FlowState):
            return self._state.bytes_owned
        return self._machine.nbytes_of(self._state)

    def clone(self) -> "Token2wavStream":
        """A stream that goes on from here by itself."""
        other = copy.copy(self)
        other._waiting = [*self._waiting]
        other._tail = self._tail.clone()
        return other

    def push(self, tokens: Sequence[int]) -> FloatArray:
        """The next tokens, any number: the sound f32 [T] that they complete.

        `VocoderError` for what is no speech token, and when the turn is over or has failed. Where
        a later chunk fails, what came before it is returned, and the next call raises.
        """
        return self._answered(tokens, last=False)

    def finish(self) -> FloatArray:
        """The end of the turn: what is left of its sound f32 [T], which may be nothing."""
        return self._answered((), last=True)

    def _answered(self, tokens: Sequence[int], *, last: bool) -> FloatArray:
        if self._shared.machine is None:
            return self.say(tokens, last=last)
        (answer,) = self._shared.begin([VocoderPush(self, tokens, last)]).take()
        if isinstance(answer, VocoderError):
            raise answer
        return answer

    # ---- by itself ------------------------------------------------------------------------------

    @torch.inference_mode()
    def say(self, tokens: Sequence[int], *, last: bool) -> FloatArray:
        """The sound that these tokens complete, and with the `last` of them all that is left."""
        chunks = self.accept(tokens, last=last)
        # A turn that fails stays failed: what came after it would not fit what came before.
        self._over = True
        sound, self._failure = made_of(self._sound(chunk) for chunk in chunks)
        if last and self._failure:
            raise VocoderError(self._failure)
        self._over = last
        return sound

    def _sound(self, chunk: Chunk) -> Tensor:
        assert isinstance(self._state, FlowState)
        mel, self._state = self._shared.advance(self._state, chunk.tokens, final=chunk.final)
        sound = self._tail.push(mel, last=chunk.final)
        _require_finite(sound, "HiFT")
        return sound[self._dropped(len(sound)) :]

    # ---- in a batch -----------------------------------------------------------------------------

    @property
    def memory(self) -> tuple[VoicePlace, TurnState] | None:
        """See `agent.vocoder.batched.batches.Turn`."""
        if isinstance(self._state, FlowState) or self._voice.batched is None:
            return None
        return self._voice.batched.place, self._state

    def accept(self, tokens: Sequence[int], *, last: bool) -> list[Chunk]:
        """Take these tokens: the chunks that are due. `VocoderError`."""
        self._shared.check_tokens(tokens)
        if self._over or self._failure:
            raise VocoderError(self._failure or "this turn is over, or has failed")
        self._waiting += tokens
        self._received += len(tokens)
        chunks = list(self._due_chunks(last=last))
        if last:
            self._over = True
            if self._received:
                chunks.append(Chunk(tuple(self._waiting), len(self._waiting), final=True))
        return chunks

    def advance(self, state: TurnState) -> None:
        """A chunk was begun, after which it remembers this."""
        self._state = state

    def heard(self, sound: FloatArray) -> FloatArray:
        """What of the next sound is to be heard."""
        return sound[self._dropped(len(sound)) :]

    @torch.inference_mode()
    def fall_back(self, state: TurnState, chunks: Sequence[Chunk]) -> tuple[FloatArray, str]:
        """Go on without the machine, from `state` with these chunks: their sound as far as it
        comes, and why no more came. What fails the first is raised."""
        voice = self._voice.batched
        assert voice is not None, "it was a batch's"
        self._state = self._machine.flow_state(state, voice.memory, voice.place)
        self._tail = self._machine.tail(state, self._voice.name)
        return made_of(self._sound(chunk) for chunk in chunks)

    def lose(self, failure: str) -> None:
        """The turn has failed."""
        self._failure = failure

    # ---- inside ---------------------------------------------------------------------------------

    @property
    def _machine(self) -> Machine:
        assert self._shared.machine is not None, "its state is the machine's"
        return self._shared.machine

    @property
    def _ends_at_once(self) -> bool:
        """Whether all that waits is one chunk, now that nothing follows."""
        ahead = self._shared.flow.config.encoder.lookahead_tokens
        return self._shared.settings.eager and len(self._waiting) <= self._next_hop + ahead

    def _due_chunks(self, *, last: bool) -> Iterator[Chunk]:
        """Each full hop that waits, but for what is to be the turn's end."""
        ahead = self._shared.flow.config.encoder.lookahead_tokens
        while not (last and self._ends_at_once) and (hop := self._due_tokens()):
            yield Chunk(tuple(self._waiting[: hop + ahead]), hop, final=False)
            del self._waiting[:hop]
            self._next_hop = self._shared.settings.hop_tokens

    def _due_tokens(self) -> int:
        """How many tokens the next chunk says; 0 while there are too few."""
        ready = len(self._waiting) - self._shared.flow.config.encoder.lookahead_tokens
        if ready >= self._next_hop:
            return self._next_hop
        return ready if self._shared.settings.eager and ready >= _LEAST_EAGER_TOKENS else 0

    def _dropped(self, samples: int) -> int:
        """How many of the next so many are of the silence before the turn."""
        dropped = min(self._to_drop, samples)
        self._to_drop -= dropped
        return dropped


def _stream_of(push: VocoderPush) -> Token2wavStream:
    assert isinstance(push.stream, Token2wavStream), "a stream of this vocoder"
    return push.stream


def _is_finite(numbers: Tensor) -> bool:
    return bool(torch.isfinite(numbers).all())


def _require_finite(numbers: Tensor, part: str) -> None:
    if not _is_finite(numbers):
        raise VocoderError(f"the {part} gave numbers that are not finite")
