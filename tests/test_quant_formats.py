"""Weights of 4 and 8 bits: how they lie, how far off they are, and what AutoAWQ wrote."""

import pytest
import torch
from torch import Tensor

from agent.duplex import quant_awq
from agent.duplex.quant_formats import (
    join_steps,
    pack_codes,
    round_fp8,
    round_int4,
    round_int8,
    split_steps,
    unpack_codes,
    widen_fp8,
    widen_int4,
    widen_int8,
)
from agent.errors import CheckpointError

FLOAT32 = torch.float32


def gaussian(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(height, width, generator=generator) * 0.02


def apart(ours: Tensor, true: Tensor) -> float:
    return float((ours - true).norm() / true.norm())


# ---- how they lie -------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [128, 256, 384, 1024])
def test_packed_codes_come_back(width: int) -> None:
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 16, (7, width), dtype=torch.uint8, generator=generator)
    packed = pack_codes(codes)
    assert packed.shape == (7, width // 8) and packed.dtype == torch.int32
    assert torch.equal(unpack_codes(packed), codes)


def test_a_word_holds_codes_that_lie_32_apart() -> None:
    codes = torch.zeros(1, 512, dtype=torch.uint8)
    for nibble in range(8):
        codes[0, 256 + 32 * nibble + 5] = nibble + 1
    packed = pack_codes(codes)
    assert packed[0, 32 + 5].item() & 0xFFFFFFFF == 0x87654321
    assert packed.count_nonzero() == 1


def test_scales_and_zero_points_come_back() -> None:
    scales = torch.tensor([[1e-3, -0.5, 65504.0, 6e-8]]).half()
    zeros = torch.tensor([[0, 15, 8, 3]])
    back, points = split_steps(join_steps(scales, zeros))
    assert torch.equal(back, scales) and points.tolist() == zeros.tolist()


def test_rows_of_a_weight_are_rounded_by_themselves() -> None:
    """So that projections that are used together can lie side by side."""
    weight = gaussian(48, 512)
    codes, steps = round_int4(weight)
    some, theirs = round_int4(weight[16:32])
    assert torch.equal(codes[16:32], some) and torch.equal(steps[:, 16:32], theirs)


# ---- how far from the true ones -----------------------------------------------------------------


def test_four_bits_lose_a_tenth_of_a_gaussian() -> None:
    weight = gaussian(64, 1024)
    codes, steps = round_int4(weight)
    assert codes.shape == (64, 128) and steps.shape == (8, 64)
    lost = apart(widen_int4(codes, steps, FLOAT32), weight)
    assert 0.08 < lost < 0.1


def test_cutting_a_group_s_ends_off_loses_less() -> None:
    weight = gaussian(64, 1024)
    groups = weight.reshape(64, 8, 128)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = (high - low) / 15
    plain = (((groups - low) / step).round() * step + low).reshape(weight.shape)
    lost = apart(widen_int4(*round_int4(weight), FLOAT32), weight)
    assert lost < 0.96 * apart(plain, weight)


def test_eight_bits_lose_less_than_a_hundredth() -> None:
    weight = gaussian(64, 4096)
    codes, scales = round_int8(weight)
    assert codes.dtype == torch.int8 and scales.shape == (1, 64)
    assert 0.004 < apart(widen_int8(codes, scales, FLOAT32), weight) < 0.01


def test_eight_bits_with_an_exponent_lose_three_hundredths() -> None:
    weight = gaussian(64, 4096)
    codes, scales = round_fp8(weight)
    assert codes.dtype == torch.uint8
    assert 0.02 < apart(widen_fp8(codes, scales, FLOAT32), weight) < 0.03


@pytest.mark.parametrize(
    ("make", "widen"),
    [(round_int4, widen_int4), (round_int8, widen_int8), (round_fp8, widen_fp8)],
)
def test_odd_weights_stay_finite(make: object, widen: object) -> None:
    weight = gaussian(16, 256)
    weight[0] = 0
    weight[1, :128] = 1e-30
    weight[2] = 300.0
    weight[3] = -weight[3].abs()
    weight[4, 7] = 1e4
    back = widen(*make(weight), FLOAT32)  # type: ignore[operator]
    assert back.isfinite().all()
    assert not back[0].any()
    assert apart(back[2:], weight[2:]) < 0.1


def test_the_largest_and_the_smallest_of_a_group_of_two_values_are_exact() -> None:
    weight = torch.tensor([0.0, 0.9375]).repeat(64)[None].repeat(16, 1)
    assert torch.equal(widen_int4(*round_int4(weight), FLOAT32), weight)


# ---- what AutoAWQ wrote -------------------------------------------------------------------------

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight outputs is in bits 0–3, 4–7, … of a word, as AutoAWQ packs them."""


def packed_by_awq(codes: Tensor) -> Tensor:
    """[R, N] → i32 [R, N / 8]."""
    words = torch.zeros(codes.shape[0], codes.shape[1] // 8, dtype=torch.int64)
    for place, output in enumerate(ORDER):
        words += codes[:, output::8].long() << (4 * place)
    return (words - ((words >> 31) << 32)).to(torch.int32)


def nibble_of_awq(words: Tensor, row: int, output: int) -> int:
    """The slow way round: one number of [R, N], from the bits of its word."""
    bits = f"{int(words[row, output // 8]) & 0xFFFFFFFF:032b}"[::-1]
    place = ORDER.index(output % 8)
    return int(bits[4 * place : 4 * place + 4][::-1], 2)


@pytest.mark.parametrize("group", [128, 256])
def test_what_autoawq_wrote_means_the_same(group: int) -> None:
    generator = torch.Generator().manual_seed(2)
    inputs, outputs = 256, 16
    codes = torch.randint(0, 16, (inputs, outputs), generator=generator)
    zeros = torch.randint(0, 16, (inputs // group, outputs), generator=generator)
    scales = (torch.rand(inputs // group, outputs, generator=generator) * 0.01).half()
    words = {"qweight": packed_by_awq(codes), "qzeros": packed_by_awq(zeros)}
    ours = quant_awq.repack(words | {"scales": scales})
    true = torch.empty(outputs, inputs)
    for into in range(outputs):
        for out_of in range(inputs):
            code = nibble_of_awq(words["qweight"], out_of, into)
            zero = nibble_of_awq(words["qzeros"], out_of // group, into)
            true[into, out_of] = (code - zero) * scales[out_of // group, into].float()
    assert torch.equal(widen_int4(*ours, FLOAT32), true)


@pytest.mark.parametrize("groups", [0, 3, 8, 16])
def test_groups_that_are_not_read_are_refused(groups: int) -> None:
    with pytest.raises(CheckpointError, match=r"q_proj: .* use the bfloat16 checkpoint"):
        quant_awq.group_of("q_proj", (groups, 4), 512)


def test_the_size_of_groups_is_told_by_their_number() -> None:
    assert [quant_awq.group_of("k", (count, 4), 512) for count in (4, 2, 1)] == [128, 256, 512]
