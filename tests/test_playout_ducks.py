"""A turn that is ducked and resumed: what is faded, held and lost, and what the spans say."""

import numpy as np
import pytest

from agent.media.playout import (
    Ducked,
    Flushed,
    Playout,
    PlayoutDrained,
    PlayoutStarted,
    Resumed,
    SentSpan,
)
from tests.rig.playout_sound import held, pull, speech, steady


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
