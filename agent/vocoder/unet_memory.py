"""What one stream's flow remembers, for each Euler step: every convolution's tail, and what every
attention's keys and values are made of.

That is 256 numbers a frame and layer, where keys and values are 1024. Making them again of all
that is remembered is one product more, a thousandth of a second a chunk on a GPU; holding them
would leave a stream two seconds of context where it now has six.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from agent.vocoder.segments import Segment, frames_of, nbytes_of, owned, stretches_of
from agent.vocoder.unet import KERNEL, UnetConfig

ROWS = 2
"""With what conditions the flow, and without."""


@dataclass(frozen=True, slots=True)
class StepMemory:
    """What one Euler step remembers, oldest first; never changed."""

    voice: tuple[Segment, ...]  # shared by all turns of a voice
    turn: tuple[Segment, ...]
    tails: Tensor  # [2, 2, C of all convolutions]

    @property
    def frames(self) -> int:
        return frames_of((*self.voice, *self.turn))

    def keep(self, first: int, recent: int) -> "StepMemory":
        """Only the `first` frames, which are the voice's at least, and the `recent` ones."""
        start, frames = frames_of(self.voice), self.frames
        kept = [slice(0, first), slice(max(first, frames - recent), frames)]
        turn = tuple(owned(part) for part in stretches_of(self.turn, start, kept))
        return replace(self, turn=turn)

    def to(self, dtype: torch.dtype) -> "StepMemory":
        """The same in another precision."""
        return StepMemory(
            tuple(one.to(dtype) for one in self.voice),
            tuple(one.to(dtype) for one in self.turn),
            self.tails.to(dtype),
        )


@dataclass(frozen=True, slots=True)
class UnetMemory:
    """All steps; to clone a stream is to keep its memory."""

    steps: tuple[StepMemory, ...]

    @classmethod
    def empty(cls, config: UnetConfig, steps: int, like: Tensor) -> "UnetMemory":
        """Before the first frame, where `like` is and in its dtype."""
        tails = like.new_zeros(ROWS, KERNEL - 1, sum(config.tail_widths))
        return cls((StepMemory((), (), tails),) * steps)

    @property
    def frames(self) -> int:
        return self.steps[0].frames

    @property
    def dtype(self) -> torch.dtype:
        return self.steps[0].tails.dtype

    @property
    def nbytes(self) -> int:
        """What it weighs beside the voice that it shares with others."""
        return nbytes_of(one for step in self.steps for one in (*step.turn, step.tails))

    @property
    def nbytes_of_voice(self) -> int:
        return nbytes_of(one for step in self.steps for one in step.voice)

    def as_voice(self) -> "UnetMemory":
        """The same, to be shared by turns."""
        return UnetMemory(
            tuple(StepMemory((*one.voice, *one.turn), (), one.tails) for one in self.steps)
        )

    def keep(self, first: int, recent: int) -> "UnetMemory":
        """Without all but the `first` frames and the `recent` ones."""
        if self.frames <= first + recent:
            return self
        return UnetMemory(tuple(step.keep(first, recent) for step in self.steps))

    def to(self, dtype: torch.dtype) -> "UnetMemory":
        """The same in another precision."""
        return UnetMemory(tuple(step.to(dtype) for step in self.steps))


class ConvolutionTails:
    """What one step's convolutions begin with, and what the new frames leave to the next ones."""

    def __init__(self, tails: Tensor, config: UnetConfig) -> None:
        """`tails` [2, 2, C of all convolutions]."""
        self._tails: Sequence[Tensor] = tails.split_with_sizes(config.tail_widths, 2)
        self._ends: list[Tensor] = []

    def lead(self, conv: int, signal: Tensor) -> Tensor:
        """[R, T, C] → [R, 2 + T, C]; to be asked by the convolutions in their order."""
        joined = torch.cat([self._tails[conv], signal], 1)
        self._ends.append(joined[:, 1 - KERNEL :])
        return joined

    @property
    def ends(self) -> Tensor:
        """The tails behind the new frames: [2, 2, C], in memory of its own."""
        return torch.cat(self._ends, 2)


class StepHistory(ConvolutionTails):
    """A `History` that reads one step's memory and collects what the new frames leave."""

    def __init__(self, memory: StepMemory, config: UnetConfig, mask: Tensor | None) -> None:
        """`mask` [T, S] says whom of all the new frames may look at."""
        super().__init__(memory.tails, config)
        self._memory = memory
        self.mask = mask
        self._past = [one.unbind() for one in (*memory.voice, *memory.turn)]
        self._fresh: list[Tensor] = []

    def extend(self, layer: int, tokens: Tensor) -> Tensor:
        """[R, T, C] → [R, frames + T, C]; to be asked by the layers in their order."""
        self._fresh.append(tokens)
        past = [one[layer] for one in self._past]
        return torch.cat([*past, tokens], 1) if past else tokens

    def after(self) -> StepMemory:
        """The memory with the new frames, in one copy, so that nothing else of them is held."""
        fresh = torch.stack(self._fresh)
        return StepMemory(self._memory.voice, (*self._memory.turn, fresh), self.ends)
