"""Somebody's work under way: run piece by piece, so that others' pieces can go between."""

from collections.abc import Callable, Generator
from typing import Any, TypeAlias

from agent.duplex.work import Runner, Work

StageTimes: TypeAlias = tuple[tuple[str, float], ...]
"""Milliseconds by stage name."""


class Job:
    """Steps of a conversation and what to do with their result."""

    def __init__(
        self, steps: Generator[Work, None, Any], done: Callable[[Any, StageTimes], None]
    ) -> None:
        """`done` is called once with what the steps return and what they took."""
        self._steps = steps
        self._done = done
        self._spent_ms: dict[str, float] = {}

    def advance(self, runner: Runner) -> bool:
        """Do the next piece; False once all is done. Raises what the steps raise."""
        try:
            work = next(self._steps)
        except StopIteration as stop:
            self._done(stop.value, tuple(self._spent_ms.items()))
            return False
        begun_s = runner.clock.now_s()
        work.run(runner.model, runner.slots)
        took_ms = (runner.clock.now_s() - begun_s) * 1000
        self._spent_ms[work.stage] = self._spent_ms.get(work.stage, 0.0) + took_ms
        return True
