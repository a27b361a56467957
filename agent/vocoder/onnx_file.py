"""ONNX files: their graph as data, and a session to run them.

The weights of a graph are offered as a checkpoint's are, so they load as strictly. A file is mapped
into memory, not read: of half a gigabyte only what is used comes from the disk.
"""

import math
import mmap
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agent.errors import CheckpointError
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
from agent.torch_parts.checkpoint import TensorHeader

# Field numbers of onnx.proto, beside those that everybody reads.
_GRAPH_NODE = 1
_NODE_INPUT, _NODE_NAME, _NODE_KIND = 1, 3, 4
_TENSOR_FLOATS, _TENSOR_ELSEWHERE = 4, 14
_DTYPES: dict[int, tuple[str, npt.DTypeLike, int]] = {1: ("F32", "<f4", 4), 10: ("F16", "<f2", 2)}
"""By ONNX's number: the name in a checkpoint, numpy's, and the bytes of an item."""

_MOST_DIMENSIONS = 8

# ---- the graph as data --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OnnxNode:
    """One step: its path in the module that was exported, its operator, and what goes in."""

    name: str
    kind: str
    inputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OnnxTensor:
    """A stored tensor of floating-point numbers, still in the mapped file."""

    shape: tuple[int, ...]
    dtype: str
    data: memoryview

    def read(self, *, transposed: bool) -> Tensor:
        """A copy, in its stored dtype."""
        numbers = np.frombuffer(self.data, _NUMPY_DTYPES[self.dtype])
        shaped = numbers.reshape(self.shape)
        return torch.from_numpy(np.array(shaped.T if transposed else shaped, order="C"))


_NUMPY_DTYPES = {name: stored for name, stored, _ in _DTYPES.values()}


@dataclass(frozen=True, slots=True)
class OnnxGraph:
    """The outermost graph of a file. Tensors of integers are left out."""

    nodes: tuple[OnnxNode, ...]
    tensors: Mapping[str, OnnxTensor]

    def stored_inputs(self, node: OnnxNode) -> list[str]:
        """Which of a node's inputs are stored tensors, in order."""
        return [name for name in node.inputs if name in self.tensors]


def read_graph(path: Path) -> OnnxGraph:
    """CheckpointError when the file is missing, damaged or no ONNX file."""
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        model = list(fields(memoryview(mapped)))
        graphs = [as_bytes(value) for number, value in model if number == MODEL_GRAPH]
        if len(graphs) != 1:
            raise ValueError("it is no ONNX file")
        return _graph(graphs[0])
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: no ONNX graph can be read from it ({error})") from error


def _graph(data: memoryview) -> OnnxGraph:
    nodes, tensors = [], {}
    for number, value in fields(data):
        if number == _GRAPH_NODE:
            nodes.append(_node(as_bytes(value)))
        elif number == GRAPH_INITIALIZER:
            name, tensor = _tensor(as_bytes(value))
            if tensor is not _NOT_FLOATING:
                tensors[name] = tensor
    return OnnxGraph(tuple(nodes), tensors)


def _node(data: memoryview) -> OnnxNode:
    inputs, name, kind = [], "", ""
    for number, value in fields(data):
        if number == _NODE_INPUT:
            inputs.append(as_text(value))
        elif number == _NODE_NAME:
            name = as_text(value)
        elif number == _NODE_KIND:
            kind = as_text(value)
    return OnnxNode(name, kind, tuple(inputs))


_NOT_FLOATING = OnnxTensor((), "", memoryview(b""))


def _tensor(data: memoryview) -> tuple[str, OnnxTensor]:
    shape: list[int] = []
    kind, name, numbers = 0, "", memoryview(b"")
    for number, value in fields(data):
        if number == TENSOR_DIMS:
            shape += [value] if isinstance(value, int) else varints(value)
        elif number == TENSOR_TYPE and isinstance(value, int):
            kind = value
        elif number == TENSOR_NAME:
            name = as_text(value)
        elif number in (TENSOR_RAW, _TENSOR_FLOATS) and isinstance(value, memoryview):
            numbers = value
        elif number == _TENSOR_ELSEWHERE and value:
            raise ValueError(f"{name} is kept in another file")
    if kind not in _DTYPES:
        return name, _NOT_FLOATING
    dtype, _, item_bytes = _DTYPES[kind]
    if len(shape) > _MOST_DIMENSIONS or len(numbers) != item_bytes * math.prod(shape):
        raise ValueError(f"{name} holds {len(numbers)} bytes for the shape {shape}")
    return name, OnnxTensor(tuple(shape), dtype, numbers)


# ---- its weights as a checkpoint's ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StoredAs:
    """Where a module's parameter lies in the graph, and whether it lies there on its side."""

    name: str
    transposed: bool = False


class OnnxWeights:
    """A graph's tensors under the names that a module gives them: a `TensorSource`."""

    def __init__(self, path: Path, graph: OnnxGraph, places: Mapping[str, StoredAs]) -> None:
        self._graph = graph
        self._places = dict(places)
        self.headers: dict[str, TensorHeader] = {
            key: self._header(place, path) for key, place in places.items()
        }

    def _header(self, place: StoredAs, path: Path) -> TensorHeader:
        stored = self._graph.tensors[place.name]
        shape = stored.shape[::-1] if place.transposed else stored.shape
        return TensorHeader(shape, stored.dtype, path)

    def read(self, keys: Collection[str], device: torch.device) -> Iterator[tuple[str, Tensor]]:
        """In the order of `keys`; the loader brings them to their device and dtype."""
        for key in keys:
            place = self._places[key]
            yield key, self._graph.tensors[place.name].read(transposed=place.transposed)


# ---- running one --------------------------------------------------------------------------------


class CpuSession:
    """An ONNX graph in onnxruntime on the CPU, with so many threads.

    CheckpointError when the file is none that it can run; ValueError when what is run does not fit.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as states

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Errors are raised; its warnings about unused tensors would only fill the log.
        options.log_severity_level = 4
        self._faults = (
            states.Fail,
            states.InvalidArgument,
            states.InvalidGraph,
            states.InvalidProtobuf,
            states.NoModel,
            states.NoSuchFile,
            states.NotImplemented,
            states.RuntimeException,
        )
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except self._faults as error:
            raise CheckpointError(f"{path}: cannot be run by onnxruntime ({error})") from error
        self.input_names: tuple[str, ...] = tuple(
            entry.name for entry in self._session.get_inputs()
        )

    def run(self, *inputs: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """The first output for these inputs, in the graph's order."""
        feeds = dict(zip(self.input_names, inputs, strict=True))
        try:
            outputs = self._session.run(None, feeds)
        except self._faults as error:
            raise ValueError(f"the graph cannot take this input: {error}") from error
        first: npt.NDArray[np.generic] = outputs[0]
        return first
