"""Which engine answers, why, and what it is built from."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path

from agent import engines
from agent.config import Config, ModelSection
from agent.duplex import inspection
from agent.duplex.inspection import ModelSize
from agent.engines import Choice, EngineSettings, ModelSettings, Progress
from agent.errors import CheckpointError, ConfigError
from agent.model_hub import gpus, soundness, sources
from agent.model_hub.download import download
from agent.model_hub.gpus import Gpu, NoGpu
from agent.model_hub.hub import Hub
from agent.model_hub.progress import DownloadLine
from agent.model_hub.sources import Source
from agent.model_hub.voice import voice_settings, will_speak
from agent.resources import assets_folder

ENGINE = "minicpm-o"
_LOG = logging.getLogger(__name__)
_GIB = 1024**3
_NO_CHECKPOINT = "no checkpoint: set model.source or --model"


def choose(config: Config, look: Callable[[int], Gpu | NoGpu] = gpus.look) -> Choice:
    """The engine that `engine.name` asks for, or with `auto` the best that can run here.

    ConfigError for an engine that does not exist or lacks its checkpoint, CheckpointError for a
    configured checkpoint that is not one or not whole. `look` asks a GPU, by its number, what it
    has free.
    """
    name, model = config.engine.name, config.model
    if name not in ("auto", ENGINE):
        return engines.choose(name)
    source = sources.locate(model)
    try:
        if isinstance(source, Path):
            soundness.expect_sound(source, model)
    except CheckpointError as error:
        if name == ENGINE or model.source or model.extra_weights:
            raise
        # Nobody asked for what lies in a cache.
        return Choice("echo", str(error))
    if name == ENGINE:
        return _asked_for(source, config, look)
    if source is None:
        return Choice("echo", _NO_CHECKPOINT)
    if model.device == "cpu":
        return Choice("echo", "model.device is cpu, too slow for calls; ask for minicpm-o by name")
    gpu = look(gpus.gpu_number(model.device))
    lack = room_fault(gpu, source, config)
    if lack:
        return Choice("echo", lack)
    return Choice(ENGINE, f"{_shown(gpu)}, checkpoint {source}")


def engine_settings(
    config: Config, choice: Choice, on_progress: Progress | None = None
) -> EngineSettings:
    """What the chosen engine is built from; downloads its checkpoint if that is not here yet.

    `on_progress` hears of the bytes of the download; without it they are shown on stderr.
    ConfigError and CheckpointError say what to do.
    """
    if choice.name != ENGINE:
        return EngineSettings(assets_folder(), config.calls.max_calls)
    model = config.model
    folder = fetch(model, on_progress)
    settings = ModelSettings(
        folder=folder,
        extra_weights=soundness.extra_weights(model),
        device=model.device,
        dtype=model.dtype,
        context_tokens=model.context_tokens,
        attention=model.attention,
        rope_precision=model.rope_precision,
        window=model.window,
        parity=model.parity,
        graphs=model.graphs,
        quantisation=model.quantisation,
        vision=model.vision,
    )
    return EngineSettings(assets_folder(), model.slots, settings, voice_settings(config, folder))


def fetch(model: ModelSection, on_progress: Progress | None = None) -> Path:
    """The folder of the configured checkpoint, downloaded if need be and found whole."""
    source = sources.locate(model)
    if source is None:
        raise _no_source()
    if not isinstance(source, Path):
        told = on_progress or DownloadLine(source.name, sys.stderr)
        source = download(Hub(), source, sources.downloads(model), told)
    return soundness.expect_sound(source, model).folder


def room_fault(gpu: Gpu | NoGpu, source: Source, config: Config) -> str:
    """Why the model does not fit onto the GPU, in words; empty when it does."""
    if isinstance(gpu, NoGpu):
        return gpu.reason
    size, model = model_size(source, config), config.model
    needed = size.memory_bytes(model.slots, model.context_tokens)
    if gpu.free_bytes >= needed:
        return ""
    lack = (
        f"{_shown(gpu)}, and {model.slots} slots of {model.context_tokens} tokens take "
        f"{needed / _GIB:.1f}"
    )
    fitting = size.slots_in(gpu.free_bytes, model.context_tokens)
    if fitting > 0:
        return f"{lack}: set model.slots to {fitting}"
    fewer_bits = size.quantised("int4").slots_in(gpu.free_bytes, model.context_tokens)
    if model.quantisation == "none" and fewer_bits > 0:
        slots = f", and model.slots to {fewer_bits}" if fewer_bits < model.slots else ""
        return f"{lack}: set model.quantisation to int4{slots}"
    return lack


def model_size(source: Source, config: Config) -> ModelSize:
    """What the model takes in the dtype that it has on a GPU, its voice included."""
    folder = source if isinstance(source, Path) else None
    size = inspection.identify(folder).size if folder is not None else inspection.FULL_SIZE
    size = size.quantised(config.model.quantisation)
    if config.model.graphs:
        size = size.with_graphs()
    if config.model.dtype == "float32":
        size = size.in_float32()
    return size.with_voice(config.vocoder.prepared_voices) if will_speak(config, folder) else size


def _shown(gpu: Gpu | NoGpu) -> str:
    if isinstance(gpu, NoGpu):
        return gpu.reason
    free, total = gpu.free_bytes / _GIB, gpu.total_bytes / _GIB
    return f"{gpu.name} has {free:.1f} of {total:.1f} GiB free"


def _asked_for(source: Source | None, config: Config, look: Callable[[int], Gpu | NoGpu]) -> Choice:
    if source is None:
        raise _no_source()
    model = config.model
    gpu: Gpu | NoGpu = NoGpu("model.device is cpu")
    if model.device != "cpu":
        gpu = look(gpus.gpu_number(model.device))
    if isinstance(gpu, NoGpu) and model.device.startswith("cuda"):
        raise ConfigError(f"model.device: {model.device} cannot be used: {gpu.reason}")
    if isinstance(gpu, NoGpu):
        reason = f"it was asked for; it runs on the CPU: {gpu.reason}"
        _LOG.warning("minicpm-o runs on the CPU, far too slowly for a call: %s", gpu.reason)
        return Choice(ENGINE, reason)
    lack = room_fault(gpu, source, config)
    # Not refused: what others hold on the GPU may be gone by the time it is loaded.
    return Choice(ENGINE, f"it was asked for, but {lack}" if lack else "it was asked for")


def _no_source() -> ConfigError:
    return ConfigError(
        f"model.source: the engine {ENGINE} needs a checkpoint: give the folder of one with "
        f"--model, or --model {sources.PUBLISHED} to download it (19 GB)"
    )
