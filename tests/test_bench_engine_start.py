"""`bench.engine start`: what it writes is a checkpoint, and every part of a start is timed."""

import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from agent.duplex.inspection import inspect_tokenizer
from agent.engines import EngineSettings, ModelSettings, Progress, minicpm_o
from agent.fleet.host import ThreadHost
from agent.torch_parts.checkpoint import TensorHeader, open_checkpoint
from bench import engine_start
from bench.engine_start import MARKS, kernels_in, measure_start, write_checkpoint
from tests.rig.engine_rows import Rows
from tests.rig.timed_core import TimedCore
from tests.rig.virtual_time import VirtualClock

SHAPES = {"llm.a": (4, 8), "llm.b": (16,), "tts.c": (2, 2, 2)}


class Few:
    """A source of a few tensors."""

    headers: Mapping[str, TensorHeader] = {
        key: TensorHeader(shape, "BF16", Path("few")) for key, shape in SHAPES.items()
    }

    def read(self, keys: Collection[str], device: torch.device) -> Iterator[tuple[str, Tensor]]:
        for place, key in enumerate(keys):
            yield key, torch.full(SHAPES[key], float(place), dtype=torch.bfloat16)


def test_what_is_written_is_read_as_a_checkpoint_in_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_start, "_SHARD_BYTES", 96)
    assert write_checkpoint(tmp_path, Few(), {"version": "4.5"}) == 2 * (32 + 16 + 8)
    checkpoint = open_checkpoint(tmp_path)
    assert {key: header.shape for key, header in checkpoint.headers.items()} == SHAPES
    assert len({header.path for header in checkpoint.headers.values()}) == 2
    read = dict(checkpoint.read(SHAPES, torch.device("cpu")))
    assert [float(read[key].flatten()[0]) for key in SHAPES] == [0, 1, 2]
    assert json.loads((tmp_path / "config.json").read_text()) == {"version": "4.5"}
    inspect_tokenizer(tmp_path)


async def test_a_start_is_told_by_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(100))

    def load_core(settings: EngineSettings, on_progress: Progress) -> TimedCore:
        minicpm_o.load_vocabulary(tmp_path)
        minicpm_o.load_model()  # type: ignore[call-arg]
        return TimedCore(VirtualClock())

    monkeypatch.setattr(minicpm_o, "load_vocabulary", lambda folder: None)
    monkeypatch.setattr(minicpm_o, "load_model", lambda: [next(clock) for _ in range(9)])
    monkeypatch.setattr(minicpm_o, "load_core", load_core)
    monkeypatch.setattr(engine_start, "SYSTEM_CLOCK", _Steps(clock))
    before = {name: getattr(minicpm_o, name) for name in ("load_model", "load_vocabulary")}
    rows = Rows()
    settings = EngineSettings(tmp_path, 1, ModelSettings(tmp_path))
    await measure_start(rows.report, tmp_path, settings, ThreadHost, _Steps(clock), "first")
    values = rows.values
    assert values["first_tokenizer_s"] == 1, "from one step of the clock to the next"
    assert values["first_weights_s"] == 10, "nine more pass meanwhile"
    assert values["first_process_s"] == 1
    assert values["first_rest_s"] == 3
    assert values["first_s"] == 16
    assert rows.read()["first_s"]["target"] == 60
    assert all(getattr(minicpm_o, name) is kept for name, kept in before.items())
    assert (tmp_path / MARKS).is_file()


@pytest.mark.parametrize("before", [None, "elsewhere"])
def test_processes_started_inside_keep_their_kernels_where_they_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    if before is not None:
        monkeypatch.setenv("TRITON_CACHE_DIR", before)
    told = [sys.executable, "-c", "import os; print(os.environ['TRITON_CACHE_DIR'])"]
    with kernels_in(tmp_path):
        assert subprocess.check_output(told, text=True).strip() == str(tmp_path)
    assert os.environ.get("TRITON_CACHE_DIR") == before


class _Steps(VirtualClock):
    """Every look at it is a second later than the one before."""

    def __init__(self, steps: Iterator[int]) -> None:
        self._steps = steps

    def now_s(self) -> float:
        return float(next(self._steps))
