"""CosyVoice2's flow: speech tokens and a voice to mel, all at once or exactly the same in pieces.

In pieces every block of 25 tokens sees itself and all before it, and the noise is drawn by the
absolute frame, so what is remembered of each Euler step stands for computing it all again.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.errors import CheckpointError
from agent.torch_parts.checkpoint import Fold, TensorHeader
from agent.torch_parts.cuda_graph import Recorder
from agent.vocoder.config import FRAMES_PER_TOKEN, EncoderConfig, encoder_config
from agent.vocoder.conformer import Encoder, EncoderState
from agent.vocoder.encoder_recorded import RecordedEncoder
from agent.vocoder.flow import euler_times, guided
from agent.vocoder.unet import Beginning, History, Unet, UnetConfig, block_causal_bias, unet_sizes
from agent.vocoder.unet_memory import StepHistory, UnetMemory
from agent.vocoder.unet_recorded import CAPACITIES, BlockSizes, RecordedSolve

BLOCK_TOKENS = 25
BLOCK_FRAMES = FRAMES_PER_TOKEN * BLOCK_TOKENS
NOISE_FRAMES = 15_000
"""After these five minutes the noise repeats."""
_ESTIMATOR = "decoder.estimator."


@dataclass(frozen=True, slots=True)
class Cosyvoice2Config:
    """Sizes of flow.pt."""

    vocabulary: int
    speaker_width: int
    encoder: EncoderConfig
    unet: UnetConfig
    guidance: float = 0.7
    """How far the flow is pushed away from where it would go unconditioned."""


def cosyvoice2_config(
    headers: Mapping[str, TensorHeader], *, head_width: int = 64
) -> Cosyvoice2Config:
    """The sizes that these tensors have; `head_width` of the estimator is not among them.

    Raises CheckpointError when they are not those of a CosyVoice2 flow.
    """
    shapes = {key: header.shape for key, header in headers.items()}
    tokens = shapes.get("input_embedding.weight", ())
    speaker = shapes.get("spk_embed_affine_layer.weight", ())
    if len(tokens) != 2 or len(speaker) != 2:
        raise CheckpointError("this is no flow of CosyVoice2: its embeddings are missing")
    unet = unet_sizes(shapes, _ESTIMATOR, head_width)
    return Cosyvoice2Config(tokens[0], speaker[1], encoder_config(headers), unet)


class Cosyvoice2Weights(nn.Module):
    """The weights of flow.pt under their own keys."""

    def __init__(self, config: Cosyvoice2Config) -> None:
        super().__init__()
        width, bins = config.encoder.width, config.unet.mel_bins
        self.config = config
        self.input_embedding = nn.Embedding(config.vocabulary, width)
        self.spk_embed_affine_layer = nn.Linear(config.speaker_width, bins)
        self.encoder = Encoder(config.encoder)
        self.encoder_proj = nn.Linear(width, bins)
        self.decoder = nn.ModuleDict({"estimator": Unet(config.unet)})

    def folds(self) -> Mapping[str, Fold]:
        """The estimator's, by their names here."""
        estimator = self.decoder["estimator"]
        assert isinstance(estimator, Unet)
        return {
            f"{_ESTIMATOR}{name}": Fold(
                {f"{_ESTIMATOR}{stored}": shape for stored, shape in fold.sources.items()},
                fold.make,
            )
            for name, fold in estimator.folds().items()
        }


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the flow is told of one stretch of T frames, float32."""

    mu: Tensor  # [mel, T]
    prompt: Tensor  # [mel, T], zero where no prompt is
    speaker: Tensor  # [mel]


@dataclass(frozen=True, slots=True)
class FlowChunk:
    """One stretch of an utterance, prompt included: float32 [mel, T] both."""

    mu: Tensor
    mel: Tensor


@dataclass(frozen=True, slots=True)
class FlowState:
    """What a stream remembers between chunks; `tokens` counts all of them, the prompt's too.

    Never changed: a voice's state is where its streams begin.
    """

    encoder: EncoderState
    memory: UnetMemory
    tokens: int = 0

    @property
    def dtype(self) -> torch.dtype:
        return self.memory.dtype

    def keep(self, first: int, recent: int) -> "FlowState":
        """Without all but the `first` tokens and the `recent` ones; both end on the grid."""
        remembered = self.encoder.tokens
        if remembered <= first + recent:
            return self
        stretches = [slice(0, first), slice(remembered - recent, remembered)]
        doubled = [slice(2 * one.start, 2 * one.stop) for one in stretches]
        return FlowState(
            self.encoder.keep(stretches, doubled),
            self.memory.keep(FRAMES_PER_TOKEN * first, FRAMES_PER_TOKEN * recent),
            self.tokens,
        )

    def as_voice(self) -> "FlowState":
        """The same, to be shared by turns."""
        return replace(self, memory=self.memory.as_voice())

    def to(self, dtype: torch.dtype) -> "FlowState":
        """The same in another precision."""
        return FlowState(self.encoder.to(dtype), self.memory.to(dtype), self.tokens)


class Cosyvoice2Flow:
    """The flow in one dtype, for a fixed number of Euler steps; holds no stream."""

    def __init__(self, weights: Cosyvoice2Weights, noise: Tensor, steps: int) -> None:
        """`weights` in float32; `noise` f32 [mel, N] by absolute frame, from `flow_noise`."""
        self._weights = weights
        self._noise = noise
        self._recorded: RecordedSolve | None = None
        self._recorded_encoder: RecordedEncoder | None = None
        times = euler_times(steps)
        self._lengths = times.diff().tolist()
        self._shifts = self._unet.shifts(times[:-1].to(noise.device))

    def in_dtype(self, dtype: torch.dtype) -> "Cosyvoice2Flow":
        """This flow with its weights copied in `dtype`; time, speaker and noise stay float32."""
        if dtype == self.dtype:
            return self
        other = copy.copy(self)
        other._recorded = other._recorded_encoder = None
        other._weights = copy.deepcopy(self._weights).to(dtype)
        other._weights.spk_embed_affine_layer = self._weights.spk_embed_affine_layer
        return other

    def record(self, recorder: Recorder, capacities: Sequence[int] = CAPACITIES) -> None:
        """From now on a stream's blocks are made as graphs. ConfigError when that does not work."""
        sizes = BlockSizes(self.config.unet, len(self._lengths), BLOCK_FRAMES)
        like = self._weights.encoder_proj.weight
        self._recorded = RecordedSolve(sizes, self._integrated, like, recorder, capacities)
        encoder = self._weights.encoder
        self._recorded_encoder = RecordedEncoder(encoder, BLOCK_TOKENS, recorder, capacities)

    @property
    def device(self) -> torch.device:
        return self._noise.device

    @property
    def dtype(self) -> torch.dtype:
        return self._weights.encoder_proj.weight.dtype

    @property
    def _unet(self) -> Unet:
        estimator = self._weights.decoder["estimator"]
        assert isinstance(estimator, Unet)
        return estimator

    @property
    def config(self) -> Cosyvoice2Config:
        return self._weights.config

    def speaker(self, embedding: Tensor) -> Tensor:
        """A speaker embedding [192] of any length → what the flow is told of it, f32 [mel]."""
        layer = self._weights.spk_embed_affine_layer
        unit = F.normalize(embedding.to(self.device, torch.float32), dim=0)
        return F.linear(unit, layer.weight.float(), layer.bias.float())

    def start(self) -> FlowState:
        """The state before the first token."""
        like = self._weights.encoder_proj.weight
        memory = UnetMemory.empty(self.config.unet, len(self._lengths), like)
        return FlowState(self._weights.encoder.start(), memory)

    def whole(
        self, tokens: Sequence[int], prompt_mel: Tensor, speaker: Tensor, *, in_blocks: bool
    ) -> FlowChunk:
        """All tokens at once, the prompt's first; its mel f32 [mel, P].

        `in_blocks` sees what a stream sees; else everything sees everything.
        """
        block = BLOCK_TOKENS if in_blocks else None
        states = self._weights.encoder.whole(self._embedded(tokens), block_tokens=block)
        mu = self._mu(states)
        frames = mu.shape[1]
        mask = None
        if in_blocks:
            mask = block_causal_bias(0, frames, BLOCK_FRAMES, states)
        conditions = Conditions(mu, _from(prompt_mel, 0, frames), speaker)
        told, noise = self._told(conditions), self._noise_at(0, frames)
        mel = self._integrated(noise, told, [Beginning(mask)] * len(self._lengths))
        return FlowChunk(mu, mel.T)

    def advance(
        self, state: FlowState, tokens: Sequence[int], voice: tuple[Tensor, Tensor], *, final: bool
    ) -> tuple[FlowChunk, FlowState]:
        """The next tokens of a stream, of which the last three are only looked at unless `final`.

        `voice` is the prompt's mel [mel, P] and the speaker [mel]. Starts on the grid of blocks,
        and must end on it unless `final`.
        """
        states, encoder = self._encoded(self._embedded(tokens), state.encoder, final=final)
        mu = self._mu(states)
        first, frames = FRAMES_PER_TOKEN * state.tokens, mu.shape[1]
        told = self._told(Conditions(mu, _from(voice[0], first, frames), voice[1]))
        mel, memory = self._solve(self._noise_at(first, frames), told, state.memory)
        after = FlowState(encoder, memory, state.tokens + frames // FRAMES_PER_TOKEN)
        return FlowChunk(mu, mel.T), after

    def _solve(self, noise: Tensor, told: Tensor, memory: UnetMemory) -> tuple[Tensor, UnetMemory]:
        """The mel f32 [T, mel] of the frames behind `memory`, and the memory with them."""
        frames, mask = len(noise), None
        if self._recorded is not None and self._recorded.takes(memory, frames):
            return self._recorded.solve(noise, told, memory)
        if frames > BLOCK_FRAMES:
            mask = block_causal_bias(memory.frames, frames, BLOCK_FRAMES, told)
        made = [StepHistory(step, self.config.unet, mask) for step in memory.steps]
        mel = self._integrated(noise, told, made)
        return mel, UnetMemory(tuple(history.after() for history in made))

    def _encoded(
        self, embedded: Tensor, state: EncoderState, *, final: bool
    ) -> tuple[Tensor, EncoderState]:
        recorded = self._recorded_encoder
        if recorded is not None and recorded.takes(embedded, state, final=final):
            return recorded.step(embedded, state)
        return self._weights.encoder.step(embedded, state, final=final, block_tokens=BLOCK_TOKENS)

    def _embedded(self, tokens: Sequence[int]) -> Tensor:
        numbers = torch.tensor([*tokens], dtype=torch.int64).to(self.device)
        embedded: Tensor = self._weights.input_embedding(numbers)[None]
        return embedded

    def _mu(self, states: Tensor) -> Tensor:
        mu: Tensor = self._weights.encoder_proj(states)[0].T.float()
        return mu

    def _told(self, conditions: Conditions) -> Tensor:
        """What the estimator is told beside its state, and without it: [2, T, 3 · mel]."""
        speaker = conditions.speaker[:, None].expand(-1, conditions.mu.shape[1])
        told = torch.cat([conditions.mu, speaker, conditions.prompt]).T
        return torch.stack([told, torch.zeros_like(told)]).to(self.dtype)

    def _integrated(self, noise: Tensor, told: Tensor, histories: Sequence[History]) -> Tensor:
        """From noise f32 [T, mel] to mel; the state stays float32 throughout."""
        mel, unet, guidance = noise, self._unet, self.config.guidance
        shifts = self._shifts.to(self.dtype).unbind()
        for shift, length, history in zip(shifts, self._lengths, histories, strict=True):
            rows = torch.cat([mel.to(self.dtype).expand(2, -1, -1), told], 2)
            velocity = unet(rows, shift, history).float()
            mel = torch.add(mel, guided(velocity, guidance)[0], alpha=length)
        return mel

    def _noise_at(self, first: int, frames: int) -> Tensor:
        """Of frames `first`.., f32 [T, mel]."""
        places = torch.arange(first, first + frames, device=self.device) % self._noise.shape[1]
        return self._noise[:, places].T


def flow_noise(seed: int, mel_bins: int, device: torch.device) -> Tensor:
    """f32 [mel, N]: seed 0 gives the one that upstream always uses."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, mel_bins, NOISE_FRAMES, generator=generator)[0].to(device)


def _from(mel: Tensor, first: int, frames: int) -> Tensor:
    """Frames `first`.. of the prompt [mel, P], zeros after its end: [mel, frames]."""
    part = mel[:, first : first + frames]
    return F.pad(part, (0, frames - part.shape[1]))
