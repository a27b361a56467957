"""`bench.engine unit`: one call alone, and what each of its seconds takes.

A speaking unit says five words, and 25 speech tokens make a second of sound of them. It begins a
turn, goes on with it or ends it; a turn has five. Units come one right behind the other, so the
device never rests; a unit is over when the engine and the device have nothing more to do.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

from agent.clock import SYSTEM_CLOCK, Clock
from agent.fleet.callers import Material
from bench.engine_drive import OneCall, Taken
from bench.engine_parts import SETTINGS, Made, finish_device, make_eager, most_taken_gb
from bench.engine_report import EngineReport
from bench.engine_script import cycle
from bench.engine_trace import Trace, keep
from bench.report import at_most

Mode: TypeAlias = Literal["audio", "omni"]
MODES: tuple[Mode, ...] = ("audio", "omni")
SPEAK = 0.5
TARGETS = {
    "audio_listen": at_most(15),
    "audio_speak": at_most(70),
    "omni_listen": at_most(35),
    "omni_speak": at_most(90),
}
FIRST_SOUND_MS = at_most(60)
FIRST_GB = at_most(22)
_WARM_UP_CYCLES = 1


@dataclass(frozen=True, slots=True)
class UnitOptions:
    """How many times a call listens for five units and speaks for five, and as many eager ones
    (0: none)."""

    cycles: int = 20
    eager_cycles: int = 1
    trace: Trace | None = None
    keep: Path | None = None
    """Where the trace of each unit is written to."""


def measure_units(
    report: EngineReport, made: Made, options: UnitOptions, clock: Clock = SYSTEM_CLOCK
) -> None:
    """All rows of `unit`, of an engine with one place that speaks in half of its units.

    Eager units stand beside those of lanes, where there are any. The first thing that is done with
    the engine: memory is counted from its making on.
    """
    report.row("unit_lanes", float(made.has_lanes), "")
    taken = {mode: _traced_units(made, mode, options, clock) for mode in MODES}
    first_gb = most_taken_gb(made.device)
    against: dict[Mode, list[Taken]] = {}
    if made.has_lanes and options.eager_cycles:
        eager = make_eager(made, made.wanted)
        against = {mode: units_of(eager, mode, options.eager_cycles, clock) for mode in MODES}
    for mode in MODES:
        _report_mode(report, mode, taken[mode], against.get(mode, ()))
    if math.isnan(first_gb):
        report.not_measured("vram_first_gb", "GB", "there is no GPU")
    else:
        report.row("vram_first_gb", first_gb, "GB", target=FIRST_GB)


def _traced_units(made: Made, mode: Mode, options: UnitOptions, clock: Clock) -> list[Taken]:
    notes: list[dict[str, object]] = []
    trace = options.trace

    def note(one: Taken) -> None:
        if trace is not None:
            figures = {"took_ms": round(one.took_ms, 2), "listened": one.listened}
            notes.append({**figures, "stages": one.stage_ms, "did": trace.taken(one.began_s)})

    taken = units_of(made, mode, options.cycles, clock, note)
    if options.keep is not None:
        keep(options.keep, mode, notes)
    return taken


def units_of(
    made: Made,
    mode: Mode,
    cycles: int,
    clock: Clock,
    note: Callable[[Taken], None] = lambda one: None,
) -> list[Taken]:
    """A call's units in whole cycles, but for the first ones, in which much is done once; `note`
    is told of all."""
    made.look_at_all()
    finish = partial(finish_device, made.device)
    call = OneCall(made.core, SETTINGS, clock, finish)
    material, length = Material(camera=mode == "omni"), len(cycle(SPEAK))
    units = []
    for index in range((cycles + _WARM_UP_CYCLES) * length):
        units.append(call.take(material.unit(index)))
        note(units[-1])
    call.end()
    return units[_WARM_UP_CYCLES * length :]


def _report_mode(
    report: EngineReport, mode: Mode, taken: Sequence[Taken], eager: Sequence[Taken]
) -> None:
    kinds = (("listen", True), ("speak", False))
    for did, listened in kinds:
        name = f"{mode}_{did}"
        mine = [one for one in taken if one.listened == listened]
        theirs = sorted(one.took_ms for one in eager if one.listened == listened)
        against = theirs[len(theirs) // 2] if theirs else None
        took_ms = [one.took_ms for one in mine]
        report.spread(name, took_ms, target=TARGETS[name], against=against)
        for stage, spent_ms in sorted(_by_stage(mine).items()):
            report.spread(f"{name}_{stage}", spent_ms)
    firsts = [one.first_sound_ms for one in taken if math.isfinite(one.first_sound_ms)]
    firsts_eager = sorted(one.first_sound_ms for one in eager if math.isfinite(one.first_sound_ms))
    report.spread(
        "first_sound" if mode == "audio" else f"first_sound_{mode}",
        firsts,
        target=FIRST_SOUND_MS if mode == "audio" else None,
        against=firsts_eager[len(firsts_eager) // 2] if firsts_eager else None,
    )
    most = max((one.context_tokens for one in taken), default=0)
    report.row(f"{mode}_context_tokens", most, "tokens")


def _by_stage(taken: Sequence[Taken]) -> dict[str, list[float]]:
    """What each stage took of those units that had it."""
    spent_ms: dict[str, list[float]] = defaultdict(list)
    for one in taken:
        for stage, took_ms in one.stage_ms.items():
            spent_ms[stage].append(took_ms)
    return spent_ms
