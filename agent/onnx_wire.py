"""The bytes of an ONNX file as numbered fields: as much of protobuf as its tensors take."""

from collections.abc import Iterator
from typing import TypeAlias

# Field numbers of onnx.proto.
MODEL_GRAPH = 7
GRAPH_INITIALIZER = 5
TENSOR_DIMS, TENSOR_TYPE, TENSOR_NAME, TENSOR_RAW = 1, 2, 8, 9

Field: TypeAlias = int | memoryview

_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED_64: 8, _FIXED_32: 4}


def fields(message: memoryview) -> Iterator[tuple[int, Field]]:
    """Number and value of each field; ValueError where the message breaks off."""
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
            raise ValueError(f"it is no ONNX file: wire type {kind}")
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


def varints(data: memoryview) -> list[int]:
    """Numbers packed one behind the other."""
    values, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        values.append(value)
    return values


def as_bytes(value: Field) -> memoryview:
    """A field that is a message, a text or packed data; ValueError when it is a number."""
    if isinstance(value, int):
        raise ValueError("it is no ONNX file: a number where a message should be")
    return value


def as_text(value: Field) -> str:
    """A field that is a text; ValueError when it is a number."""
    return bytes(as_bytes(value)).decode()
