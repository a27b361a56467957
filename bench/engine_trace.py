"""What each unit of `bench.engine unit` was made of: every batch of every lane, with its time.

With `--trace FILE` a line of JSON for each unit. A unit that took longer than others is looked at
there: which batch was late, which came twice, and when nothing was under way at all.
"""

import gc
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent.clock import SYSTEM_CLOCK, Clock
from agent.duplex.lanes import Batch, Failures, Lane
from agent.duplex.work import Work


@dataclass(slots=True)
class _Entry:
    lane: str
    stage: str
    count: int
    began_s: float
    ended_s: float = float("nan")


@dataclass(slots=True)
class Trace:
    """Notes of what goes on, until somebody asks for them."""

    clock: Clock = SYSTEM_CLOCK
    _entries: list[_Entry] = field(default_factory=list)
    _collects_since_s: float = 0.0

    def __post_init__(self) -> None:
        gc.callbacks.append(self._collector)

    def lane(self, name: str, lane: Lane) -> Lane:
        """The same lane, noted."""
        return _TracedLane(name, lane, self)

    def begun(self, lane: str, stage: str, count: int) -> _Entry:
        """A batch was begun."""
        entry = _Entry(lane, stage, count, self.clock.now_s())
        self._entries.append(entry)
        return entry

    def _collector(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._collects_since_s = self.clock.now_s()
        elif info["generation"] > 0:
            stage = f"generation {info['generation']}"
            entry = _Entry("collector", stage, info["collected"], self._collects_since_s)
            entry.ended_s = self.clock.now_s()
            self._entries.append(entry)

    def taken(self, since_s: float) -> list[list[object]]:
        """What there was since then, in ms from there on: lane, stage, works, began, ended."""
        entries, self._entries = self._entries, []
        return [
            [one.lane, one.stage, one.count, _ms(one.began_s, since_s), _ms(one.ended_s, since_s)]
            for one in entries
            if one.began_s >= since_s
        ]

    def close(self) -> None:
        """Note no more of the collector's work."""
        gc.callbacks.remove(self._collector)


def _ms(at_s: float, since_s: float) -> float:
    return round((at_s - since_s) * 1000, 2)


@dataclass(frozen=True, slots=True)
class _TracedLane:
    name: str
    inner: Lane
    trace: Trace

    def count(self, works: Sequence[Work]) -> int:
        """See `Lane`."""
        return self.inner.count(works)

    def begin(self, works: Sequence[Work]) -> Batch:
        """See `Lane`."""
        entry = self.trace.begun(self.name, works[0].stage, len(works))
        return _TracedBatch(self.inner.begin(works), entry, self.trace)


@dataclass(frozen=True, slots=True)
class _TracedBatch:
    inner: Batch
    entry: _Entry
    trace: Trace

    @property
    def done(self) -> bool:
        """See `Batch`."""
        return self.inner.done

    def finish(self) -> Failures:
        """See `Batch`."""
        failures = self.inner.finish()
        self.entry.ended_s = self.trace.clock.now_s()
        return failures


def keep(file: Path, mode: str, units: Sequence[dict[str, object]]) -> None:
    """Append the units of one mode."""
    with file.open("a", encoding="utf-8") as out:
        for number, unit in enumerate(units):
            out.write(json.dumps({"mode": mode, "unit": number, **unit}) + "\n")
