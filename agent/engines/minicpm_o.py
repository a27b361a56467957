"""The `minicpm-o` engine: MiniCPM-o 4.5 from its checkpoint's folder. Imports torch."""

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from agent.duplex.call_parts import CallParts
from agent.duplex.config import Numerics, ServiceParts, read_config
from agent.duplex.cuda import cuda_lanes, has_triton
from agent.duplex.engine import DuplexEngine
from agent.duplex.heard_voices import HeardVoices, Voices
from agent.duplex.lanes import EagerLane, Lane, Runner
from agent.duplex.model import DuplexModel, load_model
from agent.duplex.prompt import duplex_system
from agent.duplex.slots import TURN_TOKENS, Slots, SlotSizes
from agent.duplex.speech_lm import UNIT_SPEECH_TOKENS
from agent.duplex.tokens import load_vocabulary
from agent.duplex.voice_lane import VoiceLane
from agent.duplex.window import WindowSettings
from agent.duplex.work import LaneName
from agent.engines import EngineSettings, ModelSettings, Progress, VoiceSettings
from agent.engines.voices import load_voice
from agent.errors import CheckpointError, ConfigError, RequestError, VocoderError
from agent.interfaces import Vocoder, VocoderStream
from agent.torch_parts.checkpoint import Target, open_checkpoint
from agent.types import Abilities

log = logging.getLogger(__name__)

LANGUAGES = ("en", "zh")
ABILITIES = Abilities(
    duplex=True,
    chat=True,
    camera=True,
    typed_text=True,
    pictures=True,
    recordings=True,
    tools=True,
    languages=LANGUAGES,
    default_instructions=tuple((one, duplex_system(one, camera=False)) for one in LANGUAGES),
)
_ALL, _READING = 1000, 800
"""Steps of loading that are told, and how many of them are reading the weights."""
_MOST_LANES = 4
_ROOM_SHARE = 0.75
"""Above so much of a slot the window's `basic` rule forgets; the rest is room for a turn."""


def load_core(settings: EngineSettings, on_progress: Progress) -> DuplexEngine:
    """Read weights and vocabulary, and allocate every slot. CheckpointError, ConfigError."""
    parts = load_parts(settings, on_progress)
    if settings.voice is None:
        log.warning("no vocoder is installed: the agent speaks in captions only")
    engine = DuplexEngine(parts, abilities(parts))
    if parts.runner.lanes:
        engine.rehearse()
    return engine


def abilities(parts: CallParts) -> Abilities:
    """What an engine of these parts can do."""
    sees = parts.runner.model.config.parts.vision
    able = replace(ABILITIES, camera=sees, pictures=sees)
    if parts.vocoder is None:
        return able
    return replace(able, speech=True, text_to_speech=True, voices=parts.voices.ids())


def load_parts(
    settings: EngineSettings, on_progress: Progress = lambda done, total: None
) -> CallParts:
    """What all calls share. CheckpointError, ConfigError."""
    model = settings.model
    if model is None:
        raise ConfigError("engine minicpm-o needs a checkpoint: set model.source, or give --model")
    target = _target(model)
    if target.device.type == "cpu":
        torch.set_num_threads(_threads_beside(target.device))
    try:
        needed = ServiceParts(vision=model.vision, speech=settings.voice is not None)
        weights = _weights(model, needed, target, _first_part_of(on_progress))
        return parts_of(weights, model, settings, on_progress)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"{target.device} has too little memory for the model and {settings.slots} slots of "
            f"{model.context_tokens} tokens: lower model.slots or model.context_tokens, or free it"
        ) from error


def parts_of(
    weights: DuplexModel,
    model: ModelSettings,
    settings: EngineSettings,
    on_progress: Progress = lambda done, total: None,
) -> CallParts:
    """What all calls on these weights share; `model` says how they run. Errors: `load_parts`."""
    most = weights.config.llm.max_positions
    if model.context_tokens > most:
        raise ConfigError(f"model.context_tokens: {model.context_tokens} is more than {most}")
    torch.set_num_threads(_threads_beside(weights.target.device))
    turn_tokens = TURN_TOKENS if weights.config.parts.speech else 1
    sizes = SlotSizes(settings.slots, model.context_tokens, turn_tokens)
    slots = Slots(weights.config, sizes, weights.target)
    log.info("a slot takes %s", _sizes(slots.bytes_each))
    runner = Runner(weights, slots, lanes=_lanes(weights, slots, model, on_progress))
    parts = CallParts(runner, window=_window(model), parity=model.parity)
    return _voiced(parts, settings.voice, settings.assets) if settings.voice else parts


def _threads_beside(device: torch.device) -> int:
    """How many of the host's cores torch works on beside that device.

    One is the server's: a call that waits for it is heard to stutter. A GPU leaves the host a
    millisecond's work a unit, of which one thread is sure, while of many one is now and then tens
    of milliseconds late.
    """
    return max(1, (os.cpu_count() or 2) - 1) if device.type == "cpu" else 1


def _lanes(
    weights: DuplexModel, slots: Slots, model: ModelSettings, on_progress: Progress
) -> Mapping[LaneName, Lane]:
    """Those that are not eager."""
    if weights.target.device.type != "cuda" or not model.graphs or model.attention == "eager":
        return {}
    if not has_triton():
        log.warning("the engine is slow: it has no CUDA graphs, as Triton is not installed")
        return {}
    lanes: dict[LaneName, Lane] = {}
    for name, lane in cuda_lanes(weights, slots):
        lanes[name] = lane
        on_progress(_READING + len(lanes) * (_ALL - _READING) // _MOST_LANES, _ALL)
    return lanes


def _first_part_of(on_progress: Progress) -> Progress:
    """Reading, as part of all that there is to do."""
    return lambda done, total: on_progress(done * _READING // max(1, total), _ALL)


def _sizes(bytes_each: Mapping[str, int]) -> str:
    """What a slot takes, in words."""
    parts = ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in bytes_each.items())
    return f"{sum(bytes_each.values()) / 1e6:.0f} MB: {parts}"


def _weights(
    model: ModelSettings, parts: ServiceParts, target: Target, on_progress: Progress
) -> DuplexModel:
    return load_model(
        open_checkpoint(model.folder, model.extra_weights),
        replace(read_config(model.folder), parts=parts),
        load_vocabulary(model.folder),
        target=target,
        numerics=Numerics(model.attention, model.rope_precision, model.quantisation),
        on_progress=on_progress,
    )


def _voiced(parts: CallParts, settings: VoiceSettings, assets: Path) -> CallParts:
    """With a voice: that of the vocoder, and those that are cloned."""
    model = parts.runner.model
    turns, device = parts.runner.slots.count, model.target.device
    vocoder, voices = load_voice(settings, assets / "ref_audio", device, turns)
    heard = HeardVoices(model, voices)
    # Graphs are of one length, and were recorded by now.
    _warm(vocoder, heard, lengths=device.type == "cuda" and vocoder.most_pushes == 1)
    runner = parts.runner
    if runner.lanes:
        eager = EagerLane(model, runner.slots)
        runner = replace(runner, lanes={**runner.lanes, "voice": VoiceLane(eager, vocoder)})
    return replace(parts, runner=runner, vocoder=vocoder, voices=heard)


def _warm(vocoder: Vocoder, voices: Voices, *, lengths: bool) -> None:
    """Have what every call needs, and what starts at first use: the first call is not to wait.

    With the first voice that works; CheckpointError when none does. A GPU plans its work anew for
    each length of a turn's first and last piece, up to a second of it: `lengths` goes through all.
    """
    for voice_id in voices.ids():
        try:
            key = voices.resolve(voice_id)
            voices.duplex(key)
            for length in range(1 if lengths else UNIT_SPEECH_TOKENS, UNIT_SPEECH_TOKENS + 1):
                _say_turn(vocoder.open(key), length)
            return
        except (RequestError, VocoderError) as error:
            log.warning("the voice %s cannot be spoken with: %s", voice_id, error)
    raise CheckpointError("none of the voices can be spoken with; the log says why")


def _say_turn(stream: VocoderStream, length: int) -> None:
    """A turn whose first and last unit have `length` speech tokens, to the end."""
    for count in (length, UNIT_SPEECH_TOKENS, UNIT_SPEECH_TOKENS, length):
        stream.push(range(count))
    stream.finish()


def _target(model: ModelSettings) -> Target:
    name = model.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"model.device: {name!r} cannot be used: {error}") from error
    wide = model.dtype == "float32" or (model.dtype == "auto" and device.type == "cpu")
    return Target(device, torch.float32 if wide else torch.bfloat16)


def _window(model: ModelSettings) -> WindowSettings:
    high = int(model.context_tokens * _ROOM_SHARE)
    return WindowSettings(mode=model.window, high_tokens=high, low_tokens=high * 7 // 8)
