"""The pitch of each mel frame, in Hz; below 10 Hz the frame is unvoiced."""

import torch
from torch import Tensor, nn

from agent.vocoder.hift_config import F0_LOOK_RIGHT_FRAMES, HiftConfig
from agent.vocoder.hift_layers import Conv, causal_conv, same_conv

CONTEXT_FRAMES = 5
"""A frame's pitch depends on so many frames on either side of it, in the classic generation."""
CAUSAL_LEFT_FRAMES = 8
"""The same of the past in the causal one, which sees F0_LOOK_RIGHT_FRAMES of the future."""
_LAYERS = 5


class F0Net(nn.Module):
    """Mel f32 [B, 80, T] → pitch [B, T]. The causal generation computes, and answers, in float64.

    Its voicing is decided on the pitch's last digits, for it was trained so.
    """

    def __init__(self, config: HiftConfig) -> None:
        super().__init__()
        width = config.f0_channels
        conv = causal_conv if config.causal else same_conv
        layers: list[nn.Module] = []
        for number in range(_LAYERS):
            if number == 0 and config.causal:
                layers.append(Conv(config.mel_bands, width, config.f0_kernel, 1, (0, 0)))
            else:
                layers.append(conv(width if number else config.mel_bands, width, 3))
            layers.append(nn.ELU())
        self.condnet = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, 1)
        self._causal = config.causal

    def derive(self, device: torch.device) -> None:
        """Called when the weights are in place: what was not folded follows the precision."""
        if self._causal:
            self.double()

    def forward(self, mel: Tensor, *, final: bool = True) -> Tensor:
        """Of the causal generation, where more mel is to come (not `final`), [B, T − 3]."""
        if self._causal:
            mel = mel.double()
            if final:
                mel = nn.functional.pad(mel, (0, F0_LOOK_RIGHT_FRAMES))
        hidden = self.condnet(mel).transpose(1, 2)
        pitch: Tensor = self.classifier(hidden).squeeze(-1).abs()
        return pitch
