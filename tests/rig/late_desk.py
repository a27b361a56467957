"""An engine on the tiny model whose lanes may take their time, and what it says."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from agent.clock import Clock
from agent.duplex.engine import DuplexEngine
from agent.types import Abilities, SpeechAudio, UnitReport
from tests.rig.late_lanes import Watch, late
from tests.rig.scripted_call import parts

Event = tuple[int, Any]


class StoppedClock(Clock):
    """Time stands still unless it is moved."""

    time_s = 100.0

    def now_s(self) -> float:
        return self.time_s


class Desk:
    """An engine; on late lanes where it is given a `watch`."""

    def __init__(
        self,
        *scripts: Iterator[int],
        watch: Watch | None = None,
        slots: int = 2,
        **changes: Any,
    ) -> None:
        self.clock = StoppedClock()
        self.watch = watch
        waiting = [*scripts]
        made = parts(slots=slots, **changes)
        if scripts:
            made = replace(made, script=lambda: waiting.pop(0))
        runner = replace(made.runner, clock=self.clock)
        self.slots = runner.slots
        made = replace(made, runner=late(runner, watch) if watch else runner)
        self.engine = DuplexEngine(
            made, Abilities(duplex=True, chat=True), self.clock, pause=lambda seconds: None
        )
        self.said: list[Event] = []

    def step(self) -> None:
        self.said += self.engine.work()

    def work(self) -> None:
        while self.engine.idle_s() == 0:
            self.step()

    def is_at_rest(self, number: int) -> bool:
        line = self.engine._calls.get(number)
        return line is None or not line.has_work

    def of(self, number: int) -> list[Any]:
        """All that was said, but for how long it took."""
        events = [event for to, event in self.said if to == number]
        return [
            replace(one, samples=one.samples.tobytes()) if isinstance(one, SpeechAudio) else one
            for one in events
            if not isinstance(one, UnitReport)
        ]
