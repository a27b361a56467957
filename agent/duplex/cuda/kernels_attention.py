# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
# ruff: noqa: PLR0913, PLR0915, PLR0917
"""Attention of rows of many streams over what each has cached, and no further.

Queries, keys and values come merged, as one projection gives them: [N, (H + 2·KV)·D]. `place` norms
and turns the heads, writes keys and values into the cache, and leaves the queries where they are;
`attend` then lets them look.

Rows of one stream that follow each other are a tile. The keys of a tile are cut into splits, each
looked at by a program of its own, so that one conversation keeps the whole device busy; what the
splits found is put together afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from agent.duplex.cuda.kernels_linear import begin_early, starts_early, wait_for_last
from agent.torch_parts.kernels.device import fast_memory
from agent.torch_parts.kernels.launching import launch

NARROW_ROWS = 16
_WIDE_ROWS = 64
"""Rows of a tile's product, each a query of one head of a group."""
BLOCK = 64
"""Keys that a program looks at at once."""
_BUSY_PROGRAMS = 256
_MOST_PARTS = 2048
"""Rows times splits; a part of one row takes 16 KB at the LLM's size."""
MOST_SPLITS = 32
LOG2_E = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class Heads:
    """How many queries and keys a row has, and how wide each is."""

    heads: int
    kv_heads: int
    width: int

    @property
    def group(self) -> int:
        """Queries that share a key."""
        return self.heads // self.kv_heads

    @property
    def merged_width(self) -> int:
        """Of a row's queries, keys and values."""
        return (self.heads + 2 * self.kv_heads) * self.width

    @property
    def narrow(self) -> int:
        """Positions of a stream that a narrow tile holds."""
        return max(1, NARROW_ROWS // self.group)

    @property
    def wide(self) -> int:
        """Positions of a stream that a tile holds at most."""
        return max(1, _WIDE_ROWS // self.group)


# ---- heads to their places ----------------------------------------------------------------------


@triton.jit
def _rounded(values, dtype: tl.constexpr):
    return values.to(dtype).to(tl.float32)


@triton.jit
def normed_heads(first, second, weight, column, epsilon, WIDTH: tl.constexpr, dtype: tl.constexpr):
    half: tl.constexpr = WIDTH // 2
    squares = tl.sum(first * first, 1, keep_dims=True) + tl.sum(second * second, 1, keep_dims=True)
    scale = tl.rsqrt(squares / WIDTH + epsilon)
    ahead = tl.load(weight + column).to(tl.float32)
    behind = tl.load(weight + half + column).to(tl.float32)
    return (
        _rounded(_rounded(first * scale, dtype) * ahead, dtype),
        _rounded(_rounded(second * scale, dtype) * behind, dtype),
    )


@triton.jit
def turned_heads(first, second, cosine, sine, dtype: tl.constexpr):
    ahead = _rounded(first * cosine, dtype) - _rounded(second * sine, dtype)
    behind = _rounded(second * cosine, dtype) + _rounded(first * sine, dtype)
    return ahead.to(dtype), behind.to(dtype)


@triton.jit
def _place(
    merged, slots, positions, cosines, sines, query_weight, key_weight, keys, values,
    slot_stride, head_stride, epsilon,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, WIDTH: tl.constexpr, AT_ONCE: tl.constexpr,
    NORMS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    begin_early(EARLY)
    wait_for_last(EARLY)
    row = tl.program_id(0).to(tl.int64)
    begin = tl.program_id(1) * AT_ONCE
    head = begin + tl.arange(0, AT_ONCE)[:, None]
    slot = tl.load(slots + row).to(tl.int64)
    if slot >= 0:
        position = tl.load(positions + row).to(tl.int64)
        half: tl.constexpr = WIDTH // 2
        column = tl.arange(0, half)[None, :]
        source = merged + row * (HEADS + 2 * KV_HEADS) * WIDTH + head * WIDTH + column
        first = tl.load(source)
        second = tl.load(source + half)
        if begin >= HEADS + KV_HEADS:
            place = slot * slot_stride + (head - HEADS - KV_HEADS) * head_stride
            target = values + place + position * WIDTH + column
            tl.store(target, first)
            tl.store(target + half, second)
        else:
            dtype: tl.constexpr = merged.dtype.element_ty
            ahead, behind = first.to(tl.float32), second.to(tl.float32)
            if NORMS:
                weight = query_weight
                if begin >= HEADS:
                    weight = key_weight
                ahead, behind = normed_heads(ahead, behind, weight, column, epsilon, WIDTH, dtype)
            cosine = tl.load(cosines + position * half + column).to(tl.float32)
            sine = tl.load(sines + position * half + column).to(tl.float32)
            one, other = turned_heads(ahead, behind, cosine, sine, dtype)
            target = source
            if begin >= HEADS:
                place = slot * slot_stride + (head - HEADS) * head_stride
                target = keys + place + position * WIDTH + column
            tl.store(target, one)
            tl.store(target + half, other)


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """Weights [D] that each query and each key is normed with."""

    query: Tensor
    key: Tensor
    epsilon: float


@dataclass(frozen=True, slots=True)
class Rows:
    """Where rows go; all on the device, so that a graph's rows can be told anew.

    `tiles` say which rows follow each other in one stream, `Heads.wide` at most; a count of 0 is
    no tile. A row whose slot is below 0 goes nowhere and is seen by nobody.
    """

    slots: Tensor  # i32 [N]
    positions: Tensor  # i32 [N]
    tiles: Tensor  # i32 [T, 2]: first row, how many
    splits: Tensor | None = None  # i32 [1]
    """Into how many splits the keys of each tile are cut, if there is room for so many."""


def place(
    merged: Tensor,
    rows: Rows,
    cache: Tensor,
    turns: tuple[Tensor, Tensor],
    shape: tuple[Heads, HeadNorms | None],
) -> None:
    """Queries of `merged` normed and turned in place, keys and values into their places.

    `cache` [2, slots, KV, positions, D] is one layer's; `turns` are cosine and sine [positions,
    D / 2] of every position, in the tokens' dtype.
    """
    heads, norms = shape
    at_once = 8
    while heads.heads % at_once or heads.kv_heads % at_once:
        at_once //= 2
    early = starts_early(merged.device)
    grid = (len(merged), (heads.heads + 2 * heads.kv_heads) // at_once)
    query = turns[0] if norms is None else norms.query
    key = turns[0] if norms is None else norms.key
    epsilon = 0.0 if norms is None else norms.epsilon
    launch(
        _place, grid,
        merged, rows.slots, rows.positions, *turns, query, key, cache[0], cache[1],
        cache.stride(1), cache.stride(2), epsilon,
        heads.heads, heads.kv_heads, heads.width, at_once, norms is not None, early,
        num_warps=1 if at_once * heads.width <= 256 else 4, launch_pdl=early,
    )  # fmt: skip


# ---- attention ----------------------------------------------------------------------------------


@triton.jit
def _look(
    merged, found, weights, keys, values, row, count, begin, used, scale,
    GROUP: tl.constexpr, KV_HEADS: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One split of one tile, of one head of keys."""
    kv_head, split = tl.program_id(1), tl.program_id(2)
    heads: tl.constexpr = GROUP * KV_HEADS
    stride: tl.constexpr = (heads + 2 * KV_HEADS) * WIDTH
    place = tl.arange(0, ROWS)
    step, head = place // GROUP, kv_head * GROUP + place % GROUP
    column = tl.arange(0, WIDTH)
    asked = step < count
    query_at = (row + step)[:, None] * stride + (head * WIDTH)[:, None] + column[None, :]
    query = tl.load(merged + query_at, mask=asked[:, None], other=0.0)
    seen = begin + count
    chunk = tl.cdiv(tl.cdiv(seen, used), BLOCK) * BLOCK
    start = split * chunk
    stop = tl.minimum(start + chunk, seen)
    largest = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, WIDTH], tl.float32)
    for first in range(start, stop, BLOCK):
        at = first + tl.arange(0, BLOCK)
        there = at < stop
        key_at = at[None, :] * WIDTH + column[:, None]
        key = tl.load(keys + key_at, mask=there[None, :], other=0.0)
        value_at = at[:, None] * WIDTH + column[None, :]
        value = tl.load(values + value_at, mask=there[:, None], other=0.0)
        score = tl.dot(query, key, input_precision="ieee") * scale
        visible = there[None, :] & (at[None, :] <= begin + step[:, None])
        score = tl.where(visible, score, -float("inf"))
        now = tl.maximum(largest, tl.max(score, 1))
        # A row may see nothing of a split: then its largest stays infinitely small.
        base = tl.where(now == -float("inf"), 0.0, now)
        share = tl.exp2(score - base[:, None])
        fade = tl.exp2(largest - base)
        total = total * fade + tl.sum(share, 1)
        mixed *= fade[:, None]
        mixed = tl.dot(share.to(value.dtype), value, mixed, input_precision="ieee")
        largest = now
    empty = total == 0.0
    whole = tl.where(empty, 1.0, total)
    part = ((row + step) * heads + head) * SPLITS + split
    out = (mixed / whole[:, None]).to(found.dtype.element_ty)
    tl.store(found + part[:, None] * WIDTH + column[None, :], out, mask=asked[:, None])
    if SPLITS > 1:
        weight = tl.where(empty, -float("inf"), largest + tl.log2(whole))
        tl.store(weights + part, weight, mask=asked)


@triton.jit
def splits_used(splits, SPLITS: tl.constexpr):
    used = SPLITS
    if splits is not None:
        used = tl.minimum(tl.load(splits), SPLITS)
    return used


@triton.jit
def _attend(
    merged, found, weights, keys, values, slots, positions, tiles, splits,
    slot_stride, head_stride, scale,
    GROUP: tl.constexpr, KV_HEADS: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr,
    NARROW: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    begin_early(EARLY)
    wait_for_last(EARLY)
    tile = tl.program_id(0)
    count = tl.load(tiles + 2 * tile + 1)
    used = splits_used(splits, SPLITS)
    if (count > 0) & (tl.program_id(2) < used):
        row = tl.load(tiles + 2 * tile).to(tl.int64)
        slot = tl.load(slots + row).to(tl.int64)
        if slot >= 0:
            begin = tl.load(positions + row)
            keys += slot * slot_stride + tl.program_id(1) * head_stride
            values += slot * slot_stride + tl.program_id(1) * head_stride
            if count * GROUP > NARROW:
                _look(
                    merged, found, weights, keys, values, row, count, begin, used, scale,
                    GROUP, KV_HEADS, WIDTH, SPLITS, WIDE, BLOCK,
                )  # fmt: skip
            else:
                _look(
                    merged, found, weights, keys, values, row, count, begin, used, scale,
                    GROUP, KV_HEADS, WIDTH, SPLITS, NARROW, BLOCK,
                )  # fmt: skip


@triton.jit
def _unite(
    parts,
    weights,
    found,
    slots,
    splits,
    WIDTH: tl.constexpr,
    SPLITS: tl.constexpr,
    EARLY: tl.constexpr,
):
    begin_early(EARLY)
    wait_for_last(EARLY)
    """What the splits of one row and head found, by what they weigh."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tl.arange(0, WIDTH)
    one = row * tl.num_programs(1) + head
    if tl.load(slots + row) >= 0:
        split = tl.arange(0, SPLITS)
        there = split < splits_used(splits, SPLITS)
        weight = tl.load(weights + one * SPLITS + split, mask=there, other=-float("inf"))
        share = tl.exp2(weight - tl.max(weight, 0))
        share /= tl.sum(share, 0)
        part_at = ((one * SPLITS + split) * WIDTH)[:, None] + column[None, :]
        part = tl.load(parts + part_at, mask=there[:, None], other=0.0)
        out = tl.sum(part * share[:, None], 0)
        tl.store(found + one * WIDTH + column, out.to(found.dtype.element_ty))
    else:
        tl.store(found + one * WIDTH + column, tl.zeros([WIDTH], found.dtype.element_ty))


def attend(merged: Tensor, rows: Rows, cache: Tensor, heads: Heads, splits: int) -> Tensor:
    """What the queries in `merged` find in `cache` up to their own position: [N, H·D].

    `cache` is one layer's, as for `place`. `splits` is a power of two.
    """
    count, width = len(merged), heads.width
    # Whoever unites the splits writes all rows, also those of nobody.
    make = torch.empty if splits > 1 else torch.zeros
    found = make(count, heads.heads * width, dtype=merged.dtype, device=merged.device)
    parts, weights = found, found
    if splits > 1:
        shape = (count, heads.heads, splits)
        weights = torch.empty(shape, dtype=torch.float32, device=merged.device)
        parts = torch.empty(*shape, width, dtype=torch.float32, device=merged.device)
    used = rows.splits if splits > 1 else None
    early = starts_early(merged.device)
    launch(
        _attend, (len(rows.tiles), heads.kv_heads, splits),
        merged, parts, weights, cache[0], cache[1], rows.slots, rows.positions, rows.tiles, used,
        cache.stride(1), cache.stride(2), LOG2_E * width**-0.5,
        heads.group, heads.kv_heads, width, splits,
        NARROW_ROWS, max(NARROW_ROWS, heads.wide * heads.group), BLOCK, early,
        num_warps=4, num_stages=stages_for(merged, heads), launch_pdl=early,
    )  # fmt: skip
    if splits > 1:
        grid = (count, heads.heads)
        launch(
            _unite, grid,
            parts, weights, found, rows.slots, used, width, splits, early,
            num_warps=2, launch_pdl=early,
        )  # fmt: skip
    return found


def stages_for(merged: Tensor, heads: Heads) -> int:
    """How many blocks of keys and values are on their way at once: 3 where there is room."""
    block = 2 * BLOCK * heads.width * merged.element_size()
    return 3 if fast_memory(merged.device) >= 4 * block else 2


# ---- splits -------------------------------------------------------------------------------------


def most_splits(rows: int, tiles: int, heads: Heads) -> int:
    """Into how many splits the keys may be cut, where so many rows and tiles have room: a power of
    two, 2 at least."""
    wanted = MOST_SPLITS if tiles * heads.kv_heads <= _BUSY_PROGRAMS // 2 else 8
    held = 1 << (_MOST_PARTS // rows).bit_length() - 1 if rows <= _MOST_PARTS else 1
    return max(2, min(wanted, held))


def splits_for(counts: Sequence[int], heads: Heads) -> int:
    """How many splits keep the device busy with tiles of so many rows.

    As measured on an H200: 256 programs of tall tiles do, of low ones more when there are many.
    """
    programs = max(1, len(counts)) * heads.kv_heads
    tall = sum(count > heads.narrow for count in counts)
    least = 1 if 2 * tall > len(counts) else 2
    return max(least, min(MOST_SPLITS, _BUSY_PROGRAMS // programs))
