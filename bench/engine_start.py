"""`bench.engine start`: from nothing until an engine takes calls, its weights on a warm disk.

A checkpoint of full size is written first, with random weights under the published keys, and so are
a tokenizer and a vocoder. Then the engine is started as `serve` starts it, in a process of its own:
`start_first` builds every kernel, as on a new machine, and `start` finds them built.
"""

import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from agent.clock import SYSTEM_CLOCK, Clock
from agent.duplex.config import parse_config
from agent.duplex.tokens import VOCABULARY_SIZE, WRITTEN
from agent.engines import EngineSettings, ModelSettings, Progress, VoiceSettings, minicpm_o
from agent.fleet.host import ProcessHost
from agent.fleet.pool import MakeHost, start_core
from agent.fleet.worker import Job
from agent.interfaces import EngineCore
from agent.torch_parts.checkpoint import INDEX_FILE, TensorSource
from bench import random_model
from bench.engine_parts import ASSETS, write_voice
from bench.engine_report import EngineReport
from bench.report import at_most

START_S = at_most(60)
MARKS = "marks.json"
_KERNELS = "TRITON_CACHE_DIR"
_SHARD_BYTES = 5 << 30
_PARTS = {
    "load_vocabulary": "tokenizer",
    "load_model": "weights",
    "Slots": "slots",
    "load_voice": "vocoder",
    "_lanes": "lanes",
    "_warm": "warm_up",
}
"""What `agent.engines.minicpm_o` calls, and the name under which its time is told."""


# ---- what is on the disk ------------------------------------------------------------------------


def write_checkpoint(folder: Path, source: TensorSource, config: Mapping[str, Any]) -> int:
    """config.json, tokenizer, shards of at most 5 GB and their index → bytes of weights; once."""
    keys, total = list(source.headers), 0
    places: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    held = 0
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for key, tensor in source.read(keys, device):
        size = tensor.numel() * 2
        if shard and held + size > _SHARD_BYTES:
            places |= _write_shard(folder, len(set(places.values())), shard)
            shard, held = {}, 0
        shard[key] = tensor.to("cpu", torch.bfloat16).contiguous()
        held, total = held + size, total + size
    places |= _write_shard(folder, len(set(places.values())), shard)
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": places}), "utf-8")
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    _write_tokenizer(folder)
    return total


def _write_shard(folder: Path, number: int, shard: dict[str, torch.Tensor]) -> dict[str, str]:
    name = f"model-{number:05d}.safetensors"
    save_file(shard, folder / name, metadata={"format": "pt"})
    return dict.fromkeys(shard, name)


def _write_tokenizer(folder: Path) -> None:
    """As many tokens as the published one has, and those that mean something; no real words, and
    nothing of how they are put together."""
    known = {int(token): written for token, written in WRITTEN.items()}
    words = {known.get(index, f"word{index}"): index for index in range(VOCABULARY_SIZE)}
    listed = {str(index): {"content": written} for index, written in known.items()}
    settings = {"added_tokens_decoder": listed, "bad_token_ids": []}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    (folder / "vocab.json").write_text(json.dumps(words), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", "utf-8")


# ---- the engine's process -----------------------------------------------------------------------


def load_marked(name: str, settings: EngineSettings, on_progress: Progress) -> EngineCore:
    """The engine as the registry loads it; writes how long each part took beside the weights."""
    assert settings.model is not None, "a checkpoint was written"
    marks = {"called_at": SYSTEM_CLOCK.now_s()}
    with _timed_parts(marks):
        core = minicpm_o.load_core(settings, on_progress)
    marks["loaded_at"] = SYSTEM_CLOCK.now_s()
    (settings.model.folder / MARKS).write_text(json.dumps(marks), "utf-8")
    return core


@contextmanager
def _timed_parts(spent_s: dict[str, float]) -> Iterator[None]:
    """Within it every part adds what it takes, whatever it is made of."""
    kept = {name: getattr(minicpm_o, name) for name in _PARTS if hasattr(minicpm_o, name)}
    for name, call in kept.items():
        setattr(minicpm_o, name, _timed(call, _PARTS[name], spent_s))
    try:
        yield
    finally:
        for name, call in kept.items():
            setattr(minicpm_o, name, call)


def _timed(call: Callable[..., Any], part: str, spent_s: dict[str, float]) -> Callable[..., Any]:
    @functools.wraps(call, updated=())
    def timed(*args: Any, **named: Any) -> Any:
        began_s = SYSTEM_CLOCK.now_s()
        try:
            return call(*args, **named)
        finally:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            spent_s[part] = spent_s.get(part, 0.0) + SYSTEM_CLOCK.now_s() - began_s

    return timed


# ---- measuring ----------------------------------------------------------------------------------


async def measure_start(
    report: EngineReport,
    folder: Path,
    settings: EngineSettings,
    make_host: MakeHost = ProcessHost,
    clock: Clock = SYSTEM_CLOCK,
    name: str = "start",
) -> None:
    """Start the engine of `settings`, whose checkpoint is in `folder`: the rows that begin with
    `name`."""
    began_s = clock.now_s()
    engine = await start_core(Job(load_marked, "minicpm-o", settings), make_host=make_host)
    ready_s = clock.now_s()
    await engine.close()
    marks = json.loads((folder / MARKS).read_text("utf-8"))
    report.row(f"{name}_s", ready_s - began_s, "s", target=START_S)
    called_s, loaded_s = marks.pop("called_at"), marks.pop("loaded_at")
    report.row(f"{name}_process_s", called_s - began_s, "s")
    for part, spent_s in marks.items():
        report.row(f"{name}_{part}_s", spent_s, "s")
    report.row(f"{name}_rest_s", loaded_s - called_s - sum(marks.values()), "s")


@contextmanager
def kernels_in(folder: Path) -> Iterator[None]:
    """Within it, processes that are started find their kernels in `folder`, and keep them there."""
    before = os.environ.get(_KERNELS)
    os.environ[_KERNELS] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_KERNELS]
        else:
            os.environ[_KERNELS] = before


def prepare_start(
    report: EngineReport, folder: Path, slots: int, window: int, *, tiny: bool = False
) -> EngineSettings:
    """Write all that a start reads; what the engine is then built from."""
    began_s = SYSTEM_CLOCK.now_s()
    written = write_checkpoint(folder / "model", *_published(tiny=tiny))
    write_voice(folder, tiny=tiny)
    report.row("start_weights_gb", written / 1e9, "GB")
    report.row("start_writing_s", SYSTEM_CLOCK.now_s() - began_s, "s")
    model = ModelSettings(folder / "model", context_tokens=window)
    voice = VoiceSettings("token2wav", folder / "token2wav", folder / "voices")
    return EngineSettings(ASSETS, slots, model, voice)


def _published(*, tiny: bool) -> tuple[TensorSource, Mapping[str, Any]]:
    """Weights, and the config.json that belongs to them."""
    if tiny:
        from tests.rig import tiny_model

        return tiny_model.RecipeSource(), tiny_model.official_config()
    # As the published one says; without, transformers takes the tokenizer for another's.
    config = {**random_model.FULL_SIZE, "transformers_version": "4.51.0"}
    return random_model.RandomSource(parse_config(config)), config
