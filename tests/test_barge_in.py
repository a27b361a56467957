from dataclasses import asdict, dataclass, field, replace

import pytest

from agent.config import Config
from agent.media.barge_in import BargeIn, BargeInDue, BargeInRules, DuckDue, ResumeDue
from agent.media.overlap import VoiceFrame
from agent.types import SpeechEnded, SpeechStarted, TurnDetection

MS = 16
DETECTION = TurnDetection(prefix_padding_ms=0)
FRAME = 512
QUIET_DBFS = -70.0
USER_DBFS = -25.0
_MELODY_DB = (0.0, -4.0, 3.0, -2.0, 2.0)
"""Speech rises and falls."""


@dataclass(frozen=True)
class Voice:
    """Somebody speaks from `begin` to `end` (ms); `likelihood` is what the detector makes of it.

    `over_echo_db`: how far the microphone is above the echo, whatever the canceller leaves of it.
    """

    begin: int
    end: int
    dbfs: float = USER_DBFS
    likelihood: float = 0.98
    melody: bool = True
    over_echo_db: float = 0.0
    near_dbfs: float | None = None

    def level_dbfs(self, frame: int) -> float:
        return self.dbfs + (_MELODY_DB[frame % len(_MELODY_DB)] if self.melody else 0.0)


@dataclass
class Call:
    """Drives the policy as the front end does, frame by frame; times in milliseconds.

    `agent` is when the agent plays, `held` when it is about to, `speech` when there is voice. The
    detector that it plays judges every 32 ms, finds an onset 100 ms late and an end 500 ms late.
    """

    agent: list[tuple[int, int]]
    speech: list[tuple[int, int] | Voice]
    detection: TurnDetection | None = DETECTION
    policy: BargeIn = field(default_factory=BargeIn)
    now: int = 0
    held: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.policy.update(self.detection)
        self.voices = [
            sound if isinstance(sound, Voice) else Voice(*sound) for sound in self.speech
        ]

    def run(self, until_ms: int) -> list[tuple[int, object]]:
        """What the policy said, and when."""
        told: list[tuple[int, object]] = []
        for now in range(self.now + 10, until_ms + 1, 10):
            self._detect(now)
            playing = any(begin < now <= end for begin, end in self.agent)
            held = any(begin < now <= end for begin, end in self.held)
            told += [(now, event) for event in self.policy.advance(now * MS, playing, held=held)]
        self.now = until_ms
        return told

    def _detect(self, now: int) -> None:
        for begin, end in self._segments():
            if now == begin + 100:
                self.policy.speech_started(begin * MS)
            if begin + 100 <= now <= end + 500:
                heard = [min(now, voice.end) for voice in self._audible() if voice.begin < now]
                self.policy.speech_continues(max(heard) * MS)
            if now == end + 500:
                self.policy.speech_ended(end * MS)
        if now * MS // FRAME > (now - 10) * MS // FRAME:
            self.policy.hear(self._frame(now * MS // FRAME))

    def _audible(self) -> list[Voice]:
        return [voice for voice in self.voices if voice.likelihood > 0.5]

    def _segments(self) -> list[tuple[int, int]]:
        """What the detector reports: speech with pauses of less than half a second."""
        segments: list[tuple[int, int]] = []
        for voice in self._audible():
            goes_on = segments and voice.begin - segments[-1][1] < 500
            begin = segments.pop()[0] if goes_on else voice.begin
            segments.append((begin, voice.end))
        return segments

    def _frame(self, number: int) -> VoiceFrame:
        until = number * FRAME
        middle_ms = (until - FRAME / 2) / MS
        for voice in self.voices:
            if voice.begin <= middle_ms < voice.end:
                level = voice.level_dbfs(number)
                near = voice.near_dbfs or level
                return VoiceFrame(until, voice.likelihood, level, near, voice.over_echo_db)
        return VoiceFrame(until, 0.01, QUIET_DBFS, QUIET_DBFS, -3.0)


def started(at_ms: int) -> SpeechStarted:
    return SpeechStarted(at_ms * MS)


def ended(at_ms: int) -> SpeechEnded:
    return SpeechEnded(at_ms * MS)


def due(at_ms: int) -> BargeInDue:
    return BargeInDue(at_ms * MS)


def names(told: list[tuple[int, object]]) -> list[str]:
    return [type(event).__name__ for _, event in told]


def at(told: list[tuple[int, object]], kind: type) -> list[int]:
    return [now for now, event in told if isinstance(event, kind)]


USER_FIRST = Voice(500, 2500)
"""By this the user's level becomes known."""
AFTER_QUESTION = [(4000, 30_000)]


def over_agent(*speech: Voice, rules: BargeInRules | None = None) -> Call:
    """The user asks, the agent answers; `speech` counts from 7 s on, well after the guard."""
    later = [replace(voice, begin=7000 + voice.begin, end=7000 + voice.end) for voice in speech]
    return Call(AFTER_QUESTION, [USER_FIRST, *later], policy=BargeIn(rules))


def heard_over_agent(*speech: Voice, rules: BargeInRules | None = None) -> list[tuple[int, object]]:
    """What is told from the first word over the agent on, by the time since then."""
    told = over_agent(*speech, rules=rules).run(20_000)
    return [(now - 7000, event) for now, event in told if now >= 7000]


# ---- two steps --------------------------------------------------------------------------------


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
            level += _MELODY_DB[now // 32 % len(_MELODY_DB)]
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
