"""The vocoder's kernels in Triton's interpreter, float32: what they say is what torch says."""

import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tests.rig.triton_on_cpu  # noqa: F401  before any kernel
from agent.vocoder.batched.layout import Capacity, layout_of
from agent.vocoder.flow import guided
from agent.vocoder.hift_layers import Snake
from agent.vocoder.kernels import tiles
from agent.vocoder.kernels.attention import Distances, Memory, attend, attend_by_distance
from agent.vocoder.kernels.launching import Rounding
from agent.vocoder.kernels.product import After, Along, Span, Weights, product
from agent.vocoder.kernels.rows import Ends, advance, carry, norm
from agent.vocoder.kernels.spectrum import join, mean
from tests.rig.unwritten import fill_new_memory

LAYOUT = layout_of(Capacity(6, 20))


@pytest.fixture(autouse=True)
def _seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    torch.set_num_threads(1)
    fill_new_memory(monkeypatch)


def _close(ours: Tensor, theirs: Tensor) -> bool:
    assert ours.shape == theirs.shape
    return bool((ours - theirs).abs().max() <= 2e-5 * theirs.abs().max())


def _plan(streams: int) -> Tensor:
    return torch.zeros(streams, LAYOUT.columns, dtype=torch.long)


# ---- products -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("act", "theirs"), [("gelu", "tanh"), ("silu", ""), ("none", "")])
def test_a_product_adds_gates_and_bends(act: str, theirs: str) -> None:
    rows, weight, bias = torch.randn(2, 21, 40), torch.randn(24, 40), torch.randn(24)
    gate, added = torch.randn(24), torch.randn(2, 21, 24)
    out, acted = torch.empty(2, 21, 24), torch.empty(2, 21, 24)
    after = After(out=out, acted=acted, act=act, gate=gate, added=added)  # type: ignore[arg-type]
    product(rows, Weights.linear(weight, bias), Along(21, 21), after)
    expected = added + gate * F.linear(rows, weight, bias)
    assert _close(out, expected)
    bent = {"gelu": F.gelu(expected, approximate="tanh"), "silu": F.silu(expected)}
    assert _close(acted, bent.get(act, expected))


def test_sequences_may_share_what_they_see_and_leave_room_in_front() -> None:
    rows, weight, bias = torch.randn(2, 5, 80), torch.randn(16, 80), torch.randn(16)
    out = torch.zeros(4, 2 + 5, 16)
    product(rows, Weights.linear(weight, bias), Along(5, 5, share=2), After(out=out, lead=2))
    expected = F.linear(rows, weight, bias).repeat_interleave(2, 0)
    assert _close(out[:, 2:], expected) and not out[:, :2].any()


@pytest.mark.parametrize(("taps", "dilation", "shift"), [(3, 1, -2), (7, 3, -9), (5, 1, 0)])
def test_a_convolution_sees_zeros_where_there_is_no_row(
    taps: int, dilation: int, shift: int
) -> None:
    rows, weight, bias = torch.randn(2, 30, 12), torch.randn(9, 12, taps), torch.randn(9)
    plan = _plan(2)
    plan[:, LAYOUT.frames] = torch.tensor([14, 9])
    plan[:, LAYOUT.tokens] = torch.tensor([0, 3])
    out = torch.empty(2, 30, 9)
    span = Span(plan, count=LAYOUT.frames, first=LAYOUT.tokens, rate=2, extra=-1)
    along = Along(30, 30, shift=shift, dilation=dilation, span=span)
    product(rows, Weights.of_taps([weight.transpose(1, 2)], [bias]), along, After(out=out))
    for stream, (first, count) in enumerate([(0, 27), (3, 17)]):
        there = rows[stream, first : first + count].T
        padded = F.pad(there, (-shift, 30 + taps * dilation))
        expected = F.conv1d(padded[None], weight, bias, dilation=dilation)[0, :, :30].T
        assert _close(out[stream], expected)


def test_rows_may_be_repeated_and_skipped() -> None:
    rows = torch.randn(1, 20, 6)
    weight, bias = torch.randn(4, 6, 5), torch.randn(4)
    weights = Weights.of_taps([weight.transpose(1, 2)], [bias])
    plan = _plan(1)
    plan[:, LAYOUT.frames] = 20
    span = Span(plan, count=LAYOUT.frames)
    raised, lowered = torch.empty(1, 60, 4), torch.empty(1, 7, 4)
    product(rows, weights, Along(60, 20, shift=-4, repeat=3, span=span), After(out=raised))
    doubled = F.pad(rows.transpose(1, 2).repeat_interleave(3, 2), (4, 0))
    assert _close(raised, F.conv1d(doubled, weight, bias).transpose(1, 2))
    product(rows, weights, Along(7, 20, stride=3, shift=-2, span=span), After(out=lowered))
    padded = F.pad(rows.transpose(1, 2), (2, 3))
    assert _close(lowered, F.conv1d(padded, weight, bias, stride=3).transpose(1, 2))


@pytest.mark.parametrize("centred", [False, True])
def test_groups_of_kernels_are_computed_at_once(centred: bool) -> None:
    rows, groups = torch.randn(3, 2, 19, 8), (3, 7, 11)
    weights = [torch.randn(8, 8, taps) for taps in groups]
    biases, alphas = [torch.randn(8) for _ in groups], torch.rand(3, 8) + 0.5
    plan = _plan(2)
    plan[:, LAYOUT.frames] = torch.tensor([19, 11])
    out, acted = torch.empty_like(rows), torch.empty_like(rows)
    span = Span(plan, count=LAYOUT.frames)
    product(
        rows,
        Weights.of_taps([one.transpose(1, 2) for one in weights], biases, 4),
        Along(19, 19, dilation=3, centred=centred, span=span),
        After(out=out, added=rows, acted=acted, act="snake", alpha=alphas),
    )
    for group, taps in enumerate(groups):
        reach = 3 * (taps - 1)
        before = reach // 2 if centred else reach
        for stream, count in enumerate((19, 11)):
            there = rows[group, stream, :count].T
            padded = F.pad(there, (before, reach - before))[None]
            made = F.conv1d(padded, weights[group], biases[group], dilation=3)[0].T
            expected = rows[group, stream, :count] + made
            assert _close(out[group, stream, :count], expected)
            snake = Snake(8)
            snake.alpha.data = alphas[group]
            snake.derive(torch.device("cpu"))
            bent = snake(expected.T).T
            assert _close(acted[group, stream, :count], bent)


@pytest.mark.parametrize(("kernel", "rate"), [(16, 8), (11, 5), (7, 3)])
def test_a_transposed_convolution_is_one_that_gives_rows_side_by_side(
    kernel: int, rate: int
) -> None:
    rows, edge = torch.randn(2, 13, 10), (kernel - rate) // 2
    layer = torch.nn.ConvTranspose1d(10, 4, kernel, rate, padding=edge)
    taps = -(-kernel // rate)
    padded = F.pad(layer.weight.detach(), (0, taps * rate - kernel))
    split = padded.view(10, 4, taps, rate).permute(3, 1, 2, 0).flatten(0, 1)
    weights = Weights.of_taps([split], [layer.bias.detach().repeat(rate)])
    plan = _plan(2)
    plan[:, LAYOUT.frames] = 13
    out = torch.full((2, 13 * rate, 4), torch.nan)
    along = Along(14, 13, dilation=-1, span=Span(plan, count=LAYOUT.frames))
    product(rows, weights, along, After(out=out, behind=edge * 4, rows=13))
    assert _close(out, layer(rows.transpose(1, 2)).detach().transpose(1, 2))


def test_rounded_weights_are_the_nearest_of_tf32() -> None:
    weight = torch.randn(8, 32)
    rounded = Weights.linear(weight, torch.zeros(8)).rounded("tf32")
    assert rounded.rounding == "tf32" and not (rounded.matrix.view(torch.int32) & 0x1FFF).any()
    assert ((rounded.matrix - weight.flatten()).abs() <= 2.0**-11 * weight.flatten().abs()).all()


# ---- rows ---------------------------------------------------------------------------------------


def _ends(store: Tensor, plan: Tensor, share: int) -> Ends:
    return Ends(
        store, store[0].numel(), 0, 2, share, plan, LAYOUT.source, LAYOUT.target, LAYOUT.frames
    )


@pytest.mark.parametrize("with_mish", [False, True])
def test_rows_are_normed_behind_the_ends_of_those_before(with_mish: bool) -> None:
    rows, scale, shift = torch.randn(3, 2, 9, 24), torch.randn(24), torch.randn(24)
    store = torch.randn(7, 2, 2, 24)
    before, plan = store.clone(), _plan(3)
    plan[:, LAYOUT.source] = torch.tensor([1, 2, 3])
    plan[:, LAYOUT.target] = torch.tensor([4, 5, 6])
    plan[:, LAYOUT.frames] = torch.tensor([9, 4, 1])
    out = torch.empty(3, 2, 2 + 9, 24)
    norm(rows, (scale, shift), 1e-5, out, ends=_ends(store, plan, 2), with_mish=with_mish)
    normed = F.layer_norm(rows, (24,), scale, shift, 1e-5)
    expected = torch.cat([before[1:4], F.mish(normed) if with_mish else normed], 2)
    assert _close(out, expected)
    for stream, count in enumerate((9, 4, 1)):
        assert _close(store[4 + stream], expected[stream, :, count : count + 2])
    assert torch.equal(store[:4], before[:4])


def test_rows_are_passed_on_as_they_are_and_wide() -> None:
    rows = torch.randn(2, 5, 12)
    narrow, wide = torch.empty(2, 5, 12, dtype=torch.float16), torch.empty_like(rows)
    norm(rows, None, 0.0, narrow, wide=wide)
    assert torch.equal(narrow, rows.half()) and torch.equal(wide, rows)


def test_ends_are_carried_from_chunk_to_chunk() -> None:
    store, plan = torch.randn(5, 2, 10), _plan(2)
    before = store.clone()
    rows = torch.randn(2, 2 + 6, 10)
    given = rows.clone()
    plan[:, LAYOUT.source] = torch.tensor([1, 2])
    plan[:, LAYOUT.target] = torch.tensor([3, 4])
    plan[:, LAYOUT.frames] = torch.tensor([6, 1])
    carry(rows, _ends(store, plan, 1))
    assert torch.equal(rows, torch.cat([before[1:3], given[:, 2:]], 1))
    assert torch.equal(store[3], rows[0, 6:8]) and torch.equal(store[4], rows[1, 1:3])


def test_the_solver_goes_along_the_guided_velocity() -> None:
    mel, velocity = torch.randn(3, 7, 80), torch.randn(3, 2, 7, 80)
    way = torch.cat([guided(one, 0.7) for one in velocity])
    expected = mel + 0.3 * way
    rounded = torch.empty(3, 7, 80, dtype=torch.float16)
    advance(mel, velocity, rounded, 0.3, 0.7)
    assert _close(mel, expected) and torch.equal(rounded, mel.half())


def test_blocks_are_joined_and_their_mean_taken() -> None:
    hidden, source, alphas = torch.randn(2, 12, 6), torch.randn(2, 13, 6), torch.rand(3, 6) + 0.5
    out, acted = join(hidden, source, alphas, "none")
    mirrored = torch.cat([hidden[:, 1:2], hidden], 1)
    assert _close(out, mirrored + source)
    for one, alpha in zip(acted, alphas, strict=True):
        assert _close(one, out + (alpha * out).sin().square() / (alpha + 1e-9))
    assert _close(mean(acted, 0.1, "none"), F.leaky_relu(acted.mean(0), 0.1))


# ---- tiles --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kilobytes", [64, 99, 163, 227])
@pytest.mark.parametrize(
    ("dtype", "rounding"),
    [(torch.float16, "none"), (torch.float32, "tf32"), (torch.float16, "half")],
)
def test_what_is_on_its_way_fits_into_a_smaller_card_s_fast_memory(
    dtype: torch.dtype, rounding: Rounding, kilobytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "INTERPRETED", False)
    for rows in (1, 100, 200, 400, 1000, 2000, 3200, 400_000):
        for outputs, inputs in ((512, 512), (512, 2048), (1536, 512), (2048, 512), (64, 704)):
            shape = rows, outputs, inputs
            most = tiles.tile_of(shape, dtype, rounding, 1 << 30)
            tile = tiles.tile_of(shape, dtype, rounding, kilobytes << 10)
            stage = (tile.rows + tile.columns) * tile.depth * dtype.itemsize
            assert 1 < tile.stages <= most.stages and tile.stages * stage <= kilobytes << 10
            # It is as many as were best, or as fit.
            assert tile.stages == most.stages or (tile.stages + 1) * stage > kilobytes << 10


# ---- attention ----------------------------------------------------------------------------------

H, D = 2, 16


def _remember(plan: Tensor, stream: int, rows: Sequence[int], fresh: Sequence[int]) -> None:
    columns = LAYOUT.estimator_memory
    plan[stream, columns.turn] = len(rows)
    plan[stream, columns.turn_rows : columns.turn_rows + len(rows)] = torch.tensor(rows)
    plan[stream, columns.fresh_rows : columns.fresh_rows + len(fresh)] = torch.tensor(fresh)


def test_frames_see_their_chunk_their_voice_and_their_turn() -> None:
    columns, plan = LAYOUT.estimator_memory, _plan(2)
    store, voice = torch.randn(6, 30, 2, H * D), torch.randn(6, 25, 2, H * D)
    before = store.clone()
    away = (voice.data_ptr() - store.data_ptr()) // 4
    counts, stretches = (12, 7), ((0, 25, 0, 0), (2, 5, 20, 3))
    rows, fresh = ([3, 4, 29], []), ([8, 9, *[-1] * 10], [20, -1, 21, 22, -1, -1, -1])
    for stream in range(2):
        plan[stream, columns.chunk] = counts[stream]
        plan[stream, [columns.voice, columns.voice_rows]] = torch.tensor([away, 25])
        plan[stream, columns.first : columns.second_count + 1] = torch.tensor(stretches[stream])
        _remember(plan, stream, rows[stream], fresh[stream])
    mixed, norms = torch.randn(2, 2, 12, 3 * H * D), torch.randn(4, D)
    mixed[1, :, counts[1] :] = math.nan  # whatever stands behind a chunk
    out = torch.empty(2, 2, 12, H * D)
    layer = 1
    attend(mixed, norms, Memory(store, columns, plan, H, D), layer, out)
    for stream in range(2):
        first, many, second, more = stretches[stream]
        seen_voice = [*range(first, first + many), *range(second, second + more)]
        for side in range(2):
            place, count = 2 * layer + side, counts[stream]
            query, key, value = mixed[stream, side, :count].view(count, 3, H, D).unbind(1)
            query, key = (
                F.layer_norm(one, (D,), norms[at], norms[2 + at])
                for at, one in enumerate((query, key))
            )
            past = torch.cat([voice[place, seen_voice], before[place, rows[stream]]])
            keys, values = past.view(-1, 2, H, D).unbind(1)
            everything = torch.cat([key, keys]), torch.cat([value, values])
            expected = F.scaled_dot_product_attention(
                *(one.transpose(0, 1) for one in (query, *everything))
            )
            assert _close(out[stream, side, :count], expected.transpose(0, 1).flatten(1))
            kept = [(at, row) for at, row in enumerate(fresh[stream]) if row >= 0]
            for at, row in kept:
                assert _close(store[place, row], torch.stack([key[at], value[at]]).flatten(1))
                before[place, row] = store[place, row]
    assert torch.equal(store, before)


def test_the_encoder_s_rows_see_by_distance_too() -> None:
    columns, plan = LAYOUT.token_memory, _plan(2)
    store, voice = torch.randn(3, 40, 2, H * D), torch.randn(3, 11, 2, H * D)
    before, reach, layer = store.clone(), 64, 2
    rows, counts = ([5, 2, 30, 31], []), (9, 6)
    fresh = ([10, 11, 12, *[-1] * 6], [*range(20, 26)])
    for stream in range(2):
        plan[stream, columns.chunk] = counts[stream]
        away = (voice.data_ptr() - store.data_ptr()) // 4
        plan[stream, [columns.voice, columns.voice_rows]] = torch.tensor([away, 11])
        plan[stream, columns.turn] = len(rows[stream])
        at = columns.turn_rows
        plan[stream, at : at + len(rows[stream])] = torch.tensor(rows[stream], dtype=torch.long)
        at = columns.fresh_rows
        plan[stream, at : at + len(fresh[stream])] = torch.tensor(fresh[stream])
    mixed, biases = torch.randn(2, 9, 3 * H * D), torch.randn(2, H * D)
    mixed[1, counts[1] :] = math.nan  # whatever stands behind a chunk
    table, out = torch.randn(H, 2 * reach + 1, D), torch.empty(2, 9, H * D)
    memory = Memory(store, columns, plan, H, D)
    attend_by_distance(mixed, Distances(table, biases, 30), memory, layer, out)
    for stream, count in enumerate(counts):
        query, key, value = mixed[stream, :count].view(count, 3, H, D).permute(1, 2, 0, 3)
        past = torch.cat([voice[layer], before[layer, rows[stream]]]).view(-1, 2, H, D)
        keys, values = past.permute(1, 2, 0, 3)
        keys, values = torch.cat([keys, key], 1), torch.cat([values, value], 1)
        length = keys.shape[1]
        by_key, by_place = biases.view(2, H, 1, D)
        distance = torch.arange(length - count, length)[:, None] - torch.arange(length)
        scores = (query + by_key) @ keys.transpose(1, 2)
        scores += torch.einsum("hid,hijd->hij", query + by_place, table[:, distance + reach])
        expected = (scores / math.sqrt(D)).softmax(-1) @ values
        assert _close(out[stream, :count], expected.transpose(0, 1).flatten(1))
    assert torch.equal(store[:2], before[:2])
    key = mixed[1, :6].view(6, 3, H * D)[:, 1:]
    assert torch.equal(store[layer, 20:26], key)
    assert torch.equal(store[layer, 10:13], mixed[0, :3].view(3, 3, H * D)[:, 1:])
