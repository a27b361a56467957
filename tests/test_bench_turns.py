"""The benchmark of turn taking: a short call through all of it, by either policy."""

from bench.turns import _carry_out, _Job
from bench.turns_scenes import INTERRUPTION
from bench.turns_score import CallScore


def carried_out(*, one_step: bool) -> CallScore:
    return _carry_out(_Job(1, 0, 4, coded=False, one_step=one_step, eagerness=0.5))


def test_what_one_step_is_silenced_by_two_steps_resume_behind() -> None:
    ours, theirs = (carried_out(one_step=policy) for policy in (False, True))
    assert [one.what for one in ours.verdicts] == [one.what for one in theirs.verdicts]
    assert len(ours.verdicts) == 4 and len({one.kind for one in ours.verdicts}) == 4
    for mine, other in zip(ours.verdicts, theirs.verdicts, strict=True):
        assert other.right == (other.kind == INTERRUPTION), "whatever is speech silences it"
        assert mine.right or mine.kind != INTERRUPTION
        assert mine.silent_after_s is not None and mine.silent_after_s < 1
    resumed = [one for one in ours.verdicts if one.right and one.kind != INTERRUPTION]
    assert resumed and all(one.gap_s is not None and one.gap_s < 0.4 for one in resumed)
