"""The engine at full size with random weights: `python -m bench.engine unit load hour --json`.

Needs torch, transformers and numpy, and a GPU. Whether a call listens or speaks, and what a chat
answers, is written beforehand; all else is as it is served. Names of what is to be measured follow
one another, and what they share is loaded once:

    floor   what the device itself allows
    unit    one call alone: each stage, a turn's first sound, memory
    memory  what each further call takes of the GPU
    agree   how near lanes and plain modules are to each other, over 60 units
    hour    600 units behind a full window
    load    --sessions calls of --mode for --seconds
    sweep   how many calls are held for two minutes, of --mode audio, omni or both
    side    a decision of the tools' side channel --beside so many calls, and what it costs them
    start   from nothing until ready, 19 GB of weights on a warm disk: with the kernels to be built,
            and with them built

Rows go to stdout, and with `--out FILE` to the end of that file, each as soon as it is known.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from agent.clock import SYSTEM_CLOCK
from agent.duplex.config import Numerics
from bench.engine_agree import UNITS, measure_agreement
from bench.engine_floor import measure_floor
from bench.engine_hour import HourOptions, measure_hour
from bench.engine_load import LEVELS, LoadBench, LoadOptions
from bench.engine_memory import measure_memory
from bench.engine_parts import Bed, Made, Wanted, make_bed, make_engine, taken_gb
from bench.engine_report import EngineReport, gpu_name
from bench.engine_side import BESIDE, FREE_SLOTS, SideBench, SideOptions
from bench.engine_start import kernels_in, measure_start, prepare_start
from bench.engine_trace import Trace
from bench.engine_unit import MODES, SPEAK, Mode, UnitOptions, measure_units
from bench.report import add_arguments

_WINDOW = 8192
_LOAD_WINDOW = 2048


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print; 1 when a target was missed, 2 without a GPU."""
    options = _arguments(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.stderr.write("bench.engine: torch finds no GPU; --tiny tries everything out here\n")
        return 2
    device = torch.device(options.device)
    with ExitStack() as stack:
        report = EngineReport(as_json=options.json, keep=options.out, gpu=gpu_name(device))
        stack.enter_context(report)
        folder = stack.enter_context(_folder(options.work))
        run = _Run(report, options, device, folder)
        for name in options.measure:
            began_s = SYSTEM_CLOCK.now_s()
            run.does[name]()
            report.row(f"{name}_took_s", SYSTEM_CLOCK.now_s() - began_s, "s")
        return 1 if report.missed else 0


@contextmanager
def _folder(named: Path | None) -> Iterator[Path]:
    """Where what is measured is written: some 2 GB, for `start` 20 GB."""
    if named is not None:
        named.mkdir(parents=True, exist_ok=True)
        yield named
        return
    with tempfile.TemporaryDirectory(prefix="bench-engine-") as made:
        yield Path(made)


@dataclass
class _Run:
    """What the measurements share: weights, and the engine that is loaded with many calls."""

    report: EngineReport
    options: argparse.Namespace
    device: torch.device
    folder: Path

    @property
    def does(self) -> dict[str, Callable[[], None]]:
        """What is behind each name."""
        return {
            "floor": self.floor,
            "unit": self.unit,
            "memory": self.memory,
            "agree": self.agree,
            "hour": self.hour,
            "load": self.load,
            "sweep": self.sweep,
            "side": self.side,
            "start": self.start,
        }

    @cached_property
    def bed(self) -> Bed:
        """Loaded when it is first needed."""
        began_s = SYSTEM_CLOCK.now_s()
        numerics = Numerics(quantisation=self.options.quantisation)
        bed = make_bed(self.device, self.folder, numerics, tiny=self.options.tiny)
        bed = replace(bed, graphs=not self.options.no_graphs)
        self.report.row("bed_s", SYSTEM_CLOCK.now_s() - began_s, "s")
        self._taken("bed")
        return bed

    @cached_property
    def trace(self) -> Trace | None:
        """Notes of the engine with one place, if they are wanted."""
        return Trace() if self.options.trace is not None else None

    @cached_property
    def single(self) -> Made:
        """With one place, and a window as it is served."""
        window = _LOAD_WINDOW if self.options.tiny else _WINDOW
        return self._made("single", Wanted(1, window, SPEAK), self.trace)

    @cached_property
    def loaded(self) -> Made:
        """With as many places as any load has calls, and chats beside them."""
        asked = [self.options.sessions] if "load" in self.options.measure else []
        levels = self.options.levels if "sweep" in self.options.measure else []
        beside = self.options.beside if "side" in self.options.measure else []
        slots = max(1, *asked, *levels, *(calls + FREE_SLOTS for calls in beside))
        return self._made("loaded", Wanted(slots, _LOAD_WINDOW, self.options.speak))

    def _made(self, name: str, wanted: Wanted, trace: Trace | None = None) -> Made:
        bed, began_s = self.bed, SYSTEM_CLOCK.now_s()
        made = make_engine(bed, wanted, trace=trace)
        self.report.row(f"{name}_engine_s", SYSTEM_CLOCK.now_s() - began_s, "s")
        self.report.row(f"{name}_slots", wanted.slots, "calls")
        self._taken(name)
        return made

    def _taken(self, name: str) -> None:
        """What is taken of a GPU's memory by now, the driver's own part included."""
        if self.device.type == "cuda":
            self.report.row(f"{name}_gb", taken_gb(self.device), "GB")

    def floor(self) -> None:
        measure_floor(self.report, self.device, small=self.options.tiny)

    def unit(self) -> None:
        asked = self.options
        options = UnitOptions(asked.cycles, asked.eager_cycles, self.trace, asked.trace)
        measure_units(self.report, self.single, options)

    def memory(self) -> None:
        measure_memory(self.report, self.single)

    def agree(self) -> None:
        measure_agreement(self.report, self.single, min(UNITS, self.options.units))

    def hour(self) -> None:
        compared = min(100, self.options.units // 2)
        options = HourOptions(self.options.units, compared)
        measure_hour(self.report, self.single.renewed(), options)

    def load(self) -> None:
        for mode in self._modes():
            bench = LoadBench(self.report, self.loaded, mode)
            wait = LoadOptions(self.options.settle)
            asyncio.run(bench.load(self.options.sessions, wait, self.options.seconds))
            bench.end()

    def sweep(self) -> None:
        options = LoadOptions(self.options.settle, self.options.step, self.options.confirm)
        for mode in self._modes():
            bench = LoadBench(self.report, self.loaded, mode)
            asyncio.run(bench.sweep(self.options.levels, options))

    def side(self) -> None:
        bench = SideBench(self.report, self.loaded.renewed())
        options = SideOptions(self.options.settle, self.options.decide)
        asyncio.run(bench.measure(self.options.beside, options))

    def start(self) -> None:
        slots, tiny = self.options.slots, self.options.tiny
        settings = prepare_start(self.report, self.folder, slots, _WINDOW, tiny=tiny)
        folder = self.folder / "model"
        with kernels_in(self.folder / "kernels"):
            for name in ("start_first", "start"):
                asyncio.run(measure_start(self.report, folder, settings, name=name))

    def _modes(self) -> Sequence[Mode]:
        return MODES if self.options.mode == "both" else (self.options.mode,)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.engine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    names = ("floor", "unit", "memory", "agree", "hour", "load", "sweep", "side", "start")
    add = parser.add_argument
    add("measure", nargs="+", choices=names, metavar="WHAT", help=", ".join(names))
    add("--out", type=Path, metavar="FILE", help="append every row to this file, as JSON")
    add("--work", type=Path, metavar="FOLDER", help="write what is measured here, and leave it")
    add("--device", choices=("cuda", "cpu"), help="cuda, with --tiny cpu")
    add("--tiny", action="store_true", help="the tests' model: tries out, measures nothing")
    ways = ("none", "int8", "fp8", "int4")
    add("--no-graphs", action="store_true", help="everything is eager; not of start")
    add("--quantisation", choices=ways, default="none", help="of the LLM; not of start")
    add("--mode", choices=("audio", "omni", "both"), default="both", help="of load and sweep")
    add("--sessions", type=int, default=16, help="of load: calls at once")
    add("--seconds", type=float, default=60.0, help="of load: how long it lasts")
    add("--speak", type=float, default=0.5, help="share of the units that is spoken under load")
    add("--levels", type=int, nargs="+", default=list(LEVELS), help="of sweep: calls at once")
    add("--step", type=float, default=16.0, help="of sweep: seconds of each level")
    add("--settle", type=float, default=4.0, help="seconds before those, which do not count")
    add("--beside", type=int, nargs="+", default=list(BESIDE), help="of side: calls at once")
    add("--decide", type=float, default=28.0, help="of side: seconds with decisions, and without")
    add("--confirm", type=float, default=120.0, help="of sweep: seconds of the highest level")
    add("--cycles", type=int, default=20, help="of unit: five units heard and five spoken, each")
    add("--trace", type=Path, metavar="FILE", help="of unit: what each was made of, as JSON")
    add("--eager-cycles", type=int, default=1, help="of unit: the same without lanes")
    add("--units", type=int, default=600, help="of hour; agree takes no more than 60")
    add("--slots", type=int, default=4, help="of start: places of the engine")
    options = parser.parse_args(arguments)
    options.device = options.device or ("cpu" if options.tiny else "cuda")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
