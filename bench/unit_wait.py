"""How long an answer waits for its unit: `python -m bench.unit_wait --json [--calls 12]`.

The model decides once a second. Here people speak to it, in phrases with pauses between them (see
`bench.unit_wait_talk`), through the real front end and the session's policy, once with early units
(`session.early_units`) and once, `against`, without. What the engine computes is not part of it:
it takes 60 ms for a unit, and knows when the user has finished. Those of another run, `hasty_…`,
does not: it answers every pause.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, pairwise
from multiprocessing import get_context
from typing import TypeAlias

import numpy as np

from agent.config import Config
from agent.media.early_unit import EarlyUnitRules
from agent.media.vad import SileroModel
from agent.types import FloatArray
from bench.report import Report, add_arguments, at_most
from bench.unit_wait_call import Measured, WaitCall
from bench.unit_wait_talk import Talker

_UTTERANCES_A_CALL = 10
_WORKERS = 2
_BANDS = 24
_Waits: TypeAlias = Callable[[Measured], list[float]]


@dataclass(frozen=True, slots=True)
class _Job:
    seed: int
    number: int
    early: bool
    is_hasty: bool
    eagerness: float
    silence_ms: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print; 1 when a target was missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.unit_wait", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--seed", type=int, default=1, help="of everything that is drawn")
    parser.add_argument("--calls", type=int, default=12, help="of ten utterances each")
    parser.add_argument("--eagerness", type=float, default=Config().session.eagerness)
    parser.add_argument("--silence-ms", type=int, default=EarlyUnitRules().silence_ms)
    parser.add_argument("--workers", type=int, default=min(_WORKERS, os.cpu_count() or 1))
    options = parser.parse_args(arguments)
    report = Report(as_json=options.json)
    _print(report, *_run(options))
    return 1 if report.missed else 0


def _run(options: argparse.Namespace) -> list[list[Measured]]:
    """The calls with early units, without, and both with the hasty model."""
    kinds = [(early, is_hasty) for is_hasty in (False, True) for early in (True, False)]
    jobs = [
        _Job(options.seed, number, *kind, options.eagerness, options.silence_ms)
        for kind in kinds
        for number in range(options.calls)
    ]
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        measured = list(pool.map(_carry_out, jobs))
    return [measured[at : at + options.calls] for at in range(0, len(jobs), options.calls)]


def _carry_out(job: _Job) -> Measured:
    settings = Config().session_settings("bench")
    settings = replace(settings, early_units=job.early, eagerness=job.eagerness)
    talker = Talker(job.seed, job.number)
    rules = EarlyUnitRules(silence_ms=job.silence_ms)
    call = WaitCall(talker, _model(), settings, rules, is_hasty=job.is_hasty)
    return call.run(talker.utterances(_UTTERANCES_A_CALL))


@lru_cache(maxsize=1)
def _model() -> SileroModel:
    return SileroModel()


# ---- rows -------------------------------------------------------------------------------------


def _print(
    report: Report,
    early: list[Measured],
    late: list[Measured],
    hasty: list[Measured],
    hasty_late: list[Measured],
) -> None:
    _print_waits(report, early, late)
    tries = _sum(early, lambda one: one.tries)
    retracted = _sum(early, lambda one: one.retracted)
    report.row("tries_per_min", _per_minute(early, lambda one: one.tries), "", n=tries)
    report.row("retracted_share", retracted / tries, "", n=tries)
    units, before = (_per_minute(calls, lambda one: one.units) for calls in (early, late))
    report.row("units_per_min", units, "", against=before, n=len(early))
    report.row("extra_units_per_min", units - before, "", n=len(early))
    _print_hasty(report, hasty, hasty_late)
    _print_guesses(report, early)


def _print_waits(report: Report, early: list[Measured], late: list[Measured]) -> None:
    """From the user's last sound to the unit that holds it, and to the first of the answer."""
    kinds: tuple[tuple[str, _Waits, tuple[float, float]], ...] = (
        ("wait_ms", lambda one: one.waits_ms, (350.0, 500.0)),
        ("answer_ms", lambda one: one.answers_ms, (900.0, 1050.0)),
    )
    for name, waits, targets in kinds:
        mine, theirs = (list(chain.from_iterable(map(waits, calls))) for calls in (early, late))
        for share, target in zip((50, 95), targets, strict=True):
            value, against = (float(np.percentile(some, share)) for some in (mine, theirs))
            report.row(
                f"{name}_p{share}",
                value,
                "ms",
                target=at_most(target),
                against=against,
                n=len(mine),
            )


def _print_hasty(report: Report, early: list[Measured], late: list[Measured]) -> None:
    """In how many pauses inside an utterance a model that answers them all is heard."""
    pauses = _sum(early, lambda one: one.pauses)
    mine, theirs = (
        _sum(calls, lambda one: one.cut_in) / _sum(calls, lambda one: one.pauses)
        for calls in (early, late)
    )
    report.row("hasty_cut_in_share", mine, "", against=theirs, n=pauses)
    tries = _sum(early, lambda one: one.tries)
    retracted = _sum(early, lambda one: one.retracted)
    report.row("hasty_retracted_share", retracted / tries, "", n=tries)


def _print_guesses(report: Report, early: list[Measured]) -> None:
    """How unlike the silence that came the one was that was guessed; `against` zeros."""
    pairs = [pair for one in early for pair in one.guesses]
    mine = float(np.median([_unlike_db(guess, real) for guess, real in pairs]))
    zeros = float(np.median([_unlike_db(np.zeros_like(guess), real) for guess, real in pairs]))
    report.row("guessed_silence_error_db", mine, "dB", against=zeros, n=len(pairs))


def _unlike_db(guess: FloatArray, real: FloatArray) -> float:
    """Mean difference of their levels over bands of equal ratio, as mel spectra are compared."""
    ours, theirs = _bands_db(guess), _bands_db(real)
    return float(np.abs(ours - theirs).mean())


def _bands_db(samples: FloatArray) -> FloatArray:
    power = np.abs(np.fft.rfft(samples)) ** 2 / len(samples)
    edges = np.geomspace(0.01, 1.0, _BANDS + 1) * (len(power) - 1)
    bands = [power[int(a) : max(int(a) + 1, int(b))].mean() for a, b in pairwise(edges)]
    # As quiet as a microphone gets.
    return np.asarray(10 * np.log10(np.maximum(bands, 1e-10)), np.float32)


def _sum(calls: list[Measured], count: Callable[[Measured], int]) -> int:
    return sum(map(count, calls))


def _per_minute(calls: list[Measured], count: Callable[[Measured], int]) -> float:
    return _sum(calls, count) / (_sum(calls, lambda one: one.frames) / 6000)


if __name__ == "__main__":
    sys.exit(main())
