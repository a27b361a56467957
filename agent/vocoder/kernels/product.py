# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
# ruff: noqa: PLR0913, PLR0917
"""Products of rows with a weight, and convolutions along them, with what follows in one kernel.

Every linear layer and convolution of the static form is this: for output row t of a sequence the
rows t·stride + shift + tap·dilation of the input, times the weight. What is no row is zero; where
a `Span` is given, the plan says per sequence where its rows begin and how many there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from agent.torch_parts.kernels.device import fast_memory
from agent.vocoder.kernels.launching import (
    INTERPRETED,
    OVERLAPS,
    ROUNDINGS,
    Rounding,
    begun,
    fetch_ahead,
    gelu,
    launch,
    operand,
    operand_dtype,
    silu,
    snake,
)
from agent.vocoder.kernels.tiles import Tile, tile_of

Act: TypeAlias = Literal["none", "gelu", "silu", "leaky", "snake"]
_ACTS: dict[Act, int] = {"none": 0, "gelu": 1, "silu": 2, "leaky": 3, "snake": 4}
_LEAST_K = 16 if INTERPRETED else 32
_GEOMETRY = (
    "rows group_in group_out slope T_OUT T_IN SHARE TAPS TAP_STEP CENTRED STRIDE SHIFT DILATION "
    "REPEAT COLUMNS FIRST COUNT RATE EXTRA OUT_T OUT_LEAD OUT_BEHIND"
).split()
"""Numbers that no kernel is compiled anew for."""


@triton.jit
def _activated(value, alpha, col, slope, N, ACT: tl.constexpr):
    if ACT == 1:
        value = gelu(value)
    if ACT == 2:
        value = silu(value)
    if ACT == 3:
        value = tl.where(value < 0, value * slope, value)
    if ACT == 4:
        value = snake(value, tl.load(alpha + col, mask=col < N, other=1.0)[None, :])
    return value


@triton.jit
def _summed(
    source, weight, begin, place, end, taps, DILATION, REPEAT,
    K: tl.constexpr, KP: tl.constexpr, CHECKED: tl.constexpr, REPEATED: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """The tile's sum over all taps and inputs."""
    blocks: tl.constexpr = KP // BK
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for step in tl.range(0, taps * blocks, num_stages=STAGES):
        k = (step % blocks) * BK + tl.arange(0, BK)
        at = place + (step // blocks) * DILATION
        real = begin + at
        if REPEATED:
            real = begin + at // REPEAT
        pointers = source + real[:, None] * K + k[None, :]
        if CHECKED:
            known = (at >= 0) & (at < end)
            values = tl.load(pointers, mask=known[:, None] & (k < K)[None, :], other=0.0)
        elif KP > K:
            values = tl.load(pointers, mask=(k < K)[None, :], other=0.0)
        else:
            values = tl.load(pointers)
        factors = tl.load(weight + step * BK)
        total = tl.dot(values, tl.trans(factors), total, input_precision=PRECISION)
    return total


@triton.jit
def _fetch_weights(weight, length, BN: tl.constexpr):
    """Have the tile's weights on their way, those who share it each a part: `length` of a row."""
    line: tl.constexpr = 128 // (weight.dtype.element_ty.primitive_bitwidth // 8)
    block: tl.constexpr = 8 * line
    for start in range(tl.program_id(0) * block, length, tl.num_programs(0) * block):
        at = start + line * tl.arange(0, 8)[None, :]
        fetch_ahead(weight + tl.minimum(at, length - 1))


@triton.jit
def _put(
    total, offset, col, writes, gate, added, out, acted, alpha, slope, N,
    GATED: tl.constexpr, ADDS: tl.constexpr, RAW: tl.constexpr, ACTS: tl.constexpr,
    ACT: tl.constexpr, ROUNDS: tl.constexpr,
):  # fmt: skip
    """What becomes of the sum."""
    if GATED:
        total *= tl.load(gate + col, mask=col < N, other=0.0)[None, :]
    if ADDS:
        total += tl.load(added + offset, mask=writes, other=0.0)
    if RAW:
        tl.store(out + offset, total, mask=writes)
    if ACTS:
        value = operand(_activated(total, alpha, col, slope, N, ACT), ROUNDS)
        tl.store(acted + offset, value, mask=writes)


@triton.jit
def _numbers_there(
    sequence, begin, end, plan, COLUMNS, FIRST, COUNT, RATE, EXTRA, REPEAT, CHECKED: tl.constexpr
):  # fmt: skip
    """Where each row's sequence begins, and where it ends, counted from there."""
    if CHECKED:
        if COUNT >= 0:
            count = tl.load(plan + sequence * COLUMNS + COUNT).to(tl.int32)
            end = tl.maximum(count * RATE + EXTRA, 0) * REPEAT
        if FIRST >= 0:
            begin += tl.load(plan + sequence * COLUMNS + FIRST).to(tl.int32)
    return begin, end


@triton.jit(do_not_specialize=_GEOMETRY)
def _product(
    a, w, bias, gate, added, out, acted, alpha, plan,
    rows, group_in, group_out, slope, N, T_OUT, T_IN, SHARE, TAPS, TAP_STEP, CENTRED,
    STRIDE, SHIFT, DILATION, REPEAT, COLUMNS, FIRST, COUNT, RATE, EXTRA, OUT_T, OUT_LEAD,
    OUT_BEHIND,
    K: tl.constexpr, KP: tl.constexpr, CHECKED: tl.constexpr, REPEATED: tl.constexpr,
    GROUPED: tl.constexpr, BEHIND: tl.constexpr, GATED: tl.constexpr, ADDS: tl.constexpr,
    SAME: tl.constexpr, RAW: tl.constexpr, ACTS: tl.constexpr, ACT: tl.constexpr,
    ROUNDS: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, STAGES: tl.constexpr, AHEAD: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(2)
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    col = tl.program_id(1) * BN + tl.arange(0, BN)
    inside = row < rows
    row = tl.minimum(row, rows - 1)
    sequence = row // T_OUT
    t = row % T_OUT
    taps = TAPS + TAP_STEP * group
    # The groups' weights lie one behind the other, each with as many taps as it has.
    before = group * TAPS + TAP_STEP * (group * (group - 1) // 2)
    weight = w + (before * N + tl.minimum(col, N - 1) * taps)[:, None] * KP
    if AHEAD:
        _fetch_weights(weight, taps * KP, BN)
    weight += tl.arange(0, BK)[None, :]
    reach = SHIFT
    if TAP_STEP > 0:
        reach = -(taps - 1) * DILATION
        if CENTRED > 0:
            reach = reach // 2
    first = (sequence * (OUT_T + OUT_LEAD) + OUT_LEAD) * N
    source = a
    if GROUPED:
        first += group * group_out * N
        source += group * group_in * K
        if SAME:
            # What is added is there once.
            added -= group * group_out * N
    begun(OVERLAPS)
    begin, end = _numbers_there(
        sequence, (sequence // SHARE) * T_IN, tl.full((BM,), 0, tl.int32) + T_IN * REPEAT, plan,
        COLUMNS, FIRST, COUNT, RATE, EXTRA, REPEAT, CHECKED,
    )  # fmt: skip
    total = _summed(
        source, weight, begin, t * STRIDE + reach, end, taps, DILATION, REPEAT, K, KP, CHECKED,
        REPEATED, PRECISION, BM, BN, BK, STAGES,
    )  # fmt: skip
    total += tl.load(bias + group * N + col, mask=col < N, other=0.0)[None, :]
    writes = inside[:, None] & (col < N)[None, :]
    # A row's numbers go on where those of the row before end, so some may be left out in front.
    if BEHIND:
        within = t[:, None] * N + col[None, :] - tl.multiple_of(OUT_BEHIND, 4)
        writes &= (within >= 0) & (within < OUT_T * N)
        offset = first[:, None] + within
    else:
        offset = (first + t * N)[:, None] + col[None, :]
    _put(
        total, offset, col, writes, gate, added, out, acted, alpha + group * N, slope, N, GATED,
        ADDS, RAW, ACTS, ACT, ROUNDS,
    )  # fmt: skip


# ---- what is asked of it ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Weights:
    """One or several weights [N, taps · K'] as they are read: K' is K filled up with zeros.

    Several (`groups`) are computed at once; each has `tap_step` taps more than the one before.
    """

    matrix: Tensor  # flat
    bias: Tensor  # f32 [groups, N]
    outputs: int
    inputs: int
    padded: int
    taps: int
    tap_step: int = 0
    groups: int = 1
    rounding: Rounding = "none"
    """Of numbers that were float32; what is multiplied with them is to be rounded so too."""

    @classmethod
    def of_taps(
        cls, weights: Sequence[Tensor], biases: Sequence[Tensor], tap_step: int = 0
    ) -> "Weights":
        """Of weights [N, taps, K]: a convolution's [N, K, taps], turned."""
        outputs, taps, inputs = weights[0].shape
        padded = -(-inputs // _LEAST_K) * _LEAST_K
        # A single one that is filled up already stays where it is.
        full = [F.pad(one, (0, padded - inputs)) if padded > inputs else one for one in weights]
        flat = torch.cat([one.flatten() for one in full]) if len(full) > 1 else full[0].flatten()
        bias = torch.stack([one.float() for one in biases])
        return cls(flat, bias, outputs, inputs, padded, taps, tap_step, len(weights))

    def rounded(self, rounding: Rounding) -> "Weights":
        """The same, rounded; to TF32 here too, as the matrix unit would cut the digits off."""
        matrix = self.matrix.to(operand_dtype(rounding))
        if rounding == "tf32":
            matrix = ((matrix.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)
        return replace(self, matrix=matrix, rounding=rounding)

    @classmethod
    def linear(cls, weight: Tensor, bias: Tensor) -> "Weights":
        """Of a linear layer's weight [N, K] and bias [N]."""
        return cls.of_taps([weight[:, None]], [bias])


@dataclass(frozen=True, slots=True)
class Span:
    """Which rows of a sequence there are, by columns of the plan: of the first and of their count.

    There are count · rate + extra; a column of -1 stands for 0, and for all.
    """

    plan: Tensor  # i64 [B, columns]
    count: int = -1
    first: int = -1
    rate: int = 1
    extra: int = 0


@dataclass(frozen=True, slots=True)
class Along:
    """Which rows of a sequence of `t_in` each of its `t_out` output rows sees.

    So many sequences (`share`) see the same input. With groups the taps end at the row, or lie
    around it (`centred`); others begin at t · stride + shift. Without a span every row that is
    asked for must be there.
    """

    t_out: int
    t_in: int
    stride: int = 1
    shift: int = 0
    dilation: int = 1
    repeat: int = 1
    share: int = 1
    centred: bool = False
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class After:
    """What becomes of the product: times `gate` f32 [N], plus `added`, to `out`, and what `act`
    makes of it to `acted`. `added` is all groups' own, or without a side for them.

    `lead` rows stand in front of each sequence that is written; of a sequence's numbers the first
    `behind` are left out, and those beyond `rows` rows (0: as many as the product has).
    """

    out: Tensor | None = None
    acted: Tensor | None = None
    act: Act = "none"
    alpha: Tensor | None = None
    slope: float = 0.0
    gate: Tensor | None = None
    added: Tensor | None = None
    lead: int = 0
    behind: int = 0
    rows: int = 0


def product(
    source: Tensor, weights: Weights, along: Along, after: After, tile: Tile | None = None
) -> None:
    """Rows of `source` [.., K] to `after.out` and `after.acted`, [.., N] each.

    With groups the outermost side of all of these is the group's. Where the weights are rounded, so
    must `source` be, and so is `after.acted`: float16 where they are that. `after.out` and what is
    added then stay float32.
    """
    target = after.out if after.out is not None else after.acted
    assert target is not None, "the product goes somewhere"
    rows_out = after.rows or along.t_out
    groups, outputs = weights.groups, weights.outputs
    sequences = target.numel() // (groups * (rows_out + after.lead) * outputs)
    rows = sequences * along.t_out
    chosen = tile or tile_of(
        (rows, outputs, weights.taps * weights.inputs), source.dtype, weights.rounding,
        fast_memory(source.device),
    )  # fmt: skip
    depth = chosen.depth
    while weights.padded % depth:
        depth //= 2
    span = along.span or Span(source)
    optional = (after.gate, after.added, after.out, after.acted, after.alpha)
    launch(
        _product,
        (triton.cdiv(rows, chosen.rows), triton.cdiv(outputs, chosen.columns), groups),
        source, weights.matrix, weights.bias,
        *(weights.bias if one is None else one for one in optional), span.plan,
        rows, source.numel() // (groups * weights.inputs), target.numel() // (groups * outputs),
        after.slope,
        outputs, along.t_out, along.t_in, along.share, weights.taps, weights.tap_step,
        int(along.centred), along.stride, along.shift, along.dilation, along.repeat,
        span.plan.shape[-1], span.first, span.count, span.rate, span.extra,
        rows_out, after.lead, after.behind,
        K=weights.inputs, KP=weights.padded, CHECKED=along.span is not None,
        REPEATED=along.repeat > 1, GROUPED=groups > 1, BEHIND=after.behind > 0,
        GATED=after.gate is not None, ADDS=after.added is not None,
        SAME=after.added is not None and after.added.numel() < target.numel(),
        RAW=after.out is not None, ACTS=after.acted is not None, ACT=_ACTS[after.act],
        ROUNDS=ROUNDINGS[weights.rounding],
        PRECISION="tf32" if weights.rounding == "tf32" else "ieee",
        BM=chosen.rows, BN=chosen.columns, BK=depth, STAGES=chosen.stages,
        AHEAD=OVERLAPS and along.span is None, warps=chosen.warps,
        maxnreg=chosen.registers,
    )  # fmt: skip
