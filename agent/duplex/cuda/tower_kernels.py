# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
# ruff: noqa: PLR0913, PLR0915, PLR0917
"""Kernels of the towers: a sum with the norm behind it, and attention over what is really there.

They round where the modules of `agent.duplex.layers` round: sums to the tokens' dtype, norms and
softmax in float32, what attention weights with to the tokens' dtype.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from agent.torch_parts.kernels.launching import launch

_LOG2_E = math.log2(math.e)


@triton.jit
def _add_norm(tokens, added, weight, bias, out, width, epsilon, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    place = row * width + column
    value = tl.load(tokens + place, mask=inside, other=0.0)
    more = tl.load(added + place, mask=inside, other=0.0)
    value = (value.to(tl.float32) + more.to(tl.float32)).to(value.dtype)
    tl.store(tokens + place, value, mask=inside)
    wide = value.to(tl.float32)
    centred = tl.where(inside, wide - tl.sum(wide, 0) / width, 0.0)
    scaled = centred * tl.rsqrt(tl.sum(centred * centred, 0) / width + epsilon)
    gain = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, (scaled * gain + shift).to(value.dtype), mask=inside)


def add_norm(tokens: Tensor, added: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    """`tokens` [N, W] take `added` [N, W] in; → the layer norm of the sum."""
    out = torch.empty_like(tokens)
    width = tokens.shape[1]
    block = triton.next_power_of_2(width)
    launch(
        _add_norm,
        (len(tokens),),
        tokens,
        added,
        norm.weight,
        norm.bias,
        out,
        width,
        norm.eps,
        BLOCK=block,
        num_warps=4,
    )
    return out


# ---- spans of packed rows -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spans:
    """Where each of N sequences lies among rows that are packed one behind the other."""

    starts: Tensor  # i32 [N]
    counts: Tensor  # i32 [N]


@dataclass(frozen=True, slots=True)
class Tiles:
    """How attention is cut up: rows of queries and of keys at once, and who works on them.

    For heads 72 wide and a thousand rows none of seven others was more than 4 % faster on an H200,
    be it for one piece, four or 16.
    """

    rows: int = 64
    block: int = 64
    warps: int = 4
    stages: int = 3


@triton.jit
def _attend(
    query, key, value, out, query_starts, query_counts, key_starts, key_counts, out_starts,
    query_stride, key_stride, value_stride, out_stride, scale,
    WIDTH: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1) * WIDTH
    piece = tl.program_id(2)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    asks = row < tl.load(query_counts + piece)
    count = tl.load(key_counts + piece)
    column = tl.arange(0, MAIN)
    place = (tl.load(query_starts + piece) + row).to(tl.int64)[:, None] * query_stride + head
    asked = tl.load(query + place + column[None, :], mask=asks[:, None], other=0.0)
    gathered = tl.zeros([ROWS, MAIN], tl.float32)
    # A head whose width is no power of two is seen in two parts: 72 as 64 and 8.
    if REST > 0:
        more = MAIN + tl.arange(0, REST)
        is_head = more < WIDTH
        asked_rest = tl.load(
            query + place + more[None, :], mask=asks[:, None] & is_head[None, :], other=0.0
        )
        gathered_rest = tl.zeros([ROWS, REST], tl.float32)
    most = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    begin = tl.load(key_starts + piece)
    end = tl.where(tl.program_id(0) * ROWS < tl.load(query_counts + piece), count, 0)
    for first in range(0, end, BLOCK):
        other = first + tl.arange(0, BLOCK)
        seen = other < count
        at = (begin + other).to(tl.int64)
        known = tl.load(
            key + at[None, :] * key_stride + head + column[:, None], mask=seen[None, :], other=0.0
        )
        scores = tl.dot(asked, known, input_precision="ieee")
        if REST > 0:
            known_rest = tl.load(
                key + at[None, :] * key_stride + head + more[:, None],
                mask=seen[None, :] & is_head[:, None], other=0.0,
            )  # fmt: skip
            scores = tl.dot(asked_rest, known_rest, scores, input_precision="ieee")
        scores = tl.where(seen[None, :], scores * scale, float("-inf"))
        higher = tl.maximum(most, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        kept = tl.exp2(most - higher)
        most = higher
        total = total * kept + tl.sum(weights, 1)
        weights = weights.to(out.dtype.element_ty)
        from_here = value + at[:, None] * value_stride + head
        given = tl.load(from_here + column[None, :], mask=seen[:, None], other=0.0)
        gathered = tl.dot(weights, given, gathered * kept[:, None], input_precision="ieee")
        if REST > 0:
            given_rest = tl.load(
                from_here + more[None, :], mask=seen[:, None] & is_head[None, :], other=0.0
            )
            gathered_rest *= kept[:, None]
            gathered_rest = tl.dot(weights, given_rest, gathered_rest, input_precision="ieee")
    # A piece without keys gives zeros, which nobody reads, instead of what is not a number.
    share = (1 / tl.where(total > 0, total, 1.0))[:, None]
    there = out + (tl.load(out_starts + piece) + row).to(tl.int64)[:, None] * out_stride + head
    tl.store(there + column[None, :], (gathered * share).to(out.dtype.element_ty), asks[:, None])
    if REST > 0:
        tl.store(
            there + more[None, :], (gathered_rest * share).to(out.dtype.element_ty),
            asks[:, None] & is_head[None, :],
        )  # fmt: skip


def attend_spans(
    heads: int,
    parts: tuple[Tensor, Tensor, Tensor],
    spans: tuple[Spans, Spans],
    out: tuple[Tensor, Tensor],
    most: int,
    tiles: Tiles | None = None,
) -> Tensor:
    """Attention of each sequence's queries to its own keys.

    `parts`: query, key and value, each [rows, heads · D] with rows of any stride. `spans`: where
    the queries lie, none longer than `most`, and where the keys and values do. `out`: rows to
    write, and at which of them, i32 [N], each sequence's begin. → these rows.
    """
    tiles = tiles or Tiles()
    query, key, value = parts
    queries, keys = spans
    rows, starts = out
    width = query.shape[1] // heads
    main = triton.next_power_of_2(width + 1) // 2
    rest = 0 if width == main else max(16, triton.next_power_of_2(width - main))
    launch(
        _attend, (triton.cdiv(most, tiles.rows), heads, len(starts)),
        query, key, value, rows, queries.starts, queries.counts, keys.starts, keys.counts, starts,
        query.stride(0), key.stride(0), value.stride(0), rows.stride(0),
        _LOG2_E / math.sqrt(width),
        WIDTH=width, MAIN=main, REST=rest, ROWS=tiles.rows, BLOCK=tiles.block,
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return rows


# ---- streams over their cache -------------------------------------------------------------------

_ROWS = 64
"""Conv frames of a second, rounded up to what a product of matrices takes."""
_BLOCK = 64


@triton.jit
def _attend_stream(
    merged, keys, values, slots, pasts, out, gathered_parts, weight_parts,
    slot_stride, head_stride, scale,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, FRAMES: tl.constexpr, IS_SPLIT: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    stream = tl.program_id(0) // HEADS
    head = tl.program_id(0) % HEADS
    split, splits = tl.program_id(1), tl.num_programs(1)
    slot = tl.load(slots + stream).to(tl.int64)
    past = tl.load(pasts + stream)
    row = tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    is_frame = row < FRAMES
    here = merged + (stream * FRAMES + row).to(tl.int64)[:, None] * (3 * HEADS * WIDTH)
    here += head * WIDTH + column[None, :]
    asked = tl.load(here, mask=is_frame[:, None], other=0.0)
    dtype: tl.constexpr = asked.dtype
    # A place in the batch that nobody has reads slot 0 and writes nothing.
    at = tl.maximum(slot, 0) * slot_stride + head * head_stride
    gathered = tl.zeros([ROWS, WIDTH], tl.float32)
    most = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    blocks = (past + BLOCK - 1) // BLOCK
    for block in range(blocks * split // splits, blocks * (split + 1) // splits):
        other = block * BLOCK + tl.arange(0, BLOCK)
        seen = other < past
        known = tl.load(
            keys + at + other[None, :] * WIDTH + column[:, None], mask=seen[None, :], other=0.0
        )
        scores = tl.dot(asked, known, input_precision="ieee") * scale
        scores = tl.where(seen[None, :], scores, float("-inf"))
        higher = tl.maximum(most, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        kept = tl.exp2(most - higher)
        most = higher
        total = total * kept + tl.sum(weights, 1)
        given = tl.load(
            values + at + other[:, None] * WIDTH + column[None, :], mask=seen[:, None], other=0.0
        )
        gathered *= kept[:, None]
        gathered = tl.dot(weights.to(dtype), given, gathered, input_precision="ieee")
    if split == splits - 1:
        fresh_key = tl.load(here + HEADS * WIDTH, mask=is_frame[:, None], other=0.0)
        fresh_value = tl.load(here + 2 * HEADS * WIDTH, mask=is_frame[:, None], other=0.0)
        there = at + (past + row)[:, None] * WIDTH + column[None, :]
        is_kept = is_frame[:, None] & (slot >= 0)
        tl.store(keys + there, fresh_key, is_kept)
        tl.store(values + there, fresh_value, is_kept)
        scores = tl.dot(asked, tl.trans(fresh_key), input_precision="ieee") * scale
        scores = tl.where(is_frame[None, :], scores, float("-inf"))
        higher = tl.maximum(most, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        kept = tl.exp2(most - higher)
        most = higher
        total = total * kept + tl.sum(weights, 1)
        gathered *= kept[:, None]
        gathered = tl.dot(weights.to(dtype), fresh_value, gathered, input_precision="ieee")
    if IS_SPLIT:
        part = (tl.program_id(0) * splits + split) * ROWS + row
        tl.store(gathered_parts + part[:, None] * WIDTH + column[None, :], gathered)
        tl.store(weight_parts + part * 2, most)
        tl.store(weight_parts + part * 2 + 1, total)
    else:
        there = out + (stream * FRAMES + row).to(tl.int64)[:, None] * (HEADS * WIDTH)
        there += head * WIDTH + column[None, :]
        tl.store(there, (gathered / total[:, None]).to(dtype), is_frame[:, None])


@triton.jit
def _join_splits(
    gathered_parts, weight_parts, out, splits,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, FRAMES: tl.constexpr, ROWS: tl.constexpr,
    AT_ONCE: tl.constexpr,
):  # fmt: skip
    stream = tl.program_id(0) // HEADS
    head = tl.program_id(0) % HEADS
    row = tl.program_id(1) * AT_ONCE + tl.arange(0, AT_ONCE)
    column = tl.arange(0, WIDTH)
    gathered = tl.zeros([AT_ONCE, WIDTH], tl.float32)
    most = tl.full([AT_ONCE], float("-inf"), tl.float32)
    total = tl.zeros([AT_ONCE], tl.float32)
    # The last split has the frames themselves, so from it on there is something to compare with.
    for back in range(splits):
        part = (tl.program_id(0) * splits + splits - 1 - back) * ROWS + row
        peak = tl.load(weight_parts + part * 2)
        higher = tl.maximum(most, peak)
        kept, taken = tl.exp2(most - higher), tl.exp2(peak - higher)
        most = higher
        total = total * kept + tl.load(weight_parts + part * 2 + 1) * taken
        more = tl.load(gathered_parts + part[:, None] * WIDTH + column[None, :])
        gathered = gathered * kept[:, None] + more * taken[:, None]
    there = out + (stream * FRAMES + row).to(tl.int64)[:, None] * (HEADS * WIDTH)
    there += head * WIDTH + column[None, :]
    tl.store(there, (gathered / total[:, None]).to(out.dtype.element_ty), (row < FRAMES)[:, None])


@dataclass(frozen=True, slots=True)
class StreamPlaces:
    """Where the next frames of B streams go in a cache, and what they see."""

    slots: Tensor  # i32 [B]; below 0 where nobody is
    pasts: Tensor  # i32 [B]: frames that are cached
    frames: int
    """New frames of each stream; 64 at most."""


def attend_streams(
    heads: int, merged: Tensor, cache: tuple[Tensor, Tensor], places: StreamPlaces, splits: int = 1
) -> Tensor:
    """New frames look at what their stream has cached and at each other, and enter the cache.

    `merged` [B · frames, 3 · W] holds query, key and value side by side; `cache` the layer's keys
    and values [slots, heads, positions, D]. With `splits` above 1 so many programs share the past
    of one head. → [B · frames, W].
    """
    keys, values = cache
    width, streams = keys.shape[3], len(places.slots)
    out = merged.new_empty(len(merged), heads * width)
    shares = streams * heads * splits * _ROWS if splits > 1 else 0
    gathered = merged.new_empty(shares, width, dtype=torch.float32)
    weights = merged.new_empty(shares, 2, dtype=torch.float32)
    launch(
        _attend_stream, (streams * heads, splits),
        merged, keys, values, places.slots, places.pasts, out, gathered, weights,
        keys.stride(0), keys.stride(1), _LOG2_E / math.sqrt(width),
        HEADS=heads, WIDTH=width, FRAMES=places.frames, IS_SPLIT=splits > 1,
        ROWS=_ROWS, BLOCK=_BLOCK, num_warps=4, num_stages=3,
    )  # fmt: skip
    if splits > 1:
        at_once = 16
        launch(
            _join_splits, (streams * heads, triton.cdiv(places.frames, at_once)),
            gathered, weights, out, splits,
            HEADS=heads, WIDTH=width, FRAMES=places.frames, ROWS=_ROWS, AT_ONCE=at_once,
            num_warps=4,
        )  # fmt: skip
    return out
