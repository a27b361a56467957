import numpy as np
import pytest

from agent.media.playout import (
    MAX_TURNS,
    Ducked,
    Flushed,
    Playout,
    PlayoutDrained,
    PlayoutStarted,
    Resumed,
    SentSpan,
)
from agent.types import AudioFrame, SpeechAudio


def speech(turn: int, samples: np.ndarray, *, last: bool = False) -> SpeechAudio:
    return SpeechAudio(turn, 0, 0, samples.astype(np.float32), last)


def steady(turn: int, milliseconds: int, level: float = 0.5, *, last: bool = False) -> SpeechAudio:
    return speech(turn, np.full(milliseconds * 24, level), last=last)


def pull(playout: Playout, frames: int) -> np.ndarray:
    return np.concatenate([playout.pull() for _ in range(frames)])


def test_what_was_pushed_in_pieces_comes_out_in_one_go_then_silence() -> None:
    voice = np.random.default_rng(1).uniform(-1, 1, 24_000).astype(np.float32)
    playout = Playout()
    for piece in np.split(voice, [1, 700, 701, 5000, 5000, 20_001]):
        playout.push(speech(1, piece))
    np.testing.assert_array_equal(pull(playout, 50), voice)
    assert not pull(playout, 3).any()


def test_nothing_pushed_is_silence_and_no_underrun() -> None:
    playout = Playout()
    frame = playout.pull()
    assert frame.shape == (480,)
    assert frame.dtype == np.float32
    assert not frame.any()
    assert playout.underruns == playout.underrun_frames == 0
    assert not playout.playing
    assert playout.flush() is None


def test_start_and_drain_are_told_once_and_in_order() -> None:
    playout = Playout()
    playout.push(steady(1, 30))
    assert playout.take_events() == []
    assert not playout.playing
    playout.pull()
    assert playout.take_events() == [PlayoutStarted(1)]
    playout.end(1)
    assert playout.playing
    playout.pull()
    assert playout.take_events() == [PlayoutDrained(1)]
    assert not playout.playing
    assert playout.played_ms(1) == 30


def test_last_audio_ends_the_turn_and_so_does_an_end_after_the_last_pull() -> None:
    playout = Playout()
    playout.push(steady(1, 20, last=True))
    playout.pull()
    assert playout.take_events() == [PlayoutStarted(1), PlayoutDrained(1)]
    playout.push(steady(2, 20))
    playout.pull()
    assert playout.playing
    playout.end(2)
    assert playout.take_events() == [PlayoutStarted(2), PlayoutDrained(2)]
    assert not playout.playing


def test_turns_follow_each_other_without_a_gap() -> None:
    playout = Playout()
    playout.push(steady(1, 25, 0.1))
    playout.push(steady(2, 15, 0.2, last=True))
    np.testing.assert_allclose(pull(playout, 2), [0.1] * 600 + [0.2] * 360, rtol=1e-6)
    assert playout.take_events() == [
        PlayoutStarted(1),
        PlayoutDrained(1),
        PlayoutStarted(2),
        PlayoutDrained(2),
    ]


def test_a_turn_without_sound_drains_in_its_place() -> None:
    playout = Playout()
    playout.end(1)
    assert playout.take_events() == [PlayoutDrained(1)]
    playout.push(steady(2, 20))
    playout.end(3)
    assert playout.take_events() == []
    playout.pull()
    assert playout.take_events() == [PlayoutStarted(2), PlayoutDrained(2), PlayoutDrained(3)]


def test_a_gap_is_one_underrun_and_the_turn_goes_on_where_it_was() -> None:
    playout = Playout()
    playout.push(steady(1, 30))
    pull(playout, 4)
    assert playout.playing
    assert playout.underruns == 0
    playout.push(steady(1, 20, 0.25))
    assert (playout.underruns, playout.underrun_frames) == (1, 3)
    np.testing.assert_array_equal(playout.pull(), np.full(480, 0.25))
    assert playout.played_ms(1) == 50


def test_waiting_for_the_end_of_a_turn_is_no_underrun() -> None:
    playout = Playout()
    playout.push(steady(1, 20))
    pull(playout, 10)
    playout.end(1)
    playout.push(steady(2, 20))
    assert playout.underruns == 0


def test_a_gap_that_a_flush_ended_is_no_underrun_of_the_next_turn() -> None:
    playout = Playout()
    playout.push(steady(1, 20))
    pull(playout, 3)
    playout.flush()
    playout.push(steady(2, 20))
    assert playout.underruns == 0


def test_flush_fades_out_and_says_how_much_was_played() -> None:
    playout = Playout()
    playout.push(steady(3, 1000))
    pull(playout, 7)
    assert playout.flush() == Flushed(3, 140)
    assert not playout.playing
    assert playout.queued_ms == 0
    fading = playout.pull()
    assert fading[0] > 0.49
    assert np.all(np.diff(fading[:240]) < 0)
    assert not fading[240:].any()
    assert not pull(playout, 5).any()
    assert playout.played_ms(3) == 140


def test_flush_fades_what_would_have_come() -> None:
    ramp = np.arange(2400) / 2400
    playout = Playout()
    playout.push(speech(1, ramp))
    playout.pull()
    playout.flush()
    halfway = playout.pull()[120]
    assert halfway == pytest.approx(ramp[480 + 120] / 2, rel=0.02)


def test_late_audio_of_a_flushed_turn_is_dropped_and_the_next_turn_is_heard() -> None:
    playout = Playout()
    playout.push(steady(1, 100))
    playout.pull()
    playout.flush()
    playout.take_events()
    playout.push(steady(1, 100))
    playout.end(1)
    assert playout.queued_ms == 0
    assert playout.take_events() == []
    playout.pull()
    playout.push(steady(2, 20, 0.3))
    np.testing.assert_allclose(playout.pull(), 0.3, rtol=1e-6)
    assert playout.take_events() == [PlayoutStarted(2)]


def test_flush_gives_up_turns_that_wait_and_turns_not_begun() -> None:
    playout = Playout()
    playout.push(steady(1, 100))
    playout.push(steady(2, 100))
    playout.push(steady(4, 100))
    assert playout.flush() == Flushed(1, 0, unheard=(2, 4))
    assert not playout.pull().any()
    playout.push(steady(3, 100))
    assert playout.queued_ms == 0


def test_a_turn_that_is_pulled_dry_but_not_ended_can_be_flushed() -> None:
    playout = Playout()
    playout.push(steady(1, 20))
    pull(playout, 2)
    assert playout.flush() == Flushed(1, 20)
    playout.push(steady(1, 20))
    assert not playout.pull().any()


def test_taps_get_exactly_what_was_pulled_on_one_time_line() -> None:
    playout = Playout()
    far: list[AudioFrame] = []
    playout.tap(far.append)
    playout.push(steady(1, 30))
    pulled = [playout.pull(), playout.pull()]
    playout.flush()
    pulled.append(playout.pull())
    assert [frame.start for frame in far] == [0, 480, 960]
    assert {frame.rate_hz for frame in far} == {24_000}
    for frame, samples in zip(far, pulled, strict=True):
        np.testing.assert_array_equal(frame.samples, samples)


def test_beyond_the_bound_the_newest_sound_is_dropped_and_counted() -> None:
    playout = Playout(max_queued_ms=100)
    playout.push(steady(1, 80, 0.1))
    assert playout.room_ms == 20
    playout.push(steady(1, 50, 0.2))
    assert (playout.room_ms, playout.queued_ms, playout.dropped_ms) == (0, 100, 30)
    np.testing.assert_allclose(pull(playout, 6)[80 * 24 : 100 * 24], 0.2, rtol=1e-6)
    assert playout.room_ms == 100


def test_events_and_memory_are_bounded() -> None:
    playout = Playout()
    for turn in range(1, 3 * MAX_TURNS):
        playout.push(steady(turn, 20, last=True))
        playout.pull()
    assert len(playout.take_events()) == MAX_TURNS
    assert playout.played_ms(1) == 0
    assert playout.played_ms(3 * MAX_TURNS - 1) == 20
    for turn in range(1000, 1000 + 2 * MAX_TURNS):
        playout.push(steady(turn, 1))
    assert playout.queued_ms == MAX_TURNS


def test_what_waits_is_told_turn_by_turn() -> None:
    playout = Playout()
    for turn, length_ms in ((1, 100), (2, 60)):
        samples = np.ones(length_ms * 24, np.float32)
        playout.push(SpeechAudio(turn, 0, 0, samples))
    playout.pull()
    assert (playout.waiting_ms(1), playout.waiting_ms(2), playout.waiting_ms(3)) == (80, 60, 0)


# ---- duck and resume --------------------------------------------------------------------------


def test_ducking_fades_to_silence_within_the_next_pull_and_holds_the_position() -> None:
    playout = Playout()
    playout.push(steady(1, 1000))
    pull(playout, 5)
    assert playout.duck() == Ducked(1, 100)
    assert (playout.ducked, playout.playing) == (True, True)
    falling = playout.pull()
    assert falling[0] > 0.49
    assert np.all(np.diff(falling[:240]) < 0)
    assert not falling[240:].any(), "silent after 10 ms"
    assert not pull(playout, 50).any()
    assert (playout.played_ms(1), playout.waiting_ms(1)) == (100, 900)
    assert playout.take_events() == [PlayoutStarted(1)]


def test_resuming_goes_on_where_it_ducked_without_a_click() -> None:
    voice = 0.5 * np.sin(np.arange(12_000) * 2 * np.pi * 300 / 24_000)
    playout = Playout()
    playout.push(speech(1, voice))
    before = pull(playout, 5)
    playout.duck()
    ducked = pull(playout, 3)
    assert playout.resume() == Resumed(1, 100)
    assert not playout.ducked
    after = pull(playout, 20)
    np.testing.assert_array_equal(before, voice[:2400].astype(np.float32))
    np.testing.assert_allclose(ducked[:240] + after[:240], voice[2400:2640], atol=1e-6)
    np.testing.assert_array_equal(after[240:], voice[2640:].astype(np.float32))
    steepest = np.abs(np.diff(voice)).max()
    assert np.abs(np.diff(np.concatenate([before, ducked, after]))).max() < 1.5 * steepest


def test_ducking_what_is_not_playing_does_nothing() -> None:
    playout = Playout()
    assert playout.duck() is None
    assert playout.resume() is None
    playout.push(steady(1, 40))
    assert playout.duck() is None, "not begun"
    assert pull(playout, 2).all()
    assert playout.resume() is None
    playout.flush()
    assert playout.duck() is None
    assert not playout.ducked


def test_ducking_twice_tells_the_same_mark_and_fades_once() -> None:
    playout = Playout()
    playout.push(steady(1, 200))
    playout.pull()
    assert playout.duck() == playout.duck() == Ducked(1, 20)
    playout.pull()
    assert playout.duck() == Ducked(1, 20)
    assert not playout.pull().any()


def test_a_duck_taken_back_before_the_next_pull_is_not_heard() -> None:
    playout = Playout()
    playout.push(steady(1, 200))
    playout.pull()
    playout.duck()
    assert playout.resume() == Resumed(1, 20)
    np.testing.assert_array_equal(pull(playout, 9), np.full(9 * 480, 0.5))


def test_a_resume_taken_back_before_the_next_pull_is_not_heard() -> None:
    playout = Playout()
    playout.push(steady(1, 200))
    playout.pull()
    playout.duck()
    playout.pull()
    playout.resume()
    assert playout.duck() == Ducked(1, 20)
    assert not pull(playout, 3).any()
    playout.resume()
    assert np.all(np.diff(playout.pull()[:240]) > 0)
    assert playout.played_ms(1) == 40


def test_a_turn_that_ends_while_ducked_is_drained_after_it_resumed() -> None:
    playout = Playout()
    playout.push(steady(1, 40))
    playout.pull()
    playout.duck()
    playout.end(1)
    playout.push(steady(2, 20, 0.2, last=True))
    pull(playout, 4)
    assert playout.take_events() == [PlayoutStarted(1)]
    playout.resume()
    pull(playout, 2)
    assert playout.take_events() == [PlayoutDrained(1), PlayoutStarted(2), PlayoutDrained(2)]


def test_a_turn_pulled_dry_ducks_and_drains_when_it_resumes() -> None:
    playout = Playout()
    playout.push(steady(1, 20))
    playout.pull()
    assert playout.duck() == Ducked(1, 20)
    playout.end(1)
    playout.pull()
    assert playout.take_events() == [PlayoutStarted(1)]
    assert playout.resume() == Resumed(1, 20)
    assert playout.take_events() == [PlayoutDrained(1)]
    assert not playout.playing


def test_sound_that_comes_while_ducked_waits_and_what_finds_no_room_is_dropped() -> None:
    playout = Playout(max_queued_ms=100)
    playout.push(steady(1, 40))
    playout.pull()
    playout.duck()
    playout.pull()
    playout.push(steady(1, 120, 0.25))
    assert (playout.queued_ms, playout.dropped_ms) == (100, 40)
    playout.resume()
    heard = pull(playout, 6)
    np.testing.assert_allclose(heard[480:2400], 0.25)
    assert not heard[2400:].any()


def test_the_silence_of_a_duck_is_no_underrun() -> None:
    playout = Playout()
    playout.push(steady(1, 20))
    playout.pull()
    playout.duck()
    pull(playout, 10)
    playout.push(steady(1, 20))
    playout.resume()
    playout.pull()
    assert (playout.underruns, playout.underrun_frames) == (0, 0)


def test_flush_while_ducked_fades_no_second_time_and_says_where_it_ducked() -> None:
    playout = Playout()
    playout.push(steady(1, 200))
    playout.push(steady(2, 200))
    pull(playout, 3)
    playout.duck()
    playout.pull()
    assert playout.flush() == Flushed(1, 60, unheard=(2,))
    assert (playout.ducked, playout.playing) == (False, False)
    assert not pull(playout, 3).any()
    assert playout.resume() is None
    playout.push(steady(3, 20, 0.3))
    np.testing.assert_allclose(playout.pull(), 0.3, rtol=1e-6)


def test_flush_before_the_duck_was_pulled_fades_once() -> None:
    playout = Playout()
    playout.push(steady(1, 200))
    playout.pull()
    playout.duck()
    assert playout.flush() == Flushed(1, 20)
    assert playout.pull()[0] > 0.49
    assert not playout.pull().any()


def test_flush_after_a_resume_that_nobody_pulled_stays_silent() -> None:
    playout = Playout()
    playout.push(steady(1, 200))
    playout.pull()
    playout.duck()
    playout.pull()
    playout.resume()
    assert playout.flush() == Flushed(1, 20)
    assert not playout.pull().any()


class Sent:
    """Every sample pulled, and by the spans which of each turn's samples it carried."""

    def __init__(self, playout: Playout) -> None:
        self.playout = playout
        self.spans: list[SentSpan] = []
        self.frames: list[np.ndarray] = []
        playout.tap_spans(self.spans.append)

    def pull(self) -> None:
        self.frames.append(self.playout.pull())

    @property
    def stream(self) -> np.ndarray:
        return np.concatenate(self.frames)

    def by_spans(self, turn: int) -> np.ndarray:
        """What the stream holds where the spans say that the turn is."""
        parts = [span for span in self.spans if span.turn == turn]
        return np.concatenate([self.stream[p.position : p.position + p.samples] for p in parts])


def assert_joined(spans: list[SentSpan], turn: int, samples: int) -> None:
    end = 0
    for span in (span for span in spans if span.turn == turn):
        assert span.start == end
        assert span.samples > 0
        end += span.samples
    assert end == samples


def test_spans_say_which_sound_each_pull_carried() -> None:
    playout = Playout()
    sent = Sent(playout)
    sent.pull()
    playout.push(steady(1, 25, 0.1))
    playout.push(steady(2, 30, 0.2))
    sent.pull()
    sent.pull()
    assert sent.spans == [
        SentSpan(480, 1, 0, 480),
        SentSpan(960, 1, 480, 120),
        SentSpan(1080, 2, 0, 360),
    ]


def test_a_ducked_stretch_counts_once_where_it_comes_back() -> None:
    playout = Playout()
    sent = Sent(playout)
    playout.push(steady(1, 60))
    sent.pull()
    playout.duck()
    sent.pull()
    sent.pull()
    playout.resume()
    sent.pull()
    assert sent.spans == [SentSpan(0, 1, 0, 480), SentSpan(1440, 1, 480, 480)]


@pytest.mark.parametrize("seed", range(40))
def test_however_it_ducks_and_resumes_each_sample_sounds_exactly_once(seed: int) -> None:
    """Gains add up: a constant 1 comes out as often as it went in, whatever happens between."""
    dice = np.random.default_rng(seed)
    voice = dice.uniform(0.1, 1, 24_000).astype(np.float32)
    playout = Playout()
    sent = Sent(playout)
    pushed = 0
    for _ in range(400):
        act = dice.integers(0, 8)
        if act == 0 and pushed < len(voice):
            # Often less than a fade, so that edges of every length meet.
            size = int(dice.choice([1, 37, 150, 480, 2000]))
            playout.push(speech(1, voice[pushed : pushed + size]))
            pushed = min(len(voice), pushed + size)
        elif act == 1:
            playout.duck()
        elif act == 2:
            playout.resume()
        else:
            sent.pull()
        assert playout.played_ms(1) == sum(span.samples for span in sent.spans) // 24
    playout.resume()
    playout.end(1)
    for _ in range(60):
        sent.pull()
    assert playout.take_events()[-1] == PlayoutDrained(1)
    assert_joined(sent.spans, 1, pushed)
    assert sent.stream.astype(np.float64).sum() == pytest.approx(voice[:pushed].sum(), abs=0.01)
    carried = sent.by_spans(1)
    faded = carried < voice[:pushed] - 1e-6
    np.testing.assert_array_equal(carried[~faded], voice[:pushed][~faded])
    assert faded.sum() <= 240 * (1 + sum(np.diff(faded.astype(int)) == 1))


@pytest.mark.parametrize("seed", range(20))
def test_several_turns_and_flushes_by_chance_keep_the_spans_true(seed: int) -> None:
    dice = np.random.default_rng(seed)
    playout = Playout(max_queued_ms=500)
    sent = Sent(playout)
    turn, flushed = 1, 0
    for _ in range(600):
        act = dice.integers(0, 12)
        if act <= 2:
            hold_ms = int(dice.choice([0, 0, 30, 90]))
            sound = held(turn, int(dice.integers(1, 60)), hold_ms, last=bool(dice.integers(0, 2)))
            playout.push(sound)
        elif act == 3:
            turn += 1
        elif act == 4:
            playout.duck()
        elif act == 5:
            playout.resume()
        elif act == 6 and (cut := playout.flush()) is not None:
            flushed += 1
            assert cut.played_ms == playout.played_ms(cut.turn)
            assert not playout.ducked
        else:
            sent.pull()
        assert not playout.ducked or playout.playing or playout.held
        assert not (playout.playing and playout.held)
    assert flushed > 3
    for told in {span.turn for span in sent.spans[-20:]}:
        in_all = sum(span.samples for span in sent.spans if span.turn == told)
        assert_joined(sent.spans, told, in_all)
        assert playout.played_ms(told) == in_all // 24


# ---- sound that is held until what follows it can keep up ----------------------------------------


def held(turn: int, milliseconds: int, hold_ms: int, *, last: bool = False) -> SpeechAudio:
    sound = np.full(milliseconds * 24, 0.5, np.float32)
    return SpeechAudio(turn, 0, 0, sound, last, hold_ms)


def test_a_turn_that_comes_at_the_pace_of_speech_begins_late_enough_to_have_no_gap() -> None:
    playout = Playout()
    playout.push(held(1, 600, hold_ms=400))
    out = pull(playout, 50)
    playout.push(held(1, 1000, hold_ms=400))
    out = np.concatenate([out, pull(playout, 50)])
    np.testing.assert_array_equal(np.flatnonzero(out), np.arange(400 * 24, 2000 * 24))
    assert playout.underruns == 0


def test_a_turn_that_is_over_is_not_held() -> None:
    playout = Playout()
    playout.push(held(1, 100, hold_ms=400, last=True))
    assert pull(playout, 5).all()
    playout.push(held(2, 100, hold_ms=400))
    assert not pull(playout, 3).any()
    playout.end(2)
    assert pull(playout, 5).all()


def test_the_hold_counts_while_another_turn_still_plays() -> None:
    playout = Playout()
    playout.push(steady(1, 200, last=True))
    playout.push(held(2, 100, hold_ms=160))
    assert pull(playout, 15).all()


def test_a_held_turn_is_not_playing_and_can_be_given_up() -> None:
    playout = Playout()
    playout.push(held(1, 600, hold_ms=400))
    pull(playout, 5)
    assert (playout.playing, playout.held) == (False, True)
    assert playout.flush() == Flushed(1, 0)
    assert not playout.held
    assert not pull(playout, 40).any()


def test_a_turn_is_held_until_its_first_sound_is_pulled() -> None:
    playout = Playout()
    playout.push(held(1, 600, hold_ms=40))
    pull(playout, 2)
    assert (playout.playing, playout.held) == (False, True), "due, but not pulled"
    playout.pull()
    assert (playout.playing, playout.held) == (True, False)
    playout.push(steady(2, 100))
    pull(playout, 29)
    assert not playout.held, "no turn but a late one is held"


def test_a_held_turn_behind_another_is_held_once_that_is_over() -> None:
    playout = Playout()
    playout.push(steady(1, 40, last=True))
    playout.push(held(2, 100, hold_ms=200))
    playout.pull()
    assert (playout.playing, playout.held) == (True, False)
    playout.pull()
    assert (playout.playing, playout.held) == (False, True)


def test_a_held_turn_that_ducks_does_not_begin_before_it_resumes() -> None:
    playout = Playout()
    playout.push(held(1, 200, hold_ms=100))
    playout.pull()
    assert playout.duck() == playout.duck() == Ducked(1, 0)
    assert not pull(playout, 50).any()
    assert (playout.playing, playout.held, playout.take_events()) == (False, True, [])
    assert playout.resume() == Resumed(1, 0)
    np.testing.assert_array_equal(pull(playout, 10), np.full(10 * 480, 0.5))
    assert playout.take_events() == [PlayoutStarted(1)]


def test_a_held_turn_that_ducked_only_briefly_begins_as_if_it_had_not() -> None:
    playout = Playout()
    playout.push(held(1, 200, hold_ms=100))
    playout.pull()
    playout.duck()
    pull(playout, 2)
    playout.resume()
    np.testing.assert_array_equal(np.flatnonzero(pull(playout, 12)), np.arange(960, 960 + 4800))


def test_a_held_turn_begins_at_full_level_though_the_turn_before_it_was_faded() -> None:
    playout = Playout()
    playout.push(steady(1, 200))
    playout.pull()
    playout.duck()
    playout.pull()
    playout.flush()
    playout.push(held(2, 200, hold_ms=20))
    playout.duck()
    assert not pull(playout, 3).any()
    playout.resume()
    np.testing.assert_array_equal(playout.pull(), np.full(480, 0.5))


def test_a_turn_that_ends_while_it_is_held_and_ducked_waits_for_the_resume() -> None:
    playout = Playout()
    playout.push(held(1, 40, hold_ms=400))
    playout.duck()
    playout.end(1)
    assert not pull(playout, 5).any()
    playout.resume()
    assert pull(playout, 2).all()
    assert playout.take_events() == [PlayoutStarted(1), PlayoutDrained(1)]


def test_a_held_turn_that_ducked_is_given_up_unheard() -> None:
    playout = Playout()
    playout.push(held(1, 400, hold_ms=100))
    playout.duck()
    pull(playout, 10)
    assert playout.flush() == Flushed(1, 0)
    assert not playout.ducked
    assert not pull(playout, 20).any()


def test_the_hold_counts_while_the_turn_before_is_ducked() -> None:
    playout = Playout()
    playout.push(steady(1, 40))
    playout.pull()
    playout.duck()
    playout.push(held(2, 100, hold_ms=200))
    pull(playout, 10)
    playout.resume()
    assert pull(playout, 6)[240:].all()
