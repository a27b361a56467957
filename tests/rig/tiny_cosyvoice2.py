"""The tiny CosyVoice2 of the golden files: real keys, weights from the recipe."""

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agent.torch_parts.checkpoint import load_parts, unfilled
from agent.vocoder.cosyvoice2 import ChunkSettings, Cosyvoice2
from agent.vocoder.cosyvoice2_flow import (
    Cosyvoice2Flow,
    Cosyvoice2Weights,
    cosyvoice2_config,
    flow_noise,
)
from agent.vocoder.hift_stream import VocoderTail
from agent.vocoder.voice import SpeakerPrompt
from tests.rig.tiny_hift import HiftRecipe
from tests.rig.tiny_model import FLOAT32, golden_json, golden_tensors

HEAD_WIDTH = 24
"""Of the estimator; no shape tells it."""
CPU = torch.device("cpu")


def facts() -> dict[str, Any]:
    tiny: dict[str, Any] = golden_json("vocoder_more.json")["cosy"]
    return tiny


def golden(name: str) -> Tensor:
    """The golden tensor `cosy.NAME`."""
    return golden_tensors("vocoder_more.safetensors")[f"cosy.{name}"]


@functools.cache
def flow_recipe() -> HiftRecipe:
    """The recipe's weights by the keys of flow.pt."""
    return HiftRecipe(facts()["parameters"], "cosy.", golden_json("vocoder_more.json")["seed"])


@functools.cache
def tiny_weights() -> Cosyvoice2Weights:
    """Every tensor of the recipe, and no others; shared by tests and not to be changed."""
    source = flow_recipe()
    with unfilled():
        weights = Cosyvoice2Weights(cosyvoice2_config(source.headers, head_width=HEAD_WIDTH))
    load_parts(source, {"": weights}, unused={}, target=FLOAT32)
    return weights


@functools.cache
def tiny_flow(steps: int = 10) -> Cosyvoice2Flow:
    return Cosyvoice2Flow(tiny_weights(), flow_noise(0, 80, CPU), steps)


def golden_prompt(tokens: int) -> SpeakerPrompt:
    """The golden voice's first so many tokens."""
    return SpeakerPrompt(
        golden("prompt.tokens")[:tokens].numpy().astype(np.int32),
        golden("prompt.mel")[: 2 * tokens].numpy(),
        golden("prompt.speaker").numpy(),
    )


class Ear(VocoderTail):
    """A tail that keeps the mel it hears; its sound is the first band, 480 times each frame."""

    def __init__(self, heard: list[Tensor]) -> None:
        self.heard = heard

    def push(self, mel: Tensor, last: bool = False) -> Tensor:
        self.heard.append(mel[0])
        return mel[0, 0].repeat_interleave(480)

    def clone(self) -> "Ear":
        return Ear([*self.heard])

    @property
    def mel(self) -> Tensor:
        return torch.cat(self.heard, 1)


class Ears:
    """Listens to every turn: `each` has one more ear with every stream."""

    def __init__(self) -> None:
        self.each: list[Ear] = []

    def open_tail(self, name: str) -> Ear:
        self.each.append(Ear([]))
        return self.each[-1]

    def whole(self, mel: Tensor, name: str) -> Tensor:
        return self.open_tail(name).push(mel, last=True)


def listening(settings: ChunkSettings, steps: int = 10) -> tuple[Cosyvoice2, list[Ear]]:
    """A vocoder whose turns end in ears."""
    flow, ears = tiny_flow(steps), Ears()
    return Cosyvoice2(flow, ears, settings, lambda: flow), ears.each
