"""A decoder as launches of fixed shape: what CUDA graphs are made of.

    static = StaticDecoder(llm.model, slots.llm)
    states = static.forward(tokens, rows)  # [N, W]; launches alone, nothing is waited for

The N rows are the next positions of any streams, in any mixture: each has a slot and a position,
and rows of one stream follow each other. `Rows` is read on the device, so one graph serves every
mixture of so many rows. The module's weights are used where they lie; those of queries, keys and
values, and of gate and up, are brought side by side at the start, and the module's own parameters
are views of them from then on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.duplex.cuda.kernels import gate, norm
from agent.duplex.cuda.kernels_attention import HeadNorms, Heads, Rows, attend, place
from agent.duplex.decoder import Decoder, DecoderLayer, RmsNorm
from agent.duplex.kv_cache import KvCache

__all__ = ["Rows", "StaticDecoder", "plain_rows", "tiles_of"]

Projection: TypeAlias = Callable[[Tensor], Tensor]
"""[N, K] → [N, M], launches alone."""
_BUSY_PROGRAMS = 256
"""Programs that keep a large GPU busy."""
_MOST_SPLITS = 32


@dataclass(frozen=True, slots=True)
class _Layer:
    before: Tensor  # weight of the norm before attention
    merged: Projection  # queries, keys and values
    norms: HeadNorms | None
    out: Projection
    between: Tensor  # weight of the norm before the feed-forward part
    opened: Projection  # gate and up
    down: Projection
    cache: Tensor  # [2, slots, KV, positions, D]


class StaticDecoder:
    """`Decoder` over a cache that stays where it is. Holds nothing of any conversation."""

    def __init__(self, decoder: Decoder, cache: KvCache) -> None:
        """From now on the parameters of `decoder` that are used together lie side by side."""
        layers = [layer for layer in decoder.layers if isinstance(layer, DecoderLayer)]
        attention = layers[0].self_attn
        self.heads = Heads(attention.heads, attention.kv_heads, cache.tensor.shape[-1])
        self._layers = [_layer(layer, cache.tensor[index]) for index, layer in enumerate(layers)]
        self._last, self._epsilon = decoder.norm.weight.detach(), decoder.norm.epsilon
        everywhere = torch.arange(cache.positions, device=cache.tensor.device)[None]
        cosine, sine = decoder.rotary.at(everywhere, cache.tensor.dtype)
        self._turns = (cosine[0, 0].contiguous(), sine[0, 0].contiguous())

    @torch.no_grad()
    def forward(self, tokens: Tensor, rows: Rows) -> Tensor:
        """[N, W], which is overwritten, at `rows` → the states [N, W] after the last norm.

        Keys and values enter the cache. Starts kernels and nothing else.
        """
        splits = self._splits(len(rows.tiles))
        added: Tensor | None = None
        for layer in self._layers:
            merged = layer.merged(norm(tokens, layer.before, self._epsilon, added))
            place(merged, rows, layer.cache, self._turns, self.heads, layer.norms)
            added = layer.out(attend(merged, rows, layer.cache, self.heads, splits))
            opened = layer.opened(norm(tokens, layer.between, self._epsilon, added))
            added = layer.down(gate(opened))
        return norm(tokens, self._last, self._epsilon, added)

    def _splits(self, tiles: int) -> int:
        wanted = _BUSY_PROGRAMS // (tiles * self.heads.kv_heads)
        return min(_MOST_SPLITS, 1 << max(0, wanted - 1).bit_length())


def _layer(layer: DecoderLayer, cache: Tensor) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        before=layer.input_layernorm.weight.detach(),
        merged=_side_by_side([attention.q_proj, attention.k_proj, attention.v_proj]),
        norms=_head_norms(attention.q_norm, attention.k_norm),
        out=_projection(attention.o_proj),
        between=layer.post_attention_layernorm.weight.detach(),
        opened=_side_by_side([mlp.gate_proj, mlp.up_proj]),
        down=_projection(mlp.down_proj),
        cache=cache,
    )


def _head_norms(query: RmsNorm | None, key: RmsNorm | None) -> HeadNorms | None:
    if query is None or key is None:
        return None
    return HeadNorms(query.weight.detach(), key.weight.detach(), query.epsilon)


def _projection(module: nn.Module) -> Projection:
    if not isinstance(module, nn.Linear):
        return module  # a quantised one, which knows how
    weight = module.weight.detach()
    return lambda tokens: F.linear(tokens, weight)


def _side_by_side(modules: Sequence[nn.Module]) -> Projection:
    """Several projections of the same tokens as one, their outputs side by side."""
    linears = [module for module in modules if isinstance(module, nn.Linear)]
    if len(linears) < len(modules):
        return lambda tokens: torch.cat([module(tokens) for module in modules], -1)
    whole = merged_weights(linears)
    return lambda tokens: F.linear(tokens, whole)


def merged_weights(linears: Sequence[nn.Linear]) -> Tensor:
    """The weights [M, K] of `linears`, one below the other; theirs are views of it afterwards."""
    whole = torch.cat([linear.weight.detach() for linear in linears])
    begin = 0
    for linear in linears:
        part = whole[begin : begin + linear.out_features]
        linear.weight = nn.Parameter(part, requires_grad=linear.weight.requires_grad)
        begin += linear.out_features
    return whole


# ---- rows ---------------------------------------------------------------------------------------


def tiles_of(counts: Sequence[int], most: int) -> list[tuple[int, int]]:
    """First row and how many, `most` at once, for streams of so many rows one behind the other."""
    tiles, row = [], 0
    for count in counts:
        for begin in range(0, count, most):
            tiles.append((row + begin, min(most, count - begin)))
        row += count
    return tiles


def plain_rows(
    slots: Sequence[int],
    lengths: Sequence[int],
    counts: Sequence[int],
    heads: Heads,
    device: torch.device,
) -> Rows:
    """The next `counts` positions of streams in `slots`, `lengths` long by now: their rows."""
    each = list(zip(slots, lengths, counts, strict=True))
    return Rows(
        _integers([slot for slot, _, count in each for _ in range(count)], device),
        _integers([length + step for _, length, count in each for step in range(count)], device),
        _integers(tiles_of(counts, heads.wide), device),
    )


def _integers(values: object, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.int32).to(device)
