"""CosyVoice2 as a vocoder: voices prepared once, and any number of streams that share them.

voice = cosyvoice2.voice(prompt)  # once per voice
stream = cosyvoice2.open(voice)  # once per turn
sound = stream.push(tokens)  # … and at the end stream.finish()
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from agent.errors import VocoderError
from agent.interfaces import VocoderBatch, VocoderPush
from agent.types import FloatArray
from agent.vocoder.config import FRAMES_PER_TOKEN
from agent.vocoder.cosyvoice2_flow import BLOCK_TOKENS, Cosyvoice2Flow, FlowState
from agent.vocoder.late_failure import made_of
from agent.vocoder.one_by_one import done_one_by_one
from agent.vocoder.token2wav import Sounding
from agent.vocoder.voice import SpeakerPrompt

_LEAST_FIRST_HOP_TOKENS = 4
"""What HiFT's tail of eight frames needs of the first chunk."""
_NO_SOUND = "the HiFT gave numbers that are not finite"


@dataclass(frozen=True, slots=True)
class ChunkSettings:
    """How a turn is cut into chunks and how much of it is remembered."""

    first_hop_tokens: int | None = BLOCK_TOKENS
    """The first chunk. Up to a second of the prompt's beginning is cut away, so that it ends on the
    grid; None keeps the whole prompt, and the first chunk has 25 to 49 tokens, as upstream."""
    hop_tokens: int = BLOCK_TOKENS
    """The second chunk."""
    largest_hop_tokens: int = BLOCK_TOKENS
    """Chunks double up to here. Upstream (100) must, since it computes all anew each time."""
    context_tokens: int = 150
    """How much of the turn is remembered beside the prompt. While it is all of it, pieces give
    exactly the whole; at full size each token takes 1.15 MB in half precision, 172 MB in all."""

    def __post_init__(self) -> None:
        first = self.first_hop_tokens
        if first is not None and not _LEAST_FIRST_HOP_TOKENS <= first <= BLOCK_TOKENS:
            raise ValueError(f"first_hop_tokens is {first}, expected 4 to {BLOCK_TOKENS}, or None")
        for name in ("hop_tokens", "largest_hop_tokens", "context_tokens"):
            value = getattr(self, name)
            if value < BLOCK_TOKENS or value % BLOCK_TOKENS:
                raise ValueError(f"{name} is {value}, expected a multiple of {BLOCK_TOKENS}")
        if self.largest_hop_tokens < self.hop_tokens:
            raise ValueError("largest_hop_tokens is less than hop_tokens")


UPSTREAM = ChunkSettings(first_hop_tokens=None, hop_tokens=50, largest_hop_tokens=100)
"""Chunks as upstream cuts them."""


@dataclass(frozen=True, slots=True, eq=False)
class Cosyvoice2Voice:
    """A prompt as far as it can be computed before the first token; never changed."""

    tokens: tuple[int, ...]
    mel: Tensor  # f32 [mel, P]
    speaker: Tensor  # f32 [mel]
    state: FlowState
    name: str

    @property
    def nbytes(self) -> int:
        """What its memory of the flow takes."""
        return self.state.memory.nbytes + self.state.memory.nbytes_of_voice


class HopSchedule:
    """How many tokens the next chunk has: up to the grid of blocks, then ever more blocks."""

    def __init__(self, prompt_tokens: int, settings: ChunkSettings) -> None:
        first = settings.first_hop_tokens or BLOCK_TOKENS
        self.next_tokens = first + -(prompt_tokens + first) % BLOCK_TOKENS
        self._then = settings.hop_tokens
        self._largest = settings.largest_hop_tokens

    def advance(self) -> None:
        """The chunk is done."""
        self.next_tokens = self._then
        self._then = min(2 * self._then, self._largest)


class Cosyvoice2:
    """Shared by all streams; the weights and voices hold nothing of a turn.

    A chunk that is not finite is computed once more by `exact`, the same flow in float32, and the
    stream stays there; a second failure is a `VocoderError`.
    """

    def __init__(
        self,
        flow: Cosyvoice2Flow,
        sounding: Sounding,
        settings: ChunkSettings,
        exact: Callable[[], Cosyvoice2Flow],
    ) -> None:
        self.flow = flow
        self.settings = settings
        self.sounding = sounding
        self._exact = exact

    @torch.inference_mode()
    def voice(self, prompt: SpeakerPrompt, name: str) -> Cosyvoice2Voice:
        """Compute what of a prompt does not depend on what is said; `name` seeds its noise.

        `VocoderError` when the prompt is not what this model knows.
        """
        self._check(prompt)
        cut = self._cut_tokens(len(prompt.speech_tokens))
        tokens = tuple(prompt.speech_tokens[cut:].tolist())
        mel = torch.tensor(prompt.mel[FRAMES_PER_TOKEN * cut :]).T.to(self.flow.device)
        speaker = self.flow.speaker(torch.tensor(prompt.embedding))
        voice = Cosyvoice2Voice(tokens, mel, speaker, self.flow.start(), name)
        ahead = self.flow.config.encoder.lookahead_tokens
        whole = (len(tokens) - ahead) // BLOCK_TOKENS * BLOCK_TOKENS
        if whole <= 0:
            return voice
        state, _ = self.advance(voice.state, tokens[: whole + ahead], voice, final=False)
        return replace(voice, state=state.as_voice())

    def open(self, voice: Cosyvoice2Voice) -> "Cosyvoice2Stream":
        """A stream for one turn in that voice."""
        return Cosyvoice2Stream(self, voice)

    @property
    def most_pushes(self) -> int:
        """How many go together: it does one after the other."""
        return 1

    def begin(self, pushes: Sequence[VocoderPush]) -> VocoderBatch:
        """See `BatchVocoder`."""
        return done_one_by_one(pushes)

    @torch.inference_mode()
    def whole(self, voice: Cosyvoice2Voice, tokens: Sequence[int]) -> FloatArray:
        """An utterance at once, everything seeing everything: the sound f32 [960 n]."""
        self.check_tokens(tokens)
        if not tokens:
            return np.zeros(0, np.float32)
        everything = [*voice.tokens, *tokens]
        made = self.flow.whole(everything, voice.mel, voice.speaker, in_blocks=False).mel
        if not _is_finite(made) and self.flow.dtype != torch.float32:
            made = self._exact().whole(everything, voice.mel, voice.speaker, in_blocks=False).mel
        if not _is_finite(made):
            raise VocoderError("the flow gave numbers that are not finite")
        sound = self.sounding.whole(made[None, :, voice.mel.shape[1] :], voice.name)
        _require_finite_sound(sound)
        return sound.cpu().numpy()

    def advance(
        self, state: FlowState, tokens: Sequence[int], voice: Cosyvoice2Voice, *, final: bool
    ) -> tuple[FlowState, Tensor]:
        """The next tokens as in `Cosyvoice2Flow.advance`: the state after them, and the mel."""
        after, mel = self.tried(state, tokens, voice, final=final)
        if _is_finite(mel):
            return after, mel
        return self.exactly(state, tokens, voice, final=final)

    def tried(
        self, state: FlowState, tokens: Sequence[int], voice: Cosyvoice2Voice, *, final: bool
    ) -> tuple[FlowState, Tensor]:
        """As `advance`, in the precision of the state, without waiting for the device to see
        whether the mel is finite."""
        flow = self.flow if state.dtype == self.flow.dtype else self._exact()
        known = (voice.mel, voice.speaker)
        chunk, after = flow.advance(state, tokens, known, final=final)
        return after, chunk.mel

    def exactly(
        self, state: FlowState, tokens: Sequence[int], voice: Cosyvoice2Voice, *, final: bool
    ) -> tuple[FlowState, Tensor]:
        """As `advance`, in float32, what was not finite in the precision of the state.
        `VocoderError` when that was float32, and where it is not finite then."""
        if state.dtype != torch.float32:
            after, mel = self.tried(state.to(torch.float32), tokens, voice, final=final)
            if _is_finite(mel):
                return after, mel
        raise VocoderError("the flow gave numbers that are not finite")

    def check_tokens(self, tokens: Sequence[int]) -> None:
        """`VocoderError` for an id that is no speech token, such as the end of a turn."""
        vocabulary = self.flow.config.vocabulary
        wrong = [token for token in tokens if not 0 <= token < vocabulary]
        if wrong:
            raise VocoderError(f"{wrong[0]} is no speech token: they go from 0 to {vocabulary - 1}")

    def _check(self, prompt: SpeakerPrompt) -> None:
        config = self.flow.config
        self.check_tokens(prompt.speech_tokens.tolist())
        has = (prompt.mel.shape[1], prompt.embedding.shape[0])
        wants = (config.unet.mel_bins, config.speaker_width)
        if has != wants:
            raise VocoderError(
                f"a voice of {has[0]} mel bands and an embedding of {has[1]}; "
                f"this model wants {wants[0]} and {wants[1]}"
            )

    def _cut_tokens(self, tokens: int) -> int:
        """How much of a prompt's beginning to leave out, so that the first chunk ends in time."""
        first = self.settings.first_hop_tokens
        if first is None:
            return 0
        cut = (tokens + first) % BLOCK_TOKENS
        return cut if tokens - cut >= BLOCK_TOKENS else 0


class Cosyvoice2Stream:
    """One turn's `VocoderStream`; drop it to give the turn up."""

    def __init__(self, shared: Cosyvoice2, voice: Cosyvoice2Voice) -> None:
        self._shared = shared
        self._voice = voice
        self._state = voice.state
        self._waiting = list(voice.tokens[voice.state.tokens :])
        self._schedule = HopSchedule(len(voice.tokens), shared.settings)
        self._tail = shared.sounding.open_tail(voice.name)
        self._received = 0
        self._over = False
        self._failure = ""

    @property
    def nbytes(self) -> int:
        """What its memory of the flow takes beside that of the voice."""
        return self._state.memory.nbytes

    def clone(self) -> "Cosyvoice2Stream":
        """A stream that goes on from here by itself."""
        other = copy.copy(self)
        other._waiting = [*self._waiting]
        other._schedule = copy.copy(self._schedule)
        other._tail = self._tail.clone()
        return other

    @torch.inference_mode()
    def push(self, tokens: Sequence[int]) -> FloatArray:
        """The next tokens, any number: the sound f32 [T] that they complete.

        `VocoderError` for what is no speech token, and when the turn is over or has failed. Where
        a later chunk fails, what came before it is returned, and the next call raises.
        """
        self._shared.check_tokens(tokens)
        self._require_open()
        self._waiting += tokens
        self._received += len(tokens)
        sound, self._failure = made_of(self._due_chunks())
        return sound

    @torch.inference_mode()
    def finish(self) -> FloatArray:
        """The end of the turn: what is left of its sound f32 [T], which may be nothing."""
        self._require_open()
        sound = np.zeros(0, np.float32)
        if self._received:
            sound = self._sound(len(self._waiting), 0).cpu().numpy()
        self._over = True
        return sound

    def _require_open(self) -> None:
        if self._over or self._failure:
            raise VocoderError(self._failure or "this turn is over, or has failed")

    def _due_chunks(self) -> Iterator[Tensor]:
        """The sound of each full hop that waits."""
        ahead = self._shared.flow.config.encoder.lookahead_tokens
        while len(self._waiting) >= (due := self._due_tokens()) + ahead:
            yield self._sound(due, ahead)
            self._schedule.advance()

    def _due_tokens(self) -> int:
        """How many the next chunk has; the first also those of the prompt that are left."""
        left = max(0, len(self._voice.tokens) - self._state.tokens)
        return left + self._schedule.next_tokens

    def _sound(self, count: int, ahead: int) -> Tensor:
        """The sound [T] of the next `count` waiting tokens; 0 ahead: they are the last."""
        # A turn that fails stays failed: what came after it would not fit what came before.
        self._over = True
        shared, before = self._shared, self._tail.clone()
        given = (self._state, self._waiting[: count + ahead], self._voice)
        after, mel = shared.tried(*given, final=not ahead)
        sound = self._tail.push(self._said(mel), last=not ahead)
        # Waited for but once, when all of it is under way.
        if not _is_finite(mel, sound):
            if _is_finite(mel):
                raise VocoderError(_NO_SOUND)
            self._tail = before
            after, mel = shared.exactly(*given, final=not ahead)
            sound = self._tail.push(self._said(mel), last=not ahead)
            _require_finite_sound(sound)
        self._go_on(after, count)
        self._over = False
        return sound

    def _said(self, mel: Tensor) -> Tensor:
        """What of the next chunk's mel [mel, T] is not the prompt's: [1, mel, T]."""
        begin = self._voice.mel.shape[1] - FRAMES_PER_TOKEN * self._state.tokens
        return mel[None, :, max(0, begin) :]

    def _go_on(self, after: FlowState, count: int) -> None:
        del self._waiting[:count]
        prompt_tokens = -(-len(self._voice.tokens) // BLOCK_TOKENS) * BLOCK_TOKENS
        self._state = after.keep(prompt_tokens, self._shared.settings.context_tokens)


def _is_finite(*made: Tensor) -> bool:
    """Waits for the device."""
    return bool(torch.stack([one.isfinite().all() for one in made]).all())


def _require_finite_sound(sound: Tensor) -> None:
    if not _is_finite(sound):
        raise VocoderError(_NO_SOUND)
