# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
"""Chance inside kernels: the numbers of `agent.duplex.random_source`, from the same keys."""

import triton
import triton.language as tl

from agent.duplex.random_source import FIRST_FACTOR, OFFSET, SECOND_FACTOR

_FIRST = tl.constexpr(FIRST_FACTOR)
_SECOND = tl.constexpr(SECOND_FACTOR)
_OFFSET = tl.constexpr(OFFSET)


@triton.jit
def _mixed(values):
    values = values ^ (values >> 16)
    values = (values * _FIRST).to(tl.uint32)
    values = values ^ (values >> 15)
    values = (values * _SECOND).to(tl.uint32)
    return values ^ (values >> 16)


@triton.jit
def uniform(key, index):
    """One number of (0, 1) for each `index`, f32; `key` holds its 32 bits as i32 or u32."""
    bits = key.to(tl.uint32, bitcast=True)
    once = _mixed((index.to(tl.uint32) + _OFFSET).to(tl.uint32) ^ bits)
    twice = _mixed((once + _OFFSET).to(tl.uint32) ^ bits)
    return ((twice >> 8).to(tl.float32) + 0.5) * (1.0 / 16777216)


@triton.jit
def exponential(key, index):
    """The same, exponentially distributed with mean 1."""
    return -tl.log(uniform(key, index))
