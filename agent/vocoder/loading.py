"""A token2wav folder, as a vocoder that speaks: both generations, told apart by shape."""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from agent.torch_parts.checkpoint import Target, load_parts, unfilled
from agent.torch_parts.cuda_graph import GraphRecorder, Recorder
from agent.vocoder.batched.layout import Capacity
from agent.vocoder.batched.proof import PROMPT_TOKENS, Launching, Modules, proof_of
from agent.vocoder.causal_hift import CausalHift
from agent.vocoder.config import FRAMES_PER_TOKEN
from agent.vocoder.files import Token2wavFiles, find_token2wav, open_pt, read_flow_config
from agent.vocoder.flow import (
    RECENT_FRAMES,
    EncoderMemory,
    EstimatorMemory,
    Flow,
    FlowSettings,
    Noise,
    NoisePlace,
)
from agent.vocoder.hift import Hift
from agent.vocoder.hift_config import read_hift_config
from agent.vocoder.hift_stream import Crossfade, VocoderTail, open_tail
from agent.vocoder.source import SourceNoise, gaussian_noise, uniform_noise
from agent.vocoder.token2wav import StreamSettings, Token2wav
from agent.vocoder.voice import SpeakerPrompt

if TYPE_CHECKING:
    from agent.vocoder.batched.machine import Machine

log = logging.getLogger(__name__)

_REFERENCE_FRAMES = 300
"""What the reference remembers of a turn is as long as its voice: up to six seconds have room."""


@dataclass(frozen=True, slots=True)
class Token2wavSettings:
    """What a user may choose of token2wav; all that is random follows from `seed`."""

    steps: int = 10
    estimator_memory: EstimatorMemory = "reference"
    encoder_memory: EncoderMemory = "recent"
    noise_place: NoisePlace = "held"
    crossfade: Crossfade = "unity"
    seed: int = 0
    graphs: bool = False  # on a GPU, chunks as CUDA graphs, recorded at load
    streams: int = 8  # turns at once that those have room for; others speak without
    stream: StreamSettings = field(default_factory=StreamSettings)


class HiftSound:
    """Mel to sound: one network in pieces, the same or another one at once."""

    def __init__(
        self,
        streaming: Hift | CausalHift,
        whole: Hift | CausalHift,
        seed: int,
        crossfade: Crossfade,
    ) -> None:
        self.streaming = streaming
        self.crossfade: Crossfade = crossfade
        self.noise = hift_noise(streaming, seed)
        self._whole = whole
        self._whole_noise = self.noise if whole is streaming else hift_noise(whole, seed)

    def open_tail(self, name: str) -> VocoderTail:
        return open_tail(self.streaming, self.noise.of_voice(name), self.crossfade)

    def whole(self, mel: Tensor, name: str) -> Tensor:
        return self._whole.whole(mel, self._whole_noise.of_voice(name))


def hift_noise(hift: Hift | CausalHift, seed: int) -> SourceNoise:
    """The noise of its generation."""
    make = uniform_noise if isinstance(hift, CausalHift) else gaussian_noise
    return make(seed, hift.device, hift.config.harmonics)


def load_hift(path: Path, device: torch.device) -> Hift | CausalHift:
    """HiFT of either generation, in float32; CheckpointError when the file is neither."""
    source = open_pt(path)
    config = read_hift_config(source.shapes)
    with unfilled():
        hift = CausalHift(config) if config.causal else Hift(config)
    load_parts(source, {"": hift}, unused={}, target=Target(device, torch.float32))
    return hift


def load_flow(files: Token2wavFiles, settings: FlowSettings, target: Target) -> Flow:
    """The flow in the target's dtype; what depends on the time alone is made in float32 first."""
    source = open_pt(files.flow)
    config = read_flow_config(source, files.flow_yaml)
    with unfilled():
        flow = Flow(config, settings)
    wide = Target(target.device, torch.float32)
    load_parts(source, {Flow.PREFIX: flow}, unused={}, target=wide)
    return flow.narrow(target.dtype)


def load_token2wav(folder: Path, settings: Token2wavSettings, target: Target) -> Token2wav:
    """The vocoder of `folder`; CheckpointError when it is not one.

    `target.dtype` is the flow's; HiFT is always float32.
    """
    files = find_token2wav(folder)
    streaming = load_hift(files.hift, target.device)
    same = files.hift_whole == files.hift
    whole = streaming if same else load_hift(files.hift_whole, target.device)
    flow_settings = FlowSettings(
        steps=settings.steps,
        estimator_memory=settings.estimator_memory,
        encoder_memory=settings.encoder_memory,
        noise_place=settings.noise_place,
        filler="prompt" if isinstance(streaming, CausalHift) else "silence",
    )
    flow = load_flow(files, flow_settings, target)
    vocoder = Token2wav(
        flow,
        HiftSound(streaming, whole, settings.seed, settings.crossfade),
        settings.stream,
        Noise.seeded(settings.seed, flow.config.mel_bins, target.device),
        functools.cache(flow.in_float32),
    )
    if settings.graphs:
        prepare_graphs(vocoder, settings.streams)
    return vocoder


def prepare_graphs(vocoder: Token2wav, streams: int) -> None:
    """Have chunks made as CUDA graphs, those of many streams at once; room for so many turns.

    ConfigError when they cannot be recorded; where they do not say what the modules say, a warning,
    and nothing. Nothing without a GPU, and where pieces of sound are to be joined as the reference
    does. To be called before anything speaks.
    """
    sounding, device = vocoder.sounding, vocoder.flow.device
    is_known = isinstance(sounding, HiftSound) and sounding.crossfade == "unity"
    if device.type != "cuda" or not is_known or vocoder.flow.settings.encoder_memory != "recent":
        return
    # Weights were wider at first: where those lay, nothing of the graphs' fits.
    torch.cuda.empty_cache()
    recorder = GraphRecorder(device, "set vocoder.graphs to false to go without")
    install_machine(vocoder, lambda: machine_of(vocoder, streams, recorder))


def install_machine(vocoder: Token2wav, make: Callable[[], Launching]) -> None:
    """Give the vocoder a machine, if it can be made here and says what the modules say.

    What recording needed, and then the proof, is given back at once: the most that is ever taken of
    the device's memory is what it must have.
    """
    try:
        machine = make()
    except _kernel_errors() as error:
        log.warning("token2wav goes without graphs: %s", error)
        torch.cuda.empty_cache()
        return
    vocoder.machine = machine
    torch.cuda.empty_cache()
    voice = vocoder.voice(_proof_prompt(vocoder), "")
    modules = Modules(vocoder.flow, vocoder.noise, vocoder.sounding.open_tail(""))
    proof = proof_of(machine, voice, modules)
    if not proof.holds:
        log.warning("token2wav goes without graphs: they say something else (%s)", proof)
        vocoder.machine = None
    torch.cuda.empty_cache()


def _kernel_errors() -> tuple[type[Exception], ...]:
    """What says that kernels cannot be compiled here."""
    try:
        from triton.errors import TritonError
    except ImportError:
        return (ImportError,)
    return (ImportError, TritonError)


def _proof_prompt(vocoder: Token2wav) -> SpeakerPrompt:
    """Any voice."""
    rng, config = np.random.default_rng(5), vocoder.flow.config
    mel = rng.standard_normal((FRAMES_PER_TOKEN * PROMPT_TOKENS, config.mel_bins)) - 4
    embedding = rng.standard_normal(config.speaker_width)
    tokens = rng.integers(0, config.vocabulary, PROMPT_TOKENS).astype(np.int32)
    return SpeakerPrompt(tokens, mel.astype(np.float32), embedding.astype(np.float32))


def machine_of(vocoder: Token2wav, streams: int, recorder: Recorder) -> "Machine":
    """What makes the chunks of `streams` turns, recorded by `recorder`."""
    # Triton is there where CUDA is.
    from agent.vocoder.batched.machine import Machine, Parts

    sounding, flow = vocoder.sounding, vocoder.flow
    assert isinstance(sounding, HiftSound), "the network is known"
    tokens = vocoder.settings.most_tokens(flow.config.encoder.lookahead_tokens)
    prompt_plus_recent = flow.settings.estimator_memory == "prompt_plus_recent"
    frames = RECENT_FRAMES if prompt_plus_recent else _REFERENCE_FRAMES
    parts = Parts(flow, vocoder.noise, sounding.streaming, sounding.noise)
    machine = Machine(parts, Capacity(tokens, frames), streams)
    machine.record(recorder)
    return machine
