"""The kernels of a decoder, in Triton's interpreter: they say what the modules say.

In float32, and where bfloat16 is rounded.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tests.rig.triton_on_cpu  # noqa: F401  before any kernel
from agent.duplex.config import LlmConfig, Numerics, SpeechConfig
from agent.duplex.cuda import static_decoder_linear
from agent.duplex.cuda.kernels import embed, gate, keep, norm
from agent.duplex.cuda.kernels_attention import Heads, Rows, most_splits, splits_for
from agent.duplex.cuda.kernels_linear import Dotted, Extras, Multiplied, dot, multiply
from agent.duplex.cuda.static_decoder import StaticDecoder, plain_rows, tiles_of
from agent.duplex.cuda.static_decoder_linear import Way, merged_weights
from agent.duplex.decoder import Decoder, RmsNorm
from agent.duplex.kv_cache import KvCache, KvStream

CPU = torch.device("cpu")
CLOSE = 1e-5
FLIPPED = 1e-3
"""Of bfloat16, where sums in another order round a few numbers to a neighbour."""

LLM = LlmConfig(
    width=64,
    ffn_width=96,
    layers=2,
    heads=4,
    kv_heads=1,
    head_width=16,
    vocabulary=50,
    max_positions=512,
    rope_theta=1e4,
    norm_eps=1e-6,
)
SPEECH = SpeechConfig(
    width=48,
    ffn_width=64,
    layers=1,
    heads=3,
    kv_heads=3,
    max_positions=256,
    llm_width=8,
    text_tokens=4,
    audio_tokens=4,
    audio_bos=1,
    text_eos=2,
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(5)


def close(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= CLOSE * theirs.abs().max())


def apart(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


def decoder_of(config: LlmConfig | SpeechConfig) -> Decoder:
    is_llm = isinstance(config, LlmConfig)
    decoder = Decoder(config, Numerics(), normed_heads=is_llm, wide_residual=is_llm)
    for parameter in decoder.parameters():
        parameter.requires_grad_(False)
        parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    return decoder


def cache_of(config: LlmConfig | SpeechConfig, slots: int, positions: int) -> KvCache:
    shape = (config.layers, 2, slots, config.kv_heads, positions, config.head_width)
    return KvCache(torch.randn(shape))


def rounded_norm(width: int) -> RmsNorm:
    module = RmsNorm(width, 1e-6).requires_grad_(False)
    nn.init.normal_(module.weight)
    return module.bfloat16()


# ---- small kernels ------------------------------------------------------------------------------


def test_rows_come_from_the_table_or_are_brought() -> None:
    table, brought = torch.randn(7, 40), torch.randn(5, 40)
    ids = torch.tensor([3, -1, 0, -1], dtype=torch.int32)
    expected = torch.stack([table[3], brought[1], table[0], brought[3]])
    assert torch.equal(embed(ids, table, brought), expected)
    rounded = embed(ids, table.bfloat16(), brought.bfloat16())
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, expected.bfloat16().float())


def test_only_the_rows_that_are_asked_for_are_kept() -> None:
    states, kept = torch.randn(6, 40), torch.zeros(4, 40)
    keep(states, torch.tensor([5, -1, 2], dtype=torch.int32), kept)
    assert torch.equal(kept, torch.stack([states[5], kept[1], states[2], kept[3]]))
    assert not kept[1].any() and not kept[3].any()


def test_a_norm_adds_what_is_still_to_be_added() -> None:
    module = RmsNorm(40, 1e-6)
    nn.init.normal_(module.weight)
    tokens, added = torch.randn(3, 40), torch.randn(3, 40)
    assert close(norm(tokens, module.weight, 1e-6), module(tokens))
    total = tokens + added
    assert close(norm(tokens, module.weight, 1e-6, added), module(total))
    assert torch.equal(tokens, total)


@pytest.mark.parametrize("flowing", [torch.float32, torch.bfloat16])
def test_a_norm_adds_in_the_dtype_of_what_flows_and_gives_the_weights(flowing: torch.dtype) -> None:
    module = rounded_norm(40)
    tokens, added = torch.randn(3, 40).to(flowing), torch.randn(3, 40).bfloat16()
    total = tokens + added
    out = norm(tokens, module.weight, 1e-6, added)
    assert torch.equal(tokens, total) and tokens.dtype == flowing
    assert out.dtype == torch.bfloat16 and apart(out, module(total)) < FLIPPED


def test_a_gate_is_the_modules() -> None:
    merged = torch.randn(3, 80)
    assert close(gate(merged), F.silu(merged[:, :40]) * merged[:, 40:])


# ---- projections --------------------------------------------------------------------------------


def through(rows: Tensor, weight: Tensor, *, gates: bool) -> Tensor:
    out = rows @ weight.T
    half = out.shape[1] // 2
    return F.silu(out[:, :half]) * out[:, half:] if gates else out


@pytest.mark.parametrize("gates", [False, True])
@pytest.mark.parametrize("programs", [0, 2])
def test_one_row_goes_through_weights_and_norm(gates: bool, programs: int) -> None:
    module = RmsNorm(128, 1e-6)
    nn.init.normal_(module.weight)
    # Neither the tiles nor the programs divide the outputs.
    weight, row = torch.randn(2 * 22 if gates else 22, 128), torch.randn(1, 128)
    how = Multiplied(outputs=4, inputs=32, warps=4, programs=programs)
    assert close(multiply(row, weight, how, Extras(gates=gates)), through(row, weight, gates=gates))
    extras = Extras(module.weight.detach(), 1e-6, gates)
    expected = through(module(row).detach(), weight, gates=gates)
    assert close(multiply(row, weight, how, extras), expected)


@pytest.mark.parametrize("rows", [1, 5, 16, 19])
@pytest.mark.parametrize("gates", [False, True])
def test_some_rows_go_through_weights(rows: int, gates: bool) -> None:
    weight, given = torch.randn(2 * 22 if gates else 22, 96), torch.randn(rows, 96)
    out = dot(given, weight, Dotted(outputs=16, inputs=32, warps=4, stages=2), gates=gates)
    assert close(out, through(given, weight, gates=gates))


def test_a_projection_joins_what_flows() -> None:
    weight, given = torch.randn(24, 64), torch.randn(3, 64)
    flow = torch.randn(3, 24)
    expected = flow + given @ weight.T
    one = flow[:1].clone()
    dot(given, weight, Dotted(16, 32, 4, 2), onto=flow)
    multiply(given[:1], weight, Multiplied(4, 32, 4), onto=one)
    assert close(flow, expected) and close(one, expected[:1])


def test_one_row_of_float32_goes_through_the_norm_of_bfloat16() -> None:
    module = rounded_norm(128)
    weight, row = torch.randn(22, 128).bfloat16(), torch.randn(1, 128)
    out = multiply(row, weight, Multiplied(4, 32, 4), Extras(module.weight, 1e-6))
    assert out.dtype == torch.bfloat16
    assert apart(out, through(module(row), weight, gates=False)) < FLIPPED


def test_a_projection_is_rounded_and_joins_what_flows_in_float32() -> None:
    weight, given = torch.randn(24, 64).bfloat16(), torch.randn(3, 64).bfloat16()
    flow = 100 * torch.randn(3, 24)
    expected = flow + (given @ weight.T)
    one, rounded = flow[:1].clone(), flow.bfloat16()
    dot(given, weight, Dotted(16, 32, 4, 2), onto=flow)
    multiply(given[:1], weight, Multiplied(4, 32, 4), onto=one)
    assert apart(flow, expected) < FLIPPED / 10 and apart(one, expected[:1]) < FLIPPED / 10
    dot(given, weight, Dotted(16, 32, 4, 2), onto=rounded)
    assert rounded.dtype == torch.bfloat16 and apart(rounded, expected) > FLIPPED


def test_weights_come_together_once_and_the_modules_see_them() -> None:
    linears = [nn.Linear(8, count, bias=False) for count in (4, 6)]
    before = torch.cat([linear.weight.detach() for linear in linears])
    whole = merged_weights(linears)
    assert torch.equal(whole, before)
    whole[5] = 7.0
    assert bool((linears[1].weight[1] == 7.0).all())
    assert merged_weights(linears).data_ptr() == whole.data_ptr()
    assert torch.equal(merged_weights(linears), whole)


# ---- rows ---------------------------------------------------------------------------------------


def test_streams_are_cut_into_tiles() -> None:
    assert tiles_of([1, 9, 4], 4) == [(0, 1), (1, 4), (5, 4), (9, 1), (10, 4)]
    assert tiles_of([], 4) == []


def test_few_tiles_are_cut_into_many_splits_and_many_into_few() -> None:
    heads = Heads(32, 8, 128)
    assert splits_for([1], heads) == 32
    assert splits_for([1] * 8, heads) == 4
    assert splits_for([1] * 64, heads) == 2
    assert splits_for([16] * 32, heads) == 1
    for counts in ([1], [16] * 5, [1] * 8, [1] * 60 + [16] * 2, [16] * 32):
        assert splits_for(counts, heads) <= most_splits(sum(counts), len(counts), heads)


# ---- the decoder --------------------------------------------------------------------------------

Streams = Sequence[tuple[int, int, int]]
"""Slot, length and how many positions come, each."""


def eagerly(decoder: Decoder, cache: KvCache, tokens: Tensor, streams: Streams) -> Tensor:
    states, row = [], 0
    for slot, length, count in streams:
        places = cache.places([KvStream(slot, length)], count)
        states.append(decoder(tokens[None, row : row + count], cache, places)[0])
        row += count
    return torch.cat(states)


def rows_of(static: StaticDecoder, streams: Streams, splits: int = 3) -> Rows:
    slots, lengths, counts = zip(*streams, strict=True)
    rows = plain_rows(slots, lengths, counts, static.heads, CPU)
    return replace(rows, splits=torch.tensor([splits], dtype=torch.int32))


MIXTURES: list[Streams] = [
    [(0, 0, 1)],
    [(2, 299, 1)],
    [(1, 126, 2), (3, 5, 2)],
    [(0, 64, 4)],
    [(3, 130, 3), (0, 0, 18), (1, 63, 1)],
    [(1, 64, 9), (0, 65, 1)],
]


@pytest.mark.parametrize("streams", MIXTURES)
@pytest.mark.parametrize("config", [LLM, SPEECH], ids=["llm", "speech"])
def test_any_mixture_of_rows_is_each_stream_alone(
    config: LlmConfig | SpeechConfig, streams: Streams
) -> None:
    decoder, cache = decoder_of(config), cache_of(config, 4, 300)
    ours = KvCache(cache.tensor.clone())
    tokens = torch.randn(sum(count for _, _, count in streams), config.width)
    expected = eagerly(decoder, cache, tokens, streams)
    static = StaticDecoder(decoder, ours)
    states = static.forward(tokens.clone(), rows_of(static, streams))
    assert close(states, expected)
    assert close(ours.tensor, cache.tensor)


def test_steps_follow_each_other() -> None:
    decoder, cache = decoder_of(LLM), cache_of(LLM, 3, 200)
    ours = KvCache(cache.tensor.clone())
    static = StaticDecoder(decoder, ours)
    for step in range(3):
        streams = [(2, 127 + step, 1), (0, step, 1)]
        tokens = torch.randn(2, LLM.width)
        expected = eagerly(decoder, cache, tokens, streams)
        rows = rows_of(static, streams, splits=2 + step)
        rows = replace(rows, tiles=torch.cat([rows.tiles, torch.zeros(1, 2, dtype=torch.int32)]))
        assert close(static.forward(tokens.clone(), rows), expected)
    assert close(ours.tensor, cache.tensor)


def test_without_a_word_on_splits_all_are_used() -> None:
    decoder, cache = decoder_of(SPEECH), cache_of(SPEECH, 1, 80)
    ours, tokens = KvCache(cache.tensor.clone()), torch.randn(1, SPEECH.width)
    expected = eagerly(decoder, cache, tokens, [(0, 79, 1)])
    static = StaticDecoder(decoder, ours)
    rows = plain_rows([0], [79], [1], static.heads, CPU)
    assert rows.splits is None and close(static.forward(tokens, rows), expected)


@pytest.mark.parametrize("used", [1, 5])
def test_rows_of_nobody_and_empty_tiles_leave_all_as_it_is(used: int) -> None:
    decoder, cache = decoder_of(LLM), cache_of(LLM, 3, 200)
    ours = KvCache(cache.tensor.clone())
    tokens = torch.randn(7, LLM.width)
    expected = eagerly(decoder, cache, tokens, [(2, 150, 4)])
    static = StaticDecoder(decoder, ours)
    rows = rows_of(static, [(2, 150, 4)])
    wide = Rows(
        torch.cat([rows.slots, torch.full((3,), -1, dtype=torch.int32)]),
        torch.cat([rows.positions, torch.zeros(3, dtype=torch.int32)]),
        torch.cat([rows.tiles, torch.zeros(4, 2, dtype=torch.int32)]),
        torch.tensor([used], dtype=torch.int32),
    )
    states = static.forward(tokens.clone(), wide)
    assert close(states[:4], expected[:4]) and states.isfinite().all()
    assert close(ours.tensor, cache.tensor)


def test_a_quantised_projection_is_called() -> None:
    class Halved(nn.Module):
        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, rows: Tensor) -> Tensor:
            return self.linear(rows) / 2

    decoder, cache = decoder_of(replace(LLM, layers=1)), cache_of(LLM, 1, 64)
    layer = decoder.layers[0]
    for name in ("k_proj", "o_proj"):
        setattr(layer.self_attn, name, Halved(getattr(layer.self_attn, name)))
    for name in ("up_proj", "down_proj"):
        setattr(layer.mlp, name, Halved(getattr(layer.mlp, name)))
    ours, tokens = KvCache(cache.tensor.clone()), torch.randn(3, LLM.width)
    expected = eagerly(decoder, cache, tokens, [(0, 10, 3)])
    static = StaticDecoder(decoder, ours)
    assert close(static.forward(tokens.clone(), rows_of(static, [(0, 10, 3)])), expected)


OF_BRANCHES = 2e-3
"""More than rounding what each layer adds makes of this: 0.0006 at most, as measured. Rounding the
sums as well makes 0.0038 at least."""
STEPS = [(0, 20, 1), (1, 33, 1), (2, 64, 1), (3, 5, 1)]


@pytest.mark.parametrize(
    ("way", "streams"),
    [
        (None, STEPS),
        ("called", STEPS),
        (Multiplied(8, 32, 4), STEPS[2:3]),
        (Dotted(16, 32, 4, 2), STEPS),
        (Dotted(16, 32, 4, 2), [(0, 20, 2), (1, 3, 7)]),
    ],
    ids=["torch", "called", "multiplied", "dotted", "dotted-long"],
)
def test_in_bfloat16_no_sum_of_the_layers_is_rounded(
    way: Way | Literal["called"], streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(LLM, layers=6)
    decoder, cache = decoder_of(config).bfloat16(), cache_of(config, 4, 70)
    if way == "called":
        call_projections(decoder)
    monkeypatch.setattr(static_decoder_linear, "way_of", lambda *_, **__: way)
    theirs = KvCache(cache.tensor.bfloat16())
    kept = theirs.tensor.clone()
    tokens = (4 * torch.randn(sum(count for _, _, count in streams), config.width)).bfloat16()
    expected = eagerly(decoder, theirs, tokens, streams)
    errors = []
    for flow in (tokens.float(), tokens.clone()):
        static = StaticDecoder(decoder, KvCache(kept.clone()))
        states = static.forward(flow, rows_of(static, streams))
        assert states.dtype == expected.dtype == torch.bfloat16
        errors.append(apart(states, expected))
    assert errors[0] < OF_BRANCHES < errors[1]


def call_projections(decoder: Decoder) -> None:
    """From now on they are modules of a kind that nothing is known of."""
    for layer in decoder.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, module in list(part.named_children()):
                if isinstance(module, nn.Linear):
                    setattr(part, name, nn.Sequential(module))
