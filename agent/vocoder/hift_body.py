"""What the two generations of HiFT share: mel and excitation to sound at 24 kHz."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.torch_parts.checkpoint import Fold
from agent.torch_parts.spectrum import Spectrum
from agent.vocoder.f0 import F0Net
from agent.vocoder.hift_config import (
    BINS,
    BLOCK_KERNELS,
    HOP_SAMPLES,
    SOURCE_KERNELS,
    UP_KERNELS,
    UP_RATES,
    WINDOW_SAMPLES,
    HiftConfig,
)
from agent.vocoder.hift_layers import (
    Conv,
    NormedUp,
    ResBlock,
    causal_conv,
    same_conv,
    weight_norm_folds,
)
from agent.vocoder.source import HarmonicSource

LIMIT = 0.99
"""The loudest sample."""
_LOUDEST_BIN = 100.0
SLOPE = 0.1
"""Of what is negative before a stage, …"""
LAST_SLOPE = 0.01
"""… and before the last convolution."""
_SPECTRUM = Spectrum(WINDOW_SAMPLES, HOP_SAMPLES)


class HiftBody(nn.Module):
    """The network and its keys; always in float32 (the causal pitch in float64).

    Load it with a float32 `Target`: the phase of the sound does not survive less.
    """

    def __init__(self, config: HiftConfig) -> None:
        super().__init__()
        self.config = config
        stages = range(len(UP_RATES))
        widths = [config.base_channels // 2**stage for stage in range(len(UP_RATES) + 1)]
        conv = causal_conv if config.causal else same_conv
        self.m_source = HarmonicSource(config.harmonics)
        self.f0_predictor = F0Net(config)
        self.conv_pre = _first_conv(config)
        self.ups = nn.ModuleList(_up(config, stage, widths) for stage in stages)
        self.source_downs = nn.ModuleList(_down(stage, widths[stage + 1]) for stage in stages)
        self.source_resblocks = nn.ModuleList(
            ResBlock(widths[stage + 1], SOURCE_KERNELS[stage], causal=config.causal)
            for stage in stages
        )
        self.resblocks = nn.ModuleList(
            ResBlock(widths[stage + 1], kernel, causal=config.causal)
            for stage in stages
            for kernel in BLOCK_KERNELS
        )
        self.conv_post = conv(widths[-1], 2 * BINS, 7)

    @property
    def device(self) -> torch.device:
        return self.m_source.l_linear.weight.device

    def folds(self) -> Mapping[str, Fold]:
        return weight_norm_folds(self, "f0_predictor." if self.config.causal else None)

    def _shape(self, hidden: Tensor, source: Tensor) -> Tensor:
        """The first convolution's output [B, C, T] and the excitation's spectrum → [B, 480 T]."""
        for stage in range(len(UP_RATES)):
            hidden = self._raise(F.leaky_relu(hidden, SLOPE), stage)
            if stage == len(UP_RATES) - 1:
                hidden = F.pad(hidden, (1, 0), mode="reflect")
            hidden = hidden + self.source_resblocks[stage](self._lower(source, stage))
            blocks = self.resblocks[stage * len(BLOCK_KERNELS) :][: len(BLOCK_KERNELS)]
            hidden = torch.stack([block(hidden) for block in blocks]).mean(0)
        drawn = self.conv_post(F.leaky_relu(hidden, LAST_SLOPE))
        level, angle = drawn[:, :BINS].exp().clamp(max=_LOUDEST_BIN), drawn[:, BINS:].sin()
        spectrum = torch.cat([level * angle.cos(), level * angle.sin()], dim=1)
        return _SPECTRUM.synthesise(spectrum).clamp(-LIMIT, LIMIT)

    def _raise(self, hidden: Tensor, stage: int) -> Tensor:
        if self.config.causal:
            hidden = hidden.repeat_interleave(UP_RATES[stage], dim=-1)
        raised: Tensor = self.ups[stage](hidden)
        return raised

    def _lower(self, source: Tensor, stage: int) -> Tensor:
        """The excitation's spectrum [B, 18, 120 T + 1] at the rate of a stage."""
        rate = _rate_after(stage)
        around = (rate - 1, 0) if self.config.causal else (rate // 2, rate // 2)
        lowered: Tensor = self.source_downs[stage](F.pad(source, around))
        return lowered


def source_spectrum(source: Tensor) -> Tensor:
    """An excitation [B, 480 T] → [B, 18, 120 T + 1]."""
    return _SPECTRUM.analyse(source)


def _first_conv(config: HiftConfig) -> Conv:
    around = (0, 0) if config.causal else (config.pre_kernel // 2, config.pre_kernel // 2)
    return Conv(config.mel_bands, config.base_channels, config.pre_kernel, 1, around)


def _up(config: HiftConfig, stage: int, widths: list[int]) -> nn.Module:
    sizes = widths[stage], widths[stage + 1], UP_KERNELS[stage]
    return causal_conv(*sizes) if config.causal else NormedUp(*sizes, UP_RATES[stage])


def _down(stage: int, width: int) -> nn.Conv1d:
    rate = _rate_after(stage)
    return nn.Conv1d(2 * BINS, width, 2 * rate if rate > 1 else 1, rate)


def _rate_after(stage: int) -> int:
    """How much finer than a stage the excitation's spectrum is."""
    return math.prod(UP_RATES[stage + 1 :])
