"""Thumbnails and cells cut out of pictures on the device; nothing of it waits for the device."""

from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor

from agent.duplex.bicubic import Taps, columns_first, taps
from agent.duplex.cuda.picture_kernels import DeviceTaps, along_columns, along_rows, patch
from agent.duplex.pictures import Region, normalised

_KEPT_TAPS = 64
"""Sides that are resized alike; every camera has two of them, and so has each grid of cells."""


class PictureCutter:
    """Pictures u8 [H, W, 3] to patches, in the dtype of the tower. For one stream alone."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        self._taps: OrderedDict[tuple[int, int], DeviceTaps] = OrderedDict()
        self._levels = normalised(torch.arange(256)).to(device, dtype)

    def cut(self, pixels: Tensor, region: Region, out: Tensor) -> None:
        """The patches of one piece of a picture on the device into `out` [patches, 588]."""
        height, width = pixels.shape[:2]
        rows = range(region.y, region.y + region.high)
        columns = range(region.x, region.x + region.wide)
        sideways = taps(width, region.width), self._on_device(width, region.width)
        upright = taps(height, region.height), self._on_device(height, region.height)
        if columns_first((width, height), (region.width, region.height)):
            # All columns that the piece is made of, then its own out of them.
            seen = range(width)
            narrow = along_columns(pixels, upright[1], rows, seen)
            piece = along_rows(narrow, sideways[1], range(len(rows)), columns)
        else:
            needed = range(*_reach(upright[0], rows, height))
            flat = along_rows(pixels, sideways[1], needed, columns)
            piece = along_columns(flat, upright[1], rows, range(len(columns)), needed.start)
        patch(piece, self._levels, out)

    def _on_device(self, length: int, wanted: int) -> DeviceTaps:
        """The taps of such a side, of which the latest are kept."""
        key = (length, wanted)
        if key not in self._taps:
            made = taps(length, wanted)
            self._taps[key] = DeviceTaps(*(to_device(one, self._device) for one in _tables(made)))
            if len(self._taps) > _KEPT_TAPS:
                self._taps.popitem(last=False)
        self._taps.move_to_end(key)
        return self._taps[key]


def _tables(made: Taps) -> tuple[np.ndarray, np.ndarray]:
    return made.first, made.weights


def _reach(made: Taps, rows: range, length: int) -> tuple[int, int]:
    return made.reach(rows.start, rows.stop, length)


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """A copy on the device, started on the current stream."""
    return pinned(values, device).to(device, non_blocking=True)


def pinned(values: np.ndarray, device: torch.device) -> Tensor:
    """A copy in memory that `device` reads by itself.

    What is given up while a copy from it is under way is kept from others until that is over.
    """
    dtype = _DTYPES[values.dtype.name]
    held = torch.empty(values.shape, dtype=dtype, pin_memory=device.type == "cuda")
    np.copyto(held.numpy(), values)
    return held


_DTYPES = {"uint8": torch.uint8, "int32": torch.int32, "float32": torch.float32}
