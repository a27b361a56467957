"""The encoder of speech tokens: a conformer that sees three tokens ahead and doubles the rate.

    out = encoder.whole(embedded)  # [B, T, W] → [B, 2T, W], everything sees everything
    state = encoder.start()
    out, state = encoder.step(embedded, state, final=False)  # n + 3 tokens in, 2n frames out

A state is never changed: `step` returns a new one, so a stream is cloned by keeping the old one.
Each call is one block that sees all of itself and all of the past; with `block_tokens` the past
and the call are cut into blocks on one grid from the first token (CosyVoice2), and no frame sees
beyond the end of its own block.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.vocoder.config import FRAMES_PER_TOKEN, EncoderConfig

_LAYER_EPS = 1e-12
"""What the layers were trained with; 1e-5 shows in the output."""
_EMBED_EPS = 1e-5
_SMOOTH_KERNEL = 3
_UP_KERNEL = 5
_LEAST_REACH = 256
"""Positions either side that a table of relative positions covers at first; it doubles."""

Memory: TypeAlias = tuple[Tensor, Tensor]
"""Keys and values [B, H, t, D] of one layer, oldest first."""


@dataclass(frozen=True, slots=True)
class EncoderState:
    """What the past of one stream leaves to the next step; shared freely, never changed.

    Keys hold no position of their own: what is dropped from the middle moves the rest together.
    """

    smooth_tail: Tensor  # [B, W, 2]: what the look-ahead's second convolution saw last
    up_tail: Tensor  # [B, W, 4]: the end of the doubled signal
    token_layers: tuple[Memory, ...]
    mel_layers: tuple[Memory, ...]

    @property
    def tokens(self) -> int:
        """How many tokens are remembered."""
        return self.token_layers[0][0].shape[2]

    @property
    def frames(self) -> int:
        """How many mel frames are remembered."""
        return self.mel_layers[0][0].shape[2]

    def keep(self, tokens: Sequence[slice], frames: Sequence[slice]) -> "EncoderState":
        """Only these stretches of the two memories, in this order."""
        return replace(
            self,
            token_layers=tuple(_stretches(memory, tokens) for memory in self.token_layers),
            mel_layers=tuple(_stretches(memory, frames) for memory in self.mel_layers),
        )

    def to(self, dtype: torch.dtype) -> "EncoderState":
        """The same in another precision."""
        return EncoderState(
            self.smooth_tail.to(dtype),
            self.up_tail.to(dtype),
            tuple((key.to(dtype), value.to(dtype)) for key, value in self.token_layers),
            tuple((key.to(dtype), value.to(dtype)) for key, value in self.mel_layers),
        )


def _stretches(memory: Memory, stretches: Sequence[slice]) -> Memory:
    key, value = memory
    return (
        torch.cat([key[:, :, one] for one in stretches], 2),
        torch.cat([value[:, :, one] for one in stretches], 2),
    )


class Encoder(nn.Module):
    """Embedded tokens [B, T, W] at 25 Hz to [B, 2T, W] at 50 Hz; the weights hold no stream."""

    PREFIX = "encoder."

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = _Embed(config.width)
        self.pre_lookahead_layer = _Lookahead(config)
        self.encoders = nn.ModuleList(_Layer(config) for _ in range(config.token_layers))
        self.up_layer = _Doubling(config.width)
        self.up_embed = _Embed(config.width)
        self.up_encoders = nn.ModuleList(_Layer(config) for _ in range(config.mel_layers))
        self.after_norm = nn.LayerNorm(config.width, _EMBED_EPS)

    @property
    def tables(self) -> Sequence[Tensor]:
        """Of relative positions, as far as they are made."""
        attentions = [one for one in self.modules() if isinstance(one, RelativeAttention)]
        return [one.table for one in attentions if one.table is not None]

    def start(self, batch: int = 1) -> EncoderState:
        """The state of a stream that has heard nothing."""
        config, like = self.config, self.after_norm.weight
        empty = like.new_zeros(batch, config.heads, 0, config.head_width)
        return EncoderState(
            smooth_tail=like.new_zeros(batch, config.width, _SMOOTH_KERNEL - 1),
            up_tail=like.new_zeros(batch, config.width, _UP_KERNEL - 1),
            token_layers=((empty, empty),) * config.token_layers,
            mel_layers=((empty, empty),) * config.mel_layers,
        )

    def whole(
        self, tokens: Tensor, *, final: bool = True, block_tokens: int | None = None
    ) -> Tensor:
        """All tokens at once, [B, T, W] → [B, 2n, W]; n and `block_tokens` as in `step`."""
        out, _ = self.step(
            tokens, self.start(tokens.shape[0]), final=final, block_tokens=block_tokens
        )
        return out

    def step(
        self,
        tokens: Tensor,
        state: EncoderState,
        *,
        final: bool,
        block_tokens: int | None = None,
        seen: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, EncoderState]:
        """The next tokens [B, T, W] → [B, 2n, W] and the state after them.

        Unless `final`, the last three are only looked at (n = T - 3) and must come again. The grid
        of `block_tokens` starts at the first remembered token, so a step that is not final should
        end on it. `seen` says who looks at what instead of them, bool [n, keys] of tokens and of
        frames.
        """
        states = self.embed(tokens)
        states, smooth_tail = self.pre_lookahead_layer(states, state.smooth_tail, final=final)
        if seen is None and block_tokens is not None:
            seen = _block_masks(states, state, block_tokens)
        of_tokens, of_frames = seen or (None, None)
        states, token_layers = _through(self.encoders, states, state.token_layers, of_tokens)
        states, up_tail = self.up_layer(states, state.up_tail)
        states = self.up_embed(states)
        states, mel_layers = _through(self.up_encoders, states, state.mel_layers, of_frames)
        after = EncoderState(smooth_tail, up_tail, token_layers, mel_layers)
        return self.after_norm(states), after


def _through(
    layers: nn.ModuleList,
    states: Tensor,
    memories: tuple[Memory, ...],
    allowed: Tensor | None,
) -> tuple[Tensor, tuple[Memory, ...]]:
    after: list[Memory] = []
    for layer, memory in zip(layers, memories, strict=True):
        states, extended = layer(states, memory, allowed)
        after.append(extended)
    return states, tuple(after)


def _block_masks(states: Tensor, state: EncoderState, block: int) -> tuple[Tensor, Tensor]:
    """Of the states [B, n, W] of tokens behind `state`, and of their frames."""
    count, device = states.shape[1], states.device
    of_tokens = _block_mask(count, state.tokens, block, device)
    frames, block_frames = FRAMES_PER_TOKEN * count, FRAMES_PER_TOKEN * block
    return of_tokens, _block_mask(frames, state.frames, block_frames, device)


def _block_mask(count: int, past: int, block: int, device: torch.device) -> Tensor:
    """True where query i of `count`, after `past` keys, may look: to the end of its block."""
    keys = torch.arange(past + count, device=device)
    ends = (keys[past:] // block + 1) * block
    return keys[None, :] < ends[:, None]


class _Embed(nn.Module):
    """A projection, normed and scaled; positions are not added but looked at while attending."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = nn.ModuleList([nn.Linear(width, width), nn.LayerNorm(width, _EMBED_EPS)])
        self._scale = math.sqrt(width)

    def forward(self, tokens: Tensor) -> Tensor:
        project, norm = self.out
        out: Tensor = norm(project(tokens)) * self._scale
        return out


class _Lookahead(nn.Module):
    """Mixes each token with three to come and two before."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(config.width, config.width, config.lookahead_tokens + 1)
        self.conv2 = nn.Conv1d(config.width, config.width, _SMOOTH_KERNEL)
        self._lookahead = config.lookahead_tokens

    def forward(self, states: Tensor, tail: Tensor, *, final: bool) -> tuple[Tensor, Tensor]:
        """[B, T, W] → [B, n, W] and the tail for the next call; final: zeros stand ahead."""
        if final:
            states = F.pad(states, (0, 0, 0, self._lookahead))
        ahead = F.leaky_relu(self.conv1(states.transpose(1, 2)), 0.01)
        seen = torch.cat([tail, ahead], 2)
        mixed = self.conv2(seen).transpose(1, 2)
        kept = states[:, : states.shape[1] - self._lookahead]
        return mixed + kept, seen[:, :, seen.shape[2] - tail.shape[2] :]


class _Doubling(nn.Module):
    """Each token twice in place, then smoothed by a causal convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, _UP_KERNEL)

    def forward(self, states: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        doubled = states.transpose(1, 2).repeat_interleave(FRAMES_PER_TOKEN, 2)
        seen = torch.cat([tail, doubled], 2)
        out = self.conv(seen).transpose(1, 2)
        return out, seen[:, :, seen.shape[2] - tail.shape[2] :]


class _Layer(nn.Module):
    """Pre-norm attention and feed-forward; the norms are taken in float32 by torch's kernel."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.self_attn = RelativeAttention(config)
        self.feed_forward = _FeedForward(config)
        self.norm_mha = nn.LayerNorm(config.width, _LAYER_EPS)
        self.norm_ff = nn.LayerNorm(config.width, _LAYER_EPS)

    def forward(
        self, states: Tensor, memory: Memory, allowed: Tensor | None
    ) -> tuple[Tensor, Memory]:
        mixed, memory = self.self_attn(self.norm_mha(states), memory, allowed)
        states = states + mixed
        return states + self.feed_forward(self.norm_ff(states)), memory


class _FeedForward(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.w_1 = nn.Linear(config.width, config.ffn_width)
        self.w_2 = nn.Linear(config.ffn_width, config.width)

    def forward(self, states: Tensor) -> Tensor:
        out: Tensor = self.w_2(F.silu(self.w_1(states)))
        return out


class RelativeAttention(nn.Module):
    """Attention that scores a key by what it is and by how far it is from the query.

    With r = i - j: score(i, j) = ((q_i + u)·k_j + (q_i + v)·P(r)) / sqrt(D), P(r) = W_pos pe(r).
    P depends on the weights alone, so it is kept as a table that grows with the longest reach.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        inner = config.heads * config.head_width
        self.pos_bias_u = nn.Parameter(torch.empty(config.heads, config.head_width))
        self.pos_bias_v = nn.Parameter(torch.empty(config.heads, config.head_width))
        self.linear_q = nn.Linear(config.width, inner)
        self.linear_k = nn.Linear(config.width, inner)
        self.linear_v = nn.Linear(config.width, inner)
        self.linear_out = nn.Linear(inner, config.width)
        self.linear_pos = nn.Linear(config.width, inner, bias=False)
        self._config = config
        self.table: Tensor | None = None
        """[H, D, 2R + 1], r from R down to -R; once it was needed."""

    def forward(
        self, states: Tensor, memory: Memory, allowed: Tensor | None
    ) -> tuple[Tensor, Memory]:
        """[B, n, W] after `memory` → [B, n, W] and the memory with the new keys at its end."""
        query = self._heads(self.linear_q(states))
        key = torch.cat([memory[0], self._heads(self.linear_k(states))], 2)
        value = torch.cat([memory[1], self._heads(self.linear_v(states))], 2)
        bias = self._position_scores(query + self.pos_bias_v[:, None], key.shape[2])
        if allowed is not None:
            bias = bias.masked_fill(~allowed, float("-inf"))
        mixed = F.scaled_dot_product_attention(
            query + self.pos_bias_u[:, None], key, value, attn_mask=bias
        )
        out: Tensor = self.linear_out(mixed.transpose(1, 2).flatten(2))
        return out, (key, value)

    def _heads(self, states: Tensor) -> Tensor:
        """[B, n, H·D] → [B, H, n, D]."""
        batch, count, _ = states.shape
        split = states.view(batch, count, self._config.heads, self._config.head_width)
        return split.transpose(1, 2)

    def _position_scores(self, query: Tensor, keys: int) -> Tensor:
        """[B, H, n, D] → [B, H, n, keys]: query i stands at keys - n + i; already scaled.

        Row i of the product has r from keys - 1 down to 1 - n in its columns, and what query i
        needs starts n - 1 - i columns in: one view with rows a column shorter reads it all. It is
        copied, since fused attention wants its mask aligned.
        """
        batch, heads, count, width = query.shape
        table, reach = self._reaching(max(keys, count))
        distances = table[:, :, reach + 1 - keys : reach + count]
        scores: Tensor = ((query * width**-0.5) @ distances).contiguous()
        columns = keys + count - 1
        return scores.as_strided(
            (batch, heads, count, keys),
            (heads * count * columns, count * columns, columns - 1, 1),
            scores.storage_offset() + count - 1,
        ).contiguous()

    def _reaching(self, needed: int) -> tuple[Tensor, int]:
        """The table, made anew where it is too short or the weights are elsewhere by now."""
        weight = self.linear_pos.weight
        table = self.table
        if table is None or table.dtype != weight.dtype or table.device != weight.device:
            table = None
        reach = 0 if table is None else table.shape[2] // 2
        if table is None or reach < needed:
            reach = max(_LEAST_REACH, 1 << (needed - 1).bit_length())
            table = self.table = self._make_table(reach)
        return table, reach

    def distances(self, reach: int) -> Tensor:
        """P(r) of r from -`reach` to `reach`, [H, 2R + 1, D]: the table, as rows."""
        return self._make_table(reach).flip(2).transpose(1, 2).contiguous()

    def _make_table(self, reach: int) -> Tensor:
        weight = self.linear_pos.weight
        encoded = _encode_distances(reach, weight.shape[1]).to(weight.device)
        projected: Tensor = encoded @ weight.float().T  # [2R + 1, H·D]
        split = projected.view(-1, self._config.heads, self._config.head_width)
        return split.permute(1, 2, 0).to(weight.dtype).contiguous()


def _encode_distances(reach: int, width: int) -> Tensor:
    """Sines and cosines, alternating, of r from `reach` down to -`reach`: f32 [2R + 1, W]."""
    distances = torch.arange(reach, -reach - 1, -1, dtype=torch.float32)[:, None]
    steps = torch.arange(0, width, 2, dtype=torch.float32)
    angles = distances * torch.exp(steps * -(math.log(10000.0) / width))
    return torch.stack([angles.sin(), angles.cos()], 2).flatten(1)
