"""A block of CosyVoice2's flow as one CUDA graph: all Euler steps, over memory of a fixed size.

They are thousands of small kernels, which a host takes longer to start one by one than a GPU to
run. A graph reads where it was recorded: what a stream remembers is copied there first, and nobody
looks at what it has less than there is room for. The numbers are the modules', but for rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from agent.torch_parts.cuda_graph import Recorded, Recorder
from agent.vocoder.encoder_recorded import MOST_BLOCKS
from agent.vocoder.segments import in_one_piece
from agent.vocoder.unet import KERNEL, History, UnetConfig, no_bias
from agent.vocoder.unet_memory import ROWS, ConvolutionTails, StepMemory, UnetMemory

CAPACITIES = (600, 1056)
"""Frames remembered, for each of which there is a graph: six seconds of a turn behind a voice of
six, and behind the longest."""

Integrate: TypeAlias = Callable[[Tensor, Tensor, Sequence[History]], Tensor]
"""Noise f32 [T, mel], what is told [2, T, 3 · mel], and each step's history → mel f32 [T, mel]."""
_Made: TypeAlias = tuple[Tensor, Tensor]
"""The mel f32 [T, mel], and the convolutions' tails [steps, 2, 2, C] behind it."""


@dataclass(frozen=True, slots=True)
class BlockSizes:
    """Of what is recorded."""

    unet: UnetConfig
    steps: int
    frames: int
    """Of a block."""


class RecordedSolve:
    """The solves of one flow on one device; for one thread, and one stream of the device."""

    def __init__(
        self,
        sizes: BlockSizes,
        integrate: Integrate,
        like: Tensor,
        recorder: Recorder,
        capacities: Sequence[int] = CAPACITIES,
    ) -> None:
        """Record a graph for each of `capacities`, where `like` is and in its dtype.

        ConfigError when that does not work.
        """
        self._frames = sizes.frames
        with torch.inference_mode(False), torch.no_grad(), recorder.recording():
            inputs = [*_inputs(sizes, like, sorted(capacities)[::-1])]
            # The largest first: what the others need fits into its memory.
            graphs = [_recorded(one, integrate, sizes.unet, recorder) for one in inputs]
            self._graphs = graphs[::-1]

    def takes(self, memory: UnetMemory, frames: int) -> bool:
        """Whether so many frames behind such a memory are made here."""
        blocks = -(-frames // self._frames)
        remembered = memory.frames + (blocks - 1) * self._frames
        return blocks <= MOST_BLOCKS and remembered <= self._graphs[-1].inputs.capacity

    def solve(self, noise: Tensor, told: Tensor, memory: UnetMemory) -> tuple[Tensor, UnetMemory]:
        """The next frames, as `Integrate` is given them → mel f32 [T, mel], and what is remembered
        then. They begin on the grid of blocks; where they do not end on it, they are the last."""
        mels = []
        for begin in range(0, len(noise), self._frames):
            block = slice(begin, begin + self._frames)
            mel, memory = self._solve_block(noise[block], told[:, block], memory)
            mels.append(mel)
        return torch.cat(mels), memory

    def _solve_block(
        self, noise: Tensor, told: Tensor, memory: UnetMemory
    ) -> tuple[Tensor, UnetMemory]:
        graph = next(one for one in self._graphs if one.inputs.capacity >= memory.frames)
        graph.inputs.fill(noise, told, memory)
        graph.recorded.replay()
        mel, tails = graph.recorded.output
        made = zip(memory.steps, graph.inputs.fresh(len(noise)), tails.clone(), strict=True)
        steps = (StepMemory(step.voice, (*step.turn, new), ends) for step, new, ends in made)
        return mel[: len(noise)].clone(), UnetMemory(tuple(steps))


@dataclass(frozen=True, slots=True, eq=False)
class _Inputs:
    """What a graph reads. Nothing of it is ever infinite behind what counts: none times that is no
    number."""

    noise: Tensor  # f32 [block, mel]
    told: Tensor  # [2, block, 3 · mel]
    tails: Tensor  # [steps, 2, 2, C]
    past: Tensor  # [steps, layers, 2, capacity + block, width], the block's own frames last
    mask: Tensor  # [block, capacity + block]: 0, or -∞ where nobody looks

    @property
    def capacity(self) -> int:
        """Frames that may be remembered."""
        return self.past.shape[3] - len(self.noise)

    def fill(self, noise: Tensor, told: Tensor, memory: UnetMemory) -> None:
        """Bring it here; of `noise` and `told` there may be fewer frames than a block has."""
        frames, known, capacity = len(noise), memory.frames, self.capacity
        self.noise[:frames], self.told[:, :frames] = noise, told
        self.noise[frames:], self.told[:, frames:] = 0, 0
        self.tails.copy_(torch.stack([step.tails for step in memory.steps]))
        at = 0
        for segments in zip(*((*step.voice, *step.turn) for step in memory.steps), strict=True):
            end = at + segments[0].shape[2]
            self.past[:, :, :, at:end] = in_one_piece(segments)
            at = end
        self.past[:, :, :, known:capacity] = 0
        self.mask.fill_(float("-inf"))
        self.mask[:, :known], self.mask[:, capacity : capacity + frames] = 0, 0

    def fresh(self, frames: int) -> Sequence[Tensor]:
        """What the block's first frames left, of each step [layers, 2, frames, width]."""
        return self.past[:, :, :, self.capacity :][:, :, :, :frames].clone().unbind()


@dataclass(frozen=True, slots=True, eq=False)
class _Graph:
    inputs: _Inputs
    recorded: Recorded[_Made]


class _StepOfBlock(ConvolutionTails):
    """A `History` of one step whose memory stays where it is."""

    def __init__(self, inputs: _Inputs, step: int, config: UnetConfig) -> None:
        super().__init__(inputs.tails[step], config)
        self.mask = inputs.mask
        self._past = inputs.past[step]

    def extend(self, layer: int, tokens: Tensor) -> Tensor:
        """[R, T, C] → [R, capacity + T, C], which they are written into."""
        everything = self._past[layer]
        everything[:, -tokens.shape[1] :] = tokens
        return everything


def _inputs(sizes: BlockSizes, like: Tensor, capacities: Sequence[int]) -> Iterator[_Inputs]:
    """For each capacity, the largest first. They are used one at a time, and lie in one place."""
    config, block = sizes.unet, sizes.frames
    noise = torch.zeros(block, config.mel_bins, device=like.device)
    told = like.new_zeros(ROWS, block, config.input_width - config.mel_bins)
    tails = like.new_zeros(sizes.steps, ROWS, KERNEL - 1, sum(config.tail_widths))
    shape = (sizes.steps, config.layers, ROWS, capacities[0] + block, config.width)
    everything = like.new_zeros(shape).flatten()
    for capacity in capacities:
        keys = capacity + block
        past = everything[: everything.numel() // shape[3] * keys].view(*shape[:3], keys, shape[4])
        yield _Inputs(noise, told, tails, past, no_bias(block, keys, like))


def _recorded(
    inputs: _Inputs, integrate: Integrate, config: UnetConfig, recorder: Recorder
) -> _Graph:
    solve = partial(_solved, inputs, integrate, config)
    solve()  # once as usual, so that libraries are there
    return _Graph(inputs, recorder.record(solve))


def _solved(inputs: _Inputs, integrate: Integrate, config: UnetConfig) -> _Made:
    steps = [_StepOfBlock(inputs, step, config) for step in range(len(inputs.tails))]
    mel = integrate(inputs.noise, inputs.told, steps)
    return mel, torch.stack([step.ends for step in steps])
