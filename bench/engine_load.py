"""`bench.engine load` and `sweep`: many calls at once, in real time.

Units come at phases of their own, and each is to be done, report and sound, before the next one:
within a second. Calls have filled their windows before that, as after some minutes; half of the
units are spoken. `sweep` goes up level by level until a unit is late, and then holds the highest
level for two minutes. So that the limit is found, the engine takes every call that it has room for;
how many it would take when it serves is told beside it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from agent.clock import SYSTEM_CLOCK, Clock
from agent.errors import CapacityError
from agent.fleet.callers import Material
from agent.fleet.unit_times import DEADLINE_S, Times
from bench.engine_drive import Calls
from bench.engine_parts import SETTINGS, Made, taken_gb
from bench.engine_report import EngineReport
from bench.engine_unit import Mode
from bench.report import at_least

LEVELS = (1, 2, 4, 8, 16, 32, 48, 64, 80, 96)
SESSIONS = {"audio": at_least(64), "omni": at_least(32)}


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How long a level lasts (`settle_s` before that do not count), and the highest one in the
    end; a sweep that has taken `budget_s` tries no higher level."""

    settle_s: float = 4.0
    step_s: float = 16.0
    confirm_s: float = 120.0
    budget_s: float = 330.0


class LoadBench:
    """One engine under the load of calls of one kind. It takes every call that it has room for."""

    def __init__(
        self, report: EngineReport, made: Made, mode: Mode, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._report = report
        self._mode = mode
        self._clock = clock
        self._material = Material(camera=mode == "omni")
        self._made, self._calls = self._begun(made)

    def __len__(self) -> int:
        return len(self._calls)

    async def load(
        self, sessions: int, options: LoadOptions, seconds: float, name: str = "load"
    ) -> Times:
        """So many calls for so long, or as many as there is room for; their rows.

        Those are named `<name>_<mode>_<calls>`.
        """
        try:
            self._calls.grow(sessions, self._made.parts.window.low_tokens)
        except CapacityError as error:
            row = f"{name}_{self._mode}_{sessions}_ms"
            self._report.not_measured(row, "ms", f"{len(self)} calls were taken: {error}")
        begins_s = self._clock.now_s() + options.settle_s
        ends_s = begins_s + seconds
        # Whoever came last has a second, too, while the others go on.
        await self._calls.run_until(ends_s + DEADLINE_S)
        times = self._calls.log.times(begins_s, ends_s)
        self._calls.log.forget(ends_s)
        self._tell(f"{name}_{self._mode}_{len(self)}", times)
        return times

    async def sweep(self, levels: Sequence[int], options: LoadOptions) -> int:
        """The row `sessions_<mode>`: the most calls that were held for `confirm_s`; 0: none.

        Beside it `admitted_<mode>`: how many the engine itself takes, by what it measured then.
        """
        began_s, held = self._clock.now_s(), []
        for level in levels:
            if self._clock.now_s() - began_s > options.budget_s:
                break
            if not await self._holds(level, options, options.step_s):
                break
            held.append(len(self))
            if len(self) < level:
                break
        while held and not await self._holds(held[-1], options, options.confirm_s, "held"):
            held.pop()
        sessions = held[-1] if held else 0
        name, target = f"sessions_{self._mode}", SESSIONS[self._mode]
        self._report.row(name, sessions, "calls", target=target)
        if sessions:
            self._report.row(f"admitted_{self._mode}", self._admitted(), "calls")
        self.end()
        return sessions

    def end(self) -> None:
        """All calls are over."""
        self._calls.end_all()

    async def _holds(
        self, level: int, options: LoadOptions, seconds: float, name: str = "load"
    ) -> bool:
        if level < len(self):
            self._renew()
        times = await self.load(level, options, seconds, name)
        if not times.in_time:
            self._renew()
        return times.in_time

    def _renew(self) -> None:
        """What waits, or was late, is not to burden the next level."""
        self.end()
        self._made, self._calls = self._begun(self._made.renewed())

    def _begun(self, made: Made) -> tuple[Made, Calls]:
        made.admit_all()
        return made, Calls(made.core, SETTINGS, self._material, self._clock)

    def _admitted(self) -> int:
        """How many there are when it refuses one more, by what batches were measured to take."""
        self._made.admit_as_served()
        while len(self) and self._calls.is_full:
            self._calls.end_newest()
        try:
            while True:
                self._calls.grow(len(self) + 1, 0)
        except CapacityError:
            return len(self)

    def _tell(self, name: str, times: Times) -> None:
        row, n = self._report.row, times.units
        shares = {"": 0.5, "_p95": 0.95, "_p99": 0.99, "_max": 1.0}
        for suffix, share in shares.items():
            row(f"{name}{suffix}_ms", times.latency_s(share) * 1000, "ms", n=n)
        row(f"{name}_late_percent", 100 * times.late / n if n else 0.0, "%", n=n)
        row(f"{name}_spoken_percent", 100 * times.spoken / n if n else 0.0, "%", n=n)
        firsts = len(times.first_sounds_s)
        for suffix, share in (("", 0.5), ("_p95", 0.95)) if firsts else ():
            first_ms = times.first_sound_s(share) * 1000
            row(f"{name}_first_sound{suffix}_ms", first_ms, "ms", n=firsts)
        if self._mode == "omni":
            row(f"{name}_unseen_percent", 100 * times.unseen / n if n else 0.0, "%", n=n)
        row(f"{name}_context_tokens", min(self._calls.context_tokens, default=0), "tokens")
        taken = taken_gb(self._made.device)
        if not math.isnan(taken):
            row(f"{name}_gpu_gb", taken, "GB")
