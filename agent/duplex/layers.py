"""What the towers are built of: attention over heads, in the implementation that the user chose."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.duplex.config import Attention


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, implementation: Attention
) -> Tensor:
    """Scaled dot-product attention: [B, H, T, D] on [B, H, S, D] → [B, H, T, D].

    `mask` is true where a query may look; it broadcasts to [B, H, T, S]; None lets it look
    everywhere. "eager" takes the softmax in float32 whatever the dtype, "sdpa" leaves it to torch.
    """
    mixed: Tensor
    if implementation == "sdpa":
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return mixed
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    mixed = scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value
    return mixed


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """[B, T, H·D] → [B, H, T, D]."""
    batch, length, width = tokens.shape
    return tokens.view(batch, length, heads, width // heads).transpose(1, 2)


def merge_heads(tokens: Tensor) -> Tensor:
    """[B, H, T, D] → [B, T, H·D]."""
    return tokens.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Attention of one layer, with the keys that both towers have in the checkpoint."""

    def __init__(
        self, width: int, heads: int, implementation: Attention, *, key_bias: bool
    ) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=key_bias)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self._heads = heads
        self._implementation: Attention = implementation

    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, W] → query, key and value, each [B, H, T, D]."""
        query, key, value = self.q_proj(tokens), self.k_proj(tokens), self.v_proj(tokens)
        return (
            split_heads(query, self._heads),
            split_heads(key, self._heads),
            split_heads(value, self._heads),
        )

    @property
    def heads(self) -> int:
        """How many."""
        return self._heads

    def merge(self) -> tuple[Tensor, Tensor]:
        """The weights of query, key and value as one matrix [3 · W, W], and the biases [3 · W].

        The three become parts of it, so that it takes no memory of its own; what they say stays.
        """
        parts = (self.q_proj, self.k_proj, self.v_proj)
        weight = torch.cat([part.weight for part in parts]).detach()
        none = torch.zeros_like(self.q_proj.bias)
        bias = torch.cat([none if part.bias is None else part.bias for part in parts]).detach()
        for part, mine in zip(parts, weight.chunk(3), strict=True):
            part.weight = nn.Parameter(mine, requires_grad=False)
        return weight, bias

    def mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """What the heads gather, projected back: [B, T, W]. The mask as in `attend`."""
        mixed = merge_heads(attend(query, key, value, mask, self._implementation))
        out: Tensor = self.out_proj(mixed)
        return out
