"""What the towers are built of: attention over heads, in the implementation that the user chose."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.duplex.config import Attention
from agent.torch_parts.checkpoint import Fold


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
    """Attention of one layer. A checkpoint holds query, key and value apart, as both towers' do;
    here they are one product, since three small ones take a GPU longer."""

    def __init__(
        self, width: int, heads: int, implementation: Attention, *, key_bias: bool
    ) -> None:
        super().__init__()
        self.merged = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        self.heads = heads
        self._biased = ("q_proj", "k_proj", "v_proj") if key_bias else ("q_proj", "v_proj")
        self._implementation: Attention = implementation

    def folds(self, name: str) -> dict[str, Fold]:
        """How the projections of the layer of this name are made of stored ones."""
        width = self.out_proj.in_features
        weights = {f"{name}.{one}.weight": (width, width) for one in ("q_proj", "k_proj", "v_proj")}
        biases: dict[str, tuple[int, ...]] = {
            f"{name}.{one}.bias": (width,) for one in self._biased
        }
        return {
            f"{name}.merged.weight": Fold(weights, lambda *parts: torch.cat(parts)),
            f"{name}.merged.bias": Fold(biases, _join_biases),
        }

    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, W] → query, key and value, each [B, H, T, D]."""
        query, key, value = self.merged(tokens).chunk(3, -1)
        return (
            split_heads(query, self.heads),
            split_heads(key, self.heads),
            split_heads(value, self.heads),
        )

    def mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """What the heads gather, projected back: [B, T, W]. The mask as in `attend`."""
        mixed = merge_heads(attend(query, key, value, mask, self._implementation))
        out: Tensor = self.out_proj(mixed)
        return out


def _join_biases(*parts: Tensor) -> Tensor:
    """Of query, key and value, the second of which may be without one."""
    return torch.cat(parts if len(parts) == 3 else (parts[0], torch.zeros_like(parts[0]), parts[1]))


class Tower(nn.Module):
    """What the towers share: their attention's projections are folded while they are loaded."""

    def folds(self) -> Mapping[str, Fold]:
        """See `agent.torch_parts.checkpoint.Folds`."""
        parts = [
            one.folds(name) for name, one in self.named_modules() if isinstance(one, SelfAttention)
        ]
        return {name: fold for part in parts for name, fold in part.items()}
