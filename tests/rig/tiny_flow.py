"""The tiny flow of the golden files: real architecture, real keys, weights from the recipe."""

import functools
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agent.torch_parts.checkpoint import TensorHeader, load_parts, unfilled
from agent.vocoder.config import flow_config
from agent.vocoder.flow import Flow, FlowSettings, Noise
from tests.rig.tiny_model import FLOAT32, golden_json, golden_tensors, recipe

PREFIX = "flow."


def facts() -> dict[str, Any]:
    tiny: dict[str, Any] = golden_json("vocoder_tiny.json")
    return tiny


def golden(name: str) -> Tensor:
    return golden_tensors("vocoder_tiny.safetensors")[name]


class RecipeFlow:
    """The recipe's flow weights, by the keys that flow.pt has."""

    def __init__(self) -> None:
        self.headers: Mapping[str, TensorHeader] = {
            key.removeprefix(PREFIX): TensorHeader(tuple(shape), "F32", Path("recipe"))
            for key, shape in facts()["parameters"].items()
            if key.startswith(PREFIX)
        }

    def read(self, keys: Collection[str], device: torch.device) -> Iterator[tuple[str, Tensor]]:
        for key in keys:
            shape = self.headers[key].shape
            yield key, recipe().tensor(PREFIX + key, shape, facts()["seed"]).to(device)


@functools.cache
def tiny_flow(settings: FlowSettings = FlowSettings(steps=3)) -> Flow:  # noqa: B008  # frozen
    """Shared by tests: nothing of a stream is in it."""
    source = RecipeFlow()
    with unfilled():
        flow = Flow(flow_config(source.headers), settings)
    load_parts(source, {Flow.PREFIX: flow}, unused={}, target=FLOAT32)
    return flow


def golden_noise() -> Noise:
    return Noise(golden("noise.first_600_frames"))


def golden_prompt(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, mel and embedding of the first so many tokens."""
    return (
        golden("prompt.tokens")[:tokens],
        golden("prompt.mel")[: 2 * tokens],
        golden("prompt.speaker"),
    )
