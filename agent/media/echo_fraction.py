"""Reading a signal between its samples: what a slightly different clock would have seen."""

from collections.abc import Callable
from math import floor

import numpy as np
import numpy.typing as npt

from agent.types import MIC_FRAME_SAMPLES, FloatArray

_TAPS = 32
_PHASES = 2048
"""Positions to a 2048th of a sample keep the error of the highest frequencies below −60 dB."""
_MARGIN_PHASES = _PHASES // 4
_KAISER_BETA = 6.0

LOOK_AHEAD_SAMPLES = _TAPS // 2 + 1
"""So far behind a position the interpolation looks."""


def read_between(
    read: Callable[[int, int], FloatArray], start: int, fraction: float, step: float, count: int
) -> FloatArray:
    """`count` samples at start + fraction + k * step, by windowed sinc: flat up to 7 kHz.

    `read(start, count)` gives whole samples; `count` is a multiple of 160 and `step` within a
    thousandth of 1. On a whole position the result is the sample itself. Each 160 samples blend
    the filter of their first position into that of the next 160, so that a signal read in pieces
    is the same as read in one go.
    """
    blocks = [
        _read_block(read, start, fraction + first * step, step)
        for first in range(0, count, MIC_FRAME_SAMPLES)
    ]
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def _read_block(
    read: Callable[[int, int], FloatArray], start: int, position: float, step: float
) -> FloatArray:
    whole = floor(position)
    first_phase = round((position - whole) * _PHASES)
    last_phase = first_phase + round(MIC_FRAME_SAMPLES * (step - 1.0) * _PHASES)
    signal = read(start + whole - _TAPS // 2 + 1, MIC_FRAME_SAMPLES + _TAPS - 1)
    first = np.correlate(signal, _WEIGHTS[first_phase + _MARGIN_PHASES])
    last = np.correlate(signal, _WEIGHTS[last_phase + _MARGIN_PHASES])
    blended: FloatArray = first + _RISING * (last - first)
    return blended


def _sinc_bank() -> npt.NDArray[np.float32]:
    """Weights [phases, taps] for positions from −0.25 to 1.25 of a sample."""
    offset = np.arange(_TAPS)[None, :] - (_TAPS // 2 - 1)
    phase = np.arange(-_MARGIN_PHASES, _PHASES + _MARGIN_PHASES + 1)[:, None] / _PHASES
    distance = offset - phase
    inside = np.clip(1.0 - (2.0 * distance / _TAPS) ** 2, 0.0, None)
    weights = np.sinc(distance) * np.i0(_KAISER_BETA * np.sqrt(inside))
    bank: npt.NDArray[np.float32] = (weights / weights.sum(axis=1, keepdims=True)).astype(
        np.float32
    )
    return bank


_WEIGHTS = _sinc_bank()
_RISING = (np.arange(MIC_FRAME_SAMPLES) / MIC_FRAME_SAMPLES).astype(np.float32)
