"""CosyVoice2's estimator: a one-dimensional U-Net with a single level, so nothing changes length.

The module holds weights only. What a stream remembers between its chunks (the last two inputs of
every convolution, the keys and values of every attention) is a `History`, handed to each call.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.errors import CheckpointError
from agent.torch_parts.checkpoint import Fold

KERNEL = 3
"""Of every causal convolution; the history before a chunk is two frames."""
_EXPANSION = 4
"""Feed-forward width over model width."""
_SLOWEST = 10_000.0
_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class UnetConfig:
    """Sizes of the estimator; the defaults are those of CosyVoice2-0.5B."""

    mel_bins: int = 80
    width: int = 256
    time_width: int = 1024
    heads: int = 8
    head_width: int = 64
    transformers: int = 4
    """Transformer blocks after each convolutional block."""
    mid_blocks: int = 12

    @property
    def input_width(self) -> int:
        """State, mu, speaker and prompt mel, one after another."""
        return 4 * self.mel_bins

    @property
    def layers(self) -> int:
        """How many attentions there are."""
        return (self.mid_blocks + 2) * self.transformers

    @property
    def tail_widths(self) -> tuple[int, ...]:
        """Channels that enter each causal convolution, in the order of use."""
        down = (self.input_width, self.width, self.width)
        up = (2 * self.width, self.width, self.width)
        return down + (self.width, self.width) * self.mid_blocks + up + (self.width,)


def unet_sizes(
    shapes: Mapping[str, tuple[int, ...]], prefix: str, head_width: int = 64
) -> UnetConfig:
    """The sizes that these stored shapes belong to; the width of a head is not among them.

    Raises CheckpointError when they are no such estimator's.
    """

    def shape(name: str, sides: int) -> tuple[int, ...]:
        found = shapes.get(f"{prefix}{name}", ())
        if len(found) != sides:
            raise CheckpointError(f"{prefix}{name} is missing or of another shape: {list(found)}")
        return found

    def count(group: str) -> int:
        start = f"{prefix}{group}."
        names = {key.removeprefix(start).split(".")[0] for key in shapes if key.startswith(start)}
        return len(names)

    attention = shape("down_blocks.0.1.0.attn1.to_q.weight", 2)
    heads, rest = divmod(attention[0], head_width)
    if rest or not heads:
        raise CheckpointError(f"{attention[0]} does not divide into heads of {head_width}")
    return UnetConfig(
        mel_bins=shape("final_proj.weight", 3)[0],
        width=attention[1],
        time_width=shape("time_mlp.linear_1.weight", 2)[0],
        heads=heads,
        head_width=head_width,
        transformers=count("down_blocks.0.1"),
        mid_blocks=count("mid_blocks"),
    )


class History(Protocol):
    """What came before the frames of one call, and who of them may look at whom."""

    @property
    def mask(self) -> Tensor | None:
        """True or 0 where a frame may look, [T, S]; None lets it look everywhere."""

    def lead(self, conv: int, signal: Tensor) -> Tensor:
        """[R, T, C] → [R, 2 + T, C]: what entered this convolution before, in front."""

    def extend(self, layer: int, tokens: Tensor) -> Tensor:
        """[R, T, C] → [R, S, C]: with what keys are made of in the frames before, in front."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """No history: the frames of the call are the first ones."""

    mask: Tensor | None = None

    def lead(self, conv: int, signal: Tensor) -> Tensor:
        return F.pad(signal, (0, 0, KERNEL - 1, 0))

    def extend(self, layer: int, tokens: Tensor) -> Tensor:
        return tokens


def block_causal(first: int, frames: int, block: int, device: torch.device) -> Tensor:
    """Of frames `first`.. of a grid of blocks: who may look at whom, bool [T, T].

    Each looks at its own block, to its end, and at everything before.
    """
    at = torch.arange(first, first + frames, device=device)
    return at[None, :] < (at[:, None] // block + 1) * block


def block_causal_bias(past: int, frames: int, block: int, like: Tensor) -> Tensor:
    """The same after `past` frames that all may look at: 0 or -∞, as `no_bias` [T, past + T]."""
    bias = no_bias(frames, past + frames, like)
    hidden = ~block_causal(0, frames, block, like.device)
    bias[:, past:].masked_fill_(hidden, float("-inf"))
    return bias


def no_bias(frames: int, keys: int, like: Tensor) -> Tensor:
    """Zeros [T, keys] in `like`'s dtype.

    Rows begin on a multiple of eight numbers, as fused attention wants it: it would otherwise make
    this of what it is given in every layer.
    """
    return like.new_zeros(frames, -(-keys // 8) * 8)[:, :keys]


class Unet(nn.Module):
    """Velocity of the flow at one time; `shifts` makes the only thing that depends on the time."""

    def __init__(self, config: UnetConfig) -> None:
        super().__init__()
        self.config = config
        width, depth = config.width, config.transformers
        self.time_mlp = _TimeMlp(config.input_width, config.time_width)
        down = _Stage(config, 0, 0, config.input_width)
        down.append(_causal(width, width))
        self.down_blocks = nn.ModuleList([down])
        self.mid_blocks = nn.ModuleList(
            _Stage(config, 3 + 2 * index, (1 + index) * depth, width)
            for index in range(config.mid_blocks)
        )
        after = 3 + 2 * config.mid_blocks
        up = _Stage(config, after, (1 + config.mid_blocks) * depth, 2 * width)
        up.append(_causal(width, width))
        self.up_blocks = nn.ModuleList([up])
        self.final_block = _Block(width, width, after + 3)
        self.final_proj = nn.Conv1d(width, config.mel_bins, 1)
        self._up_conv = after + 2

    def shifts(self, times: Tensor) -> Tensor:
        """What each convolutional block adds at these times [S], 0..1: f32 [S, blocks, width].

        In float32 whatever the weights are: a half cannot tell one 1000 t from the next.
        """
        embedded = F.mish(self.time_mlp(times))
        stages = [*self.down_blocks, *self.mid_blocks, *self.up_blocks]
        return torch.stack([cast(_Stage, stage).shift(embedded) for stage in stages], 1)

    def folds(self) -> Mapping[str, Fold]:
        """Those of its attentions, by their names here."""
        return {
            f"{name}.{weight}": Fold(
                {f"{name}.{stored}": shape for stored, shape in fold.sources.items()}, fold.make
            )
            for name, module in self.named_modules()
            if isinstance(module, _Attention)
            for weight, fold in module.folds().items()
        }

    def forward(self, frames: Tensor, shifts: Tensor, history: History) -> Tensor:
        """[R, T, 4 · mel] and the shifts [blocks, width] → velocity [R, T, mel]."""
        first, *mids, last = shifts.unbind()
        down, up = cast(_Stage, self.down_blocks[0]), cast(_Stage, self.up_blocks[0])
        skipped = down(frames, first, history)
        signal = _convolved(down[2], history.lead(2, skipped))
        for stage, shift in zip(self.mid_blocks, mids, strict=True):
            signal = stage(signal, shift, history)
        signal = up(torch.cat([signal, skipped], 2), last, history)
        signal = _convolved(up[2], history.lead(self._up_conv, signal))
        return _pointwise(self.final_proj, self.final_block(signal, history))


class _TimeMlp(nn.Module):
    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(features, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, times: Tensor) -> Tensor:
        """[S] → [S, width]. Sines stand before cosines, and the last frequency is 1 / 10 000."""
        half = self.linear_1.in_features // 2
        steps = torch.arange(half, device=times.device, dtype=torch.float32)
        rates = torch.exp(steps * -(math.log(_SLOWEST) / (half - 1)))
        angles = 1000.0 * times.float()[:, None] * rates
        features = torch.cat([angles.sin(), angles.cos()], -1)
        return _linear(self.linear_2, F.silu(_linear(self.linear_1, features)))


_Pair: TypeAlias = tuple[Tensor, Tensor]
"""Weight and bias."""


def _pair(layer: nn.Module) -> _Pair:
    return layer.get_parameter("weight"), layer.get_parameter("bias")


class _Stage(nn.ModuleList):
    """A convolutional block, its transformers, and what the level may close with."""

    def __init__(self, config: UnetConfig, conv: int, layer: int, channels: int) -> None:
        layers = (_Transformer(config, layer + index) for index in range(config.transformers))
        super().__init__([_Resnet(config, conv, channels), nn.ModuleList(layers)])

    def shift(self, embedded: Tensor) -> Tensor:
        """Activated time embedding [S, time width] → [S, width]."""
        return _linear(cast(nn.Linear, cast(_Resnet, self[0]).mlp[1]), embedded)

    def forward(self, signal: Tensor, shift: Tensor, history: History) -> Tensor:
        tokens: Tensor = self[0](signal, shift, history)
        for layer in self[1].children():
            tokens = layer(tokens, history)
        return tokens


class _Resnet(nn.Module):
    """Two causal blocks (convolutions `conv` and `conv` + 1), the time's shift between them."""

    def __init__(self, config: UnetConfig, conv: int, channels: int) -> None:
        super().__init__()
        self.mlp = nn.ModuleList([nn.Identity(), nn.Linear(config.time_width, config.width)])
        self.block1 = _Block(channels, config.width, conv)
        self.block2 = _Block(config.width, config.width, conv + 1)
        self.res_conv = nn.Conv1d(channels, config.width, 1)

    def forward(self, signal: Tensor, shift: Tensor, history: History) -> Tensor:
        inner = self.block1(signal, history) + shift
        out: Tensor = self.block2(inner, history) + _pointwise(self.res_conv, signal)
        return out


class _Block(nn.Module):
    def __init__(self, channels: int, width: int, conv: int) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            [_causal(channels, width), nn.Identity(), nn.LayerNorm(width, eps=_EPS)]
        )
        self._conv = conv
        self._width = (width,)
        self._weights: tuple[_Pair, ...] = ()

    def derive(self, device: torch.device) -> None:
        """As `_Transformer.derive`."""
        self._weights = tuple(_pair(self.block[at]) for at in (0, 2))

    def forward(self, signal: Tensor, history: History) -> Tensor:
        (weight, bias), norm = self._weights
        columns = history.lead(self._conv, signal).unfold(1, KERNEL, 1).flatten(2)
        mixed = F.linear(columns, weight.flatten(1), bias)
        return F.mish(F.layer_norm(mixed, self._width, *norm, _EPS))


class _Transformer(nn.Module):
    def __init__(self, config: UnetConfig, layer: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=_EPS)
        self.attn1 = _Attention(config)
        self.norm3 = nn.LayerNorm(config.width, eps=_EPS)
        self.ff = _FeedForward(config.width)
        self._heads = config.heads
        self._width = (config.width,)
        self._layer = layer
        self._weights: tuple[_Pair, ...] = ()

    def derive(self, device: torch.device) -> None:
        """Called when the weights are in place: to ask modules for them costs as much as a step.

        These are the parameters themselves, so they follow the module to another precision.
        """
        widen, _, narrow = self.ff.net
        inner = (widen.get_submodule("proj"), narrow)
        layers = (self.norm1, self.attn1.to_out[0], self.norm3, *inner)
        self._weights = tuple(_pair(layer) for layer in layers)

    def forward(self, tokens: Tensor, history: History) -> Tensor:
        first, out, second, widen, narrow = self._weights
        normed = F.layer_norm(tokens, self._width, *first, _EPS)
        everything = history.extend(self._layer, normed)
        # The past's queries are made in vain: a second product would cost more than that.
        made = F.linear(everything, self.attn1.to_qkv.weight)
        made = made.view(*made.shape[:2], 3, self._heads, -1).permute(2, 0, 3, 1, 4)
        query, keys, values = made.unbind()
        query = query[:, :, -tokens.shape[1] :]
        # Without positions: order comes from the convolutions alone.
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=history.mask)
        tokens = tokens + F.linear(mixed.transpose(1, 2).flatten(2), *out)
        normed = F.layer_norm(tokens, self._width, *second, _EPS)
        return tokens + F.linear(F.gelu(F.linear(normed, *widen)), *narrow)


class _Attention(nn.Module):
    """Weights alone."""

    def __init__(self, config: UnetConfig) -> None:
        super().__init__()
        inner = config.heads * config.head_width
        self.to_qkv = nn.Linear(config.width, 3 * inner, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(inner, config.width)])

    def folds(self) -> Mapping[str, Fold]:
        """Query, key and value are one product."""
        inner, width = self.to_qkv.weight.shape
        sources = {f"to_{one}.weight": (inner // 3, width) for one in "qkv"}
        return {"to_qkv.weight": Fold(sources, _stacked)}


def _stacked(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch.cat([query, key, value])


class _FeedForward(nn.Module):
    """Weights alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = _EXPANSION * width
        self.net = nn.ModuleList([_Projection(width, wide), nn.Identity(), nn.Linear(wide, width)])


class _Projection(nn.Module):
    def __init__(self, width: int, wide: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, wide)


def _linear(layer: nn.Linear, signal: Tensor) -> Tensor:
    """The layer in float32."""
    return F.linear(signal, layer.weight.float(), layer.bias.float())


def _causal(channels: int, width: int) -> nn.Conv1d:
    """To be given what came before in front: it pads nothing itself."""
    return nn.Conv1d(channels, width, KERNEL)


def _convolved(convolution: nn.Module, signal: Tensor) -> Tensor:
    """[R, 2 + T, C] → [R, T, W], as one product: cuDNN would turn weights and frames each time."""
    weight, bias = convolution.get_parameter("weight"), convolution.get_parameter("bias")
    return F.linear(signal.unfold(1, KERNEL, 1).flatten(2), weight.flatten(1), bias)


def _pointwise(convolution: nn.Conv1d, signal: Tensor) -> Tensor:
    """A convolution of one frame: [R, T, C] → [R, T, W]."""
    return F.linear(signal, convolution.weight.flatten(1), convolution.bias)
