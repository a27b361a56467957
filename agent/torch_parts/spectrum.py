"""Short-time Fourier transforms of a fixed periodic Hann window, as plain matrix products.

Equal to torch.stft and torch.istft (centred, reflecting) but for rounding. Those check the overlap
of the windows on the host, which a CUDA graph cannot capture, and products of matrices stay in
float32 where convolutions on a GPU are rounded to TF32.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Spectrum:
    """The transform of `window_samples` (even) every `hop_samples`, which divide them evenly."""

    window_samples: int
    hop_samples: int

    def __post_init__(self) -> None:
        if self.window_samples % 2 or self.window_samples % self.hop_samples:
            raise ValueError(f"no whole number of hops fits this window: {self}")

    @property
    def bins(self) -> int:
        return self.window_samples // 2 + 1

    def analyse(self, sound: Tensor) -> Tensor:
        """[B, L] → [B, 2·bins, L // hop + 1], the real parts above the imaginary ones.

        L must be more than half a window, or there is nothing to reflect.
        """
        half = self.window_samples // 2
        padded = F.pad(sound.unsqueeze(1), (half, half), mode="reflect").squeeze(1)
        frames = padded.unfold(-1, self.window_samples, self.hop_samples)
        forward, _, _ = transform_tables(self.window_samples, self.hop_samples, sound.device)
        return (frames @ forward).transpose(1, 2)

    def synthesise(self, spectrum: Tensor) -> Tensor:
        """[B, 2·bins, F] as above → the sound [B, hop · (F − 1)]."""
        _, backward, squared = transform_tables(
            self.window_samples, self.hop_samples, spectrum.device
        )
        frames = spectrum.transpose(1, 2) @ backward
        windows = squared.expand(1, frames.shape[1], -1)
        half = self.window_samples // 2
        length = self.hop_samples * (frames.shape[1] - 1)
        overlapped = self._overlap(frames)[:, half : half + length]
        return overlapped / self._overlap(windows)[:, half : half + length]

    def _overlap(self, frames: Tensor) -> Tensor:
        """[B, F, window] → their sum at their places [B, hop · (F − 1) + window]."""
        steps = self.window_samples // self.hop_samples
        parts = frames.reshape(*frames.shape[:2], steps, self.hop_samples)
        # Sums of shifted copies: scattering adds in no fixed order on a GPU.
        total = F.pad(parts[:, :, 0], (0, 0, 0, steps - 1))
        for step in range(1, steps):
            total = total + F.pad(parts[:, :, step], (0, 0, step, steps - 1 - step))
        return total.flatten(1)


@lru_cache(maxsize=16)
def transform_tables(window: int, hop: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Forward [window, 2·bins] and backward [2·bins, window] with the window in both; window²."""
    samples = torch.arange(window, dtype=torch.float64)
    shape = 0.5 - 0.5 * torch.cos(2 * math.pi * samples / window)
    # The product of sample and bin is reduced while it is an integer, so no angle loses digits.
    turns = torch.outer(samples, torch.arange(window // 2 + 1)) % window / window
    real, imaginary = torch.cos(2 * math.pi * turns), -torch.sin(2 * math.pi * turns)
    forward = torch.cat([real, imaginary], dim=1) * shape[:, None]
    twice = torch.full((window // 2 + 1,), 2.0, dtype=torch.float64)
    twice[0] = twice[-1] = 1.0
    inverse = torch.cat([real * twice, imaginary * twice], dim=1).T / window * shape
    return (
        forward.to(device, torch.float32),
        inverse.contiguous().to(device, torch.float32),
        shape.square().to(device, torch.float32),
    )
