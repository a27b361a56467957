from dataclasses import dataclass, field, replace

import pytest

from agent.media.barge_in import BargeIn, BargeInDue
from agent.types import SpeechEnded, SpeechStarted, TurnDetection

MS = 16
DETECTION = TurnDetection(prefix_padding_ms=0)


@dataclass
class Call:
    """Drives the policy as the front end does, frame by frame; times in milliseconds.

    `agent` is when the agent plays, `speech` when there is voice. The detector that it plays
    finds an onset 100 ms late and an end 500 ms late.
    """

    agent: list[tuple[int, int]]
    speech: list[tuple[int, int]]
    detection: TurnDetection = DETECTION
    policy: BargeIn = field(default_factory=BargeIn)

    def run(self, until_ms: int) -> list[tuple[int, object]]:
        """What the policy said, and when."""
        self.policy.update(self.detection)
        told: list[tuple[int, object]] = []
        for now in range(10, until_ms + 1, 10):
            self._detect(now)
            playing = any(begin < now <= end for begin, end in self.agent)
            told += [(now, event) for event in self.policy.advance(now * MS, playing)]
        return told

    def _detect(self, now: int) -> None:
        for begin, end in self.speech:
            if now == begin + 100:
                self.policy.speech_started(begin * MS)
            if begin + 100 <= now <= end + 500:
                self.policy.speech_continues(min(now, end) * MS)
            if now == end + 500:
                self.policy.speech_ended(end * MS)


def started(at_ms: int) -> SpeechStarted:
    return SpeechStarted(at_ms * MS)


def ended(at_ms: int) -> SpeechEnded:
    return SpeechEnded(at_ms * MS)


def due(at_ms: int) -> BargeInDue:
    return BargeInDue(at_ms * MS)


def test_onset_while_the_agent_plays_silences_it_at_once() -> None:
    assert Call(agent=[(0, 9000)], speech=[(5000, 6000)]).run(9000) == [
        (5100, started(5000)),
        (5100, due(5100)),
        (6500, ended(6000)),
    ]


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
    policy = BargeIn(guard_samples=0)
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
    call = Call(agent=[(0, 5200), (6000, 9000)], speech=[(5000, 8000)])
    assert [event for _, event in call.run(9000) if isinstance(event, BargeInDue)] == [
        due(5100),
        due(6610),
    ]


def test_each_segment_silences_once() -> None:
    call = Call(agent=[(0, 20_000)], speech=[(5000, 6000), (8000, 9000)])
    assert [event for _, event in call.run(12_000) if isinstance(event, BargeInDue)] == [
        due(5100),
        due(8100),
    ]


def test_while_the_agent_is_silent_speech_is_only_reported() -> None:
    call = Call(agent=[], speech=[(100, 300), (2000, 3000)])
    assert call.run(5000) == [
        (200, started(100)),
        (800, ended(300)),
        (2100, started(2000)),
        (3500, ended(3000)),
    ]


@pytest.mark.parametrize("length_ms", [110, 200, 390])
def test_a_blip_in_the_guard_is_swallowed(length_ms: int) -> None:
    assert Call(agent=[(0, 9000)], speech=[(500, 500 + length_ms)]).run(9000) == []


@pytest.mark.parametrize("length_ms", [110, 200, 390])
def test_a_blip_whose_end_is_noticed_after_the_guard_is_swallowed_too(length_ms: int) -> None:
    call = Call(agent=[(0, 9000)], speech=[(1850 - length_ms, 1850)])
    assert call.run(9000) == []


def test_real_speech_inside_the_guard_is_told_late_with_its_true_place() -> None:
    told = Call(agent=[(0, 9000)], speech=[(300, 1000)]).run(9000)
    assert told == [(900, started(300)), (900, due(900)), (1500, ended(1000))]
    told = Call(agent=[(0, 9000)], speech=[(300, 800)]).run(9000)
    assert told == [(1300, started(300)), (1300, ended(800))]


def test_sure_speech_silences_the_agent_inside_the_guard() -> None:
    told = Call(agent=[(0, 9000)], speech=[(1000, 4000)]).run(9000)
    assert told == [(1600, started(1000)), (1600, due(1600)), (4500, ended(4000))]


def test_speech_that_outlasts_the_guard_silences_the_agent_then() -> None:
    told = Call(agent=[(0, 9000)], speech=[(1600, 4000)]).run(9000)
    # Frames in which the agent plays count: at 2010 it has played for two seconds.
    assert told == [(2010, started(1600)), (2010, due(2010)), (4500, ended(4000))]


def test_speech_that_began_just_before_the_guard_ended_is_not_lost() -> None:
    told = Call(agent=[(0, 9000)], speech=[(1850, 4000)]).run(9000)
    assert told[:2] == [(2010, started(1850)), (2010, due(2010))]


def test_a_pause_at_the_end_of_the_guard_only_delays() -> None:
    call = Call(agent=[(0, 9000)], speech=[])
    call.policy.update(DETECTION)
    voiced = [(1000, 1500), (2300, 3000)]
    told = []
    for now in range(10, 3000, 10):
        if now == 1100:
            call.policy.speech_started(1000 * MS)
        heard = max((min(now, end) for begin, end in voiced if now >= begin), default=0)
        call.policy.speech_continues(heard * MS)
        told += [(now, event) for event in call.policy.advance(now * MS, True)]
    assert told == [(2300, started(1000)), (2300, due(2300))]


def test_speech_over_a_turn_that_ends_by_itself_does_not_count_against_the_next() -> None:
    call = Call(agent=[(0, 1000), (3000, 9000)], speech=[(800, 3550)])
    assert call.run(9000) == [(1400, started(800)), (4050, ended(3550))]


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
    assert told[:2] == [(6200, started(6100)), (6200, due(6200))]


def test_guard_length_is_a_setting() -> None:
    call = Call(agent=[(0, 9000)], speech=[(500, 1500)], policy=BargeIn(guard_samples=0))
    assert call.run(9000)[:2] == [(600, started(500)), (600, due(600))]


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
