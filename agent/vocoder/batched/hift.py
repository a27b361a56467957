"""HiFT of either generation as kernels: mel of many streams to what each of them says next.

As `agent.vocoder.hift_stream`, with each stream's window at the beginning of buffers of one size.
What is no frame of a window is zero to every layer, as where a window ends. Rows are frames, their
channels side by side. What is only multiplied is kept as that is done, in half of the memory where
that is float16; sums, biases and what blocks are added to are float32.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.torch_parts.spectrum import transform_tables
from agent.vocoder.batched.layout import PITCH_FRAMES, SAID_FRAMES, Capacity, Layout
from agent.vocoder.batched.window import Reach
from agent.vocoder.causal_hift import CausalHift
from agent.vocoder.hift import Hift
from agent.vocoder.hift_body import LAST_SLOPE, SLOPE
from agent.vocoder.hift_config import (
    BINS,
    BLOCK_KERNELS,
    DILATIONS,
    FRAME_SAMPLES,
    HOP_SAMPLES,
    UP_RATES,
    WINDOW_SAMPLES,
)
from agent.vocoder.hift_layers import NormedUp, ResBlock
from agent.vocoder.hift_stream import HiftStreamSettings
from agent.vocoder.kernels.launching import Rounding
from agent.vocoder.kernels.product import After, Along, Span, Weights, product
from agent.vocoder.kernels.sound import Excitation, WindowSlots, excite, widen
from agent.vocoder.kernels.spectrum import SpectrumTables, analyse, join, mean, sound
from agent.vocoder.source import SourceNoise

_TF32_STEP = 2.0**-11
_CONV_DIMS = 3
_TAP_STEP = BLOCK_KERNELS[1] - BLOCK_KERNELS[0]
_SPECTRA_A_FRAME = FRAME_SAMPLES // HOP_SAMPLES


@dataclass(frozen=True, slots=True, eq=False)
class _Pair:
    """Two convolutions of a residual block, or of several at once, each after its Snake."""

    first: Weights
    second: Weights
    alpha: Tensor  # between them, [groups, C]
    next_alpha: Tensor | None  # of the pair that follows
    dilation: int


@dataclass(frozen=True, slots=True, eq=False)
class _Stage:
    rate: int
    """How many rows of its output a frame has."""
    extra: int
    """And how many more there are in all."""
    up_rate: int
    up_behind: int
    up: Weights
    down: Weights
    down_rate: int
    source: tuple[_Pair, ...]
    source_alpha: Tensor  # [1, C]
    blocks: tuple[_Pair, ...]
    alphas: Tensor  # [3, C]


class BatchedHift:
    """Chunks of mel to sound; `reach` is what its windows are counted with."""

    def __init__(
        self, hift: Hift | CausalHift, noise: SourceNoise, capacity: Capacity, layout: Layout
    ) -> None:
        self._hift = hift
        self._layout = layout
        self._frames = capacity.window_frames
        self._fresh_frames = capacity.frames + PITCH_FRAMES
        self.samples = FRAME_SAMPLES * (capacity.frames + SAID_FRAMES)
        """What a chunk says at most."""
        self._causal = hift.config.causal
        self.reach = Reach.of_causal() if self._causal else Reach.of_classic(HiftStreamSettings())
        linear = hift.m_source.l_linear
        mix = torch.cat([linear.weight[0], linear.bias]).float().contiguous()
        self._excitation = Excitation(noise.table, mix, glides=not self._causal)
        tables = transform_tables(WINDOW_SAMPLES, HOP_SAMPLES, hift.device)
        self._tables = SpectrumTables(*(table.contiguous() for table in tables))
        self._rounding = rounding_of(hift)
        self._pre = self._conv(hift.conv_pre)
        self._post = self._conv(hift.conv_post)
        self._stages = [self._stage(index) for index in range(len(UP_RATES))]

    def slots(self, count: int, window_frames: int) -> WindowSlots:
        """What so many streams' windows keep."""
        config, device = self._hift.config, self._hift.device
        return WindowSlots(
            torch.zeros(count, window_frames, config.mel_bands, device=device),
            torch.zeros(count, window_frames, dtype=torch.float64, device=device),
            torch.zeros(count, config.harmonics, dtype=torch.float64, device=device),
            torch.zeros(count, max(1, self.reach.fade_samples), device=device),
        )

    def __call__(self, mel: Tensor, plan: Tensor, slots: WindowSlots) -> Tensor:
        """Chunks f32 [B, T, M] → f32 [B, samples], of which the plan says how many are said."""
        layout, rounding, frames = self._layout, self._rounding, self._frames
        window, rounded = widen(slots, mel, plan, layout, frames, rounding)
        source = excite(slots, self._pitch(window, plan), self._excitation, plan, layout, frames)
        spectrum = analyse(source, self._tables, plan, layout, rounding)
        pre = self._pre
        hidden = rounded.new_empty(len(mel), frames, pre.outputs)
        shift = 0 if self._causal else -(pre.taps // 2)
        span = Span(plan, count=layout.window.sourced)
        after = After(acted=hidden, act="leaky", slope=SLOPE)
        product(rounded, pre, Along(frames, frames, shift=shift, span=span), after)
        for number, stage in enumerate(self._stages):
            lowered = self._lowered(spectrum, stage, plan)
            raised = self._raised(hidden, stage, plan)
            slope = LAST_SLOPE if number == len(self._stages) - 1 else SLOPE
            joined, acted = join(raised, lowered, stage.alphas, rounding)
            blocks = self._through(stage.blocks, joined, acted, self._span(stage, plan))
            hidden = mean(blocks, slope, rounding)
        drawn = source.new_empty(*hidden.shape[:2], 2 * BINS)
        along = self._along(hidden.shape[1], self._post.taps, 1, self._span(stage, plan))
        product(hidden, self._post, along, After(out=drawn))
        return sound(drawn, self._tables, slots, plan, layout, self.samples)

    # ---- pitch ----------------------------------------------------------------------------------

    def _pitch(self, window: Tensor, plan: Tensor) -> Tensor:
        """Of the frames from `pitch_from` on, f64 [B, F]: in the precision that it was trained."""
        columns, layers = self._layout.window, self._hift.f0_predictor
        at = plan[:, columns.pitch_from, None] + torch.arange(
            self._fresh_frames, device=plan.device
        )
        there = (at < plan[:, columns.heard, None])[..., None]
        at = at.clamp(max=window.shape[1] - 1)[..., None].expand(-1, -1, window.shape[2])
        rows = window.gather(1, at).to(layers.classifier.weight.dtype) * there
        for index, layer in enumerate(layers.condnet):
            if isinstance(layer, nn.Conv1d):
                rows = self._pitch_layer(rows, layer, is_first=index == 0) * there
        pitch: Tensor = layers.classifier(rows).squeeze(-1).abs().double()
        return pitch

    def _pitch_layer(self, rows: Tensor, layer: nn.Conv1d, *, is_first: bool) -> Tensor:
        taps = layer.weight.shape[2]
        around = (taps // 2, taps // 2)
        if self._causal:
            around = (0, taps - 1) if is_first else (taps - 1, 0)
        columns = F.pad(rows, (0, 0, *around)).unfold(1, taps, 1).flatten(2)
        return F.elu(F.linear(columns, layer.weight.flatten(1), layer.bias))

    # ---- stages ---------------------------------------------------------------------------------

    def _span(self, stage: _Stage, plan: Tensor) -> Span:
        shaped = self._layout.window.shaped
        return Span(plan, count=shaped, rate=stage.rate, extra=stage.extra)

    def _raised(self, hidden: Tensor, stage: _Stage, plan: Tensor) -> Tensor:
        count, rows, _ = hidden.shape
        rate, channels = stage.up_rate, stage.alphas.shape[1]
        raised = torch.empty(count, rows * rate, channels, device=hidden.device)
        span = Span(plan, count=self._layout.window.shaped, rate=stage.rate // rate)
        if self._causal:
            shift = 1 - stage.up.taps
            along = Along(rows * rate, rows, shift=shift, repeat=rate, span=span)
            product(hidden, stage.up, along, After(out=raised))
        else:
            along = Along(rows + 1, rows, dilation=-1, span=span)
            product(hidden, stage.up, along, After(out=raised, behind=stage.up_behind, rows=rows))
        return raised

    def _lowered(self, spectrum: Tensor, stage: _Stage, plan: Tensor) -> Tensor:
        """The excitation as a stage wants it."""
        rows = self._frames * stage.rate + stage.extra
        channels = stage.alphas.shape[1]
        out = torch.empty(len(spectrum), rows, channels, device=spectrum.device)
        acted = torch.empty_like(out, dtype=spectrum.dtype)
        rate = stage.down_rate
        shift = 1 - rate if self._causal else -(rate // 2)
        span = Span(plan, count=self._layout.window.shaped, rate=_SPECTRA_A_FRAME, extra=1)
        along = Along(rows, spectrum.shape[1], stride=rate, shift=shift, span=span)
        after = After(out=out, acted=acted, act="snake", alpha=stage.source_alpha)
        product(spectrum, stage.down, along, after)
        return self._through(stage.source, out, acted[None], self._span(stage, plan))[0]

    def _through(
        self, pairs: tuple[_Pair, ...], added: Tensor, acted: Tensor, span: Span
    ) -> Tensor:
        """Residual blocks' f32 [groups, B, L, C] of `added` f32 [B, L, C] and each block's Snake of
        it, `acted` [groups, B, L, C], which is written over."""
        rows = acted.shape[2]
        between = torch.empty_like(acted)
        out = torch.empty_like(acted, dtype=torch.float32)
        for pair in pairs:
            along = self._along(rows, pair.first.taps, pair.dilation, span)
            after = After(acted=between, act="snake", alpha=pair.alpha)
            product(acted, pair.first, along, after)
            along = self._along(rows, pair.second.taps, 1, span)
            is_last = pair.next_alpha is None
            after = After(
                out=out, added=added, acted=None if is_last else acted,
                act="none" if is_last else "snake", alpha=pair.next_alpha,
            )  # fmt: skip
            product(between, pair.second, along, after)
            added = out
        return out

    def _along(self, rows: int, taps: int, dilation: int, span: Span) -> Along:
        reach = -(taps - 1) * dilation
        shift = reach if self._causal else reach // 2
        return Along(
            rows, rows, shift=shift, dilation=dilation, centred=not self._causal, span=span
        )

    # ---- weights as kernels read them -----------------------------------------------------------

    def _conv(self, layer: nn.Module) -> Weights:
        return self._convs([layer])

    def _convs(self, layers: list[nn.Module]) -> Weights:
        weights = [one.get_parameter("weight").transpose(1, 2) for one in layers]
        return self._weights(weights, [one.get_parameter("bias") for one in layers])

    def _weights(self, taps: list[Tensor], biases: list[Tensor]) -> Weights:
        weights = Weights.of_taps(taps, biases, _TAP_STEP if len(taps) > 1 else 0)
        return weights.rounded(self._rounding)

    def _stage(self, index: int) -> _Stage:
        hift, groups = self._hift, len(BLOCK_KERNELS)
        last = index == len(UP_RATES) - 1
        source = hift.source_resblocks[index]
        blocks = hift.resblocks[index * groups : (index + 1) * groups]
        up = hift.ups[index]
        return _Stage(
            rate=math.prod(UP_RATES[: index + 1]),
            extra=int(last),
            up_rate=UP_RATES[index],
            up_behind=up.edge * up.out_channels if isinstance(up, NormedUp) else 0,
            up=self._conv(up) if self._causal else self._transposed(up, UP_RATES[index]),
            down=self._conv(hift.source_downs[index]),
            down_rate=math.prod(UP_RATES[index + 1 :]),
            source=self._pairs([source]),
            source_alpha=_alphas([source], 1, 0),
            blocks=self._pairs(list(blocks)),
            alphas=_alphas(list(blocks), 1, 0),
        )

    def _transposed(self, up: nn.Module, rate: int) -> Weights:
        """A convolution that raises the rate, as one that gives `rate` rows side by side.

        Sample rate·m + p of what it makes, before its edge is cut, is the sum over j of the input
        at m - j times the weight's tap rate·j + p.
        """
        weight, bias = up.get_parameter("weight"), up.get_parameter("bias")  # [C, D, k]
        taps = -(-weight.shape[2] // rate)
        padded = F.pad(weight, (0, taps * rate - weight.shape[2]))
        split = padded.view(*weight.shape[:2], taps, rate).permute(3, 1, 2, 0)  # [r, D, taps, C]
        return self._weights([split.flatten(0, 1)], [bias.repeat(rate)])

    def _pairs(self, blocks: list[nn.Module]) -> tuple[_Pair, ...]:
        pairs = []
        for place, dilation in enumerate(DILATIONS):
            follows = place + 1 < len(DILATIONS)
            pairs.append(
                _Pair(
                    self._convs([one.get_submodule(f"convs1.{place}") for one in blocks]),
                    self._convs([one.get_submodule(f"convs2.{place}") for one in blocks]),
                    _alphas(blocks, 2, place),
                    _alphas(blocks, 1, place + 1) if follows else None,
                    dilation,
                )
            )
        return tuple(pairs)


def rounding_of(hift: Hift | CausalHift) -> Rounding:
    """To as many digits as torch's convolutions, where it allows that: in float16 if it can be."""
    if hift.device.type != "cuda" or not torch.backends.cudnn.allow_tf32:
        return "none"
    return "half" if fits_half(hift) else "tf32"


def fits_half(hift: Hift | CausalHift) -> bool:
    """Whether no weight of a convolution loses more in float16 than it might in TF32.

    Rounding to TF32 changes a number by 2⁻¹¹ of itself at most, and so a weight by that of its
    norm. So does float16, unless a number is too large for it or too many are too small.
    """
    layers = (
        hift.conv_pre, hift.ups, hift.source_downs, hift.source_resblocks, hift.resblocks,
        hift.conv_post,
    )  # fmt: skip
    fit = [
        (weight - weight.half()).norm() <= _TF32_STEP * weight.norm()
        for layer in layers
        for weight in layer.parameters()
        if weight.dim() == _CONV_DIMS
    ]
    return bool(torch.stack(fit).all())


def _alphas(blocks: list[nn.Module], which: int, place: int) -> Tensor:
    assert all(isinstance(one, ResBlock) for one in blocks)
    names = f"activations{which}.{place}"
    return torch.stack([one.get_submodule(names).get_parameter("alpha") for one in blocks]).detach()
