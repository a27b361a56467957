"""Reads safetensors checkpoints strictly, shard by shard, straight to a device and a dtype.

    checkpoint = open_checkpoint(folder)  # headers only: keys, shapes, sizes
    with unfilled():
        tower = VisionTower(config)  # no memory yet
    load_parts(checkpoint, {"vpm.": tower}, unused={"llm.": "not needed here"}, target=Target())

A part is a module and the prefix of its keys in the checkpoint. Before a byte is read, every key
of the checkpoint must belong to a part or be declared unused with a reason, every key of a part
must be there, and every shape must fit; else CheckpointError names what differs.
"""

import json
import math
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from agent.errors import CheckpointError
from agent.torch_parts.layout import Fold, Folds, Layout, Stored, fold_weight_norm

__all__ = [
    "INDEX_FILE",
    "SINGLE_FILE",
    "Checkpoint",
    "Derives",
    "Fold",
    "Folds",
    "Target",
    "TensorHeader",
    "TensorSource",
    "fold_weight_norm",
    "load_parts",
    "open_checkpoint",
    "read_headers",
    "stored_shapes",
    "unfilled",
]

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_MOST_HEADER_BYTES = 100_000_000
"""The format's own limit."""
_LFS_POINTER = b"version "
"""The first eight bytes of what a clone holds where its large files were not fetched."""
_WORDS = "I32"
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, _WORDS: 4}
_SHOWN = 5
"""Keys that a message lists before it only counts."""


# ---- what is on the disk ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One tensor as its file describes it, not yet read."""

    shape: tuple[int, ...]
    dtype: str
    path: Path

    @property
    def bytes_stored(self) -> int:
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]


class TensorSource(Protocol):
    """Where weights come from; a checkpoint on the disk, or a test's recipe."""

    @property
    def headers(self) -> Mapping[str, TensorHeader]: ...

    def read(self, keys: Collection[str], device: torch.device) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of `keys` in its stored dtype, in the order that is cheapest to read."""
        ...


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The headers of all shards of one folder."""

    name: str
    headers: Mapping[str, TensorHeader]

    def read(self, keys: Collection[str], device: torch.device) -> Iterator[tuple[str, Tensor]]:
        """File by file. On the CPU a tensor is a view of the mapped file until it is converted."""
        by_path: dict[Path, list[str]] = {}
        for key in keys:
            by_path.setdefault(self.headers[key].path, []).append(key)
        for path, wanted in by_path.items():
            try:
                with safe_open(path, framework="pt", device=str(device)) as shard:
                    for key in wanted:
                        yield key, shard.get_tensor(key)
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path}: cannot be read ({error})") from error


def open_checkpoint(folder: Path, extra: Path | None = None) -> Checkpoint:
    """Read the headers of `folder`'s shards, found by their index or as one file.

    `extra` is a safetensors file whose tensors stand in for those of the same key. Raises
    CheckpointError when a file is missing, truncated or foreign; reads no weights.
    """
    if (folder / INDEX_FILE).is_file():
        headers = _read_indexed(folder)
    elif (folder / SINGLE_FILE).is_file():
        headers = read_headers(folder / SINGLE_FILE)
    else:
        raise CheckpointError(
            f"{folder}: holds neither {INDEX_FILE} nor {SINGLE_FILE}; is this the folder of a "
            "checkpoint, and is its download complete?"
        )
    if extra is not None:
        headers |= _replacements(headers, extra)
    return Checkpoint(str(folder), headers)


def read_headers(path: Path) -> dict[str, TensorHeader]:
    """Every tensor of one safetensors file, its length checked against what it announces."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            text = file.read(length) if 0 < length <= _MOST_HEADER_BYTES else b""
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if start == _LFS_POINTER:
        raise CheckpointError(f"{path}: is a Git LFS pointer, not the weights; run `git lfs pull`")
    if size < 8 + length <= 8 + _MOST_HEADER_BYTES:
        raise _truncated(path, size, f"more than {8 + length}")
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        headers = {key: _header(entry, path) for key, entry in entries.items()}
        end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise CheckpointError(f"{path}: is no safetensors file, or a damaged one") from error
    if size < end:
        raise _truncated(path, size, str(end))
    return headers


def _header(entry: Mapping[str, Any], path: Path) -> TensorHeader:
    shape = tuple(int(side) for side in entry["shape"])
    begin, end = entry["data_offsets"]
    header = TensorHeader(shape, str(entry["dtype"]), path)
    if header.dtype in _ITEM_BYTES and header.bytes_stored != end - begin:
        raise ValueError("a tensor's bytes do not fit its shape")
    return header


def _truncated(path: Path, size: int, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: is truncated ({size} bytes of {expected}); delete it and download it again"
    )


def _read_indexed(folder: Path) -> dict[str, TensorHeader]:
    index = folder / INDEX_FILE
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(places.values()))
        escaping = [name for name in names if Path(name).name != name]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index}: is no index of shards ({error})") from error
    if escaping:
        raise CheckpointError(f"{index}: names a file outside its folder: {escaping[0]}")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder}: {_listed('shards are missing', missing)}; finish the download"
        )
    headers: dict[str, TensorHeader] = {}
    for name in names:
        for key, header in read_headers(folder / name).items():
            if places.get(key) != name:
                raise CheckpointError(f"{folder / name}: holds {key}, which {index.name} does not")
            headers[key] = header
    absent = sorted(places.keys() - headers.keys())
    if absent:
        raise CheckpointError(f"{index}: {_listed('keys are in no shard', absent)}")
    return headers


def _replacements(headers: Mapping[str, TensorHeader], extra: Path) -> dict[str, TensorHeader]:
    replacing = read_headers(extra)
    unknown = sorted(replacing.keys() - headers.keys())
    if unknown:
        raise CheckpointError(
            f"{extra}: {_listed('keys are not in the checkpoint it is for', unknown)}"
        )
    return replacing


# ---- from the disk into modules -----------------------------------------------------------------


@contextmanager
def unfilled() -> Iterator[None]:
    """Modules built inside have their shapes, but neither memory nor initial values.

    Giving values to tensors without memory would import half of torch's compiler: six seconds.
    """
    with torch.device("meta"), _NoInitialValues():
        yield


class _NoInitialValues(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") not in _INITIALISERS:
            return func(*args, **kwargs)
        return args[0] if args else kwargs["tensor"]


_INITIALISERS = {"uniform_", "normal_", "constant_", "kaiming_uniform_", "fill_", "zero_"}
"""What torch's layers call to fill their parameters, and what that calls."""


@runtime_checkable
class Derives(Protocol):
    """A module with tables that are computed, not stored: called once its weights are in place."""

    def derive(self, device: torch.device) -> None: ...


@dataclass(frozen=True, slots=True)
class Target:
    """Where loaded weights go."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.bfloat16


def load_parts(
    source: TensorSource,
    parts: Mapping[str, nn.Module],
    *,
    unused: Mapping[str, str],
    target: Target,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Fill modules that were built `unfilled`, by their prefix in the checkpoint.

    `unused` maps prefixes of keys that nobody reads to the reason why. `on_progress` hears of
    (bytes read, bytes in all). Afterwards the parts stand on `target`, in evaluation mode and
    without gradients, and their computed tables are made. Raises CheckpointError, before anything
    is read, when a key is missing, unexpected or of another shape than the module expects.
    """
    layouts = [Layout(prefix, module) for prefix, module in parts.items()]
    wanted = {key: stored for layout in layouts for key, stored in layout.stored.items()}
    _compare(source.headers, wanted, unused)
    total = sum(source.headers[key].bytes_stored for key in wanted)
    done = 0
    for key, tensor in source.read(wanted, target.device):
        done += source.headers[key].bytes_stored
        owner = next(layout for layout in layouts if key in layout.stored)
        owner.take(key, tensor.to(target.device), target.dtype)
        on_progress(done, total)
    for module in parts.values():
        _finish(module, target.device)


def stored_shapes(parts: Mapping[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    """Every key that a checkpoint of these parts must hold, by their prefixes, and its shape."""
    layouts = [Layout(prefix, module) for prefix, module in parts.items()]
    return {key: stored.shape for layout in layouts for key, stored in layout.stored.items()}


def _finish(module: nn.Module, device: torch.device) -> None:
    module.eval()
    for inner in module.modules():
        if isinstance(inner, Derives):
            inner.derive(device)


def _compare(
    headers: Mapping[str, TensorHeader],
    wanted: Mapping[str, Stored],
    unused: Mapping[str, str],
) -> None:
    ignored = tuple(unused)
    found = {key for key in headers if key in wanted or not key.startswith(ignored)}
    shared = [key for key in wanted if key in headers]
    words = [key for key in shared if wanted[key].integers]
    numbers = [key for key in shared if not wanted[key].integers]
    faults = [
        _listed("keys are missing", sorted(wanted.keys() - headers.keys())),
        _listed("keys are unexpected", sorted(found - wanted.keys())),
        _listed(
            "keys have another shape",
            [
                f"{key} {list(headers[key].shape)} instead of {list(wanted[key].shape)}"
                for key in shared
                if headers[key].shape != wanted[key].shape
            ],
        ),
        _listed(
            "keys hold no floating-point numbers",
            [f"{key} {headers[key].dtype}" for key in numbers if not _is_float(headers[key])],
        ),
        _listed(
            "keys hold no words of 32 bits",
            [f"{key} {headers[key].dtype}" for key in words if headers[key].dtype != _WORDS],
        ),
    ]
    told = [fault for fault in faults if fault]
    if told:
        raise CheckpointError(f"the checkpoint does not fit the model: {'; '.join(told)}")


def _is_float(header: TensorHeader) -> bool:
    return header.dtype in _ITEM_BYTES and header.dtype != _WORDS


def _listed(fault: str, names: Sequence[str]) -> str:
    """'7 keys are missing: a, b, c, d, e, …', or nothing when there are none."""
    if not names:
        return ""
    more = ", …" if len(names) > _SHOWN else ""
    return f"{len(names)} {fault}: {', '.join(names[:_SHOWN])}{more}"
