"""HiFT's products of float16 in Triton's interpreter: as near to float32 as TF32's are."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import tests.rig.triton_on_cpu  # noqa: F401  before any kernel
from agent.vocoder.batched import hift as batched_hift
from agent.vocoder.batched.hift import BatchedHift, fits_half, rounding_of
from agent.vocoder.batched.layout import Capacity, layout_of
from agent.vocoder.hift import Hift
from agent.vocoder.hift_config import BLOCK_KERNELS
from agent.vocoder.kernels.launching import Rounding
from agent.vocoder.kernels.product import After, Along, Span, Weights, product
from agent.vocoder.kernels.spectrum import join, mean
from tests.rig.machine_streams import Alone, with_machine
from tests.rig.tiny_hift import causal_hift, classic_hift
from tests.rig.unwritten import fill_new_memory

LAYOUT = layout_of(Capacity(6, 20))
ROUNDED: tuple[Rounding, Rounding] = ("tf32", "half")
MORE_THAN_TF32 = 1.2
"""An error may be so many times that of TF32; where no number is tiny it is the very same."""


@pytest.fixture(autouse=True)
def _seeded(monkeypatch: pytest.MonkeyPatch) -> Any:
    torch.manual_seed(5)
    torch.set_num_threads(1)
    fill_new_memory(monkeypatch)
    with torch.inference_mode():
        yield


def _error(ours: Tensor, exact: Tensor) -> float:
    assert ours.shape == exact.shape
    return float((ours.double() - exact.double()).norm() / exact.double().norm())


# ---- what is multiplied -------------------------------------------------------------------------


def test_what_float16_cannot_hold_is_infinite_and_no_number_stays_none() -> None:
    values = torch.tensor([1.0, 7e4, -7e4, 65_519, math.inf, -math.inf, math.nan, 2e-6, 0.1])
    kept = mean(values[None, None, None], 1.0, "half").flatten()
    assert kept.dtype == torch.float16
    assert kept[:6].tolist() == [1.0, math.inf, -math.inf, math.inf, math.inf, -math.inf]
    assert kept[6].isnan() and torch.equal(kept[7:], values[7:].half())


def test_what_is_infinite_in_a_product_stays_so() -> None:
    rows, weight = torch.full((1, 4, 32), 6e4), torch.full((8, 32), 6e4)
    rows[0, 1, 5], rows[0, 2, 5] = math.inf, math.nan
    weights = Weights.linear(weight, torch.zeros(8)).rounded("half")
    out, acted = torch.empty(1, 4, 8), torch.empty(1, 4, 8, dtype=torch.float16)
    product(rows.half(), weights, Along(4, 4), After(out=out, acted=acted))
    # What is finite is summed in float32, far above what float16 could.
    assert torch.allclose(out[0, ::3], torch.tensor(32 * 6e4 * 6e4))
    assert (acted[0, ::3] == math.inf).all()
    assert out[0, 1].isinf().all() and acted[0, 1].isinf().all()
    assert out[0, 2].isnan().all() and acted[0, 2].isnan().all()


def _blocks(rounding: Rounding, level: float) -> Tensor:
    """Convolutions of a stage's three residual blocks, and the mean that is multiplied next."""
    generator = torch.Generator().manual_seed(7)
    hidden, source = level * torch.randn(2, 2, 60, 32, generator=generator)
    alphas = torch.rand(2, 3, 32, generator=generator) + 0.5
    taps = [torch.randn(32, one, 32, generator=generator) * one**-0.5 / 6 for one in BLOCK_KERNELS]
    biases = [level * torch.randn(32, generator=generator) for _ in taps]
    weights = Weights.of_taps(taps, biases, 4).rounded(rounding)
    plan = torch.full((2, LAYOUT.columns), 60)
    along = Along(60, 60, dilation=3, centred=True, span=Span(plan, count=LAYOUT.frames))
    joined, acted = join(hidden, source, alphas[0], rounding)
    between, out = torch.empty_like(acted), torch.empty(acted.shape)
    product(acted, weights, along, After(acted=between, act="snake", alpha=alphas[1]))
    product(between, weights, along, After(out=out, added=joined))
    return mean(out, 0.1, rounding)


@pytest.mark.parametrize("level", [1e-3, 1.0, 100.0])
def test_blocks_in_float16_are_as_near_to_float32_as_in_tf32(level: float) -> None:
    exact = _blocks("none", level)
    of_tf32, of_half = (_error(_blocks(one, level), exact) for one in ROUNDED)
    assert 1e-4 < of_half <= MORE_THAN_TF32 * of_tf32 < 1e-3


# ---- when ---------------------------------------------------------------------------------------


def _with_weight(factor: float, rows: slice = slice(None)) -> Hift:
    """One whose second upsampling weight has rows times that."""
    hift = copy.deepcopy(classic_hift())
    hift.ups[1].get_parameter("weight")[rows] *= factor
    return hift


def test_weights_that_lose_more_in_float16_than_in_tf32_are_not_for_it() -> None:
    assert fits_half(classic_hift()) and fits_half(causal_hift())
    assert not fits_half(_with_weight(1e8)) and not fits_half(_with_weight(1e-6))
    assert not fits_half(_with_weight(math.nan, slice(1)))
    # Of few that are small nothing is lost that the others would not hide.
    assert fits_half(_with_weight(1e-6, slice(1)))


def test_what_torch_does_not_round_is_not_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rounding_of(classic_hift()) == "none"
    monkeypatch.setattr(Hift, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert rounding_of(classic_hift()) == "half" and rounding_of(_with_weight(1e8)) == "tf32"
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert rounding_of(classic_hift()) == "none"


# ---- sound --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("generation", "most"), [("classic", 8), ("causal", 5)])
def test_sound_in_float16_is_as_near_to_float32_as_in_tf32(
    generation: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hift = classic_hift() if generation == "classic" else causal_hift()
    vocoder, machine = with_machine("prompt_plus_recent", hift, most, 100)
    plan = torch.from_numpy(Alone(vocoder, machine, 30).chunk(most)[0])[None]
    mel, layout = torch.randn(1, 2 * most, 80) - 4, machine.rules.layout
    samples = int(plan[0, layout.window.said])

    def said(rounding: Rounding) -> Tensor:
        monkeypatch.setattr(batched_hift, "rounding_of", lambda _: rounding)
        made = BatchedHift(hift, machine._parts.hift_noise, machine.rules.capacity, layout)
        return made(mel, plan, machine._stores.window)[:, :samples]

    if generation == "causal":
        # What overflows in float16 is not said: the machine makes it again without.
        mel[0, 2] = 1e6
        assert said("none").isfinite().all() and not said("half").isfinite().all()
        mel[0, 2] = -4
    exact = said("none")
    of_tf32, of_half = (_error(said(one), exact) for one in ROUNDED)
    assert samples > 0 and 1e-5 < of_half <= MORE_THAN_TF32 * of_tf32
    assert 20 * math.log10(of_half) < -40
