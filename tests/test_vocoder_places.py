"""Where streams' memory lies: places handed out and given back, and what of it a chunk keeps."""

import random
from dataclasses import fields

import numpy as np
import pytest

from agent.vocoder.batched.layout import Capacity, Layout, layout_of
from agent.vocoder.batched.places import Full, Places, Rows
from agent.vocoder.batched.turn import kept_parts, runs_of
from agent.vocoder.batched.window import Reach, WindowState, widened
from agent.vocoder.flow import EstimatorMemory, kept_positions
from agent.vocoder.hift_stream import HiftStreamSettings
from agent.vocoder.source import NOISE_SAMPLES

CLASSIC, CAUSAL = Reach.of_classic(HiftStreamSettings()), Reach.of_causal()


def test_a_place_is_free_when_nobody_holds_it_any_more() -> None:
    places = Places(6, first=1)
    first = places.take(4)
    assert sorted(first.numbers) == [1, 2, 3, 4] and places.left == 2
    kept = first.of(first.numbers[1:3])
    del first
    assert places.left == 4 and len(kept) == 2
    again = kept.of(kept.numbers)
    others = places.take(4)
    assert not set(others.numbers) & {2, 3}
    del kept
    assert places.left == 0
    del again
    assert places.left == 2 and places.count == 6


def test_more_than_there_are_is_refused_and_takes_nothing() -> None:
    places = Places(3)
    held = places.take(2)
    with pytest.raises(Full):
        places.take(2)
    assert places.left == 1 and len(places.take(0)) == 0 and len(held) == 2


@pytest.mark.parametrize("policy", ["reference", "prompt_plus_recent"])
@pytest.mark.parametrize("prompt_frames", [50, 60, 160, 300])
@pytest.mark.parametrize("sizes", [[50] * 9, [10, 50, 24, 50, 50, 16, 50, 50, 50]])
def test_what_is_kept_is_what_the_flow_keeps_in_at_most_two_runs(
    policy: EstimatorMemory, prompt_frames: int, sizes: list[int]
) -> None:
    held, position = np.arange(prompt_frames), prompt_frames
    for size in sizes:
        held = np.concatenate([np.arange(position, position + size), held])
        position += size
        frames = [range(first, first + count) for first, count in runs_of(held)]
        parts = kept_parts(frames, prompt_frames, policy)
        kept = [frame for number, *part in parts for frame in frames[number][slice(*part)]]
        assert kept == held[kept_positions(held.tolist(), prompt_frames, policy)].tolist()
        held = np.array(kept)
        runs = runs_of(held[held < prompt_frames])
        assert len(runs) <= 2
        spelt = [frame for first, count in runs for frame in range(first, first + count)]
        assert spelt == held[held < prompt_frames].tolist()


def test_free_places_stay_in_few_pieces_whatever_lengths_come() -> None:
    dice, places = random.Random(3), Places(1200)
    turns = [Rows()] * 8
    for _ in range(6000):
        at = dice.randrange(len(turns))
        before = Rows() if dice.random() < 0.05 else turns[at]
        turns[at] = before.with_newer(places.take(dice.randint(1, 50)), 100)
        del before
    held = np.concatenate([one.numbers for one in turns])
    assert len(set(held)) == len(held) and places.left == 1200 - len(held) > 400
    # No more than a few of a turn's leases have each left behind.
    assert len(places._free) < 5 * len(turns)
    turns.clear()
    assert places.left == 1200 and sorted(np.concatenate(places._free)) == [*range(1200)]


def test_no_column_means_two_things() -> None:
    capacity = Capacity(25, 100)
    layout = layout_of(capacity)
    singles = [getattr(layout, one.name) for one in fields(Layout) if one.name != "columns"]
    widths = {layout.ids: capacity.tokens}
    taken = [one for one in singles if isinstance(one, int)]
    for memory, turn, fresh in (
        (layout.token_memory, 50, 28),
        (layout.mel_memory, 100, 56),
        (layout.estimator_memory, 100, 50),
    ):
        taken += [getattr(memory, one.name) for one in fields(memory) if one.name != "chunk"]
        widths |= {memory.turn_rows: turn, memory.fresh_rows: fresh}
    taken += [getattr(layout.window, one.name) for one in fields(layout.window)]
    columns = [at for first in taken for at in range(first, first + widths.get(first, 1))]
    assert sorted(columns) == list(range(layout.columns))


@pytest.mark.parametrize("reach", [CLASSIC, CAUSAL], ids=["classic", "causal"])
def test_a_window_stays_short_and_says_every_frame_once(reach: Reach) -> None:
    state, said, end = WindowState(), 0, 0
    for count in [2, 10, 50, 50, 6, 50, 50, 4, 50]:
        chunk, state = widened(state, count, reach, NOISE_SAMPLES - 10, last=False)
        said, end = said + chunk.said, end + count
        assert state.first + state.frames == end and said == 480 * state.emitted
        assert state.frames <= reach.window_frames <= 40
        assert 0 <= chunk.noise < NOISE_SAMPLES and chunk.said_from >= 0
        assert state.settled <= state.frames and chunk.settling <= chunk.sourced
    chunk, state = widened(state, 10, reach, 0, last=True)
    assert said + chunk.said == 480 * (end + 10) and chunk.heard == chunk.whole == chunk.shaped


def test_windows_longer_than_the_room_for_them_are_refused() -> None:
    with pytest.raises(ValueError, match="too long"):
        Reach.of_classic(HiftStreamSettings(context_frames=30))
