"""The tiny model with projections of few bits, from a checkpoint to what it says."""

import functools
import json
import weakref
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from agent.duplex.config import Numerics, parse_config, read_config
from agent.duplex.inspection import identify, inspect_weights
from agent.duplex.kv_cache import KvStream
from agent.duplex.llm import Llm
from agent.duplex.model import DuplexModel, load_model
from agent.duplex.quant_choice import PROJECTIONS, Quantisation, check_stored
from agent.duplex.quant_linear import QuantLinear
from agent.duplex.quant_sizes import projection_bytes, projection_shapes, saved_bytes
from agent.errors import CheckpointError, ConfigError
from agent.torch_parts.checkpoint import TensorHeader, open_checkpoint
from bench.random_model import FULL_SIZE
from tests.rig import tiny_model as tiny
from tests.rig.tiny_mind import (
    LISTEN,
    Script,
    converse,
    letter_vocabulary,
    runner,
    says,
    second,
    tiny_mind,
    whole_mind,
)
from tests.test_quant_formats import packed_by_awq

LAYERS, PER_LAYER = 3, 7


@functools.cache
def load(quantisation: Quantisation, folder: Path | None = None) -> DuplexModel:
    torch.set_num_threads(1)
    source = tiny.RecipeSource() if folder is None else open_checkpoint(folder)
    config = tiny.tiny_config() if folder is None else read_config(folder)
    numerics = Numerics(quantisation=quantisation)
    vocabulary = letter_vocabulary()
    return load_model(source, config, vocabulary, target=tiny.FLOAT32, numerics=numerics)


def quantised(llm: Llm) -> list[QuantLinear]:
    return [module for module in llm.modules() if isinstance(module, QuantLinear)]


def logits(model: DuplexModel) -> Tensor:
    ids = torch.randint(0, 150_000, (24,), generator=torch.Generator().manual_seed(0)).tolist()
    cache = runner(model).slots.llm
    return model.llm.logits(
        model.llm.read(model.llm.embed(ids)[None], [KvStream(0)], cache)[0, -2:]
    )


# ---- at load ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "most"), [("int4", 0.3), ("int8", 0.03), ("fp8", 0.1)])
def test_logits_stay_near(kind: Quantisation, most: float) -> None:
    model, true = load(kind), logits(whole_mind())
    assert len(quantised(model.llm)) == LAYERS * PER_LAYER
    apart = float((logits(model) - true).norm() / true.norm())
    assert most / 20 < apart < most


@pytest.mark.parametrize("kind", ["int4", "int8", "fp8"])
def test_a_call_runs_on_it(kind: Quantisation) -> None:
    talk = converse(runner(load(kind)), Script(LISTEN, says("ab"), says("cd", ends=True)))
    texts = [talk.step(second(index)).text for index in range(3)]
    talk.flush()
    assert "".join(texts) == "abcd"


def test_embedding_and_head_stay_as_they_are() -> None:
    plain, small = whole_mind().llm, load("int4").llm
    assert torch.equal(plain.lm_head.weight, small.lm_head.weight)
    assert torch.equal(plain.model.embed_tokens.weight, small.model.embed_tokens.weight)


class OneByOne(tiny.RecipeSource):
    """Counts how many weights of projections exist at a time, besides what was made of them."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: set[str] = set()
        self.most = 0

    def read(self, keys: Collection[str], device: torch.device) -> Iterator[tuple[str, Tensor]]:
        for key, tensor in super().read(keys, device):
            if "_proj" in key and key.startswith("llm."):
                self.alive.add(key)
                _when_gone(tensor, lambda key=key: self.alive.discard(key))  # type: ignore[misc]
                self.most = max(self.most, len(self.alive))
            yield key, tensor
            del tensor


def _when_gone(tensor: Tensor, do: object) -> None:
    weakref.finalize(tensor, do)  # type: ignore[arg-type]


def test_no_more_than_two_weights_are_there_as_they_were_stored() -> None:
    source = OneByOne()
    load_model(
        source,
        tiny.tiny_config(),
        letter_vocabulary(),
        target=tiny.FLOAT32,
        numerics=Numerics(quantisation="int4"),
    )
    assert 1 <= source.most <= 2


# ---- what AutoAWQ wrote -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def awq_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint as AutoAWQ would have left it: layer 1's `k_proj` not converted."""
    folder = tmp_path_factory.mktemp("awq")
    tiny.write_checkpoint(folder, dtype=torch.float16, shards=1)
    path = next(folder.glob("model-*.safetensors"))
    tensors = load_file(path)
    for key in [key for key in tensors if _is_projection(key)]:
        tensors |= _by_awq(key.removesuffix("weight"), tensors.pop(key))
    save_file(tensors, path)
    places = dict.fromkeys(tensors, path.name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    _add_section(folder, {"bits": 4, "group_size": 128, "quant_method": "awq", "version": "gemm"})
    return folder


def _is_projection(key: str) -> bool:
    names = [name for one in PROJECTIONS.values() for name in one]
    mine = key.startswith("llm.model.layers.") and key.split(".")[-2] in names
    return mine and not key.startswith("llm.model.layers.1.self_attn.k_proj")


def _by_awq(prefix: str, weight: Tensor) -> dict[str, Tensor]:
    """Plain rounding, the slow way round."""
    groups = weight.float().t().reshape(weight.shape[1] // 128, 128, -1)
    low, high = groups.amin(1).clamp(max=0), groups.amax(1).clamp(min=0)
    scales = ((high - low) / 15).half()
    zeros = (-low / scales.float()).round().clamp(0, 15)
    codes = ((groups / scales.float()[:, None]).round() + zeros[:, None]).clamp(0, 15)
    return {
        f"{prefix}qweight": packed_by_awq(codes.reshape(weight.shape[1], -1).long()),
        f"{prefix}qzeros": packed_by_awq(zeros.long()),
        f"{prefix}scales": scales,
    }


def _add_section(folder: Path, section: Mapping[str, object]) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"quantization_config": dict(section)}))


@pytest.mark.parametrize("asked", ["none", "int4"])
def test_a_checkpoint_of_autoawq_is_read(awq_folder: Path, asked: Quantisation) -> None:
    model = load(asked, awq_folder)
    layers = quantised(model.llm)
    assert len(layers) == LAYERS * PER_LAYER - (asked == "none")
    assert {layer.kind for layer in layers} == {"int4"}
    true = logits(whole_mind())
    assert 0.02 < float((logits(model) - true).norm() / true.norm()) < 0.3


def test_its_weights_are_those_that_were_written(awq_folder: Path) -> None:
    name = "llm.model.layers.2.mlp.down_proj"
    stored = load_file(next(awq_folder.glob("model-*.safetensors")))
    zeros, scales = stored[f"{name}.qzeros"], stored[f"{name}.scales"]
    ours = load("none", awq_folder).llm.get_submodule(name.removeprefix("llm."))
    assert isinstance(ours, QuantLinear)
    widened = ours.widened(torch.float32)
    # Output 8 is in the lowest bits of the second word, and so is its zero point.
    code = int(stored[f"{name}.qweight"][300, 1]) & 15
    expected = (code - (int(zeros[2, 1]) & 15)) * float(scales[2, 8])
    assert float(widened[8, 300]) == pytest.approx(expected, rel=1e-6)


def test_it_passes_inspection(awq_folder: Path) -> None:
    assert inspect_weights(identify(awq_folder)).dtypes["I32"] == 2 * (LAYERS * PER_LAYER - 1)


def test_other_bits_than_it_has_are_refused(awq_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.quantisation: int8 cannot .* leave it at none"):
        load("int8", awq_folder)


class Headers:
    """What a checkpoint says of itself."""

    def __init__(self, headers: Mapping[str, TensorHeader]) -> None:
        self.headers = headers

    def read(self, keys: Collection[str], device: torch.device) -> Iterator[tuple[str, Tensor]]:
        raise AssertionError("read before everything was known to fit")


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("qzeros", {"shape": (3, 64)}, "3 groups of 256 inputs"),
        ("qzeros", {"shape": (4, 64)}, "4 groups of 256 inputs"),
        ("qweight", {"dtype": "F16"}, "1 keys hold no words of 32 bits: .*qweight F16"),
        ("qweight", {"shape": (256, 63)}, r"qweight \[256, 63\] instead of \[256, 64\]"),
        ("scales", {"dtype": "I32"}, "1 keys hold no floating-point numbers: .*scales I32"),
        ("scales", None, "1 keys are missing: .*scales"),
    ],
)
def test_what_does_not_fit_is_named(
    awq_folder: Path, name: str, change: dict[str, object] | None, told: str
) -> None:
    headers = dict(open_checkpoint(awq_folder).headers)
    key = f"llm.model.layers.0.mlp.up_proj.{name}"
    header = headers.pop(key)
    if change is not None:
        headers[key] = replace(header, **change)
    with pytest.raises(CheckpointError, match=told):
        load_model(Headers(headers), tiny.tiny_config(), letter_vocabulary(), target=tiny.FLOAT32)


# ---- what config.json says ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "found"),
    [
        ("awq", "is no section"),
        ({"quant_method": "gptq", "bits": 4}, "quantised by gptq to 4 bits"),
        ({"quant_method": "compressed-tensors"}, "quantised by compressed-tensors;"),
        ({"quant_method": "awq", "bits": 8}, "awq to 8 bits"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "in the layout 'gemv'"),
        ({"quant_method": "awq", "bits": 4, "group_size": 64}, "in groups of 64"),
        ({"quant_method": "awq", "bits": 4, "group_size": "x"}, "in groups of x"),
        ({}, "quantised by an unknown method"),
    ],
)
def test_another_way_of_quantising_is_named_with_what_to_do(section: object, found: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        check_stored({"quantization_config": section}, "config.json")
    assert found in str(caught.value)
    assert "model.quantisation makes smaller" in str(caught.value)


@pytest.mark.parametrize(
    "section",
    [
        {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"},
        {"quant_method": "AWQ", "w_bit": 4, "q_group_size": 128, "version": "GEMM"},
        {"quant_method": "awq", "bits": 4, "group_size": -1, "modules_to_not_convert": ["vpm"]},
    ],
)
def test_the_ways_of_autoawq_are_known(section: object) -> None:
    check_stored({"quantization_config": section}, "config.json")
    check_stored({}, "config.json")


def test_a_config_of_another_way_is_refused_where_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny.official_config()))
    read_config(tmp_path)
    _add_section(tmp_path, {"quant_method": "bitsandbytes", "bits": 4})
    with pytest.raises(CheckpointError, match="quantised by bitsandbytes to 4 bits"):
        read_config(tmp_path)


# ---- sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["none", "int4", "int8", "fp8"])
def test_projections_take_what_is_told(kind: Quantisation) -> None:
    model = tiny_mind() if kind == "none" else load(kind)
    if kind == "none":
        names = [name for one in PROJECTIONS.values() for name in one]
        taken = sum(
            2 * parameter.numel()
            for name, parameter in model.llm.model.named_parameters()
            if name.split(".")[-2] in names
        )
    else:
        taken = sum(one.codes.nbytes + one.steps.nbytes for one in quantised(model.llm))
    assert projection_bytes(model.config.llm, kind) == taken
    shapes = projection_shapes(model.config.llm)
    assert all(
        (one.out_features, one.in_features) in shapes.values() for one in quantised(model.llm)
    )


def test_at_full_size_four_bits_save_ten_gigabytes() -> None:
    llm = parse_config(FULL_SIZE).llm
    assert projection_bytes(llm, "none") == pytest.approx(13.89e9, rel=0.001)
    assert projection_bytes(llm, "int4") == pytest.approx(3.69e9, rel=0.001)
    assert saved_bytes(llm, "int8") == pytest.approx(6.94e9, rel=0.001)
