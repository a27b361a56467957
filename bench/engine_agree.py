"""`bench.engine agree`: whether graphs and kernels say what the plain modules say, at full size.

Two calls on the same weights hear the same seconds and say the same words, one over the lanes that
are served and one eagerly. What is compared is the state behind each read at whose end a token is
drawn, and the likeliest token there.

Of random weights the likeliest token often leads by next to nothing, and then rounding alone says
which it is. All others are to be the same ones: those that lead over the next, or over what came in
their place, by `CLEAR_LEAD` standard deviations of the plain modules' logits or more. An error of
1e-2 in the state, the most that is allowed, moves the difference of two logits by 0.014 of them;
and the likeliest logit, being some 5 of them, is a multiple of 0.02 to 0.04 in bfloat16. How many
are near ties, how many of these were turned round, and how far apart the widest pair of all is that
was turned round, is told besides.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from agent.duplex.lanes import Batch, Failures, Lane
from agent.duplex.llm import Llm
from agent.duplex.work import Read, Work
from agent.fleet.callers import Material
from bench.engine_drive import OneCall
from bench.engine_parts import SETTINGS, Made, finish_device, make_eager, restarted
from bench.engine_report import EngineReport
from bench.engine_script import DecidedLane, plans
from bench.report import at_least, at_most

UNITS = 60
STATE_ERROR = at_most(1e-2)
SAME_TOKENS = at_least(100)
CLEAR_LEAD = 0.05


@dataclass(frozen=True, slots=True)
class NotedLane:
    """A lane of the LLM that notes the state behind each read at whose end a token is drawn."""

    lane: Lane
    states: list[Tensor] = field(default_factory=list)

    def count(self, works: Sequence[Work]) -> int:
        """See `Lane`."""
        return self.lane.count(works)

    def begin(self, works: Sequence[Work]) -> Batch:
        """See `Lane`."""
        return _NotedBatch(self.lane.begin(works), works, self.states)


@dataclass(frozen=True, slots=True)
class _NotedBatch:
    batch: Batch
    works: Sequence[Work]
    states: list[Tensor]

    @property
    def done(self) -> bool:
        """See `Batch`."""
        return self.batch.done

    def finish(self) -> Failures:
        """See `Batch`."""
        failures = self.batch.finish()
        for place, work in enumerate(self.works):
            if place not in failures and isinstance(work, Read) and work.choice is not None:
                self.states.append(work.state.cpu())
        return failures


@dataclass(frozen=True, slots=True)
class Tokens:
    """How the likeliest tokens compare."""

    clear: int
    """Tokens that lead clearly in the plain logits, over the next or over what came in their place;
    all others are near ties."""
    turned_clear: int
    """Clear ones that are others in the served logits."""
    turned_near_ties: int
    widest_gap: float
    """Of tokens that were turned round: by how many standard deviations the one was likelier."""

    @property
    def same_percent(self) -> float:
        """Of the clear ones; NaN where there is none, of which nothing can be said."""
        return 100 - 100 * self.turned_clear / self.clear if self.clear else math.nan


@dataclass(frozen=True, slots=True)
class Agreement:
    """How two rows of states [N, W] and their logits compare."""

    state_error: float
    """Norm of what differs, of all states together, over the norm of theirs."""
    worst_state_error: float
    logit_error: float
    tokens: Tokens


def measure_agreement(report: EngineReport, made: Made, units: int = UNITS) -> None:
    """All rows of `agree`."""
    with_picture = Material(camera=made.core.abilities.camera)
    ours = states_of(made, with_picture, units)
    theirs = states_of(make_eager(made, made.wanted), with_picture, units)
    found = compare(made.parts.runner.model.llm, ours, theirs)
    n = len(ours)
    report.row("agree_units", units, "units")
    report.row("agree_state_error", found.state_error, "", target=STATE_ERROR, n=n)
    report.row("agree_worst_state_error", found.worst_state_error, "", n=n)
    report.row("agree_logit_error", found.logit_error, "", n=n)
    _report_tokens(report, found.tokens, n)


def _report_tokens(report: EngineReport, found: Tokens, n: int) -> None:
    same, near_ties = found.same_percent, n - found.clear
    report.row("agree_same_tokens_percent", same, "%", target=SAME_TOKENS, n=found.clear)
    report.row("agree_near_ties", near_ties, "tokens", n=n)
    report.row("agree_turned_near_ties", found.turned_near_ties, "tokens", n=near_ties)
    report.row("agree_widest_gap", found.widest_gap, "", n=n)


@torch.no_grad()
def states_of(made: Made, material: Material, units: int) -> Tensor:
    """The states [N, W] of so many units of one call."""
    wanted, runner = made.wanted, made.parts.runner
    # What is said begins anew, whatever was said over these lanes before.
    decided = DecidedLane(made.served.runner.lane("llm"), plans(wanted.speak, wanted.turn_units))
    noted = NotedLane(decided)
    runner = replace(runner, lanes={**runner.lanes, "llm": noted})
    used = restarted(made, replace(made.parts, runner=runner))
    used.look_at_all()
    call = OneCall(used.core, SETTINGS, runner.clock, lambda: finish_device(made.device))
    for index in range(units):
        call.take(material.unit(index))
    call.end()
    return torch.stack(noted.states)


@torch.no_grad()
def compare(llm: Llm, ours: Tensor, theirs: Tensor) -> Agreement:
    """States [N, W] on the host, of which logits are made as the LLM makes them.

    ValueError when they are not equally many.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"states {list(ours.shape)} against {list(theirs.shape)}")
    device = llm.lm_head.weight.device
    apart, size = (ours.float() - theirs.float()).norm(dim=1), theirs.float().norm(dim=1)
    served, plain = (llm.logits(states.to(device)).float() for states in (ours, theirs))
    return Agreement(
        float(apart.norm() / size.norm()),
        float((apart / size).max()),
        float((served - plain).norm() / plain.norm()),
        compare_tokens(served, plain),
    )


def compare_tokens(served: Tensor, plain: Tensor) -> Tokens:
    """Logits [N, vocabulary]."""
    token, spread, best = served.argmax(1), plain.std(1), plain.topk(2).values.T
    turned = token != plain.argmax(1)
    gaps = (best[0] - plain.gather(1, token[:, None])[:, 0]) / spread
    leads = (best[0] - best[1]) / spread
    clear = torch.maximum(leads, gaps) >= CLEAR_LEAD
    return Tokens(
        int(clear.sum()),
        int((turned & clear).sum()),
        int((turned & ~clear).sum()),
        float(gaps.max()),
    )
