"""`bench.engine hour`: an hour's worth of units, as fast as they can be done.

First the window is filled, as it is after some minutes; from then on every unit makes an old one be
forgotten. Then 600 units: neither what a unit takes nor the memory is to grow with them.
"""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from agent.clock import SYSTEM_CLOCK, Clock
from agent.fleet.callers import Material
from bench.engine_drive import OneCall, Taken
from bench.engine_parts import SETTINGS, Made, finish_device, taken_gb
from bench.engine_report import EngineReport
from bench.report import at_most

GROWTH_PERCENT = at_most(5)
GROWTH_MB = at_most(16)
"""Flat: what a library still takes for itself, and no more."""
_PAGE_BYTES = 4096
_MB = 1e6


@dataclass(frozen=True, slots=True)
class HourOptions:
    """`units` after the window is full, of which the first `compared` stand against the last."""

    units: int = 600
    compared: int = 100


def measure_hour(
    report: EngineReport,
    made: Made,
    options: HourOptions,
    clock: Clock = SYSTEM_CLOCK,
    gpu_gb: Callable[[], float] | None = None,
) -> None:
    """All rows of `hour`, of one call; `gpu_gb` tells what is taken of the device's memory."""
    gpu_gb = gpu_gb or partial(taken_gb, made.device)
    call = OneCall(made.core, SETTINGS, clock, partial(finish_device, made.device))
    material = Material(camera=False)
    filled = call.fill(material, made.parts.window.low_tokens)
    before_gb, before_mb = gpu_gb(), host_mb()
    units = [call.take(material.unit(filled + index)) for index in range(options.units)]
    after_gb, after_mb = gpu_gb(), host_mb()
    call.end()
    report_hour(report, units, options.compared)
    report.row("hour_host_growth_mb", after_mb - before_mb, "MB")
    if not math.isnan(before_gb):
        growth_mb = (after_gb - before_gb) * 1000
        report.row("hour_memory_growth_mb", growth_mb, "MB", target=GROWTH_MB)
    else:
        report.not_measured("hour_memory_growth_mb", "MB", "there is no GPU")


def report_hour(report: EngineReport, units: list[Taken], compared: int) -> None:
    """The times of the first and the last so many, and what the conversation remembered."""
    # Whole cycles of listening and speaking on both sides, so that alike stands against alike.
    first = statistics.fmean(one.took_ms for one in units[:compared])
    last = statistics.fmean(one.took_ms for one in units[-compared:])
    report.row("hour_units", len(units), "units")
    report.row("hour_unit_first_ms", first, "ms", n=compared)
    report.row("hour_unit_last_ms", last, "ms", n=compared)
    growth = 100 * (last / first - 1)
    report.row("hour_unit_time_growth_percent", growth, "%", target=GROWTH_PERCENT, n=len(units))
    report.row("hour_slowest_ms", max(one.took_ms for one in units), "ms", n=len(units))
    report.row("hour_context_tokens", units[-1].context_tokens, "tokens")


def host_mb() -> float:
    """What this process takes of the host's memory."""
    return int(Path("/proc/self/statm").read_text("utf-8").split()[1]) * _PAGE_BYTES / _MB
