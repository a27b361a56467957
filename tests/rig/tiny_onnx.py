"""Tiny ONNX files in place of a vocoder's two.

`write_tokenizer` is the golden files' speech tokenizer, its graph named as the published one's: so
the weights can be read out of it, and onnxruntime can run it too. `write_other_tokenizer` is one
whose graph nobody knows. `write_speaker` stands in for CAM++.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from tests.rig.tiny_model import golden_json, recipe

OPSET = 18
IR_VERSION = 10
HEAD = 64
POSITIONS = 512
PREFIX = "s3."


def tokenizer_weights() -> dict[str, Tensor]:
    """The golden tokenizer's parameters by their published names."""
    more = golden_json("vocoder_more.json")
    return {
        key.removeprefix(PREFIX): recipe().tensor(key, tuple(shape), int(more["seed"]))
        for key, shape in more["s3"]["parameters"].items()
    }


class _Graph:
    """Collects nodes and tensors; what goes in or comes out is a name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def store(self, value: Any, name: str = "") -> str:
        name = name or f"onnx::{len(self.tensors)}"
        array = value.numpy() if isinstance(value, Tensor) else np.asarray(value)
        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(self, kind: str, *inputs: str, at: str = "", outputs: int = 1, **more: Any) -> str:
        names = [f"{kind}_{len(self.nodes)}_{number}" for number in range(outputs)]
        path = f"{at}/{kind}" if at else f"/{names[0]}"
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=path, **more))
        return names[0] if outputs == 1 else " ".join(names)

    def linear(self, x: str, weight: Tensor, bias: Tensor | None, at: str) -> str:
        x = self.add("MatMul", x, self.store(weight.T), at=at)
        # The exporter puts the bias first.
        return x if bias is None else self.add("Add", self.store(bias), x, at=at)

    def gelu(self, x: str) -> str:
        error = self.add("Erf", self.add("Mul", x, self.store(np.float32(math.sqrt(0.5)))))
        half = self.add("Mul", x, self.store(np.float32(0.5)))
        return self.add("Mul", half, self.add("Add", error, self.store(np.float32(1))))

    def write(
        self, path: Path, inputs: Mapping[str, Sequence[Any]], output: onnx.ValueInfoProto
    ) -> None:
        kinds = {"feats_length": TensorProto.INT32}
        infos = [
            helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), list(shape))
            for name, shape in inputs.items()
        ]
        graph = helper.make_graph(self.nodes, "tiny", infos, [output], self.tensors)
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        onnx.checker.check_model(model)
        path.write_bytes(model.SerializeToString())


def write_tokenizer(path: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """The tokenizer with the golden weights, or these: 128 bands, at most 20 s."""
    weights = tokenizer_weights() if weights is None else weights
    graph = _Graph()
    x = "feats"
    for number in (1, 2):
        stored = [
            graph.store(
                weights[f"encoder.conv{number}.{part}"], f"onnx::Conv_{2214 + 2 * number + at}"
            )
            for at, part in enumerate(("weight", "bias"))
        ]
        x = graph.gelu(graph.add("Conv", x, *stored, at=f"/conv{number}", strides=[2], pads=[1, 1]))
    x = graph.add("Transpose", x, perm=[0, 2, 1])
    rotation = _rotation(graph, x)
    blocks = {int(key.split(".")[2]) for key in weights if key.startswith("encoder.blocks.")}
    for block in sorted(blocks):
        start = f"encoder.blocks.{block}."
        own = {key.removeprefix(start): w for key, w in weights.items() if key.startswith(start)}
        x = _block(graph, x, own, f"/blocks.{block}", rotation)
    graph.write(path, _INPUTS, _tokens(graph, _projected(graph, x, weights)))


_INPUTS: dict[str, Sequence[Any]] = {"feats": [1, 128, "T"], "feats_length": [1]}


def _rotation(graph: _Graph, x: str) -> tuple[str, str]:
    exponents = torch.arange(0, HEAD, 2).float() / HEAD
    angles = torch.outer(torch.arange(POSITIONS).float(), 10_000.0**-exponents)
    angles = torch.cat([angles, angles], 1)[None, :, None]
    length = graph.add("Shape", x, start=1, end=2)
    begin, axis = graph.store(np.array([0])), graph.store(np.array([1]))
    cosine, sine = (
        graph.add("Slice", graph.store(table), begin, length, axis)
        for table in (angles.cos(), angles.sin())
    )
    return cosine, sine


def _block(
    graph: _Graph, x: str, own: Mapping[str, Tensor], at: str, rotation: tuple[str, str]
) -> str:
    normal = _norm(graph, x, own, "attn_ln", at, 1e-6)
    x = graph.add("Add", x, _attention(graph, normal, own, f"{at}/attn", rotation))
    normal = _norm(graph, x, own, "mlp_ln", at, 1e-5)
    wide = graph.linear(normal, own["mlp.0.weight"], own["mlp.0.bias"], f"{at}/mlp/mlp.0")
    narrow = graph.linear(
        graph.gelu(wide), own["mlp.2.weight"], own["mlp.2.bias"], f"{at}/mlp/mlp.2"
    )
    return graph.add("Add", x, narrow)


def _norm(
    graph: _Graph, x: str, own: Mapping[str, Tensor], name: str, at: str, epsilon: float
) -> str:
    scale, bias = (graph.store(own[f"{name}.{part}"]) for part in ("weight", "bias"))
    return graph.add(
        "LayerNormalization", x, scale, bias, at=f"{at}/{name}", axis=-1, epsilon=epsilon
    )


def _attention(
    graph: _Graph, x: str, own: Mapping[str, Tensor], at: str, rotation: tuple[str, str]
) -> str:
    query, key, value = (
        graph.linear(x, own[f"attn.{n}.weight"], own.get(f"attn.{n}.bias"), f"{at}/{n}")
        for n in ("query", "key", "value")
    )
    heads = graph.store(np.array([0, 0, -1, HEAD]))
    scale = graph.store(np.float32(HEAD**-0.25))
    turned = [
        graph.add("Mul", _rotated(graph, graph.add("Reshape", one, heads), rotation), scale)
        for one in (query, key)
    ]
    query = graph.add("Transpose", turned[0], perm=[0, 2, 1, 3])
    scores = graph.add("MatMul", query, graph.add("Transpose", turned[1], perm=[0, 2, 3, 1]))
    split = graph.add("Transpose", graph.add("Reshape", value, heads), perm=[0, 2, 1, 3])
    mixed = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), split)
    mixed = graph.add("Transpose", mixed, perm=[0, 2, 1, 3])
    mixed = graph.add("Reshape", mixed, graph.store(np.array([0, 0, -1])))
    out = graph.linear(mixed, own["attn.out.weight"], own["attn.out.bias"], f"{at}/out")
    return graph.add("Add", out, _memory(graph, value, own["attn.fsmn_block.weight"], at))


def _memory(graph: _Graph, value: str, weight: Tensor, at: str) -> str:
    columns = graph.add("Transpose", value, perm=[0, 2, 1])
    filtered = graph.add(
        "Conv",
        columns,
        graph.store(weight),
        at=f"{at}/fsmn_block",
        group=len(weight),
        pads=[15, 15],
    )
    return graph.add("Add", graph.add("Transpose", filtered, perm=[0, 2, 1]), value)


def _rotated(graph: _Graph, heads: str, rotation: tuple[str, str]) -> str:
    first, second = graph.add("Split", heads, outputs=2, axis=-1, num_outputs=2).split()
    crossed = graph.add("Concat", graph.add("Neg", second), first, axis=-1)
    straight = graph.add("Mul", heads, rotation[0])
    return graph.add("Add", straight, graph.add("Mul", crossed, rotation[1]))


def _projected(graph: _Graph, x: str, weights: Mapping[str, Tensor]) -> str:
    down = "quantizer._codebook.project_down"
    matrix = graph.store(weights[f"{down}.weight"].T, "onnx::MatMul_2536")
    bias = graph.store(weights[f"{down}.bias"], "quantizer.project_in.bias")
    at = "/quantizer/project_in"
    return graph.add("Add", bias, graph.add("MatMul", x, matrix, at=at), at=at)


def _tokens(graph: _Graph, projected: str) -> onnx.ValueInfoProto:
    """Squashed, rounded and counted to the base of 3: the graph's output."""
    squashed = graph.add(
        "Mul", graph.add("Tanh", projected), graph.store(np.float32(0.99900001287))
    )
    digits = graph.add("Add", graph.add("Round", squashed), graph.store(np.float32(1)))
    places = graph.store((3.0 ** np.arange(8)).astype(np.float32)[:, None])
    number = graph.add("Cast", graph.add("MatMul", digits, places), to=TensorProto.INT32)
    flat = graph.add("Squeeze", number, graph.store(np.array([2])))
    return helper.make_tensor_value_info(flat, TensorProto.INT32, [1, "N"])


def write_other_tokenizer(path: Path, bands: int = 128, seed: int = 3) -> None:
    """Two convolutions and a rounding: the right length, and tokens that depend on the sound."""
    generator = torch.Generator().manual_seed(seed)
    graph = _Graph()
    first = graph.store(0.2 * torch.randn(16, bands, 3, generator=generator))
    second = graph.store(0.4 * torch.randn(8, 16, 3, generator=generator))
    x = graph.add("Relu", graph.add("Conv", "feats", first, strides=[2], pads=[1, 1]))
    x = graph.add("Conv", x, second, strides=[2], pads=[1, 1])
    output = _tokens(graph, graph.add("Transpose", x, perm=[0, 2, 1]))
    graph.write(path, {"feats": [1, bands, "T"], "feats_length": [1]}, output)


def write_speaker(path: Path, bands: int = 80, width: int = 192, seed: int = 4) -> None:
    """The mean of the squashed bands over time, mapped to the width of an embedding."""
    generator = torch.Generator().manual_seed(seed)
    graph = _Graph()
    mean = graph.add(
        "ReduceMean", graph.add("Tanh", "input"), graph.store(np.array([1])), keepdims=0
    )
    weight = graph.store(torch.randn(bands, width, generator=generator))
    bias = graph.store(torch.randn(width, generator=generator))
    embedding = graph.add("Gemm", mean, weight, bias)
    output = helper.make_tensor_value_info(embedding, TensorProto.FLOAT, ["B", width])
    graph.write(path, {"input": ["B", "T", bands]}, output)
