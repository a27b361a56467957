"""What a call costs, and how many one core carries: `python -m bench.load --json`.

A server on one core, callers on another. Three servers one after the other: a stock aiortc peer,
our transport alone, and the whole of `voice-agent serve` with the echo engine, which all say and
hear speech about half of the time. Callers send as a browser does: 50 Opus packets a second,
receiver reports, and to the whole server ten playout reports a second. A frame's lateness is
taken from the kernel's stamp on its arrival, against a grid that the earliest frame of the call
sets; frames left out count as late.

`cpu_…_percent` is the server process' CPU time for each call at eight calls, its idle part
included. Beside `cpu_full_percent` and both `calls_per_core` stands the stock transport, though
that one cancels no echo and finds no speech. On a machine that has other work, `--first` puts
server and callers ahead of it; `…_others_percent` tells how much there was.

`--engine-load` measures something else, and only that: see `bench.load_engine`.
"""

import argparse
import asyncio
import os
import signal
import sys

import aiohttp

from agent.transport.aiortc_inside import offer_addresses
from bench.load_engine import measure_engine_load
from bench.load_server import KINDS, Kind, pin
from bench.load_speech import caller_packets
from bench.load_steps import Ladder, LoadOptions, Step, ladder
from bench.report import Report, Target, add_arguments, at_least, at_most

_STEPS = (1, 4, 8, 12, 16, 20, 24)
_QUICK_STEPS = (4, 8)
_CPU_AT_CALLS = 8
_CPU_TARGETS: dict[Kind, Target] = {"transport": at_most(4), "full": at_most(7)}
_GIVE_UP_AFTER = 2

Climbed = dict[Kind, list[Step]]


async def measure(
    report: Report, kinds: tuple[Kind, ...], steps: tuple[int, ...], options: LoadOptions
) -> None:
    """Print the rows of these servers, those of each rung as they come."""
    offer_addresses(("127.0.0.1",), loopback=True)
    packets = caller_packets()
    climbed: Climbed = {}
    for kind in kinds:
        climbed[kind] = await _climb(report, kind, steps, options, packets)
    for kind in ("transport", "full"):
        if kind in climbed:
            _report_cpu(report, kind, climbed)
    for kind in ("transport", "full"):
        if kind in climbed:
            _report_capacity(report, kind, climbed)


async def _climb(
    report: Report,
    kind: Kind,
    steps: tuple[int, ...],
    options: LoadOptions,
    packets: tuple[bytes, ...],
) -> list[Step]:
    """Up to the second rung in a row that the server does not manage."""
    done: list[Step] = []
    async with ladder(kind, packets, options) as rungs:
        for calls in steps:
            try:
                done.append(await _rung(rungs, calls))
            except (TimeoutError, RuntimeError, aiohttp.ClientError) as error:
                name = f"{kind}_{calls}_calls"
                report.not_measured(name, "", f"the server no longer answers: {error!r}")
                break
            _report_step(report, kind, done[-1])
            if len(done) >= _GIVE_UP_AFTER and not any(
                step.on_time for step in done[-_GIVE_UP_AFTER:]
            ):
                break
    return done


async def _rung(rungs: Ladder, calls: int) -> Step:
    """Once more if it failed: whatever else this machine did in those seconds does not count."""
    step = await rungs.climb(calls)
    if step.on_time and step.valid:
        return step
    return max(step, await rungs.climb(calls), key=lambda step: step.late.on_time)


def _report_step(report: Report, kind: Kind, step: Step) -> None:
    name = f"{kind}_{step.calls}_calls"
    figures = {
        "cpu_percent": step.cpu_percent / step.calls,
        "late_p50_ms": step.late.p50_ms,
        "late_p99_ms": step.late.p99_ms,
        "late_max_ms": step.late.max_ms,
        "on_time_percent": 100 * step.late.on_time,
        **{key: float("nan") if value is None else value for key, value in step.inside.items()},
        "client_late_p99_ms": step.client_late_p99_ms,
        "others_percent": step.others_percent,
        "speaking_percent": 100 * step.speaking,
    }
    for key, value in figures.items():
        unit = "%" if key.endswith("percent") else "ms" if key.endswith("ms") else "1/s"
        report.row(f"{name}_{key}", value, unit)
    if step.errors:
        report.not_measured(f"{name}_errors", "", step.errors[0])


def _report_cpu(report: Report, kind: Kind, climbed: Climbed) -> None:
    report.row(
        f"cpu_{kind}_percent",
        _cost(climbed[kind]),
        "%",
        against=_cost(climbed["stock"]) if "stock" in climbed else None,
        target=_CPU_TARGETS[kind],
    )


def _cost(steps: list[Step]) -> float:
    """Of a core for each call, at eight calls or at the rung next to it."""
    step = min(steps, key=lambda step: abs(step.calls - _CPU_AT_CALLS))
    return step.cpu_percent / step.calls


def _report_capacity(report: Report, kind: Kind, climbed: Climbed) -> None:
    name = "calls_per_core" if kind == "full" else "calls_per_core_transport"
    late = next((step for step in climbed[kind] if not step.valid), None)
    if late is not None and not late.on_time:
        report.not_measured(
            name,
            "calls",
            f"at {late.calls} calls the callers were {late.client_late_p99_ms:.1f} ms"
            " late themselves (99th percentile)",
        )
        return
    against = float(_capacity(climbed["stock"])) if "stock" in climbed else None
    target = at_least(16) if kind == "full" else None
    report.row(name, _capacity(climbed[kind]), "calls", against=against, target=target)


def _capacity(steps: list[Step]) -> int:
    """The highest rung up to which every one was managed; 0 for none."""
    managed = 0
    for step in steps:
        if not step.on_time:
            break
        managed = step.calls
    return managed


def main() -> None:
    """The command line."""
    options = _arguments()
    cores = sorted(os.sched_getaffinity(0))
    report = Report(as_json=options.json)
    if len(cores) < 2:
        report.not_measured("calls_per_core", "calls", "server and callers need a core each")
        sys.exit(1)
    pin(cores[1], first=options.first)
    if options.first:
        # The callers take little time but must be punctual. The server does not inherit that.
        ahead = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, ahead, os.sched_param(1))
    load_options = LoadOptions(
        server_core=cores[0],
        client_core=cores[1],
        warm_up_s=2.0 if options.quick else 4.0,
        seconds=options.seconds or (5.0 if options.quick else 12.0),
        first=options.first,
        loop=options.loop,
    )
    kinds = tuple(options.only) if options.only else KINDS
    steps = tuple(options.steps) if options.steps else _QUICK_STEPS if options.quick else _STEPS
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if options.engine_load:
        offer_addresses(("127.0.0.1",), loopback=True)
        asyncio.run(measure_engine_load(report, load_options))
    else:
        asyncio.run(measure(report, kinds, steps, load_options))
    sys.exit(1 if report.missed else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--only", nargs="+", choices=KINDS, help="these servers alone")
    parser.add_argument("--steps", nargs="+", type=int, metavar="CALLS", help="calls at a time")
    parser.add_argument(
        "--engine-load", action="store_true", help="one call beside an engine that never rests"
    )
    parser.add_argument("--seconds", type=float, help="how long each number of calls is measured")
    parser.add_argument("--quick", action="store_true", help="4 and 8 calls, 5 s each")
    parser.add_argument(
        "--first", action="store_true", help="run ahead of other programs (needs root)"
    )
    parser.add_argument(
        "--loop",
        choices=("auto", "asyncio", "uvloop"),
        default="auto",
        help="the server's event loop; by default asyncio for stock, uvloop for ours",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
