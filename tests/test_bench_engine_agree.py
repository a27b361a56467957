"""`bench.engine agree`: what differs is found, and what does not is not."""

import pytest
import torch

from agent.fleet.callers import Material
from bench.engine_agree import compare, measure_agreement, states_of
from bench.engine_parts import Made, Wanted, make_bed, make_engine
from tests.rig.engine_rows import Rows
from tests.rig.tiny_mind import whole_mind

DICTATED, LISTENED, SPOKEN = 3, 5, 5
UNITS = DICTATED + LISTENED + SPOKEN
"""A call first listens, whatever the model would do; then comes a cycle."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    bed = make_bed(torch.device("cpu"), tmp_path_factory.mktemp("bed"), tiny=True)
    return make_engine(bed, Wanted(1, 2048))


def test_the_same_modules_agree_whatever_was_said_before(made: Made) -> None:
    states_of(made, Material(camera=False), 6)  # now the next call is in the middle of a cycle
    rows = Rows()
    measure_agreement(rows.report, made, UNITS)
    assert rows.values["agree_units"] == UNITS
    assert rows.values["agree_state_error"] == rows.values["agree_logit_error"] == 0
    assert rows.values["agree_same_tokens_percent"] == 100
    assert rows.values["agree_widest_gap"] == 0


def test_a_state_is_noted_for_every_token_that_is_drawn(made: Made) -> None:
    states = states_of(made, Material(camera=False), UNITS)
    # The first token of each unit, then five words and the unit's end; once also the turn's end.
    assert len(states) == LISTENED + SPOKEN * 7 + 1
    assert len({tuple(state.tolist()) for state in states}) == len(states)


def test_what_differs_is_measured_and_a_token_that_is_turned_round_is_counted() -> None:
    llm = whole_mind().llm
    generator = torch.Generator().manual_seed(3)
    theirs = torch.randn(40, llm.lm_head.weight.shape[1], generator=generator)
    error = torch.randn(theirs.shape, generator=generator)
    error *= 0.01 * theirs.norm(dim=1, keepdim=True) / error.norm(dim=1, keepdim=True)
    near = compare(llm, theirs + error, theirs)
    assert near.state_error == pytest.approx(0.01, rel=1e-3)
    assert near.worst_state_error == pytest.approx(0.01, rel=1e-3)
    assert 0 < near.logit_error < 0.03
    other = theirs.clone()
    other[7] = -other[7]
    far = compare(llm, other, theirs)
    assert far.same_tokens == 39 and far.widest_gap > 1 and far.worst_state_error == 2
    with pytest.raises(ValueError, match="against"):
        compare(llm, theirs[1:], theirs)
