"""Where the rows of `bench.engine` go: to stdout, and as JSON to the end of a file.

Every row is written out as soon as it is known, so a run that is cut off has left what it found.
"""

from pathlib import Path
from typing import TextIO

import torch

from agent.fleet.unit_times import percentile
from bench.report import Report, Target, at_most

TAIL = 1.3
"""So many times the median the 95th percentile may be."""


class EngineReport:
    """A `Report` that may be kept in a file as well; a context, in which the file is open."""

    def __init__(self, *, as_json: bool, keep: Path | None = None, gpu: str = "") -> None:
        self._file: TextIO | None = None
        self._reports = [Report(as_json=as_json, gpu=gpu)]
        if keep is not None:
            keep.parent.mkdir(parents=True, exist_ok=True)
            self._file = keep.open("a", encoding="utf-8")
            self._reports.append(Report(as_json=True, out=self._file, gpu=gpu))

    def __enter__(self) -> "EngineReport":
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def missed(self) -> int:
        """Rows whose target was not met, or that could not be measured."""
        return self._reports[0].missed

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
        """As `Report.row`."""
        for report in self._reports:
            report.row(name, value, unit, target=target, against=against, n=n)

    def not_measured(self, name: str, unit: str, reason: str) -> None:
        """As `Report.not_measured`."""
        for report in self._reports:
            report.not_measured(name, unit, reason)

    def spread(
        self,
        name: str,
        took_ms: list[float],
        *,
        target: Target | None = None,
        against: float | None = None,
    ) -> None:
        """The median as `<name>_ms`, and the percentiles beside it; the tail is to be short where
        the median has a target."""
        ordered, n = sorted(took_ms), len(took_ms)
        median = percentile(ordered, 0.5)
        self.row(f"{name}_ms", median, "ms", target=target, against=against, n=n)
        tail = at_most(round(TAIL * median, 1)) if target is not None and ordered else None
        self.row(f"{name}_p95_ms", percentile(ordered, 0.95), "ms", target=tail, n=n)
        self.row(f"{name}_p99_ms", percentile(ordered, 0.99), "ms", n=n)


def gpu_name(device: torch.device) -> str:
    """What the machine's line says of it; empty for a CPU."""
    if device.type != "cuda":
        return ""
    return f"{torch.cuda.get_device_name(device)} (torch {torch.__version__})"
