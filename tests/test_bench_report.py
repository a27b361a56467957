"""Benchmarks print rows that a program and a person can read."""

import io
import json
import math
from pathlib import Path

import pytest

from bench.report import Report, at_least, at_most
from bench.table import table


def _rows(out: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_the_first_line_describes_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/x/echo.py", "--json"])
    out = io.StringIO()
    Report(as_json=True, out=out)
    (machine,) = _rows(out)
    assert {"cpu", "cores", "load_average", "python", "aiortc", "av", "chromium", "date"} <= set(
        machine
    )
    assert str(machine["command"]).endswith(" --json")


def test_a_row_holds_the_figure_its_target_and_what_it_is_compared_with() -> None:
    out = io.StringIO()
    Report(as_json=True, out=out).row(
        "uplink_p50_ms", 22.04321, "ms", target=at_most(30), against=92.0, n=20
    )
    assert _rows(out)[1] == {
        "name": "uplink_p50_ms",
        "value": 22.04,
        "unit": "ms",
        "against": 92.0,
        "target": 30,
        "meets": True,
        "n": 20,
    }


@pytest.mark.parametrize(
    ("target", "value", "meets"),
    [
        (at_most(30), 30.0, True),
        (at_most(30), 30.1, False),
        (at_least(0.995), 0.995, True),
        (at_least(0.995), 0.9, False),
        (at_most(30), math.nan, False),
    ],
)
def test_targets_are_met_from_the_right_side(target: object, value: float, meets: bool) -> None:
    out = io.StringIO()
    report = Report(as_json=True, out=out)
    report.row("figure", value, "ms", target=target)  # type: ignore[arg-type]
    assert _rows(out)[1]["meets"] is meets
    assert report.missed == (not meets)


def test_what_has_no_target_meets_none_and_what_was_not_measured_says_why() -> None:
    out = io.StringIO()
    report = Report(as_json=True, out=out)
    report.row("figure", 1.0, "ms")
    report.not_measured("other", "ms", "no Chromium")
    _, row, missing = _rows(out)
    assert row["meets"] is None and row["target"] is None and row["against"] is None
    assert missing["value"] is None and missing["reason"] == "no Chromium"


def test_without_json_it_is_a_table() -> None:
    out = io.StringIO()
    report = Report(as_json=False, out=out)
    report.row("flush_p95_ms", 89.0, "ms", target=at_most(100), against=297.0, n=8)
    report.row("downlink_p95_ms", 80.0, "ms", target=at_most(70))
    met, missed = out.getvalue().splitlines()[-2:]
    assert met.split() == ["flush_p95_ms", "89.0", "ms", "297.0", "≤", "100", "8", "met"]
    assert missed.endswith("MISSED")


def test_a_table_has_what_was_aimed_at_or_everything_where_nothing_was(tmp_path: Path) -> None:
    def kept(name: str, *rows: tuple[float, float | None]) -> Path:
        out = io.StringIO()
        report = Report(as_json=True, out=out)
        for number, (value, limit) in enumerate(rows):
            aim = None if limit is None else at_most(limit)
            report.row(f"{name}_{number}_ms", value, "ms", target=aim, against=5.0)
        (tmp_path / name).write_text(out.getvalue(), "utf-8")
        return tmp_path / name

    aimed = table([kept("aimed", (1.0, 2.0), (3.0, 2.0), (4.0, None))]).splitlines()
    assert aimed[-2:] == [
        "| `aimed_0_ms` | 1 ms | 5 | ≤ 2 |  |",
        "| `aimed_1_ms` | 3 ms | 5 | ≤ 2 | missed |",
    ]
    assert table([kept("free", (4.0, None))]).splitlines()[-1] == "| `free_0_ms` | 4 ms | 5 |  |  |"
