"""A duplex conversation that goes back: to what was heard, or over units that were only tried."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from agent.duplex.conversation import Conversation
from agent.duplex.memory import KEPT_UNITS
from agent.duplex.prompt import DuplexPrompt
from agent.duplex.tokens import Token
from agent.errors import EngineError
from tests.rig.tiny_mind import LISTEN, cached, picture, runner, same, says, scripted, second, told

# ---- an interruption ----------------------------------------------------------------------------


def interrupted(
    heard_ms: int, units: list[list[int]], expected: list[list[int]], after: list[list[int]]
) -> tuple[Tensor, Tensor, Conversation, int]:
    """A conversation interrupted, and one that was always as it should be after that."""
    used, fresh = runner(), runner()
    talk = scripted(used, *units, *after)
    for index in range(len(units)):
        talk.step(second(index, (picture(),) if index == 1 else ()))
    refed = talk.rewind(turn=1, heard_ms=heard_ms)
    for index in range(len(after)):
        talk.step(second(len(units) + index))
    talk.flush()
    other = scripted(fresh, *expected, *after)
    for index in range(len(expected) + len(after)):
        other.step(second(index, (picture(),) if index == 1 else ()))
    other.flush()
    assert talk.context_tokens == other.context_tokens
    return cached(used, talk), cached(fresh, other), talk, refed


CUT = [Token.TURN_EOS, Token.CHUNK_EOS]
SPOKEN = [LISTEN, says("abcd"), says("efgh"), says("ijkl")]


@pytest.mark.parametrize(
    ("heard_ms", "expected", "refed"),
    [
        (0, [LISTEN, [Token.SPEAK, *CUT], LISTEN, LISTEN], 3),
        (800, [LISTEN, [Token.SPEAK, *b"ab", *CUT], LISTEN, LISTEN], 3),
        (1280 + 250, [LISTEN, says("abcd"), [Token.SPEAK, *b"e", *CUT], LISTEN], 2),
        (2280 + 999, [LISTEN, says("abcd"), says("efgh"), [Token.SPEAK, *b"ijk", *CUT]], 1),
        (9999, [LISTEN, says("abcd"), says("efgh"), [Token.SPEAK, *b"ijkl", *CUT]], 1),
    ],
)
def test_after_an_interruption_all_is_as_if_only_what_was_heard_had_been_said(
    heard_ms: int, expected: list[list[int]], refed: int
) -> None:
    after = [LISTEN, says("zz")]
    ours, theirs, talk, count = interrupted(heard_ms, SPOKEN, expected, after)
    assert same(ours, theirs)
    assert count == refed
    assert talk.turn == 2


def test_a_turn_that_has_ended_may_still_be_interrupted_while_it_plays() -> None:
    units = [LISTEN, says("abcd"), says("ef", ends=True), LISTEN]
    expected = [LISTEN, [Token.SPEAK, *b"ab", *CUT], LISTEN, LISTEN]
    ours, theirs, _, _ = interrupted(800, units, expected, [says("zz")])
    assert same(ours, theirs)


def test_a_turn_heard_to_its_end_is_left_alone() -> None:
    units = [LISTEN, says("ab"), says("cd", ends=True), LISTEN]
    ours, theirs, _, refed = interrupted(60_000, units, units, [LISTEN])
    assert refed == 0 and same(ours, theirs, 1e-6)


def test_an_interruption_of_a_turn_nobody_knows_changes_nothing() -> None:
    used = runner()
    talk = told(used, LISTEN, says("ab"))
    before = cached(used, talk)
    assert talk.rewind(turn=7, heard_ms=0) == 0
    assert torch.equal(cached(used, talk), before) and talk.speaking


def test_an_interruption_drops_speech_and_sampling_history_of_its_turn() -> None:
    used = runner()
    talk = scripted(used, LISTEN, says("ab"), says("cd"), LISTEN, says("xy"))
    for index in range(3):
        talk.step(second(index))
    assert talk._memory.history.ids != [Token.LISTEN]
    talk.rewind(turn=1, heard_ms=300)
    assert talk._memory.history.ids == [Token.LISTEN]
    assert talk._memory.speech.length == 0 and not talk.speaking
    talk.step(second(3))
    spoken = talk.step(second(4))
    assert spoken.outcome.turn == 2 and spoken.text == "xy"
    assert talk._memory.records[-1].spoken.start_ms == 280


def test_a_turn_without_a_limit_keeps_its_time_when_its_voice_starts_anew() -> None:
    """28 positions of the speech LM's 512 a unit: it starts anew in the nineteenth."""
    used = runner()
    units = 20
    talk = scripted(used, *[says("ab")] * units, parity=True)
    lengths = []
    for index in range(units):
        talk.step(second(index))
        lengths.append(talk._memory.speech.length)
    assert lengths[17] > lengths[18] > 0, "what is tested here came to pass"
    starts = [one.spoken.start_ms for one in talk._memory.records]
    assert starts == [280 + 1000 * index for index in range(units)][-KEPT_UNITS:]
    talk.rewind(turn=1, heard_ms=280 + 19_000)
    heard = [len(one.outcome.said) for one in talk._memory.records if one.outcome.turn == 1]
    assert heard[:-1] == [2] * (KEPT_UNITS - 1) and heard[-1] < 2


def test_vectors_are_kept_for_so_many_units_and_no_more() -> None:
    talk = scripted(runner(), *[LISTEN] * (KEPT_UNITS + 3))
    for index in range(KEPT_UNITS + 3):
        talk.step(second(index))
    assert [one.unit for one in talk._memory.records] == list(range(3, KEPT_UNITS + 3))


def test_captions_alone_are_heard_a_second_a_unit() -> None:
    used = runner()
    talk = scripted(used, says("abcd"), says("efgh"), speaks=False)
    for index in range(2):
        talk.step(second(index))
    talk.rewind(turn=1, heard_ms=1500)
    assert talk._memory.records[-1].outcome.said == (*b"ef", Token.TURN_EOS)


def test_another_vocoder_s_delay_moves_what_was_heard() -> None:
    said = []
    for lag_ms in (0, 500):
        talk = scripted(runner(), says("abcd"), says("efgh"), speech_lag_ms=lag_ms)
        for index in range(2):
            talk.step(second(index))
        talk.rewind(turn=1, heard_ms=500)
        said.append(talk._memory.records[0].outcome.said[:-1])
    assert said == [tuple(b"ab"), ()]


# ---- going back ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tried", [LISTEN, says("xyz"), says("x", ends=True)])
@pytest.mark.parametrize("before", [[LISTEN, LISTEN], [LISTEN, says("ab")]])
def test_what_was_only_tried_leaves_no_trace(before: list[list[int]], tried: list[int]) -> None:
    if tried == LISTEN and before[1] != LISTEN:
        tried = says("")
    used, fresh = runner(), runner()
    talk = scripted(used, *before, tried, says("cd"), says("ef"))
    for index in range(2):
        talk.step(second(index))
    point = talk.save()
    talk.step(second(40))
    talk.restore(point)
    results = [talk.step(second(index)) for index in (2, 3)]
    other = scripted(fresh, *before, says("cd"), says("ef"))
    expected = [other.step(second(index)) for index in range(4)][2:]
    assert [replace(one, stage_ms=()) for one in results] == [
        replace(one, stage_ms=()) for one in expected
    ]
    talk.flush()
    other.flush()
    assert same(cached(used, talk), cached(fresh, other), 1e-6)


def test_going_back_reaches_over_the_second_in_which_the_ear_forgets() -> None:
    used, fresh = runner(), runner()
    talk, other = (scripted(one, *[LISTEN] * 40) for one in (used, fresh))
    for index in range(29):
        talk.step(second(index))
        other.step(second(index))
    point = talk.save()
    talk.step(second(50))
    talk.restore(point)
    talk.step(second(29))
    other.step(second(29))
    assert same(talk._memory.records[-1].senses, other._memory.records[-1].senses, 1e-6)


def test_a_point_is_good_once_and_not_behind_a_later_one() -> None:
    talk = scripted(runner(), *[LISTEN] * 3, says("ab"), *[LISTEN] * 9)
    talk.step(second(0))
    point = talk.save()
    talk.step(second(1))
    talk.restore(point)
    with pytest.raises(EngineError, match="too far"):
        talk.restore(point)
    early, late = talk.save(), talk.save()
    with pytest.raises(EngineError, match="too far"):
        talk.restore(early)
    talk.step(second(1))
    talk.restore(late)
    stood = talk.save()
    talk.step(second(1))
    talk.stand()
    with pytest.raises(EngineError, match="too far"):
        talk.restore(stood)


def test_a_slot_is_given_back_when_the_prompt_cannot_be_read() -> None:
    used = runner()
    prompt = DuplexPrompt((Token.IM_START,), (Token.IM_END,))
    with pytest.raises(RuntimeError):
        Conversation(used, prompt, torch.zeros(3, 7))
    assert used.slots.free == 1
