"""How a product is cut into programs: as was fastest on an H200.

Few rows go in small tiles, so that all of the device reads the weights, and many in large ones.
What the flow multiplies was measured within the whole solver, with 1, 2, 4, 8, 16 and 32 streams of
a hundred rows each; what HiFT does within the whole of HiFT, with 1, 8 and 32.
"""

from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
import triton

from agent.vocoder.kernels.launching import INTERPRETED, Rounding

Shape: TypeAlias = tuple[int, int, int]
"""Rows, and a weight's outputs and inputs, which count for each tap."""


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program computes, and how."""

    rows: int
    columns: int
    depth: int
    stages: int = 3
    warps: int = 4
    registers: int | None = None
    """A thread's at most, so that more programs are under way at once."""


_NARROW, _MEDIUM = 512, 1536
"""Outputs of what gives a frame its width again, and of queries, keys and values."""
_MANY = 1 << 62
_FLOW = (
    # Rows up to; few outputs of few inputs, and of many; a medium number of outputs; more.
    (128, Tile(16, 32, 128, 8), Tile(64, 16, 128, 6), Tile(64, 16, 128, 6), Tile(64, 32, 128, 5)),
    (256, Tile(32, 32, 128, 4), Tile(64, 32, 128, 5), Tile(64, 32, 128, 5), Tile(32, 64, 128, 4)),
    (512, Tile(64, 64, 64, 4), Tile(64, 32, 128, 5), Tile(64, 32, 128, 5), Tile(64, 64, 64, 4)),
    (1024, *(Tile(64, 64, 64, 4),) * 4),
    (2048, *(Tile(64, 64, 64, 4),) * 2, *(Tile(64, 128, 64, 4),) * 2),
    (_MANY, *(Tile(64, 128, 64, 4),) * 2, *(Tile(128, 128, 64, 3, 8),) * 2),
)
_MANY_SOUND_ROWS, _WIDE = 20_000, 128
"""Of HiFT, which has up to 360 rows for each of the flow's, and few channels."""


def tile_of(shape: Shape, dtype: torch.dtype, rounding: Rounding, memory: int) -> Tile:
    """Of operands of `dtype`, on a device that gives a program `memory` bytes of its fast one."""
    rows, outputs, _ = shape
    if INTERPRETED:
        columns = max(16, triton.next_power_of_2(min(64, outputs)))
        return Tile(min(8192, triton.next_power_of_2(rows)), columns, 16)
    if rounding == "half":
        tile = _half_sound_tile(rows, outputs)
    elif dtype == torch.float32:
        tile = _sound_tile(rows, outputs)
    else:
        tile = _flow_tile(shape)
    stage = (tile.rows + tile.columns) * tile.depth * dtype.itemsize
    return replace(tile, stages=max(1, min(tile.stages, memory // stage)))


def _flow_tile(shape: Shape) -> Tile:
    rows, outputs, inputs = shape
    short, long, medium, wide = next(line[1:] for line in _FLOW if rows <= line[0])
    if outputs <= _NARROW:
        return short if inputs <= _NARROW else long
    return medium if outputs <= _MEDIUM else wide


def _sound_tile(rows: int, outputs: int) -> Tile:
    if rows < _MANY_SOUND_ROWS:
        return Tile(64, 64, 32)
    return Tile(128, 128 if outputs >= _WIDE else 64, 32, warps=8)


def _half_sound_tile(rows: int, outputs: int) -> Tile:
    columns = max(32, triton.next_power_of_2(min(_WIDE, outputs)))
    if rows < _MANY_SOUND_ROWS:
        return Tile(64, min(64, columns), 64, 4)
    return Tile(64, columns, 64, 4) if outputs >= _WIDE else Tile(128, columns, 64, 4, 8, 128)
