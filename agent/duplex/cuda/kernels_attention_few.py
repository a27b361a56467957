# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
# ruff: noqa: PLR0913, PLR0915, PLR0917
"""`place` and `attend` of a few rows in one launch: decode steps, where launches are what costs.

Each program norms and turns what it needs by itself; the one that looks at the last keys writes the
new ones. Whichever program of a tile is done last puts together what all have found.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from agent.duplex.cuda.kernels_attention import (
    BLOCK,
    LOG2_E,
    MOST_SPLITS,
    NARROW_ROWS,
    HeadNorms,
    Heads,
    Rows,
    normed_heads,
    splits_used,
    stages_for,
    turned_heads,
)
from agent.duplex.cuda.kernels_linear import begin_early, starts_early, wait_for_last
from agent.torch_parts.kernels.launching import launch


@triton.jit
def _halves(
    source, weight, cosines, sines, position, known, epsilon,
    WIDTH: tl.constexpr, NORMS: tl.constexpr,
):  # fmt: skip
    """Heads at `source` [R, 1], normed and turned to `position` [R, 1]: both halves [R, D / 2]."""
    half: tl.constexpr = WIDTH // 2
    dtype: tl.constexpr = source.dtype.element_ty
    column = tl.arange(0, half)[None, :]
    first = tl.load(source + column, mask=known, other=0.0).to(tl.float32)
    second = tl.load(source + half + column, mask=known, other=0.0).to(tl.float32)
    if NORMS:
        first, second = normed_heads(first, second, weight, column, epsilon, WIDTH, dtype)
    cosine = tl.load(cosines + position * half + column, mask=known, other=0.0).to(tl.float32)
    sine = tl.load(sines + position * half + column, mask=known, other=0.0).to(tl.float32)
    return turned_heads(first, second, cosine, sine, dtype)


@triton.jit
def _mix(score, visible, value, largest, total, mixed):
    """One step of a softmax that has not seen everything yet."""
    score = tl.where(visible, score, -float("inf"))
    now = tl.maximum(largest, tl.max(score, 1))
    base = tl.where(now == -float("inf"), 0.0, now)
    share = tl.exp2(score - base[:, None])
    fade = tl.exp2(largest - base)
    mixed = tl.dot(share.to(value.dtype), value, mixed * fade[:, None], input_precision="ieee")
    return now, total * fade + tl.sum(share, 1), mixed


@triton.jit
def _unite(found, parts, weights, part, out, used, WIDTH: tl.constexpr, SPLITS: tl.constexpr):
    """What the splits of one row and head have found."""
    split, column = tl.arange(0, SPLITS), tl.arange(0, WIDTH)
    there = split < used
    # What other programs wrote is not in this one's nearest cache.
    weight = tl.load(weights + part + split, mask=there, other=-float("inf"), cache_modifier=".cg")
    share = tl.exp2(weight - tl.max(weight, 0))
    share /= tl.sum(share, 0)
    at = ((part + split) * WIDTH)[:, None] + column[None, :]
    one = tl.load(parts + at, mask=there[:, None], other=0.0, cache_modifier=".cg")
    tl.store(found + out + column, tl.sum(one * share[:, None], 0).to(found.dtype.element_ty))


@triton.jit
def _attend_few(
    merged, found, parts, weights, arrived, keys, values, slots, positions, tiles, splits,
    cosines, sines, query_weight, key_weight, slot_stride, head_stride, scale, epsilon,
    GROUP: tl.constexpr, KV_HEADS: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, NORMS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    begin_early(EARLY)
    wait_for_last(EARLY)
    tile, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    count = tl.load(tiles + 2 * tile + 1)
    row = tl.load(tiles + 2 * tile).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    used = splits_used(splits, SPLITS)
    if (count > 0) & (slot >= 0) & (split < used):
        heads: tl.constexpr = GROUP * KV_HEADS
        stride: tl.constexpr = (heads + 2 * KV_HEADS) * WIDTH
        half: tl.constexpr = WIDTH // 2
        begin = tl.load(positions + row)
        keys += slot * slot_stride + kv_head * head_stride
        values += slot * slot_stride + kv_head * head_stride
        place = tl.arange(0, ROWS)
        step, head = place // GROUP, kv_head * GROUP + place % GROUP
        asked = (step < count)[:, None]
        near, far = _halves(
            merged + ((row + step) * stride + head * WIDTH)[:, None], query_weight,
            cosines, sines, (begin + step)[:, None], asked, epsilon, WIDTH, NORMS,
        )  # fmt: skip
        column, pair = tl.arange(0, WIDTH), tl.arange(0, half)
        chunk = tl.cdiv(tl.cdiv(begin + count, used), BLOCK) * BLOCK
        start = split * chunk
        stop = tl.minimum(start + chunk, begin)
        largest = tl.full([ROWS], -float("inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        mixed = tl.zeros([ROWS, WIDTH], tl.float32)
        for first in range(start, stop, BLOCK):
            at = first + tl.arange(0, BLOCK)
            there = at < stop
            key_at = keys + at[None, :] * WIDTH + pair[:, None]
            key = tl.load(key_at, mask=there[None, :], other=0.0)
            other = tl.load(key_at + half, mask=there[None, :], other=0.0)
            value_at = at[:, None] * WIDTH + column[None, :]
            value = tl.load(values + value_at, mask=there[:, None], other=0.0)
            score = tl.dot(near, key, input_precision="ieee")
            score = tl.dot(far, other, score, input_precision="ieee") * scale
            largest, total, mixed = _mix(score, there[None, :], value, largest, total, mixed)
        # The new positions are the last one's, wherever the chunks end.
        if split == used - 1:
            new = tl.arange(0, ROWS)
            known = (new < count)[:, None]
            source = merged + ((row + new) * stride + (heads + kv_head) * WIDTH)[:, None]
            key, other = _halves(
                source, key_weight, cosines, sines, (begin + new)[:, None], known, epsilon,
                WIDTH, NORMS,
            )  # fmt: skip
            value_at = source + KV_HEADS * WIDTH + column[None, :]
            value = tl.load(value_at, mask=known, other=0.0)
            target = (begin + new)[:, None] * WIDTH
            tl.store(keys + target + pair[None, :], key, mask=known)
            tl.store(keys + target + half + pair[None, :], other, mask=known)
            tl.store(values + target + column[None, :], value, mask=known)
            score = tl.dot(near, tl.trans(key), input_precision="ieee")
            score = tl.dot(far, tl.trans(other), score, input_precision="ieee") * scale
            visible = (new[None, :] <= step[:, None]) & (new < count)[None, :]
            largest, total, mixed = _mix(score, visible, value, largest, total, mixed)
        empty = total == 0.0
        whole = tl.where(empty, 1.0, total)
        part = ((row + step) * heads + head) * SPLITS + split
        out = mixed / whole[:, None]
        tl.store(parts + part[:, None] * WIDTH + column[None, :], out, mask=asked)
        weight = tl.where(empty, -float("inf"), largest + tl.log2(whole))
        tl.store(weights + part, weight, mask=step < count)
        tl.debug_barrier()
        mine = arrived + row * KV_HEADS + kv_head
        if tl.atomic_add(mine, 1, sem="acq_rel") == used - 1:
            for one in range(0, count):
                for member in tl.static_range(GROUP):
                    place_of = (row + one) * heads + kv_head * GROUP + member
                    _unite(
                        found, parts, weights, place_of * SPLITS, place_of * WIDTH, used,
                        WIDTH, SPLITS,
                    )  # fmt: skip
            tl.store(mine, 0)


@dataclass(frozen=True, slots=True)
class FewScratch:
    """What the programs of one launch leave for each other; for one launch at a time."""

    found: Tensor  # [N, H·D]
    parts: Tensor  # f32 [N, H, splits, D]
    weights: Tensor  # f32 [N, H, splits]
    arrived: Tensor  # i32 [N, KV]: 0 before a launch and after it

    @classmethod
    def of(cls, like: Tensor, heads: Heads) -> "FewScratch":
        """On the device of `like`, `found` in its dtype, for as many rows as a narrow tile has."""
        rows, splits = heads.narrow, MOST_SPLITS

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=like.device)

        return cls(
            zeros(rows, heads.heads * heads.width, dtype=like.dtype),
            zeros(rows, heads.heads, splits, heads.width),
            zeros(rows, heads.heads, splits),
            zeros(rows, heads.kv_heads, dtype=torch.int32),
        )


def place_and_attend(
    merged: Tensor,
    rows: Rows,
    cache: Tensor,
    turns: tuple[Tensor, Tensor],
    shape: tuple[Heads, HeadNorms | None],
    scratch: tuple[FewScratch, int],
) -> Tensor:
    """`place`, then `attend`: [N, H·D], in `scratch`, which goes with how many splits there may be.
    Of `Heads.narrow` rows at most, so that all rows of a stream are one tile."""
    heads, norms = shape
    left, splits = scratch
    query = turns[0] if norms is None else norms.query
    key = turns[0] if norms is None else norms.key
    early = starts_early(merged.device)
    launch(
        _attend_few, (len(rows.tiles), heads.kv_heads, splits),
        merged, left.found, left.parts, left.weights, left.arrived,
        cache[0], cache[1], rows.slots, rows.positions, rows.tiles, rows.splits,
        *turns, query, key, cache.stride(1), cache.stride(2),
        LOG2_E * heads.width**-0.5, 0.0 if norms is None else norms.epsilon,
        heads.group, heads.kv_heads, heads.width, splits,
        NARROW_ROWS, BLOCK, norms is not None, early,
        num_warps=4, num_stages=stages_for(merged, heads), launch_pdl=early,
    )  # fmt: skip
    return left.found[: len(merged)]
