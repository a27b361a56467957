"""The encoder as kernels: tokens of many streams to what the estimator is told of them.

As `agent.vocoder.conformer` with every call one block; the residual stream is float32.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.vocoder.batched.layout import Capacity, Layout, MemoryColumns
from agent.vocoder.config import FRAMES_PER_TOKEN
from agent.vocoder.conformer import Encoder, RelativeAttention
from agent.vocoder.flow import RECENT_TOKENS, Flow
from agent.vocoder.kernels.attention import Distances, Memory, attend_by_distance
from agent.vocoder.kernels.product import After, Along, Span, Weights, product
from agent.vocoder.kernels.rows import Ends, carry, norm

TAIL_TOKENS = 2
"""What each of the two convolutions sees of the tokens before."""
_LAYER_EPS = 1e-12
_EMBED_EPS = 1e-5
_SLOPE = 0.01


@dataclass(frozen=True, slots=True, eq=False)
class EncoderStores:
    """What streams remember: keys and values by row, the ends of convolutions by slot."""

    token_rows: Tensor  # [layers, rows, 2, H · D]
    mel_rows: Tensor
    smooth_tails: Tensor  # [slots, 2, W]
    up_tails: Tensor  # [slots, 2, W], of tokens before they are doubled

    @classmethod
    def of(cls, encoder: Encoder, token_rows: int, mel_rows: int, slots: int) -> "EncoderStores":
        """For so many rows and slots."""
        config, like = encoder.config, encoder.after_norm.weight
        inner = config.heads * config.head_width
        return cls(
            like.new_zeros(config.token_layers, token_rows, 2, inner),
            like.new_zeros(config.mel_layers, mel_rows, 2, inner),
            like.new_zeros(slots, TAIL_TOKENS, config.width),
            like.new_zeros(slots, TAIL_TOKENS, config.width),
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Embed:
    project: Weights
    norm: tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    first_norm: tuple[Tensor, Tensor]
    qkv: Weights
    distances: Distances
    out: Weights
    second_norm: tuple[Tensor, Tensor]
    wide: Weights
    narrow: Weights


class BatchedEncoder:
    """From the plan's tokens to [B, 2 · tokens, M], of which the plan says how many count."""

    def __init__(self, flow: Flow, capacity: Capacity, layout: Layout) -> None:
        encoder = flow.encoder
        self._layout = layout
        self._config = encoder.config
        self._tokens = capacity.tokens
        self._table = flow.input_embedding.weight
        self._embed, self._up_embed = _embed(encoder.embed), _embed(encoder.up_embed)
        lookahead = encoder.pre_lookahead_layer
        self._ahead, self._behind = _conv(lookahead.conv1), _conv(lookahead.conv2)
        self._double = _conv(encoder.up_layer.conv)
        farthest = capacity.prompt_tokens + RECENT_TOKENS + capacity.tokens
        self._token_layers = [_layer(one, farthest) for one in encoder.encoders]
        farthest *= FRAMES_PER_TOKEN
        self._mel_layers = [_layer(one, farthest) for one in encoder.up_encoders]
        self._last_norm = _vectors(encoder.after_norm)
        self._project = Weights.linear(flow.encoder_proj.weight, flow.encoder_proj.bias)

    def __call__(self, plan: Tensor, stores: EncoderStores) -> Tensor:
        """What the chunks' streams remember then is put into the stores."""
        layout, tokens = self._layout, self._tokens
        embedded = F.embedding(plan[:, layout.ids : layout.ids + tokens], self._table)
        states = self._looked_ahead(embedded, plan, stores)
        memory = self._memory(stores.token_rows, layout.token_memory, plan)
        for index, layer in enumerate(self._token_layers):
            _pass(states, layer, memory, index, self._table.dtype)
        states = self._doubled(states, plan, stores)
        memory = self._memory(stores.mel_rows, layout.mel_memory, plan)
        for index, layer in enumerate(self._mel_layers):
            _pass(states, layer, memory, index, self._table.dtype)
        narrow = torch.empty_like(states, dtype=self._table.dtype)
        norm(states, self._last_norm, _EMBED_EPS, narrow)
        mu = narrow.new_empty(*narrow.shape[:2], self._project.outputs)
        product(narrow, self._project, _plain(narrow), After(out=mu))
        return mu

    def _memory(self, store: Tensor, columns: MemoryColumns, plan: Tensor) -> Memory:
        return Memory(store, columns, plan, self._config.heads, self._config.head_width)

    def _looked_ahead(self, embedded: Tensor, plan: Tensor, stores: EncoderStores) -> Tensor:
        """Embedded tokens [B, T, W] → states f32 [B, T, W], each mixed with those around it."""
        layout, tokens = self._layout, self._tokens
        kept = torch.empty_like(embedded, dtype=torch.float32)
        product(embedded, self._embed.project, _plain(embedded), After(out=kept))
        narrow = torch.empty_like(embedded)
        norm(kept, self._embed.norm, _EMBED_EPS, narrow, wide=kept)
        padded = embedded.new_empty(len(embedded), TAIL_TOKENS + tokens, embedded.shape[2])
        # At the end of a turn zeros stand ahead, after the embedding.
        span = Span(plan, count=layout.tokens_in)
        after = After(acted=padded, act="leaky", slope=_SLOPE, lead=TAIL_TOKENS)
        product(narrow, self._ahead, Along(tokens, tokens, span=span), after)
        carry(padded, self._ends(stores.smooth_tails, plan))
        along = Along(tokens, TAIL_TOKENS + tokens)
        product(padded, self._behind, along, After(out=kept, added=kept))
        return kept

    def _doubled(self, states: Tensor, plan: Tensor, stores: EncoderStores) -> Tensor:
        """f32 [B, T, W] → f32 [B, 2T, W]: each twice in place, smoothed and embedded again."""
        count, tokens, width = states.shape
        padded = states.new_empty(count, TAIL_TOKENS + tokens, width, dtype=self._table.dtype)
        norm(states, None, 0.0, padded, ends=self._ends(stores.up_tails, plan))
        frames = FRAMES_PER_TOKEN * tokens
        smooth = padded.new_empty(count, frames, width)
        along = Along(frames, TAIL_TOKENS + tokens, repeat=FRAMES_PER_TOKEN)
        product(padded, self._double, along, After(out=smooth))
        out = torch.empty_like(smooth, dtype=torch.float32)
        product(smooth, self._up_embed.project, _plain(smooth), After(out=out))
        norm(out, self._up_embed.norm, _EMBED_EPS, None, wide=out)
        return out

    def _ends(self, tails: Tensor, plan: Tensor) -> Ends:
        layout = self._layout
        return Ends(
            tails, tails[0].numel(), 0, TAIL_TOKENS, 1, plan, layout.source, layout.target,
            layout.tokens,
        )  # fmt: skip


def _pass(states: Tensor, layer: _Layer, memory: Memory, index: int, dtype: torch.dtype) -> None:
    """Through one layer, in place."""
    along = _plain(states)
    narrow = torch.empty_like(states, dtype=dtype)
    norm(states, layer.first_norm, _LAYER_EPS, narrow)
    mixed = narrow.new_empty(*narrow.shape[:2], layer.qkv.outputs)
    product(narrow, layer.qkv, along, After(out=mixed))
    seen = narrow.new_empty(*narrow.shape[:2], layer.out.inputs)
    attend_by_distance(mixed, layer.distances, memory, index, seen)
    product(seen, layer.out, along, After(out=states, added=states))
    norm(states, layer.second_norm, _LAYER_EPS, narrow)
    wide = narrow.new_empty(*narrow.shape[:2], layer.wide.outputs)
    product(narrow, layer.wide, along, After(acted=wide, act="silu"))
    product(wide, layer.narrow, along, After(out=states, added=states))


def _plain(rows: Tensor) -> Along:
    return Along(rows.shape[1], rows.shape[1])


# ---- weights as kernels read them ---------------------------------------------------------------


def _embed(embed: nn.Module) -> _Embed:
    project, normed = embed.get_submodule("out.0"), embed.get_submodule("out.1")
    scale, shift = _vectors(normed)
    factor = math.sqrt(len(scale))
    return _Embed(_linear(project), (scale * factor, shift * factor))


def _layer(layer: nn.Module, farthest: int) -> _Layer:
    attention = layer.get_submodule("self_attn")
    assert isinstance(attention, RelativeAttention)
    parts = [attention.get_submodule(f"linear_{one}") for one in "qkv"]
    qkv = Weights.linear(
        torch.cat([one.get_parameter("weight") for one in parts]),
        torch.cat([one.get_parameter("bias") for one in parts]),
    )
    biases = torch.stack([attention.pos_bias_u, attention.pos_bias_v]).float().flatten(1)
    table = attention.distances(farthest)
    return _Layer(
        first_norm=_vectors(layer.get_submodule("norm_mha")),
        qkv=qkv,
        distances=Distances(table, biases.contiguous(), farthest),
        out=_linear(attention.linear_out),
        second_norm=_vectors(layer.get_submodule("norm_ff")),
        wide=_linear(layer.get_submodule("feed_forward.w_1")),
        narrow=_linear(layer.get_submodule("feed_forward.w_2")),
    )


def _linear(layer: nn.Module) -> Weights:
    return Weights.linear(layer.get_parameter("weight"), layer.get_parameter("bias"))


def _conv(layer: nn.Module) -> Weights:
    weight = layer.get_parameter("weight").transpose(1, 2)
    return Weights.of_taps([weight], [layer.get_parameter("bias")])


def _vectors(normed: nn.Module) -> tuple[Tensor, Tensor]:
    return normed.get_parameter("weight").float(), normed.get_parameter("bias").float()
