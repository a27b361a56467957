"""The rows of `bench.engine`, to be read again."""

import io
import json
from contextlib import redirect_stdout
from typing import Any

from bench.engine_report import EngineReport


class Rows:
    """A report whose rows are read."""

    def __init__(self) -> None:
        self.out = io.StringIO()
        with redirect_stdout(self.out):
            self.report = EngineReport(as_json=True)

    def read(self) -> dict[str, dict[str, Any]]:
        _, *rows = [json.loads(line) for line in self.out.getvalue().splitlines()]
        return {row["name"]: row for row in rows}

    @property
    def values(self) -> dict[str, float]:
        return {name: row["value"] for name, row in self.read().items()}
