"""What a chunk of a stream is to the kernels: a row of whole numbers, the plan."""

from dataclasses import dataclass

from agent.vocoder.config import FRAMES_PER_TOKEN
from agent.vocoder.flow import RECENT_FRAMES, RECENT_TOKENS

LOOKAHEAD_TOKENS = 3
WINDOW_FRAMES = 40
"""What a stream's window keeps between two chunks, at most; the causal HiFT's are 39."""
PITCH_FRAMES = 18
"""How many more frames than a chunk has may want a pitch."""
SAID_FRAMES = 14
"""How many more may be said: what was held back, at the end of a turn."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a chunk and a stream's memory may have at most."""

    hop_tokens: int
    turn_frames: int = RECENT_FRAMES
    """Of the turn, which the estimator remembers."""
    prompt_tokens: int = 750

    @property
    def tokens(self) -> int:
        """Of a chunk, with those that are only looked at."""
        return self.hop_tokens + LOOKAHEAD_TOKENS

    @property
    def frames(self) -> int:
        """Of a chunk."""
        return FRAMES_PER_TOKEN * self.hop_tokens

    @property
    def window_frames(self) -> int:
        """Of a window with a chunk at its end, and what is guessed behind it."""
        return self.frames + WINDOW_FRAMES


@dataclass(frozen=True, slots=True)
class MemoryColumns:
    """Where the plan says what a stream remembers: columns of single numbers, or of the first.

    The voice's keys are `first_count` rows from `first` on and `second_count` from `second` on.
    """

    chunk: int
    """How many rows the chunk has."""
    voice: int
    """Where the voice's rows of this memory begin, in numbers from the store on."""
    voice_rows: int
    first: int
    first_count: int
    second: int
    second_count: int
    turn: int
    turn_rows: int
    """The first of so many (`turn`) that name the turn's rows."""
    fresh_rows: int
    """The first of those that name the chunk's rows; below 0: forgotten at once."""


@dataclass(frozen=True, slots=True)
class WindowColumns:
    """Columns of HiFT's window, in frames unless they say otherwise; the window's first is 0."""

    old: int
    """How many were there before, with the chunk's (`whole`), and with what is guessed."""
    whole: int
    heard: int
    pitch_from: int
    """Of which the pitch is computed, …"""
    settled: int
    """… and how many had theirs."""
    sourced: int
    """How many get an excitation."""
    dropped: int
    """How many leave the window afterwards, and up to which the pitch stays as it is."""
    settling: int
    glides: int
    """Whether a frame stands in front of the first: 0 or 1."""
    noise: int
    """The row of the noise of the first sample."""
    shaped: int
    """How many are made sound; and samples: from which on, how many are said, faded in, kept."""
    said_from: int
    said: int
    faded: int
    held: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Which column of a plan means what."""

    source: int
    """The slot of the stream's small states, and the one that the next ones go to."""
    target: int
    tokens: int
    tokens_in: int
    """With those that are only looked at."""
    frames: int
    noise: int
    """The frame of the noise that the solver starts from."""
    ids: int
    """The first of the chunk's tokens."""
    token_memory: MemoryColumns
    mel_memory: MemoryColumns
    estimator_memory: MemoryColumns
    window: WindowColumns
    columns: int


class _Counting:
    """Hands out columns one after the other."""

    def __init__(self) -> None:
        self.next = 0

    def take(self, count: int = 1) -> int:
        """The first of so many."""
        first = self.next
        self.next += count
        return first


def layout_of(capacity: Capacity) -> Layout:
    """The layout of the plans of chunks up to this capacity."""
    columns = _Counting()
    source, target, tokens, tokens_in, frames, noise = (columns.take() for _ in range(6))
    ids = columns.take(capacity.tokens)
    widths = (
        (tokens, RECENT_TOKENS, capacity.tokens),
        (frames, RECENT_FRAMES, FRAMES_PER_TOKEN * capacity.tokens),
        (frames, capacity.turn_frames, capacity.frames),
    )
    token_memory, mel_memory, estimator_memory = (_memory(columns, *width) for width in widths)
    window = WindowColumns(**{name: columns.take() for name in WindowColumns.__slots__})
    return Layout(
        source,
        target,
        tokens,
        tokens_in,
        frames,
        noise,
        ids,
        token_memory,
        mel_memory,
        estimator_memory,
        window,
        columns.next,
    )


def _memory(columns: _Counting, chunk: int, turn: int, fresh: int) -> MemoryColumns:
    voice, rows, first, first_count, second, second_count, count = (
        columns.take() for _ in range(7)
    )
    singles = (voice, rows, first, first_count, second, second_count, count)
    return MemoryColumns(chunk, *singles, columns.take(turn), columns.take(fresh))
