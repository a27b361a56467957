"""The trace of `bench.engine unit`: what was under way when, by lane."""

import gc
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from agent.duplex.kv_cache import KvStream
from agent.duplex.lanes import Done
from agent.duplex.work import Read, Work
from bench.engine_trace import Trace, keep


class _Ticking:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.at_s = 0.0

    def now_s(self) -> float:
        return self.at_s

    async def sleep_until(self, at_s: float) -> None:
        raise AssertionError("nobody sleeps here")


class _Lane:
    """Takes as long as it is told to begin."""

    def __init__(self, clock: _Ticking) -> None:
        self.clock = clock

    def count(self, works: Sequence[Work]) -> int:
        return 2

    def begin(self, works: Sequence[Work]) -> Done:
        self.clock.at_s += 0.010
        return Done()


@pytest.fixture
def clock() -> _Ticking:
    return _Ticking()


@pytest.fixture
def trace(clock: _Ticking) -> Iterator[Trace]:
    noted = Trace(clock)
    yield noted
    noted.close()


def test_batches_are_noted_from_begin_to_finish(trace: Trace, clock: _Ticking) -> None:
    lane = trace.lane("llm", _Lane(clock))
    works = [Read(KvStream(0), (1, 2)), Read(KvStream(1), (3, 4))]
    assert lane.count(works) == 2
    lane.begin(works).finish()
    clock.at_s = 1.0
    batch = lane.begin(works[:1])
    clock.at_s += 0.005
    assert batch.done
    batch.finish()
    assert trace.taken(0.5) == [["llm", works[0].stage, 1, 500.0, 515.0]]
    assert trace.taken(0.5) == [], "it is taken once"


def test_the_collectors_pauses_are_noted_until_the_trace_is_closed(trace: Trace) -> None:
    gc.collect()
    ((lane, stage, _, began, ended),) = [one for one in trace.taken(0.0) if "2" in str(one[1])]
    assert (lane, stage, began, ended) == ("collector", "generation 2", 0.0, 0.0)


def test_units_are_kept_a_line_each(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    keep(file, "audio", [{"took_ms": 1.5}, {"took_ms": 2.5}])
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert lines[1] == {"mode": "audio", "unit": 1, "took_ms": 2.5} and len(lines) == 2
