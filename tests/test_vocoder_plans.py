"""Plans of random turns, held against the rules of what is remembered, said frame by frame."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from agent.vocoder.batched.layout import Capacity, MemoryColumns, layout_of
from agent.vocoder.batched.places import Full, Numbers, Places, Rows
from agent.vocoder.batched.turn import (
    Chunk,
    Planned,
    Rooms,
    Rules,
    TurnState,
    VoicePlace,
    begun,
    planned,
)
from agent.vocoder.batched.window import Reach, WindowChunk, widened
from agent.vocoder.flow import EstimatorMemory, kept_positions
from agent.vocoder.hift_stream import HiftStreamSettings

CLASSIC, CAUSAL = Reach.of_classic(HiftStreamSettings()), Reach.of_causal()
CAPACITY = Capacity(60, 300)
"""More tokens at once than the two seconds that the encoder remembers."""
MEMORIES = ("prompt_plus_recent", "reference")


@dataclass(frozen=True)
class Told:
    """What a turn remembers: the places of its rows, and the estimator's frames with theirs."""

    slot: int
    tokens: tuple[int, ...]
    mels: tuple[int, ...]
    rows: tuple[tuple[int, int], ...]  # of each a frame and its place
    prompt: tuple[int, ...]
    position: int

    def places(self) -> tuple[set[int], set[int], set[int], set[int]]:
        """Of each kind."""
        return {self.slot}, set(self.tokens), set(self.mels), {place for _, place in self.rows}


class World:
    """Turns in one voice, each as it is planned and as the rules tell it."""

    def __init__(self, rules: Rules, prompt_tokens: int) -> None:
        self.rules = rules
        self.rooms = Rooms(Places(40, 1), Places(2000), Places(4000), Places(6000))
        slot = self.rooms.slots.take(1)
        self.voice = VoicePlace(slot, 1000, -2000, 3000, prompt_tokens, 77)
        self.turns: list[tuple[TurnState, Told]] = []

    @property
    def all_places(self) -> tuple[Places, ...]:
        rooms = self.rooms
        return rooms.slots, rooms.token_rows, rooms.mel_rows, rooms.estimator_rows

    def open(self) -> None:
        frames = 2 * self.voice.prompt_tokens
        slot = int(self.voice.slot.numbers[0])
        told = Told(slot, (), (), (), tuple(range(frames)), frames)
        self.turns.append((begun(self.voice, self.rooms), told))

    def plan(self, state: TurnState, told: Told, chunk: Chunk) -> tuple[TurnState, Told]:
        """The chunk's plan against what the rules want, and the turn after it."""
        row = np.zeros(self.rules.layout.columns, np.int64)
        step = planned(state, self.voice, chunk, self.rules, self.rooms, row)
        assert step.numbers is row
        after = self.expect(_Read(row, self.rules), state, told, chunk)
        self.assert_remembers(step.after, after)
        self.assert_window(step, state, chunk)
        return step.after, after

    def expect(self, plan: "_Read", state: TurnState, told: Told, chunk: Chunk) -> Told:
        layout, voice, held = self.rules.layout, self.voice, [frame for frame, _ in told.rows]
        count, tokens = chunk.count, voice.prompt_tokens
        is_absolute = self.rules.noise_place == "absolute"
        noise = told.position if is_absolute else len(held) + len(told.prompt)
        target = plan[layout.target]
        assert plan[layout.source] == told.slot and plan[layout.noise] == noise
        sizes = plan[layout.tokens], plan[layout.tokens_in], plan[layout.frames]
        assert sizes == (count, len(chunk.tokens), 2 * count)
        assert plan.many(layout.ids, CAPACITY.tokens) == _padded(chunk.tokens, CAPACITY.tokens)
        all_tokens, all_frames = range(tokens), range(2 * tokens)
        places = [place for _, place in told.rows]
        fresh = [
            plan.fresh(layout.token_memory, voice.token_memory, all_tokens, told.tokens, count),
            plan.fresh(layout.mel_memory, voice.mel_memory, all_frames, told.mels, 2 * count),
            plan.fresh(
                layout.estimator_memory, voice.estimator_memory, told.prompt, places, 2 * count
            ),
        ]
        self.assert_free({target}, *(set(one) - {-1} for one in fresh))
        kept_tokens, kept_mels = (
            _newest(told.tokens, fresh[0], 50),
            _newest(told.mels, fresh[1], 100),
        )
        rows, prompt = self.estimator(told, fresh[2])
        return Told(target, kept_tokens, kept_mels, rows, prompt, told.position + 2 * count)

    def estimator(
        self, told: Told, fresh: list[int]
    ) -> tuple[tuple[tuple[int, int], ...], tuple[int, ...]]:
        """The rows and the prompt's frames that stay; the others of the fresh ones are -1."""
        new = list(zip(range(told.position, told.position + len(fresh)), fresh, strict=True))
        rows = [*new, *told.rows]
        held = [*(frame for frame, _ in rows), *told.prompt]
        frames = 2 * self.voice.prompt_tokens
        kept = kept_positions(held, frames, self.rules.estimator_memory)
        stays = [place >= 0 for place in fresh]
        assert stays == [number in kept for number in range(len(fresh))]
        of_turn = tuple(rows[number] for number in kept if number < len(rows))
        return of_turn, tuple(held[number] for number in kept if number >= len(rows))

    def assert_free(self, *taken: set[int]) -> None:
        """Nobody who is still there has what a chunk was given."""
        for _, told in self.turns:
            for ours, theirs in zip(taken, told.places(), strict=True):
                assert not ours & theirs

    def assert_remembers(self, state: TurnState, told: Told) -> None:
        assert state.slot.numbers.tolist() == [told.slot] and state.position == told.position
        frames = [frame for frame, _ in told.rows]
        places = [place for _, place in told.rows]
        for rows, expected in (
            (state.token_rows, told.tokens),
            (state.mel_rows, told.mels),
            (state.rows, places),
        ):
            assert rows.numbers.tolist() == list(expected) and len(rows) == len(expected)
        assert state.held.tolist() == frames and state.prompt.tolist() == list(told.prompt)

    def assert_window(self, step: Planned, state: TurnState, chunk: Chunk) -> None:
        reach, columns = self.rules.reach, self.rules.layout.window
        window, after = widened(state.window, 2 * chunk.count, reach, 77, last=chunk.final)
        for name in WindowChunk._fields:
            assert step.numbers[getattr(columns, name)] == getattr(window, name)
        assert step.samples == window.said and step.after.window == after

    def assert_holds_what_is_remembered(self) -> None:
        """All other places are free."""
        held: tuple[set[int], ...] = ({int(self.voice.slot.numbers[0])}, set(), set(), set())
        for _, told in self.turns:
            held = tuple(one | other for one, other in zip(held, told.places(), strict=True))
        for places, taken in zip(self.all_places, held, strict=True):
            assert places.left == places.count - len(taken)


class _Read:
    """A plan by its columns."""

    def __init__(self, row: Numbers, rules: Rules) -> None:
        self._row = row
        self._widths = {
            rules.layout.token_memory: (50, CAPACITY.tokens),
            rules.layout.mel_memory: (100, 2 * CAPACITY.tokens),
            rules.layout.estimator_memory: (CAPACITY.turn_frames, CAPACITY.frames),
        }

    def __getitem__(self, column: int) -> int:
        return int(self._row[column])

    def many(self, column: int, count: int) -> list[int]:
        numbers: list[int] = self._row[column : column + count].tolist()
        return numbers

    def fresh(
        self,
        columns: MemoryColumns,
        voice: int,
        frames: Sequence[int],
        turn: Sequence[int],
        count: int,
    ) -> list[int]:
        """Where the chunk's rows go, when the plan says that the others are these."""
        most, room = self._widths[columns]
        assert self[columns.voice] == voice
        spans = (columns.first, columns.first_count), (columns.second, columns.second_count)
        runs = [range(self[first], self[first] + self[length]) for first, length in spans]
        assert [frame for run in runs for frame in run] == list(frames)
        assert self[columns.turn] == len(turn) and self[columns.voice_rows] >= len(frames)
        assert self.many(columns.turn_rows, most) == _padded(turn, most)
        fresh = self.many(columns.fresh_rows, room)
        assert fresh == _padded(fresh[:count], room)
        return fresh[:count]


def _padded(numbers: Sequence[int], width: int) -> list[int]:
    return [*numbers, *[0] * (width - len(numbers))]


def _newest(old: Sequence[int], fresh: Sequence[int], most: int) -> tuple[int, ...]:
    forgotten = max(0, len(fresh) - most)
    assert [place < 0 for place in fresh] == [at < forgotten for at in range(len(fresh))]
    return (*old, *fresh)[-most:]


def _rules(memory: EstimatorMemory, **others: Any) -> Rules:
    rules = Rules(CAPACITY, layout_of(CAPACITY), CLASSIC, memory, "held")
    return replace(rules, **others)


def _chunk(dice: random.Random) -> Chunk:
    count = dice.choice([25, 25, 25, dice.randint(4, 28), dice.randint(4, 60)])
    final = dice.random() < 0.1
    tokens = tuple(dice.randrange(6561) for _ in range(count if final else count + 3))
    return Chunk(tokens, count, final)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("prompt_tokens", [25, 50, 80, 140])
@pytest.mark.parametrize(("reach", "noise"), [(CLASSIC, "held"), (CAUSAL, "absolute")])
def test_plans_of_random_turns_are_what_the_rules_say(
    memory: EstimatorMemory, prompt_tokens: int, reach: Reach, noise: str
) -> None:
    dice = random.Random(f"{memory} {prompt_tokens} {noise}")
    world = World(_rules(memory, reach=reach, noise_place=noise), prompt_tokens)
    for _ in range(120):
        if len(world.turns) < 4:
            world.open()
        at = dice.randrange(len(world.turns))
        happens = dice.choice(["said", "said", "said", "said", "again", "kept", "dropped"])
        if happens == "dropped":
            del world.turns[at]
            world.assert_holds_what_is_remembered()
            continue
        before = world.turns[at]
        after = world.plan(*before, _chunk(dice))
        if happens == "again":  # what went wrong is made from the state before it
            world.assert_remembers(*before)
            after = world.plan(*before, _chunk(dice))
        if happens == "kept":  # a clone, while there is room for one
            world.turns.insert(0, before)
            at += 1
        world.turns[at] = after
        del before, after
        while len(world.turns) > 6:
            world.turns.pop()
        world.assert_holds_what_is_remembered()
    world.turns.clear()
    world.assert_holds_what_is_remembered()


@pytest.mark.parametrize("count", [2, 61])
def test_where_there_is_no_room_nothing_is_written_or_held(count: int) -> None:
    world = World(_rules("reference"), 25)
    rooms = world.rooms
    few = Rooms(rooms.slots, rooms.token_rows, rooms.mel_rows, Places(3))
    row = np.zeros(world.rules.layout.columns, np.int64)
    state = begun(world.voice, few)
    with pytest.raises(Full):
        planned(state, world.voice, Chunk((5,) * (count + 3), count, False), world.rules, few, row)
    assert not row.any()
    world.assert_holds_what_is_remembered()


def test_rows_forget_the_oldest_and_share_what_stays_whole() -> None:
    places = Places(20)
    first, second = places.take(4), places.take(3)
    rows = Rows().with_newer(first, 6).with_newer(second, 6)
    assert rows.numbers.tolist() == [1, 2, 3, 4, 5, 6] and rows.leases[1] is second
    alone = rows.with_newer(places.take(6), 6)
    assert alone.numbers.tolist() == [7, 8, 9, 10, 11, 12] and len(alone) == 6
    del first
    assert places.left == 20 - 13 + 1
    del second, rows
    assert places.left == 20 - 6
