# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
# ruff: noqa: PLR0913, PLR0915, PLR0917
"""DECODE of many rows as five launches, whatever their number.

A row's vocabulary is cut into tiles, a tile into groups. The k-th largest of all groups' maxima is
at most the k-th largest logit, so whatever may be drawn is among the few that reach it: these are
gathered, put in order and drawn from. Both passes over the logits compute the same penalties, so
nothing as large as the logits is ever written.
"""

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from agent.duplex.cuda.random_draws import exponential, uniform
from agent.duplex.cuda.text_sampling_rows import (
    GREEDY,
    HISTORY,
    KEY,
    KNOB,
    LENGTH,
    LISTEN_BIAS,
    LISTEN_SCALE,
    LISTEN_TOP_K,
    MOST_REMEMBERED,
    REPETITION,
    ROW,
    STOP_KEY,
    TEMPERATURE,
    TOP_K,
    TOP_P,
)
from agent.duplex.sampling import MOST_TIED
from agent.duplex.tokens import VOCABULARY_SIZE, Token
from agent.torch_parts.kernels.launching import launch

_ROW, _HISTORY, _REMEMBERED = map(tl.constexpr, (ROW, HISTORY, MOST_REMEMBERED))
_STOP_KEY, _KEY, _GREEDY, _TOP_K = map(tl.constexpr, (STOP_KEY, KEY, GREEDY, TOP_K))
_LISTEN_TOP_K, _KNOB = map(tl.constexpr, (LISTEN_TOP_K, KNOB))
_TEMPERATURE, _TOP_P, _REPETITION = map(tl.constexpr, (TEMPERATURE, TOP_P, REPETITION))
_LENGTH, _LISTEN_SCALE, _LISTEN_BIAS = map(tl.constexpr, (LENGTH, LISTEN_SCALE, LISTEN_BIAS))
_CHUNK_EOS = tl.constexpr(int(Token.CHUNK_EOS))
_TURN_EOS = tl.constexpr(int(Token.TURN_EOS))
_LISTEN = tl.constexpr(int(Token.LISTEN))

_TILE = 4096
_GROUP = 32
"""As many as a word has bits: a group's word says which of it are in the history."""
_MOST_FOUND = 1024
"""Logits that reach the least group's maximum; of more, which only ties can make, some are lost."""
_STATS = tl.constexpr(4)  # of a tile: largest, sum of exponentials, more than two certain logits
_TIED = tl.constexpr(MOST_TIED)
_KEY_BITS = tl.constexpr(32)
_AT_ONCE = tl.constexpr(16)


@triton.jit
def _float(row, which):
    return tl.load(row + which).to(tl.float32, bitcast=True)


@triton.jit
def _rounded(values, dtype: tl.constexpr):
    return values.to(dtype).to(tl.float32)


@triton.jit
def _order(values):
    """Whole numbers, i32, in the order of the f32."""
    bits = values.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _mark(rows, words, found, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Note a row's history as bits; nothing is found of it yet."""
    number = tl.program_id(0).to(tl.int64)
    word = tl.arange(0, BLOCK)
    tl.store(words + number * COUNT + word, tl.zeros([BLOCK], tl.int32), mask=word < COUNT)
    tl.store(found + number, 0)
    tl.debug_barrier()
    known = tl.load(rows + number * _ROW + _HISTORY + tl.arange(0, _REMEMBERED))
    tl.atomic_or(words + number * COUNT + (known >> 5), (1 << (known & 31)).to(tl.int32))


@triton.jit
def _penalised(value, one, forbidden, known, row, dtype: tl.constexpr):
    """Logits f32 as they are after the temperature, rounded after every step."""
    value = tl.where(forbidden, -float("inf"), value)
    less = _rounded(tl.div_rn(value, tl.zeros_like(value) + _float(row, _REPETITION)), dtype)
    value = tl.where(known, less, value)
    length = tl.zeros_like(value) + _float(row, _LENGTH)
    longer = tl.where(value > 0, tl.div_rn(value, length), value * length)
    value = tl.where(one == _TURN_EOS, _rounded(longer, dtype), value)
    scaled = _rounded(value * _float(row, _LISTEN_SCALE), dtype)
    value = tl.where(one == tl.load(row + _KNOB), scaled, value)
    biased = _rounded(value + _float(row, _LISTEN_BIAS), dtype)
    value = tl.where(one == _LISTEN, biased, value)
    temperature = tl.zeros_like(value) + _float(row, _TEMPERATURE)
    return _rounded(tl.div_rn(value, temperature), dtype)


@triton.jit
def _tile(logits, row, words, banned, number, tile, V: tl.constexpr, COUNT: tl.constexpr,
          TILE: tl.constexpr, GROUP: tl.constexpr):  # fmt: skip
    """A tile's ids, logits as they came, and as they are penalised: [groups, GROUP] each."""
    group = tile * (TILE // GROUP) + tl.arange(0, TILE // GROUP)[:, None]
    bit = tl.arange(0, GROUP)[None, :]
    one = group * GROUP + bit
    raw = tl.load(logits + number * V + one, mask=one < V, other=-float("inf"))
    forbidden = ((tl.load(banned + group) >> bit) & 1) != 0
    known = ((tl.load(words + number * COUNT + group) >> bit) & 1) != 0
    value = raw.to(tl.float32)
    return one, value, _penalised(value, one, forbidden, known, row, raw.dtype)


@triton.jit
def _survey(logits, rows, words, banned, maxima, stats, V: tl.constexpr, COUNT: tl.constexpr,
            TILE: tl.constexpr, GROUP: tl.constexpr):  # fmt: skip
    """Each group's largest penalised logit; of the raw ones what the checks need."""
    tile, number = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row = rows + number * _ROW
    one, raw, value = _tile(
        logits, row, words, banned, number, tile, V, COUNT, TILE, GROUP
    )  # fmt: skip
    group = tile * (TILE // GROUP) + tl.arange(0, TILE // GROUP)
    tl.store(maxima + number * COUNT + group, tl.max(value, 1))
    largest = tl.max(tl.max(raw, 1), 0)
    total = tl.sum(tl.sum(tl.exp(raw - largest), 1), 0)
    end = tl.load(logits + number * V + _CHUNK_EOS).to(tl.float32)
    before = (raw > end) | ((raw == end) & (one < _CHUNK_EOS))
    knob = tl.load(logits + number * V + tl.load(row + _KNOB)).to(tl.float32)
    above = (raw > knob).to(tl.float32)
    out = stats + (number * tl.num_programs(0) + tile) * _STATS
    tl.store(out, largest)
    tl.store(out + 1, total)
    tl.store(out + 2, tl.sum(tl.sum(before.to(tl.float32), 1), 0))
    tl.store(out + 3, tl.sum(tl.sum(above, 1), 0))


@triton.jit
def _limit(rows, maxima, least, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """The k-th largest of the groups' maxima."""
    number = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, BLOCK)
    inside = group < COUNT
    values = tl.load(maxima + number * COUNT + group, mask=inside, other=-float("inf"))
    order = _order(values)
    count = tl.maximum(tl.load(rows + number * _ROW + _TOP_K), 1)
    low = tl.min(order, 0)
    high = tl.max(order, 0) + 1
    # The largest number that so many reach: `low` at least, below `high`.
    for _ in range(_KEY_BITS):
        middle = (low & high) + ((low ^ high) >> 1)
        enough = tl.sum((order >= middle).to(tl.int32), 0) >= count
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    tl.store(least + number, low)


@triton.jit
def _sums(stats, number, TILES: tl.constexpr, BLOCK: tl.constexpr):
    """The largest raw logit of a row, and the sum of the exponentials below it."""
    tile = tl.arange(0, BLOCK)
    at = stats + (number * TILES + tile) * _STATS
    largest = tl.load(at, mask=tile < TILES, other=-float("inf"))
    total = tl.load(at + 1, mask=tile < TILES, other=0.0)
    top = tl.max(largest, 0)
    return top, tl.sum(total * tl.exp(largest - top), 0)


@triton.jit
def _gather(logits, rows, words, banned, least, stats, rounded, found, values, ids,
            V: tl.constexpr, COUNT: tl.constexpr, TILE: tl.constexpr, GROUP: tl.constexpr,
            TILES: tl.constexpr, BLOCK: tl.constexpr, MOST: tl.constexpr):  # fmt: skip
    """What reaches the limit, in no order; and the sum of a tile's rounded shares."""
    tile, number = tl.program_id(0), tl.program_id(1).to(tl.int64)
    one, raw, value = _tile(
        logits, rows + number * _ROW, words, banned, number, tile, V, COUNT, TILE, GROUP
    )
    largest, total = _sums(stats, number, TILES, BLOCK)
    share = _rounded(tl.div_rn(tl.exp(raw - largest), tl.zeros_like(raw) + total),
                     logits.dtype.element_ty)  # fmt: skip
    tl.store(rounded + number * TILES + tile, tl.sum(tl.sum(share, 1), 0))
    reaches = (_order(value) >= tl.load(least + number)) & (one < V)
    each = tl.sum(reaches.to(tl.int32), 1)
    count = tl.sum(each, 0)
    if count > 0:
        first = tl.atomic_add(found + number, count)
        before = first + tl.cumsum(each, 0) - each
        place = before[:, None] + tl.cumsum(reaches.to(tl.int32), 1) - 1
        kept = reaches & (place < MOST)
        tl.store(values + number * MOST + place, value, mask=kept)
        tl.store(ids + number * MOST + place, one, mask=kept)


@triton.jit
def _likely(values, dtype: tl.constexpr):
    share = tl.exp(values - tl.max(values, 0))
    return _rounded(tl.div_rn(share, tl.zeros_like(share) + tl.sum(share, 0)), dtype)


@triton.jit
def _choose(logits, rows, stats, rounded, found, values, ids, ranked, ranked_ids, tokens,
            V: tl.constexpr, TILES: tl.constexpr, BLOCK: tl.constexpr,
            MOST: tl.constexpr):  # fmt: skip
    number = tl.program_id(0).to(tl.int64)
    row = rows + number * _ROW
    dtype: tl.constexpr = logits.dtype.element_ty
    # In order: each goes to the place of as many as come before it.
    place = tl.arange(0, _TIED)
    tl.store(ranked + number * _TIED + place, tl.full([_TIED], -float("inf"), tl.float32))
    tl.store(ranked_ids + number * _TIED + place, tl.zeros([_TIED], tl.int32))
    tl.debug_barrier()
    count = tl.minimum(tl.load(found + number), MOST)
    at = tl.arange(0, MOST)
    value = tl.load(values + number * MOST + at, mask=at < count, other=-float("inf"))
    one = tl.load(ids + number * MOST + at, mask=at < count, other=0)
    rank = tl.zeros([MOST], tl.int32)
    for first in range(0, count, _AT_ONCE):
        beside = first + tl.arange(0, _AT_ONCE)
        there = beside < count
        other = tl.load(values + number * MOST + beside, mask=there, other=-float("inf"))[None, :]
        other_one = tl.load(ids + number * MOST + beside, mask=there, other=V)[None, :]
        ahead = (other > value[:, None]) | ((other == value[:, None]) & (other_one < one[:, None]))
        rank += tl.sum((ahead & there[None, :]).to(tl.int32), 1)
    kept = (at < count) & (rank < _TIED)
    tl.store(ranked + number * _TIED + rank, value, mask=kept)
    tl.store(ranked_ids + number * _TIED + rank, one, mask=kept)
    tl.debug_barrier()
    value = tl.load(ranked + number * _TIED + place)
    one = tl.load(ranked_ids + number * _TIED + place)
    # Top-k with all that tie, top-p, and the draw.
    last = place == tl.maximum(tl.load(row + _TOP_K), 1) - 1
    value = tl.where(value < tl.max(tl.where(last, value, -float("inf")), 0), -float("inf"), value)
    share = _likely(value, dtype)
    before = _rounded(tl.cumsum(share, 0) - share, dtype)
    value = tl.where(before > _rounded(_float(row, _TOP_P), dtype), -float("inf"), value)
    race = _likely(value, dtype) / exponential(tl.load(row + _KEY), one)
    greedy = tl.load(row + _GREEDY) != 0
    drawn = tl.where(greedy, 0, tl.argmax(race, 0))
    token = tl.sum(tl.where(place == drawn, one, 0), 0)
    # What goes before it: the knob, and the stop check.
    tile = tl.arange(0, BLOCK)
    at_tile = stats + (number * TILES + tile) * _STATS
    above = tl.sum(tl.load(at_tile + 3, mask=tile < TILES, other=0.0), 0)
    knobbed = above < tl.load(row + _LISTEN_TOP_K).to(tl.float32)
    token = tl.where(knobbed, tl.load(row + _KNOB), token)
    largest, total = _sums(stats, number, TILES, BLOCK)
    end = tl.load(logits + number * V + _CHUNK_EOS).to(tl.float32)
    whole = tl.sum(tl.load(rounded + number * TILES + tile, mask=tile < TILES, other=0.0), 0)
    share_of_end = _rounded(tl.div_rn(tl.exp(end - largest), total), dtype) / whole
    chance = tl.max(uniform(tl.load(row + _STOP_KEY), tl.zeros([2], tl.int32)), 0)
    larger = tl.sum(tl.load(at_tile + 2, mask=tile < TILES, other=0.0), 0)
    stops = tl.where(greedy, larger == 0, chance < share_of_end)
    tl.store(tokens + number, tl.where(stops, _CHUNK_EOS, token).to(tl.int64))


class TextDraw:
    """The launches, and what they leave each other."""

    def __init__(self, rows: int, banned: Tensor, tile: int = _TILE) -> None:
        """For at most `rows` at once; `banned` i64 [n] is never drawn. A program has a `tile`."""
        device = banned.device
        self._tile = tile
        self._tiles = triton.cdiv(VOCABULARY_SIZE, tile)
        self._groups = self._tiles * (tile // _GROUP)
        self._banned = _bits(banned, self._groups)
        whole = partial(torch.zeros, dtype=torch.int32, device=device)
        wide = partial(torch.zeros, dtype=torch.float32, device=device)
        self._words, self._maxima = whole(rows, self._groups), wide(rows, self._groups)
        self._found, self._least = whole(rows), whole(rows)
        self._stats = wide(rows, self._tiles, _STATS.value)
        self._rounded = wide(rows, self._tiles)
        self._values, self._ids = wide(rows, _MOST_FOUND), whole(rows, _MOST_FOUND)
        self._ranked, self._ranked_ids = wide(rows, MOST_TIED), whole(rows, MOST_TIED)
        self._tokens = whole(rows, dtype=torch.int64)

    def tokens(self, logits: Tensor, rows: Tensor) -> Tensor:
        """One for each row of logits [B, V], i64 [B], as `rows` i32 [.., ROW] say."""
        count, vocabulary = logits.shape
        tiles = (self._tiles, count)
        wide = triton.next_power_of_2(self._groups)
        many = triton.next_power_of_2(self._tiles)
        cut = (vocabulary, self._groups, self._tile, _GROUP)
        launch(_mark, (count,), rows, self._words, self._found, self._groups, wide, num_warps=8)
        launch(
            _survey,
            tiles,
            logits,
            rows,
            self._words,
            self._banned,
            self._maxima,
            self._stats,
            *cut,
            num_warps=8,
        )
        launch(_limit, (count,), rows, self._maxima, self._least, self._groups, wide, num_warps=16)
        launch(
            _gather, tiles,
            logits, rows, self._words, self._banned, self._least, self._stats, self._rounded,
            self._found, self._values, self._ids, *cut, self._tiles, many, _MOST_FOUND,
            num_warps=8,
        )  # fmt: skip
        launch(
            _choose, (count,),
            logits, rows, self._stats, self._rounded, self._found, self._values, self._ids,
            self._ranked, self._ranked_ids, self._tokens,
            vocabulary, self._tiles, many, _MOST_FOUND, num_warps=16,
        )  # fmt: skip
        return self._tokens[:count]


def _bits(ids: Tensor, words: int) -> Tensor:
    """i32 [words]: bit `id % 32` of word `id // 32` is set for each of `ids`."""
    marked = torch.zeros(words * _GROUP, dtype=torch.int64, device=ids.device)
    marked[ids] = 1
    values = (marked.view(words, _GROUP) << torch.arange(_GROUP, device=ids.device)).sum(-1)
    # The topmost bit is the sign of 32.
    return (values - ((values >> (_GROUP - 1)) << _GROUP)).to(torch.int32)
