"""Reads of many conversations as work for a device: what goes in, what is started, what comes back.

Where it runs, and whether it is recorded, is the lane's matter. A batch is passes of rows through
the layers, each of which keeps the states where its reads end; then the head and a draw for those
that are to be followed by a token. All of that is started without waiting, and read back at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias, TypeGuard

import torch
from torch import Tensor, nn

from agent.duplex.cuda.device_lane import Returned
from agent.duplex.cuda.kernels import embed, keep
from agent.duplex.cuda.llm_lane_rows import LlmSizes, PassRows, Piece, passes_of
from agent.duplex.cuda.static_decoder import StaticDecoder
from agent.duplex.cuda.static_decoder_linear import ByMatrix
from agent.duplex.cuda.text_sampling import RowSampling
from agent.duplex.kv_cache import KvCache
from agent.duplex.lanes import Failures
from agent.duplex.llm import Llm
from agent.duplex.sampling import TextSampler
from agent.duplex.work import Choice, Choose, Read, Work
from agent.errors import ContextOverflow
from agent.torch_parts.cuda_graph import GraphRecorder
from agent.torch_parts.kernels.launching import compile_together

StaticWork: TypeAlias = Read | Choose


@dataclass(slots=True)
class _Batch:
    works: Sequence[StaticWork] = ()
    """All of them: what they brought must not be freed while it is read."""
    drawn: list[StaticWork] = field(default_factory=list)
    """Those whose token the device draws, in the order of its rows."""
    chosen: list[StaticWork] = field(default_factory=list)
    """Those whose token another sampler draws, in the order of the rows behind."""
    failures: dict[int, Exception] = field(default_factory=dict)


class LlmProgram:
    """One batch at a time: `begin` it, and when the device is there `take` what it made."""

    def __init__(self, llm: Llm, cache: KvCache, banned: Tensor, sizes: LlmSizes) -> None:
        """`banned` i64 [n] is what is never drawn as text."""
        device, width = cache.tensor.device, llm.config.width
        self._llm, self._cache, self._sizes = llm, cache, sizes
        self._decoder = StaticDecoder(llm.model, cache)
        self._rows = PassRows(sizes, self._decoder.heads, cache)
        self._sampling = RowSampling(sizes.most_works, banned)
        dtype = llm.model.embed_tokens.weight.dtype
        self._brought = torch.zeros(sizes.most_rows, width, dtype=dtype, device=device)
        self._kept = torch.zeros(sizes.most_works, width, dtype=dtype, device=device)
        self._tokens = Returned(torch.zeros(sizes.most_works, dtype=torch.long, device=device))
        self._head = _head(llm.lm_head)
        self._passes: dict[int, Callable[[], None]] = {
            count: partial(self._pass, count) for count in sizes.rows
        }
        self._draws: dict[int, Callable[[], None]] = {
            count: partial(self._draw, count) for count in sizes.choices
        }
        self._batch = _Batch()

    def record(self, recorder: GraphRecorder) -> None:
        """From now on what is started is started as graphs. To be called before any batch."""
        self._rows.fill(0, [], self._sizes.most_rows)
        with recorder.recording():
            self._rows.send(0)
            compile_together([*reversed(self._passes.values()), *self._draws.values()])
            for starts in (self._passes, self._draws):
                for size in sorted(starts, reverse=True):
                    start = starts[size]
                    start()
                    starts[size] = recorder.record(start).replay

    # ---- what is recorded -----------------------------------------------------------------------

    @torch.no_grad()
    def _pass(self, count: int) -> None:
        table = self._llm.model.embed_tokens.weight
        tokens = embed(self._rows.ids(count), table, self._brought)
        states = self._decoder.forward(tokens, self._rows.rows(count))
        keep(states, self._rows.kept, self._kept)

    @torch.no_grad()
    def _draw(self, count: int) -> None:
        logits = self._head(self._kept[:count])
        self._tokens.device[:count] = self._sampling.choose(logits)

    # ---- a batch --------------------------------------------------------------------------------

    def count(self, works: Sequence[Work]) -> int:
        """How many of these, from the first on, fit into a batch: 0 when the first never does."""
        rows = 0
        for number, work in enumerate(works[: self._sizes.most_works]):
            if not takes(work):
                return number
            rows += work.count if isinstance(work, Read) else 0
            if rows > self._sizes.most_rows:
                return max(1, number)
        return min(len(works), self._sizes.most_works)

    @torch.no_grad()
    def begin(self, works: Sequence[StaticWork]) -> None:
        """Start all of it on the current stream; the last batch is taken. See `count`."""
        batch = self._batch = _Batch(list(works))
        fitting = [work for place, work in enumerate(works) if self._fits(place, work)]
        batch.drawn = [work for work in fitting if _is_drawn(work.choice)]
        batch.chosen = [
            work for work in fitting if work.choice is not None and not _is_drawn(work.choice)
        ]
        silent = [work for work in fitting if work.choice is None]
        ordered = [*batch.drawn, *batch.chosen, *silent]
        if not ordered:
            return
        self._read([(place, one) for place, one in enumerate(ordered) if isinstance(one, Read)])
        for place, work in enumerate(ordered):
            if isinstance(work, Choose):
                self._kept[place].copy_(work.state)
        states = self._kept[: len(ordered)].clone()
        for work, state in zip(ordered, states, strict=True):
            if isinstance(work, Read):
                work.state = state
        self._begin_draws(batch.drawn)

    def _fits(self, place: int, work: StaticWork) -> bool:
        if isinstance(work, Choose):
            return True
        taken, count = work.stream.length, work.count
        if taken + count > self._cache.positions:
            self._batch.failures[place] = ContextOverflow(
                f"{taken} positions are taken and {count} more do not fit into "
                f"{self._cache.positions}"
            )
        return place not in self._batch.failures

    def _read(self, reads: Sequence[tuple[int, Read]]) -> None:
        if not reads:
            return
        for number, pieces in enumerate(passes_of(reads, self._sizes.most_rows)):
            count = sum(piece.count for piece in pieces)
            size = next(size for size in self._sizes.rows if size >= count)
            self._rows.fill(number, pieces, size)
            self._bring(pieces)
            self._rows.send(number)
            self._passes[size]()
        for _, read in reads:
            read.stream.length += read.count

    def _bring(self, pieces: Sequence[Piece]) -> None:
        """Copy the vectors among the rows of `pieces` to where the pass looks for them."""
        row = 0
        for piece in pieces:
            known = len(piece.read.ids)
            if piece.read.vectors is not None and piece.stop > known:
                begin = max(piece.begin, known)
                vectors = piece.read.vectors[begin - known : piece.stop - known]
                place = row + begin - piece.begin
                self._brought[place : place + len(vectors)].copy_(vectors)
            row += piece.count

    def _begin_draws(self, works: Sequence[StaticWork]) -> None:
        if not works:
            return
        for row, work in enumerate(works):
            choice = work.choice
            if choice is not None and isinstance(choice.sampler, TextSampler):
                self._sampling.fill(row, choice.sampler, choice.drawing)
        self._sampling.send()
        self._draws[next(size for size in self._sizes.choices if size >= len(works))]()
        self._tokens.fetch()

    @torch.no_grad()
    def take(self) -> Failures:
        """Give the works of the batch their tokens, once the device is there.

        What another sampler than DECODE's chooses is chosen here, and waited for.
        """
        batch, self._batch = self._batch, _Batch()
        for work, token in zip(batch.drawn, self._tokens.host.tolist(), strict=False):
            work.token = token
        if batch.chosen:
            begin = len(batch.drawn)
            logits = self._head(self._kept[begin : begin + len(batch.chosen)])
            for row, work in zip(logits, batch.chosen, strict=True):
                if work.choice is not None:
                    (work.token,) = work.choice.sampler.choose(row[None], [work.choice.drawing])
        return batch.failures


def takes(work: Work) -> TypeGuard[StaticWork]:
    """Whether it is work for a program: reads of something, and choices."""
    return work.count > 0 if isinstance(work, Read) else isinstance(work, Choose)


def _is_drawn(choice: Choice | None) -> bool:
    return choice is not None and RowSampling.takes(choice.sampler)


def _head(module: nn.Module) -> Callable[[Tensor], Tensor]:
    if type(module) is nn.Linear:
        return ByMatrix(module.weight.detach()).of
    return module
