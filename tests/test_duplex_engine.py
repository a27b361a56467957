"""The engine on the tiny model: whose work is next, who comes and goes, who is paused."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from agent.chat_types import ChatDelta, ChatDone, ChatMessage, ChatRequest, ChatText
from agent.clock import Clock
from agent.commands import AddText, Pause, Respond, Resume, UpdateSettings
from agent.duplex.call_parts import CallParts
from agent.duplex.engine import MAX_CHATS, PARK_AFTER_S, DuplexEngine
from agent.duplex.turns_call import TurnsCall
from agent.duplex.window import WindowSettings
from agent.errors import CapacityError, EngineError, RequestError
from agent.types import (
    Abilities,
    CallMode,
    Failed,
    Listened,
    Load,
    Paused,
    SpeechEnded,
    SpeechStarted,
    TextDelta,
    TurnEnded,
    TurnStarted,
    UnitReport,
)
from tests.rig.scripted_call import SETTINGS, parts, without_usage
from tests.rig.tiny_mind import LISTEN, Script, says, second

FORCED = [Listened(0), Listened(1), Listened(2)]


CALL_MODES: tuple[CallMode, ...] = ("duplex", "half_duplex")


class StoppedClock(Clock):
    """Time stands still unless it is moved."""

    def __init__(self) -> None:
        self.time_s = 100.0

    def now_s(self) -> float:
        return self.time_s


class Desk:
    """An engine whose calls decide as written, one script for each conversation in turn."""

    def __init__(self, *scripts: Sequence[Sequence[int]], slots: int = 2, **changes: object):
        self.clock = StoppedClock()
        waiting = [Script(*units) for units in scripts]
        made: CallParts = parts(slots=slots, **changes)
        if waiting:
            made = replace(made, script=lambda: waiting.pop(0))
        self.engine = DuplexEngine(made, Abilities(duplex=True, chat=True), self.clock)

    def hear(self, number: int, *units: int) -> None:
        for index in units:
            self.engine.push(number, second(index))

    def work(self) -> list[tuple[int, object]]:
        """All that there is to do now; what is said, but for reports."""
        said = self.engine.work()
        while self.engine.idle_s() == 0:
            said += self.engine.work()
        return [one for one in said if not isinstance(one[1], UnitReport)]


def of(number: int, said: list[tuple[int, object]]) -> list[object]:
    return without_usage(event for to, event in said if to == number)


def ask(text: str = "hi", **changes: object) -> ChatRequest:
    message = ChatMessage("user", (ChatText(text),))
    return ChatRequest((message,), max_tokens=6, seed=1, **changes)  # type: ignore[arg-type]


# ---- company ------------------------------------------------------------------------------------


def test_calls_side_by_side_say_what_each_says_alone() -> None:
    mine = [says("ab"), says("c", ends=True), LISTEN]
    yours = [LISTEN, says("de"), says("f")]
    both, alone = Desk(mine, yours), [Desk(mine), Desk(yours)]
    for number in (1, 2):
        both.engine.open(number, SETTINGS)
        alone[number - 1].engine.open(number, SETTINGS)
    said: list[tuple[int, object]] = []
    for index in range(6):
        both.hear(1, index)
        both.hear(2, index)
        said += both.work()
    for number, desk in enumerate(alone, 1):
        desk.hear(number, *range(6))
        assert of(number, said) == of(number, desk.work())
    assert TextDelta(3, 1, "ab") in of(1, said) and TextDelta(4, 1, "de") in of(2, said)
    slots = both.engine._parts.runner.slots.llm.tensor
    for number, desk in enumerate(alone):
        length = desk.engine._calls[number + 1].call._talk.context_tokens
        theirs = desk.engine._parts.runner.slots.llm.tensor
        apart = (slots[:, :, number, :, : length - 1] - theirs[:, :, 0, :, : length - 1]).abs()
        assert float(apart.max()) < 1e-4 * float(theirs.abs().max())


def test_each_unit_is_done_to_its_end_before_the_next_one_of_another_call() -> None:
    desk = Desk([LISTEN], [LISTEN])
    for number in (1, 2):
        desk.engine.open(number, SETTINGS)
        desk.hear(number, 0)
    order = [number for number, _ in desk.work()]
    assert order == [1, 2]
    desk.hear(2, 1, 2)
    desk.hear(1, 1, 2)
    assert [number for number, _ in desk.work()] in ([1, 2, 1, 2], [2, 1, 2, 1])


def test_no_more_calls_than_slots_and_a_finished_one_makes_room() -> None:
    desk = Desk()
    desk.engine.open(1, SETTINGS)
    desk.engine.open(2, SETTINGS)
    assert desk.engine.load() == Load(slots_used=2, slots_free=0)
    with pytest.raises(CapacityError):
        desk.engine.open(3, SETTINGS)
    desk.engine.finish(1)
    desk.engine.finish(1)
    assert desk.engine.load() == Load(slots_used=1, slots_free=1)
    desk.engine.open(4, SETTINGS)


def test_a_call_that_cannot_go_on_ends_alone() -> None:
    desk = Desk(slots=2, window=WindowSettings(mode="off"))
    slots = desk.engine._parts.runner.slots
    desk.engine.open(1, SETTINGS)
    desk.engine.open(2, SETTINGS)
    full = desk.engine._calls[1].call._talk._memory
    full.window._prefix_tokens = full.llm.length = slots.llm.positions - 10
    desk.hear(1, 0)
    desk.hear(2, 0)
    said = desk.work()
    (failure,) = of(1, said)
    assert isinstance(failure, Failed) and isinstance(failure.error, EngineError)
    assert "do not fit" in str(failure.error)
    assert of(2, said) == [Listened(0)]
    assert slots.free == 1


def test_what_is_told_to_a_call_that_has_ended_is_ignored() -> None:
    desk = Desk()
    desk.hear(9, 0)
    desk.engine.control(9, Respond())
    assert desk.work() == []


# ---- pauses -------------------------------------------------------------------------------------


def test_a_paused_call_hears_nothing_and_ends_its_turn() -> None:
    desk = Desk([says("ab"), LISTEN])
    desk.engine.open(1, SETTINGS)
    desk.hear(1, 0, 1, 2, 3)
    desk.work()
    desk.engine.control(1, Pause())
    assert set(map(type, of(1, desk.work()))) == {Paused, TurnEnded}
    desk.hear(1, 4)
    assert desk.work() == []
    desk.engine.control(1, Resume())
    desk.hear(1, 5)
    assert of(1, desk.work()) == [Listened(5)]


def test_a_call_paused_for_a_minute_leaves_its_slot_and_goes_on_where_it_was() -> None:
    desk, other = Desk([LISTEN, says("ab")], [LISTEN]), Desk([LISTEN, says("ab")])
    for one in (desk, other):
        one.engine.open(1, SETTINGS)
        one.hear(1, 0, 1, 2, 3)
        one.work()
    desk.engine.control(1, Pause())
    desk.work()
    assert desk.engine.idle_s() == PARK_AFTER_S
    desk.clock.time_s += PARK_AFTER_S - 1
    desk.work()
    assert desk.engine.load().slots_free == 1
    desk.clock.time_s += 1
    desk.work()
    assert desk.engine.load().slots_free == 2 and desk.engine.idle_s() is None
    desk.engine.open(2, SETTINGS)
    desk.hear(2, 0, 1, 2, 3)
    desk.work()
    desk.engine.control(1, Resume())
    for one in (desk, other):
        one.hear(1, 4)
    assert of(1, desk.work()) == of(1, other.work()) == [TurnStarted(1), TextDelta(4, 1, "ab")]


def test_a_call_for_which_there_is_no_place_stays_paused_until_there_is_one() -> None:
    desk = Desk()
    desk.engine.open(1, SETTINGS)
    desk.engine.control(1, Pause())
    desk.clock.time_s += PARK_AFTER_S
    desk.work()
    for number in (2, 3):
        desk.engine.open(number, SETTINGS)
    with pytest.raises(RequestError, match="stays paused"):
        desk.engine.control(1, Resume())
    assert of(1, desk.work()) == [Paused("no place is free")]
    desk.engine.finish(2)
    desk.engine.control(1, Resume())
    desk.hear(1, 0)
    assert of(1, desk.work()) == [Listened(0)]


# ---- modes --------------------------------------------------------------------------------------


def test_a_call_changes_between_duplex_and_half_duplex_and_its_turns_keep_counting() -> None:
    desk = Desk([says("ab")], [], [says("c")])
    desk.engine.open(1, SETTINGS)
    desk.hear(1, 0, 1, 2, 3)
    assert of(1, desk.work())[-2:] == [TurnStarted(1), TextDelta(3, 1, "ab")]
    desk.engine.control(1, UpdateSettings(replace(SETTINGS, mode="half_duplex")))
    assert of(1, desk.work()) == [TurnEnded(1, "interrupted")]
    desk.engine.control(1, UpdateSettings(SETTINGS))
    desk.hear(1, 4, 5, 6, 7)
    assert of(1, desk.work())[-2:] == [TurnStarted(2), TextDelta(7, 2, "c")]
    assert desk.engine.load().slots_used == 1


@pytest.mark.parametrize("mode", ["duplex", "half_duplex"])
def test_settings_that_cannot_be_taken_leave_the_call_and_its_memory_as_they_were(
    mode: CallMode,
) -> None:
    desk = Desk()
    held = replace(SETTINGS, mode=mode)
    desk.engine.open(1, held)
    desk.engine.control(1, AddText("a", "user", "remember me"))
    desk.hear(1, 0)
    desk.engine.push(1, SpeechStarted(20_000))
    desk.hear(1, 1)
    desk.engine.push(1, SpeechEnded(30_000))
    desk.work()
    before = desk.engine._calls[1].call._talk.context_tokens
    assert before > 30
    for other in CALL_MODES:
        wrong = replace(SETTINGS, mode=other, instructions="x" * 2000)
        with pytest.raises(RequestError, match="at most half"):
            desk.engine.control(1, UpdateSettings(wrong))
    desk.work()
    assert desk.engine._calls[1].call._talk.context_tokens == before
    assert desk.engine.load().slots_used == 1


def test_a_parked_call_that_changes_its_mode_begins_anew_when_it_is_resumed() -> None:
    desk = Desk()
    desk.engine.open(1, SETTINGS)
    desk.engine.control(1, Pause())
    desk.work()
    desk.clock.time_s += PARK_AFTER_S
    desk.work()
    desk.engine.open(2, SETTINGS)
    desk.engine.open(3, SETTINGS)
    desk.engine.control(1, UpdateSettings(replace(SETTINGS, mode="half_duplex")))
    assert desk.engine.load().slots_free == 0
    with pytest.raises(RequestError, match="stays paused"):
        desk.engine.control(1, Resume())
    desk.engine.finish(2)
    desk.engine.control(1, Resume())
    desk.hear(1, 0)
    assert of(1, desk.work())[-1] == Listened(0)
    assert isinstance(desk.engine._calls[1].call, TurnsCall)
    assert desk.engine.load().slots_free == 0


def test_a_pause_in_the_middle_of_a_unit_ends_the_turn_that_the_unit_begins() -> None:
    desk = Desk([says("ab"), LISTEN])
    desk.engine.open(1, SETTINGS)
    desk.hear(1, 0, 1, 2)
    desk.work()
    desk.hear(1, 3)
    said = desk.engine.work() + desk.engine.work()
    assert of(1, said) == []
    desk.engine.control(1, Pause())
    said += desk.work()
    assert of(1, said) == [
        TurnStarted(1),
        TextDelta(3, 1, "ab"),
        TurnEnded(1, "interrupted"),
        Paused("asked by the client"),
    ]


def test_a_unit_of_a_duplex_call_goes_between_the_pieces_of_a_half_duplex_turn() -> None:
    desk = Desk()
    desk.engine.open(1, replace(SETTINGS, mode="half_duplex"))
    desk.engine.open(2, SETTINGS)
    desk.work()
    desk.engine.push(1, SpeechStarted(100))
    desk.hear(1, 0)
    desk.engine.push(1, SpeechEnded(15_000))
    said = desk.engine.work()
    desk.hear(2, 0)
    while not of(2, said):
        said += desk.engine.work()
    assert TurnStarted(1) not in of(1, said)


# ---- chats --------------------------------------------------------------------------------------


def test_a_chat_is_answered_piece_by_piece_and_gives_its_slot_back() -> None:
    desk = Desk()
    desk.engine.chat(7, ask())
    assert desk.engine.load().slots_free == 1
    said = of(7, desk.work())
    assert isinstance(said[-1], ChatDone)
    assert said[-1].answer_tokens <= 6 and said[-1].prompt_tokens > 0
    assert all(isinstance(one, ChatDelta) for one in said[:-1])
    assert desk.engine.load().slots_free == 2


def test_a_call_goes_before_a_chat_and_neither_changes_the_other() -> None:
    alone = Desk()
    alone.engine.chat(7, ask())
    answer = of(7, alone.work())
    desk = Desk(slots=3)
    desk.engine.open(1, SETTINGS)
    desk.engine.chat(7, ask())
    desk.engine.work()
    desk.hear(1, 0)
    said = []
    while not of(1, said):
        said += desk.engine.work()
    assert not any(isinstance(one, ChatDone) for one in of(7, said))
    assert of(7, said + desk.work()) == answer


def test_the_last_slot_is_kept_for_a_call_where_there_is_more_than_one() -> None:
    desk = Desk()
    desk.engine.chat(7, ask())
    with pytest.raises(CapacityError):
        desk.engine.chat(8, ask())
    desk.engine.open(1, SETTINGS)
    single = Desk(slots=1)
    single.engine.chat(7, ask())


def test_an_answer_that_nobody_waits_for_is_given_up() -> None:
    desk = Desk()
    desk.engine.chat(7, ask())
    desk.engine.work()
    desk.engine.finish(7)
    assert desk.work() == [] and desk.engine.load().slots_free == 2


def test_too_many_chats_are_refused() -> None:
    desk = Desk(slots=MAX_CHATS + 1)
    for number in range(MAX_CHATS):
        desk.engine.chat(number, ask())
    with pytest.raises(CapacityError):
        desk.engine.chat(MAX_CHATS, ask())


def test_a_bad_request_is_refused_and_takes_no_slot() -> None:
    desk = Desk()
    with pytest.raises(RequestError):
        desk.engine.chat(1, ChatRequest(()))
    assert desk.engine.load().slots_free == 2


def test_a_command_the_call_cannot_carry_out_is_refused_and_nothing_is_lost() -> None:
    desk = Desk()
    desk.engine.open(1, SETTINGS)
    with pytest.raises(RequestError):
        desk.engine.control(1, AddText("a", "assistant", "I said so"))
    desk.hear(1, 0)
    assert of(1, desk.work()) == [Listened(0)]
