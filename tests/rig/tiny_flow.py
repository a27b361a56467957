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


def flow_yaml(**estimator: object) -> str:
    """The tiny flow.yaml as the official one is written, tags and all; `estimator` overrides."""
    dims = facts()["dims"]
    inside = {
        "in_channels": 320,
        "out_channels": dims["mel"],
        "mlp_ratio": 4.0,
        "depth": dims["dit_depth"],
        "num_heads": dims["dit_heads"],
        "head_dim": dims["dit_head_dim"],
        "hidden_size": dims["dit_hidden"],
    } | estimator
    return f"""
# Sizes of the flow.
__set_seed: !apply:os.abort []
vocab: {dims["vocab"]}
flow: !new:cosyvoice2.flow.flow.CausalMaskedDiffWithXvec
    input_size: {dims["input_size"]}
    output_size: {dims["mel"]}
    spk_embed_dim: {dims["spk"]}
    output_type: "mel"
    vocab_size: !ref <vocab>
    encoder: !new:cosyvoice2.transformer.upsample_encoder_v2.UpsampleConformerEncoderV2
        input_size: {dims["input_size"]}
        output_size: {dims["input_size"]}
        input_layer: 'linear'  # a projection and a norm
        num_blocks: {dims["num_blocks"]}
        num_up_blocks: {dims["num_up_blocks"]}
        attention_heads: {dims["heads"]}
        linear_units: {dims["linear_units"]}
        dropout_rate: 1e-1
        normalize_before: True
        macaron_style: False
        selfattention_layer_type: 'rel_selfattn'
        use_cnn_module: false
        pre_lookahead_len: 3
        up_scale_factors: [2]
    decoder: !new:cosyvoice2.flow.flow_matching.CausalConditionalCFM
        inference_cfg_rate: 0.7
        estimator: !new:cosyvoice2.flow.decoder_dit.DiT
""" + "".join(f"            {name}: {value}\n" for name, value in inside.items())
