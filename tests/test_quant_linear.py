"""Linear layers of few bits: what they compute, and side by side without keeping anything twice."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from agent.duplex.quant_choice import Quantisation
from agent.duplex.quant_linear import QuantLinear, side_by_side
from agent.errors import ConfigError
from agent.torch_parts.layout import Packs

KINDS: tuple[Quantisation, ...] = ("int4", "int8", "fp8")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packed(outputs: int, kind: Quantisation, seed: int = 0) -> QuantLinear:
    layer = QuantLinear(256, outputs, kind)
    layer.pack({"weight": noise(outputs, 256, seed=seed) * 0.05})
    return layer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_product_is_that_of_the_widened_weight(kind: Quantisation, dtype: torch.dtype) -> None:
    layer = packed(48, kind)
    tokens = noise(2, 3, 256, seed=1).to(dtype)
    out = layer(tokens)
    assert out.shape == (2, 3, 48) and out.dtype == dtype
    assert torch.equal(out, F.linear(tokens, layer.widened(dtype)))


@pytest.mark.parametrize(("kind", "most"), [("int4", 0.1), ("int8", 0.01), ("fp8", 0.03)])
def test_the_product_is_near_that_of_the_weight(kind: Quantisation, most: float) -> None:
    weight, tokens = noise(48, 256) * 0.05, noise(20, 256, seed=1)
    true = F.linear(tokens, weight)
    apart = float((packed(48, kind)(tokens) - true).norm() / true.norm())
    assert most / 4 < apart < most


@pytest.mark.parametrize("kind", KINDS)
def test_side_by_side_says_what_each_says(kind: Quantisation) -> None:
    layers = [packed(outputs, kind, seed=outputs) for outputs in (64, 16, 16)]
    tokens = noise(5, 256, seed=1)
    before = [layer(tokens) for layer in layers]
    whole = side_by_side(layers)
    assert torch.equal(whole(tokens), torch.cat(before, -1))
    assert all(torch.equal(layer(tokens), one) for layer, one in zip(layers, before, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_side_by_side_nothing_is_kept_twice(kind: Quantisation) -> None:
    layers = [packed(outputs, kind) for outputs in (64, 16)]
    whole = side_by_side(layers)
    for name in ("codes", "steps"):
        kept = getattr(whole, name).untyped_storage().data_ptr()
        assert all(getattr(one, name).untyped_storage().data_ptr() == kept for one in layers)


def test_inputs_that_are_no_groups_are_refused() -> None:
    with pytest.raises(ConfigError, match="int4: 200 inputs are no multiple of 128"):
        QuantLinear(200, 16, "int4")


def test_it_tells_the_loading_what_it_wants() -> None:
    plain, awq = QuantLinear(256, 64, "int8"), QuantLinear(256, 64, "int4", awq_group=128)
    assert isinstance(plain, Packs)
    assert {name: one.shape for name, one in plain.stored().items()} == {"weight": (64, 256)}
    shapes = {"qweight": (256, 8), "qzeros": (2, 8), "scales": (2, 64)}
    assert {name: one.shape for name, one in awq.stored().items()} == shapes
    assert [one.integers for one in awq.stored().values()] == [True, True, False]
