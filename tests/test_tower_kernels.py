"""The towers' kernels, in Triton's interpreter and float32: what torch says."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.rig import triton_on_cpu  # noqa: F401


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def i32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def looked(merged: Tensor, heads: int, past: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Attention of rows [T, 3 · W] to each other and to keys and values [H, P, D] before them."""
    query, key, value = (
        part.unflatten(1, (heads, -1)).transpose(0, 1) for part in merged.chunk(3, 1)
    )
    if past is not None:
        key, value = torch.cat([past[0], key], 1), torch.cat([past[1], value], 1)
    return F.scaled_dot_product_attention(query, key, value).transpose(0, 1).flatten(1)


@pytest.mark.parametrize("width", [64, 144])
def test_a_sum_and_its_norm(width: int) -> None:
    from agent.duplex.cuda.tower_kernels import add_norm

    norm = nn.LayerNorm(width, 1e-5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    tokens, added = 3 + noise(5, width), noise(5, width, seed=2)
    total = tokens + added
    out = add_norm(tokens, added, norm)
    assert torch.equal(tokens, total)
    assert torch.allclose(out, norm(total), atol=1e-5)


@pytest.mark.parametrize("width", [16, 72, 128])
def test_packed_sequences_see_themselves_alone(width: int) -> None:
    from agent.duplex.cuda.tower_kernels import Spans, Tiles, attend_spans

    heads, rows, tiles = 2, 160, Tiles(rows=32, block=32)
    merged = noise(rows, 3 * heads * width)
    counts, starts = (70, 0, 33, 5), (0, 70, 75, 140)
    spans = Spans(i32(*starts), i32(*counts))
    out = torch.full((rows, heads * width), torch.nan)
    query, key, value = merged.chunk(3, 1)
    attend_spans(heads, (query, key, value), (spans, spans), (out, spans.starts), 70, tiles)
    written = torch.zeros(rows, dtype=torch.bool)
    for start, count in zip(starts, counts, strict=True):
        here = slice(start, start + count)
        written[here] = True
        if count:
            assert torch.allclose(out[here], looked(merged[here], heads), atol=1e-5)
    assert (out.isnan().all(1) == ~written).all()


def test_the_same_queries_read_every_sequence_and_an_empty_one_gives_zeros() -> None:
    from agent.duplex.cuda.tower_kernels import Spans, Tiles, attend_spans

    queries, keys, values = noise(16, 32), noise(90, 32, seed=2), noise(90, 32, seed=3)
    asked = Spans(i32(0, 0, 0), i32(16, 16, 16))
    known = Spans(i32(0, 50, 50), i32(50, 0, 40))
    out, begin = torch.full((48, 32), torch.nan), i32(0, 16, 32)
    parts, tiles = (queries, keys, values), Tiles(rows=16, block=32)
    attend_spans(1, parts, (asked, known), (out, begin), 16, tiles)
    for place, here in ((0, slice(0, 50)), (2, slice(50, 90))):
        wanted = F.scaled_dot_product_attention(queries, keys[here], values[here])
        assert torch.allclose(out[16 * place : 16 * place + 16], wanted, atol=1e-5)
    assert (out[16:32] == 0).all()


@pytest.mark.parametrize("splits", [1, 3])
def test_streams_see_their_past_and_enter_it(splits: int) -> None:
    from agent.duplex.cuda.tower_kernels import StreamPlaces, attend_streams

    heads, width, frames = 2, 32, 50
    cache = noise(4, heads, 300, width, seed=2), noise(4, heads, 300, width, seed=3)
    before = cache[0].clone(), cache[1].clone()
    merged = noise(4 * frames, 3 * heads * width)
    slots, pasts = (2, -1, 0, 3), (130, 0, 0, 250)
    places = StreamPlaces(i32(*slots), i32(*pasts), frames)
    out = attend_streams(heads, merged, cache, places, splits)
    for stream, (slot, past) in enumerate(zip(slots, pasts, strict=True)):
        rows = merged[stream * frames : stream * frames + frames]
        if slot < 0:
            continue
        seen = before[0][slot, :, :past], before[1][slot, :, :past]
        wanted = looked(rows, heads, seen)
        assert torch.allclose(out[stream * frames : stream * frames + frames], wanted, atol=1e-5)
        fresh = slice(past, past + frames)
        for kept, then, part in zip(cache, before, rows.chunk(3, 1)[1:], strict=True):
            then[slot, :, fresh] = part.unflatten(1, (heads, width)).transpose(0, 1)
            assert torch.equal(kept[slot], then[slot])
    assert torch.equal(cache[0][1], before[0][1]) and torch.equal(cache[1][1], before[1][1])
