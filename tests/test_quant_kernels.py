"""The kernels of weights of few bits, interpreted on the CPU, against the widened weight."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tests.rig.triton_on_cpu  # noqa: F401  before any kernel
from agent.duplex.config import LlmConfig, Numerics
from agent.duplex.cuda.static_decoder import StaticDecoder, plain_rows
from agent.duplex.kv_cache import KvCache, KvStream
from agent.duplex.llm import Llm
from agent.duplex.quant import quantise_llm
from agent.duplex.quant_choice import Quantisation
from agent.duplex.quant_linear import QuantLinear, side_by_side
from agent.torch_parts.kernels.quant import multiply, product, widen
from agent.torch_parts.kernels.quant_plans import Plan, fits, plan

KINDS: tuple[Quantisation, ...] = ("int4", "int8", "fp8")
CUTS = [Plan(16, 8, 2, 2, 2), Plan(32, 16, 1, 1, 3), Plan(32, 16, 0, 4, 2)]
CLOSE = 1e-6


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(kind: Quantisation, outputs: int = 32, seed: int = 0) -> QuantLinear:
    made = QuantLinear(512, outputs, kind)
    made.pack({"weight": noise(outputs, 512, seed=seed) * 0.02})
    return made


def apart(ours: Tensor, true: Tensor) -> float:
    return float((ours - true).norm() / true.norm())


@pytest.mark.parametrize(("kind", "cut"), list(itertools.product(KINDS, CUTS)))
def test_every_cut_says_what_the_widened_weight_says(kind: Quantisation, cut: Plan) -> None:
    one = layer(kind)
    for rows in (1, cut.columns + 1):
        x = noise(rows, 512, seed=rows)
        true = F.linear(x, one.widened(torch.float32))
        assert apart(multiply(x, one.codes, one.steps, cut), true) < CLOSE


@pytest.mark.parametrize("kind", KINDS)
def test_widened_by_a_kernel_is_widened_by_torch(kind: Quantisation) -> None:
    one = layer(kind)
    assert torch.equal(widen(one.codes, one.steps, torch.float32), one.widened(torch.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_of_what_lies_side_by_side_is_read_as_such(kind: Quantisation) -> None:
    whole = side_by_side([layer(kind, seed=1), part := layer(kind, 16, seed=2)])
    x = noise(3, 512)
    theirs = multiply(x, whole.codes, whole.steps, CUTS[0])[:, 32:]
    assert torch.equal(multiply(x, part.codes, part.steps, CUTS[0]), theirs)


@pytest.mark.parametrize("rows", [1, 17, 193])
def test_the_product_is_right_however_many_rows(rows: int) -> None:
    one, x = layer("int4"), noise(rows, 512)
    true = F.linear(x, one.widened(torch.float32))
    assert apart(product(x, one.codes, one.steps), true) < CLOSE


@pytest.mark.parametrize(
    ("kind", "outputs", "inputs"),
    [
        *itertools.product(KINDS, (4096, 6144, 24576), (4096,)),
        *itertools.product(KINDS, (4096,), (12288,)),
        *itertools.product(KINDS, (16, 48, 128), (256, 512)),
    ],
)
def test_plans_cut_weights_without_a_rest(kind: Quantisation, outputs: int, inputs: int) -> None:
    with torch.device("meta"):
        codes = QuantLinear(inputs, outputs, kind).codes
    assert fits(codes)
    for rows in (1, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 256):
        cut = plan(codes, rows)
        assert outputs % cut.tile == 0 and cut.tile >= 16
        assert cut.warps & (cut.warps - 1) == 0
        if cut.slices:
            assert (inputs // (256 if kind == "int4" else 128)) % cut.slices == 0
            assert cut.warps == cut.slices
        assert rows <= 2 * cut.columns or not cut.slices


def test_odd_shapes_are_left_to_torch() -> None:
    with torch.device("meta"):
        odd = [QuantLinear(128, 16, "int4"), QuantLinear(192, 16, "int8")]
        odd.append(QuantLinear(256, 24, "int4"))
    assert not any(fits(one.codes) for one in odd)


# ---- in a decoder that stands still -------------------------------------------------------------


def quantised_llm(kind: Quantisation) -> Llm:
    config = LlmConfig(
        width=128,
        ffn_width=256,
        layers=1,
        heads=4,
        kv_heads=2,
        head_width=32,
        vocabulary=16,
        max_positions=64,
        rope_theta=1e4,
        norm_eps=1e-6,
    )
    torch.manual_seed(0)
    llm = Llm(config, Numerics()).requires_grad_(False)
    for parameter in llm.parameters():
        parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    weights = {f"llm.{name}": one.clone() for name, one in llm.named_parameters()}
    quantise_llm(llm, kind, {})
    for name, module in llm.named_modules():
        if isinstance(module, QuantLinear):
            module.to_empty(device="cpu")
            module.pack({"weight": weights[f"llm.{name}.weight"]})
    return llm


def test_a_decoder_that_stands_still_says_what_it_says() -> None:
    llm = quantised_llm("int4")
    tokens, shape = noise(3, 128), (1, 2, 1, 2, 16, 32)
    eager, still = KvCache(torch.zeros(shape)), KvCache(torch.zeros(shape))
    true = llm.read(tokens[None], [KvStream(0)], eager)[0]
    static = StaticDecoder(llm.model, still)
    rows = plain_rows([0], [0], [3], static.heads, torch.device("cpu"))
    assert apart(static.forward(tokens.clone(), rows), true) < 1e-5
    assert apart(still.tensor, eager.tensor) < 1e-5
    merged = llm.model.get_submodule("layers.0.self_attn.q_proj")
    assert isinstance(merged, QuantLinear) and merged.codes._base is not None
