# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
# ruff: noqa: PLR0913, PLR0917
"""Projections of few rows, which cost what reading their weights costs.

Two ways: `_multiply` for a handful of rows keeps products in registers and needs no matrix unit;
`_dot` takes weights as the tall side of a matrix product. Norm, gate and residual are part of them
where that saves a launch.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from agent.torch_parts.kernels.device import fast_memory
from agent.torch_parts.kernels.launching import launch

_ONCE = tl.constexpr("evict_first")
"""Weights are read once a pass: in the cache they would only drive out what is needed again, the
next kernel's code above all."""
_FEWEST_ROWS = 16
"""Of a matrix product."""


@triton.jit
def begin_early(EARLY: tl.constexpr):
    """Let the next kernel's programs come as soon as there is room: they wait by themselves."""
    if EARLY:
        gdc_launch_dependents()


@triton.jit
def wait_for_last(EARLY: tl.constexpr):
    """Wait for all that was started before. What it writes must not be read, and nothing written,
    any earlier; and every program must wait, since only so all is over when the last one is."""
    if EARLY:
        gdc_wait()


@triton.jit
def gated(gate, up):
    """SiLU of `gate`, rounded, times `up`."""
    wide = gate.to(tl.float32)
    opened = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype).to(tl.float32)
    return (opened * up.to(tl.float32)).to(gate.dtype)


@triton.jit
def _row(tokens, norm_weight, scale, place, NORMS: tl.constexpr):
    wide = tl.load(tokens + place).to(tl.float32)
    if NORMS:
        by = tl.load(norm_weight + place)
        rounded = (wide * scale).to(by.dtype).to(tl.float32)
        wide = (rounded * by.to(tl.float32)).to(by.dtype).to(tl.float32)
    return wide[None, :]


@triton.jit
def _finish(total, more, out, added, weight, at, inside, GATES: tl.constexpr, ADDS: tl.constexpr):
    """The sums, rounded to the weight's dtype, join what flows, in whichever dtype that is kept."""
    dtype: tl.constexpr = weight.dtype.element_ty
    value = total.to(dtype)
    if GATES:
        value = gated(value, more.to(dtype))
    if ADDS:
        wide = value.to(tl.float32) + tl.load(added + at, mask=inside, other=0.0).to(tl.float32)
        value = wide.to(out.dtype.element_ty)
    tl.store(out + at, value, mask=inside)


@triton.jit
def _multiply(
    tokens, weight, out, added, norm_weight, outputs, epsilon,
    K: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
    NORMS: tl.constexpr, GATES: tl.constexpr, ADDS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One row. Each program goes from tile to tile of the weights, the next always on its way."""
    begin_early(EARLY)
    column = tl.arange(0, BK)
    beside = outputs.to(tl.int64) * K
    place = tl.program_id(0) * BM + tl.arange(0, BM)
    first = weight + tl.minimum(place, outputs - 1).to(tl.int64)[:, None] * K + column[None, :]
    now = tl.load(first, eviction_policy=_ONCE)
    up = now
    if GATES:
        up = tl.load(first + beside, eviction_policy=_ONCE)
    wait_for_last(EARLY)
    scale = 1.0
    if NORMS:
        value = tl.load(tokens + tl.arange(0, K)).to(tl.float32)
        scale = tl.rsqrt(tl.sum(value * value, 0) / K + epsilon)
    for tile in range(tl.program_id(0), tl.cdiv(outputs, BM), tl.num_programs(0)):
        place = tile * BM + tl.arange(0, BM)
        after = place + tl.num_programs(0) * BM
        total = tl.zeros([BM, BK], tl.float32)
        more = total
        for chunk in tl.static_range(K // BK):
            wide, wide_up = now.to(tl.float32), up.to(tl.float32)
            if (chunk + 1) * BK < K:
                now = tl.load(first + (chunk + 1) * BK, eviction_policy=_ONCE)
                if GATES:
                    up = tl.load(first + beside + (chunk + 1) * BK, eviction_policy=_ONCE)
            else:
                held = tl.minimum(after, outputs - 1).to(tl.int64)[:, None] * K
                first = weight + held + column[None, :]
                left = (after < outputs)[:, None]
                now = tl.load(first, mask=left, other=0.0, eviction_policy=_ONCE)
                if GATES:
                    up = tl.load(first + beside, mask=left, other=0.0, eviction_policy=_ONCE)
            token = _row(tokens, norm_weight, scale, chunk * BK + column, NORMS)
            total += wide * token
            if GATES:
                more += wide_up * token
        sums = tl.sum(total, 1)
        more_sums = sums
        if GATES:
            more_sums = tl.sum(more, 1)
        _finish(sums, more_sums, out, added, weight, place, place < outputs, GATES, ADDS)


@triton.jit(do_not_specialize=["count"])
def _dot(
    tokens, weight, out, added, count, outputs,
    K: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
    GATES: tl.constexpr, ADDS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Up to BN rows, the weights being the tall side."""
    place = tl.program_id(0) * BM + tl.arange(0, BM)
    column, row = tl.arange(0, BK), tl.arange(0, BN)
    held = tl.minimum(place, outputs - 1).to(tl.int64)[:, None] * K
    first = weight + held + column[None, :]
    second = first + outputs.to(tl.int64) * K
    given = tokens + row[None, :] * K + column[:, None]
    there = (row < count)[None, :]
    total = tl.zeros([BM, BN], tl.float32)
    more = total
    # All programs read the same few rows: if each begins elsewhere, they do not queue for them.
    chunks: tl.constexpr = K // BK
    begin = tl.program_id(0) % chunks
    for step in tl.range(0, chunks, num_stages=STAGES):
        k = (begin + step) % chunks * BK
        token = tl.load(given + k, mask=there, other=0.0)
        one = tl.load(first + k, eviction_policy=_ONCE)
        total = tl.dot(one, token, total, input_precision="ieee")
        if GATES:
            other = tl.load(second + k, eviction_policy=_ONCE)
            more = tl.dot(other, token, more, input_precision="ieee")
    inside = (place < outputs)[:, None] & (row < count)[None, :]
    at = row[None, :] * outputs + place[:, None]
    _finish(total, more, out, added, weight, at, inside, GATES, ADDS)


# ---- how they are started -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Multiplied:
    """`_multiply`, for one row: tiles of so many outputs and inputs, programs a multiprocessor."""

    outputs: int
    inputs: int
    warps: int
    programs: int = 0
    """0: one for each tile."""


@dataclass(frozen=True, slots=True)
class Dotted:
    """`_dot`: tiles of so many outputs and inputs, how many of them are on their way."""

    outputs: int
    inputs: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class Extras:
    """What a projection does besides: the norm before it, the gate behind it."""

    norm: Tensor | None = None
    """Weight [K] of an RmsNorm; for one row only."""
    epsilon: float = 0.0
    gates: bool = False
    """The weights are gates [M, K] and, below them, what is let through."""


PLAIN = Extras()


def multiply(
    tokens: Tensor,
    weight: Tensor,
    how: Multiplied,
    extras: Extras = PLAIN,
    onto: Tensor | None = None,
) -> Tensor:
    """One row [1, K] through `weight` [M, K], or [2·M, K] where it gates: [1, M] in its dtype.

    `onto` [1, M] is what is added, and what holds the sum. It and a row that is normed may be of a
    wider dtype than the weight.
    """
    outputs, inputs = weight.shape[0] // (1 + extras.gates), weight.shape[1]
    out = _output(tokens, weight, outputs) if onto is None else onto
    tiles = triton.cdiv(outputs, how.outputs)
    programs = tiles
    if how.programs:
        rounds = triton.cdiv(tiles, how.programs * _multiprocessors(tokens.device))
        programs = triton.cdiv(tiles, rounds)
    norm = tokens if extras.norm is None else extras.norm
    early = starts_early(tokens.device)
    launch(
        _multiply, (programs,),
        tokens, weight, out, out, norm, outputs, extras.epsilon, inputs, how.outputs, how.inputs,
        extras.norm is not None, extras.gates, onto is not None, early,
        num_warps=how.warps, launch_pdl=early,
    )  # fmt: skip
    return out


def dot(
    tokens: Tensor, weight: Tensor, how: Dotted, *, gates: bool = False, onto: Tensor | None = None
) -> Tensor:
    """Rows [N, K], of the dtype of `weight` [M, K], or [2·M, K] where it gates, through it: [N, M].

    `onto` [N, M] likewise.
    """
    outputs, inputs = weight.shape[0] // (1 + gates), weight.shape[1]
    out = _output(tokens, weight, outputs) if onto is None else onto
    rows = max(_FEWEST_ROWS, triton.next_power_of_2(len(tokens)))
    # Of smaller cards: less is on its way at once.
    stage = (how.outputs * (1 + gates) + rows) * how.inputs * tokens.element_size()
    stages = max(1, min(how.stages, fast_memory(tokens.device) // stage))
    launch(
        _dot, (triton.cdiv(outputs, how.outputs),),
        tokens, weight, out, out, len(tokens), outputs, inputs, rows, how.outputs, how.inputs,
        gates, onto is not None, stages, num_warps=how.warps,
    )  # fmt: skip
    return out


def _output(tokens: Tensor, weight: Tensor, outputs: int) -> Tensor:
    return torch.empty(len(tokens), outputs, dtype=weight.dtype, device=tokens.device)


@lru_cache(maxsize=16)
def starts_early(device: torch.device) -> bool:
    """Whether kernels may be started before the last one is over: from Hopper on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


@lru_cache(maxsize=16)
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count
