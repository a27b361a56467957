"""A turn that is there but held for a while: whoever speaks then keeps it from beginning."""

from dataclasses import replace

import pytest

from agent.media.barge_in import BargeIn, BargeInDue, BargeInRules, DuckDue, ResumeDue
from agent.media.overlap import VoiceFrame
from agent.types import SpeechEnded, SpeechStarted
from tests.rig.barge_in_call import DETECTION, MS, QUIET_DBFS, USER_DBFS, Call, Voice, at, names

QUESTION = Voice(500, 2500)
HOLD = (4000, 5000)


def call_with_hold(*speech: Voice, sounds: bool = True) -> Call:
    """The user asks, the answer is held for a second; nothing has sounded in this call yet."""
    agent = [(HOLD[1], 30_000)] if sounds else []
    return Call(agent, [QUESTION, *speech], held=[HOLD if sounds else (HOLD[0], 30_000)])


def after_question(told: list[tuple[int, object]]) -> list[tuple[int, object]]:
    return [(now, event) for now, event in told if now > 3500]


# ---- who speaks on is not talked over ----------------------------------------------------------


@pytest.mark.parametrize("begin", [3450, 3900, 4000, 4100, 4600])
def test_who_speaks_during_the_hold_ducks_it_at_once_and_gets_his_turn(begin: int) -> None:
    told = after_question(call_with_hold(Voice(begin, 9000), sounds=False).run(7000))
    assert at(told, DuckDue)[0] - max(begin, HOLD[0]) <= 70
    assert at(told, ResumeDue) == []
    assert len(at(told, BargeInDue)) == 1
    assert 600 <= at(told, BargeInDue)[0] - max(begin, HOLD[0]) <= 760
    kinds = names(told)
    assert kinds.index("SpeechStarted") < kinds.index("BargeInDue")


def test_the_guard_for_echo_does_not_hold_back_what_is_said_before_the_first_sound() -> None:
    told = after_question(call_with_hold(Voice(4300, 9000), sounds=False).run(4500))
    assert at(told, SpeechStarted) == [4400]


def test_a_turn_that_follows_at_once_and_is_held_too_is_given_up_too() -> None:
    call = Call([], [QUESTION, Voice(3900, 12_000)], held=[(4000, 4620), (5000, 12_000)])
    told = after_question(call.run(9000))
    assert [now // 100 for now in at(told, BargeInDue)] == [46, 56]


def test_words_with_pauses_over_the_hold_are_counted_together() -> None:
    words = [Voice(begin, begin + 250) for begin in range(3800, 6000, 400)]
    told = after_question(call_with_hold(*words, sounds=False).run(7000))
    assert len(at(told, BargeInDue)) == 1
    assert len(at(told, DuckDue)) > 1


def test_speech_that_the_detector_never_reports_is_told_with_the_interruption() -> None:
    call = Call([], [QUESTION, Voice(4100, 6000)], held=[(4000, 4850)])
    call.run(3500)
    call.policy.speech_started = lambda at: None  # type: ignore[method-assign]
    told = names(call.run(9000))
    assert told[:3] == ["DuckDue", "SpeechStarted", "BargeInDue"]
    assert told[-1] == "SpeechEnded"


# ---- what is no interruption costs nothing ------------------------------------------------------


def test_a_cough_within_the_hold_ends_in_a_resume_before_it_is_over() -> None:
    told = after_question(call_with_hold(Voice(4200, 4450)).run(9000))
    assert [name for name in names(told) if "Speech" not in name] == ["DuckDue", "ResumeDue"]
    assert 100 <= at(told, ResumeDue)[0] - 4450 <= 180
    assert at(told, ResumeDue)[0] < HOLD[1]


def test_what_rings_on_after_a_click_is_not_taken_for_a_voice_that_an_echo_hides() -> None:
    ringing = Voice(4264, 4450, QUIET_DBFS + 20, likelihood=0.05)
    told = after_question(call_with_hold(Voice(4200, 4264), ringing).run(9000))
    assert at(told, ResumeDue)[0] - 4264 <= 180


def test_a_cough_in_the_last_echo_of_a_first_short_turn_makes_nobody_a_stranger() -> None:
    cough, words = Voice(5100, 5240), Voice(5480, 9000)
    told = Call([(4000, 5000)], [QUESTION, cough, words], held=[(5000, 9000)]).run(6500)
    first, second = at(told, DuckDue)[:2]
    assert 5100 <= first < at(told, ResumeDue)[0] < 5500, "while its echo may last"
    assert 5480 <= second <= 5550


@pytest.mark.parametrize("delay_ms", [0.0, 60.0, 400.0])
def test_no_echo_is_waited_for_where_nothing_has_sounded(delay_ms: float) -> None:
    call = call_with_hold(Voice(4200, 4264))
    call.policy.echo_delay_ms = delay_ms
    told = after_question(call.run(9000))
    assert at(told, ResumeDue)[0] - 4264 <= 180


def test_the_last_words_of_the_question_may_reach_into_the_hold() -> None:
    told = after_question(call_with_hold(Voice(3400, 4450)).run(9000))
    assert at(told, BargeInDue) == []
    assert len(at(told, DuckDue)) == len(at(told, ResumeDue)) == 1


def test_two_short_words_within_the_hold_do_not_give_it_up() -> None:
    told = after_question(call_with_hold(Voice(4050, 4300), Voice(4600, 4800)).run(9000))
    assert at(told, BargeInDue) == []


@pytest.mark.parametrize("before", [(), (Voice(4300, 4700),)], ids=["alone", "said before too"])
def test_a_backchannel_soon_after_the_beginning_is_none_the_less_one(before: tuple[Voice]) -> None:
    played_before = [(100, 2400), (HOLD[1], 30_000)]
    speech = [Voice(2600, 3300), *before, Voice(5150, 5500)]
    told = after_question(Call(played_before, speech, held=[HOLD]).run(9000))
    assert at(told, BargeInDue) == []
    ducks = [now for now in at(told, DuckDue) if now > HOLD[1]]
    assert len(ducks) == 1 and ducks[0] <= 5220
    assert 100 <= at(told, ResumeDue)[-1] - 5500 <= 180


def test_what_was_said_over_the_hold_does_not_count_once_it_sounds() -> None:
    """The segment, which began before the hold, is still open: half a second of pause ends it."""
    told = after_question(call_with_hold(Voice(3400, 4550), Voice(5020, 5450)).run(9000))
    assert at(told, BargeInDue) == []


def test_a_stranger_delays_a_held_turn_no_longer_than_he_silences_one_that_plays() -> None:
    voice = Voice(4100, 9000, dbfs=USER_DBFS - 14)
    call = call_with_hold(voice, sounds=False)
    call.run(4000)
    user_dbfs = call.policy.user_dbfs
    told = after_question(call.run(7000))
    assert call.policy.user_dbfs == user_dbfs is not None
    assert at(told, BargeInDue) == []
    assert len(at(told, DuckDue)) == 1
    assert 600 <= at(told, ResumeDue)[0] - 4100 <= 800


def test_a_held_turn_is_never_ducked_longer_than_the_maximum() -> None:
    policy = BargeIn(BargeInRules(yield_ms=5000, max_duck_ms=1000))
    call = Call([], [QUESTION, Voice(4100, 9000)], policy=policy, held=[(4000, 9000)])
    told = after_question(call.run(5500))
    assert at(told, ResumeDue)[0] - at(told, DuckDue)[0] == 1000


def test_a_click_that_the_detector_does_not_believe_in_is_not_ducked_for() -> None:
    assert after_question(call_with_hold(Voice(4300, 4364, likelihood=0.1)).run(9000)) == []


def test_a_microphone_far_above_an_echo_that_cannot_be_there_is_not_ducked_for() -> None:
    noise = Voice(4200, 4900, QUIET_DBFS, likelihood=0.01, over_echo_db=6.0)
    assert after_question(call_with_hold(noise, sounds=False).run(4900)) == []


# ---- how it ends --------------------------------------------------------------------------------


def test_a_held_turn_that_the_client_gives_up_ends_the_duck() -> None:
    call = Call([], [QUESTION, Voice(4100, 9000)], held=[(4000, 4300)])
    told = after_question(call.run(9000))
    assert at(told, ResumeDue) == [4310]
    assert at(told, BargeInDue) == []
    assert not call.policy.ducked


@pytest.mark.parametrize(
    "detection", [None, replace(DETECTION, interrupt_response=False)], ids=["off", "polite"]
)
def test_settings_that_forbid_to_interrupt_let_a_held_turn_begin(detection: object) -> None:
    call = call_with_hold(Voice(4100, 9000), sounds=False)
    call.run(4300)
    assert call.policy.ducked
    call.policy.update(detection)  # type: ignore[arg-type]
    assert ResumeDue(4310 * MS) in [event for _, event in call.run(4310)]
    assert not {"DuckDue", "BargeInDue"} & set(names(call.run(9000)))


def test_who_begins_after_the_first_sound_interrupts_as_ever() -> None:
    speech = [QUESTION, Voice(9000, 11_000)]
    held = Call([(HOLD[1], 30_000)], speech, held=[HOLD]).run(12_000)
    plain = Call([(HOLD[1], 30_000)], speech).run(12_000)
    assert held == plain
    assert len(at(held, BargeInDue)) == 1
    assert len(at(held, SpeechEnded)) == 2


def test_a_hold_is_no_time_in_which_the_agent_played() -> None:
    """Neither the guard runs down in it, nor is anything taken for the agent's echo alone."""
    policy = BargeIn()
    policy.update(DETECTION)
    for now in range(10, 5000, 10):
        policy.hear(VoiceFrame(now * MS, 0.01, QUIET_DBFS))
        policy.advance(now * MS, False, held=True)
        assert not policy.hears_echo_alone
    blip = Call([(HOLD[1], 30_000)], [Voice(5300, 5650)], held=[(10, HOLD[1])])
    assert blip.run(9000) == []
