"""Slaney's mel filters: the triangles that Whisper's and the vocoders' spectra are summed with."""

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_LINEAR_HZ_PER_MEL = 200.0 / 3
_LOG_FROM_HZ = 1000.0
_LOG_FROM_MEL = 15.0
_LOG_STEP = math.log(6.4) / 27
"""Three mels for each 200 Hz up to 1000 Hz, then 27 for each factor of 6.4."""


@lru_cache(maxsize=8)
def slaney_filters(rate_hz: int, window_samples: int, bands: int, highest_hz: float) -> Tensor:
    """Triangles of unit area from 0 Hz to `highest_hz`: f32 [bands, window_samples // 2 + 1].

    Shared by all callers, who must not change it; computed in float64 and rounded once.
    """
    edges_hz = _hertz(np.linspace(0.0, _mel(highest_hz), bands + 2))
    lines_hz = np.linspace(0, rate_hz / 2, window_samples // 2 + 1)
    widths_hz = np.diff(edges_hz)
    rising = (lines_hz - edges_hz[:-2, None]) / widths_hz[:-1, None]
    falling = (edges_hz[2:, None] - lines_hz) / widths_hz[1:, None]
    heights = 2 / (edges_hz[2:] - edges_hz[:-2])
    filters = np.maximum(0, np.minimum(rising, falling)) * heights[:, None]
    return torch.from_numpy(filters.astype(np.float32))


def _mel(hertz: float) -> float:
    if hertz < _LOG_FROM_HZ:
        return hertz * 3 / 200
    return _LOG_FROM_MEL + math.log(hertz / _LOG_FROM_HZ) / _LOG_STEP


def _hertz(mels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    above = _LOG_FROM_HZ * np.exp(_LOG_STEP * (mels - _LOG_FROM_MEL))
    return np.where(mels < _LOG_FROM_MEL, mels * _LINEAR_HZ_PER_MEL, above)
