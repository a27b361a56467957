"""Playout for whoever hands its samples on: no fades, and no holes where waiting avoids them."""

import numpy as np

from agent.media.playout import Playout
from agent.types import FloatArray, SpeechAudio
from tests.rig.call_parts import MS, PULL_MS, voice


def audio(turn: int, samples: FloatArray, *, last: bool = False) -> SpeechAudio:
    return SpeechAudio(turn, 0, 0, samples, last)


def pull(playout: Playout, ms: int) -> FloatArray:
    return np.concatenate([playout.pull() for _ in range(ms // PULL_MS)])


def test_without_fades_a_duck_falls_silent_at_once_and_every_sample_is_pulled_once_as_it_is() -> (
    None
):
    playout, sound = Playout(fades=False), voice(400)
    playout.push(audio(1, sound, last=True))
    pulled = []
    for _ in range(5):
        pulled.append(pull(playout, 40))
        playout.duck()
        assert not pull(playout, 60).any()
        playout.resume()
    pulled.append(pull(playout, 200))
    assert np.array_equal(np.concatenate(pulled), sound)


def test_without_fades_what_is_flushed_is_silent_at_once() -> None:
    playout = Playout(fades=False)
    playout.push(audio(1, voice(400)))
    pull(playout, 100)
    flushed = playout.flush()
    assert flushed is not None and flushed.played_ms == 100
    assert not pull(playout, 100).any()


def test_a_hole_is_foreseen_in_the_middle_of_a_turn_and_nowhere_else() -> None:
    playout = Playout()
    assert not playout.would_tear(480), "nothing plays"
    playout.push(audio(1, voice(60)))
    assert not playout.would_tear(10_000), "it has not begun"
    pull(playout, 20)
    assert not playout.would_tear(40 * MS)
    assert playout.would_tear(41 * MS)
    playout.duck()
    assert not playout.would_tear(41 * MS), "nothing is pulled while it is held"
    playout.resume()
    playout.end(1)
    assert not playout.would_tear(41 * MS), "its end is no hole"
