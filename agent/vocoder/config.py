"""The sizes of the flow models, read from the shapes of their weights.

    config = flow_config(source.headers)  # token2wav's flow.pt
    check_flow_yaml(config, parse_plain_yaml(text))

Nearly every size is a shape; what no shape tells (the strength of the guidance) is in flow.yaml,
which is held against the shapes wherever it names the same.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.errors import CheckpointError
from agent.torch_parts.checkpoint import TensorHeader
from agent.vocoder.plain_yaml import Reference

RATE_HZ = 24_000
MEL_FRAME_SAMPLES = 480
TOKEN_SAMPLES = 960
FRAMES_PER_TOKEN = 2
SILENCE_TOKEN = 4218
"""A speech token that stands for 40 ms of silence."""
TIME_FEATURES = 256
"""How wide the DiT's time is before its MLP, at every size of the model."""
MODULATIONS = 9
"""Shift, scale and gate of attention, MLP and convolution."""


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """The conformer that token2wav and CosyVoice2 share; `lookahead_tokens` is how far it sees."""

    width: int
    heads: int
    head_width: int
    ffn_width: int
    token_layers: int
    mel_layers: int
    lookahead_tokens: int = 3


@dataclass(frozen=True, slots=True)
class DitConfig:
    """The velocity estimator of token2wav."""

    mel_bins: int
    width: int
    ffn_width: int
    layers: int
    heads: int
    head_width: int


@dataclass(frozen=True, slots=True)
class FlowConfig:
    """token2wav's flow.pt: speech tokens to mel."""

    vocabulary: int
    speaker_width: int
    mel_bins: int
    guidance: float
    encoder: EncoderConfig
    dit: DitConfig


# ---- from shapes --------------------------------------------------------------------------------


def encoder_config(headers: Mapping[str, TensorHeader], prefix: str = "encoder.") -> EncoderConfig:
    """The sizes of the conformer under `prefix`; CheckpointError when one cannot be told."""
    heads, head_width = _shape(headers, f"{prefix}encoders.0.self_attn.pos_bias_u", 2)
    ffn_width, width = _shape(headers, f"{prefix}encoders.0.feed_forward.w_1.weight", 2)
    kernel = _shape(headers, f"{prefix}pre_lookahead_layer.conv1.weight", 3)[2]
    return EncoderConfig(
        width=width,
        heads=heads,
        head_width=head_width,
        ffn_width=ffn_width,
        token_layers=count_blocks(headers, f"{prefix}encoders."),
        mel_layers=count_blocks(headers, f"{prefix}up_encoders."),
        lookahead_tokens=kernel - 1,
    )


def flow_config(headers: Mapping[str, TensorHeader], guidance: float = 0.7) -> FlowConfig:
    """The sizes of token2wav's flow; CheckpointError when one cannot be told."""
    vocabulary, _ = _shape(headers, "input_embedding.weight", 2)
    mel_bins, speaker_width = _shape(headers, "spk_embed_affine_layer.weight", 2)
    return FlowConfig(
        vocabulary=vocabulary,
        speaker_width=speaker_width,
        mel_bins=mel_bins,
        guidance=guidance,
        encoder=encoder_config(headers),
        dit=_dit_config(headers, "decoder.estimator."),
    )


def _dit_config(headers: Mapping[str, TensorHeader], prefix: str) -> DitConfig:
    ffn_width, width = _shape(headers, f"{prefix}blocks.0.mlp.fc1.weight", 2)
    (head_width,) = _shape(headers, f"{prefix}blocks.0.attn.q_norm.weight", 1)
    inner, _ = _shape(headers, f"{prefix}blocks.0.attn.to_q.weight", 2)
    return DitConfig(
        mel_bins=_shape(headers, f"{prefix}final_layer.linear.weight", 2)[0],
        width=width,
        ffn_width=ffn_width,
        layers=count_blocks(headers, f"{prefix}blocks."),
        heads=inner // head_width,
        head_width=head_width,
    )


def count_blocks(headers: Mapping[str, TensorHeader], prefix: str) -> int:
    """How many numbered blocks stand under `prefix`: 0, 1, 2, … without a gap."""
    starts = {
        key.removeprefix(prefix).split(".", 1)[0] for key in headers if key.startswith(prefix)
    }
    count = 0
    while str(count) in starts:
        count += 1
    return count


def _shape(headers: Mapping[str, TensorHeader], key: str, sides: int) -> tuple[int, ...]:
    if key not in headers:
        raise CheckpointError(f"the flow lacks {key}: is this the vocoder's flow.pt?")
    shape = headers[key].shape
    if len(shape) != sides:
        raise CheckpointError(f"{key} has {len(shape)} sides, expected {sides}")
    return shape


# ---- what flow.yaml says of them ----------------------------------------------------------------


def check_flow_yaml(config: FlowConfig, document: Mapping[str, Any]) -> FlowConfig:
    """`config` with the guidance of flow.yaml; CheckpointError where the file contradicts it.

    `document` is the file as plain mappings. Values that it leaves out are not asked for, except
    the model itself.
    """
    flow = _section(document, "flow", "flow.yaml")
    decoder = _section(flow, "decoder", "flow")
    expected = _expected(config)
    for where, section in _sections(flow, decoder).items():
        for name, value in expected[where].items():
            found = section.get(name, value)
            if found != value and not isinstance(found, Reference):
                raise CheckpointError(
                    f"flow.yaml: {where}.{name} is {found!r}; the weights and the "
                    f"architecture want {value!r}"
                )
    return dataclasses.replace(config, guidance=_guidance(decoder, config.guidance))


def _sections(flow: Mapping[str, Any], decoder: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {
        "flow": flow,
        "encoder": _section(flow, "encoder", "flow"),
        "estimator": _section(decoder, "estimator", "decoder"),
    }


def _expected(config: FlowConfig) -> dict[str, dict[str, Any]]:
    encoder, dit = config.encoder, config.dit
    return {
        "flow": {
            "input_size": encoder.width,
            "output_size": config.mel_bins,
            "spk_embed_dim": config.speaker_width,
            "vocab_size": config.vocabulary,
        },
        "encoder": {
            "input_size": encoder.width,
            "output_size": encoder.width,
            "attention_heads": encoder.heads,
            "linear_units": encoder.ffn_width,
            "num_blocks": encoder.token_layers,
            "num_up_blocks": encoder.mel_layers,
            "pre_lookahead_len": encoder.lookahead_tokens,
            "up_stride": FRAMES_PER_TOKEN,
            "normalize_before": True,
            "macaron_style": False,
            "use_cnn_module": False,
            "selfattention_layer_type": "rel_selfattn",
        },
        "estimator": {
            "in_channels": 4 * config.mel_bins,
            "out_channels": config.mel_bins,
            "mlp_ratio": dit.ffn_width / dit.width,
            "depth": dit.layers,
            "num_heads": dit.heads,
            "head_dim": dit.head_width,
            "hidden_size": dit.width,
        },
    }


def _guidance(decoder: Mapping[str, Any], default: float) -> float:
    """In the decoder itself, or in its `cfm_params`, with or without their `content`."""
    inside = decoder.get("cfm_params", {})
    inside = inside.get("content", inside) if isinstance(inside, Mapping) else {}
    value = inside.get("inference_cfg_rate", default) if isinstance(inside, Mapping) else default
    value = decoder.get("inference_cfg_rate", value)
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    if not fits or not math.isfinite(value) or not 0 <= value <= 10:
        raise CheckpointError(f"flow.yaml: inference_cfg_rate is {value!r}, expected 0 to 10")
    return float(value)


def _section(document: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    section = document.get(name)
    if not isinstance(section, Mapping):
        raise CheckpointError(f"flow.yaml: {where} has no section {name!r}")
    return section
