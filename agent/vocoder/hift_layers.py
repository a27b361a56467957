"""What both generations of HiFT are built of: weight-normed convolutions, Snake, blocks."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.torch_parts.checkpoint import Fold
from agent.vocoder.hift_config import DILATIONS


class Conv(nn.Conv1d):
    """A convolution along time, [B, C, T] → [B, D, T'], weight-normed in the checkpoint.

    `pad` are zeros in front and behind; the convolution's own padding knows only both alike.
    """

    def __init__(
        self, channels: int, out_channels: int, kernel: int, dilation: int, pad: tuple[int, int]
    ) -> None:
        same = pad[0] == pad[1]
        super().__init__(
            channels, out_channels, kernel, dilation=dilation, padding=pad[0] if same else 0
        )
        self._uneven = None if same else pad

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input if self._uneven is None else F.pad(input, self._uneven))


def same_conv(channels: int, out_channels: int, kernel: int, dilation: int = 1) -> Conv:
    around = (kernel - 1) * dilation // 2
    return Conv(channels, out_channels, kernel, dilation, (around, around))


def causal_conv(channels: int, out_channels: int, kernel: int, dilation: int = 1) -> Conv:
    """Sees the past alone."""
    return Conv(channels, out_channels, kernel, dilation, ((kernel - 1) * dilation, 0))


class NormedUp(nn.ConvTranspose1d):
    """An upsampling convolution whose weight norm is over its input channels."""

    def __init__(self, channels: int, out_channels: int, kernel: int, rate: int) -> None:
        self.edge = (kernel - rate) // 2
        super().__init__(channels, out_channels, kernel, rate, padding=self.edge)


def weight_norm_folds(module: nn.Module, doubled: str | None = None) -> dict[str, Fold]:
    """Each normed convolution's weight by its name, made once: direction / its length · gain.

    Those whose names begin with `doubled` are computed and kept in float64.
    """
    return {
        f"{name}.weight": _fold(
            name,
            tuple(inner.weight.shape),
            torch.float64 if doubled is not None and name.startswith(doubled) else None,
        )
        for name, inner in module.named_modules()
        if isinstance(inner, Conv | NormedUp)
    }


def _fold(name: str, shape: tuple[int, ...], dtype: torch.dtype | None) -> Fold:
    stored = f"{name}.parametrizations.weight.original"
    sources: Mapping[str, tuple[int, ...]] = {f"{stored}0": (shape[0], 1, 1), f"{stored}1": shape}

    def make(gain: Tensor, direction: Tensor) -> Tensor:
        precise = dtype or direction.dtype
        return torch._weight_norm(direction.to(precise), gain.to(precise), 0)

    return Fold(sources, make)


class Snake(nn.Module):
    """x + sin²(αx)/α, with an α for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(channels))
        self._rate = self._divisor = torch.empty(0)

    def derive(self, device: torch.device) -> None:
        """Called when the weights are in place."""
        self._rate = self.alpha.detach()[:, None]
        self._divisor = self._rate + 1e-9

    def forward(self, sound: Tensor) -> Tensor:
        wave = (sound * self._rate).sin_().square_()
        return torch.addcdiv(sound, wave, self._divisor)


class ResBlock(nn.Module):
    """Residual convolutions of rising dilation, [B, C, T] → the same; causal or centred."""

    def __init__(self, channels: int, kernel: int, *, causal: bool) -> None:
        super().__init__()
        conv = causal_conv if causal else same_conv
        self.convs1 = nn.ModuleList(conv(channels, channels, kernel, d) for d in DILATIONS)
        self.convs2 = nn.ModuleList(conv(channels, channels, kernel) for _ in DILATIONS)
        self.activations1 = nn.ModuleList(Snake(channels) for _ in DILATIONS)
        self.activations2 = nn.ModuleList(Snake(channels) for _ in DILATIONS)

    def forward(self, sound: Tensor) -> Tensor:
        layers = zip(self.activations1, self.convs1, self.activations2, self.convs2, strict=True)
        for first_snake, first, second_snake, second in layers:
            sound = sound + second(second_snake(first(first_snake(sound))))
        return sound
