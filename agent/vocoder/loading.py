"""A token2wav folder, as a vocoder that speaks: both generations, told apart by shape."""

import functools
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from agent.torch_parts.checkpoint import Target, load_parts, unfilled
from agent.vocoder.causal_hift import CausalHift
from agent.vocoder.files import Token2wavFiles, find_token2wav, open_pt, read_flow_config
from agent.vocoder.flow import (
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


@dataclass(frozen=True, slots=True)
class Token2wavSettings:
    """What a user may choose of token2wav; all that is random follows from `seed`."""

    steps: int = 10
    estimator_memory: EstimatorMemory = "reference"
    encoder_memory: EncoderMemory = "recent"
    noise_place: NoisePlace = "held"
    crossfade: Crossfade = "unity"
    seed: int = 0
    graphs: bool = False  # on a GPU, chunks of a full hop as CUDA graphs, prepared at load
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
        self._streaming = streaming
        self._whole = whole
        self._crossfade: Crossfade = crossfade
        self._streaming_noise = hift_noise(streaming, seed)
        self._whole_noise = self._streaming_noise if whole is streaming else hift_noise(whole, seed)

    def open_tail(self, name: str) -> VocoderTail:
        return open_tail(self._streaming, self._streaming_noise.of_voice(name), self._crossfade)

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
        vocoder.prepare_graphs()
    return vocoder
