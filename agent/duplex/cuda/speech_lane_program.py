"""A second of speech of many conversations as work for a device: what goes in, what is started,
what comes back. Where it runs, and whether it is recorded, is the lane's matter."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from agent.duplex.cuda.speech_lane_conditions import ConditionPass, condition_of
from agent.duplex.cuda.speech_lane_rows import SpeechRows, SpeechWork
from agent.duplex.cuda.speech_lane_steps import SpeechSteps
from agent.duplex.cuda.static_decoder import StaticDecoder
from agent.duplex.kv_cache import KvCache
from agent.duplex.lanes import Failures
from agent.duplex.speech_lm import SpeechLm
from agent.duplex.work import Speak, SpeakOn, Work
from agent.errors import ContextOverflow
from agent.torch_parts.cuda_graph import GraphRecorder
from agent.torch_parts.kernels.launching import compile_together

SIZES = (1, 2, 4, 8, 16, 32)
"""Conversations that speak together: as many as the next of these, some of them nobody."""
_POSITIONS = (16, 64, 256)
"""Positions of conditions that are read together, likewise."""


class SpeechProgram:
    """One batch at a time: `begin` it, and when the device is there `take` what it made."""

    def __init__(self, lm: SpeechLm, cache: KvCache, sizes: Sequence[int] = SIZES) -> None:
        self._lm, self._cache = lm, cache
        self._sizes = sorted(sizes)
        decoder = StaticDecoder(lm.model, cache)
        self._steps = SpeechSteps(lm, cache, decoder, self._sizes[-1])
        self._rows, self._state = self._steps.rows, self._steps.state
        self._passes = {
            count: ConditionPass(lm, decoder, self._state, count) for count in _POSITIONS
        }
        self._read: dict[int, Callable[[], None]] = {
            count: each.run for count, each in self._passes.items()
        }
        self._speak: dict[int, Callable[[], None]] = {
            size: partial(self._steps.run, size) for size in self._sizes
        }
        self._works: list[SpeechWork] = []
        self._lengths: list[int] = []
        self._after: Tensor | None = None
        self._rows.fill([], [], self._sizes[-1])
        self._rows.sent.send()

    def record(self, recorder: GraphRecorder) -> None:
        """From now on what is started is started as graphs."""
        with recorder.recording():
            compile_together([*self._read.values(), *self._speak.values()])
            for starts in (self._read, self._speak):
                for size, start in starts.items():
                    start()
                    starts[size] = recorder.record(start).replay

    def count(self, works: Sequence[Work]) -> int:
        """How many of these, from the first on, fit into a batch: 0 when the first never does."""
        positions = 0
        for number, work in enumerate(works[: self._sizes[-1]]):
            if not isinstance(work, Speak | SpeakOn) or not SpeechRows.takes(work.sampling):
                return number
            condition = condition_of(number, work, self._lm)
            length = 0 if condition is None else len(condition.ids)
            positions += length
            if positions > _POSITIONS[-1] or work.stream.length + length > self._cache.positions:
                return number
        return min(len(works), self._sizes[-1])

    def begin(self, works: Sequence[SpeechWork]) -> None:
        """Start all of it on the current stream; the last batch is taken. See `count`."""
        found = [condition_of(row, work, self._lm) for row, work in enumerate(works)]
        self._works = list(works)
        self._lengths = [0 if one is None else len(one.ids) for one in found]
        size = next(size for size in self._sizes if size >= len(works))
        self._rows.fill(works, self._lengths, size)
        self._rows.sent.send()
        conditions = [one for one in found if one is not None]
        if conditions:
            fits = next(count for count in _POSITIONS if count >= sum(self._lengths))
            self._passes[fits].fill(conditions)
            self._read[fits]()
        for row, work in enumerate(works):
            if isinstance(work, SpeakOn) and work.call.state is not None:
                self._state[row].copy_(work.call.state)
        self._speak[size]()
        if any(isinstance(work, SpeakOn) for work in works):
            self._after = self._state[: len(works)].clone()
        self._rows.tokens.fetch()

    def take(self) -> Failures:
        """Give the works of the batch their tokens, once the device is there."""
        failures: dict[int, Exception] = {}
        self._rows.take(self._works, self._lengths)
        for row, work in enumerate(self._works):
            if work.stream.length > self._cache.positions:
                work.stream.length = self._cache.positions
                failures[row] = ContextOverflow(
                    f"{self._cache.positions} positions do not hold what is to be said"
                )
            if isinstance(work, SpeakOn) and self._after is not None:
                work.call.state = self._after[row]
        self._works, self._after = [], None
        return failures
