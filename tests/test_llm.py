"""The LLM over its cache: in pieces = in one go, truncated = never fed, company changes nothing."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from agent.duplex.config import Numerics
from agent.duplex.decoder import Decoder, RmsNorm, Rotary
from agent.duplex.kv_cache import KvCache, KvStream, turned
from agent.duplex.llm import Llm
from agent.errors import ContextOverflow
from tests.rig import tiny_model as tiny
from tests.rig.tiny_mind import runner, tiny_mind

CLOSE = 1e-5


@pytest.fixture(scope="module")
def llm() -> Llm:
    return tiny_mind().llm


def words(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 150_000, (count,), generator=generator).tolist()


def cache_of(slots: int, positions: int = 64) -> KvCache:
    return runner(slots=slots, context_tokens=positions).slots.llm


def read(llm: Llm, ids: list[int], stream: KvStream, cache: KvCache) -> Tensor:
    return llm.read(llm.embed(ids)[None], [stream], cache)[0]


def same(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= CLOSE * theirs.abs().max())


@pytest.mark.parametrize("sizes", [[20], [1] * 20, [7, 1, 12]])
def test_in_pieces_is_in_one_go(llm: Llm, sizes: list[int]) -> None:
    ids, cache = words(20), cache_of(2)
    whole = read(llm, ids, KvStream(0), cache)
    stream = KvStream(1)
    pieces = []
    for size in sizes:
        pieces.append(read(llm, ids[stream.length : stream.length + size], stream, cache))
    assert stream.length == 20
    assert same(torch.cat(pieces), whole)
    assert same(cache.tensor[:, :, 1, :, :20], cache.tensor[:, :, 0, :, :20])


def test_truncated_is_never_fed(llm: Llm) -> None:
    cache = cache_of(2)
    stream, other = KvStream(0), KvStream(1)
    read(llm, words(10), stream, cache)
    read(llm, words(9, seed=1), stream, cache)
    stream.length = 10
    read(llm, words(10), other, cache)
    after = words(5, seed=2)
    assert same(read(llm, after, stream, cache), read(llm, after, other, cache))


def test_a_conversation_is_the_same_in_any_company_and_slot(llm: Llm) -> None:
    pasts = [words(count, seed=count) for count in (9, 3, 17, 9)]
    pasts[3] = pasts[0]
    alone_cache, cache = cache_of(1), cache_of(5)
    alone, ours = KvStream(0), [KvStream(slot) for slot in (0, 1, 2, 3)]
    read(llm, pasts[0], alone, alone_cache)
    for past, stream in zip(pasts, ours, strict=True):
        read(llm, past, stream, cache)
    for size in (6, 1, 1):
        ids = words(size, seed=size + 40)
        expected = read(llm, ids, alone, alone_cache)
        batch = llm.embed(ids).expand(4, -1, -1)
        states = llm.read(batch, ours, cache)
        assert same(states[0], expected) and same(states[3], expected)
        assert torch.equal(states[0], states[3])
    assert not cache.tensor[:, :, 4].any()


def test_slots_apart_and_static_shapes_change_nothing(llm: Llm) -> None:
    cache = cache_of(4)
    streams = [KvStream(3), KvStream(1)]
    for stream in streams:
        read(llm, words(4 + stream.slot), stream, cache)
    expected = [read(llm, words(6, 5), KvStream(s.slot, s.length), cache) for s in streams]
    batch = llm.embed(words(6, 5)).expand(2, -1, -1)
    states = llm.read(batch, streams, cache, whole_cache=True)
    assert same(states[0], expected[0]) and same(states[1], expected[1])
    assert cache.places(streams, 1, whole=True).mask.shape == (2, 1, 1, cache.positions)


def test_a_full_slot_says_so_and_nothing_is_written(llm: Llm) -> None:
    cache = cache_of(1, positions=8)
    stream = KvStream(0)
    read(llm, words(6), stream, cache)
    before = cache.tensor.clone()
    with pytest.raises(ContextOverflow, match="6 positions are taken and 3 more"):
        read(llm, words(3), stream, cache)
    assert stream.length == 6 and torch.equal(cache.tensor, before)
    read(llm, words(2), stream, cache)


def test_what_moves_is_as_if_it_had_been_read_there(llm: Llm) -> None:
    # Keys of the first layer depend on nothing but the token and its place.
    cache, ids = cache_of(2), words(6)
    stream = KvStream(0)
    read(llm, words(10, seed=1) + ids, stream, cache)
    cache.move(stream, start=10, to=3, frequencies=llm.model.rotary.frequencies)
    read(llm, words(3, seed=1) + ids, KvStream(1), cache)
    assert stream.length == 9
    assert same(cache.tensor[0, :, 0, :, :9], cache.tensor[0, :, 1, :, :9])
    cache.move(stream, start=3, to=20, frequencies=llm.model.rotary.frequencies)
    read(llm, words(20, seed=1) + ids, KvStream(1), cache)
    assert same(cache.tensor[0, :, 0, :, 20:26], cache.tensor[0, :, 1, :, 20:26])


def test_a_move_beyond_the_slot_is_refused(llm: Llm) -> None:
    cache, stream = cache_of(1, positions=8), KvStream(0, 6)
    with pytest.raises(ContextOverflow):
        cache.move(stream, start=2, to=5, frequencies=llm.model.rotary.frequencies)


def test_a_copy_can_be_put_back_into_another_slot(llm: Llm) -> None:
    cache = cache_of(2)
    stream = KvStream(0)
    read(llm, words(7), stream, cache)
    kept = cache.copy(stream, torch.device("cpu"))
    expected = read(llm, words(3, 1), stream, cache)
    moved = KvStream(1)
    cache.put_back(moved, kept)
    assert moved.length == kept.length == 7
    assert same(read(llm, words(3, 1), moved, cache), expected)


def test_turning_keys_twice_is_turning_them_by_both() -> None:
    keys, frequencies = torch.randn(3, 5, 8), torch.tensor([1.0, 0.3, 0.1, 0.01])
    once = turned(turned(keys, frequencies * 3), frequencies * -5)
    assert torch.allclose(once, turned(keys, frequencies * -2), atol=1e-5)


def test_rotary_frequencies_can_be_rounded() -> None:
    exact = Rotary(128, 1e6, "float32").frequencies[:4].tolist()
    rounded = Rotary(128, 1e6, "bfloat16")
    assert exact == pytest.approx([1, 0.8058, 0.6494, 0.5233], abs=1e-4)
    assert rounded.frequencies[:4].tolist() == pytest.approx([1, 0.8047, 0.6484, 0.5234], abs=1e-4)
    assert rounded.exact_frequencies[:4].tolist() == exact


def test_rounded_frequencies_change_what_is_far() -> None:
    positions = torch.tensor([[0, 4000]])
    exact = Rotary(128, 1e6, "float32").at(positions, torch.float32)[0]
    rounded = Rotary(128, 1e6, "bfloat16").at(positions, torch.float32)[0]
    assert torch.equal(exact[0, 0, 0], rounded[0, 0, 0])
    assert (exact - rounded).abs().max() > 0.5


def test_a_norm_rounds_before_it_weights() -> None:
    norm = RmsNorm(4, 1e-6)
    norm.weight.data = torch.tensor([1.01, 1.01, 1.01, 1.01]).bfloat16()
    tokens = torch.tensor([1.0, 2.0, 3.0, 4.0]).bfloat16()
    scaled = (tokens.float() / (7.5 + 1e-6) ** 0.5).bfloat16()
    assert torch.equal(norm(tokens), norm.weight * scaled)


def test_bfloat16_runs_and_stays_near() -> None:
    config = replace(tiny.tiny_config().llm, vocabulary=64)
    exact = Llm(config, Numerics())
    for name, parameter in exact.named_parameters():
        parameter.data = tiny.recipe().tensor(name, tuple(parameter.shape), 1)
    half = copy.deepcopy(exact).bfloat16()
    ids, cache = [3, 1, 4, 1, 5, 9, 2, 6], cache_of(1)
    expected = read(exact, ids, KvStream(0), cache)
    rough = read(half, ids, KvStream(0), KvCache(cache.tensor.bfloat16()))
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - expected).abs().max() < 0.1 * expected.abs().max()
    assert half.logits(rough[-1]).shape == (64,)


def test_of_many_layers_a_residual_in_float32_is_nearer_to_the_truth() -> None:
    small = {"width": 64, "ffn_width": 128, "heads": 2, "kv_heads": 1, "head_width": 32}
    config = replace(tiny.tiny_config().llm, vocabulary=64, layers=36, **small)
    exact = Llm(config, Numerics()).requires_grad_(False)
    torch.manual_seed(1)
    for parameter in exact.parameters():
        noise = torch.randn_like(parameter)
        wide = noise * parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 1 + 0.1 * noise
        parameter.copy_(wide.bfloat16())
    half = copy.deepcopy(exact).bfloat16()
    narrow = Decoder(config, Numerics(), normed_heads=True).bfloat16()
    narrow.load_state_dict(half.model.state_dict(), strict=False)
    tokens = torch.randn(1, 24, config.width).bfloat16()
    truth = deep_states(exact.model, tokens.float())
    assert torch.equal(deep_states(narrow.float(), tokens.float()), truth)
    error, rounded = (
        float((deep_states(decoder, tokens).float() - truth).norm() / truth.norm())
        for decoder in (half.model, narrow.bfloat16())
    )
    # As measured: 0.0096 against 0.0180.
    assert error < 0.75 * rounded


@torch.no_grad()
def deep_states(decoder: Decoder, tokens: Tensor) -> Tensor:
    shape = (36, 2, 1, 1, tokens.shape[1], 32)
    cache = KvCache(torch.zeros(shape, dtype=tokens.dtype))
    states: Tensor = decoder(tokens, cache, cache.places([KvStream(0)], tokens.shape[1]))
    return states
