"""The model at full size with random weights on one GPU: `python -m bench.model --json`.

Loads, runs a minute of units, half of them with the camera on, and prints memory and the eager
time of a unit by what it did. Words are decided beforehand (a unit that speaks says five); each
token is drawn all the same, so that what is measured is what a call costs.
"""

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from agent.clock import SYSTEM_CLOCK
from agent.duplex.conversation import UNIT_MS, Conversation
from agent.duplex.conversation_settings import ConversationSettings, UnitResult
from agent.duplex.lanes import Runner
from agent.duplex.policy import SpeakingRules
from agent.duplex.prompt import DuplexPrompt
from agent.duplex.slots import Slots, SlotSizes
from agent.duplex.tokens import Token
from agent.duplex.work import Choose, Work
from agent.torch_parts.checkpoint import Target
from agent.types import UNIT_SAMPLES, Unit, VideoFrame
from bench.random_model import listen_speak_end, random_model
from bench.report import Report, add_arguments, at_most

Steps: TypeAlias = Generator[Work, None, UnitResult]
Spent: TypeAlias = dict[str, float]

_WARM_UP_UNITS = 3
_SLOTS = 2
_CONTEXT_TOKENS = 8192
_GB = 1e9
_VRAM_TARGET_GB = 28
"""What the public demo recommends."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print; 1 when a target was missed, 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m bench.model", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--units", type=int, default=60, help="half of them see a picture")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.stderr.write("bench.model: torch finds no GPU\n")
        return 2
    report = Report(as_json=options.json, gpu=torch.cuda.get_device_name())
    _measure(report, options.units)
    return 1 if report.missed else 0


def _measure(report: Report, units: int) -> None:
    target = Target(torch.device("cuda"), torch.bfloat16)
    began_s = SYSTEM_CLOCK.now_s()
    model = random_model(target)
    torch.cuda.synchronize()
    report.row("load_s", SYSTEM_CLOCK.now_s() - began_s, "s")
    report.row("weights_gb", torch.cuda.memory_allocated() / _GB, "GB")
    sizes = SlotSizes(slots=_SLOTS, context_tokens=_CONTEXT_TOKENS)
    slots = Slots(model.config, sizes, target)
    report.row("with_two_slots_gb", torch.cuda.memory_allocated() / _GB, "GB")
    _print_units(report, _run(_Decided(model, slots), units))
    peak_gb = torch.cuda.max_memory_reserved() / _GB
    report.row("peak_gb", peak_gb, "GB", target=at_most(_VRAM_TARGET_GB))


@dataclass(frozen=True, slots=True)
class _Ran:
    """One unit: whether it saw a picture, what it took in all and by stage, what came of it."""

    sees: bool
    took_ms: float
    stage_ms: dict[str, float]
    listened: bool


class _Decided(Runner):
    """Draws every token as ever, and then takes what was decided."""

    def run_decided(self, steps: Steps, decisions: Iterator[int]) -> tuple[UnitResult, Spent]:
        """One unit's steps → its result, and milliseconds by stage, each to its very end."""
        spent_ms: Spent = defaultdict(float)
        while True:
            try:
                work = next(steps)
            except StopIteration as stop:
                return stop.value, spent_ms
            began_s = self.clock.now_s()
            work.run(self.model, self.slots)
            torch.cuda.synchronize()
            spent_ms[work.stage] += (self.clock.now_s() - began_s) * 1000
            if isinstance(work, Choose):
                work.token = next(decisions)


def _conversation(runner: Runner) -> Conversation:
    voice = _noise(np.random.default_rng(1), 3 * UNIT_SAMPLES)
    prompt = DuplexPrompt(
        (Token.IM_START, 8948, 198, Token.AUDIO_START), (Token.AUDIO_END, Token.IM_END)
    )
    settings = ConversationSettings(rules=SpeakingRules(forced_listen_units=0), seed=1)
    return Conversation(runner, prompt, runner.model.hear_voice(voice), settings)


def _run(runner: _Decided, count: int) -> list[_Ran]:
    """All units but those in which kernels are still chosen."""
    talk, decisions = _conversation(runner), listen_speak_end()
    rng = np.random.default_rng(0)
    ran = []
    for index in range(count):
        sees = index >= count // 2
        picture = rng.integers(0, 255, (720, 1280, 3), dtype=np.uint8)
        pictures = (VideoFrame(picture, index * UNIT_SAMPLES),) if sees else ()
        unit = Unit(index, _noise(rng, UNIT_SAMPLES), UNIT_SAMPLES, pictures)
        began_s = SYSTEM_CLOCK.now_s()
        result, spent_ms = runner.run_decided(talk.steps(unit), decisions)
        took_ms = (SYSTEM_CLOCK.now_s() - began_s) * 1000
        ran.append(_Ran(sees, took_ms, spent_ms, result.outcome.listened))
    return [one for at, one in enumerate(ran) if at % (count // 2) >= _WARM_UP_UNITS]


def _noise(rng: np.random.Generator, samples: int) -> np.ndarray:
    return (rng.standard_normal(samples) * 0.1).astype(np.float32)


def _print_units(report: Report, ran: Sequence[_Ran]) -> None:
    kinds: dict[str, list[_Ran]] = defaultdict(list)
    for one in ran:
        did = "listen" if one.listened else "speak"
        kinds[f"{'camera' if one.sees else 'audio'}_{did}"].append(one)
    for kind, units in sorted(kinds.items()):
        took = [one.took_ms for one in units]
        median = statistics.median(took)
        report.row(f"{kind}_p50_ms", median, "ms", target=at_most(UNIT_MS), n=len(took))
        report.row(f"{kind}_max_ms", max(took), "ms", n=len(took))
        for stage in sorted({name for one in units for name in one.stage_ms}):
            spent = [one.stage_ms.get(stage, 0.0) for one in units]
            report.row(f"{kind}_{stage}_p50_ms", statistics.median(spent), "ms", n=len(spent))


if __name__ == "__main__":
    raise SystemExit(main())
