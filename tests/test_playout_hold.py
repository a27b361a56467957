"""Sound that is held until what follows it can keep up."""

import numpy as np

from agent.media.playout import Ducked, Flushed, Playout, PlayoutDrained, PlayoutStarted, Resumed
from tests.rig.playout_sound import held, pull, steady


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
