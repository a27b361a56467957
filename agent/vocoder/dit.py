"""The velocity estimator of token2wav: a transformer over mel frames, modulated by the time.

It is always asked twice at once, row 0 with what is known of the speech and row 1 without. It has
no positions: order comes from causal convolutions and from what the encoder says. What a call
remembers of the past is held apart for every step of the solver, and never changed in place.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.torch_parts.checkpoint import Fold
from agent.vocoder.config import MODULATIONS, TIME_FEATURES, DitConfig

ROWS = 2
"""With and without the conditions."""
_PLAIN_EPS = 1e-6
_AFFINE_EPS = 1e-5
_KERNEL = 3


@dataclass(frozen=True, slots=True)
class LayerMemory:
    """What one layer remembers at one step of the solver: keys with the newest block in front."""

    key: Tensor  # [2, H, L, D]
    value: Tensor  # [2, H, L, D]
    first_tail: Tensor  # [2, W, 2]: the end of what each convolution saw
    second_tail: Tensor  # [2, W, 2]

    def to(self, dtype: torch.dtype) -> "LayerMemory":
        """The same in another precision."""
        return LayerMemory(
            self.key.to(dtype),
            self.value.to(dtype),
            self.first_tail.to(dtype),
            self.second_tail.to(dtype),
        )


DitMemory: TypeAlias = tuple[LayerMemory, ...]
"""All layers at one step of the solver."""


@dataclass(frozen=True, slots=True)
class TimeTable:
    """All that depends on the time alone, for each step of the solver, float32."""

    layers: Tensor  # [N, layers, 9, W]: shift, 1 + scale, gate of attention, MLP and convolution
    last: Tensor  # [N, 2, W]: shift and 1 + scale


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
        return TimeTable(inner, last)

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
        config, like = self.config, self.in_proj.weight
        empty = like.new_zeros(ROWS, config.heads, 0, config.head_width)
        tail = like.new_zeros(ROWS, config.width, _KERNEL - 1)
        return (LayerMemory(empty, empty, tail, tail),) * config.layers

    def forward(
        self,
        noisy: Tensor,
        conditions: Tensor,
        modulation: tuple[Tensor, Tensor],
        memory: DitMemory,
        kept: Sequence[slice],
    ) -> tuple[Tensor, DitMemory]:
        """f32 [1, T, M] → velocities f32 [2, T, M], and the memory after this block.

        `conditions` is of `condition`, `modulation` one step of the table. The frames attend to
        each other and to all that is remembered; of both together, newest block in front, the
        memory keeps the stretches `kept`.
        """
        weight = self.in_proj.weight[:, : self.config.mel_bins]
        states = conditions + F.linear(noisy.to(weight.dtype), weight).float()
        after: list[LayerMemory] = []
        for block, vectors, past in zip(self.blocks, modulation[0], memory, strict=True):
            states, extended = block(states, vectors, past, kept)
            after.append(extended)
        return self.final_layer(states, modulation[1]), tuple(after)


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

    def forward(
        self, states: Tensor, vectors: Tensor, past: LayerMemory, kept: Sequence[slice]
    ) -> tuple[Tensor, LayerMemory]:
        dtype = past.key.dtype
        attend, mlp, convolve = vectors.view(3, 3, -1)
        shift, scale, gate = attend
        mixed, key, value = self.attn(_modulated(states, shift, scale, dtype), past, kept)
        states = torch.addcmul(states, gate, mixed)
        shift, scale, gate = convolve
        smooth, first, second = self.conv(_modulated(states, shift, scale, dtype), past)
        states = torch.addcmul(states, gate, smooth)
        shift, scale, gate = mlp
        wide = self.mlp(_modulated(states, shift, scale, dtype))
        states = torch.addcmul(states, gate, wide)
        return states, LayerMemory(key, value, first, second)


class _Attention(nn.Module):
    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        inner = config.heads * config.head_width
        self.to_qkv = nn.Linear(config.width, 3 * inner)
        self.q_norm = nn.LayerNorm(config.head_width, _AFFINE_EPS)
        self.k_norm = nn.LayerNorm(config.head_width, _AFFINE_EPS)
        self.proj = nn.Linear(inner, config.width)
        self._heads = config.heads

    def forward(
        self, states: Tensor, past: LayerMemory, kept: Sequence[slice]
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, count, _ = states.shape
        split = self.to_qkv(states).view(rows, count, 3, self._heads, -1)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        keys = torch.cat([self.k_norm(key), past.key], 2)
        values = torch.cat([value, past.value], 2)
        mixed = F.scaled_dot_product_attention(self.q_norm(query), keys, values)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out, _stretches(keys, kept), _stretches(values, kept)


def _stretches(frames: Tensor, kept: Sequence[slice]) -> Tensor:
    """These stretches of the frames in a tensor of their own, or all as they are."""
    if len(kept) == 1 and kept[0] == slice(0, frames.shape[2]):
        return frames
    return torch.cat([frames[:, :, one] for one in kept], 2)


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

    def forward(self, states: Tensor, past: LayerMemory) -> tuple[Tensor, Tensor, Tensor]:
        """[2, T, W] → [2, T, W] and the ends of what the two convolutions saw."""
        first = torch.cat([past.first_tail, states.transpose(1, 2)], 2)
        smooth = self.block["3"](self.block["1"](first).transpose(1, 2))
        second = torch.cat([past.second_tail, F.mish(smooth).transpose(1, 2)], 2)
        out = self.block["6"](second).transpose(1, 2)
        return out, _end(first), _end(second)


def _end(seen: Tensor) -> Tensor:
    """A copy, so that no two frames hold all the others in memory."""
    return seen[:, :, seen.shape[2] - (_KERNEL - 1) :].clone()


class _Mlp(nn.Module):
    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.ffn_width)
        self.fc2 = nn.Linear(config.ffn_width, config.width)

    def forward(self, states: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(states), approximate="tanh"))
        return out


class _FinalLayer(nn.Module):
    def __init__(self, width: int, mel_bins: int) -> None:
        super().__init__()
        self.adaLN_modulation = nn.ModuleDict({"1": nn.Linear(width, 2 * width)})
        self.linear = nn.Linear(width, mel_bins)

    def forward(self, states: Tensor, vectors: Tensor) -> Tensor:
        shift, scale = vectors
        out: Tensor = self.linear(_modulated(states, shift, scale, self.linear.weight.dtype))
        return out.float()
