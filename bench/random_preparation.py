"""The two ONNX files that prepare voices, with random weights at full size.

The speech tokenizer's graph is named as the published one's, so it is read as that is; CAM++'s
stand-in has its layers and their sizes: convolutions over time and frequency, then 52 densely
connected ones over time. Needs the `onnx` package of the `test` extra.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from agent.torch_parts.checkpoint import unfilled
from agent.vocoder.files import SPEAKER, TOKENIZERS
from agent.vocoder.speech_tokenizer import SpeechTokenizer, TokenizerConfig
from bench.random_vocoder import random_weights
from tests.rig.tiny_onnx import IR_VERSION, OPSET, write_tokenizer

_BANDS = 80
_PLANES = 32
_DENSE_BLOCKS = ((12, 1), (24, 2), (16, 2))
"""Layers and dilation."""
_GROWTH = 32
_BOTTLENECK = 128
_EMBEDDING = 192


def write_preparation(folder: Path, tokenizer: TokenizerConfig | None = None) -> Path:
    """Both files beside a vocoder's; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with unfilled():
        network = SpeechTokenizer(tokenizer or TokenizerConfig())
    write_tokenizer(folder / TOKENIZERS[0], random_weights(network))
    _Speaker().write(folder / SPEAKER)
    return folder


class _Speaker:
    """Collects the nodes and weights of CAM++'s stand-in."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(1)
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: list[onnx.TensorProto] = []

    def write(self, path: Path) -> None:
        """[B, T, 80] → [B, 192]."""
        planes = self._node("Transpose", "input", perm=[0, 2, 1])
        planes = self._node("Unsqueeze", planes, self._stored(np.array([1])))
        frames = self._front(planes)
        channels = 128
        frames = self._conv(frames, (channels, _PLANES * _BANDS // 8, 5), strides=[2], pads=[2, 2])
        for layers, dilation in _DENSE_BLOCKS:
            frames, channels = self._dense(frames, channels, layers, dilation)
        embedding = self._pooled(frames, channels)
        out = helper.make_tensor_value_info(embedding, TensorProto.FLOAT, ["B", _EMBEDDING])
        into = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["B", "T", _BANDS])
        graph = helper.make_graph(self._nodes, "speaker", [into], [out], self._tensors)
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        path.write_bytes(model.SerializeToString())

    def _front(self, planes: str) -> str:
        """[B, 1, 80, T] → [B, 320, T]: four residual blocks, the frequencies halved three times."""
        around = [1, 1, 1, 1]
        planes = self._conv(planes, (_PLANES, 1, 3, 3), pads=around)
        for stride in (2, 1, 2, 1):
            size = (_PLANES, _PLANES, 3, 3)
            inner = self._conv(planes, size, strides=[stride, 1], pads=around)
            inner = self._conv(inner, size, pads=around)
            if stride > 1:
                planes = self._conv(planes, (_PLANES, _PLANES, 1, 1), strides=[stride, 1])
            planes = self._node("Add", inner, planes)
        planes = self._conv(planes, (_PLANES, _PLANES, 3, 3), strides=[2, 1], pads=around)
        flat = self._stored(np.array([0, _PLANES * _BANDS // 8, -1]))
        return self._node("Reshape", planes, flat)

    def _dense(self, frames: str, channels: int, layers: int, dilation: int) -> tuple[str, int]:
        """Each layer sees all before it; in the end half the channels are left."""
        for _ in range(layers):
            narrow = self._conv(frames, (_BOTTLENECK, channels, 1))
            size = (_GROWTH, _BOTTLENECK, 3)
            fresh = self._conv(narrow, size, dilations=[dilation], pads=[dilation, dilation])
            frames = self._node("Concat", frames, fresh, axis=1)
            channels += _GROWTH
        return self._conv(frames, (channels // 2, channels, 1)), channels // 2

    def _pooled(self, frames: str, channels: int) -> str:
        axis = self._stored(np.array([2]))
        mean = self._node("ReduceMean", frames, axis, keepdims=0)
        square = self._node("ReduceMean", self._node("Mul", frames, frames), axis, keepdims=0)
        pooled = self._node("Concat", mean, square, axis=1)
        return self._node("Gemm", pooled, self._weight((2 * channels, _EMBEDDING)))

    def _conv(self, signal: str, size: Sequence[int], **more: list[int]) -> str:
        weight, bias = self._weight(size), self._stored(np.zeros(size[0], np.float32))
        return self._node("Relu", self._node("Conv", signal, weight, bias, **more))

    def _weight(self, size: Sequence[int]) -> str:
        fan = size[0] if len(size) == 2 else int(np.prod(size[1:]))
        values = self._rng.standard_normal(tuple(size)) * (2 / fan) ** 0.5
        return self._stored(values.astype(np.float32))

    def _stored(self, value: np.ndarray) -> str:
        name = f"w{len(self._tensors)}"
        self._tensors.append(numpy_helper.from_array(value, name))
        return name

    def _node(self, kind: str, *inputs: str, **more: Any) -> str:
        name = f"n{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **more))
        return name
