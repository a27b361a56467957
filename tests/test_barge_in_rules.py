"""What decides about a voice over the agent: whose it is, the dial; and that no duck stays."""

from dataclasses import asdict, replace

import pytest

from agent.config import Config
from agent.media.barge_in import BargeIn, BargeInDue, BargeInRules, DuckDue, ResumeDue
from agent.types import SpeechEnded, SpeechStarted, TurnDetection
from tests.rig.barge_in_call import (
    DETECTION,
    MS,
    USER_DBFS,
    USER_FIRST,
    Call,
    Voice,
    at,
    ended,
    heard_over_agent,
    names,
    over_agent,
    started,
)

# ---- whose voice it is ------------------------------------------------------------------------


@pytest.mark.parametrize("below_db", [10, 12, 15])
def test_side_speech_lets_the_agent_go_on_while_it_still_lasts(below_db: float) -> None:
    told = heard_over_agent(Voice(0, 2500, dbfs=USER_DBFS - below_db))
    assert at(told, BargeInDue) == []
    assert at(told, DuckDue) and 600 <= at(told, ResumeDue)[0] <= 800
    assert len(at(told, DuckDue)) == 1


def test_who_speaks_a_little_softer_than_before_needs_longer() -> None:
    loud = at(heard_over_agent(Voice(0, 3000)), BargeInDue)
    soft = at(heard_over_agent(Voice(0, 3000, dbfs=USER_DBFS - 7)), BargeInDue)
    assert loud[0] + 200 < soft[0] < 2000


def test_nobody_is_ignored_for_ever() -> None:
    told = heard_over_agent(Voice(0, 6000, dbfs=USER_DBFS - 14, over_echo_db=4.0))
    assert 3000 < at(told, BargeInDue)[0] < 4000


def test_what_does_not_rise_and_fall_is_no_speech() -> None:
    hum = heard_over_agent(Voice(0, 2500, melody=False))
    assert at(hum, BargeInDue) == []
    assert len(at(hum, ResumeDue)) == len(at(hum, DuckDue)) == 1


def test_a_user_who_was_never_heard_before_is_believed() -> None:
    told = Call([(0, 20_000)], [Voice(7000, 9000, dbfs=-50)]).run(12_000)
    assert 7680 <= at(told, BargeInDue)[0] <= 7760


# ---- the dial ---------------------------------------------------------------------------------


def test_eagerness_decides_about_a_short_word() -> None:
    word = Voice(0, 450)
    assert at(heard_over_agent(word, rules=BargeInRules(eagerness=0.0)), BargeInDue) == []
    assert at(heard_over_agent(word, rules=BargeInRules(eagerness=0.5)), BargeInDue) == []
    assert at(heard_over_agent(word, rules=BargeInRules(eagerness=1.0)), BargeInDue) != []


def test_the_dial_moves_the_time_to_yield_from_half_to_twice() -> None:
    times = [
        at(heard_over_agent(Voice(0, 4000), rules=BargeInRules(eagerness=dial)), BargeInDue)[0]
        for dial in (1.0, 0.75, 0.5, 0.25, 0.0)
    ]
    assert times == sorted(times)
    assert 330 <= times[0] <= 420
    assert 1380 <= times[-1] <= 1460


def test_the_settings_hold_the_defaults_of_the_rules() -> None:
    assert Config().barge_in.model_dump() == asdict(BargeInRules())


# ---- no state in which the agent stays silent -------------------------------------------------


def test_every_duck_ends_within_its_maximum() -> None:
    rules = BargeInRules(yield_ms=5000, max_duck_ms=1000)
    told = heard_over_agent(Voice(0, 3000), rules=rules)
    assert at(told, ResumeDue)[0] - at(told, DuckDue)[0] == 1000
    assert len(at(told, ResumeDue)) == len(at(told, DuckDue))


def test_a_duck_without_any_voice_after_it_ends() -> None:
    told = heard_over_agent(Voice(0, 64))
    assert [name for name in names(told) if "Speech" not in name] == ["DuckDue", "ResumeDue"]


@pytest.mark.parametrize(
    "detection", [None, replace(DETECTION, interrupt_response=False)], ids=["off", "polite"]
)
def test_settings_that_forbid_to_interrupt_end_a_duck(detection: TurnDetection | None) -> None:
    call = over_agent(Voice(0, 3000))
    call.run(7300)
    assert call.policy.ducked
    call.policy.update(detection)
    assert ResumeDue(7310 * MS) in [event for _, event in call.run(7310)]
    assert not call.policy.ducked
    assert "DuckDue" not in names(call.run(12_000))


def test_an_agent_that_stops_by_itself_ends_the_duck() -> None:
    call = Call([(4000, 7300), (7600, 20_000)], [USER_FIRST, Voice(7000, 7500)])
    told = call.run(12_000)
    assert at(told, DuckDue) == [now for now in at(told, DuckDue) if now < 7300]
    assert at(told, ResumeDue)[0] == 7310
    assert not call.policy.ducked


def test_a_turn_that_is_given_up_between_two_frames_ends_the_duck() -> None:
    call = over_agent(Voice(0, 3000))
    call.run(7300)
    call.policy.agent_stopped()
    assert not call.policy.ducked
    told = call.run(7310)
    assert ResumeDue not in [type(event) for _, event in told]


def test_finish_ends_a_duck() -> None:
    call = over_agent(Voice(0, 3000))
    call.run(7300)
    assert call.policy.finish() == [ResumeDue(7300 * MS), SpeechEnded(7300 * MS)]
    assert not call.policy.ducked


def test_an_agent_that_plays_on_after_an_interruption_can_be_interrupted_again() -> None:
    told = heard_over_agent(Voice(0, 1500), Voice(4000, 5500))
    assert len(at(told, BargeInDue)) == 2


@pytest.mark.parametrize("seed", range(20))
def test_ducks_and_their_ends_alternate_whatever_is_heard(seed: int) -> None:
    def noise(number: int) -> Voice:
        begin = 300 * number
        length = (seed * 37 + number * 101) % 700
        likelihood = ((seed * 13 + number * 29) % 100) / 100
        return Voice(begin, begin + length, -20 - (seed * number) % 30, likelihood)

    told = heard_over_agent(*[noise(number) for number in range(30)])
    ducked = False
    for _, event in told:
        if isinstance(event, DuckDue):
            assert not ducked
            ducked = True
        elif isinstance(event, ResumeDue):
            assert ducked
            ducked = False
        elif isinstance(event, BargeInDue):
            ducked = False
    assert not ducked


# ---- settings and the end ---------------------------------------------------------------------


def test_without_leave_to_interrupt_speech_is_still_reported() -> None:
    polite = replace(DETECTION, interrupt_response=False)
    told = Call(agent=[(0, 9000)], speech=[(5000, 6000)], detection=polite).run(9000)
    assert told == [(5100, started(5000)), (6500, ended(6000))]


def test_detection_switched_off_forgets_the_segment() -> None:
    policy = BargeIn()
    policy.advance(160, False)
    policy.speech_started(0)
    assert policy.advance(320, False) == [SpeechStarted(0)]
    policy.update(None)
    policy.speech_ended(320)
    assert policy.advance(480, False) == []
    assert policy.finish() == []


def test_finish_ends_what_was_reported_and_only_that() -> None:
    policy = BargeIn()
    policy.advance(160, False)
    policy.speech_started(0)
    policy.advance(320, False)
    policy.speech_continues(320)
    assert policy.finish() == [SpeechEnded(320)]
    guarded = BargeIn()
    guarded.advance(160, True)
    guarded.speech_started(0)
    guarded.advance(320, True)
    assert guarded.finish() == []
