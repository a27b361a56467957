# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
# ruff: noqa: PLR0913, PLR0917
"""Pictures resized and cut into patches on the device, to Pillow's pixels bit for bit.

One pass along the rows and one along the columns, each rounded to bytes; see `agent.duplex.bicubic`
for the weights and for which pass comes first. Sizes are arguments like any other: nothing is
compiled anew for a picture of another shape, not even for a row of one pixel.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from agent.duplex.bicubic import WEIGHT_BITS
from agent.duplex.pictures import PATCH_PX, PATCH_VALUES
from agent.torch_parts.kernels.launching import launch

_WARPS = 4
_AT_ONCE = 1024


@triton.jit
def _weighed(source, stride, weights, first, end, taps, inside, BITS: tl.constexpr):
    """Bytes at `source` + (first, first + 1, …) · stride, weighed, summed and rounded to a byte."""
    total = tl.full(first.shape, 1 << (BITS - 1), tl.int32)
    for tap in range(taps):
        # What lies behind the end weighs nothing; it is only not to be read.
        at = tl.minimum(first + tap, end - 1)
        pixel = tl.load(source + at * stride, mask=inside, other=0).to(tl.int32)
        total += pixel * tl.load(weights + tap, mask=inside, other=0)
    return tl.minimum(tl.maximum(total >> BITS, 0), 255)


@triton.jit(do_not_specialize=["width", "first_row", "x", "rows", "wide", "taps"])
def _along_rows(
    pixels, out, firsts, weights, width, first_row, x, rows, wide, taps,
    BITS: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0) * AT_ONCE + tl.arange(0, AT_ONCE)
    row, column, channel = place // (wide * 3), x + place % (wide * 3) // 3, place % 3
    inside = row < rows
    first = tl.load(firsts + column, mask=inside, other=0)
    source = pixels + (first_row + row) * width * 3 + channel
    mine = weights + column * taps
    byte = _weighed(source, 3, mine, first, width, taps, inside, BITS)
    tl.store(out + place, byte.to(tl.uint8), mask=inside)


@triton.jit(do_not_specialize=["width", "height", "first_row", "y", "x", "rows", "wide", "taps"])
def _along_columns(
    pixels, out, firsts, weights, width, height, first_row, y, x, rows, wide, taps,
    BITS: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0) * AT_ONCE + tl.arange(0, AT_ONCE)
    row = place // (wide * 3)
    inside = row < rows
    first = tl.load(firsts + y + row, mask=inside, other=0) - first_row
    source = pixels + x * 3 + place % (wide * 3)
    mine = weights + (y + row) * taps
    byte = _weighed(source, width * 3, mine, first, height, taps, inside, BITS)
    tl.store(out + place, byte.to(tl.uint8), mask=inside)


# A piece begins at any patch of the rows that are filled.
@triton.jit(do_not_specialize=["rows", "wide"], do_not_specialize_on_alignment=["out"])
def _patch(
    pixels, levels, out, rows, wide,
    SIDE: tl.constexpr, VALUES: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0) * AT_ONCE + tl.arange(0, AT_ONCE)
    row, column, channel = place // (wide * 3), place % (wide * 3) // 3, place % 3
    inside = row < rows
    byte = tl.load(pixels + place, mask=inside, other=0).to(tl.int32)
    patch = (row // SIDE) * (wide // SIDE) + column // SIDE
    at = (channel * SIDE + row % SIDE) * SIDE + column % SIDE
    tl.store(out + patch * VALUES + at, tl.load(levels + byte, mask=inside), mask=inside)


@dataclass(frozen=True, slots=True)
class DeviceTaps:
    """`agent.duplex.bicubic.Taps` where the kernels read them."""

    first: Tensor  # i32 [wanted]
    weights: Tensor  # i32 [wanted, taps]


def along_rows(pixels: Tensor, taps: DeviceTaps, rows: range, columns: range) -> Tensor:
    """These rows of a picture u8 [H, W, 3], and of each these pixels of the resized row: u8."""
    out = torch.empty(len(rows), len(columns), 3, dtype=torch.uint8, device=pixels.device)
    launch(
        _along_rows, (triton.cdiv(out.numel(), _AT_ONCE),),
        pixels, out, taps.first, taps.weights, pixels.shape[1], rows.start, columns.start,
        len(rows), len(columns), taps.weights.shape[1],
        BITS=WEIGHT_BITS, AT_ONCE=_AT_ONCE, num_warps=_WARPS,
    )  # fmt: skip
    return out


def along_columns(
    pixels: Tensor, taps: DeviceTaps, rows: range, columns: range, first_row: int = 0
) -> Tensor:
    """These rows of the resized columns of u8 [H, W, 3], and of each these columns.

    `first_row`: which row of the picture `pixels` begins with.
    """
    out = torch.empty(len(rows), len(columns), 3, dtype=torch.uint8, device=pixels.device)
    launch(
        _along_columns, (triton.cdiv(out.numel(), _AT_ONCE),),
        pixels, out, taps.first, taps.weights, pixels.shape[1], pixels.shape[0], first_row,
        rows.start, columns.start, len(rows), len(columns), taps.weights.shape[1],
        BITS=WEIGHT_BITS, AT_ONCE=_AT_ONCE, num_warps=_WARPS,
    )  # fmt: skip
    return out


def patch(pixels: Tensor, levels: Tensor, out: Tensor) -> None:
    """A piece u8 [H, W, 3] as patches into `out` [patches, 588]; `levels` [256] is each byte."""
    rows, columns = pixels.shape[:2]
    launch(
        _patch, (triton.cdiv(pixels.numel(), _AT_ONCE),),
        pixels, levels, out, rows, columns,
        SIDE=PATCH_PX, VALUES=PATCH_VALUES, AT_ONCE=_AT_ONCE, num_warps=_WARPS,
    )  # fmt: skip
