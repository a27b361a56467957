"""Reading checkpoints: strictness, messages, folding, and that nothing is read before it fits."""

import json
import struct
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from agent.errors import CheckpointError
from agent.torch_parts.checkpoint import (
    INDEX_FILE,
    SINGLE_FILE,
    Checkpoint,
    Fold,
    Target,
    TensorHeader,
    fold_weight_norm,
    load_parts,
    open_checkpoint,
    read_headers,
    unfilled,
)

FLOAT32 = Target(torch.device("cpu"), torch.float32)


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.LayerNorm(2)
        self.derived_on: torch.device | None = None

    def derive(self, device: torch.device) -> None:
        self.derived_on = device


def _tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = {
        "a.linear.weight": (2, 3),
        "a.linear.bias": (2,),
        "a.norm.weight": (2,),
        "a.norm.bias": (2,),
        "b.table": (5, 2),
    }
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def _save(folder: Path, tensors: Mapping[str, Tensor], shards: int = 2) -> Path:
    keys, places = sorted(tensors), {}
    for number in range(shards):
        name = f"model-{number}.safetensors"
        mine = keys[number::shards]
        save_file({key: tensors[key] for key in mine}, folder / name)
        places |= dict.fromkeys(mine, name)
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": places}))
    return folder


def _load(checkpoint: Checkpoint, target: Target = FLOAT32) -> Part:
    with unfilled():
        part = Part()
    load_parts(checkpoint, {"a.": part}, unused={"b.": "for tests"}, target=target)
    return part


# ---- loading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_every_tensor_lands_where_it_belongs(tmp_path: Path, shards: int) -> None:
    tensors = _tensors()
    part = _load(open_checkpoint(_save(tmp_path, tensors, shards)))
    for name, value in part.state_dict().items():
        assert torch.equal(value, tensors[f"a.{name}"]), name
    assert not part.training
    assert not any(parameter.requires_grad for parameter in part.parameters())
    assert part.derived_on == torch.device("cpu")


def test_a_single_file_needs_no_index(tmp_path: Path) -> None:
    save_file(_tensors(), tmp_path / SINGLE_FILE)
    assert torch.equal(_load(open_checkpoint(tmp_path)).norm.bias, _tensors()["a.norm.bias"])


def test_weights_come_in_the_dtype_that_is_wanted(tmp_path: Path) -> None:
    part = _load(
        open_checkpoint(_save(tmp_path, _tensors())), Target(torch.device("cpu"), torch.bfloat16)
    )
    assert {parameter.dtype for parameter in part.parameters()} == {torch.bfloat16}
    assert torch.equal(part.linear.weight, _tensors()["a.linear.weight"].bfloat16())


def test_progress_counts_the_bytes_that_are_read(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(_save(tmp_path, _tensors()))
    told: list[tuple[int, int]] = []
    with unfilled():
        part = Part()
    load_parts(
        checkpoint,
        {"a.": part},
        unused={"b.": "for tests"},
        target=FLOAT32,
        on_progress=lambda done, total: told.append((done, total)),
    )
    assert told[-1] == (48, 48)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_an_extra_file_stands_in_for_some_tensors(tmp_path: Path) -> None:
    _save(tmp_path, _tensors())
    extra = tmp_path / "extra.safetensors"
    save_file({"a.norm.bias": torch.tensor([7.0, 8.0])}, extra)
    part = _load(open_checkpoint(tmp_path, extra))
    assert part.norm.bias.tolist() == [7, 8]
    assert torch.equal(part.norm.weight, _tensors()["a.norm.weight"])
    save_file({"a.other": torch.zeros(2)}, extra)
    with pytest.raises(CheckpointError, match=r"extra\.safetensors: 1 keys are not in .*a\.other"):
        open_checkpoint(tmp_path, extra)


def test_building_takes_neither_memory_nor_half_of_torch() -> None:
    code = (
        "import sys, torch\nfrom torch import nn\n"
        "from agent.torch_parts.checkpoint import unfilled\n"
        "with unfilled():\n"
        "    made = [nn.Linear(3, 3), nn.Conv1d(2, 2, 3), nn.LayerNorm(4), nn.Embedding(5, 2)]\n"
        "print({p.device.type for m in made for p in m.parameters()}, 'sympy' in sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100
    )
    assert ran.stdout.strip() == "{'meta'} False"


# ---- what does not fit --------------------------------------------------------------------------


class Unreadable:
    """A source whose weights must not be asked for."""

    def __init__(self, headers: Mapping[str, TensorHeader]) -> None:
        self.headers = headers

    def read(self, keys: Collection[str], device: torch.device) -> Iterator[tuple[str, Tensor]]:
        raise AssertionError("read before everything was known to fit")


def _headers(**changes: tuple[tuple[int, ...], str] | None) -> dict[str, TensorHeader]:
    wanted = {key: (tuple(value.shape), "F32") for key, value in _tensors().items()}
    merged = wanted | {key.replace("__", "."): value for key, value in changes.items()}
    return {
        key: TensorHeader(value[0], value[1], Path("x"))
        for key, value in merged.items()
        if value is not None
    }


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        (_headers(a__norm__bias=None), r"1 keys are missing: a\.norm\.bias"),
        (_headers(a__more=((1,), "F32")), r"1 keys are unexpected: a\.more"),
        (_headers(c__x=((1,), "F32")), r"1 keys are unexpected: c\.x"),
        (
            _headers(a__linear__bias=((3,), "F32")),
            r"1 keys have another shape: a\.linear\.bias \[3\] instead of \[2\]",
        ),
        (_headers(a__linear__bias=((2,), "I8")), r"no floating-point numbers: a\.linear\.bias I8"),
        ({}, r"4 keys are missing"),
        (
            _headers(**{f"a__x{n}": ((1,), "F32") for n in range(9)}),
            r"9 keys are unexpected: a\.x0, a\.x1, a\.x2, a\.x3, a\.x4, …",
        ),
    ],
)
def test_what_differs_is_named_before_anything_is_read(
    headers: Mapping[str, TensorHeader], told: str
) -> None:
    with unfilled():
        part = Part()
    with pytest.raises(CheckpointError, match=told):
        load_parts(Unreadable(headers), {"a.": part}, unused={"b.": "for tests"}, target=FLOAT32)


def test_several_faults_are_told_at_once() -> None:
    headers = _headers(a__norm__bias=None, a__more=((1,), "F32"))
    with unfilled():
        part = Part()
    with pytest.raises(CheckpointError, match=r"missing: a\.norm\.bias; 1 keys are unexpected"):
        load_parts(Unreadable(headers), {"a.": part}, unused={"b.": ""}, target=FLOAT32)


@pytest.mark.parametrize("left", [0, 5, 8, 60, -1])
def test_a_truncated_file_says_so(tmp_path: Path, left: int) -> None:
    path = tmp_path / SINGLE_FILE
    save_file(_tensors(), path)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(CheckpointError, match=r"is truncated .*download it again"):
        open_checkpoint(tmp_path)


def _header_of(entry: object) -> bytes:
    text = json.dumps({"a": entry}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(64)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff" * 400,
        b"<html>Not found, and some more of it to fill the page</html>",
        struct.pack("<Q", 4) + b"null" + bytes(9),
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"\xff\xfe\xfd\xfc",
        _header_of(None),
        _header_of({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}),
        _header_of({"dtype": "F32", "shape": "x", "data_offsets": [0, 4]}),
        _header_of({"dtype": "F32", "shape": [1]}),
        _header_of({"dtype": "F32", "shape": [1], "data_offsets": []}),
    ],
)
def test_a_foreign_file_says_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SINGLE_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is no safetensors file"):
        open_checkpoint(tmp_path)


def test_a_pointer_of_git_lfs_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / SINGLE_FILE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        open_checkpoint(tmp_path)


def _reindex(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    path = folder / INDEX_FILE
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda places: places.update({"a.norm.bias": "gone.safetensors"}), "gone.safetensors"),
        (lambda places: places.update({"z": "model-0.safetensors"}), "in no shard: z"),
        (lambda places: places.pop("a.linear.bias"), "holds a.linear.bias, which"),
        (lambda places: places.update({"z": "../model-0.safetensors"}), "outside its folder"),
        (lambda places: places.update({"z": 4}), "is no index"),
    ],
)
def test_an_index_that_does_not_match_its_shards(
    tmp_path: Path, change: Callable[[dict[str, str]], object], told: str
) -> None:
    _save(tmp_path, _tensors())
    _reindex(tmp_path, change)
    with pytest.raises(CheckpointError, match=told):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', "{"])
def test_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX_FILE).write_text(text)
    with pytest.raises(CheckpointError, match="is no index of shards"):
        open_checkpoint(tmp_path)


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds neither .* is this the folder"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_headers(tmp_path / "none.safetensors")


def test_a_file_that_changes_after_its_headers_were_read(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(_save(tmp_path, _tensors(), 1))
    (tmp_path / "model-0.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="cannot be read"):
        _load(checkpoint)


# ---- folding ------------------------------------------------------------------------------------


class Folded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 40, bias=False)
        self.both = nn.Linear(2, 4, bias=False)

    def folds(self) -> Mapping[str, Fold]:
        halves = {"upper.weight": (2, 2), "lower.weight": (2, 2)}
        return {
            "head.weight": fold_weight_norm("head.original0", "head.original1", (40, 64)),
            "both.weight": Fold(halves, lambda upper, lower: torch.cat([upper, lower])),
        }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folded_parameters_are_made_in_the_dtype_of_the_weights(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(5)
    stored = {
        "t.head.original0": torch.rand(40, 1, generator=generator) + 0.5,
        "t.head.original1": torch.randn(40, 64, generator=generator),
        "t.lower.weight": torch.full((2, 2), 2.0),
        "t.upper.weight": torch.full((2, 2), 1.0),
    }
    checkpoint = open_checkpoint(_save(tmp_path, stored, 3))
    with unfilled():
        part = Folded()
    load_parts(checkpoint, {"t.": part}, unused={}, target=Target(torch.device("cpu"), dtype))
    assert part.both.weight.tolist() == [[1, 1], [1, 1], [2, 2], [2, 2]]

    reference = nn.Linear(64, 40, bias=False, dtype=dtype)
    nn.utils.parametrizations.weight_norm(reference)
    parametrization = reference.parametrizations.weight
    parametrization.original0.data = stored["t.head.original0"].to(dtype)
    parametrization.original1.data = stored["t.head.original1"].to(dtype)
    assert part.head.weight.dtype == dtype
    assert torch.equal(part.head.weight, reference.weight)


def test_sources_of_a_fold_are_checked_like_any_key(tmp_path: Path) -> None:
    stored = {"t.head.original0": torch.zeros(40), "t.lower.weight": torch.zeros(2, 2)}
    checkpoint = open_checkpoint(_save(tmp_path, stored, 1))
    with unfilled():
        part = Folded()
    with pytest.raises(CheckpointError, match=r"2 keys are missing: t\.head\.original1, t\.upper"):
        load_parts(checkpoint, {"t.": part}, unused={}, target=FLOAT32)
