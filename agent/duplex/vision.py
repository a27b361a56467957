"""The vision tower (SigLIP, NaViT): patches of pictures of any shape to features, one each."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.duplex.config import Attention, VisionConfig
from agent.duplex.layers import SelfAttention, Tower
from agent.duplex.pictures import MAX_SIDE_PATCHES, PATCH_PX, Patches
from agent.duplex.resampler import Resampler

_TABLE_SIDE = 70
"""Buckets along a side of the position table, which the exceptions below belong to."""
_ROUNDED_DOWN = {
    25: (5, 10, 15, 20),
    49: (7, 14, 35, 42),
    50: (5, 10, 15, 20, 30, 40),
    55: (11, 22, 33, 44),
    58: (29,),
    77: (55,),
    82: (41,),
    86: (43,),
    94: (47,),
    98: (7, 14, 35, 42, 56, 70, 84),
    100: (10, 20, 30, 40, 80),
    110: (11, 22, 33, 44, 66, 88),
    115: (23, 46, 69, 92),
    135: (27, 54),
    147: (21, 63, 126),
    154: (55,),
    155: (62, 124),
}
"""Side in patches → places whose bucket is one lower than the fraction says.

The model was trained with buckets found by comparing float32 fractions with rounded boundaries;
where a place falls on a boundary, the rounding decided. Computed anew it falls out differently.
"""


def position_buckets(patches: int) -> list[int]:
    """The row (or column) of the position table for each of a side's 1..160 patches."""
    if not 1 <= patches <= MAX_SIDE_PATCHES:
        raise ValueError(f"a side has 1 to {MAX_SIDE_PATCHES} patches, not {patches}")
    lower = _ROUNDED_DOWN.get(patches, ())
    return [place * _TABLE_SIDE // patches - (place in lower) for place in range(patches)]


@lru_cache(maxsize=256)
def shape_tables(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """For one shape: position ids i64 [L] and (row, column) of each patch i64 [L, 2]."""
    row_ids, column_ids = (torch.tensor(position_buckets(side)) for side in (rows, columns))
    ids = (row_ids[:, None] * _TABLE_SIDE + column_ids).flatten()
    return ids, torch.cartesian_prod(torch.arange(rows), torch.arange(columns))


# ---- the network --------------------------------------------------------------------------------


class VisionTower(Tower):
    """Pre-norm transformer over patches; every patch of a picture sees all of its others."""

    PREFIX = "vpm."

    def __init__(self, config: VisionConfig, attention: Attention = "sdpa") -> None:
        super().__init__()
        if config.table_side != _TABLE_SIDE:
            raise ValueError(f"positions are known for a side of {_TABLE_SIDE}")
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config, attention)
        self.post_layernorm = nn.LayerNorm(config.width, config.norm_eps)
        self.batch_pictures = config.batch_pictures
        self.heads = config.heads

    def forward(self, pixels: Tensor, position_ids: Tensor, mask: Tensor | None) -> Tensor:
        """Features [B, L, W] of `pixels` [B, L, 588] at `position_ids` i64 [B, L].

        `mask` [B, L] is true where there is a patch; None when there is one everywhere. What
        comes out elsewhere means nothing.
        """
        tokens = self.embeddings(pixels, position_ids)
        seen = None if mask is None else mask[:, None, None]
        for layer in self.encoder.layers:
            tokens = layer(tokens, seen)
        out: Tensor = self.post_layernorm(tokens)
        return out


class _Embeddings(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        # Kept as the convolution of the checkpoint; on patches already cut it is a linear layer.
        self.patch_embedding = nn.Conv2d(3, config.width, PATCH_PX, PATCH_PX)
        self.position_embedding = nn.Embedding(config.table_side**2, config.width)

    def forward(self, pixels: Tensor, position_ids: Tensor) -> Tensor:
        weight, bias = self.patch_embedding.weight, self.patch_embedding.bias
        patches = F.linear(pixels.to(weight.dtype), weight.flatten(1), bias)
        out: Tensor = patches + self.position_embedding(position_ids)
        return out


class _Encoder(nn.Module):
    """Holds the layers under the name that they have in the checkpoint."""

    def __init__(self, config: VisionConfig, attention: Attention) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(config, attention) for _ in range(config.layers))


class _Layer(nn.Module):
    def __init__(self, config: VisionConfig, attention: Attention) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.width, config.norm_eps)
        self.self_attn = SelfAttention(config.width, config.heads, attention, key_bias=True)
        self.layer_norm2 = nn.LayerNorm(config.width, config.norm_eps)
        self.mlp = _Mlp(config)

    def forward(self, tokens: Tensor, seen: Tensor | None) -> Tensor:
        query, key, value = self.self_attn.project(self.layer_norm1(tokens))
        tokens = tokens + self.self_attn.mix(query, key, value, seen)
        out: Tensor = tokens + self.mlp(self.layer_norm2(tokens))
        return out


class _Mlp(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.ffn_width)
        self.fc2 = nn.Linear(config.ffn_width, config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(tokens), approximate="tanh"))
        return out


# ---- from pictures to vectors -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PatchBatch:
    """Pictures padded to the same number of patches, on the model's device."""

    pixels: Tensor  # f32 [B, L, 588]
    position_ids: Tensor  # i64 [B, L]
    places: Tensor  # i64 [B, L, 2]
    mask: Tensor | None  # bool [B, L]; None when nothing is padded


def batch_patches(
    pieces: Sequence[Patches], device: torch.device, length: int | None = None
) -> PatchBatch:
    """Pad to the longest, or to `length` patches where a static shape is wanted."""
    counts = [len(piece.pixels) for piece in pieces]
    length = max(counts) if length is None else length
    if length < max(counts):
        raise ValueError(f"{max(counts)} patches do not fit into {length}")
    tables = [shape_tables(piece.rows, piece.columns) for piece in pieces]
    missing = [length - count for count in counts]

    def padded(tensors: list[Tensor]) -> Tensor:
        grown = [F.pad(one, (0, 0, 0, more)) for one, more in zip(tensors, missing, strict=True)]
        return torch.stack(grown).to(device, non_blocking=True)

    valid = [torch.ones(count, 1, dtype=torch.bool) for count in counts]
    return PatchBatch(
        pixels=padded([piece.pixels for piece in pieces]),
        position_ids=padded([ids[:, None] for ids, _ in tables])[..., 0],
        places=padded([places for _, places in tables]),
        mask=padded(valid)[..., 0] if any(missing) else None,
    )


@dataclass(frozen=True, slots=True)
class Eyes:
    """The tower and the resampler behind it: pictures in, vectors for the LLM out."""

    tower: VisionTower
    resampler: Resampler

    @torch.no_grad()
    def see(self, pieces: Sequence[Patches]) -> Tensor:
        """Thumbnails and cells, in any number and of any shapes → [N, queries, LLM width]."""
        device = self.resampler.query.device
        if not pieces:
            return self.resampler.query.new_empty(0, *self.resampler.query.shape)
        step = self.tower.batch_pictures
        batches = [pieces[start : start + step] for start in range(0, len(pieces), step)]
        return torch.cat([self.see_batch(batch_patches(batch, device)) for batch in batches])

    @torch.no_grad()
    def see_batch(self, batch: PatchBatch) -> Tensor:
        """The same for one batch of a fixed shape."""
        features = self.tower(batch.pixels, batch.position_ids, batch.mask)
        out: Tensor = self.resampler(features, batch.places, batch.mask)
        return out
