"""Prints client × feature as Markdown, from a run made for it: `python -m tests.conformance.table`.

Ends with 1 where something did not work, which the table then shows.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.conformance.travel import TRAVELLERS, Trip, travel
from tests.conformance.verdict import FEATURES, Verdict, is_right, judge


def table(trips: Mapping[str, Trip]) -> tuple[str, bool]:
    """The table with its notes, and whether all was right."""
    notes: list[str] = []
    head = ("Client", *FEATURES)
    rows = [f"| {' | '.join(head)} |", f"|---|{'---|' * len(FEATURES)}"]
    fine = True
    for client, trip in trips.items():
        verdicts = [judge(trip, feature) for feature in FEATURES]
        fine = fine and not any(verdict.fault for verdict in verdicts)
        cells = [_cell(verdict, notes) for verdict in verdicts]
        title = f"{trip.version} ({TRAVELLERS[client].how})"
        rows.append(f"| {' | '.join((title, *cells))} |")
    rows += ["", *(f"{number}. {note}" for number, note in enumerate(notes, 1))]
    return "\n".join(rows).rstrip() + "\n", fine


def _cell(verdict: Verdict, notes: list[str]) -> str:
    word = ("no" if verdict.fault else verdict.word) if verdict.applies else "–"
    note = verdict.fault.replace("\n", " ")[:200] or verdict.note
    if not note:
        return word
    if note not in notes:
        notes.append(note)
    return f"{word} ({notes.index(note) + 1})"


def main(given: Sequence[str] | None = None) -> int:
    """Run the clients, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clients", nargs="*", choices=[[], *TRAVELLERS], help="default: all")
    chosen = parser.parse_args(given).clients or list(TRAVELLERS)
    with tempfile.TemporaryDirectory() as folder:
        text, fine = table(travel(chosen, Path(folder), is_right))
    sys.stdout.write(text)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
