"""Weights of few bits on a GPU: kernels against the widened weight, graphs, and the tiny model."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from agent.duplex.config import Numerics
from agent.duplex.kv_cache import KvCache, KvStream
from agent.duplex.model import DuplexModel, load_model
from agent.duplex.quant_choice import Quantisation
from agent.duplex.quant_linear import QuantLinear, side_by_side
from agent.duplex.slots import Slots, SlotSizes
from agent.torch_parts.checkpoint import Target
from tests.rig import tiny_model as tiny
from tests.rig.tiny_mind import letter_vocabulary

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GPU = torch.device("cuda")
KINDS: tuple[Quantisation, ...] = ("int4", "int8", "fp8")
ROWS = (1, 2, 8, 9, 16, 17, 40, 64, 65, 128, 130, 256, 257, 600)
CLOSE = 4e-3
"""What rounding the result to bfloat16 leaves."""


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator(GPU).manual_seed(seed), device=GPU)


def packed(outputs: int, inputs: int, kind: Quantisation, seed: int = 0) -> QuantLinear:
    layer = QuantLinear(inputs, outputs, kind)
    layer.pack({"weight": noise(outputs, inputs, seed=seed) * 0.02})
    return layer


def apart(ours: Tensor, true: Tensor) -> float:
    return float((ours.double() - true).norm() / true.norm())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("outputs", "inputs"), [(768, 4096), (512, 12288), (48, 256), (128, 512)])
def test_the_product_is_that_of_the_widened_weight(
    kind: Quantisation, outputs: int, inputs: int
) -> None:
    layer = packed(outputs, inputs, kind)
    wide = layer.widened(torch.float32).double()
    for rows in ROWS:
        tokens = noise(rows, inputs, seed=rows).bfloat16()
        ours = layer(tokens)
        assert ours.shape == (rows, outputs) and ours.dtype == torch.bfloat16
        assert apart(ours, tokens.double() @ wide.t()) < CLOSE, rows
        assert torch.equal(layer(tokens), ours)


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_widen_as_torch_does(kind: Quantisation) -> None:
    from agent.torch_parts.kernels.quant import widen

    layer = packed(256, 4096, kind)
    ours = widen(layer.codes, layer.steps, torch.bfloat16)
    assert torch.equal(ours, layer.widened(torch.bfloat16))


@pytest.mark.parametrize("kind", KINDS)
def test_every_code_is_widened_inside_the_product(kind: Quantisation) -> None:
    """One input at a time: what comes out are the weights themselves."""
    layer = packed(64, 1024, kind)
    if kind == "fp8":
        every = torch.arange(64 * 1024, device=GPU).view(1024, 64).t() % 256
        layer.codes.copy_(torch.where(every % 128 == 127, 0, every))
    out = layer(torch.eye(1024, device=GPU, dtype=torch.bfloat16)[:16])
    assert torch.equal(out.t(), layer.widened(torch.bfloat16)[:, :16])


@pytest.mark.parametrize("kind", KINDS)
def test_in_other_dtypes_and_shapes_torch_multiplies(kind: Quantisation) -> None:
    layer, odd = packed(64, 1024, kind), packed(24, 128, kind)
    tokens = noise(3, 1024)
    assert torch.equal(layer(tokens), F.linear(tokens, layer.widened(torch.float32)))
    few = noise(3, 128).bfloat16()
    assert torch.equal(odd(few), F.linear(few, odd.widened(torch.bfloat16)))


@pytest.mark.parametrize("kind", KINDS)
def test_side_by_side_says_what_each_says(kind: Quantisation) -> None:
    layers = [packed(outputs, 1024, kind, seed=outputs) for outputs in (256, 64, 64)]
    tokens = noise(5, 1024).bfloat16()
    before = torch.cat([layer(tokens) for layer in layers], -1)
    whole = side_by_side(layers)
    assert apart(whole(tokens), before.double()) < CLOSE
    assert apart(torch.cat([layer(tokens) for layer in layers], -1), before.double()) < CLOSE


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 40, 300])
def test_it_is_recorded_as_a_graph(kind: Quantisation, rows: int) -> None:
    layer = packed(512, 1024, kind)
    tokens = noise(rows, 1024).bfloat16()
    layer(tokens)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = layer(tokens)
    tokens.copy_(noise(rows, 1024, seed=9))
    graph.replay()
    assert torch.equal(out, layer(tokens.clone()))


# ---- the tiny model -----------------------------------------------------------------------------


def load(target: Target, kind: Quantisation) -> DuplexModel:
    return load_model(
        tiny.RecipeSource(),
        tiny.tiny_config(),
        letter_vocabulary(),
        target=target,
        numerics=Numerics(quantisation=kind),
    )


def logits(model: DuplexModel) -> Tensor:
    sizes = SlotSizes(slots=1, context_tokens=256, turn_tokens=64)
    cache: KvCache = Slots(model.config, sizes, model.target).llm
    ids = torch.randint(0, 150_000, (24,), generator=torch.Generator().manual_seed(0)).tolist()
    states = model.llm.read(model.llm.embed(ids)[None], [KvStream(0)], cache)[0]
    return model.llm.logits(states[-4:]).float().cpu()


@pytest.mark.parametrize("kind", KINDS)
def test_the_tiny_model_says_what_it_says_on_the_cpu(kind: Quantisation) -> None:
    true = logits(load(tiny.FLOAT32, kind))
    ours = logits(load(Target(GPU, torch.bfloat16), kind))
    assert apart(ours, true.double()) < 0.05
