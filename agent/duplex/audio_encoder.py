"""Whisper's encoder over mel frames, and the projection to vectors of the LLM's width.

Two mel frames make one conv frame (20 ms), five conv frames one vector (100 ms): ten a second.
A recording is encoded offline, either in blocks of a second that see themselves and everything
before (as while streaming) or with every frame seeing every other. A stream keeps the keys and
values of what it has heard, second by second, in a cache that is allocated once for all sessions;
before a second that would not fit any more, it forgets everything and starts at position 0.
Of a session there is nothing in the modules: `AudioStream` is all that it remembers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.duplex.config import Attention, AudioConfig
from agent.duplex.layers import SelfAttention, Tower

BLOCK_FRAMES = 50
"""Conv frames of a second: what sees itself whole."""
OVERLAP_FRAMES = 2
"""Mel frames on each side of a streamed second that the convolutions alone look at."""
SECOND_MEL_FRAMES = BLOCK_FRAMES * 2 + 2 * OVERLAP_FRAMES
"""Of a streamed second; a stream's first has no overlap before it."""

Extend: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""New key and value [B, H, T, D] → all that the queries look at [B, H, S, D]."""


def conv_frames(mel_frames: int) -> int:
    """Conv frames of so many mel frames."""
    return (mel_frames + 1) // 2


def vector_count(mel_frames: int, pool_frames: int = 5) -> int:
    """Vectors of so many mel frames; what does not fill the last one is dropped."""
    return conv_frames(mel_frames) // pool_frames


# ---- the networks -------------------------------------------------------------------------------


class AudioEncoder(Tower):
    """Whisper's encoder: two convolutions, positions, pre-norm layers."""

    PREFIX = "apm."

    def __init__(self, config: AudioConfig, attention: Attention = "sdpa") -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(config.mel_bands, config.width, 3, padding=1)
        self.conv2 = nn.Conv1d(config.width, config.width, 3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(config.positions, config.width)
        self.layers = nn.ModuleList(_Layer(config, attention) for _ in range(config.layers))
        self.layer_norm = nn.LayerNorm(config.width, config.norm_eps)
        self.config = config

    def convolve(self, mel: Tensor, inside: Tensor | None = None) -> Tensor:
        """[B, 80, T] → [B, ⌈T / 2⌉, W].

        `inside` [B, T] is true where there is sound. Elsewhere counts as the zeros that stand
        around every recording, in the second convolution too.
        """
        frames = mel.to(self.conv1.weight.dtype).transpose(1, 2)
        if inside is None:
            return F.gelu(_slide(self.conv2, F.gelu(_slide(self.conv1, frames))))
        sound = inside[..., None].to(frames.dtype)
        frames = F.gelu(_slide(self.conv1, frames * sound)) * sound
        return F.gelu(_slide(self.conv2, frames))

    def forward(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        """Conv frames [B, T, W] of whole recordings → [B, T, W]; the mask as in `attend`."""
        if frames.shape[1] > self.config.positions:
            raise ValueError(f"at most {self.config.positions} conv frames at once")
        tokens = frames + self.embed_positions.weight[: frames.shape[1]]
        for layer in self.layers:
            tokens = layer(tokens, mask)
        out: Tensor = self.layer_norm(tokens)
        return out

    def forward_cached(self, frames: Tensor, cache: "AudioCache", places: "CachePlaces") -> Tensor:
        """The next conv frames [B, T, W] of B streams → [B, T, W]; their keys enter the cache.

        They see everything that their stream has cached, and each other. No shape depends on how
        much that is when `places.span` is the whole cache.
        """
        tokens = frames + self.embed_positions(places.positions)
        for index, layer in enumerate(self.layers):
            tokens = layer(tokens, places.mask, partial(cache.extend, index, places))
        out: Tensor = self.layer_norm(tokens)
        return out


def _slide(convolution: nn.Conv1d, frames: Tensor) -> Tensor:
    """A convolution over three frames [B, T, C] → [B, T', W], as a product of matrices.

    Convolutions of float32 are rounded to TensorFloat-32 on a GPU unless the whole process says
    otherwise (measured: 3e-4 of the largest vector); products of matrices are not.
    """
    padded = F.pad(frames, (0, 0, 1, 1))
    windows = padded.unfold(1, 3, convolution.stride[0]).flatten(2)  # [B, T', C · 3]
    return F.linear(windows, convolution.weight.flatten(1), convolution.bias)


class _Layer(nn.Module):
    def __init__(self, config: AudioConfig, attention: Attention) -> None:
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(config.width, config.norm_eps)
        self.self_attn = SelfAttention(config.width, config.heads, attention, key_bias=False)
        self.final_layer_norm = nn.LayerNorm(config.width, config.norm_eps)
        self.fc1 = nn.Linear(config.width, config.ffn_width)
        self.fc2 = nn.Linear(config.ffn_width, config.width)

    def forward(
        self, tokens: Tensor, mask: Tensor | None, extend: Extend = lambda key, value: (key, value)
    ) -> Tensor:
        """[B, T, W] → the same; `extend` puts a stream's past before the keys and values."""
        query, key, value = self.self_attn.project(self.self_attn_layer_norm(tokens))
        tokens = tokens + self.self_attn.mix(query, *extend(key, value), mask)
        out: Tensor = tokens + self.fc2(F.gelu(self.fc1(self.final_layer_norm(tokens))))
        return out


class AudioProjection(nn.Module):
    """Each conv frame to the LLM's width, then the mean of every five; in this order."""

    PREFIX = "audio_projection_layer."

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.linear1 = nn.Linear(config.width, config.llm_width)
        self.linear2 = nn.Linear(config.llm_width, config.llm_width)
        self._pool_frames = config.pool_frames

    def forward(self, frames: Tensor) -> Tensor:
        """[B, T, W] → [B, ⌊T / 5⌋, LLM width]."""
        projected = self.linear2(F.relu(self.linear1(frames)))
        if frames.shape[1] < self._pool_frames:
            out: Tensor = projected[:, :0]
            return out
        pooled = F.avg_pool1d(projected.transpose(1, 2), self._pool_frames, self._pool_frames)
        return pooled.transpose(1, 2)


# ---- what a stream remembers --------------------------------------------------------------------


@dataclass(slots=True)
class AudioStream:
    """One session's way through the encoder: its slot in the cache and how far it is."""

    slot: int
    cached_frames: int = 0
    """Conv frames whose keys and values are in the cache."""
    chunks: int = 0
    """Seconds heard since the session began; forgetting does not set it back."""


@dataclass(frozen=True, slots=True)
class AudioSnapshot:
    """A stream as it was, to go back to; keeps a copy of what it had cached."""

    cached_frames: int
    chunks: int
    keys: Tensor  # [layers, H, cached_frames, D]
    values: Tensor


@dataclass(frozen=True, slots=True)
class CachePlaces:
    """Where the next conv frames of B streams go in the cache, and what they see."""

    slots: Tensor  # i64 [B]
    positions: Tensor  # i64 [B, T]
    span: int
    """How many positions of the cache are looked at, from 0 on."""
    mask: Tensor | None  # bool [B, 1, 1, span]; None when every one of them is heard
    only_slot: int | None
    """The slot of a stream that is alone, unless shapes and addresses are to stay the same."""


class AudioCache:
    """Keys and values of all sessions' streams, [layers, slots, H, positions, D], allocated once.

    At full size a slot takes 147 MB in bfloat16.
    """

    def __init__(
        self, config: AudioConfig, slots: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        head_width = config.width // config.heads
        shape = (config.layers, slots, config.heads, config.positions, head_width)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)

    @property
    def positions(self) -> int:
        return self.keys.shape[3]

    def extend(
        self, layer: int, places: CachePlaces, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Write key and value [B, H, T, D] to their places; all that is seen: [B, H, span, D]."""
        keys = self.keys[layer][:, :, : places.span]
        values = self.values[layer][:, :, : places.span]
        if places.only_slot is not None:  # written and read in place
            one = slice(places.only_slot, places.only_slot + 1)
            keys, values = keys[one], values[one]
            keys[:, :, -key.shape[2] :] = key
            values[:, :, -key.shape[2] :] = value
            return keys, values
        slots = places.slots[:, None]
        keys[slots, :, places.positions] = key.transpose(1, 2)
        values[slots, :, places.positions] = value.transpose(1, 2)
        return keys[places.slots], values[places.slots]

    def places(self, streams: Sequence[AudioStream], frames: int, *, whole: bool) -> CachePlaces:
        """Where the next `frames` conv frames of these streams go.

        `whole` looks at all positions and masks what is not heard yet, so that every call has the
        same shapes; otherwise no more is looked at than the longest stream needs.
        """
        past = [stream.cached_frames for stream in streams]
        if max(past) + frames > self.positions:
            raise ValueError(f"{max(past) + frames} conv frames do not fit into {self.positions}")
        span = self.positions if whole else max(past) + frames
        device = self.keys.device
        begin = torch.tensor(past).to(device, non_blocking=True)
        mask = None
        if whole or min(past) != max(past):
            ends = (begin + frames)[:, None]
            mask = (torch.arange(span, device=device) < ends)[:, None, None]
        return CachePlaces(
            slots=torch.tensor([stream.slot for stream in streams]).to(device, non_blocking=True),
            positions=begin[:, None] + torch.arange(frames, device=device),
            span=span,
            mask=mask,
            only_slot=streams[0].slot if len(streams) == 1 and not whole else None,
        )

    def snapshot(self, stream: AudioStream) -> AudioSnapshot:
        """What it takes to bring `stream` back to where it is now, whatever it hears meanwhile."""
        kept = (slice(None), stream.slot, slice(None), slice(0, stream.cached_frames))
        return AudioSnapshot(
            stream.cached_frames, stream.chunks, self.keys[kept].clone(), self.values[kept].clone()
        )

    def restore(self, stream: AudioStream, snapshot: AudioSnapshot) -> None:
        """Bring `stream` back, in the slot that it has now."""
        kept = (slice(None), stream.slot, slice(None), slice(0, snapshot.cached_frames))
        self.keys[kept] = snapshot.keys
        self.values[kept] = snapshot.values
        stream.cached_frames, stream.chunks = snapshot.cached_frames, snapshot.chunks


# ---- from mel to vectors ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ears:
    """The encoder and the projection behind it: mel in, vectors for the LLM out."""

    encoder: AudioEncoder
    projection: AudioProjection

    @torch.no_grad()
    def hear_recordings(
        self,
        mels: Sequence[Tensor],
        block_frames: int | None = BLOCK_FRAMES,
        *,
        see_padding: bool = False,
    ) -> list[Tensor]:
        """Whole recordings, each [80, T] of at most 30 s → their vectors, each [n, LLM width].

        `block_frames`: conv frames of the blocks that see themselves and what lies before them;
        None lets every frame see every other. A recording comes out the same in any company,
        unless `see_padding`: the reference takes a length in mel frames for one in conv frames,
        so a short recording also sees padding as long as itself. For comparing with it alone.
        """
        if not mels:
            return []
        counts = [mel.shape[1] for mel in mels]
        batch, inside = _side_by_side(mels, max(counts), self._device)
        frames = self.encoder.convolve(batch, None if see_padding else inside)
        seen = [min(n, frames.shape[1]) if see_padding else conv_frames(n) for n in counts]
        mask = _recording_mask(seen, frames.shape[1], block_frames)
        if mask is not None:
            mask = mask.to(self._device)
        vectors = self.projection(self.encoder(frames, mask))
        pool = self.encoder.config.pool_frames
        return [
            row[: vector_count(count, pool)] for row, count in zip(vectors, counts, strict=True)
        ]

    @torch.no_grad()
    def hear(
        self,
        mels: Sequence[Tensor],
        streams: Sequence[AudioStream],
        cache: AudioCache,
        *,
        whole_cache: bool = False,
    ) -> Tensor:
        """The next second of B streams, mel [80, 102] (a stream's first) or [80, 104] each.

        → vectors [B, 10, LLM width]. The streams may be of any age; each moves on by a second.
        """
        self.prepare(mels, streams, cache)
        batch, inside = _side_by_side(mels, SECOND_MEL_FRAMES, self._device, at_end=True)
        # The overlap's conv frames belong to the neighbouring seconds.
        frames = self.encoder.convolve(batch, inside)[:, 1:-1]
        return self._encode(frames, streams, cache, whole_cache=whole_cache)

    def prepare(
        self, mels: Sequence[Tensor], streams: Sequence[AudioStream], cache: AudioCache
    ) -> None:
        """The beginning of `hear`: other lengths are refused, and streams that are full forget."""
        for mel, stream in zip(mels, streams, strict=True):
            expected = SECOND_MEL_FRAMES - (0 if stream.chunks else OVERLAP_FRAMES)
            if mel.shape[1] != expected:
                raise ValueError(f"a streamed second has {expected} mel frames, not {mel.shape[1]}")
        self._forget_if_full(mels, streams, cache)

    @torch.no_grad()
    def hear_untrimmed(self, mel: Tensor, stream: AudioStream, cache: AudioCache) -> Tensor:
        """The next mel [80, T] of a turn-based stream, all of whose conv frames are kept.

        → vectors [n, LLM width]. This is how a user's turn is fed live, piece by piece; its
        convolutions see zeros around every piece.
        """
        self._forget_if_full([mel], [stream], cache)
        frames = self.encoder.convolve(mel[None].to(self._device))
        return self._encode(frames, [stream], cache, whole_cache=False)[0]

    @property
    def _device(self) -> torch.device:
        return self.projection.linear1.weight.device

    def _forget_if_full(
        self, mels: Sequence[Tensor], streams: Sequence[AudioStream], cache: AudioCache
    ) -> None:
        """Before a second that may not fit, all is forgotten: so the model was made, at 29 s."""
        for mel, stream in zip(mels, streams, strict=True):
            if stream.cached_frames + conv_frames(mel.shape[1]) >= cache.positions:
                stream.cached_frames = 0

    def _encode(
        self,
        frames: Tensor,
        streams: Sequence[AudioStream],
        cache: AudioCache,
        *,
        whole_cache: bool,
    ) -> Tensor:
        count = frames.shape[1]
        places = cache.places(streams, count, whole=whole_cache)
        encoded = self.encoder.forward_cached(frames, cache, places)
        for stream in streams:
            stream.cached_frames += count
            stream.chunks += 1
        out: Tensor = self.projection(encoded)
        return out


def _side_by_side(
    mels: Sequence[Tensor], length: int, device: torch.device, *, at_end: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Mels [80, T] as one batch [B, 80, length], and where there is sound [B, length].

    Zeros fill what is missing, behind the sound or, `at_end`, before it; None when none is.
    """
    missing = [length - mel.shape[1] for mel in mels]
    pads = [(gap, 0) if at_end else (0, gap) for gap in missing]
    batch = torch.stack([F.pad(mel, pad) for mel, pad in zip(mels, pads, strict=True)])
    batch = batch.to(device, non_blocking=True)
    if not any(missing):
        return batch, None
    inside = [
        F.pad(torch.ones(mel.shape[1], dtype=torch.bool), pad)
        for mel, pad in zip(mels, pads, strict=True)
    ]
    return batch, torch.stack(inside).to(device, non_blocking=True)


def _recording_mask(lengths: Sequence[int], frames: int, block_frames: int | None) -> Tensor | None:
    """What each conv frame may look at: bool [B, 1, 1 or T, T]; None when at everything."""
    if block_frames is None and min(lengths) == frames:
        return None
    places = torch.arange(frames)
    heard = (places < torch.tensor(lengths)[:, None])[:, None, None]  # [B, 1, 1, T]
    if block_frames is None:
        return heard
    blocks = places // block_frames
    return heard & (blocks[None, :] <= blocks[:, None])
