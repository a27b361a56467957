"""How well the agent does not hear itself: `python -m bench.echo --json [--seed N]`.

Everything is simulated from the seed, in samples: speech by espeak-ng and flite, ten voices; rooms
of decaying noise, RT60 0.2 to 0.5 s; an echo 6 dB below what was sent; a floor at −75 dBFS.
`against` is AEC3 as it comes, without delay estimate and drift correction, on the same sound in
the same run.

- `erle_…`: the microphone's level over that of what is left, far end alone. Medians over delays of
  20, 80, 200 and 400 ms, each with a mild and a hard nonlinearity of the loudspeaker (1 to 2 % and
  15 to 25 % on the peaks) and two rooms and voices. The agent talks from the first moment on;
  `erle_4_12_s` is measured from 4 to 12 s, `erle_after_12_s` from 12 to 24 s.
- `erle_15db_after_s`: the end of the first quarter of a second from which on no other one up to the
  sixth second falls below 15 dB, counted from the first echo; those in pauses do not count.
- `erle_…ppm`: 4 to 60 s, two clocks that drift apart, both ways, delays of 80 and 200 ms.
- `erle_…ms`: 4 to 24 s, delays of 700 and 1000 ms.
- `path_change_s`: until 15 dB after a delay that jumps (80 to 240, 240 to 80, 80 to 700 ms).
- `false_barge_ins_30min`: calls of 45 s, in which the agent talks for 30 minutes in all, to the
  real front end with its voice detector; delays 20 to 1000 ms, echo 0 to 18 dB down, RT60 0.15 to
  0.6 s, noise −75 to −50 dBFS, drift up to ±150 ppm. The agent obeys: ducks, goes on, falls silent.
- `cpu_…`: CPU time of the thread for 10 ms of both ends, the mean (10000 us are one core); the
  longest of it at the 99.5th percentile of slots of 20 ms.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pywebrtc_audio

from agent.media.audio import level_dbfs
from agent.media.echo_canceller import Aec3
from agent.media.echo_far import History
from agent.media.echo_lane import Lane
from agent.media.echo_reference import Reference
from agent.types import MIC_RATE_HZ, AudioFrame, FloatArray
from bench.echo_calls import listen_to_itself
from bench.echo_speech import any_voice, monologue
from bench.report import Report, add_arguments, at_least, at_most
from tests.rig.echo_path import HARD_DRIVE, MILD_DRIVE, EchoPath, PathChange

_DELAYS_MS = (20, 80, 200, 400)
_WINDOW_S = 0.25
_AUDIBLE_DB = 20.0


class _Awake(Lane):
    def doze(self, near: FloatArray, history: History) -> FloatArray:
        return self.process(near)


class PlainAec3(Aec3):
    """AEC3 on the far end as it arrives, all the time: what there was before."""

    def __init__(self) -> None:
        super().__init__()
        apm = pywebrtc_audio.EchoCanceller(sample_rate=MIC_RATE_HZ)
        self._lane = _Awake(apm, Reference(self._far))

    def _measure(self, near: FloatArray) -> None:
        pass


@dataclass(frozen=True)
class Heard:
    """The microphone and what a canceller left of it, both [T] at 16 kHz and in step."""

    mic: FloatArray
    left: FloatArray
    delay_ms: float
    drift_ppm: float
    step_us: FloatArray

    def erle_db(self, from_s: float, to_s: float) -> float:
        """How much weaker the second is, between two times."""
        part = slice(round(from_s * MIC_RATE_HZ), round(to_s * MIC_RATE_HZ))
        return level_dbfs(self.mic[part]) - level_dbfs(self.left[part])

    def seconds_to_15_db(self, from_s: float) -> float:
        """From `from_s` until the last quarter of a second within 6 s that has less."""
        floor_dbfs = level_dbfs(self.mic) - _AUDIBLE_DB
        reached_s = 0.0
        for start_s in np.arange(from_s, from_s + 6.0, _WINDOW_S):
            part = self.mic[round(start_s * MIC_RATE_HZ) :][: round(_WINDOW_S * MIC_RATE_HZ)]
            audible = level_dbfs(part) > floor_dbfs
            if audible and self.erle_db(start_s, start_s + _WINDOW_S) < 15.0:
                reached_s = start_s + _WINDOW_S - from_s
        return max(reached_s, _WINDOW_S)


def cancel(far: FloatArray, mic: FloatArray, canceller: Aec3) -> Heard:
    """20 ms of each end in turn."""
    left, step_us = [], []
    for slot in range(min(len(far) // 480, len(mic) // 320)):
        frame = AudioFrame(far[slot * 480 : slot * 480 + 480], 24_000, slot * 480)
        begun = time.thread_time()
        canceller.push_far(frame)
        for start in (slot * 320, slot * 320 + 160):
            left.append(canceller.cancel(mic[start : start + 160]))
        step_us.append((time.thread_time() - begun) * 0.5e6)
    lag = canceller.delay_samples
    kept = np.concatenate(left)[lag:]
    return Heard(
        mic[: len(kept)],
        kept,
        canceller.delay_ms,
        canceller.drift_ppm,
        np.array(step_us, np.float32),
    )


class Bench:
    """Runs and prints; each row draws its own seeds."""

    def __init__(self, report: Report, seed: int) -> None:
        self._report = report
        self._seed = seed

    def _both(
        self, paths: Sequence[EchoPath], seconds: float, row: int
    ) -> tuple[list[Heard], list[Heard]]:
        """Ours and AEC3 alone, on every path."""
        ours, plain = [], []
        for number, path in enumerate(paths):
            random = np.random.default_rng((self._seed, row, number))
            far = monologue(random, seconds, any_voice(random))
            mic = path.record(far)
            ours.append(cancel(far, mic, Aec3()))
            plain.append(cancel(far, mic, PlainAec3()))
        return ours, plain

    def _room(self, row: int, number: int) -> tuple[float, int]:
        random = np.random.default_rng((self._seed, row, number, 1))
        return random.uniform(0.2, 0.5), int(random.integers(1 << 30))

    def _paths(self, row: int, delays_ms: Sequence[int], drifts: Sequence[float]) -> list[EchoPath]:
        """Every delay with every drift, mild and hard, each in a room of its own."""
        kinds = [(d, p, n) for d in delays_ms for p in drifts for n in (MILD_DRIVE, HARD_DRIVE)]
        rooms = [self._room(row, number) for number in range(len(kinds))]
        return [
            EchoPath(delay, rt60, drive=drive, seed=seed, drift_ppm=ppm)
            for (delay, ppm, drive), (rt60, seed) in zip(kinds, rooms, strict=True)
        ]

    def near_paths(self) -> None:
        """The rows of delays that AEC3 manages by itself, and what they say of the estimate."""
        paths = self._paths(1, _DELAYS_MS, (0.0, 0.0))
        ours, plain = self._both(paths, 24.0, 1)
        spans = (("erle_4_12_s_db", 4.0, 12.0, 20.0), ("erle_after_12_s_db", 12.0, 24.0, 28.0))
        for name, from_s, to_s, target in spans:
            self._erle(name, ours, plain, (from_s, to_s), target)
        starts_s = [path.delay_ms / 1000 for path in paths]
        ours_s, plain_s = (
            [heard.seconds_to_15_db(at) for heard, at in zip(all_heard, starts_s, strict=True)]
            for all_heard in (ours, plain)
        )
        self._report.row(
            "erle_15db_after_s",
            float(np.median(ours_s)),
            "s",
            target=at_most(1),
            against=float(np.median(plain_s)),
            n=len(paths),
        )
        errors = [abs(heard.delay_ms - 1000 * at) for heard, at in zip(ours, starts_s, strict=True)]
        self._report.row("delay_error_max_ms", max(errors), "ms", n=len(paths))

    def drifting_clocks(self) -> None:
        """Clocks that are 100 and 500 millionths apart."""
        for row, ppm, target in ((2, 100.0, 25.0), (3, 500.0, None)):
            paths = self._paths(row, (80, 200), (ppm, -ppm))
            ours, plain = self._both(paths, 60.0, row)
            self._erle(f"erle_{ppm:.0f}ppm_db", ours, plain, (4.0, 60.0), target)
            errors = [
                abs(heard.drift_ppm - path.drift_ppm)
                for heard, path in zip(ours, paths, strict=True)
            ]
            self._report.row(f"drift_error_{ppm:.0f}ppm_max_ppm", max(errors), "ppm", n=len(paths))

    def far_paths(self) -> None:
        """Delays that AEC3 by itself does not manage."""
        for row, delay_ms, target in ((4, 700, 24.0), (5, 1000, None)):
            paths = self._paths(row, (delay_ms,), (0.0, 0.0))
            ours, plain = self._both(paths, 24.0, row)
            self._erle(f"erle_{delay_ms}ms_db", ours, plain, (4.0, 24.0), target)

    def changing_paths(self) -> None:
        """Delays that jump in mid-call."""
        for row, (before_ms, after_ms) in enumerate(((80, 240), (240, 80), (80, 700)), start=6):
            rooms = [self._room(row, number) for number in range(3)]
            change = (PathChange(12.0, after_ms),)
            paths = [EchoPath(before_ms, rt60, seed=seed, changes=change) for rt60, seed in rooms]
            ours, plain = self._both(paths, 24.0, row)
            self._report.row(
                f"path_{before_ms}_to_{after_ms}_15db_after_s",
                float(np.median([heard.seconds_to_15_db(12.0) for heard in ours])),
                "s",
                against=float(np.median([heard.seconds_to_15_db(12.0) for heard in plain])),
                n=len(paths),
            )

    def cost(self) -> None:
        """Time per 10 ms while the agent speaks, with drift, and while it is silent."""
        cases: dict[str, tuple[EchoPath, float]] = {
            "speaking": (EchoPath(120), 1.0),
            "drifting": (EchoPath(120, drift_ppm=100.0), 1.0),
            "silent": (EchoPath(120), 0.0),
        }
        random = np.random.default_rng((self._seed, 9))
        far = monologue(random, 30.0, "en-us")
        for name, (path, gain) in cases.items():
            mic = path.record(far * np.float32(gain))
            ours, plain = (
                cancel(far * np.float32(gain), mic, make()).step_us[500:]
                for make in (Aec3, PlainAec3)
            )
            mean_us, plain_us = float(np.mean(ours)), float(np.mean(plain))
            self._report.row(f"cpu_{name}_us", mean_us, "us", against=plain_us, n=len(ours))
            longest_us = 2.0 * float(np.percentile(ours, 99.5))
            self._report.row(f"cpu_{name}_longest_slot_us", longest_us, "us", n=len(ours))

    def false_alarms(self, minutes: float, make: Callable[[], Aec3] = Aec3) -> None:
        """The agent in a room with nobody in it."""
        outcome = listen_to_itself(minutes * 60.0, self._seed, make)
        calls = len(outcome.erle_db)
        name = f"{minutes:g}min"
        self._report.row(
            f"false_barge_ins_{name}", outcome.barge_ins, "count", target=at_most(0), n=calls
        )
        self._report.row(f"false_ducks_{name}", outcome.ducks, "count", n=calls)

    def _erle(
        self,
        name: str,
        ours: Sequence[Heard],
        plain: Sequence[Heard],
        span_s: tuple[float, float],
        target: float | None,
    ) -> None:
        self._report.row(
            name,
            float(np.median([heard.erle_db(*span_s) for heard in ours])),
            "dB",
            target=None if target is None else at_least(target),
            against=float(np.median([heard.erle_db(*span_s) for heard in plain])),
            n=len(ours),
        )


def main() -> int:
    """Exit 1 when a target was missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_arguments(parser)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=30.0, help="of false_barge_ins")
    options = parser.parse_args()
    report = Report(as_json=options.json)
    bench = Bench(report, options.seed)
    bench.near_paths()
    bench.drifting_clocks()
    bench.far_paths()
    bench.changing_paths()
    bench.cost()
    bench.false_alarms(options.minutes)
    return 1 if report.missed else 0


if __name__ == "__main__":
    sys.exit(main())
