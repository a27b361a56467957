"""The tiny model as a checkpoint on the disk, in the layout of the official one.

    folder = shared_checkpoint(tmp_path_factory)  # once for all tests; not to be changed
    write_checkpoint(tmp_path, weights="holes")  # one's own, at no cost: every weight is 0

Weights are the recipe's unless they are holes: files of the right length with headers as they
should be, of which the disk keeps nothing else. So even the full-size model can be written.
"""

import atexit
import json
import math
import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from tests.rig import tiny_model as tiny
from tests.rig.tiny_mind import tokenizer_folder

INDEX = "model.safetensors.index.json"
CONFIG_FILES = ("config.json", "generation_config.json", "preprocessor_config.json")
TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "vocab.json",
)
_ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "I32": 4}


def shared_checkpoint(factory: pytest.TempPathFactory) -> Path:
    """The folder of a checkpoint with the recipe's weights and the real tokenizer: 205 MB.

    Written once and removed when the process ends; whoever wants to change a file copies the
    folder. Skips the test where the tokenizer is not at hand.
    """
    if "folder" not in _SHARED:
        tokenizer_folder()
        folder = factory.mktemp("tiny") / "MiniCPM-o-tiny"
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        write_checkpoint(folder)
        _SHARED["folder"] = folder
    return _SHARED["folder"]


_SHARED: dict[str, Path] = {}


def write_checkpoint(
    folder: Path,
    *,
    shards: int = 2,
    tokenizer: Path | Literal["shared", "none"] = "shared",
    weights: Literal["recipe", "holes"] = "recipe",
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """config.json, safetensors shards, their index, and the tokenizer's files in `folder`.

    `tokenizer` is the folder of its files; "shared" are the real ones, without which the test is
    skipped; with "none" neither they nor the two other config files are there.
    """
    if weights == "recipe":
        tiny.write_checkpoint(folder, dtype=dtype, shards=shards)
    else:
        stored = "BF16" if dtype == torch.bfloat16 else "F32"
        write_holes(folder, tiny.official_config(), tiny.parameters(), shards=shards, dtype=stored)
    if tokenizer != "none":
        copy_tokenizer(folder, tokenizer_folder() if tokenizer == "shared" else tokenizer)


def copy_tokenizer(folder: Path, source: Path) -> None:
    """The tokenizer's files, and the two configs that lie beside them."""
    for name in (*TOKENIZER_FILES, *CONFIG_FILES[1:]):
        shutil.copyfile(source / name, folder / name)


# ---- weights of zeros ---------------------------------------------------------------------------


def write_holes(
    folder: Path,
    config: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]],
    *,
    shards: int = 2,
    dtype: str = "BF16",
) -> None:
    """A checkpoint of these keys and shapes, whose weights are holes in their files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    keys = list(shapes)
    places: dict[str, str] = {}
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        mine = keys[number * len(keys) // shards : (number + 1) * len(keys) // shards]
        write_shard(folder / name, {key: shapes[key] for key in mine}, dtype)
        places |= dict.fromkeys(mine, name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def write_shard(path: Path, shapes: Mapping[str, Sequence[int]], dtype: str = "BF16") -> None:
    """One safetensors file: its header, and a hole for the weights."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * _ITEM_BYTES[dtype]
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


@contextmanager
def changed_json(path: Path) -> Iterator[dict[str, Any]]:
    """The content of a JSON file, to be changed; written back at the end."""
    values = json.loads(path.read_text(encoding="utf-8"))
    yield values
    path.write_text(json.dumps(values, indent=1), encoding="utf-8")
