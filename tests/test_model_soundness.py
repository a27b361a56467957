"""A broken download is refused before anything is started for it, and told by its file."""

import subprocess
import sys
from pathlib import Path

import pytest

from agent.config import load_config
from agent.errors import CheckpointError
from agent.model_hub import choose, engine_settings
from agent.model_hub.gpus import Gpu
from agent.model_hub.soundness import expect_sound, expect_whole
from tests.rig.made_tokenizer import write_tokenizer
from tests.rig.tiny_checkpoint import write_checkpoint, write_shard

ROOT = Path(__file__).resolve().parent.parent
H200 = Gpu("H200", 139 * 1024**3, 141 * 1024**3)
SHARD = "model-00002-of-00002.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint."""
    path = tmp_path / "model"
    write_checkpoint(path, weights="holes", tokenizer="none")
    write_tokenizer(path)
    return path


def refused(folder: Path, *overrides: str) -> str:
    """Why neither the choice nor what comes after it takes the folder."""
    config = load_config(None, {}, [f"model.source={folder}", *overrides])
    with pytest.raises(CheckpointError) as chosen:
        choose(config, lambda _: H200)
    with pytest.raises(CheckpointError) as whole:
        expect_sound(folder, config.model)
    assert str(chosen.value) == str(whole.value)
    return str(chosen.value)


def cut(path: Path, missing_bytes: int) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - missing_bytes)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "vocab.json", "merges.txt"])
def test_a_missing_file_of_the_tokenizer_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert f"{name} is missing" in refused(folder)


def test_another_tokenizer_is_refused(folder: Path) -> None:
    (folder / "vocab.json").write_text('{"a": 0}')
    assert "tokens, expected" in refused(folder)


def test_a_shard_that_is_one_byte_short_is_named(folder: Path) -> None:
    size_bytes = (folder / SHARD).stat().st_size
    cut(folder / SHARD, 1)
    told = refused(folder, "engine.name=minicpm-o")
    assert told.startswith(f"{folder / SHARD}: is truncated ({size_bytes - 1} bytes of")
    assert f"of {size_bytes}); delete it and download it again" in told


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is truncated (0 bytes of more than 8)"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"\x10" + 7 * b"\0" + b"{}", "is truncated (10 bytes of more than 24)"),
        (b"\x02" + 7 * b"\0" + b"[]", "no safetensors file"),
        (8 * b"\xff" + b"{}", "no safetensors file"),
        (b"<html>an error page</html>", "no safetensors file"),
    ],
)
def test_what_is_no_shard_is_told(folder: Path, content: bytes, told: str) -> None:
    (folder / SHARD).write_bytes(content)
    assert told in refused(folder)


def test_a_shard_may_be_empty_and_longer_than_it_says(tmp_path: Path) -> None:
    shard = tmp_path / "one.safetensors"
    write_shard(shard, {})
    expect_whole(shard)
    shard.write_bytes(shard.read_bytes() + b"\0")
    expect_whole(shard)


def test_extra_weights_are_looked_at_too(folder: Path, tmp_path: Path) -> None:
    extra = tmp_path / "extra.safetensors"
    write_shard(extra, {"a": (4, 4)})
    cut(extra, 1)
    assert str(extra) in refused(folder, f"model.extra_weights={extra}")


def test_what_breaks_after_the_choice_is_refused_before_the_start(folder: Path) -> None:
    config = load_config(None, {}, [f"model.source={folder}"])
    choice = choose(config, lambda _: H200)
    cut(folder / SHARD, 1)
    with pytest.raises(CheckpointError, match="is truncated"):
        engine_settings(config, choice)


def test_serve_refuses_it_without_torch_and_without_starting_a_process(folder: Path) -> None:
    cut(folder / SHARD, 1)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import agent.fleet.pool as pool; pool.start_core = None\n"
        "from agent.__main__ import main\n"
        f"sys.exit(main(['serve', '--port', '0', '--engine', 'minicpm-o', '--model', "
        f"{str(folder)!r}]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2, result.stderr
    assert result.stderr.splitlines()[-1].startswith(f"voice-agent: {folder / SHARD}: is truncated")
    assert "Traceback" not in result.stderr and "loading" not in result.stderr
