"""Which pixels a resized row is made of, and with what weights: bicubic, in whole numbers.

Pillow resizes in two passes. Each value is a sum of weights of 22 bits times pixels, rounded to a
pixel's 8 bits, between the passes too. So whoever multiplies by these weights, in the same order,
and rounds like that gets Pillow's pixels, bit for bit.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

WEIGHT_BITS = 22
_REACH = 2.0
"""Pixels on each side that the cubic looks at, when nothing is made smaller."""
_SHARPNESS = -0.5


@dataclass(frozen=True, slots=True)
class Taps:
    """For each pixel of a resized row: the first pixel it is made of, and the weights from there.

    A weight of 0 may stand where there is no pixel any more.
    """

    first: NDArray[np.int32]  # [wanted]
    weights: NDArray[np.int32]  # [wanted, taps]

    def reach(self, begin: int, end: int, length: int) -> tuple[int, int]:
        """The pixels, of `length`, that those from `begin` on and before `end` are made of."""
        last = int(self.first[end - 1]) + self.weights.shape[1]
        return int(self.first[begin]), min(last, length)


def columns_first(size: tuple[int, int], wanted: tuple[int, int]) -> bool:
    """Whether a picture of `size` (width, height) is resized along its columns before its rows.

    Pillow's rule since release 13; before, rows were always first. Only very tall pictures differ,
    and by rounding.
    """
    fewer_columns, fewer_rows = size[0] - wanted[0], size[1] - wanted[1]
    return fewer_rows > max(0, 2 * fewer_columns)


@lru_cache(maxsize=64)
def taps(length: int, wanted: int) -> Taps:
    """How a row of `length` pixels becomes one of `wanted`."""
    scale = length / wanted
    spread = max(scale, 1.0)
    reach = _REACH * spread
    centres = ((np.arange(wanted) + 0.5) * scale)[:, None]
    # Cut off towards zero, as where this was first written.
    first = np.maximum(np.trunc(centres - reach + 0.5), 0)
    end = np.minimum(np.trunc(centres + reach + 0.5), length)
    places = first + np.arange(2 * int(np.ceil(reach)) + 1)
    weights = np.where(places < end, _cubic((places - centres + 0.5) / spread), 0.0)
    weights /= np.cumsum(weights, 1)[:, -1:]  # summed from left to right
    fixed = weights * (1 << WEIGHT_BITS)
    rounded = np.trunc(np.where(fixed < 0, fixed - 0.5, fixed + 0.5))
    return Taps(first[:, 0].astype(np.int32), rounded.astype(np.int32))


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys's cubic, of the sharpness that Pillow has."""
    x, a = np.abs(distance), _SHARPNESS
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
