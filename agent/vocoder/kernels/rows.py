# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
# ruff: noqa: PLR0913, PLR0917
"""What is done to rows by themselves: norms with what surrounds them, and the solver's step."""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from agent.vocoder.kernels.launching import INTERPRETED, begun, launch, mish

_ROWS = 128 if INTERPRETED else 4
"""Of a program: a warp each."""


@dataclass(frozen=True, slots=True)
class Ends:
    """The last rows of a sequence, kept until its next chunk: `lead` in front of what comes.

    They are in `store` at slot · `stride` + `base`, [`share`, lead, W] there; `share` sequences
    are a stream's. The plan's columns name the slots and how many rows of a sequence count.
    """

    store: Tensor
    stride: int
    base: int
    lead: int
    share: int
    plan: Tensor
    source: int
    target: int
    count: int


@triton.jit(do_not_specialize=["T", "epsilon", "stride", "base", "COLUMNS", "SRC", "DST", "COUNT"])
def _norm(
    x, scale, shift, store, plan, out, wide, T, epsilon, stride, base, COLUMNS, SRC, DST, COUNT,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, LEAD: tl.constexpr,
    SHARE: tl.constexpr, NORMS: tl.constexpr, MISH: tl.constexpr, NARROW: tl.constexpr,
    WIDE: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    sequence = tl.program_id(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < T + LEAD) & (column < WIDTH)
    begun(OVERLAPS)
    place = (sequence * T + row - LEAD) * WIDTH + column
    value = tl.load(x + place, mask=inside & (row >= LEAD), other=0.0).to(tl.float32)
    if NORMS:
        mean = tl.sum(value, 1, keep_dims=True) / WIDTH
        apart = tl.where(column < WIDTH, value - mean, 0.0)
        spread = tl.sum(apart * apart, 1, keep_dims=True) / WIDTH
        value = apart * tl.rsqrt(spread + epsilon)
        value *= tl.load(scale + column, mask=column < WIDTH, other=0.0)
        value += tl.load(shift + column, mask=column < WIDTH, other=0.0)
    if MISH:
        value = mish(value)
    if WIDE:
        tl.store(wide + place, value, mask=inside & (row >= LEAD))
    if NARROW:
        narrow = value.to(out.dtype.element_ty)
        if LEAD:
            stream = plan + (sequence // SHARE) * COLUMNS
            mine = store + tl.multiple_of(base, 8) + (sequence % SHARE) * LEAD * WIDTH + column
            stride = tl.multiple_of(stride, 8)
            old = mine + tl.load(stream + SRC) * stride + row * WIDTH
            narrow = tl.where(row < LEAD, tl.load(old, mask=inside & (row < LEAD)), narrow)
            # The last rows that count, which may be among those of before.
            ended = row - tl.load(stream + COUNT).to(tl.int32)
            target = tl.load(stream + DST)
            new = mine + target * stride + ended * WIDTH
            kept = inside & (ended >= 0) & (ended < LEAD)
            tl.store(new, narrow, mask=kept)
        tl.store(out + (sequence * (T + LEAD) + row) * WIDTH + column, narrow, mask=inside)


def norm(
    x: Tensor,
    vectors: tuple[Tensor, Tensor] | None,
    epsilon: float,
    narrow: Tensor | None,
    *,
    wide: Tensor | None = None,
    ends: Ends | None = None,
    with_mish: bool = False,
) -> None:
    """`x` [.., T, W], normed over W and with scale and shift f32 [W] (`vectors`; without: as it is)
    → `narrow` and `wide`, rounded to their dtypes. With `ends`, `narrow` is [.., lead + T, W]."""
    count, width = x.shape[-2:]
    lead = ends.lead if ends is not None else 0
    scale, shift = vectors or (x, x)
    grid = (x.numel() // (count * width), triton.cdiv(count + lead, _ROWS))
    where = (
        (ends.stride, ends.base, ends.plan.shape[-1], ends.source, ends.target, ends.count)
        if ends is not None
        else (0, 0, 0, 0, 0, 0)
    )
    store, plan = (ends.store, ends.plan) if ends is not None else (x, x)
    launch(
        _norm, grid, x, scale, shift, store, plan,
        x if narrow is None else narrow, x if wide is None else wide, count, epsilon, *where,
        WIDTH=width, BLOCK=triton.next_power_of_2(width), ROWS=_ROWS, LEAD=lead,
        SHARE=ends.share if ends is not None else 1, NORMS=vectors is not None, MISH=with_mish,
        NARROW=narrow is not None, WIDE=wide is not None,
    )  # fmt: skip


@triton.jit(do_not_specialize=["size", "COLUMNS", "SRC", "DST", "COUNT"])
def _carry(
    rows, store, plan, T, COLUMNS, SRC, DST, COUNT,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, LEAD: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    sequence = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    begun(OVERLAPS)
    stream = plan + sequence * COLUMNS
    old = store + tl.load(stream + SRC) * LEAD * WIDTH + column
    target = tl.load(stream + DST)
    count = tl.load(stream + COUNT).to(tl.int32)
    mine = rows + sequence * (T + LEAD) * WIDTH + column
    for at in tl.static_range(LEAD):
        before = tl.load(old + at * WIDTH, mask=inside, other=0.0)
        tl.store(mine + at * WIDTH, before, mask=inside)
        last = count + at
        kept = tl.load(mine + last * WIDTH, mask=inside & (last >= LEAD), other=0.0)
        early = tl.load(old + last * WIDTH, mask=inside & (last < LEAD), other=0.0)
        kept = tl.where(last >= LEAD, kept, early)
        new = store + (target * LEAD + at) * WIDTH + column
        tl.store(new, kept, mask=inside)


def carry(rows: Tensor, ends: Ends) -> None:
    """Put a stream's ends in front of its `rows` [B, lead + T, W], and keep those of these rows."""
    _, count, width = rows.shape
    launch(
        _carry, (len(rows),), rows, ends.store, ends.plan, count - ends.lead,
        ends.plan.shape[-1], ends.source, ends.target, ends.count,
        WIDTH=width, BLOCK=triton.next_power_of_2(width), LEAD=ends.lead,
    )  # fmt: skip


@triton.jit(do_not_specialize=["size", "each", "span", "guidance"])
def _advance(
    mel, velocity, narrow, size, each, span, guidance, BLOCK: tl.constexpr, OVERLAPS: tl.constexpr
):  # fmt: skip
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    begun(OVERLAPS)
    known = velocity + (at // each) * 2 * each + at % each
    way = tl.load(known, mask=inside)
    without = tl.load(known + each, mask=inside)
    # Away from what is thought without conditions, and beyond what is thought with them.
    way += (way - without) * guidance
    value = tl.load(mel + at, mask=inside) + span * way
    tl.store(mel + at, value, mask=inside)
    tl.store(narrow + at, value, mask=inside)


def advance(mel: Tensor, velocity: Tensor, narrow: Tensor, span: float, guidance: float) -> None:
    """A step of the solver, in place: `mel` f32 [B, T, M] along `velocity` f32 [B, 2, T, M]; the
    same rounded to `narrow`."""
    block = 1024
    launch(
        _advance, (triton.cdiv(mel.numel(), block),), mel, velocity, narrow, mel.numel(),
        mel[0].numel(), span, guidance, BLOCK=block,
    )  # fmt: skip
