"""What fewer bits bring, as a table in Markdown: `python -m bench.quant_table FILE…`.

The files are runs of `bench.engine unit` (with `--quantisation`, or without) and of `bench.quant`,
as their `--json` printed them. What no file holds stays empty.
"""

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias, get_args

from agent.duplex.quant_choice import Quantisation

Rows: TypeAlias = dict[str, float | None]

_UNIT = (
    ("vram_first_gb", "GPU memory of one call, GB"),
    ("audio_listen_ms", "second heard, ms"),
    ("audio_speak_ms", "spoken"),
    ("omni_listen_ms", "with a picture, heard"),
    ("omni_speak_ms", "spoken"),
)
_LLM = (
    ("llm_gb", "language model, GB"),
    ("decode_ms", "a word, ms"),
    ("logit_error", "error of the logits"),
)


def quant_table(files: Iterable[Path]) -> str:
    """A line for each setting of `model.quantisation`."""
    units, llm = _read(files)
    titles = [title for _, title in (*_UNIT, *_LLM)]
    lines = [f"| `model.quantisation` | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for way in get_args(Quantisation):
        cells = [_cell(units.get(way, {}).get(name)) for name, _ in _UNIT]
        cells += [_cell(llm.get(f"{way}_{name}")) for name, _ in _LLM]
        lines.append(f'| `"{way}"` | {" | ".join(cells)} |')
    return "\n".join(lines)


def _read(files: Iterable[Path]) -> tuple[dict[str, Rows], Rows]:
    """The rows of `bench.engine unit` by setting, and those of `bench.quant`."""
    units: dict[str, Rows] = {}
    llm: Rows = {}
    for file in files:
        head, *rows = [json.loads(line) for line in file.read_text("utf-8").splitlines() if line]
        command, found = str(head["command"]), {row["name"]: row["value"] for row in rows}
        if "bench.quant" in command:
            llm |= found
        elif re.search(r"bench\.engine\b.* unit\b", command):
            asked = re.search(r"--quantisation[ =](\w+)", command)
            units.setdefault(asked[1] if asked else "none", {}).update(found)
    return units, llm


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


if __name__ == "__main__":
    sys.stdout.write(quant_table(Path(name) for name in sys.argv[1:]) + "\n")
