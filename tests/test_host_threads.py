"""How many threads torch works on beside a device, whoever builds an engine of loaded weights."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from agent.duplex.model import DuplexModel
from agent.engines import EngineSettings, ModelSettings
from agent.engines.minicpm_o import _threads_beside, parts_of
from agent.torch_parts.checkpoint import Target
from tests.rig.tiny_mind import tiny_mind

MODEL = ModelSettings(Path(), context_tokens=256)
SETTINGS = EngineSettings(Path(), slots=1, model=MODEL)


@pytest.fixture
def mind() -> Iterator[DuplexModel]:
    """The tiny model, and torch on as many threads as before behind the test."""
    mind, before = tiny_mind(), torch.get_num_threads()
    torch.set_num_threads(2)
    yield mind
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("device", "cores", "threads"),
    [
        ("cpu", 8, 7),
        ("cpu", 2, 1),
        ("cpu", 1, 1),
        ("cpu", None, 1),
        ("cuda", 8, 1),
        ("cuda:1", 2, 1),
    ],
)
def test_one_core_is_the_servers_and_beside_a_gpu_one_thread_is_enough(
    monkeypatch: pytest.MonkeyPatch, device: str, cores: int | None, threads: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert _threads_beside(torch.device(device)) == threads


# "meta" is a device beside the host that every machine has, and it holds nothing.
@pytest.mark.parametrize(("device", "threads"), [("cpu", 3), ("meta", 1)])
def test_an_engine_of_weights_that_others_loaded_works_on_as_many(
    monkeypatch: pytest.MonkeyPatch, mind: DuplexModel, device: str, threads: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    target = Target(torch.device(device), mind.target.dtype)
    parts_of(replace(mind, target=target), MODEL, SETTINGS)
    assert torch.get_num_threads() == threads
