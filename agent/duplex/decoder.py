"""The transformer that the LLM and the speech LM are both made of.

Pre-norm layers with RMSNorm, rotary positions, grouped-query attention and SwiGLU. A forward is a
function of (weights, embeddings, places in a cache): the module holds nothing of a conversation.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.duplex.config import Attention, LlmConfig, Numerics, RopePrecision, SpeechConfig
from agent.duplex.kv_cache import KvCache, KvPlaces
from agent.duplex.layers import attend, merge_heads, split_heads


class Decoder(nn.Module):
    """Embeddings in, states after the last norm out; `normed_heads` norms each query and key.

    What the layers add to is kept in the embeddings' dtype or, with `wide_residual`, in float32:
    every layer adds to it twice, and would round it twice. What is added is in the weights' dtype
    either way.
    """

    def __init__(
        self,
        config: LlmConfig | SpeechConfig,
        numerics: Numerics,
        *,
        normed_heads: bool,
        wide_residual: bool = False,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(config, numerics.attention, normed_heads=normed_heads)
            for _ in range(config.layers)
        )
        self.norm = RmsNorm(config.width, config.norm_eps)
        self.rotary = Rotary(config.head_width, config.rope_theta, numerics.rope_precision)
        self._wide_residual = wide_residual

    def forward(self, tokens: Tensor, cache: KvCache, places: KvPlaces) -> Tensor:
        """[B, T, W] at `places` → [B, T, W] in the weights' dtype; the cache grows by them."""
        turns = self.rotary.at(places.positions, self.norm.weight.dtype)
        if self._wide_residual:
            tokens = tokens.float()
        for index, layer in enumerate(self.layers):
            tokens = layer(tokens, turns, (cache, index, places))
        out: Tensor = self.norm(tokens)
        return out


class RmsNorm(nn.Module):
    """Scaled to a mean square of 1 in float32, rounded to the weight's dtype, and only then
    weighted."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.epsilon = epsilon

    def forward(self, tokens: Tensor) -> Tensor:
        wide = tokens.float()
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)
        return self.weight * scaled.to(self.weight.dtype)


class Rotary(nn.Module):
    """Rotary positions. Their frequencies are computed, never stored.

    Angles are float32 products; cosine and sine are rounded to the dtype of what they turn.
    """

    def __init__(self, head_width: int, theta: float, precision: RopePrecision) -> None:
        super().__init__()
        self._head_width = head_width
        self._theta = theta
        self._precision: RopePrecision = precision
        self.derive(torch.device("cpu"))

    def derive(self, device: torch.device) -> None:
        """Make the frequencies, exact and as the model is computed with."""
        steps = torch.arange(0, self._head_width, 2, device="cpu").float() / self._head_width
        exact = 1.0 / self._theta**steps
        used = exact.bfloat16().float() if self._precision == "bfloat16" else exact
        self.exact_frequencies = exact.to(device)  # f32 [D / 2]
        self.frequencies = used.to(device)

    def at(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine [B, 1, T, D / 2] of `positions` i64 [B, T]."""
        angles = positions[:, None, :, None].float() * self.frequencies
        return angles.cos().to(dtype), angles.sin().to(dtype)


def rotated(tokens: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """[B, H, T, D], the first half of D paired with the second."""
    cosine, sine = turns
    first, second = tokens.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)


class DecoderLayer(nn.Module):
    """Attention and a feed-forward part, each behind a norm and beside what it adds to."""

    def __init__(
        self, config: LlmConfig | SpeechConfig, attention: Attention, *, normed_heads: bool
    ) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(config.width, config.norm_eps)
        self.self_attn = GroupedAttention(config, attention, normed_heads=normed_heads)
        self.post_attention_layernorm = RmsNorm(config.width, config.norm_eps)
        self.mlp = GatedMlp(config)

    def forward(
        self,
        tokens: Tensor,
        turns: tuple[Tensor, Tensor],
        memory: tuple[KvCache, int, KvPlaces],
    ) -> Tensor:
        tokens = tokens + self.self_attn(self.input_layernorm(tokens), turns, memory)
        out: Tensor = tokens + self.mlp(self.post_attention_layernorm(tokens))
        return out


class GroupedAttention(nn.Module):
    """Attention whose queries share keys and values in groups."""

    def __init__(
        self, config: LlmConfig | SpeechConfig, implementation: Attention, *, normed_heads: bool
    ) -> None:
        super().__init__()
        width, head_width = config.width, config.head_width
        self.q_proj = nn.Linear(width, config.heads * head_width, bias=False)
        self.k_proj = nn.Linear(width, config.kv_heads * head_width, bias=False)
        self.v_proj = nn.Linear(width, config.kv_heads * head_width, bias=False)
        self.o_proj = nn.Linear(config.heads * head_width, width, bias=False)
        self.q_norm = RmsNorm(head_width, config.norm_eps) if normed_heads else None
        self.k_norm = RmsNorm(head_width, config.norm_eps) if normed_heads else None
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self._implementation: Attention = implementation

    def forward(
        self,
        tokens: Tensor,
        turns: tuple[Tensor, Tensor],
        memory: tuple[KvCache, int, KvPlaces],
    ) -> Tensor:
        query = split_heads(self.q_proj(tokens), self.heads)
        key = split_heads(self.k_proj(tokens), self.kv_heads)
        value = split_heads(self.v_proj(tokens), self.kv_heads)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        cache, layer, places = memory
        keys, values = cache.extend(layer, places, rotated(key, turns), value)
        mixed = self._grouped(rotated(query, turns), keys, values, places.mask)
        out: Tensor = self.o_proj(merge_heads(mixed))
        return out

    def _grouped(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """The queries of all heads that share keys, as so many more rows: no key is repeated."""
        batch, heads, count, width = query.shape
        group = heads // self.kv_heads
        rows = query.reshape(batch, self.kv_heads, group * count, width)
        seen = mask if mask is None or group == 1 else mask.repeat(1, 1, group, 1)
        mixed = attend(rows, keys, values, seen, self._implementation)
        return mixed.reshape(batch, heads, count, width)


class GatedMlp(nn.Module):
    """SwiGLU."""

    def __init__(self, config: LlmConfig | SpeechConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.ffn_width, bias=False)
        self.up_proj = nn.Linear(config.width, config.ffn_width, bias=False)
        self.down_proj = nn.Linear(config.ffn_width, config.width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(tokens)) * self.up_proj(tokens))
        return out
