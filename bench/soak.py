"""One call of many hours on the tiny model: `python -m bench.soak --json [--hours 9]`.

Units as fast as the CPU takes them, turns of three units between them, the window at work; what
a conversation remembers must not grow. The first half hour does not count: in it all fills up.
"""

import argparse
import itertools
import resource
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from agent.types import UNIT_SAMPLES, TurnStarted, Unit
from bench.report import Report, add_arguments, at_most
from tests.rig.scripted_call import Driven
from tests.rig.tiny_mind import LISTEN, says

_HOUR_UNITS = 3600
_FILLING_UNITS = _HOUR_UNITS // 2
_MOST_GROWTH_MB = 32
_SOUND_UNITS = 7


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print; 1 when a target was missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--hours", type=float, default=9.0, help="more than the half that fills")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    report = Report(as_json=options.json)
    _soak(report, int(options.hours * _HOUR_UNITS))
    return 1 if report.missed else 0


class _Pattern(Iterator[int]):
    """Two units of listening, then a turn of three, for ever."""

    def __init__(self) -> None:
        units = [LISTEN, LISTEN, says("ab"), says("cd"), says("e", ends=True)]
        self._tokens = itertools.cycle([token for unit in units for token in unit])

    def __next__(self) -> int:
        return next(self._tokens)


def _soak(report: Report, units: int) -> None:
    call = Driven(script=_Pattern())
    noise = np.random.default_rng(0).standard_normal(_SOUND_UNITS * UNIT_SAMPLES) * 0.1
    sound = noise.astype(np.float32).reshape(_SOUND_UNITS, UNIT_SAMPLES)
    turns, full_mb, most_tokens = 0, 0.0, 0
    for index in range(units):
        call.call.push(Unit(index, sound[index % _SOUND_UNITS], UNIT_SAMPLES))
        turns += sum(isinstance(event, TurnStarted) for event in call.work())
        most_tokens = max(most_tokens, call.context_tokens)
        if index == _FILLING_UNITS:
            full_mb = _peak_mb()
    report.row("soak_units", units, "units", n=units)
    report.row("soak_turns", turns, "turns", n=units)
    report.row("soak_context_tokens", most_tokens, "tokens", target=at_most(1024), n=units)
    grown_mb = _peak_mb() - full_mb
    report.row("soak_growth_mb", grown_mb, "MB", target=at_most(_MOST_GROWTH_MB), n=units)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(main())
