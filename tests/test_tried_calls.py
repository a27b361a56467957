"""Units that a call only tries: what was told is ended, what came with them comes again."""

from dataclasses import replace

import numpy as np
import pytest

from agent.commands import (
    AddPicture,
    AddText,
    DeleteItem,
    ForceListen,
    Interrupt,
    Respond,
    Retract,
    UpdateSettings,
)
from agent.duplex.call import MAX_URGENT
from agent.duplex.typed_input import TypedInput
from agent.errors import RequestError
from agent.types import EngineEvent, Listened, TextDelta, TurnEnded, TurnStarted, VideoFrame
from tests.rig.scripted_call import SETTINGS, Beeper, Driven, picture_file
from tests.rig.tiny_mind import LISTEN, letter_vocabulary, says, second

FORCED = 3
"""Units in which the model is not asked."""


def begun(*units: object, **changes: object) -> Driven:
    call = Driven(*units, **changes)
    assert call.listen(FORCED) == [Listened(0), Listened(1), Listened(2)]
    return call


def tried(call: Driven) -> list[EngineEvent]:
    """The next unit, tried; the one after it, whole, is the same one."""
    said = call.listen(speculative=True)
    call.heard -= 1
    return said


def test_the_same_unit_comes_again_and_only_turn_numbers_tell() -> None:
    call, other = begun(says("ab"), says("ab")), begun(says("ab"))
    assert tried(call)[0] == TurnStarted(1)
    assert call.tell(Retract(3)) == [TurnEnded(1, "interrupted")]
    assert call.listen()[:2] == [TurnStarted(2), TextDelta(3, 2, "ab")]
    assert other.listen()[:2] == [TurnStarted(1), TextDelta(3, 1, "ab")]
    assert call.context_tokens == other.context_tokens


def test_what_was_typed_goes_with_the_unit_that_comes_again() -> None:
    call, other = begun(LISTEN, LISTEN), begun(LISTEN)
    for one in (call, other):
        one.tell(AddText("a", "user", "hello"))
        one.tell(AddPicture("b", picture_file(28, 28)))
    tried(call)
    before = call.context_tokens
    call.tell(Retract(3))
    assert call.context_tokens < before
    for one in (call, other):
        one.tell(AddText("c", "user", "there"))
    assert call.listen() == other.listen() == [Listened(3)]
    assert call.context_tokens == other.context_tokens == before + len("there")
    ours, theirs = (one.call._talk._memory.records[-1].senses for one in (call, other))
    assert np.array_equal(ours.numpy(), theirs.numpy())


def test_what_stands_takes_what_was_typed_with_it() -> None:
    call = begun(LISTEN, LISTEN)
    call.tell(AddText("a", "user", "hello"))
    call.listen(speculative=True)
    before = call.context_tokens
    call.listen()
    assert call.context_tokens == before + 13
    assert call.tell(Retract(3)) == []


def test_an_item_deleted_meanwhile_does_not_come_again() -> None:
    call, other = begun(LISTEN, LISTEN), begun(LISTEN)
    call.tell(AddText("a", "user", "hello"))
    tried(call)
    call.tell(DeleteItem("a"))
    call.tell(Retract(3))
    assert call.listen() == other.listen()
    assert call.context_tokens == other.context_tokens


def test_what_is_lent_counts_as_waiting_and_pictures_of_an_item_stay_together() -> None:
    typed = TypedInput(letter_vocabulary())
    typed.add_text(AddText("a", "user", "hello"), most_tokens=8)
    typed.add_picture("a", np.zeros((1, 1, 3), np.uint8))
    typed.lend()
    assert (typed.take_texts(), len(typed.take_pictures())) == (["hello"], 1)
    with pytest.raises(RequestError, match="more than 8"):
        typed.add_text(AddText("b", "user", "hello"), most_tokens=8)
    typed.add_picture("a", np.ones((1, 1, 3), np.uint8))
    assert [int(rgb.max()) for rgb in typed.pictures] == [0, 1]
    typed.bring_back()
    assert [int(rgb.max()) for rgb in typed.take_pictures()] == [0, 1]
    assert typed.take_texts() == ["hello"]


@pytest.mark.parametrize("listens", [False, True])
def test_who_was_asked_is_asked_again_unless_he_was_told_to_listen(listens: bool) -> None:
    call = begun(says("a")[1:], LISTEN if listens else says("b")[1:])
    call.tell(Respond())
    assert tried(call)[0] == TurnStarted(1)
    if listens:
        call.tell(ForceListen(True))
        call.tell(ForceListen(False))
    call.tell(Retract(3))
    assert call.listen()[0] == (Listened(3) if listens else TurnStarted(2))


def test_a_prompt_that_changed_meanwhile_stays() -> None:
    call, other = begun(LISTEN, LISTEN, LISTEN), begun(LISTEN, LISTEN)
    longer = UpdateSettings(replace(SETTINGS, instructions="a much longer prompt"))
    tried(call)
    call.tell(longer)
    call.tell(Retract(3))
    other.tell(longer)
    assert call.listen(2) == other.listen(2)
    assert call.context_tokens == other.context_tokens
    ours, theirs = (
        one.parts.runner.slots.llm.tensor[:, :, 0, :, : one.call._talk._memory.llm.length]
        for one in (call, other)
    )
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("first", [Interrupt(1, 0), Retract(3)])
def test_interruption_and_retraction_come_in_any_order(first: Interrupt | Retract) -> None:
    call, other = begun(says("ab"), LISTEN, vocoder=Beeper()), begun(LISTEN, vocoder=Beeper())
    second_ = Retract(3) if isinstance(first, Interrupt) else Interrupt(1, 0)
    tried(call)
    assert call.tell(first) == [TurnEnded(1, "interrupted")]
    assert call.tell(second_) == []
    assert call.listen() == other.listen() == [Listened(3)]
    assert call.context_tokens == other.context_tokens


def test_an_interruption_means_the_turn_that_it_names_after_others_were_taken_back() -> None:
    call = begun(says("ab"), says("cd", ends=True), says("x"), LISTEN, vocoder=Beeper())
    call.listen(2)
    before = call.context_tokens
    tried(call)
    call.tell(Retract(5))
    assert call.context_tokens == before
    call.tell(Interrupt(2, 0))
    assert call.context_tokens == before
    call.tell(Interrupt(1, 0))
    assert call.context_tokens < before


def test_a_unit_that_waits_to_be_tried_is_left_out_when_it_is_retracted() -> None:
    call = begun(LISTEN, says("ab"))
    call.call.push(second(3))
    call.call.push(replace(second(4), speculative=True))
    call.call.control(Retract(4))
    assert call.work() == [Listened(3)]
    call.heard = 4
    assert call.listen()[:2] == [TurnStarted(1), TextDelta(4, 1, "ab")]


def test_a_unit_under_way_is_taken_back_when_it_is_done() -> None:
    call, other = begun(says("ab"), LISTEN), begun(LISTEN)
    call.call.push(replace(second(3), speculative=True))
    job = call.call.next_job()
    work = job.next()
    call.call.control(Retract(3))
    call.call.push(second(3))
    while work is not None:
        call.parts.runner.do(work)
        work = job.next()
    said = call.work()
    assert said[0] == TurnStarted(1)
    assert said[-2:] == [TurnEnded(1, "interrupted"), Listened(3)]
    other.listen()
    assert call.context_tokens == other.context_tokens


def test_a_whole_unit_takes_the_place_of_the_tried_one_though_nobody_retracted_it() -> None:
    """A retraction is refused when too many commands wait."""
    call, other = begun(says("ab"), LISTEN), begun(LISTEN)
    tried(call)
    for _ in range(MAX_URGENT):
        call.call.control(Interrupt(9, 0))
    with pytest.raises(RequestError, match="too many"):
        call.call.control(Retract(3))
    assert call.listen() == [TurnEnded(1, "interrupted"), *other.listen()]
    assert call.context_tokens == other.context_tokens


def test_nothing_is_tried_while_a_turn_goes_on() -> None:
    call = begun(says("ab"), says("c", ends=True), LISTEN)
    call.listen()
    assert tried(call) == [] and not call.call.has_work
    call.tell(Retract(4))
    assert call.listen()[0] == TextDelta(4, 1, "c")
    assert call.listen(speculative=True) == [Listened(5)]


def test_a_unit_that_was_not_tried_since_a_turn_went_on_is_heard_when_it_stands() -> None:
    call = begun(says("ab"), says("c", ends=True), LISTEN)
    call.listen()
    assert call.listen(speculative=True) == []
    assert call.listen() == [TextDelta(4, 1, "c"), TurnEnded(1, "completed"), Listened(5)]


def test_the_first_picture_is_not_tried_since_it_changes_the_prompt() -> None:
    shown = (VideoFrame(np.full((28, 28, 3), 90, np.uint8), 0),)
    spoken = replace(SETTINGS, instructions="")
    call = begun(LISTEN, LISTEN, LISTEN, settings=spoken)
    before = call.context_tokens
    call.listen(speculative=True, pictures=shown)
    assert call.context_tokens == before + 13
    call.tell(Retract(3))
    assert call.context_tokens == before
    call.heard = 3
    call.listen(pictures=shown)
    assert call.context_tokens < before
    taken = call.context_tokens
    call.listen(speculative=True, pictures=shown)
    assert call.context_tokens == taken + 13 + 66


def test_a_pause_lets_what_was_tried_stand() -> None:
    call = begun(LISTEN, LISTEN)
    call.listen(speculative=True)
    before = call.context_tokens
    call.call.give_up(lambda: None)
    call.work()
    assert call.tell(Retract(3)) == []
    assert call.context_tokens == before
