"""The excitation that HiFT shapes into speech: harmonics of the pitch, and noise.

The phase is carried in cycles and in float64, so it is exact after hours and continues from call to
call. What is random is a pure function of the seed, the voice and the absolute position, so a
stream cut in other pieces sounds the same.
"""

import zlib
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.types import SPEECH_RATE_HZ
from agent.vocoder.hift_config import FRAME_SAMPLES

VOICED_FROM_HZ = 10.0
SINE_LEVEL = 0.1
VOICED_NOISE_LEVEL = 0.003
UNVOICED_NOISE_LEVEL = SINE_LEVEL / 3
NOISE_SAMPLES = 20 * SPEECH_RATE_HZ
"""After so much sound the noise repeats, which no ear can tell."""


@dataclass(frozen=True, slots=True)
class SourceNoise:
    """Noise of all positions: `table` [N, harmonics], repeated for ever, from row `start` on."""

    table: Tensor
    start: int = 0

    def of_voice(self, voice: str) -> "SourceNoise":
        """The same table, from a place of this voice's own."""
        return replace(self, start=zlib.crc32(voice.encode()) % len(self.table))

    def at(self, position: int, samples: int) -> Tensor:
        """[samples, harmonics] from the absolute `position` of the stream on."""
        rows = torch.arange(samples, device=self.table.device)
        return self.table[(rows + (self.start + position)) % len(self.table)]


def gaussian_noise(seed: int, device: torch.device, harmonics: int = 9) -> SourceNoise:
    """What the classic generation draws; made on the CPU so that every device has the same."""
    generator = torch.Generator().manual_seed(seed)
    return SourceNoise(torch.randn(NOISE_SAMPLES, harmonics, generator=generator).to(device))


def uniform_noise(seed: int, device: torch.device, harmonics: int = 9) -> SourceNoise:
    """What the causal generation draws: from 0 to 1, not around 0."""
    generator = torch.Generator().manual_seed(seed)
    return SourceNoise(torch.rand(NOISE_SAMPLES, harmonics, generator=generator).to(device))


@dataclass(frozen=True, slots=True)
class Excitation:
    """`wave` f32 [480 T]; `cycles` f64 [T, harmonics], the phase of each frame, not reduced."""

    wave: Tensor
    cycles: Tensor


class HarmonicSource(nn.Module):
    """Pitch [T] in Hz and noise [480 T, harmonics] → the excitation of T frames."""

    def __init__(self, harmonics: int) -> None:
        super().__init__()
        self.l_linear = nn.Linear(harmonics, 1)
        self._harmonics = harmonics

    def gliding(self, f0: Tensor, noise: Tensor, before: Tensor | None = None) -> Excitation:
        """The phase glides between the frames' centres, as the classic generation has it.

        `before` [harmonics] is the phase, in cycles, of the frame in front of these; without one
        the first half frame stands still, as the last always does.
        """
        cycles = self._steps(f0).double().cumsum(0) * FRAME_SAMPLES
        if before is not None:
            cycles = cycles + before
        points = cycles if before is None else torch.cat([before[None], cycles])
        samples = torch.arange(len(f0) * FRAME_SAMPLES, device=f0.device, dtype=torch.float64)
        place = (samples + 0.5) / FRAME_SAMPLES - (0.5 if before is None else -0.5)
        place = place.clamp(0, len(points) - 1)
        lower = place.long()
        upper = (lower + 1).clamp(max=len(points) - 1)
        turns = points[lower].lerp(points[upper], (place - lower)[:, None])
        return Excitation(self._wave(f0, _sine(turns), noise), cycles)

    def gliding_as_reference(self, f0: Tensor, noise: Tensor) -> Tensor:
        """The same excitation [480 T] with the reference's rounding, for comparing with it.

        Its float32 phase is some thousands of radians after a second, so the sines are wrong in
        their fourth digit.
        """
        radians = self._steps(f0).cumsum(0) * (2 * torch.pi) * FRAME_SAMPLES
        glided = F.interpolate(radians.T[None], scale_factor=FRAME_SAMPLES, mode="linear")
        return self._wave(f0, torch.sin(glided[0].T), noise)

    def held(self, f0: Tensor, noise: Tensor, before: Tensor) -> Excitation:
        """The phase of a frame stands still within it, as the causal generation has it."""
        cycles = self._steps(f0).double().cumsum(0) * FRAME_SAMPLES + before
        sine = _sine(cycles).repeat_interleave(FRAME_SAMPLES, dim=0)
        return Excitation(self._wave(f0, sine, noise), cycles)

    def held_as_reference(self, f0: Tensor, noise: Tensor) -> Tensor:
        """The same [480 T] with the rounding of the reference where it says all in one go."""
        radians = self._steps(f0).cumsum(0) * (2 * torch.pi) * FRAME_SAMPLES
        return self._wave(f0, torch.sin(radians).repeat_interleave(FRAME_SAMPLES, dim=0), noise)

    def _steps(self, f0: Tensor) -> Tensor:
        """Cycles of a sample f32 [T, harmonics]."""
        numbers = torch.arange(1, self._harmonics + 1, device=f0.device, dtype=torch.float32)
        # In float32 as the model was trained; only the sum over time needs more digits.
        return (f0.float()[:, None] * numbers / SPEECH_RATE_HZ) % 1

    def _wave(self, f0: Tensor, sine: Tensor, noise: Tensor) -> Tensor:
        voiced = (f0 > VOICED_FROM_HZ).float().repeat_interleave(FRAME_SAMPLES)[:, None]
        level = voiced * VOICED_NOISE_LEVEL + (1 - voiced) * UNVOICED_NOISE_LEVEL
        mixed: Tensor = self.l_linear(SINE_LEVEL * sine * voiced + level * noise)
        return torch.tanh(mixed).squeeze(-1)


def _sine(cycles: Tensor) -> Tensor:
    return torch.sin((cycles % 1 * (2 * torch.pi)).float())
