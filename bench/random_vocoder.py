"""Vocoder folders with random weights: every size real, every sound without meaning.

For time and memory, which do not depend on what weights say. They are written where they are
measured, some 1.7 GB, and read by the loaders that read the published ones.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from agent.torch_parts.checkpoint import stored_shapes, unfilled
from agent.vocoder.causal_hift import CausalHift
from agent.vocoder.config import DitConfig, EncoderConfig, FlowConfig
from agent.vocoder.cosyvoice2_flow import Cosyvoice2Config, Cosyvoice2Weights
from agent.vocoder.files import FLOW, FLOW_YAML, HIFT, HIFT_ORIGINAL
from agent.vocoder.flow import Flow, FlowSettings
from agent.vocoder.hift import Hift
from agent.vocoder.hift_config import HiftConfig
from agent.vocoder.unet import UnetConfig
from agent.vocoder.voice import SpeakerPrompt

_SEED = 5
_ENCODER = EncoderConfig(512, 8, 64, 2048, token_layers=6, mel_layers=4)
_FLOW = FlowConfig(6561, 192, 80, 0.7, _ENCODER, DitConfig(80, 512, 2048, 16, 8, 64))
_COSYVOICE2 = Cosyvoice2Config(6561, 192, _ENCODER, UnetConfig())


@dataclass(frozen=True, slots=True)
class VocoderSizes:
    """Of all that a folder may hold; the defaults are those of the published checkpoints."""

    flow: FlowConfig = _FLOW
    cosyvoice2: Cosyvoice2Config = _COSYVOICE2
    hift_channels: int = 512


FULL_SIZE = VocoderSizes()


def write_token2wav(folder: Path, sizes: VocoderSizes = FULL_SIZE, *, causal: bool = False) -> Path:
    """token2wav of either generation, without what prepares voices; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with unfilled():
        flow = Flow(sizes.flow, FlowSettings())
    torch.save(random_weights(flow), folder / FLOW)
    text = _yaml(sizes.flow.encoder, "depth", sizes.flow.dit.layers)
    (folder / FLOW_YAML).write_text(text, "utf-8")
    _write_hift(folder / (HIFT_ORIGINAL if causal else HIFT), sizes, causal=False)
    if causal:
        _write_hift(folder / HIFT, sizes, causal=True)
    return folder


def write_cosyvoice2(folder: Path, sizes: VocoderSizes = FULL_SIZE) -> Path:
    """CosyVoice2, without what prepares voices; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with unfilled():
        flow = Cosyvoice2Weights(sizes.cosyvoice2)
    torch.save(random_weights(flow), folder / FLOW)
    unet = sizes.cosyvoice2.unet
    text = _yaml(sizes.cosyvoice2.encoder, "attention_head_dim", unet.head_width)
    (folder / "cosyvoice2.yaml").write_text(text, "utf-8")
    _write_hift(folder / HIFT, sizes, causal=False)
    return folder


def random_prompt(tokens: int, sizes: VocoderSizes = FULL_SIZE) -> SpeakerPrompt:
    """A voice of 40 ms a token."""
    rng = np.random.default_rng(_SEED)
    flow = sizes.flow
    mel = rng.standard_normal((2 * tokens, flow.mel_bins)) - 4
    embedding = rng.standard_normal(flow.speaker_width).astype(np.float32)
    return SpeakerPrompt(random_tokens(tokens), mel.astype(np.float32), embedding)


def random_tokens(count: int, seed: int = _SEED) -> np.ndarray:
    """Speech tokens i32 [count]."""
    return np.random.default_rng(seed).integers(0, 6561, count).astype(np.int32)


def random_weights(module: nn.Module) -> dict[str, Tensor]:
    """Weights of every stored key, of a size that keeps what flows through them finite."""
    generator = torch.Generator().manual_seed(_SEED)
    return {
        key: _scaled(key, torch.randn(shape, generator=generator))
        for key, shape in stored_shapes({"": module}).items()
    }


def _scaled(key: str, noise: Tensor) -> Tensor:
    if key.endswith(("original0", "alpha")):
        return noise.abs() * 0.5 + 0.5
    if noise.ndim >= 2:
        return noise / math.sqrt(math.prod(noise.shape[1:]))
    return 1 + 0.1 * noise if key.endswith("weight") else 0.02 * noise


def _write_hift(path: Path, sizes: VocoderSizes, *, causal: bool) -> None:
    width = sizes.hift_channels
    config = HiftConfig(causal, sizes.flow.mel_bins, width, width)
    with unfilled():
        hift = CausalHift(config) if causal else Hift(config)
    torch.save(random_weights(hift), path)


def _yaml(encoder: EncoderConfig, name: str, value: int) -> str:
    """The sections that are asked for, a value in each: shapes tell the rest."""
    return f"""\
flow:
  encoder:
    num_blocks: {encoder.token_layers}
  decoder:
    estimator:
      {name}: {value}
"""
