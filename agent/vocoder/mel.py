"""The three spectra of a reference voice, each for another model.

- `tokenizer_mel`: 16 kHz, 128 bands, 100 frames a second, log10, floored 8 below the loudest value
  of the whole recording; for the speech tokenizer.
- `speaker_bands`: 16 kHz, 80 bands, Kaldi's way; for the speaker embedding.
- `prompt_mel`: 24 kHz, 80 bands, 50 frames a second, natural logarithm; what the flow continues.

All in float32, on the device of the sound.
"""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from agent.torch_parts.mel_filters import slaney_filters

TOKENIZER_RATE_HZ = 16_000
PROMPT_RATE_HZ = 24_000

_TOKENIZER_WINDOW_SAMPLES = 400
_TOKENIZER_HOP_SAMPLES = 160
_DYNAMIC_RANGE = 8.0
_LEAST_TOKENIZER_POWER = 1e-10

_PROMPT_WINDOW_SAMPLES = 1920
_PROMPT_HOP_SAMPLES = 480
_PROMPT_HIGHEST_HZ = 8000.0
_LEAST_PROMPT_MAGNITUDE = 1e-5

_SPEAKER_FRAME_SAMPLES = 400
_SPEAKER_HOP_SAMPLES = 160
_SPEAKER_FFT = 512
_SPEAKER_LOWEST_HZ = 20.0
_PRE_EMPHASIS = 0.97
_LEAST_SPEAKER_POWER = float(np.finfo(np.float32).eps)

LEAST_SAMPLES = 721
"""Of sound at either rate; mirroring the edges takes as much."""


def tokenizer_mel(sound: Tensor, bands: int = 128) -> Tensor:
    """Mono f32 [T] at 16 kHz → [bands, T // 160]. At least `LEAST_SAMPLES`."""
    window = torch.hann_window(_TOKENIZER_WINDOW_SAMPLES, device=sound.device)
    spectrum = torch.stft(
        sound,
        _TOKENIZER_WINDOW_SAMPLES,
        _TOKENIZER_HOP_SAMPLES,
        window=window,
        return_complex=True,
    )
    power = spectrum[:, :-1].abs().square()
    filters = slaney_filters(TOKENIZER_RATE_HZ, _TOKENIZER_WINDOW_SAMPLES, bands, 8000.0)
    log = (filters.to(sound.device) @ power).clamp(min=_LEAST_TOKENIZER_POWER).log10()
    return (log.maximum(log.max() - _DYNAMIC_RANGE) + 4.0) / 4.0


def prompt_mel(sound: Tensor, bands: int = 80) -> Tensor:
    """Mono f32 [T] at 24 kHz → [T // 480, bands]. At least `LEAST_SAMPLES`."""
    around = (_PROMPT_WINDOW_SAMPLES - _PROMPT_HOP_SAMPLES) // 2
    padded = F.pad(sound[None, None], (around, around), mode="reflect")[0, 0]
    spectrum = torch.stft(
        padded,
        _PROMPT_WINDOW_SAMPLES,
        _PROMPT_HOP_SAMPLES,
        window=torch.hann_window(_PROMPT_WINDOW_SAMPLES, device=sound.device),
        center=False,
        return_complex=True,
    )
    magnitude = (torch.view_as_real(spectrum).square().sum(-1) + 1e-9).sqrt()
    filters = slaney_filters(PROMPT_RATE_HZ, _PROMPT_WINDOW_SAMPLES, bands, _PROMPT_HIGHEST_HZ)
    mel: Tensor = (filters.to(sound.device) @ magnitude).clamp(min=_LEAST_PROMPT_MAGNITUDE).log().T
    return mel


def speaker_bands(sound: Tensor, bands: int = 80) -> Tensor:
    """Mono f32 [T], −1..1, at 16 kHz → log energies [1 + (T − 400) // 160, bands].

    Their mean over time is still in them; the speaker model wants them without.
    """
    frames = sound.unfold(0, _SPEAKER_FRAME_SAMPLES, _SPEAKER_HOP_SAMPLES)
    frames = frames - frames.mean(1, keepdim=True)
    before = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
    windowed = (frames - _PRE_EMPHASIS * before) * _povey_window().to(sound.device)
    power = torch.fft.rfft(windowed, _SPEAKER_FFT).abs().square()
    filters = _kaldi_filters(bands).to(sound.device)
    energies: Tensor = power[:, : _SPEAKER_FFT // 2] @ filters
    return energies.clamp(min=_LEAST_SPEAKER_POWER).log()


# ---- filters ------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _kaldi_filters(bands: int) -> Tensor:
    """Triangles on the mel scale, of height 1, f32 [256, bands]; the highest line is left out."""
    lines_hz = np.arange(_SPEAKER_FFT // 2) * (TOKENIZER_RATE_HZ / _SPEAKER_FFT)
    lines_mel = 1127.0 * np.log1p(lines_hz / 700.0)
    lowest, highest = 1127.0 * np.log1p(np.array([_SPEAKER_LOWEST_HZ, TOKENIZER_RATE_HZ / 2]) / 700)
    corners = np.linspace(lowest, highest, bands + 2)
    rising = (lines_mel[:, None] - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - lines_mel[:, None]) / (corners[2:] - corners[1:-1])
    return torch.from_numpy(np.maximum(0, np.minimum(rising, falling)).astype(np.float32))


@lru_cache(maxsize=1)
def _povey_window() -> Tensor:
    symmetric = torch.hann_window(_SPEAKER_FRAME_SAMPLES, periodic=False, dtype=torch.float64)
    return symmetric.pow(0.85).float()
