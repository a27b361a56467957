"""The tiny HiFT of the golden files, both generations, filled by the recipe of their weights."""

import functools
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from agent.torch_parts.checkpoint import TensorHeader, load_parts, unfilled
from agent.vocoder.causal_hift import CausalHift
from agent.vocoder.hift import Hift
from agent.vocoder.hift_config import read_hift_config
from tests.rig import tiny_model as tiny

CLASSIC = tiny.golden_json("vocoder_tiny.json")
MORE = tiny.golden_json("vocoder_more.json")
CLASSIC_PREFIX = "hift."
CAUSAL_PREFIX = "causal_hift."


class HiftRecipe:
    """The recipe's tensors below a prefix, as a checkpoint that lacks the prefix offers them."""

    def __init__(self, listed: Mapping[str, list[int]], prefix: str, seed: int) -> None:
        self._prefix = prefix
        self._seed = seed
        self.shapes = {
            key.removeprefix(prefix): tuple(shape)
            for key, shape in listed.items()
            if key.startswith(prefix)
        }
        self.headers = {
            key: TensorHeader(shape, "F32", Path("recipe")) for key, shape in self.shapes.items()
        }

    def read(self, keys: Collection[str], device: torch.device) -> Iterator[tuple[str, Tensor]]:
        for key in keys:
            made = tiny.recipe().tensor(f"{self._prefix}{key}", self.shapes[key], self._seed)
            yield key, self._changed(key, made).to(device)

    def _changed(self, key: str, tensor: Tensor) -> Tensor:
        """As `overrides` of the golden file has it, which says so in words."""
        rule = MORE["causal_hift"]["overrides"].get(f"{self._prefix}{key}")
        if rule is None:
            return tensor
        verb, number = rule.removeprefix("recipe value ").rsplit(" ", 1)
        return {"times": tensor * float(number), "plus": tensor + float(number)}[verb]


@functools.cache
def classic_recipe() -> HiftRecipe:
    return HiftRecipe(CLASSIC["parameters"], CLASSIC_PREFIX, CLASSIC["seed"])


@functools.cache
def causal_recipe() -> HiftRecipe:
    return HiftRecipe(MORE["causal_hift"]["parameters"], CAUSAL_PREFIX, MORE["seed"])


@functools.cache
def classic_hift() -> Hift:
    source = classic_recipe()
    with unfilled():
        hift = Hift(read_hift_config(source.shapes))
    load_parts(source, {"": hift}, unused={}, target=tiny.FLOAT32)
    return hift


@functools.cache
def causal_hift() -> CausalHift:
    source = causal_recipe()
    with unfilled():
        hift = CausalHift(read_hift_config(source.shapes))
    load_parts(source, {"": hift}, unused={}, target=tiny.FLOAT32)
    return hift
