"""The causal HiFT: eight frames after a mel frame its sound is final, whatever else follows."""

import torch
from torch import Tensor

from agent.vocoder.hift_body import HiftBody, source_spectrum
from agent.vocoder.hift_config import (
    FRAME_SAMPLES,
    HOP_SAMPLES,
    LOOK_RIGHT_FRAMES,
    HiftConfig,
)
from agent.vocoder.source import SourceNoise

RIGHT_FRAMES = LOOK_RIGHT_FRAMES + 1
"""The decoder's look ahead: the first convolution's, and a frame for the last window's edge."""
HISTORY_FRAMES = 31
"""A sample depends on so many frames before it and no more."""


class CausalHift(HiftBody):
    """As `Hift`, but what is `final` or not changes only the last frames."""

    def __init__(self, config: HiftConfig) -> None:
        if not config.causal:
            raise ValueError("these are the sizes of the classic generation")
        super().__init__(config)

    def f0(self, mel: Tensor, *, final: bool = True) -> Tensor:
        """[1, 80, T] → the pitch in Hz f64 [1, T], or [1, T − 3] while more is to come."""
        pitch: Tensor = self.f0_predictor(mel, final=final)
        return pitch

    def decode(self, mel: Tensor, source: Tensor, *, final: bool = True) -> Tensor:
        """Mel f32 [B, 80, T] and excitation [B, 480 T] → sound [B, 480 T] or [B, 480 (T − 5)]."""
        spectrum = source_spectrum(source)
        if final:
            padded = torch.nn.functional.pad(mel, (0, LOOK_RIGHT_FRAMES))
            return self._shape(self.conv_pre(padded), spectrum)
        ahead = LOOK_RIGHT_FRAMES * FRAME_SAMPLES // HOP_SAMPLES
        sound = self._shape(self.conv_pre(mel), spectrum[..., :-ahead])
        return sound[:, :-FRAME_SAMPLES]

    def whole(self, mel: Tensor, noise: SourceNoise) -> Tensor:
        """An utterance at once: mel [1, 80, T] → sound [480 T]."""
        f0 = self.f0(mel)[0]
        before = torch.zeros(self.config.harmonics, dtype=torch.float64, device=f0.device)
        samples = FRAME_SAMPLES * len(f0)
        source = self.m_source.held(f0, noise.at(0, samples), before).wave
        return self.decode(mel, source[None])[0]
