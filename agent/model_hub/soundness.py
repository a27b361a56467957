"""Whether a checkpoint on the disk can be loaded at all, told in milliseconds and without torch.

So that a server refuses a broken download before it starts a process and reads for minutes. Keys
and shapes are compared by what loads them, in that process.
"""

import json
import struct
from pathlib import Path

from agent.config import ModelSection
from agent.duplex import inspection
from agent.duplex.inspection import Identity
from agent.errors import CheckpointError

_MOST_HEADER_BYTES = 100_000_000
"""The format's own limit."""
_LFS_POINTER = b"version "
"""The first eight bytes of what a clone holds where its large files were not fetched."""


def expect_sound(folder: Path, model: ModelSection) -> Identity:
    """What `folder` holds; CheckpointError when it is not the model, or a file of it is not whole.

    Looked at are config.json, the tokenizer, and the length that each shard's header announces.
    """
    identity = inspection.identify(folder)
    inspection.inspect_tokenizer(folder)
    extra = extra_weights(model)
    for path in identity.weight_files + ((extra,) if extra else ()):
        expect_whole(path)
    return identity


def extra_weights(model: ModelSection) -> Path | None:
    """The configured file of extra weights, if one is; CheckpointError when it is not there."""
    if not model.extra_weights:
        return None
    path = Path(model.extra_weights).expanduser().absolute()
    if not path.is_file():
        raise CheckpointError(f"model.extra_weights: there is no file {path}")
    return path


def expect_whole(shard: Path) -> None:
    """CheckpointError unless this safetensors file is as long as its header says."""
    try:
        size_bytes = shard.stat().st_size
        with shard.open("rb") as file:
            start = file.read(8)
            header_bytes = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            header = file.read(header_bytes) if header_bytes <= _MOST_HEADER_BYTES else b""
    except OSError as error:
        raise CheckpointError(f"{shard}: cannot be read ({error.strerror})") from error
    if start == _LFS_POINTER:
        raise CheckpointError(f"{shard}: is a Git LFS pointer, not the weights; run `git lfs pull`")
    if header_bytes <= _MOST_HEADER_BYTES and size_bytes < 8 + header_bytes:
        raise _truncated(shard, size_bytes, f"more than {8 + header_bytes}")
    expected_bytes = 8 + header_bytes + _content_bytes(shard, header)
    if size_bytes < expected_bytes:
        raise _truncated(shard, size_bytes, str(expected_bytes))


def _content_bytes(shard: Path, header: bytes) -> int:
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        return max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        IndexError,
        RecursionError,
    ) as error:
        raise CheckpointError(f"{shard}: is no safetensors file, or a damaged one") from error


def _truncated(shard: Path, size_bytes: int, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{shard}: is truncated ({size_bytes} bytes of {expected}); delete it and download it again"
    )
