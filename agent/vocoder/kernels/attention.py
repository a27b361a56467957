# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
# ruff: noqa: PLR0913, PLR0917
"""Attention of a chunk's frames to each other and to all that their stream remembers.

Memory is rows [.., 2, H·D], a key and behind it a value. Those of a voice lie together, shared by
all that speak with it, and the plan says where, counted in numbers from the store on; those of a
turn are scattered in the store, and the plan names them one by one. A chunk's own are written to
rows that nobody reads yet, so a state is never changed.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from agent.vocoder.batched.layout import MemoryColumns
from agent.vocoder.kernels.launching import INTERPRETED, OVERLAPS, begun, fetch_ahead, launch

_KEYS = 256 if INTERPRETED else 64
"""Of one turn of a program's loop."""
_FEW_STREAMS = 16
"""Whose keys are fetched before they are needed: of more there is enough else to do meanwhile."""
_LOG2_E = 1.4426950408889634


@triton.jit
def _normed(heads, scale, shift, column, WIDTH: tl.constexpr):
    mean = tl.sum(heads, 1, keep_dims=True) / WIDTH
    apart = tl.where(column < WIDTH, heads - mean, 0.0)
    spread = tl.sum(apart * apart, 1, keep_dims=True) / WIDTH
    weight = tl.load(scale + column, mask=column < WIDTH, other=0.0)
    bias = tl.load(shift + column, mask=column < WIDTH, other=0.0)
    return apart * tl.rsqrt(spread + 1e-5) * weight + bias


@triton.jit
def _seen(scores, values, most, total, seen, PRECISION: tl.constexpr):
    highest = tl.maximum(most, tl.max(scores, 1))
    weights = tl.exp2(scores - highest[:, None])
    fade = tl.exp2(most - highest)
    total = total * fade + tl.sum(weights, 1)
    seen = seen * fade[:, None]
    seen = tl.dot(weights.to(values.dtype), values, seen, input_precision=PRECISION)
    return highest, total, seen


@triton.jit
def _rows_of(
    number, voice_count, first_count, first, second, turn_rows, turn_count,
    voice_at, turn_at, ROW: tl.constexpr,
):  # fmt: skip
    """Where the keys of these numbers lie, in numbers from the store on: voice first, then turn."""
    within = tl.where(number < first_count, number + first, number - first_count + second)
    of_turn = (number >= voice_count) & (number < voice_count + turn_count)
    row = tl.load(turn_rows + number - voice_count, mask=of_turn, other=0)
    return tl.where(number < voice_count, voice_at + within * ROW, turn_at + row * ROW)


@triton.jit
def _keep(store, rows, key, value, column, width: tl.constexpr, D: tl.constexpr):
    """Put keys and values where the plan says; those whose row is below 0 are forgotten."""
    target = store + rows[:, None] * 2 * width + column
    kept = (rows >= 0)[:, None] & (column < D)
    tl.store(target, key, mask=kept)
    tl.store(target + width, value, mask=kept)


@triton.jit
def _nothing_seen(BT: tl.constexpr, BD: tl.constexpr):
    # What is not there scores less than anything: infinity less itself would be no number.
    most = tl.full((BT,), -1e30, dtype=tl.float32)
    return most, tl.zeros((BT,), dtype=tl.float32), tl.zeros((BT, BD), dtype=tl.float32)


@triton.jit
def _asked(own, counts, column, norms, width: tl.constexpr, D: tl.constexpr):
    """A head's queries and keys, normed, f32, and its values as they are."""
    query = tl.load(own, mask=counts, other=0.0).to(tl.float32)
    key = tl.load(own + width, mask=counts, other=0.0).to(tl.float32)
    value = tl.load(own + 2 * width, mask=counts, other=0.0)
    query = _normed(query, norms, norms + 2 * D, column, D)
    return query, _normed(key, norms + D, norms + 3 * D, column, D), value


@triton.jit
def _remembered(
    stream, place, rows, VOICE: tl.constexpr, VOICE_ROWS: tl.constexpr, FIRST: tl.constexpr,
    FIRST_COUNT: tl.constexpr, SECOND: tl.constexpr, SECOND_COUNT: tl.constexpr,
    TURN: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """What a stream knows of this place of the memory: keys of the voice, of its first stretch, and
    where both stretches begin; keys of the turn; and where the two memories lie."""
    # All memory begins at a multiple of more bytes than this.
    voice_at = tl.multiple_of(tl.load(stream + VOICE), 8)
    voice_at += place.to(tl.int64) * tl.load(stream + VOICE_ROWS) * 2 * width
    turn_at = place.to(tl.int64) * rows * 2 * width
    first_count = tl.load(stream + FIRST_COUNT).to(tl.int32)
    voice_count = first_count + tl.load(stream + SECOND_COUNT).to(tl.int32)
    return (
        voice_count, first_count, tl.load(stream + FIRST), tl.load(stream + SECOND),
        tl.load(stream + TURN).to(tl.int32), voice_at, turn_at,
    )  # fmt: skip


@triton.jit(do_not_specialize=["T", "layer", "rows", "scale", "COLUMNS"])
def _attend(
    mixed, norms, store, plan, out, T, layer, rows, scale, COLUMNS,
    CHUNK: tl.constexpr, VOICE: tl.constexpr, VOICE_ROWS: tl.constexpr, FIRST: tl.constexpr,
    FIRST_COUNT: tl.constexpr, SECOND: tl.constexpr, SECOND_COUNT: tl.constexpr,
    TURN: tl.constexpr, TURN_ROWS: tl.constexpr, FRESH: tl.constexpr,
    H: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr, KEYS: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr, AHEAD: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    sequence, head = tl.program_id(0), tl.program_id(1)
    stream = plan + (sequence // 2) * COLUMNS
    width: tl.constexpr = H * D
    column = tl.arange(0, BD)[None, :]
    real = column < D
    frame = tl.arange(0, BT)
    store += head * D
    # Neither the plan nor what is remembered is written by a kernel that may still be at work.
    chunk = tl.load(stream + CHUNK).to(tl.int32)
    voice_count, first_count, first, second, turn_count, voice_at, turn_at = _remembered(
        stream, layer * 2 + sequence % 2, rows, VOICE, VOICE_ROWS, FIRST, FIRST_COUNT, SECOND,
        SECOND_COUNT, TURN, width,
    )  # fmt: skip
    past = voice_count + turn_count
    if AHEAD:
        for start in tl.range(0, past, KEYS):
            number = tl.minimum(start + tl.arange(0, KEYS), past - 1)
            at = _rows_of(number, voice_count, first_count, first, second, stream + TURN_ROWS,
                          turn_count, voice_at, turn_at, 2 * width)  # fmt: skip
            fetch_ahead(store + at)
            fetch_ahead(store + at + width)
    begun(OVERLAPS)
    own_at = (sequence * T + frame[:, None]) * width + head * D + column
    own = mixed + own_at + 2 * (sequence * T + frame[:, None]) * width
    # Of the rows behind the chunk nothing counts, not even times 0: what is infinite would stay.
    counts = (frame < tl.minimum(chunk, T))[:, None] & real
    query, key, value = _asked(own, counts, column, norms, width, D)
    query = (query * scale).to(value.dtype)
    key = key.to(value.dtype)
    most, total, seen = _nothing_seen(BT, BD)
    own_scores = tl.dot(query, tl.trans(key), input_precision=PRECISION)
    own_scores = tl.where((frame < chunk)[None, :], own_scores, -1e30)
    most, total, seen = _seen(own_scores, value, most, total, seen, PRECISION)
    for start in tl.range(0, past, KEYS, num_stages=STAGES):
        number = start + tl.arange(0, KEYS)
        at = _rows_of(number, voice_count, first_count, first, second, stream + TURN_ROWS,
                      turn_count, voice_at, turn_at, 2 * width)  # fmt: skip
        held = (number < past)[:, None] & real
        keys = tl.load(store + at[:, None] + column, mask=held, other=0.0)
        values = tl.load(store + at[:, None] + width + column, mask=held, other=0.0)
        scores = tl.dot(query, tl.trans(keys), input_precision=PRECISION)
        scores = tl.where((number < past)[None, :], scores, -1e30)
        most, total, seen = _seen(scores, values, most, total, seen, PRECISION)
    there = (frame < T)[:, None] & real
    tl.store(out + own_at, seen / tl.maximum(total, 1e-30)[:, None], mask=there)
    fresh = tl.load(stream + FRESH + frame, mask=frame < tl.minimum(chunk, T), other=-1)
    _keep(store + turn_at, fresh, key, value, column, width, D)


@dataclass(frozen=True, slots=True)
class Memory:
    """A store [steps · layers · 2, rows, 2, H·D], or without the two sides; and the plan of it."""

    store: Tensor
    columns: MemoryColumns
    plan: Tensor
    heads: int
    head_width: int


def attend(mixed: Tensor, norms: Tensor, memory: Memory, layer: int, out: Tensor) -> None:
    """What frames see, to `out` [B, 2, T, H·D]; `mixed` [B, 2, T, 3·H·D] are their queries, keys
    and values, the first two to be normed by `norms` f32 [4, D]: scales, then shifts, of both.

    `layer` counts through all steps; the keys and values of the chunk go to the rows of the plan.
    """
    count, width = mixed.shape[2], memory.head_width
    columns = memory.columns
    launch(
        _attend, (2 * len(mixed), memory.heads), mixed, norms, memory.store, memory.plan, out,
        count, layer, memory.store.shape[1], width**-0.5 * _LOG2_E, memory.plan.shape[-1],
        CHUNK=columns.chunk, VOICE=columns.voice, VOICE_ROWS=columns.voice_rows,
        FIRST=columns.first, FIRST_COUNT=columns.first_count, SECOND=columns.second,
        SECOND_COUNT=columns.second_count, TURN=columns.turn, TURN_ROWS=columns.turn_rows,
        FRESH=columns.fresh_rows, H=memory.heads, D=width,
        BD=max(16, triton.next_power_of_2(width)), BT=max(16, triton.next_power_of_2(count)),
        KEYS=_KEYS, STAGES=3, PRECISION="ieee", AHEAD=OVERLAPS and len(mixed) <= _FEW_STREAMS,
    )  # fmt: skip


# ---- the encoder's, which scores by distance too ------------------------------------------------


@triton.jit
def _score_places(
    placed, distances, scores, past, reach, room, column, D: tl.constexpr, BT: tl.constexpr,
    KEYS: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Score of frame i for distance r at [i, r + BT]; r goes from -BT up to past + BT."""
    for start in tl.range(0, past + 2 * BT, KEYS, num_stages=STAGES):
        number = start + tl.arange(0, KEYS)
        at = number - BT + reach
        known = ((at >= 0) & (at <= 2 * reach))[:, None] & (column < D)
        vectors = tl.load(distances + at[:, None] * D + column, mask=known, other=0.0)
        found = tl.dot(placed, tl.trans(vectors), input_precision=PRECISION)
        tl.store(scores + number[None, :], found, mask=(number < room)[None, :])


@triton.jit
def _asked_twice(own, counts, column, biases, scale, width: tl.constexpr, D: tl.constexpr):
    """A head's queries as they are held against keys and against distances; keys and values."""
    asked = tl.load(own, mask=counts, other=0.0)
    by_key = tl.load(biases + column, mask=column < D, other=0.0)
    by_place = tl.load(biases + width + column, mask=column < D, other=0.0)
    query = (asked.to(tl.float32) + by_key) * scale
    placed = (asked.to(tl.float32) + by_place) * scale
    key = tl.load(own + width, mask=counts, other=0.0)
    value = tl.load(own + 2 * width, mask=counts, other=0.0)
    return query.to(asked.dtype), placed.to(asked.dtype), key, value


@triton.jit(do_not_specialize=["T", "layer", "rows", "scale", "COLUMNS", "reach", "room"])
def _attend_by_distance(
    mixed, biases, table, store, plan, places, out, T, layer, rows, scale, COLUMNS, reach, room,
    CHUNK: tl.constexpr, VOICE: tl.constexpr, VOICE_ROWS: tl.constexpr,
    TURN: tl.constexpr, TURN_ROWS: tl.constexpr, FRESH: tl.constexpr,
    H: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr, KEYS: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    sequence, head = tl.program_id(0), tl.program_id(1)
    stream = plan + sequence * COLUMNS
    width: tl.constexpr = H * D
    column = tl.arange(0, BD)[None, :]
    real = column < D
    frame = tl.arange(0, BT)
    # No kernel that may still be at work writes the plan.
    chunk = tl.load(stream + CHUNK).to(tl.int32)
    begun(OVERLAPS)
    own_at = (sequence * T + frame[:, None]) * width + head * D + column
    own = mixed + own_at + 2 * (sequence * T + frame[:, None]) * width
    # As in `_attend`.
    counts = (frame < tl.minimum(chunk, T))[:, None] & real
    query, placed, key, value = _asked_twice(
        own, counts, column, biases + head * D, scale, width, D
    )  # fmt: skip
    voice_count = tl.load(stream + VOICE_ROWS).to(tl.int32)
    past = voice_count + tl.load(stream + TURN).to(tl.int32)
    mine = places + ((sequence * H + head) * BT + frame[:, None]).to(tl.int64) * room
    distances = table + head * (2 * reach + 1) * D
    _score_places(placed, distances, mine, past, reach, room, column, D, BT, KEYS, STAGES,
                  PRECISION)  # fmt: skip
    tl.debug_barrier()
    most, total, seen = _nothing_seen(BT, BD)
    by_distance = tl.load(mine + BT + frame[:, None] - frame[None, :])
    own_scores = tl.dot(query, tl.trans(key), by_distance, input_precision=PRECISION)
    own_scores = tl.where((frame < chunk)[None, :], own_scores, -1e30)
    most, total, seen = _seen(own_scores, value, most, total, seen, PRECISION)
    turn_at = layer.to(tl.int64) * rows * 2 * width + head * D
    voice_at = layer.to(tl.int64) * voice_count * 2 * width + head * D
    voice_at += tl.multiple_of(tl.load(stream + VOICE), 8)
    for start in tl.range(0, past, KEYS, num_stages=STAGES):
        number = start + tl.arange(0, KEYS)
        at = _rows_of(number, voice_count, voice_count, 0, 0, stream + TURN_ROWS,
                      past - voice_count, voice_at, turn_at, 2 * width)  # fmt: skip
        held = (number < past)[:, None] & real
        keys = tl.load(store + at[:, None] + column, mask=held, other=0.0)
        values = tl.load(store + at[:, None] + width + column, mask=held, other=0.0)
        away = BT + past + frame[:, None] - number[None, :]
        scores = tl.load(mine + away, mask=(number < past)[None, :], other=0.0)
        scores = tl.dot(query, tl.trans(keys), scores, input_precision=PRECISION)
        scores = tl.where((number < past)[None, :], scores, -1e30)
        most, total, seen = _seen(scores, values, most, total, seen, PRECISION)
    there = (frame < T)[:, None] & real
    tl.store(out + own_at, seen / tl.maximum(total, 1e-30)[:, None], mask=there)
    fresh = tl.load(stream + FRESH + frame, mask=frame < tl.minimum(chunk, T), other=-1)
    _keep(store + turn_at, fresh, key, value, column, width, D)


@dataclass(frozen=True, slots=True)
class Distances:
    """How a key is scored by where it is: `table` [H, 2R + 1, D], its distances from -R to R, and
    what is added to a query f32 [2, H·D], before it is held against keys and against distances."""

    table: Tensor
    biases: Tensor
    farthest: int
    """The most rows that a stream can remember."""


def attend_by_distance(
    mixed: Tensor, distances: Distances, memory: Memory, layer: int, out: Tensor
) -> None:
    """What rows see, to `out` [B, T, H·D]; `mixed` [B, T, 3·H·D] are queries, keys and values.

    Of the voice all rows are remembered, and key number j stands in place j.
    """
    count, width = mixed.shape[1], memory.head_width
    columns = memory.columns
    block = max(16, triton.next_power_of_2(count))
    room = -(-(distances.farthest + 2 * block + _KEYS) // 64) * 64
    shape = (len(mixed), memory.heads, block, room)
    scores = torch.empty(shape, dtype=torch.float32, device=mixed.device)
    launch(
        _attend_by_distance, (len(mixed), memory.heads), mixed, distances.biases, distances.table,
        memory.store, memory.plan, scores, out, count, layer, memory.store.shape[1],
        width**-0.5 * _LOG2_E, memory.plan.shape[-1], distances.table.shape[1] // 2, room,
        CHUNK=columns.chunk, VOICE=columns.voice, VOICE_ROWS=columns.voice_rows,
        TURN=columns.turn, TURN_ROWS=columns.turn_rows, FRESH=columns.fresh_rows,
        H=memory.heads, D=width, BD=max(16, triton.next_power_of_2(width)), BT=block, KEYS=_KEYS,
        STAGES=3, PRECISION="ieee",
    )  # fmt: skip
