"""The classic HiFT: the pitch, the excitation and the decoder, each of a stretch of mel at once."""

from torch import Tensor

from agent.vocoder.hift_body import HiftBody, source_spectrum
from agent.vocoder.hift_config import HiftConfig
from agent.vocoder.source import SourceNoise

REACH_FRAMES = 14
"""A sample depends on the mel and the excitation of so many frames on either side of it."""


class Hift(HiftBody):
    """Mel of 50 Hz to sound of 24 kHz, seeing both the past and the future.

    with unfilled():
        hift = Hift(config)
    load_parts(source, {"": hift}, unused={}, target=Target(device, torch.float32))
    """

    def __init__(self, config: HiftConfig) -> None:
        if config.causal:
            raise ValueError("these are the sizes of the causal generation")
        super().__init__(config)

    def f0(self, mel: Tensor) -> Tensor:
        """[1, 80, T] → the pitch in Hz [1, T]."""
        pitch: Tensor = self.f0_predictor(mel)
        return pitch

    def decode(self, mel: Tensor, source: Tensor) -> Tensor:
        """Mel f32 [B, 80, T] and excitation [B, 480 T] → sound [B, 480 T], within ±0.99."""
        return self._shape(self.conv_pre(mel), source_spectrum(source))

    def whole(self, mel: Tensor, noise: SourceNoise) -> Tensor:
        """An utterance at once: mel [1, 80, T] → sound [480 T]."""
        f0 = self.f0(mel)[0]
        source = self.m_source.gliding(f0, noise.at(0, 480 * len(f0))).wave
        return self.decode(mel, source[None])[0]
