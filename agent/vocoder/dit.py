"""The velocity estimator of token2wav: a transformer over mel frames, modulated by the time.

It is always asked twice at once, row 0 with what is known of the speech and row 1 without. It has
no positions: order comes from causal convolutions and from what the encoder says. What a call
remembers of the past is held apart for every step of the solver, and never changed in place.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.torch_parts.checkpoint import Fold
from agent.vocoder.config import MODULATIONS, TIME_FEATURES, DitConfig
from agent.vocoder.segments import Segment, frames_of, owned, stretches_of

NOTHING = [slice(0, 0)]
"""What is kept of frames that nothing comes after."""
ROWS = 2
"""With and without the conditions."""
_PLAIN_EPS = 1e-6
_AFFINE_EPS = 1e-5
_KERNEL = 3


@dataclass(frozen=True, slots=True)
class DitMemory:
    """What one step of the solver remembers: the newest frames first, the prompt's behind them.

    The pieces are [layers, 2, n, 2 · H · D], keys and behind them values.
    Of the prompt's, what is forgotten is not freed, since its voice holds it anyhow.
    """

    prompt: tuple[Segment, ...]  # the voice's own, shared by all that speak with it
    turn: tuple[Segment, ...]
    first_tails: Tensor  # [layers, 2, 2, W]: the end of what each convolution saw
    second_tails: Tensor  # [layers, 2, 2, W]

    def to(self, dtype: torch.dtype) -> "DitMemory":
        """The same in another precision."""
        return DitMemory(
            tuple(one.to(dtype) for one in self.prompt),
            tuple(one.to(dtype) for one in self.turn),
            self.first_tails.to(dtype),
            self.second_tails.to(dtype),
        )

    def as_prompt(self, rows: Segment) -> "DitMemory":
        """The same, to be shared by turns: `rows` hold all that it remembers of frames."""
        return DitMemory((rows,), (), self.first_tails, self.second_tails)

    def with_tails(self, first: list[Tensor], second: list[Tensor]) -> "DitMemory":
        """With other ends, given by layer, in memory of their own."""
        return DitMemory(
            self.prompt,
            self.turn,
            torch.stack(first).to(self.first_tails.dtype),
            torch.stack(second),
        )

    def extended(self, frames: Segment, kept: Sequence[slice]) -> "DitMemory":
        """With a new block in front, and of all that only the stretches `kept`."""
        turn = (frames, *self.turn)
        border = frames_of(turn)
        return DitMemory(
            tuple(stretches_of(self.prompt, border, kept)),
            tuple(owned(part) for part in stretches_of(turn, 0, kept)),
            self.first_tails,
            self.second_tails,
        )


@dataclass(slots=True)
class PromptPieces:
    """What each of so many steps remembers of a prompt, side by side from the first on.

    A voice is 0.2 GB: brought together later it would be there twice.
    """

    steps: int
    _rows: Tensor | None = None  # [N, layers, 2, n, 2 · H · D]

    def put(self, step: int, memory: DitMemory) -> DitMemory:
        """What a step remembers, there."""
        parts = (*memory.turn, *memory.prompt)
        if self._rows is None:
            layers, sides, _, width = parts[0].shape
            shape = (self.steps, layers, sides, frames_of(parts), width)
            self._rows = parts[0].new_empty(shape)
        return memory.as_prompt(torch.cat(parts, 2, out=self._rows[step]))


@dataclass(frozen=True, slots=True)
class TimeTable:
    """All that depends on the time alone, for each step of the solver, float32 [W] each."""

    layers: tuple[tuple[tuple[Tensor, ...], ...], ...]
    """By step and layer: shift, 1 + scale, gate of attention, MLP and convolution."""
    last: tuple[tuple[Tensor, ...], ...]
    """By step: shift and 1 + scale."""

    @classmethod
    def of_steps(cls, together: Tensor) -> "TimeTable":
        """Of all steps, f32 [N, 9 · layers + 2, W]."""
        # Cut up here, once: a view costs the host as much as a small kernel.
        layers = together[:, :-2].view(len(together), -1, MODULATIONS, together.shape[2])
        return cls(
            tuple(tuple(layer.unbind() for layer in step) for step in layers),
            tuple(step.unbind() for step in together[:, -2:]),
        )


@dataclass(frozen=True, slots=True, eq=False)
class LayerWeights:
    """One layer's weights as they are multiplied with, collected once."""

    qkv: tuple[Tensor, Tensor]
    head_scale: Tensor  # [2, 1, D], of query and key
    head_shift: Tensor
    out: tuple[Tensor, Tensor]
    first: tuple[Tensor, Tensor]  # the convolutions as products [W, 3 W]
    norm: tuple[Tensor, Tensor]
    second: tuple[Tensor, Tensor]
    wide: tuple[Tensor, Tensor]
    narrow: tuple[Tensor, Tensor]


class Dit(nn.Module):
    """[1, T, M] noisy mel to the velocities [2, T, M]."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.t_embedder: nn.Module = _TimeEmbedding(width)
        self.in_proj = nn.Linear(4 * config.mel_bins, width)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.layers))
        self.final_layer = _FinalLayer(width, config.mel_bins)
        self.layer_weights: list[LayerWeights] = []
        """Of each layer, as they are multiplied with."""

    def folds(self) -> Mapping[str, Fold]:
        """Query, key and value of each layer are one product."""
        width, inner = self.config.width, self.config.heads * self.config.head_width
        shapes = {"weight": (inner, width), "bias": (inner,)}
        return {
            f"blocks.{index}.attn.to_qkv.{leaf}": Fold(
                {f"blocks.{index}.attn.to_{one}.{leaf}": shape for one in "qkv"}, _stacked
            )
            for index in range(self.config.layers)
            for leaf, shape in shapes.items()
        }

    def at_times(self, times: Tensor) -> TimeTable:
        """The table for these times, f32 [N] in 0..1; to be made while the weights are float32."""
        embedded = F.silu(self.t_embedder(times))
        layers = [block.get_submodule("adaLN_modulation.1")(embedded) for block in self.blocks]
        count = len(times)
        inner = torch.stack(layers, 1).view(count, len(layers), MODULATIONS, -1)
        last = self.final_layer.adaLN_modulation["1"](embedded).view(count, 2, -1)
        inner[:, :, 1::3] += 1
        last[:, 1] += 1
        return TimeTable.of_steps(torch.cat([inner.flatten(1, 2), last], 1))

    def collect(self) -> None:
        """To be called when the weights are in place, and again when they are others."""
        self.layer_weights = [cast(_Block, block).weights() for block in self.blocks]

    def forget_times(self) -> None:
        """Drop the weights that only `at_times` reads: a third of all."""
        self.t_embedder = nn.Identity()
        for module in (*self.blocks, self.final_layer):
            module.adaLN_modulation = nn.ModuleDict()

    def condition(self, mu: Tensor, speaker: Tensor, prompt_mel: Tensor) -> Tensor:
        """What the conditions add to every step's input: f32 [2, T, W], its row 1 the bias alone.

        `mu` and `prompt_mel` are [1, T, M], `speaker` is [1, M].
        """
        known = torch.cat([mu, speaker[:, None].expand_as(mu), prompt_mel.to(mu.dtype)], 2)
        weight, bias = self.in_proj.weight, self.in_proj.bias
        with_conditions = F.linear(known, weight[:, self.config.mel_bins :], bias)
        return torch.cat([with_conditions, bias.expand_as(with_conditions)]).float()

    def start(self) -> DitMemory:
        """The memory of one step of the solver before the first block."""
        config = self.config
        tails = self.in_proj.weight.new_zeros(config.layers, ROWS, _KERNEL - 1, config.width)
        return DitMemory((), (), tails, tails)

    def forward(
        self,
        noisy: Tensor,
        conditions: Tensor,
        modulation: tuple[tuple[tuple[Tensor, ...], ...], tuple[Tensor, ...]],
        memory: DitMemory,
        kept: Sequence[slice],
    ) -> tuple[Tensor, DitMemory]:
        """f32 [1, T, M] → velocities f32 [2, T, M], and the memory after this block.

        `conditions` is of `condition`, `modulation` one step of the table. The frames attend to
        each other and to all that is remembered; of both together, newest block in front, the
        memory keeps the stretches `kept`.
        """
        states = self.entered(noisy, conditions)
        pasts = [one.unbind() for one in (*memory.turn, *memory.prompt)]
        first_tails = memory.first_tails.to(states.dtype).unbind()
        second_tails = memory.second_tails.unbind()
        frames, first_ends, second_ends = [], [], []
        for index, vectors in enumerate(modulation[0]):
            query, fresh = self.asked(states, index, vectors)
            seen = self._attended(query, torch.cat([fresh, *(one[index] for one in pasts)], 1))
            tails = (first_tails[index], second_tails[index])
            states, first, second = self.answered(states, seen, index, vectors, tails)
            frames.append(fresh)
            first_ends.append(first)
            second_ends.append(second)
        after = memory.with_tails(first_ends, second_ends)
        if kept != NOTHING:
            # One copy for all layers, so that nothing else of this block stays in memory.
            after = after.extended(torch.stack(frames), kept)
        return self.final_layer(states, modulation[1]), after

    # ---- its parts ------------------------------------------------------------------------------

    def entered(self, noisy: Tensor, conditions: Tensor) -> Tensor:
        """The states f32 [2, T, W] before the first layer."""
        weight = self.in_proj.weight[:, : self.config.mel_bins]
        return conditions + F.linear(noisy.to(weight.dtype), weight)

    def asked(self, states: Tensor, index: int, vectors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """What layer `index` asks [2, H, T, D], and the new keys and values [2, T, 2 · H · D]."""
        layer = self.layer_weights[index]
        heads = (self.config.heads, self.config.head_width)
        mixed = F.linear(_modulated(states, vectors[0], vectors[1], layer.out[0].dtype), *layer.qkv)
        split = mixed.view(*mixed.shape[:2], 3, *heads)
        to_norm = split[:, :, :2]
        normed = F.layer_norm(to_norm, heads[1:], None, None, _AFFINE_EPS)
        torch.addcmul(layer.head_shift, normed, layer.head_scale, out=to_norm)
        return split[:, :, 0].transpose(1, 2), mixed[:, :, heads[0] * heads[1] :]

    def _attended(self, query: Tensor, everything: Tensor) -> Tensor:
        """What is seen [2, T, H · D] of all keys and values [2, n, 2 · H · D]."""
        heads = (self.config.heads, self.config.head_width)
        keys, values = (
            everything.view(*everything.shape[:2], 2, *heads).permute(2, 0, 3, 1, 4).unbind()
        )
        return F.scaled_dot_product_attention(query, keys, values).transpose(1, 2).flatten(2)

    def answered(
        self,
        states: Tensor,
        seen: Tensor,
        index: int,
        vectors: Sequence[Tensor],
        tails: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The states after layer `index`, and the ends of what its two convolutions saw."""
        layer = self.layer_weights[index]
        states = torch.addcmul(states, vectors[2], F.linear(seen, *layer.out))
        states, first, second = _convolved(states, layer, vectors, tails)
        return _widened(states, layer, vectors), first, second


def _convolved(
    states: Tensor,
    layer: LayerWeights,
    vectors: Sequence[Tensor],
    tails: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """The states after two causal convolutions, and the ends of what these saw."""
    normed = F.layer_norm(states, states.shape[2:], vectors[7], vectors[6], _PLAIN_EPS)
    first = torch.cat([tails[0], normed], 1)
    hidden = F.layer_norm(
        _convolution(first, layer.first), states.shape[2:], *layer.norm, _AFFINE_EPS
    )
    second = torch.cat([tails[1], F.mish(hidden)], 1)
    out = torch.addcmul(states, vectors[8], _convolution(second, layer.second))
    return out, first[:, 1 - _KERNEL :], second[:, 1 - _KERNEL :]


def _convolution(seen: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
    """[2, 2 + T, W] → [2, T, W], as one product: cuDNN would turn weights and frames each time."""
    columns = seen.unfold(1, _KERNEL, 1)
    columns = columns.to(weights[0].dtype, memory_format=torch.contiguous_format)
    return F.linear(columns.flatten(2), *weights)


def _widened(states: Tensor, layer: LayerWeights, vectors: Sequence[Tensor]) -> Tensor:
    """The states after the MLP."""
    inside = _modulated(states, vectors[3], vectors[4], layer.wide[0].dtype)
    wide = F.gelu(F.linear(inside, *layer.wide), approximate="tanh")
    return torch.addcmul(states, vectors[5], F.linear(wide, *layer.narrow))


def _stacked(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch.cat([query, key, value])


def _modulated(states: Tensor, shift: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Normed, scaled and shifted in float32, then rounded to the dtype of the products."""
    normed = F.layer_norm(states, states.shape[-1:], scale, shift, _PLAIN_EPS)
    return normed.to(dtype)


class _TimeEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.ModuleDict(
            {"0": nn.Linear(TIME_FEATURES, width), "2": nn.Linear(width, width)}
        )

    def forward(self, times: Tensor) -> Tensor:
        """f32 [N] → [N, W]. At 1000 rad nothing less than float32 resolves the angle."""
        half = TIME_FEATURES // 2
        steps = torch.arange(half, dtype=torch.float32, device=times.device)
        angles = (1000 * times)[:, None] * torch.exp(-math.log(10000) * steps / half)
        features = torch.cat([angles.cos(), angles.sin()], 1)
        out: Tensor = self.mlp["2"](F.silu(self.mlp["0"](features)))
        return out


class _Block(nn.Module):
    """Attention, convolution, MLP; the residual stream is float32 whatever the weights are."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.attn = _Attention(config)
        self.conv = _Convolutions(config.width)
        self.mlp = _Mlp(config)
        linear = nn.Linear(config.width, MODULATIONS * config.width)
        self.adaLN_modulation = nn.ModuleDict({"1": linear})

    def weights(self) -> LayerWeights:
        """All but what depends on the time."""
        norms = (self.attn.q_norm, self.attn.k_norm)
        convolutions = self.conv.block
        return LayerWeights(
            qkv=_weights(self.attn.to_qkv),
            head_scale=torch.stack([norm.weight for norm in norms])[:, None],
            head_shift=torch.stack([norm.bias for norm in norms])[:, None],
            out=_weights(self.attn.proj),
            first=_weights(convolutions["1"]),
            norm=_weights(convolutions["3"]),
            second=_weights(convolutions["6"]),
            wide=_weights(self.mlp.fc1),
            narrow=_weights(self.mlp.fc2),
        )


def _weights(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias; a convolution's [out, in, 3] as a product's [out, in · 3]."""
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    return weight.flatten(1) if weight.ndim > 1 else weight, bias


class _Attention(nn.Module):
    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        inner = config.heads * config.head_width
        self.to_qkv = nn.Linear(config.width, 3 * inner)
        self.q_norm = nn.LayerNorm(config.head_width, _AFFINE_EPS)
        self.k_norm = nn.LayerNorm(config.head_width, _AFFINE_EPS)
        self.proj = nn.Linear(inner, config.width)


class _Convolutions(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = nn.ModuleDict(
            {
                "1": nn.Conv1d(width, width, _KERNEL),
                "3": nn.LayerNorm(width, _AFFINE_EPS),
                "6": nn.Conv1d(width, width, _KERNEL),
            }
        )


class _Mlp(nn.Module):
    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.ffn_width)
        self.fc2 = nn.Linear(config.ffn_width, config.width)


class _FinalLayer(nn.Module):
    def __init__(self, width: int, mel_bins: int) -> None:
        super().__init__()
        self.adaLN_modulation = nn.ModuleDict({"1": nn.Linear(width, 2 * width)})
        self.linear = nn.Linear(width, mel_bins)

    def forward(self, states: Tensor, vectors: Tensor) -> Tensor:
        shift, scale = vectors
        out: Tensor = self.linear(_modulated(states, shift, scale, self.linear.weight.dtype))
        return out.float()
