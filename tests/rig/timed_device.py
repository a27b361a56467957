"""A device in virtual time: lanes whose batches take as long as is written, side by side on it."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from agent.clock import Clock
from agent.duplex.lanes import LANES, Failures
from agent.duplex.work import LaneName

Cost = Callable[[int], float]
"""Seconds that a batch of so many has the device for, when nothing else has."""


class VirtualClock(Clock):
    """Passes when somebody pauses."""

    def __init__(self) -> None:
        self.time_s = 0.0

    def now_s(self) -> float:
        return self.time_s


@dataclass(eq=False)
class TimedWork:
    """A piece of work of no content."""

    stage: str
    lane: LaneName


@dataclass(eq=False)
class TimedBatch:
    left_s: float
    done: bool = False
    device: "TimedDevice | None" = None

    def finish(self) -> Failures:
        while not self.done:
            assert self.device is not None
            self.device.pass_time(1e-4)
        return {}


@dataclass
class TimedLane:
    device: "TimedDevice"
    most: int

    def count(self, works: Sequence[Any]) -> int:
        alike = [work.stage == works[0].stage for work in works]
        together = alike.index(False) if False in alike else len(alike)
        return min(together, self.most)

    def begin(self, works: Sequence[Any]) -> TimedBatch:
        batch = TimedBatch(self.device.costs[works[0].stage](len(works)), device=self.device)
        self.device.running.append(batch)
        return batch


@dataclass
class TimedDevice:
    """What runs at the same time has equal shares of it."""

    costs: Mapping[str, Cost]
    most: int = 64
    clock: VirtualClock = field(default_factory=VirtualClock)
    running: list[TimedBatch] = field(default_factory=list)

    @property
    def runner(self) -> Any:
        """As much of a `Runner` as the loop needs."""
        lanes = {name: TimedLane(self, self.most) for name in LANES}
        return SimpleNamespace(clock=self.clock, lane=lambda name: lanes[name])

    def pause(self, seconds: float) -> None:
        """As a thread sleeps: not for less than it can."""
        self.pass_time(max(seconds, 2e-4))

    def pass_time(self, seconds: float) -> None:
        """So much time passes."""
        while seconds > 1e-12:
            shares = max(1, len(self.running))
            step = min([seconds, *(one.left_s * shares for one in self.running)])
            self.clock.time_s += step
            seconds -= step
            for batch in self.running:
                batch.left_s -= step / shares
                batch.done = batch.left_s <= 1e-12
            self.running = [batch for batch in self.running if not batch.done]


def unit_works(*, speaks: bool, sees: bool = False) -> Generator[Any, None, None]:
    """What a unit asks for."""
    if sees:
        yield TimedWork("vision", "vision")
    yield TimedWork("audio", "audio")
    yield TimedWork("prefill", "llm")
    if speaks:
        for _ in range(6):
            yield TimedWork("decode", "llm")
        yield TimedWork("speech", "speech")
        yield TimedWork("vocoder", "voice")
