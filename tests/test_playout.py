"""What is pushed is pulled: turns, gaps, flushes and bounds."""

import numpy as np
import pytest

from agent.media.playout import MAX_TURNS, Flushed, Playout, PlayoutDrained, PlayoutStarted
from agent.types import AudioFrame, SpeechAudio
from tests.rig.playout_sound import pull, speech, steady


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
