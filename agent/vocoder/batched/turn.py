"""What a stream remembers and what its next chunk does to that, counted on the host.

A state is never changed: a chunk makes the next one, in places that nobody reads yet, so a chunk
that went wrong can be made again from the state before it, and to clone a stream is to keep its
state.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from agent.vocoder.batched.layout import Capacity, Layout, MemoryColumns
from agent.vocoder.batched.places import Full, Lease, Numbers, Places
from agent.vocoder.batched.window import Reach, WindowState, widened
from agent.vocoder.config import FRAMES_PER_TOKEN
from agent.vocoder.flow import RECENT_FRAMES, RECENT_TOKENS, EstimatorMemory, NoisePlace

_MOST_STRETCHES = 2
"""Of a voice's frames, which the plan has columns for; no policy leaves more."""


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


@dataclass(frozen=True, slots=True)
class TurnState:
    """A turn between two chunks; the leases hold its places as long as this lives."""

    slot: Lease
    token_rows: Lease  # oldest first
    mel_rows: Lease
    rows: Lease  # of the estimator, newest chunk in front, each ascending
    held: Numbers  # the frames of those rows
    prompt: Numbers  # the frames of the voice that are still remembered
    position: int
    window: WindowState = field(default_factory=WindowState)


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next tokens; unless `final`, the last three are only looked at."""

    tokens: Sequence[int]
    count: int
    final: bool


@dataclass(frozen=True, slots=True)
class Planned:
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
    nothing = np.zeros(0, np.int64)
    return TurnState(
        voice.slot,
        rooms.token_rows.take(0),
        rooms.mel_rows.take(0),
        rooms.estimator_rows.take(0),
        nothing,
        np.arange(frames),
        frames,
    )


def planned(
    state: TurnState, voice: VoicePlace, chunk: Chunk, rules: Rules, rooms: Rooms
) -> Planned:
    """What this chunk does; `Full` when there is no room for what is or is to be remembered."""
    layout, count = rules.layout, FRAMES_PER_TOKEN * chunk.count
    if chunk.count > rules.capacity.hop_tokens:
        raise Full
    numbers = np.zeros(layout.columns, np.int64)
    slot = rooms.slots.take(1)
    sizes = (chunk.count, len(chunk.tokens), count, _noise_frame(state, rules))
    numbers[layout.source] = state.slot.numbers[0]
    numbers[[layout.target, layout.tokens, layout.tokens_in, layout.frames, layout.noise]] = (
        slot.numbers[0],
        *sizes,
    )
    numbers[layout.ids : layout.ids + len(chunk.tokens)] = chunk.tokens
    window, window_state = widened(
        state.window, count, rules.reach, voice.noise_row, last=chunk.final
    )
    numbers[layout.window.old : layout.window.old + len(window.numbers)] = window.numbers
    memories = _Memories(numbers, voice, rooms)
    token_rows, mel_rows = memories.encoder(state, chunk.count, layout)
    rows, held, prompt = memories.estimator(state, count, rules)
    after = replace(
        state,
        slot=slot,
        token_rows=token_rows,
        mel_rows=mel_rows,
        rows=rows,
        held=held,
        prompt=prompt,
        position=state.position + count,
        window=window_state,
    )
    return Planned(numbers, after, window.said)


def _noise_frame(state: TurnState, rules: Rules) -> int:
    if rules.noise_place == "absolute":
        return state.position
    return len(state.held) + len(state.prompt)


@dataclass(frozen=True, slots=True)
class _Memories:
    """Writes into a plan what of each memory is read, and where the chunk's rows go."""

    numbers: Numbers
    voice: VoicePlace
    rooms: Rooms

    def encoder(self, state: TurnState, tokens: int, layout: Layout) -> tuple[Lease, Lease]:
        """The rows of both rates that are remembered then: the newest two seconds."""
        voice, rooms = self.voice, self.rooms
        self._voice(layout.token_memory, voice.token_memory, voice.prompt_tokens)
        frames = FRAMES_PER_TOKEN * voice.prompt_tokens
        self._voice(layout.mel_memory, voice.mel_memory, frames)
        made = (
            (layout.token_memory, rooms.token_rows, state.token_rows, tokens, RECENT_TOKENS),
            (layout.mel_memory, rooms.mel_rows, state.mel_rows, 2 * tokens, RECENT_FRAMES),
        )
        leases = []
        for columns, places, old, count, most in made:
            fresh = places.take(count)
            rows = np.concatenate([old.numbers, fresh.numbers])
            forgotten = max(0, len(rows) - most)
            lasting = fresh.numbers.copy()
            lasting[: max(0, forgotten - len(old))] = -1
            self._turn(columns, old.numbers, lasting)
            leases.append(fresh.of(rows[forgotten:]))
        return leases[0], leases[1]

    def estimator(
        self, state: TurnState, count: int, rules: Rules
    ) -> tuple[Lease, Numbers, Numbers]:
        """The rows that are remembered then, their frames, and the frames of the voice."""
        columns, places = rules.layout.estimator_memory, self.rooms.estimator_rows
        prompt_frames = FRAMES_PER_TOKEN * self.voice.prompt_tokens
        self._voice(columns, self.voice.estimator_memory, prompt_frames)
        stretches = runs_of(state.prompt)
        if len(stretches) > _MOST_STRETCHES or len(state.rows) > rules.capacity.turn_frames:
            raise Full
        for (first, length), column in zip(
            stretches, (columns.first, columns.second), strict=False
        ):
            self.numbers[[column, column + 1]] = first, length
        fresh = places.take(count)
        turn = np.concatenate([np.arange(state.position, state.position + count), state.held])
        rows = np.concatenate([fresh.numbers, state.rows.numbers])
        held = np.concatenate([turn, state.prompt])
        kept = kept_places(held, prompt_frames, rules.estimator_memory)
        of_turn, of_voice = kept[kept < len(turn)], kept[kept >= len(turn)]
        lasting = np.full(count, -1)
        lasting[of_turn[of_turn < count]] = fresh.numbers[of_turn[of_turn < count]]
        self._turn(columns, state.rows.numbers, lasting)
        return fresh.of(rows[of_turn]), turn[of_turn], held[of_voice]

    def _voice(self, columns: MemoryColumns, at: int, rows: int) -> None:
        self.numbers[[columns.voice, columns.voice_rows]] = at, rows
        self.numbers[[columns.first, columns.first_count]] = 0, rows

    def _turn(self, columns: MemoryColumns, rows: Numbers, fresh: Numbers) -> None:
        self.numbers[columns.turn] = len(rows)
        self.numbers[columns.turn_rows : columns.turn_rows + len(rows)] = rows
        self.numbers[columns.fresh_rows : columns.fresh_rows + len(fresh)] = fresh


def kept_places(held: Numbers, prompt_frames: int, policy: EstimatorMemory) -> Numbers:
    """`agent.vocoder.flow.kept_positions`, of an array."""
    length = len(held)
    if length <= prompt_frames + RECENT_FRAMES:
        return np.arange(length)
    if policy == "reference":
        return np.concatenate([np.arange(prompt_frames), np.arange(length - RECENT_FRAMES, length)])
    oldest = int(held.max()) + 1 - RECENT_FRAMES
    return np.flatnonzero((held < prompt_frames) | (held >= oldest))


def runs_of(frames: Numbers) -> list[tuple[int, int]]:
    """Ascending frames as unbroken runs: where each begins and how long it is."""
    breaks = np.flatnonzero(np.diff(frames) != 1) + 1
    parts = [part for part in np.split(frames, breaks) if len(part)]
    return [(int(part[0]), len(part)) for part in parts]
