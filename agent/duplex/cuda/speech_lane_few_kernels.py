# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,assignment"
# ruff: noqa: PLR0913, PLR0915, PLR0917, RUF005
"""The speech LM's layers for a handful of rows: five launches a layer, each hardly longer than
reading its weights takes.

What is known before the launch before has ended is asked for at once: a program's weights go to
its registers, an attention's keys and values likewise, while it waits. A projection lets the next
launch come even then (`EARLY`), an attention only when it need not wait any more (`LATE`): so
whoever begins knows that all before the last attention is written, and with it what was cached a
step ago. Every warp has all numbers of a row of a weight, and so the row's norm too: no barriers.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

ALONE, EARLY, LATE = 0, 1, 2
_EARLY, _LATE = tl.constexpr(EARLY), tl.constexpr(LATE)


@triton.jit
def begin(AHEAD: tl.constexpr):
    """Behind this, what the launch before wrote can be read."""
    if AHEAD == _EARLY:
        gdc_launch_dependents()
        gdc_wait()
    if AHEAD == _LATE:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def _parts(pointers, CHUNK: tl.constexpr, CHUNKS: tl.constexpr):
    """What lies there, and at every further chunk."""
    out = ()
    for chunk in tl.static_range(CHUNKS):
        out = out + (tl.load(pointers + chunk * CHUNK),)
    return out


@triton.jit
def _gated(gate, up, dtype: tl.constexpr):
    """SiLU of the one times the other, rounded as torch rounds them."""
    wide = gate.to(dtype).to(tl.float32)
    opened = (wide / (1.0 + tl.exp(-wide))).to(dtype).to(tl.float32)
    return opened * up.to(dtype).to(tl.float32)


@triton.jit
def project(
    tokens, weight, norm_weight, out, outputs, epsilon,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, TALL: tl.constexpr,
    NORMS: tl.constexpr, GATES: tl.constexpr, ADDS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """`out` [ROWS, outputs] of `tokens` [ROWS, CHUNKS · CHUNK], normed before where it NORMS.

    `weight` is [outputs, width], twice as tall where it GATES. Where it ADDS, `out` holds what is
    added to.
    """
    width: tl.constexpr = CHUNK * CHUNKS
    one = tl.program_id(0) * TALL + tl.arange(0, TALL)
    there = one < outputs
    k = tl.arange(0, CHUNK)[None, :] + tl.zeros([TALL, 1], tl.int32)
    at = weight + tl.where(there, one, 0)[:, None] * width + k
    weights = _parts(at, CHUNK, CHUNKS)
    ups = weights
    norms = weights
    if GATES:
        ups = _parts(at + outputs * width, CHUNK, CHUNKS)
    if NORMS:
        norms = _parts(norm_weight + k, CHUNK, CHUNKS)
    begin(AHEAD)
    dtype: tl.constexpr = out.dtype.element_ty
    results = ()
    for row in tl.static_range(ROWS):
        values = _parts(tokens + row * width + k, CHUNK, CHUNKS)
        total = tl.zeros([TALL, CHUNK], tl.float32)
        more = total
        squares = total
        for chunk in tl.static_range(CHUNKS):
            token = values[chunk].to(tl.float32)
            if NORMS:
                squares += token * token
                token *= norms[chunk].to(tl.float32)
            total += weights[chunk].to(tl.float32) * token
            if GATES:
                more += ups[chunk].to(tl.float32) * token
        whole = tl.sum(total, 1)
        scale = 1.0
        if NORMS:
            scale = tl.rsqrt(tl.sum(squares, 1) / width + epsilon)
            whole *= scale
        if GATES:
            whole = _gated(whole, tl.sum(more, 1) * scale, dtype)
        results = results + (whole,)
    for row in tl.static_range(ROWS):
        whole = results[row]
        target = out + row * outputs + one
        if ADDS:
            before = tl.load(target, mask=there, other=0.0).to(tl.float32)
            whole = before + whole.to(dtype).to(tl.float32)
        tl.store(target, whole.to(dtype), mask=there)


# ---- attention ----------------------------------------------------------------------------------


@triton.jit
def _turned(source, cosine, sine, column, WIDTH: tl.constexpr):
    """A head [D] at its position, its first half paired with its second, each product rounded."""
    half: tl.constexpr = WIDTH // 2
    dtype: tl.constexpr = source.dtype.element_ty
    straight = tl.load(source + column).to(tl.float32)
    across = tl.load(source + (column + half) % WIDTH).to(tl.float32)
    across = (across * sine).to(dtype).to(tl.float32)
    straight = (straight * cosine).to(dtype).to(tl.float32)
    return (straight + tl.where(column < half, -across, across)).to(dtype)


@triton.jit
def _block(keys, values, cached, at, first, past, WIDTH: tl.constexpr):
    """Keys and values [BLOCK, D] from position `first` on; past the nearest cache, which may know
    them as they were."""
    there = (first + at < past)[:, None]
    further = cached + first * WIDTH
    return (
        tl.load(keys + further, mask=there, other=0.0, cache_modifier=".cg"),
        tl.load(values + further, mask=there, other=0.0, cache_modifier=".cg"),
    )


@triton.jit
def attend_few(
    merged, found, keys, values, slots, starts, cosines, sines,
    row_stride, step, most_positions, slot_stride, head_stride, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """What a head of a row finds in what is cached and at its own position, whose key and value it
    caches: `found` [rows, H·D] from `merged` [rows, (H + 2·KV)·D].

    A row's position is its start and the `step`: nothing that a launch before writes, so that what
    is cached can be asked for early. `scale` has the logarithm's base in it, for powers of 2.
    """
    head, row = tl.program_id(0), tl.program_id(1)
    group: tl.constexpr = HEADS // KV_HEADS
    half: tl.constexpr = WIDTH // 2
    column, at = tl.arange(0, WIDTH), tl.arange(0, BLOCK)
    slot = tl.load(slots + row * row_stride).to(tl.int64)
    past = tl.load(starts + row * row_stride) + step
    there = (slot >= 0) & (past < most_positions)
    past = tl.where(there, past, 0)
    cosine = tl.load(cosines + past * half + column % half).to(tl.float32)
    sine = tl.load(sines + past * half + column % half).to(tl.float32)
    place = tl.maximum(slot, 0) * slot_stride + head // group * head_stride
    cached = place + at[:, None] * WIDTH + column[None, :]
    key_block, value_block = _block(keys, values, cached, at, 0, past, WIDTH)
    key_block1, value_block1 = _block(keys, values, cached, at, BLOCK, past, WIDTH)
    key_block2, value_block2 = _block(keys, values, cached, at, 2 * BLOCK, past, WIDTH)
    begin(AHEAD)
    source = merged + row * (HEADS + 2 * KV_HEADS) * WIDTH
    query = _turned(source + head * WIDTH, cosine, sine, column, WIDTH).to(tl.float32) * scale
    key_head = source + (HEADS + head // group) * WIDTH
    key = _turned(key_head, cosine, sine, column, WIDTH)
    value = tl.load(key_head + KV_HEADS * WIDTH + column)
    writes = there & (head % group == 0) & (column < WIDTH)
    tl.store(keys + place + past * WIDTH + column, key, mask=writes)
    tl.store(values + place + past * WIDTH + column, value, mask=writes)
    # Each place of a block keeps its own account, so that blocks need no word from each other.
    largest = tl.full([BLOCK], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    mixed = tl.zeros([BLOCK, WIDTH], tl.float32)
    for first in range(0, past, BLOCK):
        score = tl.sum(key_block.to(tl.float32) * query[None, :], 1)
        score = tl.where(first + at < past, score, -float("inf"))
        now = tl.maximum(largest, score)
        base = tl.where(now == -float("inf"), 0.0, now)
        fade, likely = tl.exp2(largest - base), tl.exp2(score - base)
        total = total * fade + likely
        mixed = mixed * fade[:, None] + likely[:, None] * value_block.to(tl.float32)
        largest = now
        key_block, value_block = key_block1, value_block1
        key_block1, value_block1 = key_block2, value_block2
        ahead = first + 3 * BLOCK
        key_block2, value_block2 = _block(keys, values, cached, at, ahead, past, WIDTH)
    own = tl.sum(query * key.to(tl.float32), 0)
    top = tl.maximum(tl.max(largest, 0), own)
    weight, own = tl.exp2(largest - top), tl.exp2(own - top)
    whole = tl.sum(total * weight, 0) + own
    out = tl.sum(mixed * weight[:, None], 0) + own * value.to(tl.float32)
    tl.store(
        found + (row * HEADS + head) * WIDTH + column, (out / whole).to(found.dtype.element_ty)
    )
