"""All conversations' work on all lanes: what is ready is begun, what is done is taken in.

Each lane has one batch under way at most, and all lanes' batches overlap on the device. A task has
one work under way, or the parts of one; while it has, its conversation's slot must be left alone,
also by whoever drops the task: `drop` says when that is over.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from agent.duplex.job import Job
from agent.duplex.lanes import LANES, Batch, Lane, Runner
from agent.duplex.work import LaneName, Read, Together, Work
from agent.errors import AgentError
from agent.scheduler import UNIT_S, Costs, Rank, Waiting, line_up
from agent.torch_parts.device import breaks_device

MOST_WAIT_S = 0.002
"""So long a step waits for the device at most; then it looks for what came meanwhile."""
_WAKE_SHARE = 0.7
"""Of what a batch is expected to take: who sleeps longer than it took never learns that."""
_POLL_S = 0.00002
_POLLS = 128


@dataclass(slots=True, eq=False)
class Task:
    """A job on its way. `over` is called once with what ended it; None: it was done."""

    job: Job
    rank: Rank
    over: Callable[[Exception | None], None]
    order: int = 0
    due_s: float = math.inf
    """A call's work is due a second after it could be begun: so long after it came, where the call
    is not behind; one that is must not crowd out the others."""
    parts: list["Part"] = field(default_factory=list)
    """Of its work, those that are not done."""
    error: Exception | None = None
    """What went wrong with one that is."""
    steps: dict[str, int] = field(default_factory=dict)
    """How many works of each stage it has asked for."""
    released: Callable[[], None] | None = None
    """It was dropped: to be called when nothing of it is under way."""


@dataclass(slots=True, eq=False)
class Part:
    """A task's work on one lane."""

    task: Task
    work: Work
    since_s: float
    is_begun: bool = False


@dataclass(slots=True)
class _Station:
    """A lane, who waits for it, and what is under way on it."""

    lane: Lane
    waiting: list[Part] = field(default_factory=list)
    batch: Batch | None = None
    parts: list[Part] = field(default_factory=list)
    begun_s: float = 0.0
    expected_s: float = 0.0
    used_s: float = 0.0
    """Its share of the device since then: that of lanes at work at the same time is equal."""
    blocks: bool = False
    """Its last batch was done when it was begun: nothing else went on meanwhile."""


class LaneLoop:
    """The tasks of one engine, on the thread that works for it."""

    def __init__(
        self,
        runner: Runner,
        costs: Costs,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """`pause` waits for so many seconds."""
        self._clock = runner.clock
        self._costs = costs
        self._pause = pause
        self._stations: dict[LaneName, _Station] = {
            name: _Station(runner.lane(name)) for name in LANES
        }
        self._units: set[Task] = set()
        self._orders = 0
        self._used_until_s = self._clock.now_s()
        self.margin_s = math.inf
        """By so much the slowest units of late were in time."""
        self.holds_chats = False

    @property
    def is_busy(self) -> bool:
        """Whether anything waits or is under way."""
        return any(one.waiting or one.batch is not None for one in self._stations.values())

    def start(self, task: Task) -> None:
        """Go on with `task` until it is over."""
        self._orders += 1
        task.order = self._orders
        if not task.rank:
            task.due_s = self._clock.now_s() + UNIT_S
        if task.job.due_s is not None:
            self._units.add(task)
        self._go_on(task, task.job.next)

    def drop(self, task: Task, released: Callable[[], None]) -> None:
        """Nobody wants it any more; `released` is called, maybe at once, when it does nothing."""
        self._units.discard(task)
        for part in task.parts:
            if not part.is_begun:
                self._stations[part.work.lane].waiting.remove(part)
        task.parts = [part for part in task.parts if part.is_begun]
        task.released = released
        _release(task)

    def settle(self) -> None:
        """Wait until nothing is under way for whoever was dropped."""
        for station in self._stations.values():
            if any(part.task.released is not None for part in station.parts):
                self._take_in(station)

    # ---- a step ---------------------------------------------------------------------------------

    def step(self) -> None:
        """Take in what is done and begin what can be; where there is neither, wait a moment."""
        done = [one for one in self._stations.values() if _is_done(one)]
        for station in done:
            self._take_in(station)
        if not self._begin_all() and not done:
            self._wait()

    def _begin_all(self) -> bool:
        """Begin what is ready, what is due first before the rest → whether there was anything.

        Behind a batch that was done here and now it is time to see what came meanwhile.
        """
        now_s = self._clock.now_s()
        ready = [one for one in self._stations.values() if one.batch is None and one.waiting]
        begun = False
        for station in sorted(ready, key=_urgency):
            if not self._begin(station, now_s):
                continue
            begun = True
            station.blocks = _is_done(station)
            if station.blocks:
                self._take_in(station)
                break
        return begun

    def _begin(self, station: _Station, now_s: float) -> bool:
        waiting = [_as_waiting(part) for part in station.waiting]
        behind = {_cost_kind(one.kind, is_unit=False) for one in waiting if one.rank}
        places = line_up(
            waiting,
            now_s,
            spare_s=self._spare_s(now_s),
            takes_s=max((self._costs.expected_s(kind, 1) for kind in behind), default=0.0),
            held=self.holds_chats,
        )
        if not places:
            return False
        works = [station.waiting[at].work for at in places]
        count = station.lane.count(works)
        parts = [station.waiting[at] for at in places[:count]]
        for part in parts:
            part.is_begun = True
            station.waiting.remove(part)
        self._share_use()
        station.parts, station.begun_s, station.used_s = parts, self._used_until_s, 0.0
        station.expected_s = self._costs.expected_s(_batch_kind(parts), count)
        station.batch = station.lane.begin(works[:count])
        return True

    def _spare_s(self, now_s: float) -> float:
        """How long units can wait: the most pressed one, and as the slowest of late could have."""
        if not self._units:
            return math.inf
        return min(self.margin_s, min(task.job.due_s or 0.0 for task in self._units) - now_s)

    def _take_in(self, station: _Station) -> None:
        """Finish its batch, and go on with those that it was for."""
        assert station.batch is not None, "it was begun"
        failures = station.batch.finish()
        self._share_use()
        took_ms = (self._used_until_s - station.begun_s) * 1000
        if len({part.work.stage for part in station.parts}) == 1:  # a mixture tells of neither
            self._costs.took(_batch_kind(station.parts), len(station.parts), station.used_s)
        parts, station.parts, station.batch = station.parts, [], None
        for place, part in enumerate(parts):
            self._took(part, took_ms, failures.get(place))

    def _took(self, part: Part, took_ms: float, error: Exception | None) -> None:
        task = part.task
        task.parts.remove(part)
        if task.released is not None:
            _release(task)
            return
        if error is None:
            task.job.did(part.work, took_ms)
        task.error = task.error or error
        if task.parts:
            return
        failure, task.error = task.error, None
        self._go_on(task, task.job.next if failure is None else lambda: task.job.fail(failure))

    def _go_on(self, task: Task, step: Callable[[], Work | None]) -> None:
        """Let its conversation say what comes next."""
        try:
            work = step()
        except (AgentError, RuntimeError) as error:
            # Whatever it is, torch's included, it is this one's alone, unless nothing works now.
            if breaks_device(error):
                raise
            self._units.discard(task)
            task.over(error)
            return
        if work is None:
            self._units.discard(task)
            task.over(None)
            return
        now_s = self._clock.now_s()
        works = work.parts if isinstance(work, Together) else [work]
        task.parts = [Part(task, one, now_s) for one in works]
        for part in task.parts:
            task.steps[part.work.stage] = task.steps.get(part.work.stage, 0) + 1
            self._stations[part.work.lane].waiting.append(part)

    # ---- time -----------------------------------------------------------------------------------

    def _share_use(self) -> None:
        """The time since the last look belongs to those that were at work, in equal parts."""
        now_s = self._clock.now_s()
        working = [one for one in self._stations.values() if one.batch is not None]
        for station in working:
            station.used_s += (now_s - self._used_until_s) / len(working)
        self._used_until_s = now_s

    def _wait(self) -> None:
        """Until a batch is done, but no longer than a moment."""
        working = [one for one in self._stations.values() if one.batch is not None]
        until_s = self._clock.now_s() + MOST_WAIT_S
        for _ in range(_POLLS):
            now_s = self._clock.now_s()
            if not working or now_s >= until_s or any(map(_is_done, working)):
                return
            looks_s = min(one.begun_s + _WAKE_SHARE * one.expected_s for one in working)
            self._pause(max(_POLL_S, min(looks_s, until_s) - now_s))


def _is_done(station: _Station) -> bool:
    return station.batch is not None and station.batch.done


def _urgency(station: _Station) -> tuple[bool, int, float, int]:
    """Those that would hold up the others come last."""
    tasks = [part.task for part in station.waiting]
    return station.blocks, *min((task.rank, task.due_s, task.order) for task in tasks)


def _as_waiting(part: Part) -> Waiting:
    task, work = part.task, part.work
    size = work.count if isinstance(work, Read) else 1
    return Waiting(task.rank, task.order, work.stage, size, task.due_s, part.since_s)


def _release(task: Task) -> None:
    """It was dropped: let go of it when nothing of it is under way."""
    if not task.parts and task.released is not None:
        task.job.drop()
        task.released()


def _batch_kind(parts: Sequence[Part]) -> str:
    """What its cost is kept under: that of units alone tells what units cost."""
    is_unit = all(part.task.job.due_s is not None for part in parts)
    return _cost_kind(parts[0].work.stage, is_unit=is_unit)


def _cost_kind(stage: str, *, is_unit: bool) -> str:
    return stage if is_unit else f"{stage}, no unit's"
