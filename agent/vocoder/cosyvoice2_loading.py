"""A folder of CosyVoice2-0.5B, as a vocoder that speaks: flow.pt, hift.pt and cosyvoice2.yaml."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from agent.errors import CheckpointError
from agent.torch_parts.checkpoint import Target, load_parts, unfilled
from agent.torch_parts.cuda_graph import GraphRecorder
from agent.vocoder.cosyvoice2 import ChunkSettings, Cosyvoice2
from agent.vocoder.cosyvoice2_flow import (
    Cosyvoice2Config,
    Cosyvoice2Flow,
    Cosyvoice2Weights,
    cosyvoice2_config,
    flow_noise,
)
from agent.vocoder.files import FLOW, HIFT, open_pt
from agent.vocoder.hift_stream import Crossfade
from agent.vocoder.loading import HiftSound, load_hift
from agent.vocoder.plain_yaml import Reference, parse_plain_yaml

YAMLS = ("cosyvoice2.yaml", "cosyvoice.yaml")
_HEAD_WIDTH = 64
_MOST_GUIDANCE = 10


@dataclass(frozen=True, slots=True)
class Cosyvoice2Settings:
    """What a user may choose of CosyVoice2; all that is random follows from `seed`.

    With seed 0 the flow starts from the noise that upstream always starts from.
    """

    steps: int = 10
    crossfade: Crossfade = "unity"
    seed: int = 0
    graphs: bool = False  # on a GPU, a turn's blocks as CUDA graphs, recorded at load
    stream: ChunkSettings = field(default_factory=ChunkSettings)

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 100:
            raise ValueError(f"steps is {self.steps}, expected 1 to 100")


def load_cosyvoice2(folder: Path, settings: Cosyvoice2Settings, target: Target) -> Cosyvoice2:
    """The vocoder of `folder`; CheckpointError when it is not one.

    `target.dtype` is the flow's; HiFT is always float32.
    """
    missing = [name for name in (FLOW, HIFT) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder}: lacks {', '.join(missing)}; is this the folder of CosyVoice2-0.5B, and is "
            "its download complete?"
        )
    hift = load_hift(folder / HIFT, target.device)
    flow = load_cosyvoice2_flow(folder, settings, target)
    if settings.graphs and target.device.type == "cuda":
        # Weights were wider at first: where those lay, nothing of the graphs' fits.
        torch.cuda.empty_cache()
        flow.record(GraphRecorder(target.device, "set vocoder.graphs to false to go without"))
        torch.cuda.empty_cache()  # what recording took besides the graphs
    return Cosyvoice2(
        flow,
        HiftSound(hift, hift, settings.seed, settings.crossfade),
        settings.stream,
        functools.cache(lambda: flow.in_dtype(torch.float32)),
    )


def load_cosyvoice2_flow(
    folder: Path, settings: Cosyvoice2Settings, target: Target
) -> Cosyvoice2Flow:
    """flow.pt in the target's dtype; what depends on the time alone is made in float32 first."""
    source = open_pt(folder / FLOW)
    document = _read_yaml(folder)
    estimator = {} if document is None else _section(document, "flow", "decoder", "estimator")
    head_width = estimator.get("attention_head_dim", _HEAD_WIDTH)
    if not isinstance(head_width, int) or head_width < 1:
        raise CheckpointError(f"attention_head_dim is {head_width!r}, expected a width")
    config = cosyvoice2_config(source.headers, head_width=head_width)
    if document is not None:
        config = check_cosyvoice2_yaml(config, document)
    with unfilled():
        weights = Cosyvoice2Weights(config)
    load_parts(source, {"": weights}, unused={}, target=Target(target.device, torch.float32))
    noise = flow_noise(settings.seed, config.unet.mel_bins, target.device)
    return Cosyvoice2Flow(weights, noise, settings.steps).in_dtype(target.dtype)


def check_cosyvoice2_yaml(
    config: Cosyvoice2Config, document: Mapping[str, Any]
) -> Cosyvoice2Config:
    """`config` with the guidance of the file; CheckpointError where the file contradicts it.

    `document` is the file as plain mappings. Values that it leaves out are not asked for.
    """
    unet, encoder = config.unet, config.encoder
    expected: dict[tuple[str, ...], dict[str, Any]] = {
        (): {
            "input_size": encoder.width,
            "output_size": unet.mel_bins,
            "spk_embed_dim": config.speaker_width,
            "vocab_size": config.vocabulary,
            "pre_lookahead_len": encoder.lookahead_tokens,
        },
        ("encoder",): {
            "output_size": encoder.width,
            "attention_heads": encoder.heads,
            "linear_units": encoder.ffn_width,
            "num_blocks": encoder.token_layers,
        },
        ("decoder", "estimator"): {
            "in_channels": unet.input_width,
            "out_channels": unet.mel_bins,
            "channels": [unet.width],
            "n_blocks": unet.transformers,
            "num_mid_blocks": unet.mid_blocks,
            "num_heads": unet.heads,
            "act_fn": "gelu",
        },
    }
    for place, values in expected.items():
        section = _section(document, "flow", *place)
        for name, value in values.items():
            found = section.get(name, value)
            if found != value and not isinstance(found, Reference):
                raise CheckpointError(
                    f"{'.'.join(('flow', *place, name))} is {found!r}; the weights and "
                    f"the architecture want {value!r}"
                )
    return replace(config, guidance=_guidance(document, config.guidance))


def _read_yaml(folder: Path) -> Mapping[str, Any] | None:
    """The first of the settings files that is there; none need be, since shapes tell nearly all."""
    for path in (folder / name for name in YAMLS):
        if not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error})") from error
        return parse_plain_yaml(text, str(path))
    return None


def _section(document: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    found: Any = document
    for name in path:
        found = found.get(name)
        if not isinstance(found, Mapping):
            raise CheckpointError(f"cosyvoice2.yaml has no section {'.'.join(path)!r}")
    return found  # type: ignore[no-any-return]


def _guidance(document: Mapping[str, Any], default: float) -> float:
    settings = _section(document, "flow", "decoder").get("cfm_params", {})
    inside = settings.get("content", settings) if isinstance(settings, Mapping) else {}
    value = inside.get("inference_cfg_rate", default) if isinstance(inside, Mapping) else default
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not 0 <= value <= _MOST_GUIDANCE:
        raise CheckpointError(f"inference_cfg_rate is {value!r}, expected 0 to {_MOST_GUIDANCE}")
    return float(value)
