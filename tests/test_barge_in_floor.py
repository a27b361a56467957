"""Who has the floor when the agent begins, and the guard over its first sound."""

import pytest

from agent.media.barge_in import BargeIn, BargeInDue, BargeInRules, DuckDue, ResumeDue
from agent.types import SpeechStarted, TurnDetection
from tests.rig.barge_in_call import MS, Call, at, ended, names, started


def due(at_ms: int) -> BargeInDue:
    return BargeInDue(at_ms * MS)


# ---- who has the floor ------------------------------------------------------------------------


def test_speech_before_the_agent_plays_silences_it_after_600_ms_of_overlap() -> None:
    call = Call(agent=[(0, 3000), (5000, 9000)], speech=[(4000, 7000)])
    told = call.run(9000)
    assert told == [(4100, started(4000)), (5610, due(5610)), (7500, ended(7000))]


def test_the_last_words_before_the_agent_plays_do_not_silence_it() -> None:
    call = Call(agent=[(0, 3000), (5000, 9000)], speech=[(4000, 5450)])
    assert call.run(9000) == [(4100, started(4000)), (5950, ended(5450))]


def test_the_overlap_counts_inside_the_guard_too() -> None:
    told = Call(agent=[(2000, 9000)], speech=[(1000, 5000)]).run(9000)
    assert told == [(1100, started(1000)), (2610, due(2610)), (5500, ended(5000))]


def test_a_pause_in_the_overlap_does_not_count() -> None:
    policy = BargeIn(BargeInRules(guard_s=0.0))
    voiced = [(100, 1000), (1450, 3000)]
    told: list[object] = []
    for now in range(10, 3000, 10):
        if now == 200:
            policy.speech_started(100 * MS)
        heard = max((min(now, end) for at, end in voiced if now >= at), default=0)
        policy.speech_continues(heard * MS)
        told += policy.advance(now * MS, now > 900)
    # Voiced over the agent: 910 to 1000, then 1450 on: 90 ms and 510 ms.
    assert told == [started(100), due(1960)]


def test_speech_that_silenced_one_turn_silences_the_next_that_talks_over_it() -> None:
    call = Call(agent=[(0, 5750), (6500, 9000)], speech=[(5000, 8000)])
    first, second = (event for _, event in call.run(9000) if isinstance(event, BargeInDue))
    assert 5680 * MS < first.at < 5760 * MS
    assert second == due(7110)


def test_speech_over_a_turn_that_ends_by_itself_does_not_count_against_the_next() -> None:
    call = Call(agent=[(0, 1000), (3000, 9000)], speech=[(800, 3550)])
    assert call.run(9000) == [(1400, started(800)), (4050, ended(3550))]


def test_while_the_agent_is_silent_speech_is_only_reported() -> None:
    call = Call(agent=[], speech=[(100, 300), (2000, 3000)])
    assert call.run(5000) == [
        (200, started(100)),
        (800, ended(300)),
        (2100, started(2000)),
        (3500, ended(3000)),
    ]


# ---- the guard --------------------------------------------------------------------------------


@pytest.mark.parametrize("length_ms", [110, 200, 390])
def test_a_blip_in_the_guard_is_swallowed(length_ms: int) -> None:
    assert Call(agent=[(0, 9000)], speech=[(500, 500 + length_ms)]).run(9000) == []


@pytest.mark.parametrize("length_ms", [110, 200, 390])
def test_a_blip_whose_end_is_noticed_after_the_guard_is_swallowed_too(length_ms: int) -> None:
    call = Call(agent=[(0, 9000)], speech=[(1550 - length_ms, 1550)])
    assert call.run(9000) == []


def test_real_speech_inside_the_guard_is_told_late_with_its_true_place() -> None:
    told = Call(agent=[(0, 9000)], speech=[(300, 800)]).run(9000)
    assert [event for _, event in told if not isinstance(event, DuckDue | ResumeDue)] == [
        started(300),
        ended(800),
    ]
    assert at(told, SpeechStarted) == [1300]


def test_sure_speech_silences_the_agent_inside_the_guard() -> None:
    told = Call(agent=[(0, 9000)], speech=[(300, 4000)]).run(9000)
    assert names(told) == ["DuckDue", "SpeechStarted", "BargeInDue", "SpeechEnded"]
    assert at(told, DuckDue) == [700]
    assert at(told, SpeechStarted) == [900]
    # Once the echo of what came before the duck has gone, and 200 ms more were heard.
    assert 1100 <= at(told, BargeInDue)[0] <= 1250


def test_echo_inside_the_guard_falls_silent_with_the_agent_and_does_not_interrupt() -> None:
    # The agent ducks 400 ms after its uncancelled echo began, which ends 200 ms later.
    told = Call(agent=[(0, 9000)], speech=[(300, 900)]).run(1890)
    assert names(told) == ["DuckDue", "SpeechStarted", "ResumeDue", "SpeechEnded"]
    assert at(told, ResumeDue)[0] <= 1060


def test_uncancelled_echo_makes_the_agent_duck_once() -> None:
    call = Call(agent=[(0, 9000)], speech=[(300, 900), (1050, 1600)])
    assert len(at(call.run(1900), DuckDue)) == 1


def test_speech_that_outlasts_the_guard_interrupts_when_it_lasts() -> None:
    told = Call(agent=[(0, 9000)], speech=[(1600, 4000)]).run(9000)
    assert names(told) == ["DuckDue", "SpeechStarted", "BargeInDue", "SpeechEnded"]
    # Frames in which the agent plays count: at 2010 it has played for two seconds.
    assert at(told, SpeechStarted) == [2010]
    assert at(told, BargeInDue)[0] <= 2480


def test_a_pause_at_the_end_of_the_guard_only_delays() -> None:
    call = Call(agent=[(0, 9000)], speech=[])
    voiced = [(1000, 1500), (2300, 3000)]
    told = []
    for now in range(10, 3000, 10):
        if now == 1100:
            call.policy.speech_started(1000 * MS)
        heard = max((min(now, end) for begin, end in voiced if now >= begin), default=0)
        call.policy.speech_continues(heard * MS)
        told += [(now, event) for event in call.policy.advance(now * MS, True)]
    assert [(now, event) for now, event in told if isinstance(event, SpeechStarted)] == [
        (2300, started(1000))
    ]
    assert at(told, BargeInDue) == []


def test_guard_counts_what_the_agent_played_not_time() -> None:
    # 1 s played before: a second of the guard is left, and echo comes in late.
    blip_late_in_guard = Call(agent=[(0, 1000), (5000, 9000)], speech=[(5500, 5700)])
    assert blip_late_in_guard.run(9000) == []
    blip_of_the_last_echo = Call(agent=[(0, 1000)], speech=[(1050, 1250)])
    assert blip_of_the_last_echo.run(9000) == []
    between_utterances = Call(agent=[(0, 1000), (5000, 9000)], speech=[(3000, 3200)])
    assert len(between_utterances.run(9000)) == 2


def test_guard_is_only_for_the_first_utterance() -> None:
    told = Call(agent=[(0, 3000), (6000, 9000)], speech=[(6100, 7000)]).run(9000)
    assert names(told)[:3] == ["DuckDue", "SpeechStarted", "BargeInDue"]


def test_guard_length_is_a_setting() -> None:
    policy = BargeIn(BargeInRules(guard_s=0.0))
    told = Call(agent=[(0, 9000)], speech=[(500, 1500)], policy=policy).run(9000)
    assert names(told)[:3] == ["DuckDue", "SpeechStarted", "BargeInDue"]


def test_padding_does_not_make_a_blip_long() -> None:
    padded = TurnDetection(prefix_padding_ms=300)
    policy = BargeIn()
    policy.update(padded)
    for now in range(10, 3000, 10):
        if now == 1100:
            policy.speech_started(700 * MS)
        if now == 1800:
            policy.speech_ended(1300 * MS)
        assert policy.advance(now * MS, True) == []
