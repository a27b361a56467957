"""The doctor looks at a checkpoint without loading it, and says what is wrong with it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import doctor
from agent.__main__ import main
from agent.config import load_config
from agent.doctor import Check
from agent.model_hub.gpus import Gpu, NoGpu
from tests.rig.hub_server import HubServer, hub_server
from tests.rig.tiny_checkpoint import copy_tokenizer, write_checkpoint
from tests.rig.tiny_mind import tokenizer_folder
from tests.rig.tiny_vocoder import write_token2wav

ROOT = Path(__file__).resolve().parent.parent
GPU = Gpu("H200", 139 * 1024**3, 141 * 1024**3)


@pytest.fixture(autouse=True)
def _machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU, and empty caches."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "modelscope"))
    monkeypatch.setattr("agent.model_hub.gpus.look_here", lambda _: GPU)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint with the real tokenizer and without the files of a voice."""
    path = tmp_path / "model"
    write_checkpoint(path, weights="holes", tokenizer="none")
    copy_tokenizer(path, tokenizer_folder())
    return path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with hub_server() as running:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", running.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield running


def look(source: object, *overrides: str) -> dict[str, Check]:
    config = load_config(None, {}, [f"model.source={source}", *overrides])
    return {check.name: check for check in doctor.check_model(config)}


def test_a_whole_checkpoint_is_described(folder: Path) -> None:
    checks = look(folder)
    assert [(check.name, check.status) for check in checks.values()] == [
        ("checkpoint", "ok"),
        ("weights", "ok"),
        ("tokenizer", "ok"),
        ("voice files", "warning"),
        ("memory", "ok"),
    ]
    assert checks["checkpoint"].detail == f"MiniCPM-o 4.5 in {folder}"
    assert checks["weights"].detail == (
        "184 tensors in 2 files, 0.11 billion parameters, 0.22 GB of BF16: all as expected"
    )
    assert "captions only" in checks["voice files"].detail
    assert "4 slots of 8192 tokens" in checks["memory"].detail


def test_a_vocoder_is_looked_for_where_it_is_configured(folder: Path, tmp_path: Path) -> None:
    assert look(folder, "vocoder.name=off")["voice files"].status == "ok"
    missing = look(folder, f"vocoder.folder={tmp_path}/none")["voice files"]
    assert (missing.status, "/none" in missing.detail) == ("failure", True)
    found = look(folder, f"vocoder.folder={write_token2wav(tmp_path / 'voice')}")["voice files"]
    assert (found.status, str(tmp_path / "voice") in found.detail) == ("ok", True)


def test_what_is_wrong_with_a_part_is_told_of_the_part(folder: Path) -> None:
    shard = folder / "model-00001-of-00002.safetensors"
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size - 1)
    (folder / "vocab.json").unlink()
    checks = look(folder)
    assert checks["weights"].status == checks["tokenizer"].status == "failure"
    assert "is truncated" in checks["weights"].detail
    assert "vocab.json is missing" in checks["tokenizer"].detail


def test_another_model_is_one_failure(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (check,) = look(folder).values()
    assert check.status == "failure" and "'llama'" in check.detail and check.advice


def test_too_little_memory_is_a_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.model_hub.gpus.look_here", lambda _: NoGpu("no GPU"))
    assert look(folder)["memory"].detail.endswith(" needed; no GPU")
    assert look(folder)["memory"].status == "warning"
    assert look(folder, "model.device=cpu")["memory"].detail.endswith("on the CPU")


def test_no_model_matters_only_to_who_asks_for_it() -> None:
    assert look("")["checkpoint"].status == "warning"
    check = look("", "engine.name=minicpm-o")["checkpoint"]
    assert check.status == "failure" and "openbmb/MiniCPM-o-4_5" in check.advice


def test_a_model_that_is_not_here_yet_is_measured(server: HubServer) -> None:
    server.models["me/tiny"] = {"config.json": b"{}", "model.safetensors": b"1"}
    server.sizes["model.safetensors"] = 3_000_000_000
    checks = look("me/tiny")
    assert checks["checkpoint"].status == "warning"
    assert "me/tiny is not here yet: 3.0 GB of 2 files are missing" in checks["checkpoint"].detail
    assert checks["memory"].status == "ok"
    server.sizes["model.safetensors"] = 10**15
    assert look("me/tiny")["checkpoint"].status == "failure"
    assert server.ranges == []


def test_a_model_that_nobody_has_is_a_failure(server: HubServer) -> None:
    (check,) = look("me/nothing").values()
    assert check.status == "failure" and "has no model 'me/nothing'" in check.detail


def test_the_command_takes_the_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("agent.doctor.check_torch", list)
    line = ["doctor", "--json", "--model", str(folder), "--set", "server.port=0"]
    assert main(line) == 0
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["weights"]["status"] == "ok"
    assert checks["engine"]["detail"].startswith("minicpm-o: H200 has 139.0 of 141.0 GiB free")


def test_a_wrong_model_is_told_once_with_advice_that_helps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("agent.doctor.check_torch", list)
    for more in ([], ["--set", "engine.name=minicpm-o"]):
        assert main(["doctor", "--model", "/wrong", "--set", "server.port=0", *more]) == 1
        told = capsys.readouterr().out
        assert told.count("/wrong") == 1 and "1 failed" in told
        assert "try: --model openbmb/MiniCPM-o-4_5 downloads it" in told
        assert "engine.name" not in told and "needs another" not in told


def test_a_model_that_does_not_answer_is_a_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.model_hub.gpus.look_here", lambda _: NoGpu("no GPU"))
    asked = f"model.source={folder}"
    check = doctor.check_engine(load_config(None, {}, [asked]))
    assert (check.status, check.detail) == ("warning", "echo, and not the model: no GPU")
    assert "--engine minicpm-o" in check.advice
    assert doctor.check_engine(load_config(None, {}, [])).status == "ok"
    assert doctor.check_engine(load_config(None, {}, [asked, "engine.name=echo"])).status == "ok"


def test_code_beside_the_weights_is_never_run(folder: Path) -> None:
    for name in ("modeling_minicpmo.py", "configuration_minicpmo.py", "torch.py", "__init__.py"):
        (folder / name).write_text("open('ran', 'w')\n")
    code = (
        "import sys; from agent.__main__ import main\n"
        f"sys.exit(main(['doctor', '--model', {str(folder)!r}, '--set', 'server.port=0']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "184 tensors in 2 files" in result.stdout, result.stderr
    assert not list(ROOT.glob("ran")) and not (folder / "ran").exists()
