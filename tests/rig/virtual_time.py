"""An event loop whose time jumps: where every task sleeps, it is later at once."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from agent.clock import Clock

T = TypeVar("T")


class _Jumping(selectors.DefaultSelector):
    """Waits for nothing: what would be waited for is when the next timer is due."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "every task waits for something that never comes"
        self.now_s += max(0.0, timeout)
        return super().select(0)


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self, selector: _Jumping) -> None:
        super().__init__(selector)
        self._jumping = selector
        # Timers that are due within this are due now; without it time could stand still.
        self._clock_resolution = 1e-6

    def time(self) -> float:
        return self._jumping.now_s


class VirtualClock(Clock):
    """The time of the loop that runs; `spend_s` is work that keeps it from everything else."""

    def now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def spend_s(self, seconds: float) -> None:
        asyncio.get_running_loop()._jumping.now_s += seconds  # type: ignore[attr-defined]


def run_virtually(work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns, in no time at all."""
    with asyncio.Runner(loop_factory=lambda: _VirtualLoop(_Jumping())) as runner:
        return runner.run(work)
