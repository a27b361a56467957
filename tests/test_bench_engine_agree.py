"""`bench.engine agree`: what differs is found, and what does not is not."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from agent.fleet.callers import Material
from bench.engine_agree import compare, compare_tokens, measure_agreement, states_of
from bench.engine_parts import Made, Wanted, make_bed, make_engine
from tests.rig.engine_rows import Rows
from tests.rig.tiny_mind import whole_mind

DICTATED, LISTENED, SPOKEN = 3, 5, 5
UNITS = DICTATED + LISTENED + SPOKEN
"""A call first listens, whatever the model would do; then comes a cycle."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    bed = make_bed(torch.device("cpu"), tmp_path_factory.mktemp("bed"), tiny=True)
    # Words that are out of the question would make any lead a small one.
    model = replace(bed.weights, llm=whole_mind().llm)
    return make_engine(replace(bed, weights=model), Wanted(1, 2048))


def test_the_same_modules_agree_whatever_was_said_before(made: Made) -> None:
    states_of(made, Material(camera=False), 6)  # now the next call is in the middle of a cycle
    rows = Rows()
    measure_agreement(rows.report, made, UNITS)
    read = rows.read()
    drawn = LISTENED + SPOKEN * 7 + 1
    assert read["agree_state_error"]["n"] == read["agree_near_ties"]["n"] == drawn
    clear = read["agree_same_tokens_percent"]["n"]
    assert 0 < clear == drawn - rows.values["agree_near_ties"]
    assert rows.values["agree_turned_near_ties"] == 0 and rows.report.missed == 0
    assert rows.values["agree_units"] == UNITS
    assert rows.values["agree_state_error"] == rows.values["agree_logit_error"] == 0
    assert rows.values["agree_same_tokens_percent"] == 100
    assert rows.values["agree_widest_gap"] == 0


def test_a_state_is_noted_for_every_token_that_is_drawn(made: Made) -> None:
    states = states_of(made, Material(camera=False), UNITS)
    # The first token of each unit, then five words and the unit's end; once also the turn's end.
    assert len(states) == LISTENED + SPOKEN * 7 + 1
    assert len({tuple(state.tolist()) for state in states}) == len(states)


def test_what_differs_is_measured_and_a_clear_token_that_is_turned_round_is_a_miss() -> None:
    llm = whole_mind().llm
    generator = torch.Generator().manual_seed(3)
    theirs = torch.randn(40, llm.lm_head.weight.shape[1], generator=generator)
    error = torch.randn(theirs.shape, generator=generator)
    error *= 0.01 * theirs.norm(dim=1, keepdim=True) / error.norm(dim=1, keepdim=True)
    near = compare(llm, theirs + error, theirs)
    assert near.state_error == pytest.approx(0.01, rel=1e-3)
    assert near.worst_state_error == pytest.approx(0.01, rel=1e-3)
    assert 0 < near.logit_error < 0.03
    assert near.tokens.clear > 20 and near.tokens.same_percent == 100
    other = theirs.clone()
    other[3] = -other[3]
    far = compare(llm, other, theirs)
    assert far.tokens.turned_clear == 1 and far.tokens.turned_near_ties == 0
    assert far.tokens.same_percent == 100 - 100 / far.tokens.clear
    assert far.tokens.widest_gap > 1 and far.worst_state_error == 2
    with pytest.raises(ValueError, match="against"):
        compare(llm, theirs[1:], theirs)


LEADS = (0.06, 0.04, 0.0, 3.0)
"""Of one token over the next, in standard deviations of the logits."""


def logits_that_lead() -> Tensor:
    """By `LEADS` each; token 7 is the likeliest, then comes token 3."""
    logits = torch.randn(len(LEADS), 4000, generator=torch.Generator().manual_seed(1))
    logits = logits.clamp(max=3)
    for row, lead in enumerate(LEADS):
        logits[row, 3] = logits[row, 7] = 5
        logits[row, 7] += lead * logits[row].std()
    return logits


def turned_round(rows: Sequence[int]) -> Tensor:
    logits = logits_that_lead()
    logits[rows, 3] = logits[rows, 7] + 0.001
    return logits


def test_a_near_tie_that_is_turned_round_is_counted_apart() -> None:
    found = compare_tokens(turned_round([1, 2]), logits_that_lead())
    assert found.clear == 2 and found.same_percent == 100
    # Of equal ones it is the first that was likeliest, and still is.
    assert found.turned_clear == 0 and found.turned_near_ties == 1
    assert found.widest_gap == pytest.approx(0.04, rel=1e-2)


def test_a_token_that_leads_clearly_may_not_be_turned_round() -> None:
    found = compare_tokens(turned_round([0]), logits_that_lead())
    assert found.same_percent == 50 and found.turned_near_ties == 0
    assert found.widest_gap == pytest.approx(0.06, rel=1e-2)


def test_what_nearly_ties_with_the_next_may_not_become_any_other() -> None:
    plain = logits_that_lead()
    served = plain.clone()
    served[1, 100] = 9
    found = compare_tokens(served, plain)
    assert found.clear == 3 and found.turned_clear == 1 and found.turned_near_ties == 0
    assert found.widest_gap > 1


def test_of_near_ties_alone_nothing_can_be_said() -> None:
    ties = logits_that_lead()[1:3]
    assert math.isnan(compare_tokens(ties, ties).same_percent)
