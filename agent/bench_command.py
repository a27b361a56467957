"""`voice-agent bench`: how many calls this machine holds at once, in one plain sentence.

The engine is started as `serve` starts it, with the same settings, and gets calls that nobody
makes. What goes on is told on stderr, the sentence (or with `--json` one document) on stdout.
"""

import argparse
import asyncio
import importlib
import json
import logging
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from agent.clock import SYSTEM_CLOCK, Clock

if TYPE_CHECKING:
    from agent.config import Config
    from agent.fleet.capacity import Capacity, Effort, LoadResult
    from agent.interfaces import Engine
    from agent.types import SessionSettings

_LEAST_SECONDS = 30.0
"""Two loads, and one of them again for longer."""
_MOST_SECONDS = 3600.0
_SPOKEN = 0.35
"""Half of the units are to be spoken; fewer than that are worth a word."""


def add_to(commands: Any, add_settings: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add the subcommand to argparse's `commands`; `add_settings` adds --config and --set."""
    words = "find out how many calls this machine holds at once"
    bench = commands.add_parser("bench", help=words, description=f"{words.capitalize()}.")
    bench.add_argument("--engine", metavar="NAME", help="what answers (engine.name)")
    bench.add_argument(
        "--model",
        metavar="PATH_OR_ID",
        help="the checkpoint: a folder or owner/name (model.source)",
    )
    bench.add_argument("--camera", action="store_true", help="also with a camera in every call")
    bench.add_argument(
        "--seconds",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="how long to try, and as long again with a camera: "
        f"{_LEAST_SECONDS:g} to {_MOST_SECONDS:g} (60)",
    )
    bench.add_argument("--json", action="store_true", help="print one JSON document")
    add_settings(bench)
    bench.set_defaults(command=_run)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not _LEAST_SECONDS <= seconds <= _MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"from {_LEAST_SECONDS:g} to {_MOST_SECONDS:g} seconds")
    return seconds


def _run(arguments: argparse.Namespace) -> int:
    from agent.config import load_config
    from agent.fleet.capacity import Effort

    overrides = list(arguments.set)
    for key, value in (("engine.name", arguments.engine), ("model.source", arguments.model)):
        if value is not None:
            overrides.append(f"{key}={value}")
    config = load_config(arguments.config, os.environ, overrides)
    shown = logging.DEBUG if config.logging.level == "debug" else logging.ERROR
    logging.basicConfig(level=shown, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    found = asyncio.run(_found(config, Effort(arguments.seconds), camera=arguments.camera))
    sys.stdout.write((as_json(found) if arguments.json else sentence(found)) + "\n")
    return 0


# ---- measuring --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Findings:
    """What came of it; `camera` is None where nobody asked."""

    engine: str
    places: str
    """The setting that says how many calls there is room for."""
    has_model: bool
    speaks: bool
    voice: "Capacity"
    camera: "Capacity | None" = None


async def _found(config: "Config", effort: "Effort", *, camera: bool) -> Findings:
    started = await importlib.import_module("agent.api.loading").start(config)
    engine: Engine = started.engine
    try:
        return await measure(engine, config.session_settings(engine.name), effort, camera=camera)
    finally:
        await engine.close()


async def measure(
    engine: "Engine",
    settings: "SessionSettings",
    effort: "Effort",
    *,
    camera: bool,
    clock: Clock = SYSTEM_CLOCK,
) -> Findings:
    """Calls with voice, and then as many with a camera, on an engine that nobody else uses."""
    from agent import engines
    from agent.fleet.capacity import measure_capacity

    settings = replace(settings, mode="duplex", output_modalities=("audio",))
    found = [
        await measure_capacity(
            engine, settings, effort, camera=sees, on_load=partial(_tell, kind=kind), clock=clock
        )
        for sees, kind in ((False, "with voice"), (True, "with a camera"))[: 1 + camera]
    ]
    has_model = engines.needs_worker(engine.name)
    places = "model.slots" if has_model else "calls.max_calls"
    return Findings(engine.name, places, has_model, engine.abilities.speech, *found)


def _tell(load: "LoadResult", kind: str) -> None:
    verdict = "in time" if load.held else "a call failed" if load.failed else "too late"
    if load.times.unseen and not load.times.late:
        verdict = "pictures were left out"
    slowest = _seconds_said(load.times.latency_s(1.0))
    sys.stderr.write(f"{_calls(load.calls)} {kind}: the slowest unit took {slowest}, {verdict}\n")
    sys.stderr.flush()


# ---- words ------------------------------------------------------------------------------------


def sentence(found: Findings) -> str:
    """What is to be known of it, in plain words."""
    best = found.voice.best
    if not best.calls:
        return f"This machine holds no call: {_too_slow(found.voice)}."
    also = ""
    if found.camera is not None:
        seen = found.camera.best.calls
        also = f", or {seen} with a camera," if seen else ", but none with a camera,"
    took, slowest = best.times.latency_s(0.5), best.times.latency_s(1.0)
    said = (
        f"This machine holds {_calls(best.calls)} with voice{also} at once; a unit took "
        f"{_seconds_said(took)} of its second at that load, the slowest {_seconds_said(slowest)}."
    )
    return " ".join((said, *_remarks(found)))


def _too_slow(found: "Capacity") -> str:
    if found.why == "refused":
        return "the engine takes none"
    if found.why == "failed":
        return "the first one failed, and the log says why"
    if not math.isfinite(found.quickest_s):
        return "a unit was not done in the time that there was, and it has one second"
    if found.quickest_s > 1:
        return f"a unit takes {_seconds_said(found.quickest_s)}, and it has one second"
    return "not every unit of a single one is done within its second"


def _remarks(found: Findings) -> list[str]:
    """What makes of the figure less, or more, than it seems."""
    places = f"{found.places} allows no more: set it higher to find out more."
    of_why = {
        "places": places,
        "refused": "More were refused by the engine itself.",
        "failed": "With more a call failed; the log says why.",
        "time": "There was no time to try more; --seconds gives it.",
    }
    remarks = [of_why[found.voice.why]] if found.voice.why in of_why else []
    share = found.voice.best.spoken_share
    if not found.has_model:
        remarks.append(
            f"The engine {found.engine} has no model: what limits it is the processor that carries "
            "the calls' sound, and that was not measured here."
        )
    elif not found.speaks:
        remarks.append("It answered in captions: with a voice it holds fewer.")
    elif share < _SPOKEN:
        remarks.append(f"The agent spoke in {share:.0%} of the units; more speech takes more.")
    return remarks


def _calls(count: int) -> str:
    return f"{count} call" if count == 1 else f"{count} calls"


def _seconds_said(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "more than there was"
    if seconds < 0.01:
        return "less than 0.01 s"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2f} s"


def as_json(found: Findings) -> str:
    """One document; what is not known is null, times are in milliseconds."""
    document = {
        "engine": found.engine,
        "sentence": sentence(found),
        "voice": _facts(found.voice),
        "camera": None if found.camera is None else _facts(found.camera),
    }
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)


def _facts(found: "Capacity") -> dict[str, object]:
    return {
        "calls": found.best.calls,
        "why": found.why,
        "quickest_ms": _ms(found.quickest_s),
        **_load_facts(found.best),
        "loads": [_load_facts(load) for load in found.loads],
    }


def _load_facts(load: "LoadResult") -> dict[str, object]:
    times, shares = load.times, {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {
        "calls": load.calls,
        "held": load.held,
        "units": times.units,
        "late": times.late,
        "unseen": times.unseen,
        "spoken_percent": _ms(load.spoken_share / 10),
        **{f"{name}_ms": _ms(times.latency_s(share)) for name, share in shares.items()},
    }


def _ms(seconds: float) -> float | None:
    return round(seconds * 1000, 1) if math.isfinite(seconds) else None
