"""The speech tokenizer out of its ONNX file: natively where its graph is known, else as it is.

The published graph names few of its weights; where they belong is told by the step that uses them:
the path of `/blocks.0/attn/query/MatMul` is that of the module in the network that was exported.
"""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from agent.errors import CheckpointError
from agent.vocoder.onnx_file import (
    CpuSession,
    OnnxGraph,
    OnnxNode,
    OnnxWeights,
    StoredAs,
    read_graph,
)
from agent.vocoder.speech_tokenizer import (
    DIGITS,
    Rounding,
    TokenArray,
    Tokenizer,
    load_speech_tokenizer,
    token_count,
)

log = logging.getLogger(__name__)

_BLOCK = re.compile(
    r"blocks\.(?P<block>\d+)/"
    r"(?P<part>attn/(?:query|key|value|out|fsmn_block)|attn_ln|mlp_ln|mlp/mlp\.[02])/"
    r"(?P<kind>MatMul|Add|Conv|LayerNormalization)(?:_\d+)?$"
)
_PROJECTION = "quantizer._codebook.project_down"


def open_speech_tokenizer(
    path: Path, *, rounding: Rounding = "onnx", device: torch.device | None = None
) -> Tokenizer:
    """The tokenizer in torch on `device`; by onnxruntime where the graph is not the published one,
    which the log then says: same tokens, by the published rounding, but never on a GPU.

    CheckpointError when the file is missing or damaged, or when onnxruntime cannot run it either.
    """
    graph = read_graph(path)
    weights = OnnxWeights(path, graph, weight_places(graph))
    try:
        return load_speech_tokenizer(weights, rounding=rounding, device=device)
    except CheckpointError as error:
        log.info("%s: run by onnxruntime, since it is no graph known here (%s)", path, error)
        return OnnxTokenizer(path)


class OnnxTokenizer:
    """A tokenizer that onnxruntime runs on the CPU; loaded at once. CheckpointError."""

    def __init__(self, path: Path, threads: int = 2) -> None:
        self._path = path
        self._session = CpuSession(path, threads)
        if len(self._session.input_names) != 2:
            raise CheckpointError(f"{path}: a speech tokenizer takes a mel and its length")

    def tokens(self, mel: Tensor) -> TokenArray:
        """[bands, F] → i32 [⌈⌈F/2⌉/2⌉]."""
        batch = mel[None].to("cpu", torch.float32).numpy()
        try:
            output = self._session.run(batch, np.array([mel.shape[1]], np.int32))
        except ValueError as error:
            raise CheckpointError(f"{self._path}: is no speech tokenizer ({error})") from error
        if not np.issubdtype(output.dtype, np.integer) or output.size != token_count(mel.shape[1]):
            raise CheckpointError(f"{self._path}: is no tokenizer of 25 tokens a second")
        tokens: TokenArray = output.reshape(-1).astype(np.int32)
        return tokens


def weight_places(graph: OnnxGraph) -> dict[str, StoredAs]:
    """Where the graph keeps what `SpeechTokenizer` calls its parameters, as far as it is known."""
    places: dict[str, StoredAs] = {}
    convolutions = 0
    for node in graph.nodes:
        stored = graph.stored_inputs(node)
        block = _BLOCK.search(node.name)
        if block and stored:
            places.update(_in_block(block, stored))
        elif "blocks." in node.name or not stored:
            continue
        elif node.kind == "Conv":
            convolutions += 1
            names = zip(("weight", "bias"), stored, strict=False)
            places |= {f"encoder.conv{convolutions}.{key}": StoredAs(at) for key, at in names}
        else:
            places.update(_in_projection(graph, node, stored))
    return places


def _in_block(block: re.Match[str], stored: list[str]) -> Iterator[tuple[str, StoredAs]]:
    # What torch calls mlp.0, the graph calls mlp/mlp.0.
    part = block["part"].replace("mlp/mlp", "mlp").replace("/", ".")
    module = f"encoder.blocks.{block['block']}.{part}"
    match block["kind"]:
        case "MatMul":
            yield f"{module}.weight", StoredAs(stored[-1], transposed=True)
        case "Add":
            yield f"{module}.bias", StoredAs(stored[-1])
        case "Conv":
            yield f"{module}.weight", StoredAs(stored[0])
        case _:
            for key, name in zip(("weight", "bias"), stored, strict=False):
                yield f"{module}.{key}", StoredAs(name)


def _in_projection(
    graph: OnnxGraph, node: OnnxNode, stored: list[str]
) -> Iterator[tuple[str, StoredAs]]:
    """Outside of the blocks, only the projection has eight columns."""
    shape = graph.tensors[stored[-1]].shape
    if node.kind == "MatMul" and len(shape) == 2 and shape[1] == DIGITS:
        yield f"{_PROJECTION}.weight", StoredAs(stored[-1], transposed=True)
    elif node.kind == "Add" and shape == (DIGITS,):
        yield f"{_PROJECTION}.bias", StoredAs(stored[-1])
