"""Reading a signal between its samples: what a slightly different clock would have seen."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from agent.types import FloatArray

_TAPS = 32
_PHASES = 512
LOOK_AHEAD_SAMPLES = _TAPS // 2
"""So far behind a position the interpolation looks."""

_KAISER_BETA = 6.0


def read_between(
    read: Callable[[int, int], FloatArray], start: int, fraction: float, step: float, count: int
) -> FloatArray:
    """`count` samples at start + fraction + k * step, by windowed sinc: flat up to 7 kHz.

    `read(start, count)` gives whole samples. On a whole position the result is the sample itself.
    What comes out depends on the positions alone, not on how they were cut into calls.
    """
    cells = np.rint((fraction + np.arange(count) * step) * _PHASES).astype(np.int64)
    whole = cells // _PHASES
    before = LOOK_AHEAD_SAMPLES - 1
    signal = read(start - before, int(whole[-1]) + _TAPS)
    windows = np.lib.stride_tricks.sliding_window_view(signal, _TAPS)[whole]
    between: FloatArray = np.einsum("ij,ij->i", windows, _WEIGHTS[cells % _PHASES])
    return between


def _sinc_bank() -> npt.NDArray[np.float32]:
    """Weights [phases, taps]; phases of a 512th of a sample keep the error below −60 dB."""
    offset = np.arange(_TAPS)[None, :] - (LOOK_AHEAD_SAMPLES - 1)
    distance = offset - np.arange(_PHASES)[:, None] / _PHASES
    inside = np.clip(1.0 - (distance / LOOK_AHEAD_SAMPLES) ** 2, 0.0, None)
    window = np.i0(_KAISER_BETA * np.sqrt(inside)) / np.i0(_KAISER_BETA)
    weights = np.sinc(distance) * window
    bank: npt.NDArray[np.float32] = (weights / weights.sum(axis=1, keepdims=True)).astype(
        np.float32
    )
    return bank


_WEIGHTS = _sinc_bank()
