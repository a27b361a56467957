"""Who interrupts the agent is ducked for at once and yielded to when it lasts."""

from dataclasses import replace

import pytest

from agent.media.barge_in import BargeIn, BargeInDue, BargeInRules, DuckDue, ResumeDue
from agent.media.overlap import VoiceFrame
from agent.types import SpeechEnded, SpeechStarted
from tests.rig.barge_in_call import (
    DETECTION,
    FRAME,
    MELODY_DB,
    MS,
    QUIET_DBFS,
    USER_DBFS,
    USER_FIRST,
    Call,
    Voice,
    at,
    ended,
    heard_over_agent,
    names,
    over_agent,
)


def test_an_interruption_ducks_at_once_and_interrupts_when_it_lasts() -> None:
    told = heard_over_agent(Voice(0, 2000))
    assert names(told) == ["DuckDue", "SpeechStarted", "BargeInDue", "SpeechEnded"]
    assert at(told, DuckDue)[0] <= 70
    assert 680 <= at(told, BargeInDue)[0] <= 760


@pytest.mark.parametrize("length_ms", [150, 300, 450, 600])
def test_a_backchannel_ducks_and_the_agent_goes_on_soon_after(length_ms: int) -> None:
    told = heard_over_agent(Voice(0, length_ms))
    assert [name for name in names(told) if "Speech" not in name] == ["DuckDue", "ResumeDue"]
    assert 100 <= at(told, ResumeDue)[0] - length_ms <= 180


def test_a_click_that_the_detector_does_not_believe_in_is_not_even_ducked_for() -> None:
    assert heard_over_agent(Voice(0, 64, likelihood=0.1)) == []


def test_a_long_way_to_the_page_makes_for_quicker_decisions() -> None:
    gaps = []
    for delay_ms in (0.0, 60.0, 140.0, 400.0):
        call = over_agent(Voice(0, 600))
        call.policy.echo_delay_ms = delay_ms
        gaps.append(at(call.run(9000), ResumeDue)[0] - 7600)
    assert gaps[0] == gaps[1] > gaps[2] > gaps[3] >= 40


def test_a_duck_lasts_until_the_echo_has_gone_and_something_could_be_heard() -> None:
    for delay_ms in (100.0, 300.0):
        call = over_agent(Voice(0, 64))
        call.policy.echo_delay_ms = delay_ms
        told = call.run(9000)
        assert delay_ms < at(told, ResumeDue)[0] - at(told, DuckDue)[0] < delay_ms + 100


def test_between_two_ducks_more_than_a_click_of_the_agent_is_heard() -> None:
    told = heard_over_agent(Voice(0, 100), *(Voice(at, at + 60) for at in range(240, 1600, 220)))
    resumed, ducked = at(told, ResumeDue), at(told, DuckDue)[1:]
    assert len(ducked) >= 2
    assert all(duck - max(at for at in resumed if at < duck) >= 80 for duck in ducked)


def test_short_pauses_are_part_of_the_interruption() -> None:
    told = heard_over_agent(Voice(0, 400), Voice(500, 1500))
    assert names(told)[:1] == ["DuckDue"]
    assert 680 <= at(told, BargeInDue)[0] <= 760
    assert at(told, ResumeDue) == []


def test_who_tries_again_is_yielded_to_sooner() -> None:
    once = heard_over_agent(Voice(0, 380))
    assert at(once, BargeInDue) == []
    twice = heard_over_agent(Voice(0, 380), Voice(900, 1280))
    assert names(twice).count("DuckDue") == 2
    assert len(at(twice, BargeInDue)) == 1
    assert at(twice, BargeInDue)[0] < 1280
    much_later = heard_over_agent(Voice(0, 380), Voice(3000, 3380))
    assert at(much_later, BargeInDue) == []


def test_the_third_try_is_yielded_to_at_once() -> None:
    tries = [Voice(begin, begin + 160, over_echo_db=6.0) for begin in (0, 700, 1400)]
    rules = BargeInRules(yield_ms=1400)
    assert at(heard_over_agent(*tries[:2], rules=rules), BargeInDue) == []
    told = heard_over_agent(*tries, rules=rules)
    assert 1400 < at(told, BargeInDue)[0] <= 1560


def unknown_words(*begins_ms: int, dbfs: float = USER_DBFS) -> list[Voice]:
    """Short words, louder than the echo, that the detector takes for no speech."""
    return [Voice(at, at + 160, dbfs, likelihood=0.2, over_echo_db=6.0) for at in begins_ms]


def test_who_says_a_word_again_and_again_is_yielded_to_even_if_the_detector_knows_it_not() -> None:
    assert at(heard_over_agent(*unknown_words(0)), BargeInDue) == []
    told = heard_over_agent(*unknown_words(0, 600))
    ends = ["SpeechStarted", "BargeInDue", "SpeechEnded"]
    assert names(told) == ["DuckDue", "ResumeDue", "DuckDue", *ends]
    assert 700 <= at(told, BargeInDue)[0] <= 760


def test_words_that_the_canceller_takes_away_insist_as_well() -> None:
    told = heard_over_agent(
        *(
            Voice(at, at + 160, QUIET_DBFS, 0.02, over_echo_db=6.0, near_dbfs=USER_DBFS)
            for at in (0, 600)
        )
    )
    assert 700 <= at(told, BargeInDue)[0] <= 760


def test_quiet_or_rare_or_quick_sounds_do_not_insist() -> None:
    quiet = heard_over_agent(*unknown_words(0, 600, 1200, dbfs=USER_DBFS - 12))
    rare = heard_over_agent(*unknown_words(0, 1700, 3400))
    quick = heard_over_agent(*unknown_words(0, 400))
    assert [at(told, BargeInDue) for told in (quiet, rare, quick)] == [[], [], []]


def test_a_voice_of_which_the_canceller_leaves_nothing_is_ducked_for() -> None:
    hidden = Voice(0, 200, QUIET_DBFS, likelihood=0.01, over_echo_db=6.0)
    told = heard_over_agent(hidden, Voice(200, 1500))
    assert at(told, DuckDue)[0] <= 130
    assert len(at(told, BargeInDue)) == 1
    assert at(told, ResumeDue) == []
    alone = heard_over_agent(hidden)
    assert [name for name in names(alone) if "Speech" not in name] == ["DuckDue", "ResumeDue"]


def test_a_rest_of_echo_that_the_detector_takes_for_the_voice_before_adds_nothing_to_it() -> None:
    remark = Voice(0, 700, USER_DBFS - 11)
    # Too weak to duck for, and never heard without the agent.
    rest = Voice(900, 9000, -50.0, likelihood=0.95)
    told = heard_over_agent(remark, rest)
    assert len(at(told, DuckDue)) == 1
    assert at(told, BargeInDue) == []


def test_a_beginning_that_the_canceller_took_away_counts_as_said() -> None:
    hidden = Voice(0, 250, QUIET_DBFS, 0.02, over_echo_db=6.0, near_dbfs=USER_DBFS)
    rest = Voice(250, 780)
    assert len(at(heard_over_agent(hidden, rest), BargeInDue)) == 1
    assert at(heard_over_agent(rest), BargeInDue) == []


def test_what_was_not_heard_at_all_is_listened_for_longer() -> None:
    hidden = Voice(0, 100, QUIET_DBFS, likelihood=0.01, over_echo_db=6.0)
    lasts_ms = []
    for voice in (hidden, Voice(0, 100)):
        call = over_agent(voice)
        call.policy.echo_delay_ms = 200.0
        told = call.run(9000)
        lasts_ms.append(at(told, ResumeDue)[0] - at(told, DuckDue)[0])
    assert lasts_ms[1] < 300
    assert 350 < lasts_ms[0] < 400


def test_while_the_echo_lasts_the_microphone_tells_that_somebody_goes_on() -> None:
    gone = heard_over_agent(Voice(0, 100), Voice(100, 250, QUIET_DBFS, 0.01))
    on = heard_over_agent(Voice(0, 100), Voice(100, 250, QUIET_DBFS, 0.01, over_echo_db=6.0))
    assert at(on, ResumeDue)[0] > at(gone, ResumeDue)[0] + 50


def test_who_began_as_loud_as_the_user_is_no_stranger_when_he_goes_on_softly() -> None:
    soft = Voice(240, 1500, USER_DBFS - 11)
    loud = Voice(0, 240, USER_DBFS, over_echo_db=6.0)
    assert len(at(heard_over_agent(loud, soft), BargeInDue)) == 1
    assert at(heard_over_agent(replace(soft, begin=0)), BargeInDue) == []


def test_echo_that_comes_back_after_every_duck_does_not_add_up_to_an_interruption() -> None:
    policy = BargeIn(BargeInRules(guard_s=0.0))
    policy.echo_delay_ms = 120.0
    policy.update(DETECTION)
    ducked_at = -1
    told: list[tuple[int, object]] = []
    for now in range(10, 20_000, 10):
        if now * MS // FRAME > (now - 10) * MS // FRAME:
            # Loud as long as the agent is heard, then the room's tail.
            gone_ms = now - ducked_at - 120 if ducked_at >= 0 else 0
            level = max(QUIET_DBFS, -30.0 - max(0, gone_ms) / 5)
            level += MELODY_DB[now // 32 % len(MELODY_DB)]
            likelihood = 0.9 if gone_ms < 200 else 0.01
            policy.hear(VoiceFrame(now * MS // FRAME * FRAME, likelihood, level))
        for event in policy.advance(now * MS, True):
            told.append((now, event))
            ducked_at = now if isinstance(event, DuckDue) else ducked_at
            ducked_at = -1 if isinstance(event, ResumeDue) else ducked_at
    assert len(at(told, DuckDue)) > 5
    assert at(told, BargeInDue) == []


def test_an_interruption_that_the_detector_never_reported_is_told_from_beginning_to_end() -> None:
    call = over_agent(Voice(0, 2000))
    call.policy.speech_started = lambda at: None  # type: ignore[method-assign]
    told = [(now - 7000, event) for now, event in call.run(20_000) if now >= 7000]
    assert names(told) == ["DuckDue", "SpeechStarted", "BargeInDue", "SpeechEnded"]
    (begin,) = (event.at for _, event in told if isinstance(event, SpeechStarted))
    (end,) = (event.at for _, event in told if isinstance(event, SpeechEnded))
    assert abs(begin - 7000 * MS) <= FRAME
    assert abs(end - 9000 * MS) <= FRAME
    assert 2460 <= at(told, SpeechEnded)[0] <= 2560


def test_a_detector_that_finds_speech_late_goes_on_with_what_was_told_already() -> None:
    call = over_agent(Voice(0, 2000))
    found = call.policy.speech_started
    call.policy.speech_started = lambda at: None  # type: ignore[method-assign]
    told = call.run(8000)
    found(7500 * MS)
    told += call.run(20_000)
    assert names(told)[-4:] == ["DuckDue", "SpeechStarted", "BargeInDue", "SpeechEnded"]
    assert told[-1] == (9500, ended(9000))


def test_each_segment_interrupts_once() -> None:
    call = Call([(4000, 9000), (9100, 30_000)], [USER_FIRST, (7000, 8400), (12_000, 14_000)])
    assert len(at(call.run(20_000), BargeInDue)) == 2


def test_a_voice_that_the_canceller_has_spoilt_is_ducked_for_by_its_loudness() -> None:
    spoilt = heard_over_agent(Voice(0, 600, likelihood=0.05))
    assert names(spoilt)[0] == "DuckDue"
    weak = heard_over_agent(Voice(0, 600, dbfs=USER_DBFS - 15, likelihood=0.05))
    assert weak == []


def test_what_is_far_weaker_than_the_user_is_a_rest_of_echo() -> None:
    told = heard_over_agent(Voice(0, 300, dbfs=USER_DBFS - 25, likelihood=0.8))
    assert at(told, DuckDue) == []
