"""The speech LM's step for a handful of rows: how its kernels are started."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agent.duplex.cuda.speech_lane_few_kernels import ALONE, EARLY, LATE, attend_few, project
from agent.duplex.cuda.static_decoder import merged_weights
from agent.duplex.decoder import DecoderLayer
from agent.duplex.kv_cache import KvCache
from agent.duplex.speech_lm import SpeechLm
from agent.torch_parts.kernels.launching import launch

MOST_FEW = 4
"""Rows whose sums a program's registers hold."""
_LOG2_E = 1.4426950408889634
_BLOCK = 128
"""Positions looked at at once."""
_ATTEND_WARPS = 16
_WIDEST_CHUNK = 256
"""Numbers that a warp reads at once, eight a thread."""
_MOST_CHUNKS = 12
_EARLY_CAPABILITY = (9, 0)
"""Below, no launch can begin before the one before it has ended."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How a projection is cut: rows of the weight a program has, and its warps."""

    tall: int
    warps: int


@dataclass(frozen=True, slots=True)
class Shapes:
    """Those of a layer's projections and of the head; measured on an H200."""

    merged: Shape = Shape(16, 8)
    out: Shape = Shape(4, 4)
    opened: Shape = Shape(8, 4)
    down: Shape = Shape(4, 4)
    head: Shape = Shape(16, 8)


@dataclass(frozen=True, slots=True)
class _Layer:
    before: Tensor
    merged: Tensor  # [(H + 2·KV)·D, W]
    out: Tensor
    between: Tensor
    opened: Tensor  # [2·F, W]
    down: Tensor
    keys: Tensor  # [slots, KV, positions, D]
    values: Tensor


def is_for(lm: SpeechLm, count: int) -> bool:
    """Whether a step of so many rows can be taken here: they and the weights fit into registers."""
    widths = (lm.config.width, lm.config.ffn_width, lm.config.heads * lm.config.head_width)
    chunks = [width // math.gcd(width, _WIDEST_CHUNK) for width in widths]
    return count <= MOST_FEW and max(chunks) <= _MOST_CHUNKS


class FewSteps:
    """Layers and head over a cache that stays where it is; launches alone."""

    def __init__(self, lm: SpeechLm, cache: KvCache, shapes: Shapes | None = None) -> None:
        self._config, self._cache = lm.config, cache
        self._shapes = shapes or Shapes()
        decoder = lm.model
        layers = [layer for layer in decoder.layers if isinstance(layer, DecoderLayer)]
        self._layers = [_layer(one, cache.tensor[index]) for index, one in enumerate(layers)]
        self._head, self._last = lm.head, decoder.norm.weight.detach()
        self._epsilon = decoder.norm.epsilon
        device = cache.tensor.device
        everywhere = torch.arange(cache.positions, device=device)[None]
        cosine, sine = decoder.rotary.at(everywhere, cache.tensor.dtype)
        self._turns = (cosine[0, 0].contiguous(), sine[0, 0].contiguous())
        self.ahead = ALONE
        """When a projection lets the next launch come."""
        if device.type == "cuda" and torch.cuda.get_device_capability(device) >= _EARLY_CAPABILITY:
            self.ahead = EARLY

    def logits(self, tokens: Tensor, *, norms: bool) -> Tensor:
        """[B, W] → [B, audio tokens]; `norms` where they are not states yet."""
        out = tokens.new_empty(len(tokens), len(self._head))
        weights = (self._head, self._last)
        self._project(tokens, weights, out, self._shapes.head, NORMS=norms)
        return out

    def read(self, tokens: Tensor, slots: Tensor, starts: Tensor, step: int = 0) -> None:
        """[B, W], of each row the position `step` behind its start, becomes what comes out of the
        last layer. `slots` and `starts` i32 [B], of one stride, stay as they are for all steps."""
        shapes, rows = self._shapes, len(tokens)
        merged = tokens.new_empty(rows, len(self._layers[0].merged))
        found = torch.empty_like(tokens)
        opened = tokens.new_empty(rows, self._config.ffn_width)
        for layer in self._layers:
            given = (layer.merged, layer.before)
            self._project(tokens, given, merged, shapes.merged, NORMS=True)
            self._attend(merged, found, layer, (slots, starts, step))
            self._project(found, (layer.out, layer.before), tokens, shapes.out, ADDS=True)
            given = (layer.opened, layer.between)
            self._project(tokens, given, opened, shapes.opened, NORMS=True, GATES=True)
            self._project(opened, (layer.down, layer.between), tokens, shapes.down, ADDS=True)

    def _project(
        self, tokens: Tensor, weights: tuple[Tensor, Tensor], out: Tensor, shape: Shape, **how: bool
    ) -> None:
        (rows, width), outputs = tokens.shape, out.shape[1]
        chunk = math.gcd(width, _WIDEST_CHUNK)
        does = {"NORMS": False, "GATES": False, "ADDS": False} | how
        launch(
            project, (-(-outputs // shape.tall),),
            tokens, *weights, out, outputs, self._epsilon,
            rows, chunk, width // chunk, shape.tall, **does, AHEAD=self.ahead,
            num_warps=shape.warps, launch_pdl=self.ahead > 0,
        )  # fmt: skip

    def _attend(
        self, merged: Tensor, found: Tensor, layer: _Layer, where: tuple[Tensor, Tensor, int]
    ) -> None:
        config, (slots, starts, step) = self._config, where
        launch(
            attend_few, (config.heads, len(merged)),
            merged, found, layer.keys, layer.values, slots, starts, *self._turns,
            slots.stride(0), step, self._cache.positions,
            layer.keys.stride(0), layer.keys.stride(1), _LOG2_E * config.head_width**-0.5,
            config.heads, config.kv_heads, config.head_width, _BLOCK,
            LATE if self.ahead else ALONE,
            num_warps=_ATTEND_WARPS, launch_pdl=self.ahead > 0,
        )  # fmt: skip


def _layer(layer: DecoderLayer, cache: Tensor) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        before=layer.input_layernorm.weight.detach(),
        merged=_side_by_side([attention.q_proj, attention.k_proj, attention.v_proj]),
        out=attention.o_proj.weight.detach(),
        between=layer.post_attention_layernorm.weight.detach(),
        opened=_side_by_side([mlp.gate_proj, mlp.up_proj]),
        down=mlp.down_proj.weight.detach(),
        keys=cache[0],
        values=cache[1],
    )


def _side_by_side(linears: Sequence[nn.Linear]) -> Tensor:
    """Their weights as one, [sum of outputs, width]; brought together where they are not yet."""
    weights = [linear.weight.detach() for linear in linears]
    homes = {one.untyped_storage().data_ptr() for one in weights}
    ends = [one.storage_offset() + one.numel() for one in weights]
    if len(homes) > 1 or ends[:-1] != [one.storage_offset() for one in weights[1:]]:
        return merged_weights(linears)
    outputs, width = sum(map(len, weights)), weights[0].shape[1]
    return weights[0].as_strided((outputs, width), (width, 1))
