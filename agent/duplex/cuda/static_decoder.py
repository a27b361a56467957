"""A decoder as launches of fixed shape: what CUDA graphs are made of.

    static = StaticDecoder(llm.model, slots.llm)
    states = static.forward(tokens, rows)  # [N, W]; launches alone, nothing is waited for

The N rows are the next positions of any streams, in any mixture: each has a slot and a position,
and rows of one stream follow each other. `Rows` is read on the device, so one graph serves every
mixture of so many rows. The module's weights are used where they lie; those of queries, keys and
values, and of gate and up, are brought side by side at the start, and the module's own parameters
are views of them from then on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agent.duplex.cuda.kernels_attention import (
    HeadNorms,
    Heads,
    Rows,
    attend,
    most_splits,
    place,
    splits_for,
)
from agent.duplex.cuda.kernels_attention_few import FewScratch, place_and_attend
from agent.duplex.cuda.static_decoder_linear import (
    Flow,
    Norm,
    Projection,
    merged_weights,
    side_by_side,
)
from agent.duplex.decoder import Decoder, DecoderLayer, RmsNorm
from agent.duplex.kv_cache import KvCache

__all__ = ["Rows", "StaticDecoder", "merged_weights", "plain_rows", "splits_for", "tiles_of"]


@dataclass(frozen=True, slots=True)
class _Layer:
    before: Norm
    merged: Projection  # queries, keys and values
    head_norms: HeadNorms | None
    out: Projection
    between: Norm
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
        self._layers: list[_Layer] = []
        for index, layer in enumerate(layers):
            self._layers.append(_layer(layer, cache.tensor[index]))
            if cache.tensor.is_cuda:
                # Weights that were brought together elsewhere: their old places fit nothing else.
                torch.cuda.empty_cache()
        self._last = _norm(decoder.norm)
        everywhere = torch.arange(cache.positions, device=cache.tensor.device)[None]
        cosine, sine = decoder.rotary.at(everywhere, cache.tensor.dtype)
        self._scratch = FewScratch.of(cache.tensor, self.heads)
        self._turns = (cosine[0, 0].contiguous(), sine[0, 0].contiguous())

    @torch.no_grad()
    def forward(self, tokens: Tensor, rows: Rows) -> Tensor:
        """[N, W], which is overwritten, at `rows` → the states [N, W] after the last norm, in the
        weights' dtype.

        What the layers add to is kept in the dtype of `tokens`: float32 where the decoder's
        residual is wide. Keys and values enter the cache. Starts kernels and nothing else.
        """
        flow = Flow(tokens)
        for layer in self._layers:
            merged = layer.merged.of_normed(flow, layer.before)
            found = self._attended(layer, merged, rows)
            layer.out.onto(found, flow)
            layer.down.onto(layer.opened.of_normed(flow, layer.between), flow)
        return flow.normed(self._last)

    def _attended(self, layer: _Layer, merged: Tensor, rows: Rows) -> Tensor:
        shape = (self.heads, layer.head_norms)
        splits = self._splits(rows)
        if len(merged) <= self.heads.narrow:
            scratch = (self._scratch, splits)
            return place_and_attend(merged, rows, layer.cache, self._turns, shape, scratch)
        place(merged, rows, layer.cache, self._turns, shape)
        return attend(merged, rows, layer.cache, self.heads, splits)

    def _splits(self, rows: Rows) -> int:
        """A power of two."""
        if rows.splits is not None:
            return most_splits(len(rows.slots), len(rows.tiles), self.heads)
        wanted = splits_for([1] * len(rows.tiles), self.heads)
        return 1 << (wanted - 1).bit_length()


def _layer(layer: DecoderLayer, cache: Tensor) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        before=_norm(layer.input_layernorm),
        merged=side_by_side([attention.q_proj, attention.k_proj, attention.v_proj]),
        head_norms=_head_norms(attention.q_norm, attention.k_norm),
        out=side_by_side([attention.o_proj]),
        between=_norm(layer.post_attention_layernorm),
        opened=side_by_side([mlp.gate_proj, mlp.up_proj], gates=True),
        down=side_by_side([mlp.down_proj]),
        cache=cache,
    )


def _norm(module: RmsNorm) -> Norm:
    return Norm(module.weight.detach(), module.epsilon)


def _head_norms(query: RmsNorm | None, key: RmsNorm | None) -> HeadNorms | None:
    if query is None or key is None:
        return None
    return HeadNorms(query.weight.detach(), key.weight.detach(), query.epsilon)


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
