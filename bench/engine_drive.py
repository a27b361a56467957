"""How `bench.engine` drives an engine: as its own process does, but with calls that nobody makes.

What has come is handed in, then a piece of work is done, and so on; where there is none, it waits.
A unit counts from when it is complete, whatever the engine is doing then.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from agent.chat_types import ChatEvent
from agent.clock import SYSTEM_CLOCK, Clock
from agent.commands import AddText
from agent.errors import CapacityError, EngineError
from agent.fleet.callers import Caller, Material, next_due_s
from agent.fleet.unit_times import UnitLog
from agent.interfaces import EngineCore
from agent.types import (
    EngineEvent,
    Failed,
    Listened,
    SessionSettings,
    SpeechAudio,
    TurnStarted,
    Unit,
    UnitReport,
)

_FILL_SHARE = 16
"""So much of the window at a time is filled with words."""
_MOST_FILLING_UNITS = 64


class Beside(Protocol):
    """Who else wants something of the engine while calls go on."""

    @property
    def due_s(self) -> float:
        """When to `act` next; inf: not before something was `told`."""

    def act(self) -> None:
        """It is due: time to ask the engine."""

    def told(self, number: int, event: EngineEvent | ChatEvent, now_s: float) -> bool:
        """The engine said something; False: to somebody else."""


class Calls:
    """Calls on an engine, driven by whoever owns them; `log` has what became of their units."""

    def __init__(
        self,
        core: EngineCore,
        settings: SessionSettings,
        material: Material,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._core = core
        self._settings = settings
        self._material = material
        self._clock = clock
        self._callers: dict[int, Caller] = {}
        self._opened = 0
        self.log = UnitLog()

    def __len__(self) -> int:
        return len(self._callers)

    @property
    def context_tokens(self) -> list[int]:
        """What each remembers."""
        return [self.log.context_tokens(number) for number in self._callers]

    # ---- how many -------------------------------------------------------------------------------

    def grow(self, count: int, window_tokens: int) -> None:
        """Begin calls until there are so many, each of which remembers `window_tokens` or more.

        CapacityError when the engine takes no more; those that it took stay.
        """
        try:
            while len(self._callers) < count:
                self._core.open(self._opened + 1, self._settings)
                self._opened += 1
                caller = Caller(self._opened, math.inf, self._material)
                self._callers[self._opened] = caller
                self._fill(caller, window_tokens)
        finally:
            # While they filled their windows nobody's time went on.
            begins_s = self._clock.now_s()
            for number, caller in self._callers.items():
                self._callers[number] = Caller(number, begins_s, self._material, caller.index)

    def end_all(self) -> None:
        """All of them are over, and the engine rests."""
        while self._callers:
            self.end_newest()
        while self._core.idle_s() == 0:
            self._core.work()

    def end_newest(self) -> None:
        """The call that began last is over."""
        number, _ = self._callers.popitem()
        self._core.finish(number)
        self.log.ended(number)

    @property
    def is_full(self) -> bool:
        """Whether the engine refuses one more."""
        self._opened += 1
        try:
            self._core.open(self._opened, self._settings)
        except CapacityError:
            return True
        self._core.finish(self._opened)
        return False

    def _fill(self, caller: Caller, window_tokens: int) -> None:
        """As if the call went on for long: much is typed to it, and it hears three units at least,
        to which it only listens. One call at a time, so that none is late."""
        words = "word " * (window_tokens // _FILL_SHARE)
        for index in range(_MOST_FILLING_UNITS):
            if index > 2 and self.log.context_tokens(caller.number) >= window_tokens:
                return
            if words:
                self._core.control(caller.number, AddText("", "user", words))
            self.take_second([caller.number])

    # ---- time -----------------------------------------------------------------------------------

    def take_second(self, numbers: Sequence[int] = ()) -> None:
        """A unit of each of these, or of all, at once, until everything is done.

        EngineError when one of them is not: the engine left it out.
        """
        for number in numbers or self._callers:
            self._push(self._callers[number], self._clock.now_s())
        while self._core.idle_s() == 0:
            self._work()
        if self.log.waits():
            raise EngineError("the engine rests, and a unit was not reported")

    async def run_until(self, until_s: float, beside: Beside | None = None) -> None:
        """Units as they come, what is asked `beside` them, and the work that both make."""
        while (now_s := self._clock.now_s()) < until_s:
            for caller in self._callers.values():
                if caller.next_s <= now_s:
                    self._push(caller, caller.next_s)
            if beside is not None and beside.due_s <= now_s:
                beside.act()
            idle_s = self._core.idle_s()
            if idle_s == 0:
                self._work(beside)
                continue
            most_s = until_s if beside is None else min(until_s, beside.due_s)
            due_s = min(most_s, next_due_s(self._callers.values(), most_s))
            wake_s = due_s if idle_s is None else min(due_s, now_s + idle_s)
            await self._clock.sleep_until(min(wake_s, until_s))

    def _push(self, caller: Caller, came_s: float) -> None:
        unit = caller.take()
        self.log.arrived(caller.number, unit, came_s)
        self._core.push(caller.number, unit)

    def _work(self, beside: Beside | None = None) -> None:
        told = self._core.work()
        now_s = self._clock.now_s()
        for number, event in told:
            if beside is not None and beside.told(number, event, now_s):
                continue
            if isinstance(event, Failed):
                raise event.error
            self.log.told(number, event, now_s)


# ---- one call, as fast as it can ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Taken:
    """One unit: what it took in all and by stage, and until its first sound where it began a turn
    (else `inf`)."""

    took_ms: float
    stage_ms: dict[str, float] = field(default_factory=dict)
    listened: bool = False
    first_sound_ms: float = math.inf
    samples: int = 0
    """Of its sound."""
    context_tokens: int = 0
    began_s: float = 0.0


class OneCall:
    """A call whose units come as soon as the one before is done, to the very end."""

    def __init__(
        self,
        core: EngineCore,
        settings: SessionSettings,
        clock: Clock = SYSTEM_CLOCK,
        finish: Callable[[], None] = lambda: None,
    ) -> None:
        """`finish` waits for what the engine started and did not wait for."""
        self._core = core
        self._clock = clock
        self._finish = finish
        self._core.open(1, settings)

    def fill(self, material: Material, window_tokens: int) -> int:
        """Type much to it until it remembers so much; how many units that were."""
        words = "word " * (window_tokens // _FILL_SHARE)
        for index in range(_MOST_FILLING_UNITS):
            self._core.control(1, AddText("", "user", words))
            if self.take(material.unit(index)).context_tokens >= window_tokens:
                return index + 1
        raise EngineError(f"a call does not come to remember {window_tokens} tokens")

    def take(self, unit: Unit) -> Taken:
        """The next unit, done when neither the engine nor the device has anything more to do."""
        began_s = self._clock.now_s()
        self._core.push(1, unit)
        first_s, samples, begins, listened = math.inf, 0, False, False
        report: UnitReport | None = None
        while self._core.idle_s() == 0:
            for _, event in self._core.work():
                match event:
                    case Failed(error=error):
                        raise error
                    case TurnStarted():
                        begins = True
                    case Listened():
                        listened = True
                    case UnitReport():
                        report = event
                    case SpeechAudio(samples=sound):
                        samples += sound.size
                        if begins and sound.size and math.isinf(first_s):
                            first_s = self._clock.now_s() - began_s
                    case _:
                        pass
        self._finish()
        took_s = self._clock.now_s() - began_s
        if report is None or report.unit != unit.index:
            raise EngineError(f"the engine rests, and did not report unit {unit.index}")
        stage_ms = dict(report.stage_ms)
        return Taken(
            took_s * 1000,
            stage_ms,
            listened,
            first_s * 1000,
            samples,
            report.context_tokens,
            began_s,
        )

    def end(self) -> None:
        """Hang up."""
        self._core.finish(1)
