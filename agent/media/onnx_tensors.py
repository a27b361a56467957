"""Reads the tensors out of an ONNX file: as much of protobuf as that takes."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from agent.errors import ConfigError
from agent.types import FloatArray

# Field numbers of onnx.proto.
_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 8, 9
_FLOAT = 1

_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED_64: 8, _FIXED_32: 4}

Field = int | memoryview


def float_tensors(path: Path) -> dict[str, FloatArray]:
    """The 32-bit tensors of the outermost graph by name; `ConfigError` when it is no ONNX file."""
    try:
        data = memoryview(path.read_bytes())
        graphs = [_bytes(value) for number, value in _fields(data) if number == _MODEL_GRAPH]
        tensors = [
            _tensor(_bytes(value))
            for graph in graphs
            for number, value in _fields(graph)
            if number == _GRAPH_INITIALIZER
        ]
    except (OSError, ValueError) as error:
        raise ConfigError(f"no model can be read from {path}: {error}") from error
    return {name: tensor for name, tensor in tensors if tensor is not _OTHER_TYPE}


_OTHER_TYPE = np.zeros(0, np.float32)


def _tensor(data: memoryview) -> tuple[str, FloatArray]:
    shape: list[int] = []
    kind, name, raw = 0, "", memoryview(b"")
    for number, value in _fields(data):
        if number == _TENSOR_DIMS:
            shape += [value] if isinstance(value, int) else _varints(value)
        elif number == _TENSOR_TYPE and isinstance(value, int):
            kind = value
        elif number == _TENSOR_NAME:
            name = bytes(_bytes(value)).decode()
        elif number == _TENSOR_RAW:
            raw = _bytes(value)
    if kind != _FLOAT:
        return name, _OTHER_TYPE
    if len(raw) != 4 * math.prod(shape):
        raise ValueError(f"{name} holds {len(raw)} bytes for the shape {shape}")
    return name, np.frombuffer(raw, "<f4").astype(np.float32).reshape(shape)


def _fields(message: memoryview) -> Iterator[tuple[int, Field]]:
    """Number and value of each field; `ValueError` where the message breaks off."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        size = _FIXED_BYTES.get(kind, 0)
        if kind == _BYTES:
            size, at = _varint(message, at)
        elif not size:
            raise ValueError(f"it is no ONNX file (wire type {kind})")
        if at + size > len(message):
            raise ValueError("it ends early")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Seven bits a byte, the lowest first; and where it ends."""
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("a number in it does not end")


def _varints(data: memoryview) -> list[int]:
    values, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        values.append(value)
    return values


def _bytes(value: Field) -> memoryview:
    if isinstance(value, int):
        raise ValueError("it is no ONNX file (a number where a message should be)")
    return value
