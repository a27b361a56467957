"""The estimator's layers as CUDA graphs, for chunks of the lengths that come again and again.

    graphs = record_graphs(dit, [50], recorder)
    graphs[50].begin(conditions)  # once a chunk
    velocity, memory = graphs[50].step(noisy, table.steps[0], memory, kept)

Eager, most of a step is what the host needs to start some thousand small kernels. A graph holds all
that a layer does from what it has seen to what the next one asks; attention itself stays eager
between them, since what it sees is of every length. So nothing recorded depends on a voice, on what
was said before, or on the step. Streams share the graphs and take turns: what goes in is copied in,
and what a stream remembers is copied out.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from agent.vocoder.config import MODULATIONS
from agent.vocoder.dit import NOTHING, ROWS, Dit, DitMemory
from agent.vocoder.segments import frames_of

T = TypeVar("T")
OutputT_co = TypeVar("OutputT_co", covariant=True)

_MOST_FRAMES = 1000
"""What the room of keys and values holds, 66 MB at full size: a voice of 15 s, two seconds of the
turn and the longest chunk. A longer voice is spoken with without graphs."""


class Recorded(Protocol[OutputT_co]):
    """A call that can be started again; its output is then written anew."""

    @property
    def output(self) -> OutputT_co: ...

    def replay(self) -> None: ...


class Recorder(Protocol):
    """What `agent.torch_parts.cuda_graph.GraphRecorder` is."""

    def recording(self) -> AbstractContextManager[None]: ...

    def record(self, call: Callable[[], T]) -> Recorded[T]: ...


@dataclass(frozen=True, slots=True, eq=False)
class _Room:
    """What every chunk needs whatever its length, so that all share it."""

    vectors: Tensor  # f32 [9 · layers + 2, W], one step of the table
    first_tails: Tensor  # f32 [layers, 2, 2, W]
    second_tails: Tensor  # [layers, 2, 2, W]
    held: Tensor  # [layers, 2, n, 2 · H · D], the new frames in front

    @classmethod
    def of(cls, dit: Dit) -> "_Room":
        config, weight = dit.config, dit.in_proj.weight
        tails = dit.start().first_tails
        inner = config.heads * config.head_width
        return cls(
            weight.new_zeros(MODULATIONS * config.layers + 2, config.width, dtype=torch.float32),
            tails.float(),
            tails.clone(),
            weight.new_zeros(config.layers, ROWS, _MOST_FRAMES, 2 * inner),
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """What stands between two attentions: all of it is read by what follows."""

    states: Tensor  # f32 [2, T, W]
    query: Tensor  # [2, H, T, D]
    ends: tuple[Tensor, ...]  # [2, 2, W] of both convolutions of the layer before, if there is one


Piece: TypeAlias = Recorded[_Asked]


def record_graphs(dit: Dit, counts: Iterable[int], recorder: Recorder) -> dict[int, "DitGraphs"]:
    """Those of each number of frames. ConfigError when a graph cannot be recorded."""
    # What is made in inference mode could not be written to outside it.
    with torch.inference_mode(False), torch.no_grad():
        room = _Room.of(dit)
        return {count: DitGraphs(dit, count, room, recorder) for count in sorted(set(counts))}


class DitGraphs:
    """`Dit.forward` for one number of frames, its weights where they were when it was recorded."""

    def __init__(self, dit: Dit, count: int, room: _Room, recorder: Recorder) -> None:
        config, weight = dit.config, dit.in_proj.weight
        self._dit = dit
        self._count = count
        self._room = room
        self._heads = (config.heads, config.head_width)
        self._noisy = weight.new_zeros(1, count, config.mel_bins, dtype=torch.float32)
        self._conditions = weight.new_zeros(ROWS, count, config.width, dtype=torch.float32)
        self._seen = weight.new_zeros(ROWS, count, *self._heads)
        vectors = room.vectors.unbind()
        self._vectors = [
            vectors[at : at + MODULATIONS] for at in range(0, len(vectors) - 2, MODULATIONS)
        ]
        self._last_vectors = vectors[-2:]
        self._pieces, self._last = self._record(recorder)
        ends = [*(piece.output.ends for piece in self._pieces[1:]), self._last.output[1]]
        self._first_ends, self._second_ends = ([pair[at] for pair in ends] for at in range(2))
        self._views: tuple[int, list[tuple[Tensor, ...]]] = (0, [])

    def fits(self, memory: DitMemory) -> bool:
        """Whether a stream that remembers this can go on here."""
        past = frames_of((*memory.turn, *memory.prompt))
        return bool(memory.prompt) and past + self._count <= _MOST_FRAMES

    def begin(self, conditions: Tensor) -> None:
        """What the steps of a chunk share: f32 [2, T, W] of `Dit.condition`."""
        self._conditions.copy_(conditions)

    def step(
        self, noisy: Tensor, vectors: Tensor, memory: DitMemory, kept: Sequence[slice]
    ) -> tuple[Tensor, DitMemory]:
        """As `Dit.forward`; the velocities are to be read before the next step.

        `vectors` is one of `TimeTable.steps`.
        """
        self._noisy.copy_(noisy)
        views = self._take(vectors, memory)
        for piece, (keys, values) in zip(self._pieces, views, strict=True):
            piece.replay()
            seen = F.scaled_dot_product_attention(piece.output.query, keys, values)
            self._seen.copy_(seen.transpose(1, 2))
        self._last.replay()
        after = memory.with_tails(self._first_ends, self._second_ends)
        if kept != NOTHING:
            fresh = self._room.held[:, :, : self._count]
            after = after.extended(fresh.clone(memory_format=torch.contiguous_format), kept)
        return self._last.output[0], after

    def _take(self, vectors: Tensor, memory: DitMemory) -> list[tuple[Tensor, ...]]:
        """Copy a step's inputs in; → by layer the keys and values [2, H, n, D] to be seen."""
        room, end = self._room, self._count
        room.vectors.copy_(vectors)
        room.first_tails.copy_(memory.first_tails)
        room.second_tails.copy_(memory.second_tails)
        for segment in (*memory.turn, *memory.prompt):
            start, end = end, end + segment.shape[2]
            room.held[:, :, start:end].copy_(segment)
        if self._views[0] != end:
            split = room.held.view(*room.held.shape[:3], 2, *self._heads)[:, :, :end]
            layers = split.permute(0, 3, 1, 4, 2, 5).unbind()
            self._views = (end, [layer.unbind() for layer in layers])
        return self._views[1]

    # ---- what is recorded -----------------------------------------------------------------------

    def _record(
        self, recorder: Recorder
    ) -> tuple[list[Piece], Recorded[tuple[Tensor, tuple[Tensor, ...]]]]:
        layers = self._dit.config.layers
        with recorder.recording():
            # Once as usual, so that libraries have loaded and chosen what they need.
            asked = self._enter()
            for index in range(1, layers):
                asked = self._pass(index, asked.states)
            self._leave(asked.states)
            pieces: list[Piece] = [recorder.record(self._enter)]
            for index in range(1, layers):
                states = pieces[-1].output.states
                pieces.append(recorder.record(partial(self._pass, index, states)))
            return pieces, recorder.record(partial(self._leave, pieces[-1].output.states))

    def _enter(self) -> _Asked:
        return self._ask(0, self._dit.entered(self._noisy, self._conditions), ())

    def _pass(self, index: int, states: Tensor) -> _Asked:
        """From what the layer before `index` has seen to what this one asks."""
        states, ends = self._answer(index - 1, states)
        return self._ask(index, states, ends)

    def _leave(self, states: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The velocities f32 [2, T, M], and the ends of the last layer's convolutions."""
        states, ends = self._answer(len(self._vectors) - 1, states)
        return self._dit.final_layer(states, self._last_vectors), ends

    def _ask(self, index: int, states: Tensor, ends: tuple[Tensor, ...]) -> _Asked:
        query, fresh = self._dit.asked(states, index, self._vectors[index])
        self._room.held[index, :, : self._count].copy_(fresh)
        return _Asked(states, query, ends)

    def _answer(self, index: int, states: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        tails = (self._room.first_tails[index], self._room.second_tails[index])
        seen, vectors = self._seen.flatten(2), self._vectors[index]
        states, *ends = self._dit.answered(states, seen, index, vectors, tails)
        return states, tuple(ends)
