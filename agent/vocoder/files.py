"""The files of a vocoder's folder: which there are, and the weights in them.

    files = find_token2wav(folder)
    source = open_pt(files.flow)  # a TensorSource: load_parts(source, …)

A `.pt` file is a pickle; it is only ever read with weights alone, so nothing in it runs. Keys are
brought into one form: without `generator.`, weight norm as `parametrizations.weight.original0/1`.
"""

import pickle
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agent.errors import CheckpointError
from agent.torch_parts.checkpoint import TensorHeader
from agent.vocoder.config import FlowConfig, check_flow_yaml, flow_config
from agent.vocoder.plain_yaml import parse_plain_yaml

FLOW = "flow.pt"
FLOW_YAML = "flow.yaml"
HIFT = "hift.pt"
HIFT_ORIGINAL = "hift_original.pt"
SPEAKER = "campplus.onnx"
TOKENIZERS = ("speech_tokenizer_v2_25hz.onnx", "speech_tokenizer_v2.onnx")
"""One model under two names."""
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
_COUNTERS = {"epoch", "step"}
"""What training leaves beside the weights."""
_LFS_POINTER = b"version "
_WEIGHT_NORM = {
    ".weight_g": ".parametrizations.weight.original0",
    ".weight_v": ".parametrizations.weight.original1",
}


# ---- weights ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PtSource:
    """The tensors of one `.pt` file; they stay on the disk until they are read."""

    name: str
    headers: Mapping[str, TensorHeader]
    tensors: Mapping[str, Tensor]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: header.shape for key, header in self.headers.items()}

    def read(self, keys: Collection[str], device: torch.device) -> Iterator[tuple[str, Tensor]]:
        """Each in its stored dtype."""
        for key in keys:
            yield key, self.tensors[key].to(device)


def open_pt(path: Path) -> PtSource:
    """The weights of `path` by the keys of their modules; CheckpointError when it is none."""
    found: dict[str, Tensor] = {}
    for stored, value in _unpickled(path).items():
        if not isinstance(stored, str) or not isinstance(value, Tensor):
            if stored in _COUNTERS:
                continue
            raise CheckpointError(f"{path}: holds {stored!r}, which is no tensor")
        key = plain_key(stored)
        if key in found:
            raise CheckpointError(f"{path}: holds {key} twice, under two names")
        found[key] = value
    headers = {
        key: TensorHeader(tuple(value.shape), _DTYPES.get(value.dtype, str(value.dtype)), path)
        for key, value in found.items()
    }
    return PtSource(str(path), headers, found)


def plain_key(stored: str) -> str:
    """A key as our modules name it, whatever wrapper and torch version wrote it."""
    key = stored.removeprefix("generator.")
    for old, new in _WEIGHT_NORM.items():
        if key.endswith(old):
            return key.removesuffix(old) + new
    return key


def _unpickled(path: Path) -> Mapping[Any, Any]:
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if start == _LFS_POINTER:
        raise CheckpointError(f"{path}: is a Git LFS pointer, not the weights; run `git lfs pull`")
    is_zip = start.startswith(b"PK")  # the older form cannot be mapped
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        reason = str(error).split("\n", 1)[0]
        raise CheckpointError(f"{path}: holds no weights, or is damaged ({reason})") from error
    if not isinstance(stored, Mapping):
        raise CheckpointError(f"{path}: holds no mapping of weights")
    return stored


# ---- folders ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Token2wavFiles:
    """Both layouts: five files (classic), or with another HiFT for whole utterances (causal)."""

    folder: Path
    flow: Path
    flow_yaml: Path
    hift: Path
    hift_whole: Path
    speaker: Path
    tokenizer: Path


def find_token2wav(folder: Path) -> Token2wavFiles:
    """The files of a token2wav folder; CheckpointError names what is missing.

    Which generation its HiFT is of is told by shapes, not by these names.
    """
    needed = [FLOW, FLOW_YAML, HIFT]
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder}: lacks {', '.join(missing)}; is this the vocoder's folder "
            "(assets/token2wav of the model), and is its download complete?"
        )
    original = folder / HIFT_ORIGINAL
    present = [folder / name for name in TOKENIZERS if (folder / name).is_file()]
    return Token2wavFiles(
        folder=folder,
        flow=folder / FLOW,
        flow_yaml=folder / FLOW_YAML,
        hift=folder / HIFT,
        hift_whole=original if original.is_file() else folder / HIFT,
        speaker=folder / SPEAKER,
        tokenizer=present[0] if present else folder / TOKENIZERS[0],
    )


def read_flow_config(source: PtSource, flow_yaml: Path) -> FlowConfig:
    """The flow's sizes by its shapes, held against flow.yaml; CheckpointError."""
    try:
        text = flow_yaml.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{flow_yaml}: cannot be read ({error})") from error
    return check_flow_yaml(flow_config(source.headers), parse_plain_yaml(text, str(flow_yaml)))
