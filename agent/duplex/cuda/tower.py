"""A tower's layers as few large products: what the modules hold, laid out for that.

Both towers are pre-norm transformers with layer norms. What a layer adds is added together with
the norm that comes next, query, key and value are one product, and attention is the caller's:
over pieces of pictures in the one, over a stream's cache in the other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor, nn

from agent.duplex.cuda.tower_kernels import add_norm
from agent.duplex.layers import SelfAttention

Look: TypeAlias = Callable[[int, Tensor], Tensor]
"""Index of a layer and its query, key and value side by side [N, 3 · W] → what the heads gather,
[N, W]."""
Widen: TypeAlias = Callable[[Tensor, nn.Linear], Tensor]
"""A normed state [N, W] and the layer that widens it → what it makes, through the activation."""


@dataclass(frozen=True, slots=True)
class TowerLayer:
    """One layer's parts, in the order in which they are used."""

    norm: nn.LayerNorm
    attention: SelfAttention
    wide_norm: nn.LayerNorm
    widen: nn.Linear
    narrow: nn.Linear


def run_tower(
    layers: Sequence[TowerLayer], last: nn.LayerNorm, tokens: Tensor, look: Look, widen: Widen
) -> Tensor:
    """Tokens [N, W], which are written over, through all layers and the norm behind them."""
    norms = [*(layer.norm for layer in layers[1:]), last]
    normed: Tensor = layers[0].norm(tokens)
    for index, (layer, following) in enumerate(zip(layers, norms, strict=True)):
        attention = layer.attention
        mixed = attention.out_proj(look(index, attention.merged(normed)))
        normed = add_norm(tokens, mixed, layer.wide_norm)
        normed = add_norm(tokens, layer.narrow(widen(normed, layer.widen)), following)
    return normed
