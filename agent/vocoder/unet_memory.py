"""What one stream's flow remembers: per Euler step, every convolution's tail and every attention's
keys and values.

A chunk is computed step by step against the memory and then committed. Until then what it wrote
lies beyond what counts, so a chunk that failed is forgotten by not committing it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from agent.vocoder.unet import KERNEL, UnetConfig

ROWS = 2
"""With what conditions the flow, and without."""
_GROWTH_FRAMES = 100
"""Room is added in such pieces: two seconds."""


@dataclass(frozen=True, slots=True)
class MemoryLayout:
    """Where a memory lies, and for how many Euler steps."""

    steps: int
    device: torch.device
    dtype: torch.dtype


class UnetMemory:
    """Owns its tensors. `frames` counts what it holds, oldest first."""

    def __init__(self, config: UnetConfig, layout: MemoryLayout) -> None:
        self.frames = 0
        self._layout = layout
        nothing = torch.empty(0, device=layout.device, dtype=layout.dtype)
        self._tails = [
            nothing.new_zeros(layout.steps, ROWS, width, KERNEL - 1) for width in config.tail_widths
        ]
        self._fresh_tails = [torch.empty_like(tail) for tail in self._tails]
        shape = (layout.steps, config.layers, 2, ROWS, config.heads, 0, config.head_width)
        self._kept = nothing.new_empty(shape)  # [steps, layers, key | value, R, H, room, D]

    @property
    def dtype(self) -> torch.dtype:
        return self._layout.dtype

    @property
    def nbytes(self) -> int:
        """What it takes, room that is not used yet included."""
        return sum(one.nbytes for one in (self._kept, *self._tails, *self._fresh_tails))

    def reserve(self, frames: int) -> None:
        """Make room for a chunk of so many frames."""
        room = self._kept.shape[5]
        wanted = self.frames + frames
        if wanted <= room:
            return
        grown = -(-wanted // _GROWTH_FRAMES) * _GROWTH_FRAMES
        shape = (*self._kept.shape[:5], grown, self._kept.shape[6])
        kept = self._kept.new_empty(shape)
        kept[..., : self.frames, :] = self._kept[..., : self.frames, :]
        self._kept = kept

    def step(self, step: int, mask: Tensor | None) -> "StepHistory":
        """The history for one Euler step; `mask` bool [T, T] is for the new frames alone."""
        if mask is not None:
            earlier = mask.new_ones(len(mask), self.frames)
            mask = torch.cat([earlier, mask], 1)
        tails = [tail[step] for tail in self._tails]
        fresh = [tail[step] for tail in self._fresh_tails]
        return StepHistory(mask, tails, fresh, self._kept[step], self.frames)

    def commit(self, frames: int) -> None:
        """The chunk of so many frames that all steps have seen belongs to the past from now on."""
        self.frames += frames
        self._tails, self._fresh_tails = self._fresh_tails, self._tails

    def keep(self, first: int, recent: int) -> None:
        """Forget all keys but those of the `first` frames and the `recent` ones."""
        if self.frames <= first + recent:
            return
        end = first + recent
        # The two may overlap.
        moved = self._kept[..., self.frames - recent : self.frames, :].clone()
        self._kept[..., first:end, :] = moved
        self.frames = end

    def clone(self, dtype: torch.dtype | None = None) -> "UnetMemory":
        """One that goes on by itself, in another dtype if that is wanted."""
        other = object.__new__(UnetMemory)
        wanted = dtype or self._layout.dtype
        other.frames = self.frames
        other._layout = MemoryLayout(self._layout.steps, self._layout.device, wanted)
        other._tails = [tail.to(wanted, copy=True) for tail in self._tails]
        other._fresh_tails = [torch.empty_like(tail) for tail in other._tails]
        other._kept = self._kept[..., : self.frames, :].to(wanted, copy=True)
        return other


@dataclass(frozen=True, slots=True)
class StepHistory:
    """A `History` that reads a memory and writes beyond what counts in it."""

    mask: Tensor | None
    tails: list[Tensor]
    fresh: list[Tensor]
    kept: Tensor  # [layers, key | value, R, H, room, D]
    frames: int

    def lead(self, conv: int, signal: Tensor) -> Tensor:
        """[R, C, T] → [R, C, 2 + T]."""
        joined = torch.cat([self.tails[conv], signal], -1)
        self.fresh[conv].copy_(joined[..., 1 - KERNEL :])
        return joined

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """[R, H, T, D] → [R, H, frames + T, D]."""
        end = self.frames + keys.shape[2]
        place = self.kept[layer]
        place[0, :, :, self.frames : end] = keys
        place[1, :, :, self.frames : end] = values
        return place[0, :, :, :end], place[1, :, :, :end]
