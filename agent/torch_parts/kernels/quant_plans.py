"""How products with weights of few bits are cut into programs; the kernels are in `quant`."""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK4 = 256
"""Codes of a row that a program reads at once: 32 words, two groups."""
BLOCK8 = 128
_HIGH, _HIGHER = 6144, 16384
"""Heights of weights from which tiles alone keep a large card busy, and keep it very busy."""
_FAST_MEMORY = 200_000
"""Bytes that a program of an H200 may use."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How the programs of a product are cut."""

    tile: int
    """Rows of the weight."""
    columns: int
    """Rows of x."""
    slices: int
    """Warps that share the tile's length; 0: the tile is of the other kind, `warps` large."""
    warps: int
    stages: int


def fits(codes: Tensor) -> bool:
    """Whether the kernels take a weight of this shape."""
    height, width = shape_of(codes)
    return height % 16 == 0 and width % (BLOCK4 if is_words(codes) else BLOCK8) == 0


def shape_of(codes: Tensor) -> tuple[int, int]:
    """(M, K) of the weight."""
    return codes.shape[0], codes.shape[1] * (8 if is_words(codes) else 1)


def is_words(codes: Tensor) -> bool:
    """Whether codes are of 4 bits, eight in a word."""
    return codes.dtype == torch.int32


def most_rows(codes: Tensor) -> int:
    """Above so many rows of x it is faster to write the weights out for the library's product."""
    return 192 if is_words(codes) else 256


def plan(codes: Tensor, rows: int) -> Plan:
    """How to multiply with so many rows: as measured at the LLM's sizes on an H200."""
    height, width = shape_of(codes)
    cut = _plan4(height, rows) if is_words(codes) else _plan8(height, rows)
    blocks = width // (BLOCK4 if is_words(codes) else BLOCK8)
    slices = math.gcd(cut.slices, blocks) if cut.slices else 0
    return Plan(
        tile=math.gcd(cut.tile, height),
        columns=cut.columns,
        slices=slices,
        warps=slices or cut.warps,
        stages=min(cut.stages, _most_stages(codes.device)),
    )


def _plan4(height: int, rows: int) -> Plan:
    slices = 2 if height >= _HIGH else 4
    if rows <= 8:
        return Plan(32, 8, slices, slices, 3)
    if rows <= 16 and height < _HIGHER:
        return Plan(32, 16, slices, slices, 3)
    if rows <= 32:
        return Plan(64, 32, 0, 4, 3) if height >= _HIGH else Plan(32, 32, 4, 4, 3)
    if rows <= 64:
        return Plan(64, 64, 0, 4, 2) if height >= _HIGHER else Plan(64, 32, 0, 4, 3)
    if rows <= 128 and height < _HIGH:
        return Plan(64, 32, 0, 4, 3)
    return Plan(128, 64, 0, 8, 3)


def _plan8(height: int, rows: int) -> Plan:
    if rows <= 16:
        columns = 8 if rows <= 8 else 16
        return Plan(32, columns, 2, 2, 3) if height >= _HIGHER else Plan(16, columns, 4, 4, 4)
    if rows <= 64 and height < (_HIGHER if rows <= 32 else _HIGH):
        return Plan(32, 32, 4, 4, 3)
    if rows <= 64:
        return Plan(64, 32 if rows <= 32 else 64, 0, 4, 3)
    return Plan(64, 128 if height >= _HIGH or rows > 128 else 64, 0, 4, 3)


@functools.cache
def _most_stages(device: torch.device) -> int:
    """Smaller cards have half of the fast memory that the stages of these plans need."""
    if device.type != "cuda":
        return 2
    from agent.torch_parts.kernels.device import fast_memory

    return 4 if fast_memory(device) >= _FAST_MEMORY else 2
