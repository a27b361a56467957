# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
# ruff: noqa: PLR0913, PLR0917
"""Products of rows with weights of 4 or 8 bits, read as they are kept and widened in registers.

A weight [M, K] comes as `codes` and `steps`. 4 bits: words i32 [M, K / 8] and i32 [K / 128, M]. 8
bits: i8, or u8 that hold e4m3, [M, K], and f32 [1, M]. `agent.duplex.quant_formats` makes them and
says what they mean; rows of `steps` may lie apart.

Few rows are bound by how fast weights are read, so a program is a few rows of the weight, and each
of its warps reads another slice of their length (`_few4`, `_few8`). More rows are bound by the
product: larger tiles, no slices (`_many4`, `_many8`). Very many are worth writing the weights out
(`widen`) for the library's product.

Four bits become bfloat16 two at a time: put into the mantissa of 128 they are 128 + code, exactly,
and one more step takes off 128 and the zero point. Nothing is rounded before the product but the
sums, in float32; the scale of a group multiplies its sum.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from agent.torch_parts.kernels.launching import INTERPRETED, launch
from agent.torch_parts.kernels.quant_plans import (
    BLOCK4,
    BLOCK8,
    Plan,
    is_words,
    most_rows,
    plan,
    shape_of,
)

_WIDENED = 1 << 25
"""Numbers that are written out at a time: 67 MB in bfloat16."""


def _widening() -> str:
    """PTX: words $8 and $9, minus 128 and zero point in $10 and $11 → the pairs of eight nibbles.

    Nibble n of both words makes pair n; the first four belong to one group, the others to the next.
    """
    lines = [
        ".reg .b32 low, high, pair, one;",
        "prmt.b32 low, $8, $9, 0x5410;",
        "prmt.b32 high, $8, $9, 0x7632;",
        "mov.b32 one, 0x3f803f80;",
    ]
    for nibble in range(8):
        half = "low" if nibble < 4 else "high"
        lines += [
            f"shr.u32 pair, {half}, {4 * (nibble % 4)};",
            "lop3.b32 pair, pair, 0x000f000f, 0x43004300, 0xea;",
            f"fma.rn.bf16x2 ${nibble}, pair, one, ${10 + nibble // 4};",
        ]
    return "{" + "\n".join(lines) + "}"


_NIBBLES: tl.constexpr = tl.constexpr(_widening())
_NIBBLE_PLACES: tl.constexpr = tl.constexpr("=r,=r,=r,=r,=r,=r,=r,=r,r,r,r,r")
_EIGHTHS: tl.constexpr = tl.constexpr(
    """{
    .reg .b32 bytes, rest, up, zero;
    mov.b32 up, 0x7b807b80;
    mov.b32 zero, 0x80008000;
    prmt.b32 bytes, $2, 0, 0x1404;
    shr.u32 rest, bytes, 4;
    and.b32 rest, rest, 0x07f007f0;
    lop3.b32 bytes, bytes, 0x80008000, rest, 0xea;
    fma.rn.bf16x2 $0, bytes, up, zero;
    prmt.b32 bytes, $2, 0, 0x3424;
    shr.u32 rest, bytes, 4;
    and.b32 rest, rest, 0x07f007f0;
    lop3.b32 bytes, bytes, 0x80008000, rest, 0xea;
    fma.rn.bf16x2 $1, bytes, up, zero;
    }"""
)
"""Four bytes of e4m3 → bfloat16: moved to where its fields are, and times 2 ** 120."""


@triton.jit
def _nibbles(words, first, second, dtype: tl.constexpr, ASM: tl.constexpr):
    """Words [.., 32], minus 128 and zero point [.., 32] of two groups → eight times [.., 32]."""
    if ASM:
        return tl.inline_asm_elementwise(
            _NIBBLES, _NIBBLE_PLACES, [words, first, second],
            dtype=(tl.bfloat16,) * 8, is_pure=True, pack=2,
        )  # fmt: skip
    return (
        (((words & 15) + 128).to(tl.float32) + first).to(dtype),
        (((words >> 4 & 15) + 128).to(tl.float32) + first).to(dtype),
        (((words >> 8 & 15) + 128).to(tl.float32) + first).to(dtype),
        (((words >> 12 & 15) + 128).to(tl.float32) + first).to(dtype),
        (((words >> 16 & 15) + 128).to(tl.float32) + second).to(dtype),
        (((words >> 20 & 15) + 128).to(tl.float32) + second).to(dtype),
        (((words >> 24 & 15) + 128).to(tl.float32) + second).to(dtype),
        (((words >> 28 & 15) + 128).to(tl.float32) + second).to(dtype),
    )


@triton.jit
def _scale_and_zero(step, dtype: tl.constexpr):
    """A group's step → its scale f32, and minus 128 and its zero point, exactly."""
    scale = (step & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return scale, (-128 - (step >> 16)).to(tl.float32).to(dtype)


@triton.jit
def _eighths(numbers, dtype: tl.constexpr, FLOATS: tl.constexpr, ASM: tl.constexpr):
    """Bytes, int8 or e4m3, as what they stand for."""
    if FLOATS:
        if ASM:
            return tl.inline_asm_elementwise(
                _EIGHTHS, "=r,=r,r", [numbers], dtype=tl.bfloat16, is_pure=True, pack=4
            )
        bits = numbers.to(tl.int32)
        wide = ((bits & 0x80) << 24) | ((bits & 0x7F) << 20)
        # 2 ** 120 makes up for the exponents' different biases, and normal what was subnormal.
        return (wide.to(tl.float32, bitcast=True) * 1.329227995784916e36).to(dtype)
    return numbers.to(dtype)


# ---- few rows -----------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["rows"])
def _few4(
    x, packed, steps, out, rows, height, step_stride,
    WIDTH: tl.constexpr, SLICES: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    STAGES: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    slice_ = tl.arange(0, SLICES)[:, None, None]
    word = tl.arange(0, 32)
    blocks: tl.constexpr = WIDTH // 256 // SLICES
    dtype: tl.constexpr = x.dtype.element_ty
    words_at = (
        packed + row[None, :, None] * (WIDTH // 8) + slice_ * (blocks * 32) + word[None, None, :]
    )
    x_at = x + column[None, None, :] * WIDTH + slice_ * (blocks * 256) + word[None, :, None]
    steps_at = steps + row[None, :] + tl.arange(0, SLICES)[:, None] * (blocks * 2) * step_stride
    asked = column[None, None, :] < rows
    total = tl.zeros([SLICES, BM, BN], tl.float32)
    for block in tl.range(0, blocks, num_stages=STAGES):
        words = tl.load(words_at + block * 32)
        scale, zero = _scale_and_zero(tl.load(steps_at + (2 * block) * step_stride), dtype)
        after, last = _scale_and_zero(tl.load(steps_at + (2 * block + 1) * step_stride), dtype)
        zero = tl.broadcast_to(zero[:, :, None], [SLICES, BM, 32])
        last = tl.broadcast_to(last[:, :, None], [SLICES, BM, 32])
        codes = _nibbles(words, zero, last, dtype, ASM)
        inner = tl.zeros([SLICES, BM, BN], tl.float32)
        for nibble in tl.static_range(4):
            part = tl.load(x_at + block * 256 + nibble * 32, mask=asked, other=0.0)
            inner = tl.dot(codes[nibble], part, inner, input_precision="ieee")
        total += scale[:, :, None] * inner
        inner = tl.zeros([SLICES, BM, BN], tl.float32)
        for nibble in tl.static_range(4, 8):
            part = tl.load(x_at + block * 256 + nibble * 32, mask=asked, other=0.0)
            inner = tl.dot(codes[nibble], part, inner, input_precision="ieee")
        total += after[:, :, None] * inner
    out_at = out + column[None, :] * height + row[:, None]
    tl.store(out_at, tl.sum(total, 0).to(dtype), mask=column[None, :] < rows)


@triton.jit(do_not_specialize=["rows"])
def _few8(
    x, packed, steps, out, rows, height,
    WIDTH: tl.constexpr, SLICES: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    STAGES: tl.constexpr, FLOATS: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    slice_ = tl.arange(0, SLICES)[:, None, None]
    code = tl.arange(0, 128)
    blocks: tl.constexpr = WIDTH // 128 // SLICES
    dtype: tl.constexpr = x.dtype.element_ty
    codes_at = packed + row[None, :, None] * WIDTH + slice_ * (blocks * 128) + code[None, None, :]
    x_at = x + column[None, None, :] * WIDTH + slice_ * (blocks * 128) + code[None, :, None]
    asked = column[None, None, :] < rows
    total = tl.zeros([SLICES, BM, BN], tl.float32)
    for block in tl.range(0, blocks, num_stages=STAGES):
        codes = _eighths(tl.load(codes_at + block * 128), dtype, FLOATS, ASM)
        part = tl.load(x_at + block * 128, mask=asked, other=0.0)
        total = tl.dot(codes, part, total, input_precision="ieee")
    scaled = tl.sum(total, 0) * tl.load(steps + row)[:, None]
    out_at = out + column[None, :] * height + row[:, None]
    tl.store(out_at, scaled.to(dtype), mask=column[None, :] < rows)


# ---- more rows ----------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["rows"])
def _many4(
    x, packed, steps, out, rows, height, step_stride,
    WIDTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    word = tl.arange(0, 32)
    dtype: tl.constexpr = x.dtype.element_ty
    words_at = packed + row[:, None] * (WIDTH // 8) + word[None, :]
    x_at = x + column[None, :] * WIDTH + word[:, None]
    asked = column[None, :] < rows
    total = tl.zeros([BM, BN], tl.float32)
    for block in tl.range(0, WIDTH // 256, num_stages=STAGES):
        words = tl.load(words_at + block * 32)
        scale, zero = _scale_and_zero(tl.load(steps + row + (2 * block) * step_stride), dtype)
        after, last = _scale_and_zero(tl.load(steps + row + (2 * block + 1) * step_stride), dtype)
        zero = tl.broadcast_to(zero[:, None], [BM, 32])
        last = tl.broadcast_to(last[:, None], [BM, 32])
        codes = _nibbles(words, zero, last, dtype, ASM)
        inner = tl.zeros([BM, BN], tl.float32)
        for nibble in tl.static_range(4):
            part = tl.load(x_at + block * 256 + nibble * 32, mask=asked, other=0.0)
            inner = tl.dot(codes[nibble], part, inner, input_precision="ieee")
        total += scale[:, None] * inner
        inner = tl.zeros([BM, BN], tl.float32)
        for nibble in tl.static_range(4, 8):
            part = tl.load(x_at + block * 256 + nibble * 32, mask=asked, other=0.0)
            inner = tl.dot(codes[nibble], part, inner, input_precision="ieee")
        total += after[:, None] * inner
    tl.store(out + column[None, :] * height + row[:, None], total.to(dtype), mask=asked)


@triton.jit(do_not_specialize=["rows"])
def _many8(
    x, packed, steps, out, rows, height,
    WIDTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
    FLOATS: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    code = tl.arange(0, 128)
    dtype: tl.constexpr = x.dtype.element_ty
    codes_at = packed + row[:, None] * WIDTH + code[None, :]
    x_at = x + column[None, :] * WIDTH + code[:, None]
    asked = column[None, :] < rows
    total = tl.zeros([BM, BN], tl.float32)
    for block in tl.range(0, WIDTH // 128, num_stages=STAGES):
        codes = _eighths(tl.load(codes_at + block * 128), dtype, FLOATS, ASM)
        part = tl.load(x_at + block * 128, mask=asked, other=0.0)
        total = tl.dot(codes, part, total, input_precision="ieee")
    scaled = total * tl.load(steps + row)[:, None]
    tl.store(out + column[None, :] * height + row[:, None], scaled.to(dtype), mask=asked)


# ---- very many ----------------------------------------------------------------------------------


@triton.jit
def _widen4(packed, steps, out, width, step_stride, BM: tl.constexpr):
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    block = tl.program_id(1)
    word = tl.arange(0, 32)
    words = tl.load(packed + row[:, None] * (width // 8) + block * 32 + word[None, :])
    out_at = out + row[:, None] * width + block * 256 + word[None, :]
    for nibble in tl.static_range(8):
        step = tl.load(steps + row + (2 * block + nibble // 4) * step_stride)
        scale, zero = _scale_and_zero(step, tl.float32)
        code = (words >> (4 * nibble) & 15).to(tl.float32) + 128.0
        value = (code + zero[:, None]) * scale[:, None]
        tl.store(out_at + nibble * 32, value.to(out.dtype.element_ty))


@triton.jit
def _widen8(packed, steps, out, width, BM: tl.constexpr, FLOATS: tl.constexpr):
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    place = row[:, None] * width + tl.program_id(1) * 128 + tl.arange(0, 128)[None, :]
    codes = _eighths(tl.load(packed + place), tl.float32, FLOATS, False)
    value = codes * tl.load(steps + row)[:, None]
    tl.store(out + place, value.to(out.dtype.element_ty))


# ---- starting them ------------------------------------------------------------------------------


def product(x: Tensor, codes: Tensor, steps: Tensor) -> Tensor:
    """x [N, K], contiguous → x times the transposed weight [N, M], in the way that suits N."""
    height, width = shape_of(codes)
    if len(x) <= most_rows(codes):
        return multiply(x, codes, steps, plan(codes, len(x)))
    out = torch.empty(len(x), height, dtype=x.dtype, device=x.device)
    at_once = max(16, _WIDENED // width // 16 * 16)
    for begin in range(0, height, at_once):
        part = slice(begin, begin + at_once)
        weight = widen(codes[part], steps[:, part], x.dtype)
        torch.mm(x, weight.t(), out=out[:, part])
    return out


def multiply(x: Tensor, codes: Tensor, steps: Tensor, cut: Plan) -> Tensor:
    """x [N, K], contiguous → x times the transposed weight [N, M], in the dtype of x."""
    rows, (height, width) = len(x), shape_of(codes)
    out = torch.empty(rows, height, dtype=x.dtype, device=x.device)
    grid = (height // cut.tile, triton.cdiv(rows, cut.columns))
    asm = not INTERPRETED and x.dtype == torch.bfloat16
    given = (x, codes, steps, out, rows, height)
    meta = {"WIDTH": width, "BM": cut.tile, "BN": cut.columns, "STAGES": cut.stages, "ASM": asm}
    if cut.slices:
        meta |= {"SLICES": cut.slices, "num_warps": cut.slices}
    else:
        meta |= {"num_warps": cut.warps}
    if is_words(codes):
        kernel = _few4 if cut.slices else _many4
        launch(kernel, grid, *given, steps.stride(0), **meta)
    else:
        kernel = _few8 if cut.slices else _many8
        launch(kernel, grid, *given, FLOATS=codes.dtype == torch.uint8, **meta)
    return out


def widen(codes: Tensor, steps: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight as numbers [M, K], rounded once."""
    height, width = shape_of(codes)
    out = torch.empty(height, width, dtype=dtype, device=codes.device)
    if is_words(codes):
        grid = (height // 16, width // BLOCK4)
        launch(_widen4, grid, codes, steps, out, width, steps.stride(0), BM=16)
    else:
        grid = (height // 16, width // BLOCK8)
        launch(_widen8, grid, codes, steps, out, width, BM=16, FLOATS=codes.dtype == torch.uint8)
    return out
