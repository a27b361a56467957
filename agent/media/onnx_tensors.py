"""The tensors of an ONNX file as arrays."""

import math
from pathlib import Path

import numpy as np

from agent.errors import ConfigError
from agent.onnx_wire import (
    GRAPH_INITIALIZER,
    MODEL_GRAPH,
    TENSOR_DIMS,
    TENSOR_NAME,
    TENSOR_RAW,
    TENSOR_TYPE,
    as_bytes,
    as_text,
    fields,
    varints,
)
from agent.types import FloatArray

_FLOAT = 1


def float_tensors(path: Path) -> dict[str, FloatArray]:
    """The 32-bit tensors of the outermost graph by name; `ConfigError` when it is no ONNX file."""
    try:
        data = memoryview(path.read_bytes())
        graphs = [as_bytes(value) for number, value in fields(data) if number == MODEL_GRAPH]
        tensors = [
            _tensor(as_bytes(value))
            for graph in graphs
            for number, value in fields(graph)
            if number == GRAPH_INITIALIZER
        ]
    except (OSError, ValueError) as error:
        raise ConfigError(f"no model can be read from {path}: {error}") from error
    return {name: tensor for name, tensor in tensors if tensor is not _OTHER_TYPE}


_OTHER_TYPE = np.zeros(0, np.float32)


def _tensor(data: memoryview) -> tuple[str, FloatArray]:
    shape: list[int] = []
    kind, name, raw = 0, "", memoryview(b"")
    for number, value in fields(data):
        if number == TENSOR_DIMS:
            shape += [value] if isinstance(value, int) else varints(value)
        elif number == TENSOR_TYPE and isinstance(value, int):
            kind = value
        elif number == TENSOR_NAME:
            name = as_text(value)
        elif number == TENSOR_RAW:
            raw = as_bytes(value)
    if kind != _FLOAT:
        return name, _OTHER_TYPE
    if len(raw) != 4 * math.prod(shape):
        raise ValueError(f"{name} holds {len(raw)} bytes for the shape {shape}")
    return name, np.frombuffer(raw, "<f4").astype(np.float32).reshape(shape)
