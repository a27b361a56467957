"""The rows of finished runs as a table in Markdown: `python -m bench.table FILE…`.

A file holds what one benchmark printed with `--json`. Figures without a target are left out, but
of a run that has none with one.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

_HEAD = "| figure | value | stock | target | |\n|---|---|---|---|---|"
_MORE_IS_BETTER = (
    "slots_kept_",
    "erle_4_",
    "erle_after_",
    "erle_100ppm",
    "erle_700ms",
    "yield_rate",
    "backchannel_kept",
    "side_speech_kept",
    "noise_kept",
    "pesq_",
    "calls_per_core",
    "sessions_",
    "agree_same_",
)


def table(files: Iterable[Path]) -> str:
    """A section for each file: the machine and command that it names, then its rows."""
    return "\n\n".join(_section(file) for file in files)


def _section(file: Path) -> str:
    machine, *rows = [json.loads(line) for line in file.read_text("utf-8").splitlines() if line]
    date = str(machine["date"])[:10]
    where = f"one {machine['gpu']}" if "gpu" in machine else ""
    where = where or f"{machine['cores']} cores of {machine['cpu']}"
    said = f"`{machine['command']}`, {date}, {where}:"
    aimed = [row for row in rows if row.get("target") is not None]
    return "\n".join((said, "", _HEAD, *map(_line, aimed or rows)))


def _line(row: dict[str, object]) -> str:
    name = str(row["name"])
    sign = "≥" if name.startswith(_MORE_IS_BETTER) else "≤"
    value, against = ("" if row[key] is None else f"{row[key]:g}" for key in ("value", "against"))
    unit = f" {row['unit']}" if row["unit"] else ""
    target = "" if row["target"] is None else f"{sign} {row['target']:g}"
    verdict = "missed" if row["meets"] is False else ""
    return f"| `{name}` | {value}{unit} | {against} | {target} | {verdict} |"


if __name__ == "__main__":
    sys.stdout.write(table(Path(name) for name in sys.argv[1:]) + "\n")
