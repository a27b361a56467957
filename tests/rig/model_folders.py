"""Checkpoints by name only, caches that hold none, and a GPU they would fit on."""

from pathlib import Path

import pytest

from agent.config import Config, load_config
from agent.model_hub.gpus import Gpu
from tests.rig.made_tokenizer import write_tokenizer
from tests.rig.tiny_checkpoint import write_checkpoint

GIB = 1024**3
H200 = Gpu("H200", 139 * GIB, 141 * GIB)


def write_whole(path: Path) -> Path:
    """A whole checkpoint, whose words mean nothing."""
    write_checkpoint(path, weights="holes", tokenizer="none")
    write_tokenizer(path)
    return path


def empty_caches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches in `folder`, in the place of this machine's."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(folder / "modelscope"))
    return folder


def config_of(*overrides: str) -> Config:
    return load_config(None, {}, list(overrides))
