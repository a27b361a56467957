"""Where work is done: lanes side by side, each for one kind of it, for many conversations at once.

    batch = lane.begin(works[: lane.count(works)])
    ...                        # other lanes work meanwhile
    failures = batch.finish()  # waits; the answers are in the works

A lane has one batch under way at a time. What its works read and write in the caches belongs to
their conversations alone until the batch is finished: nobody may close one, or move its slot,
before. `EagerLane` does a batch at once, one work after the other; on a GPU the lanes have graphs
and a stream each.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, TypeVar, get_args

from agent.clock import SYSTEM_CLOCK, Clock
from agent.duplex.model import DuplexModel
from agent.duplex.slots import Slots
from agent.duplex.work import LaneName, Together, Work
from agent.errors import AgentError
from agent.torch_parts.device import breaks_device

T = TypeVar("T")
StageTimes: TypeAlias = tuple[tuple[str, float], ...]
"""Milliseconds by stage name."""
Failures: TypeAlias = Mapping[int, Exception]
"""What went wrong with the work of that place in the batch; the others have their answers."""
LANES: tuple[LaneName, ...] = get_args(LaneName)


class Batch(Protocol):
    """Works that were begun together."""

    @property
    def done(self) -> bool:
        """Whether `finish` would not wait."""

    def finish(self) -> Failures:
        """Wait until all is done and every answer in its work; once. Raises only what breaks the
        device."""


class Lane(Protocol):
    """Does one kind of work."""

    def count(self, works: Sequence[Work]) -> int:
        """How many of these, from the first on, may be begun together: 1 at least."""

    def begin(self, works: Sequence[Work]) -> Batch:
        """Begin so many at once, when the last batch is finished. Does not wait for the device
        where that can be avoided; raises only what breaks the device."""


@dataclass(frozen=True, slots=True)
class Done:
    """A batch that was done when it was begun."""

    failures: Failures = field(default_factory=dict)
    done: bool = True

    def finish(self) -> Failures:
        """See `Batch`."""
        return self.failures


@dataclass(frozen=True, slots=True)
class EagerLane:
    """Any work, here and now, as the modules say it: what every other lane agrees with."""

    model: DuplexModel
    slots: Slots

    def count(self, works: Sequence[Work]) -> int:
        """See `Lane`: one, so that others' work goes between."""
        return 1

    def begin(self, works: Sequence[Work]) -> Done:
        """See `Lane`."""
        failures: dict[int, Exception] = {}
        for place, work in enumerate(works):
            try:
                work.run(self.model, self.slots)
            except (AgentError, RuntimeError) as error:
                # Whatever it is, torch's included, it is this one's alone, unless nothing works.
                if breaks_device(error):
                    raise
                failures[place] = error
        return Done(failures)


@dataclass(frozen=True, slots=True)
class Runner:
    """What works for all conversations: weights, caches, lanes and a clock.

    A lane that is not named is eager.
    """

    model: DuplexModel
    slots: Slots
    clock: Clock = SYSTEM_CLOCK
    lanes: Mapping[LaneName, Lane] = field(default_factory=dict)

    def lane(self, name: LaneName) -> Lane:
        """The lane of that name."""
        return self.lanes.get(name) or EagerLane(self.model, self.slots)

    def do(self, work: Work) -> None:
        """One piece of work, to its end, while nothing else is under way."""
        parts = work.parts if isinstance(work, Together) else [work]
        for batch in [self.lane(part.lane).begin([part]) for part in parts]:
            for failure in batch.finish().values():
                raise failure

    def run(self, steps: Generator[Work, None, T]) -> tuple[T, StageTimes]:
        """Do one conversation's steps to their end → the result, and milliseconds by stage.

        On a GPU a stage's time ends where its answer is read; what is not read counts later.
        """
        spent_ms: dict[str, float] = {}
        while True:
            try:
                work = next(steps)
            except StopIteration as stop:
                result: T = stop.value
                return result, tuple(spent_ms.items())
            begun_s = self.clock.now_s()
            self.do(work)
            took_ms = (self.clock.now_s() - begun_s) * 1000
            spent_ms[work.stage] = spent_ms.get(work.stage, 0.0) + took_ms
