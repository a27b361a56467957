"""From any number of patches to a fixed number of vectors of the LLM's width."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.duplex.config import Attention, ResamplerConfig
from agent.duplex.layers import attend, merge_heads, split_heads
from agent.duplex.pictures import MAX_SIDE_PATCHES

_BASE = 10_000.0


class Resampler(nn.Module):
    """One cross-attention: learned queries read the patches, which are told where they lie.

    The positions are a table that no checkpoint holds. It is one-dimensional, since a row and a
    column are coded apart, so it reaches every shape of picture that is let in.
    """

    PREFIX = "resampler."

    def __init__(self, config: ResamplerConfig, attention: Attention = "sdpa") -> None:
        super().__init__()
        width, epsilon = config.width, config.norm_eps
        self.query = nn.Parameter(torch.empty(config.queries, width))
        self.proj = nn.Parameter(torch.empty(width, width))
        self.kv_proj = nn.Linear(config.vision_width, width, bias=False)
        self.attn = _CrossAttention(width, config.heads, attention)
        self.ln_q = nn.LayerNorm(width, epsilon)
        self.ln_kv = nn.LayerNorm(width, epsilon)
        self.ln_post = nn.LayerNorm(width, epsilon)
        self.heads = config.heads
        self.positions = torch.empty(0)
        """Codes of the places along one side, f32 [160, W / 2]."""
        self.derive(self.query.device)

    def derive(self, device: torch.device) -> None:
        """Make the table of positions, in float32 whatever the weights are."""
        table = side_positions(MAX_SIDE_PATCHES, self.proj.shape[0] // 2)
        self.positions = table.to(device)

    def forward(self, patches: Tensor, places: Tensor, mask: Tensor | None) -> Tensor:
        """What the tower made of B pictures → [B, queries, W].

        `patches` [B, L, vision width], `places` i64 [B, L, 2] the row and the column of each, and
        `mask` [B, L] true where there is a patch; None when there is one everywhere.
        """
        value = self.ln_kv(self.kv_proj(patches))
        row, column = places.unbind(-1)
        # The column comes first in the code, then the row.
        code = torch.cat([self.positions[column], self.positions[row]], -1).to(value.dtype)
        query = self.ln_q(self.query).expand(len(patches), -1, -1)
        seen = None if mask is None else mask[:, None, None]
        read = self.attn(query, value + code, value, seen)
        out: Tensor = self.ln_post(read) @ self.proj
        return out


class _CrossAttention(nn.Module):
    """Attention with the fused input projection of `torch.nn.MultiheadAttention`, and its keys."""

    def __init__(self, width: int, heads: int, implementation: Attention) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)
        self._heads = heads
        self._implementation: Attention = implementation

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        projected = [
            split_heads(F.linear(tokens, weight, bias), self._heads)
            for tokens, weight, bias in zip((query, key, value), weights, biases, strict=True)
        ]
        mixed = attend(projected[0], projected[1], projected[2], mask, self._implementation)
        out: Tensor = self.out_proj(merge_heads(mixed))
        return out


def side_positions(length: int, width: int) -> Tensor:
    """Sine-cosine codes of the positions along one side: f32 [length, width], sines first."""
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float64, device="cpu") / half
    places = torch.arange(length, dtype=torch.float64, device="cpu")
    angles = places[:, None] * _BASE**-exponents
    return torch.cat([angles.sin(), angles.cos()], -1).to(torch.float32)
