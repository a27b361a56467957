"""The tiny CosyVoice2 of the golden files: real keys, weights from the recipe."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agent.torch_parts.checkpoint import TensorHeader, load_parts, unfilled
from agent.vocoder.cosyvoice2_flow import Cosyvoice2Weights, cosyvoice2_config
from tests.rig.tiny_model import FLOAT32, golden_json, golden_tensors, recipe

HEAD_WIDTH = 24
"""Of the estimator; no shape tells it."""
_PREFIX = "cosy."


def tiny_json() -> Any:
    return golden_json("vocoder_more.json")["cosy"]


def golden(name: str) -> Tensor:
    """The golden tensor `cosy.NAME`."""
    return golden_tensors("vocoder_more.safetensors")[f"{_PREFIX}{name}"]


class TinySource:
    """The recipe's flow.pt."""

    def __init__(self) -> None:
        listed: Mapping[str, list[int]] = tiny_json()["parameters"]
        self._seed = int(golden_json("vocoder_more.json")["seed"])
        self.headers = {
            key.removeprefix(_PREFIX): TensorHeader(tuple(shape), "F32", Path("recipe"))
            for key, shape in listed.items()
        }

    def read(self, keys: Collection[str], device: torch.device) -> Iterator[tuple[str, Tensor]]:
        for key in keys:
            shape = self.headers[key].shape
            yield key, recipe().tensor(f"{_PREFIX}{key}", shape, self._seed).to(device)


def tiny_weights() -> Cosyvoice2Weights:
    """All tensors of the recipe, and no others, strictly by their keys."""
    source = TinySource()
    with unfilled():
        weights = Cosyvoice2Weights(cosyvoice2_config(source.headers, head_width=HEAD_WIDTH))
    load_parts(source, {"": weights}, unused={}, target=FLOAT32)
    return weights
