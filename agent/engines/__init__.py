"""Engines: what answers. One file and one line of the table below for each.

Nothing in here needs the server, the browser side or the settings file: an engine is given plain
data, so it also runs in a process of its own. One that computes for long comes as an `EngineCore`
and belongs into a worker; one that does not is an `Engine` in the server's own process.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from agent.engines.echo import EchoEngine
from agent.engines.greeting import load_greeting
from agent.errors import ConfigError
from agent.interfaces import Engine, EngineCore

Progress: TypeAlias = Callable[[int, int], None]
"""Called with how much is done of loading, and how much there is in all."""


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """A model's weights, and how they are run.

    `device` is torch's name of it, "auto" the first GPU or else the CPU; `dtype` "auto" is bfloat16
    on a GPU and float32 on the CPU. `window` says what a conversation forgets when it grows beyond
    `context_tokens`. `parity` brings the reference's mistakes back. `graphs`: on a GPU the work
    runs as CUDA graphs, recorded at load. `quantisation` is of the language model's projections.
    """

    folder: Path
    extra_weights: Path | None = None
    device: str = "auto"
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    context_tokens: int = 8192
    attention: Literal["sdpa", "eager"] = "sdpa"
    rope_precision: Literal["float32", "bfloat16"] = "float32"
    window: Literal["off", "basic", "context"] = "basic"
    parity: bool = False
    graphs: bool = True
    quantisation: Literal["none", "int8", "fp8", "int4"] = "none"
    vision: bool = True


@dataclass(frozen=True, slots=True)
class VoiceSettings:
    """What gives a model its voice: a vocoder's files, how it is run, and where voices are kept.

    `voices` is the folder of those that users added, where it is also kept what was made of them.
    `dtype` is the flow's, "auto" float16 on a GPU and float32 on the CPU. `graphs`: on a GPU the
    vocoder's work runs as CUDA graphs, recorded at load.
    """

    name: Literal["token2wav", "cosyvoice2"]
    folder: Path
    voices: Path
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    steps: int = 10
    memory: Literal["prompt_plus_recent", "reference"] = "prompt_plus_recent"
    crossfade: Literal["unity", "reference"] = "unity"
    first_hop_tokens: int = 22
    seed: int = 0
    prepared_voices: int = 4
    graphs: bool = True


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What an engine is built from: the folder of recordings, how many conversations, a model.

    Without `voice` a model speaks in captions only.
    """

    assets: Path
    slots: int
    model: ModelSettings | None = None
    voice: VoiceSettings | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """The engine that was picked, and why, in words for the user."""

    name: str
    reason: str


def _echo(settings: EngineSettings) -> Engine:
    greeting = load_greeting(settings.assets / "ref_audio" / "echo_greeting.wav")
    return EchoEngine(greeting, settings.slots)


_ENGINES: dict[str, Callable[[EngineSettings], Engine]] = {"echo": _echo}
_CORES = {"minicpm-o": "agent.engines.minicpm_o"}
"""Modules with a function `load_core(settings, on_progress)`; they import torch."""


def names() -> tuple[str, ...]:
    """What `--engine` takes besides `auto`."""
    return (*_ENGINES, *_CORES)


def choose(name: str) -> Choice:
    """An engine by its name, `auto` for one that runs anywhere; `ConfigError` if there is none.

    Whether a model and a GPU for it are there, `agent.model_hub.choose` finds out before this.
    """
    if name == "auto":
        return Choice("echo", "it needs no GPU and no weights")
    if name not in names():
        known = ", ".join(("auto", *names()))
        raise ConfigError(f"engine.name: there is no engine {name!r}; choose one of {known}")
    return Choice(name, "it was asked for")


def needs_worker(name: str) -> bool:
    """Whether engine `name` is an `EngineCore` for a process of its own."""
    return name in _CORES


def create(name: str, settings: EngineSettings) -> Engine:
    """Build engine `name`, which `choose` returned and which needs no worker."""
    return _ENGINES[name](settings)


def load_core(
    name: str, settings: EngineSettings, on_progress: Progress = lambda done, total: None
) -> EngineCore:
    """Load engine `name`, which needs a worker, where it is to run. `CheckpointError`."""
    load: Callable[[EngineSettings, Progress], EngineCore]
    load = importlib.import_module(_CORES[name]).load_core
    return load(settings, on_progress)
