"""Lanes that are done later than they begin, in any order: what a GPU's are, on the CPU."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from agent.duplex.lanes import LANES, EagerLane, Failures, Runner
from agent.duplex.slots import Slots
from agent.duplex.work import Work
from agent.errors import AgentError


@dataclass
class Watch:
    """What all lanes of one engine have under way, and had."""

    chance: random.Random
    most: int = 3
    """Works that a lane takes at once."""
    patience: int = 6
    """A batch is asked less often than this whether it is done, until it is."""
    busy: Counter[int] = field(default_factory=Counter)
    """Works under way in each slot."""
    sizes: Counter[int] = field(default_factory=Counter)
    """How often batches of each size were done."""
    together: int = 0
    """The most lanes that were at work at the same time."""
    at_work: int = 0
    works: list[Work] = field(default_factory=list)
    fails: Any = None
    """Called with each work before it is done; may raise what it fails with."""


@dataclass
class LateBatch:
    """Done when it was asked often enough; its works are run only then, or at once, by chance."""

    eager: EagerLane
    works: Sequence[Work]
    watch: Watch
    asked: int = 0
    failures: dict[int, Exception] | None = None
    is_over: bool = False

    @property
    def done(self) -> bool:
        self.asked -= 1
        return self.asked <= 0

    def run(self) -> None:
        assert self.failures is None
        self.failures = {}
        for place, work in enumerate(self.works):
            try:
                if self.watch.fails is not None:
                    self.watch.fails(work)
            except (AgentError, RuntimeError) as error:
                self.failures[place] = error
                continue
            for failure in self.eager.begin([work]).finish().values():
                self.failures[place] = failure

    def finish(self) -> Failures:
        assert not self.is_over, "a batch is finished once"
        self.is_over = True
        if self.failures is None:
            self.run()
        self.watch.at_work -= 1
        self.watch.sizes[len(self.works)] += 1
        self.watch.works += self.works
        for work in self.works:
            self.watch.busy[slot_of(work)] -= 1
        assert self.failures is not None
        return self.failures


@dataclass
class LateLane:
    """One batch at a time, of works of one stage."""

    eager: EagerLane
    watch: Watch
    under_way: LateBatch | None = None

    def count(self, works: Sequence[Work]) -> int:
        alike = 0
        while alike < len(works) and works[alike].stage == works[0].stage:
            alike += 1
        return min(alike, self.watch.most)

    def begin(self, works: Sequence[Work]) -> LateBatch:
        assert self.under_way is None or self.under_way.is_over, "one batch at a time"
        assert 1 <= len(works) <= self.watch.most
        for work in works:
            assert slot_of(work) < 0 or not self.watch.busy[slot_of(work)], "one work at a time"
            self.watch.busy[slot_of(work)] += 1
        self.watch.at_work += 1
        self.watch.together = max(self.watch.together, self.watch.at_work)
        chance = self.watch.chance
        batch = LateBatch(self.eager, works, self.watch, 2 + chance.randrange(self.watch.patience))
        if chance.random() < 0.5:
            batch.run()
        self.under_way = batch
        return batch


class WatchedSlots:
    """Slots that nobody gives back while something in them is under way."""

    def __init__(self, slots: Slots, watch: Watch) -> None:
        self._slots = slots
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._slots, name)

    def give_back(self, slot: int) -> None:
        assert not self._watch.busy[slot], f"slot {slot} is at work"
        self._slots.give_back(slot)


def late(runner: Runner, watch: Watch) -> Runner:
    """The same, with such lanes."""
    slots: Any = WatchedSlots(runner.slots, watch)
    lanes = {name: LateLane(EagerLane(runner.model, runner.slots), watch) for name in LANES}
    return replace(runner, slots=slots, lanes=lanes)


def slot_of(work: Work) -> int:
    """Where it reads and writes; −1 for nowhere."""
    stream: Any = getattr(work, "stream", None)
    return getattr(stream, "slot", -1)
