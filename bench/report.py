"""How every benchmark prints: first the machine, then a row for each figure.

With `--json` each line is one JSON object: the machine, then rows of `name`, `value`, `unit`,
`against` (the stock path, measured in the same run), `target`, `meets` and `n` (how many
measurements the value is made of). Without it the same as a table.
"""

import argparse
import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TextIO

_LIBRARIES = ("aiortc", "av", "numpy")
_CHROMIUM_PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure should reach."""

    kind: Literal["at_most", "at_least"]
    limit: float

    def met_by(self, value: float) -> bool:
        """Whether `value` is on the right side of the limit, or on it."""
        return value <= self.limit if self.kind == "at_most" else value >= self.limit

    def __str__(self) -> str:
        return f"{'≤' if self.kind == 'at_most' else '≥'} {self.limit:g}"


def at_most(limit: float) -> Target:
    """The smaller the better, but for this it will do."""
    return Target("at_most", limit)


def at_least(limit: float) -> Target:
    """The larger the better, but for this it will do."""
    return Target("at_least", limit)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What all benchmarks understand: `--json`."""
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


class Report:
    """Prints the machine when made, then whatever `row` is given."""

    def __init__(self, *, as_json: bool, out: TextIO | None = None, gpu: str = "") -> None:
        """`gpu` is the name of the GPU that is measured, if there is one."""
        self._as_json = as_json
        self._out = sys.stdout if out is None else out
        self.missed = 0
        """Rows whose target was not met, or that could not be measured."""
        self._print_machine(machine() | ({"gpu": gpu} if gpu else {}))

    def row(
        self,
        name: str,
        value: float,
        unit: str,
        *,
        target: Target | None = None,
        against: float | None = None,
        n: int = 1,
    ) -> None:
        """Print one figure; NaN, of which nothing can be said, is printed as null and missed."""
        known = math.isfinite(value)
        meets = None if target is None else known and target.met_by(value)
        self.missed += meets is False or not known
        self._print_row(
            {
                "name": name,
                "value": _rounded(value),
                "unit": unit,
                "against": None if against is None else _rounded(against),
                "target": None if target is None else target.limit,
                "meets": meets,
                "n": n,
            },
            "" if target is None else str(target),
        )

    def not_measured(self, name: str, unit: str, reason: str) -> None:
        """Print that a figure is missing, and why."""
        self.missed += 1
        if self._as_json:
            row = {"name": name, "value": None, "unit": unit, "against": None, "target": None}
            self._print_json({**row, "meets": None, "reason": reason})
        else:
            self._print(f"{name:32} not measured: {reason}")

    def _print_machine(self, facts: dict[str, object]) -> None:
        if self._as_json:
            self._print_json(facts)
            return
        for name, fact in facts.items():
            self._print(f"# {name}: {fact}")
        heads = ("figure", "value", "unit", "stock", "target", "n")
        self._print("{:32} {:>10} {:8} {:>10} {:>9} {:>5}".format(*heads))

    def _print_row(self, row: dict[str, object], target: str) -> None:
        if self._as_json:
            self._print_json(row)
            return
        value, against = ("—" if row[key] is None else row[key] for key in ("value", "against"))
        verdict = {None: "", True: "met", False: "MISSED"}[row["meets"]]  # type: ignore[index]
        self._print(
            f"{row['name']:32} {value:>10} {row['unit']:8} {against:>10} {target:>9}"
            f" {row['n']:>5} {verdict}".rstrip()
        )

    def _print_json(self, document: dict[str, object]) -> None:
        self._print(json.dumps(document, ensure_ascii=False, allow_nan=False))

    def _print(self, line: str) -> None:
        self._out.write(line + "\n")
        self._out.flush()


def machine() -> dict[str, object]:
    """What the figures were measured on and with."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: _version(name) for name in _LIBRARIES},
        "chromium": _chromium_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _command(),
    }


def _command() -> str:
    """How this process was started, as one would type it."""
    script = Path(sys.argv[0])
    module = sys.modules["__main__"].__spec__
    program = f"python -m {module.name}" if module else script.name
    return " ".join((program, *sys.argv[1:]))


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _chromium_version() -> str | None:
    program = shutil.which("chromium")
    if program is None:
        return None
    try:
        told = subprocess.run(
            [program, "--version"],
            capture_output=True,
            text=True,
            check=False,
            timeout=_CHROMIUM_PATIENCE_S,
        )
    except subprocess.TimeoutExpired:
        return "unknown"
    return told.stdout.strip().removeprefix("Chromium ").split(" ")[0] or None


def _rounded(value: float) -> float | None:
    """Four significant digits: more would be noise."""
    return float(f"{value:.4g}") if math.isfinite(value) else None
