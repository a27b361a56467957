# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
# ruff: noqa: PLR0913, PLR0917
"""The draw of a speech token, a program a conversation: `speech_distribution` as one kernel.

The token goes where the penalty finds it, and its embedding to where the next step begins.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from agent.duplex.cuda.random_draws import exponential
from agent.duplex.cuda.speech_lane_few_kernels import begin
from agent.duplex.cuda.speech_lane_rows import (
    BANNED,
    KEYS,
    KNOWN,
    LINE,
    MOST_REMEMBERED,
    PENALTY,
    ROW,
    SLOT,
    START,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    WINDOW,
)
from agent.duplex.sampling import FEWEST_SPEECH_TOKENS
from agent.duplex.speech_lm import UNIT_SPEECH_TOKENS
from agent.torch_parts.kernels.launching import launch

_SLOT, _START, _BANNED, _KNOWN = map(tl.constexpr, (SLOT, START, BANNED, KNOWN))
_WINDOW, _TOP_K, _TEMPERATURE = map(tl.constexpr, (WINDOW, TOP_K, TEMPERATURE))
_PENALTY, _TOP_P, _KEYS, _LINE, _ROW = map(tl.constexpr, (PENALTY, TOP_P, KEYS, LINE, ROW))
_REMEMBERED = tl.constexpr(MOST_REMEMBERED)
_TOKENS = tl.constexpr(UNIT_SPEECH_TOKENS)
_FEWEST = tl.constexpr(FEWEST_SPEECH_TOKENS)
_KEY_BITS = tl.constexpr(32)


@triton.jit
def _float(row, which):
    return tl.load(row + which).to(tl.float32, bitcast=True)


@triton.jit
def _order(values):
    """Whole numbers, i32, in the order of the f32."""
    bits = values.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _between(low, high):
    """Their mean, rounded down, whatever their sum is."""
    return (low & high) + ((low ^ high) >> 1)


@triton.jit
def _penalised(values, column, row, known):
    """Weakened by how often each came among the newest tokens: each time once more."""
    window = tl.load(row + _WINDOW)
    times = tl.zeros(values.shape, tl.float32)
    for back in tl.static_range(1, _REMEMBERED + 1):
        counts = (back <= window) & (back <= known)
        one = tl.load(row + _LINE + known - back, mask=counts, other=-1)
        times += (column == one).to(tl.float32)
    strength = tl.exp2(times * _float(row, _PENALTY))
    return tl.where(values < 0, values * strength, values / strength)


@triton.jit
def _shares(values):
    share = tl.exp(values - tl.max(values, 0))
    return share / tl.sum(share, 0)


@triton.jit
def _within(values, column, top_p):
    """The likeliest that make up `top_p`, and the few that always stay; equal ones by id."""
    order, share = _order(values), _shares(values)
    low = tl.min(order, 0) - 1
    high = tl.max(order, 0)
    # The least value with less than top_p before it: above `low`, and `high` at most.
    for _ in range(_KEY_BITS + 1):
        middle = _between(low, high)
        enough = tl.sum(tl.where(order > middle, share, 0.0), 0) < top_p
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle)
    before = tl.sum(tl.where(order > high, share, 0.0), 0)
    tied = order == high
    earlier = tl.cumsum(tied.to(tl.int32), 0) - 1
    kept = (order > high) | (tied & (before + earlier * share < top_p))
    left = values
    for _ in tl.static_range(_FEWEST):
        best = column == tl.argmax(left, 0)
        kept |= best
        left = tl.where(best, -float("inf"), left)
    return tl.where(kept, values, -float("inf"))


@triton.jit
def _among(values, inside, count):
    """The `count` largest, with all that tie with the last of them."""
    order = tl.where(inside, _order(values), -0x80000000)
    low = tl.min(_order(values), 0)
    high = tl.max(order, 0) + 1
    # The largest number that so many reach: `low` at least, below `high`.
    for _ in range(_KEY_BITS + 1):
        middle = _between(low, high)
        enough = tl.sum((order >= middle).to(tl.int32), 0) >= count
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    return tl.where(order >= low, values, -float("inf"))


@triton.jit
def _weights(logits, column, row, known, AUDIO: tl.constexpr):
    inside = column < AUDIO
    values = tl.load(logits + column, mask=inside, other=-float("inf")).to(tl.float32)
    values = _penalised(values / _float(row, _TEMPERATURE), column, row, known)
    values = tl.where(column == tl.load(row + _BANNED), -float("inf"), values)
    if known > 0:
        top_p = _float(row, _TOP_P)
        if top_p < 1:
            values = _within(values, column, top_p)
        top_k = tl.load(row + _TOP_K)
        if top_k > 0:
            values = _among(values, inside, tl.maximum(top_k, _FEWEST))
    return _shares(values)


@triton.jit
def _draw(
    logits, rows, codes, tokens, next_input, slots, positions, step, most_positions,
    AUDIO: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    begin(AHEAD)
    number = tl.program_id(0).to(tl.int64)
    row = rows + number * _ROW
    column = tl.arange(0, BLOCK)
    known = tl.load(row + _KNOWN) + step
    weights = _weights(logits + number * AUDIO, column, row, known, AUDIO)
    late = exponential(tl.load(row + _KEYS + step), column)
    race = tl.where(column < AUDIO, weights / late, -1.0)
    # Whatever the logits were, there is such a token.
    token = tl.minimum(tl.argmax(race, 0), AUDIO - 1)
    tl.store(row + _LINE + known, token)
    tl.store(tokens + number * _TOKENS + step, token)
    position = tl.load(row + _START) + step
    fits = position < most_positions
    tl.store(positions + number, tl.where(fits, position, 0))
    tl.store(slots + number, tl.where(fits, tl.load(row + _SLOT), -1))
    place = tl.arange(0, WIDE)
    code = tl.load(codes + token.to(tl.int64) * WIDTH + place, mask=place < WIDTH)
    tl.store(next_input + number * WIDTH + place, code, mask=place < WIDTH)


@dataclass(frozen=True, slots=True)
class Drawn:
    """Where a step's tokens go, for the rows in the buffers' order."""

    tokens: Tensor  # i32 [B, tokens of a unit]
    embeddings: Tensor  # [B, W]: the next step's input
    slots: Tensor  # i32 [B], its place in the cache: below 0 where there is none
    positions: Tensor  # i32 [B]


def draw_speech(
    logits: Tensor,
    rows: Tensor,
    codes: Tensor,
    drawn: Drawn,
    place: tuple[int, int],
    ahead: int = 0,
) -> None:
    """One token each from logits [B, audio tokens], as `rows` i32 [B, ROW] say; launches alone.

    `codes` [audio tokens, W] are their embeddings; `place` is the number of the step and how many
    positions the cache has. `ahead` as in `speech_lane_few_kernels`.
    """
    audio, width = codes.shape
    launch(
        _draw, (len(logits),),
        logits, rows, codes, drawn.tokens, drawn.embeddings, drawn.slots, drawn.positions, *place,
        AUDIO=audio, BLOCK=triton.next_power_of_2(audio),
        WIDTH=width, WIDE=triton.next_power_of_2(width), AHEAD=ahead,
        num_warps=16, launch_pdl=ahead > 0,
    )  # fmt: skip
