"""Speech tokens to mel by conditional flow matching: token2wav's flow, whole or as a stream.

    voice = flow.setup(prompt_tokens, prompt_mel, embedding, noise)  # once per voice
    mel, state = flow.chunk(voice, tokens, noise, final=False)  # n + 3 tokens → 2n frames

States are never changed: a voice is the state after its prompt, shared by every stream that speaks
with it, and to clone a stream is to keep its state. Every step of the solver has a memory of its
own, since step s of this chunk attends to step s of the past.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from agent.errors import VocoderError
from agent.torch_parts.checkpoint import Fold
from agent.vocoder.config import FRAMES_PER_TOKEN, SILENCE_TOKEN, FlowConfig
from agent.vocoder.conformer import Encoder, EncoderState
from agent.vocoder.dit import Dit, DitMemory, PromptPieces, TimeTable
from agent.vocoder.segments import nbytes_of

EstimatorMemory: TypeAlias = Literal["reference", "prompt_plus_recent"]
"""Which frames the estimator keeps: the reference's choice, which forgets most of a long prompt,
or the prompt and the last two seconds."""
EncoderMemory: TypeAlias = Literal["recent", "legacy106", "all"]
"""recent: the prompt and the last two seconds. legacy106: as minicpmo-utils 1.0.6, whose token
layers keep the first two seconds of a turn for ever. all: nothing is dropped, for 200 s."""
NoisePlace: TypeAlias = Literal["held", "absolute"]
"""Where a chunk's noise starts: at the number of frames held, as the reference, or at its place in
the turn."""
Filler: TypeAlias = Literal["silence", "prompt"]
"""What the end of the prompt looks ahead at: silence (the classic generation) or the prompt's own
first tokens (the causal one)."""

_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Not cuDNN's, which plans each new length for longer than a second of sound may take: every voice
and every chunk at the start of a turn has a length of its own."""
RECENT_FRAMES = 100
"""What of a turn is remembered beside the prompt: two seconds."""
RECENT_TOKENS = RECENT_FRAMES // FRAMES_PER_TOKEN
_NOISE_FRAMES = 30_000
_MOST_ENCODER_FRAMES = 10_000
"""200 s: beyond this only an encoder that forgets goes on."""


@dataclass(frozen=True, slots=True)
class FlowSettings:
    """How the flow is computed; `steps` costs time in proportion."""

    steps: int = 10
    estimator_memory: EstimatorMemory = "reference"
    encoder_memory: EncoderMemory = "recent"
    noise_place: NoisePlace = "held"
    filler: Filler = "silence"

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 100:
            raise ValueError(f"steps is {self.steps}, expected 1 to 100")


@dataclass(frozen=True, slots=True)
class Noise:
    """The one table [M, L] that every solve starts from; its end is followed by its start."""

    values: Tensor

    @classmethod
    def seeded(cls, seed: int, mel_bins: int = 80, device: torch.device | None = None) -> "Noise":
        """600 s of it. Drawn on the CPU, so that every device starts from the same."""
        generator = torch.Generator().manual_seed(seed)
        return cls(torch.randn(mel_bins, _NOISE_FRAMES, generator=generator).to(device))

    def at(self, frame: int, count: int) -> Tensor:
        """f32 [1, count, M] from that frame on."""
        length = self.values.shape[1]
        start = frame % length
        stretch = self.values[:, start : start + count]
        while stretch.shape[1] < count:
            more = count - stretch.shape[1]
            stretch = torch.cat([stretch, self.values[:, :more]], 1)
        return stretch.T[None]


@dataclass(frozen=True, slots=True)
class FlowState:
    """One stream between two chunks; a voice is the state after its prompt."""

    encoder: EncoderState
    steps: tuple[DitMemory, ...]
    speaker: Tensor  # [1, M]
    prompt_tokens: int
    position: int  # the next frame, counted from the start of the prompt
    held: tuple[int, ...]  # frames that the estimator remembers, in the order of its keys

    @property
    def prompt_frames(self) -> int:
        return FRAMES_PER_TOKEN * self.prompt_tokens

    def to(self, dtype: torch.dtype) -> "FlowState":
        """The same in another precision."""
        return replace(
            self,
            encoder=self.encoder.to(dtype),
            steps=tuple(step.to(dtype) for step in self.steps),
            speaker=self.speaker.to(dtype),
        )

    @property
    def dtype(self) -> torch.dtype:
        return self.speaker.dtype

    @property
    def is_finite(self) -> bool:
        """Whether a stream can go on from here: one look at the device for all."""
        sums = torch.stack([one.sum(dtype=torch.float32) for one in self._tensors()])
        return bool(torch.isfinite(sums).all())

    @property
    def bytes_held(self) -> int:
        """What this state weighs, the voice's part included."""
        return nbytes_of(self._tensors())

    @property
    def bytes_owned(self) -> int:
        """What it weighs beside the voice that it shares with others."""
        return self.bytes_held - nbytes_of(part for step in self.steps for part in step.prompt)

    def _tensors(self) -> Iterator[Tensor]:
        yield self.speaker
        yield from (self.encoder.smooth_tail, self.encoder.up_tail)
        for pair in (*self.encoder.token_layers, *self.encoder.mel_layers):
            yield from pair
        for step in self.steps:
            yield from (*step.prompt, *step.turn, step.first_tails, step.second_tails)


class Flow(nn.Module):
    """token2wav's flow.pt. Load it in float32, then `narrow` it; the weights hold no stream."""

    PREFIX = ""

    def __init__(self, config: FlowConfig, settings: FlowSettings) -> None:
        super().__init__()
        self.config = config
        self.settings = settings
        self.input_embedding = nn.Embedding(config.vocabulary, config.encoder.width)
        self.spk_embed_affine_layer = nn.Linear(config.speaker_width, config.mel_bins)
        self.encoder = Encoder(config.encoder)
        self.encoder_proj = nn.Linear(config.encoder.width, config.mel_bins)
        self.decoder = nn.ModuleDict({"estimator": Dit(config.dit)})
        self._table: TimeTable | None = None
        self.spans: list[float] = []
        """How far each step of the solver goes."""

    @property
    def estimator(self) -> Dit:
        inner = self.decoder["estimator"]
        assert isinstance(inner, Dit)
        return inner

    @property
    def table(self) -> TimeTable:
        """What depends on the time alone; to be asked for when the weights are loaded."""
        assert self._table is not None, "the weights are loaded"
        return self._table

    @property
    def dtype(self) -> torch.dtype:
        return self.encoder_proj.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.encoder_proj.weight.device

    def folds(self) -> Mapping[str, Fold]:
        """The estimator's, by their names here."""
        place = "decoder.estimator."
        return {
            f"{place}{name}": Fold(
                {f"{place}{stored}": shape for stored, shape in fold.sources.items()}, fold.make
            )
            for name, fold in self.estimator.folds().items()
        }

    def derive(self, device: torch.device) -> None:
        """Compute all that depends on the time alone, and drop the weights that it came from."""
        schedule = euler_times(self.settings.steps)
        self.spans = schedule.diff().tolist()
        with torch.no_grad():
            self._table = self.estimator.at_times(schedule[:-1].to(device))
        self.estimator.forget_times()
        self.estimator.collect()

    def narrow(self, dtype: torch.dtype) -> "Flow":
        """Its weights in `dtype` from now on; time, noise and norms stay float32."""
        self.to(dtype)
        self.estimator.collect()
        return self

    def in_float32(self) -> "Flow":
        """Another one that is exact."""
        return copy.deepcopy(self).narrow(torch.float32)

    # ---- one pass over all ----------------------------------------------------------------------

    @sdpa_kernel(_ATTENTION)
    def whole(
        self,
        tokens: Tensor,
        prompt_tokens: Tensor,
        prompt_mel: Tensor,
        embedding: Tensor,
        noise: Noise,
    ) -> Tensor:
        """i64 [n] after a prompt i64 [P] → f32 [1, M, 2n], everything seeing everything.

        `prompt_mel` is [2P, M], `embedding` [S].
        """
        mu = self.encoder_proj(self.encoder.whole(self._embed(torch.cat([prompt_tokens, tokens]))))
        prompt_frames = prompt_mel.shape[0]
        known = F.pad(prompt_mel, (0, 0, 0, mu.shape[1] - prompt_frames))[None]
        conditions = self.estimator.condition(mu, self._speaker(embedding), known)
        start = noise.at(0, mu.shape[1])
        mel, _ = self._solve(start, conditions, self._fresh(), [slice(0, 0)])
        return mel[:, prompt_frames:].transpose(1, 2)

    # ---- as a stream ----------------------------------------------------------------------------

    @sdpa_kernel(_ATTENTION)
    def setup(
        self, prompt_tokens: Tensor, prompt_mel: Tensor, embedding: Tensor, noise: Noise
    ) -> FlowState:
        """The voice of a prompt: i64 [P], [2P, M] and [S], on this flow's device."""
        ahead = self.config.encoder.lookahead_tokens
        filler = prompt_tokens[:ahead]
        if self.settings.filler == "silence":
            filler = prompt_tokens.new_full((ahead,), SILENCE_TOKEN)
        embedded = self._embed(torch.cat([prompt_tokens, filler]))
        states, encoder = self.encoder.step(embedded, self.encoder.start(), final=False)
        speaker = self._speaker(embedding)
        conditions = self.estimator.condition(self.encoder_proj(states), speaker, prompt_mel[None])
        frames = states.shape[1]
        start = noise.at(0, frames)
        prompts = PromptPieces(self.settings.steps)
        _, steps = self._solve(start, conditions, self._fresh(), [slice(0, frames)], prompts.put)
        held = tuple(range(frames))
        return FlowState(encoder, steps, speaker, len(prompt_tokens), frames, held)

    @sdpa_kernel(_ATTENTION)
    def chunk(
        self, state: FlowState, tokens: Tensor, noise: Noise, *, final: bool
    ) -> tuple[Tensor, FlowState]:
        """The next tokens i64 [T] → mel f32 [1, M, 2n], and the state after them.

        Unless `final`, the last three are only looked at (n = T - 3) and must come again.
        """
        states, encoder = self.encoder.step(self._embed(tokens), state.encoder, final=final)
        if encoder.frames > _MOST_ENCODER_FRAMES:
            raise VocoderError("the turn is longer than the encoder can remember all of")
        mu = self.encoder_proj(states)
        conditions = self.estimator.condition(mu, state.speaker, torch.zeros_like(mu))
        count = mu.shape[1]
        held = (*range(state.position, state.position + count), *state.held)
        kept = kept_positions(held, state.prompt_frames, self.settings.estimator_memory)
        place = state.position if self.settings.noise_place == "absolute" else len(state.held)
        mel, steps = self._solve(noise.at(place, count), conditions, state.steps, stretches(kept))
        after = replace(
            state,
            encoder=trimmed_encoder(encoder, state.prompt_tokens, self.settings.encoder_memory),
            steps=steps,
            position=state.position + count,
            held=tuple(held[position] for position in kept),
        )
        return mel.transpose(1, 2), after

    # ---- inside ---------------------------------------------------------------------------------

    def _embed(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.input_embedding(tokens)[None]
        return embedded

    def _speaker(self, embedding: Tensor) -> Tensor:
        unit = F.normalize(embedding.float()[None], dim=1)
        speaker: Tensor = self.spk_embed_affine_layer(unit.to(self.dtype))
        return speaker

    def _fresh(self) -> tuple[DitMemory, ...]:
        return (self.estimator.start(),) * self.settings.steps

    def _solve(
        self,
        mel: Tensor,
        conditions: Tensor,
        memories: Sequence[DitMemory],
        kept: Sequence[slice],
        put: Callable[[int, DitMemory], DitMemory] = lambda step, memory: memory,
    ) -> tuple[Tensor, tuple[DitMemory, ...]]:
        """From noise f32 [1, T, M] to mel along the guided velocity, in float32; what each step
        then remembers is `put` where it is kept."""
        table, guidance = self.table, self.config.guidance
        after: list[DitMemory] = []
        for step, (span, memory) in enumerate(zip(self.spans, memories, strict=True)):
            modulation = (table.layers[step], table.last[step])
            velocity, extended = self.estimator(mel, conditions, modulation, memory, kept)
            after.append(put(step, extended))
            mel = torch.add(mel, guided(velocity, guidance), alpha=span)
        return mel, tuple(after)


def guided(velocity: Tensor, guidance: float) -> Tensor:
    """Rows with and without conditions [2, …] → away from the second, beyond the first [1, …]."""
    return torch.lerp(velocity[1:], velocity[:1], 1 + guidance)


def euler_times(steps: int) -> Tensor:
    """The times f32 [N + 1] from 0 to 1. In float64 the mel would differ by more than rounding."""
    even = torch.linspace(0, 1, steps + 1, dtype=torch.float32)
    return 1 - torch.cos(even * 0.5 * torch.pi)


# ---- what is remembered -------------------------------------------------------------------------


def kept_positions(held: Sequence[int], prompt_frames: int, policy: EstimatorMemory) -> list[int]:
    """Which of the keys stay, by their positions among `held` (newest block in front).

    The reference takes the first P and the last 100 of whatever order they have; this keeps the
    newest P generated frames and the last 100 of the prompt once there are as many.
    """
    length = len(held)
    if length <= prompt_frames + RECENT_FRAMES:
        return list(range(length))
    if policy == "reference":
        return [*range(prompt_frames), *range(length - RECENT_FRAMES, length)]
    oldest = max(held) + 1 - RECENT_FRAMES
    return [at for at, frame in enumerate(held) if frame < prompt_frames or frame >= oldest]


def stretches(positions: Sequence[int]) -> list[slice]:
    """Ascending positions as the unbroken stretches that they are made of."""
    found: list[slice] = []
    for position in positions:
        if found and found[-1].stop == position:
            found[-1] = slice(found[-1].start, position + 1)
        else:
            found.append(slice(position, position + 1))
    return found


def trimmed_encoder(state: EncoderState, prompt_tokens: int, policy: EncoderMemory) -> EncoderState:
    """The state without what `policy` drops."""
    length = state.tokens
    if policy == "all" or length <= prompt_tokens + RECENT_TOKENS:
        return state
    prompt_frames = FRAMES_PER_TOKEN * prompt_tokens
    frames = [
        slice(0, prompt_frames),
        slice(state.frames - RECENT_FRAMES, state.frames),
    ]
    if policy == "legacy106":
        return state.keep(stretches_of_legacy(length, prompt_tokens), frames)
    return state.keep([slice(0, prompt_tokens), slice(length - RECENT_TOKENS, length)], frames)


def stretches_of_legacy(length: int, prompt_tokens: int) -> list[slice]:
    """What 1.0.6 keeps of token layers that it stores twice in a row and cuts as if once.

    Of the doubled row it takes the first 2P and the last 100, and of that the first half.
    """
    doubled = [at % length for at in range(2 * length)]
    cut = doubled[: 2 * prompt_tokens] + doubled[2 * length - RECENT_FRAMES :]
    return stretches(cut[: prompt_tokens + RECENT_TOKENS])
