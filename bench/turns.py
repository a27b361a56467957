"""Turn taking in simulated calls: `python -m bench.turns --json [--seed N] [--events 500]`.

Interruptions, backchannels, side speech and noises, equally many of each, happen while the agent
speaks, over simulated rooms and networks and the real canceller, detector, policy and playout.
All of it is synthetic and drawn from the seed. `against` is the policy that this one replaced, on
the same events: whatever the detector calls speech silences the agent for good.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context

import numpy as np

from agent.config import Config
from agent.media.barge_in import BargeIn, BargeInRules
from agent.media.echo_canceller import Aec3
from agent.media.front_end import FrontEnd
from agent.media.units import UnitBuilder
from agent.media.vad import SileroModel, SileroVad
from bench.report import Report, add_arguments, at_least, at_most
from bench.turns_call import Call
from bench.turns_scenes import (
    BACKCHANNEL,
    INTERRUPTION,
    KINDS,
    NOISE,
    SIDE_SPEECH,
    draw_scene,
    has_clean_link,
)
from bench.turns_score import CallScore, Verdict, score

_SOUNDS_A_CALL = 12
_WORKERS = 2
_RATES = (
    ("yield_rate", INTERRUPTION, 0.99),
    ("backchannel_kept", BACKCHANNEL, 0.90),
    ("side_speech_kept", SIDE_SPEECH, 0.62),
    ("noise_kept", NOISE, 0.58),
)
_LATENCIES = ((8.0, "8db", (250.0, 400.0)), (2.0, "2db", (300.0, None)))
"""Level over the echo; targets for the median and the 95th of a hundred."""
_LEVEL_TOLERANCE_DB = 1.5


@dataclass(frozen=True, slots=True)
class _Job:
    seed: int
    number: int
    sounds: int
    coded: bool
    one_step: bool
    eagerness: float
    headphones: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print; 1 when a target was missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.turns", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--seed", type=int, default=1, help="of everything that is drawn")
    parser.add_argument("--events", type=int, default=504, help="how many, at least")
    parser.add_argument("--headphones", action="store_true", help="nothing of it comes back")
    parser.add_argument("--eagerness", type=float, default=Config().barge_in.eagerness)
    parser.add_argument("--workers", type=int, default=min(_WORKERS, os.cpu_count() or 1))
    options = parser.parse_args(arguments)
    report = Report(as_json=options.json)
    ours, theirs = _run(options)
    _print(report, ours, theirs)
    return 1 if report.missed else 0


def _run(options: argparse.Namespace) -> tuple[list[CallScore], list[CallScore]]:
    """All calls with the agent's policy, and again with the one that it replaced."""
    calls = -(-options.events // _SOUNDS_A_CALL)
    jobs = [
        _Job(
            options.seed,
            number,
            _SOUNDS_A_CALL,
            number % 4 == 3,
            one_step,
            options.eagerness,
            options.headphones,
        )
        for one_step in (False, True)
        for number in range(calls)
    ]
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        scores = list(pool.map(_carry_out, jobs))
    return scores[:calls], scores[calls:]


def _carry_out(job: _Job) -> CallScore:
    scene = draw_scene(
        job.seed,
        job.number,
        sounds=job.sounds,
        coded=job.coded,
        one_step=job.one_step,
        headphones=job.headphones,
    )
    rules = BargeInRules(**{**Config().barge_in.model_dump(), "eagerness": job.eagerness})
    front_end = FrontEnd(Aec3(), SileroVad(_model()), UnitBuilder(), BargeIn(rules))
    record = Call(scene, front_end).run()
    return score(record, clean_link=has_clean_link(job.number), coded=job.coded)


@lru_cache(maxsize=1)
def _model() -> SileroModel:
    return SileroModel()


# ---- rows -------------------------------------------------------------------------------------


def _print(report: Report, ours: list[CallScore], theirs: list[CallScore]) -> None:
    verdicts, before = ([v for call in calls for v in call.verdicts] for calls in (ours, theirs))
    for name, kind, limit in _RATES:
        mine = _of_kind(verdicts, kind)
        value, against = (_share(_of_kind(all_, kind), _right) for all_ in (verdicts, before))
        report.row(name, value, "", target=at_least(limit), against=against, n=len(mine))
    _print_words(report, ours)
    _print_latencies(report, verdicts, before)
    _print_gaps(report, verdicts)
    _print_quiet(report, ours, theirs)
    for kind in KINDS:
        _print_class(report, kind.replace(" ", "_"), _of_kind(verdicts, kind))


def _print_words(report: Report, calls: list[CallScore]) -> None:
    wrong, words = (sum(getattr(c, name) for c in calls) for name in ("words_wrong", "words"))
    report.row("words_lost_or_repeated", float(wrong), "words", target=at_most(0), n=words)


def _print_latencies(report: Report, mine: list[Verdict], before: list[Verdict]) -> None:
    for level_db, label, limits in _LATENCIES:
        times, others = (_latencies_ms(all_, level_db) for all_ in (mine, before))
        for share, limit in zip((50, 95), limits, strict=True):
            report.row(
                f"simulated_barge_in_{label}_p{share}_ms",
                _percentile(times, share),
                "ms",
                target=None if limit is None else at_most(limit),
                against=_percentile(others, share),
                n=len(times),
            )


def _latencies_ms(verdicts: list[Verdict], level_db: float) -> list[float]:
    return [
        1000 * v.silent_after_s
        for v in _of_kind(verdicts, INTERRUPTION)
        if v.clean_link
        and v.silent_after_s is not None
        and abs(v.over_echo_db - level_db) <= _LEVEL_TOLERANCE_DB
    ]


def _print_gaps(report: Report, verdicts: list[Verdict]) -> None:
    for kind in (BACKCHANNEL, SIDE_SPEECH, NOISE):
        gaps = [1000 * v.gap_s for v in _of_kind(verdicts, kind) if v.gap_s is not None]
        for share in (50, 95):
            name = f"resume_gap_{kind.replace(' ', '_')}_p{share}_ms"
            report.row(name, _percentile(gaps, share), "ms", n=len(gaps))
    interruptions = _of_kind(verdicts, INTERRUPTION)
    ducks = float(np.mean([v.ducks for v in interruptions])) if interruptions else float("nan")
    report.row("silences_per_interruption", ducks, "", n=len(interruptions))


def _print_quiet(report: Report, ours: list[CallScore], theirs: list[CallScore]) -> None:
    """What happened while only the agent spoke."""
    minutes, before = (sum(call.undisturbed_s for call in calls) / 60 for calls in (ours, theirs))
    ducks = sum(call.stray_ducks for call in ours)
    flushes, others = (sum(call.stray_flushes for call in calls) for calls in (ours, theirs))
    report.row("agent_alone_minutes", minutes, "min", n=len(ours))
    report.row("ducks_per_minute_alone", ducks / minutes, "1/min", n=ducks)
    report.row(
        "false_barge_ins_alone",
        float(flushes),
        "",
        target=at_most(0),
        against=float(others) * minutes / before,
        n=len(ours),
    )
    leaked = sum(call.leaked_frames for call in ours)
    report.row("sound_while_ducked", float(leaked), "frames", target=at_most(0), n=len(ours))


def _print_class(report: Report, name: str, verdicts: list[Verdict]) -> None:
    """How many there were of a class, how long and how loud."""
    report.row(f"{name}_count", float(len(verdicts)), "events", n=len(verdicts))
    measures: tuple[tuple[str, str, Callable[[Verdict], float]], ...] = (
        ("length", "s", lambda verdict: verdict.length_s),
        ("over_user", "dB", lambda verdict: verdict.over_user_db),
        ("over_echo", "dB", lambda verdict: verdict.over_echo_db),
    )
    for measure, unit, value in measures:
        for share in (5, 50, 95):
            told = _percentile([value(verdict) for verdict in verdicts], share)
            report.row(f"{name}_{measure}_p{share}_{unit.lower()}", told, unit, n=len(verdicts))
    ducked = _share(verdicts, lambda verdict: verdict.ducks > 0)
    report.row(f"{name}_ducked", ducked, "", n=len(verdicts))


def _of_kind(verdicts: Iterable[Verdict], kind: str) -> list[Verdict]:
    return [verdict for verdict in verdicts if verdict.kind == kind]


def _right(verdict: Verdict) -> bool:
    return verdict.right


def _share(verdicts: Sequence[Verdict], condition: Callable[[Verdict], bool]) -> float:
    if not verdicts:
        return float("nan")
    return sum(condition(verdict) for verdict in verdicts) / len(verdicts)


def _percentile(values: Sequence[float], share: float) -> float:
    return float(np.percentile(values, share)) if values else float("nan")


if __name__ == "__main__":
    sys.exit(main())
