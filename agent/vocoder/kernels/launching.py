# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
"""How every kernel here is started, and what they have in common.

On a Hopper GPU a kernel is set up while those before it are still at work, and waits in `begun`
until they are over. Before that it must write nothing, and read only what no kernel of the round
writes: weights, the plan, and what was remembered before.
"""

from typing import Any, Literal, TypeAlias

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from agent.torch_parts.kernels import launching

INTERPRETED = launching.INTERPRETED
"""On the CPU: programs run one after the other, so few large ones are best."""


Rounding: TypeAlias = Literal["none", "tf32", "half"]
"""How float32 is multiplied: as it is, or rounded to TF32 or to float16.

The last two keep as many digits (11 bits), but float16 is half as large and multiplied twice as
fast. Its range is less: what is beyond 65504 becomes infinite, and below 6e-5 digits are lost.
"""
ROUNDINGS: dict[Rounding, int] = {"none": 0, "tf32": 1, "half": 2}


def operand_dtype(rounding: Rounding) -> torch.dtype:
    """Of what is kept to be multiplied so."""
    return torch.float16 if rounding == "half" else torch.float32


def _overlaps() -> bool:
    if INTERPRETED or not torch.cuda.is_available():
        return False
    return bool(torch.cuda.get_device_capability() >= (9, 0))


OVERLAPS = _overlaps()


def launch(
    kernel: Any, grid: tuple[int, ...], *arguments: Any, warps: int = 4, **meta: Any
) -> None:
    """Start `kernel` on the current stream."""
    meta |= {"OVERLAPS": OVERLAPS, "num_warps": warps}
    if OVERLAPS:
        meta["launch_pdl"] = True
    launching.launch(kernel, grid, *arguments, **meta)


@triton.jit
def begun(OVERLAPS: tl.constexpr):
    """Let the next kernel be set up, and wait for all that was started before."""
    if OVERLAPS:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def fetch_ahead(pointers):
    """Have what lies there brought to the L2 cache, while a kernel that needs it still waits for
    the one before it; not in Triton's interpreter."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [pointers.to(tl.int64)],
        dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def is_number(value):
    return tl.abs(value) >= 0


@triton.jit
def to_tf32(value):
    """Rounded as the matrix unit's operands are, which would cut the digits off; NaN stays."""
    bits = value.to(tl.int32, bitcast=True)
    rounded = ((bits + 0x1000) & -8192).to(tl.float32, bitcast=True)
    return tl.where(is_number(value), rounded, value)


@triton.jit
def to_half(value):
    """Float16; what is too large for it becomes infinite, and NaN stays: the sound made of it is no
    number, so that it is noticed and made again without float16."""
    largest = tl.where(value < 0, float("-inf"), float("inf"))
    return tl.where(tl.abs(value) > 65504.0, largest, value).to(tl.float16)


@triton.jit
def operand(value, ROUNDS: tl.constexpr):
    """As products take it, by the number of a `Rounding`."""
    if ROUNDS == 1:
        value = to_tf32(value)
    if ROUNDS == 2:
        value = to_half(value)
    return value


@triton.jit
def mish(value):
    """x·tanh(ln(1 + e^x)), written without the logarithm."""
    grown = tl.exp(tl.minimum(value, 20.0))
    up = grown * (grown + 2.0)
    return tl.where(value > 20.0, value, value * up / (up + 2.0))


@triton.jit
def gelu(value):
    """The tanh form; x/2·(1 + tanh y) is x·sigmoid(2y)."""
    # What is less is 0 either way, and nothing overflows.
    inner = 1.5957691216057308 * (value + 0.044715 * value * value * value)
    return value / (1.0 + tl.exp(-tl.maximum(inner, -80.0)))


@triton.jit
def silu(value):
    """x·sigmoid(x)."""
    return value / (1.0 + tl.exp(-tl.maximum(value, -80.0)))


@triton.jit
def snake(value, rate):
    """x + sin²(αx)/α. The square repeats with every half turn, and within one a polynomial does."""
    angle = value * rate
    turns = tl.floor(angle * 0.3183098861837907 + 0.5)
    # π in two parts, the first of which is exact in a product with a small whole number.
    angle = angle - turns * 3.140625
    angle = angle - turns * 9.67653589793e-4
    square = angle * angle
    sine = -2.5052108385e-8 * square + 2.7557319224e-6
    sine = sine * square - 1.9841269841e-4
    sine = sine * square + 8.3333333333e-3
    sine = sine * square - 1.6666666667e-1
    sine = angle + angle * square * sine
    return value + sine * sine / (rate + 1e-9)
