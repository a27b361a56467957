"""What a stream remembers and what its next chunk does to that, counted on the host.

A state is never changed: a chunk makes the next one, in places that nobody reads yet, so a chunk
that went wrong can be made again from the state before it, and to clone a stream is to keep its
state.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from agent.vocoder.batched.layout import Capacity, Layout, MemoryColumns
from agent.vocoder.batched.places import Full, Lease, Numbers, Places, Rows
from agent.vocoder.batched.window import Reach, WindowState, widened
from agent.vocoder.config import FRAMES_PER_TOKEN
from agent.vocoder.flow import RECENT_FRAMES, RECENT_TOKENS, EstimatorMemory, NoisePlace

Runs: TypeAlias = Sequence[range]
"""Frames, as unbroken runs."""

_MOST_STRETCHES = 2
"""Of a voice's frames, which the plan has columns for; no policy leaves more."""
_FORGOTTEN = -1
"""In a plan, instead of the row of what is forgotten at once."""


@dataclass(frozen=True, slots=True)
class Rooms:
    """The places of all that streams remember."""

    slots: Places
    token_rows: Places
    mel_rows: Places
    estimator_rows: Places


@dataclass(frozen=True, slots=True)
class VoicePlace:
    """Where a voice's part lies: of each memory, in numbers from the store on; and its slot."""

    slot: Lease
    token_memory: int
    mel_memory: int
    estimator_memory: int
    prompt_tokens: int
    noise_row: int
    """Where the noise of its sound starts."""


class TurnState(NamedTuple):
    """A turn between two chunks; the leases hold its places as long as this lives."""

    slot: Lease
    token_rows: Rows  # oldest first
    mel_rows: Rows
    rows: Rows  # of the estimator, newest chunk in front, each ascending
    held_runs: Runs  # the frames of those rows, one for each lease
    prompt_runs: Runs  # the frames of the voice that are still remembered
    position: int
    window: WindowState

    @property
    def held(self) -> Numbers:
        """The frames of the estimator's rows, in their order."""
        return _spelt(self.held_runs)

    @property
    def prompt(self) -> Numbers:
        """Those of the voice."""
        return _spelt(self.prompt_runs)


def _spelt(runs: Runs) -> Numbers:
    return np.concatenate([np.arange(0), *(np.arange(run.start, run.stop) for run in runs)])


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next tokens; unless `final`, the last three are only looked at."""

    tokens: Sequence[int]
    count: int
    final: bool


class Planned(NamedTuple):
    """A chunk's plan, the state after it, and how many samples it says."""

    numbers: Numbers
    after: TurnState
    samples: int


@dataclass(frozen=True, slots=True)
class Rules:
    """What is remembered, and how it is numbered."""

    capacity: Capacity
    layout: Layout
    reach: Reach
    estimator_memory: EstimatorMemory
    noise_place: NoisePlace


def begun(voice: VoicePlace, rooms: Rooms) -> TurnState:
    """A turn's state before its first chunk."""
    frames = FRAMES_PER_TOKEN * voice.prompt_tokens
    nothing = Rows()
    return TurnState(
        voice.slot, nothing, nothing, nothing, (), (range(frames),), frames, WindowState()
    )


def planned(
    state: TurnState,
    voice: VoicePlace,
    chunk: Chunk,
    rules: Rules,
    rooms: Rooms,
    numbers: Numbers | None = None,
) -> Planned:
    """What this chunk does; `Full` when there is no room for what is or is to be remembered.

    The plan is written into `numbers`, a row of zeros, which `Full` leaves as it is; or a new one.
    """
    _require_room(state, chunk, rules)
    slot, fresh = rooms.slots.take(1), _Fresh.of(rooms, chunk.count)
    if numbers is None:
        numbers = np.zeros(rules.layout.columns, np.int64)
    window, window_state = widened(
        state.window, fresh.rows.count, rules.reach, voice.noise_row, last=chunk.final
    )
    _write_chunk(numbers, state, chunk, slot, rules)
    numbers[rules.layout.window.old : rules.layout.window.old + len(window)] = window
    token_rows, mel_rows = _encoder(numbers, state, voice, fresh, rules.layout)
    rows, held_runs, prompt_runs = _estimator(numbers, state, voice, fresh.rows, rules)
    position = state.position + fresh.rows.count
    after = TurnState(
        slot, token_rows, mel_rows, rows, held_runs, prompt_runs, position, window_state
    )
    return Planned(numbers, after, window.said)


def _require_room(state: TurnState, chunk: Chunk, rules: Rules) -> None:
    capacity = rules.capacity
    if (
        chunk.count > capacity.hop_tokens
        or len(state.prompt_runs) > _MOST_STRETCHES
        or state.rows.count > capacity.turn_frames
    ):
        raise Full


class _Fresh(NamedTuple):
    """The places of a chunk's rows."""

    token_rows: Lease
    mel_rows: Lease
    rows: Lease

    @classmethod
    def of(cls, rooms: Rooms, tokens: int) -> "_Fresh":
        """For so many tokens; `Full`."""
        frames = FRAMES_PER_TOKEN * tokens
        return cls(
            rooms.token_rows.take(tokens),
            rooms.mel_rows.take(frames),
            rooms.estimator_rows.take(frames),
        )


# ---- a plan's numbers ---------------------------------------------------------------------------
#
# Rows are written by the lease: this is done for each chunk of each stream before any begins.


def _write_chunk(
    numbers: Numbers, state: TurnState, chunk: Chunk, slot: Lease, rules: Rules
) -> None:
    layout, tokens = rules.layout, len(chunk.tokens)
    numbers[layout.source] = state.slot.numbers[0]
    numbers[layout.target] = slot.numbers[0]
    numbers[layout.tokens], numbers[layout.tokens_in] = chunk.count, tokens
    numbers[layout.frames] = FRAMES_PER_TOKEN * chunk.count
    numbers[layout.noise] = _noise_frame(state, rules)
    numbers[layout.ids : layout.ids + tokens] = chunk.tokens


def _noise_frame(state: TurnState, rules: Rules) -> int:
    if rules.noise_place == "absolute":
        return state.position
    return state.rows.count + sum(map(len, state.prompt_runs))


def _encoder(
    numbers: Numbers, state: TurnState, voice: VoicePlace, fresh: _Fresh, layout: Layout
) -> tuple[Rows, Rows]:
    """The rows of both rates that are remembered then: the newest two seconds."""
    tokens, frames = voice.prompt_tokens, FRAMES_PER_TOKEN * voice.prompt_tokens
    columns, of_voice = layout.token_memory, (voice.token_memory, tokens)
    _write_memory(numbers, columns, of_voice, (range(tokens),), state.token_rows)
    token_rows = _newest(numbers, columns, state.token_rows, fresh.token_rows, RECENT_TOKENS)
    columns, of_voice = layout.mel_memory, (voice.mel_memory, frames)
    _write_memory(numbers, columns, of_voice, (range(frames),), state.mel_rows)
    mel_rows = _newest(numbers, columns, state.mel_rows, fresh.mel_rows, RECENT_FRAMES)
    return token_rows, mel_rows


def _newest(numbers: Numbers, columns: MemoryColumns, old: Rows, fresh: Lease, most: int) -> Rows:
    at = columns.fresh_rows
    numbers[at : at + fresh.count] = fresh.numbers
    if fresh.count > most:
        numbers[at : at + fresh.count - most] = _FORGOTTEN
    return old.with_newer(fresh, most)


def _estimator(
    numbers: Numbers, state: TurnState, voice: VoicePlace, fresh: Lease, rules: Rules
) -> tuple[Rows, Runs, Runs]:
    """The rows that are remembered then, their frames, and the frames of the voice."""
    columns, prompt_frames = rules.layout.estimator_memory, FRAMES_PER_TOKEN * voice.prompt_tokens
    of_voice = voice.estimator_memory, prompt_frames
    _write_memory(numbers, columns, of_voice, state.prompt_runs, state.rows)
    new = range(state.position, state.position + fresh.count)
    runs, leases = (new, *state.held_runs, *state.prompt_runs), (fresh, *state.rows.leases)
    at, rows, held, prompt = columns.fresh_rows, list[Lease](), list[range](), list[range]()
    numbers[at : at + fresh.count] = _FORGOTTEN
    for number, first, end in kept_parts(runs, prompt_frames, rules.estimator_memory):
        if number == 0:
            numbers[at + first : at + end] = fresh.numbers[first:end]
        if number < len(leases):
            rows.append(leases[number].part(first, end))
        (held if number < len(leases) else prompt).append(runs[number][first:end])
    return Rows(tuple(rows), sum(map(len, held))), tuple(held), tuple(prompt)


def _write_memory(
    numbers: Numbers, columns: MemoryColumns, voice: tuple[int, int], runs: Runs, turn: Rows
) -> None:
    """What of a memory is read: of the voice's rows (from where on, and how many) those that are
    still remembered, and the turn's."""
    numbers[columns.voice], numbers[columns.voice_rows] = voice
    column = columns.first
    for run in runs:
        numbers[column], numbers[column + 1] = run.start, len(run)
        column += 2
    numbers[columns.turn], column = turn.count, columns.turn_rows
    for lease in turn.leases:
        end = column + lease.count
        numbers[column:end] = lease.numbers
        column = end


# ---- what stays ---------------------------------------------------------------------------------


def kept_parts(
    runs: Runs, prompt_frames: int, policy: EstimatorMemory
) -> list[tuple[int, int, int]]:
    """`agent.vocoder.flow.kept_positions` of runs of frames, the newest first: the number of each
    run of which something stays, from where on, and up to where."""
    length = sum(map(len, runs))
    if length <= prompt_frames + RECENT_FRAMES:
        return [(number, 0, len(run)) for number, run in enumerate(runs)]
    if policy == "reference":
        return [*_parts(runs, 0, prompt_frames), *_parts(runs, length - RECENT_FRAMES, length)]
    oldest, kept = runs[0].stop - RECENT_FRAMES, []
    for number, run in enumerate(runs):
        first = 0 if run.start < prompt_frames else max(0, oldest - run.start)
        if first < len(run):
            kept.append((number, first, len(run)))
    return kept


def _parts(runs: Runs, first: int, end: int) -> Iterator[tuple[int, int, int]]:
    """What the frames from the `first` to the `end` of all are of each."""
    start = 0
    for number, run in enumerate(runs):
        part = max(0, first - start), min(len(run), end - start)
        if part[0] < part[1]:
            yield number, *part
        start += len(run)


def runs_of(frames: Numbers) -> list[tuple[int, int]]:
    """Ascending frames as unbroken runs: where each begins and how long it is."""
    breaks = np.flatnonzero(np.diff(frames) != 1) + 1
    parts = [part for part in np.split(frames, breaks) if len(part)]
    return [(int(part[0]), len(part)) for part in parts]
