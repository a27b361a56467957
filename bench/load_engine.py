"""What an engine at full load costs the sound of a call: `python -m bench.load --engine-load`.

One call, in which the agent speaks without end and the user is silent. The engine is a stand-in
that never rests, mostly in the interpreter and now and then in numpy, as a loop that launches
kernels is: once in a process of its own, once in a thread of the server's, and once at rest. It
computes on the core of the callers, not on the server's.
"""

from bench.load_server import ENGINE_KINDS, EngineKind
from bench.load_slots import SLOT_S
from bench.load_speech import silent_packets
from bench.load_steps import Ladder, LoadOptions, Step, ladder
from bench.report import Report, Target, at_most

_SPEAKING = 0.9
_LATE_P99_TARGET_MS = 5.0

Measured = dict[EngineKind, Step]


async def measure_engine_load(report: Report, options: LoadOptions) -> None:
    """Print what came of a call beside an engine, in each of the places it can be in."""
    packets = silent_packets()
    steps: Measured = {}
    for kind in ENGINE_KINDS:
        async with ladder(kind, packets, options) as rungs:
            steps[kind] = await _better(rungs)
    mute = [kind for kind, step in steps.items() if step.speaking < _SPEAKING]
    if mute:
        reason = f"the agent did not speak throughout: {', '.join(mute)}"
        report.not_measured("engine_load_late_p99_ms", "ms", reason)
        return
    _report(report, steps, slots=int(options.seconds / SLOT_S))


async def _better(rungs: Ladder) -> Step:
    """Of two, for all alike: whatever else this machine did in those seconds does not count."""
    tries = [await rungs.climb(1), await rungs.climb(1)]
    return min(tries, key=lambda step: step.late.p99_ms)


def _report(report: Report, steps: Measured, slots: int) -> None:
    process, thread = steps["engine_process"], steps["engine_thread"]
    target: Target | None = at_most(_LATE_P99_TARGET_MS)
    for name in ("p50_ms", "p99_ms", "max_ms"):
        report.row(
            f"engine_load_late_{name}",
            getattr(process.late, name),
            "ms",
            against=getattr(thread.late, name),
            target=target if name == "p99_ms" else None,
            n=slots,
        )
    report.row(
        "engine_load_on_time_percent",
        100 * process.late.on_time,
        "%",
        against=100 * thread.late.on_time,
        n=slots,
    )
    for name in ("sent_late_p99_ms", "lag_p99_ms"):
        own = process.inside[name]
        value = float("nan") if own is None else own
        report.row(f"engine_load_{name}", value, "ms", against=thread.inside[name])
    rest = steps["engine_rest"]
    report.row("engine_rest_late_p99_ms", rest.late.p99_ms, "ms", n=slots)
    # A thread's own work on the other core cannot be told from the server's.
    for kind in ("engine_process", "engine_rest"):
        report.row(f"{kind}_others_percent", steps[kind].others_percent, "%")
