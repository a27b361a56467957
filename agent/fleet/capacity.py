"""How many calls an engine holds: more and more at once, until a unit comes late.

    found = await measure_capacity(engine, settings, Effort(seconds=60))
    found.calls

A number of calls is held when every unit that came within the measured seconds was done before the
next one, with all that was to be heard of it and with its picture looked at. A load that is a
little too much takes a while to be felt: so the best one that was found is tried for longer, and a
smaller one if need be.
"""

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from agent.clock import SYSTEM_CLOCK, Clock
from agent.errors import CapacityError, EngineError, WorkerLost
from agent.fleet.callers import Material
from agent.fleet.held_calls import HeldCalls
from agent.fleet.unit_times import DEADLINE_S, Times
from agent.interfaces import Engine
from agent.types import SessionSettings

Why: TypeAlias = Literal["late", "places", "refused", "failed", "time"]
"""Why no more calls were held than that: a unit was late, there are no more places, the engine took
no more, a call failed, or there was no time to try more."""

_EASE_S = 0.25
"""A load whose slowest unit took less is far from the limit: four times as many are tried next."""
_STEPS_DOWN = 10
"""By the tenth part of it a load is made smaller that does not last."""
_PATIENCE_S = 0.05


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to look. A load lasts `settle_s`, in which a call's first three units pass, which it
    only listens to, and then `measure_s`, or `confirm_s` where it is the best one so far."""

    seconds: float = 60.0
    settle_s: float = 4.0
    measure_s: float = 2.0
    confirm_s: float = 10.0


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What became of `calls` calls at once. `failed`: one of them ended."""

    calls: int
    times: Times
    failed: bool = False

    @property
    def held(self) -> bool:
        """Whether all of it was done in time."""
        return self.times.in_time and not self.failed

    @property
    def spoken_share(self) -> float:
        """In how many of the units the agent spoke; NaN where there were none."""
        return self.times.spoken / self.times.units if self.times.units else math.nan


@dataclass(frozen=True, slots=True)
class Capacity:
    """The `best` load that was held, of no calls where there was none, and `why` no more was; all
    `loads` in the order that they were tried."""

    best: LoadResult
    why: Why
    loads: tuple[LoadResult, ...] = ()
    quickest_s: float = math.inf
    """The shortest time that any unit took; inf where none was done."""


def climb(most: int) -> Generator[int, float, None]:
    """Loads to try, 1 to `most`; to be sent how long the slowest unit took at each, `inf` for none.

    Ever more until one is not held, then halfway between the best and the least that was not.
    """
    held, tried = 0, 1
    while held < most:
        slowest_s = yield tried
        if slowest_s > DEADLINE_S:
            break
        held = tried
        tried = min(most, tried * (4 if slowest_s < _EASE_S else 2))
    low, high = held, tried
    while high - low > 1:
        middle = (low + high) // 2
        if (yield middle) > DEADLINE_S:
            high = middle
        else:
            low = middle


async def measure_capacity(
    engine: Engine,
    settings: SessionSettings,
    effort: Effort,
    *,
    camera: bool = False,
    on_load: Callable[[LoadResult], None] = lambda result: None,
    clock: Clock = SYSTEM_CLOCK,
) -> Capacity:
    """Try loads on an engine that nobody else uses, and tell of each; ends in about the time given.

    WorkerLost when the engine's process dies of it; other errors of its calls count against the
    load. `EngineError` when it has no place at all.
    """
    most = engine.load().slots_free
    if most < 1:
        raise EngineError("the engine has no free place to try calls on")
    async with HeldCalls(engine, settings, Material(camera=camera), clock) as calls:
        return await _Search(calls, effort, on_load, clock).run(most)


class _Search:
    def __init__(
        self,
        calls: HeldCalls,
        effort: Effort,
        on_load: Callable[[LoadResult], None],
        clock: Clock,
    ) -> None:
        self._calls = calls
        self._effort = effort
        self._on_load = on_load
        self._clock = clock
        self._ends_s = clock.now_s() + effort.seconds
        self._loads: list[LoadResult] = []
        self._quickest_s = math.inf

    async def run(self, most: int) -> Capacity:
        why = await self._climb(most)
        calls = self._held_up_to(most).calls
        while calls and self._has_time(self._effort.confirm_s):
            result, _ = await self._load(calls, self._effort.confirm_s)
            if result.held:
                return self._found(result, why)
            why = "failed" if result.failed else "late"
            calls -= max(1, calls // _STEPS_DOWN)
        return self._found(self._held_up_to(calls), "time" if calls else why)

    async def _climb(self, most: int) -> Why:
        """Try loads as long as there is time left to try the best of them for longer."""
        ladder, effort = climb(most), self._effort
        tried = next(ladder)
        why: Why = "places"
        while True:
            result, refused = await self._load(tried, effort.measure_s)
            why = why if result.held else "failed" if result.failed else "late"
            if refused or result.failed:
                return "failed" if result.failed else "refused"
            try:
                tried = ladder.send(result.times.latency_s(1.0) if result.held else math.inf)
            except StopIteration:
                return why
            if not self._has_time(effort.measure_s + effort.settle_s + effort.confirm_s):
                return "time"

    def _has_time(self, measured_s: float) -> bool:
        return self._clock.now_s() + self._effort.settle_s + measured_s <= self._ends_s

    def _held_up_to(self, calls: int) -> LoadResult:
        held = [load for load in self._loads if load.held and load.calls <= calls]
        return max(held, key=lambda load: load.calls, default=LoadResult(0, Times()))

    def _found(self, best: LoadResult, why: Why) -> Capacity:
        return Capacity(best, why, tuple(self._loads), self._quickest_s)

    async def _load(self, count: int, measured_s: float) -> tuple[LoadResult, bool]:
        """So many calls, for the time that a load lasts; whether some of them were refused."""
        refused = False
        try:
            await self._calls.hold(count)
        except CapacityError:
            refused = True
        begins_s = self._clock.now_s() + self._effort.settle_s
        ends_s = begins_s + measured_s
        await self._clock.sleep_until(ends_s)
        await self._await_units(begins_s, ends_s)
        log, failure = self._calls.log, self._calls.failure
        if isinstance(failure, WorkerLost):
            raise failure
        times = log.times(begins_s, ends_s)
        result = LoadResult(len(self._calls), times, failed=failure is not None)
        self._quickest_s = min(self._quickest_s, log.quickest_s)
        log.forget(ends_s)
        self._loads.append(result)
        self._on_load(result)
        if not result.held:
            await self._calls.hold(0)  # what waits of it is not to burden the next load
        return result, refused

    async def _await_units(self, begins_s: float, ends_s: float) -> None:
        """Until the measured units are done or late. Where none was ever done: as long as there is
        time, to tell how long one takes."""
        log, due_s = self._calls.log, ends_s + DEADLINE_S
        while self._clock.now_s() <= due_s and log.waits(begins_s, ends_s):
            await self._clock.sleep_until(self._clock.now_s() + _PATIENCE_S)
        while not self._loads and self._clock.now_s() < self._ends_s and log.quickest_s == math.inf:
            await self._clock.sleep_until(self._clock.now_s() + _PATIENCE_S)
