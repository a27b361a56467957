"""Speech whose every word carries a number that can be read back from what was rendered.

A word is 200 ms of two steady tones, which say its index, and a sweep, which says how far the word
has come; 50 ms of silence follow. The sweep makes times exact where tones alone would blur: an
echo's tail repeats where the sweep was, not where it is. So lost, repeated and interrupted words,
and pieces of words, are told from each other, after a codec, a room and a jitter buffer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from agent.types import SPEECH_RATE_HZ, FloatArray

WORD_S = 0.2
SLOT_S = 0.25
"""From the beginning of a word to that of the next."""
INDICES = 256
LEVEL_DBFS = -23.0
"""Effective level of a word, that of speech."""

_SLOT_SAMPLES = round(SLOT_S * SPEECH_RATE_HZ)
_WORD_SAMPLES = round(WORD_S * SPEECH_RATE_HZ)
_EDGE_SAMPLES = SPEECH_RATE_HZ * 5 // 1000

# All within 300–3400 Hz; neighbours are at least two bins of a 40 ms window apart.
_LOW_HZ = 350.0 + 50.0 * np.arange(16)
_MIDDLE_HZ = 1250.0 + 65.0 * np.arange(16)
_SWEEP_FROM_HZ = 2400.0
_SWEEP_HZ_PER_S = 4500.0

_WINDOW_S = 0.04
_HOP_S = 0.005
_MARGIN_S = 0.02
_SWEEP_S = np.arange(-_MARGIN_S, WORD_S + _MARGIN_S + 1e-9, _HOP_S)
_BLOCK_FRAMES = 1024

_MIN_SHARE = 0.4
"""Of a frame's power the three components hold so much, or it is not a word."""
_MIN_TONE_SHARE = 0.015
_MIN_POWER = 10 ** (-60 / 10)
_TOLERANCE_S = 0.006
"""Frames of one piece agree within this about when its word began."""
_MIN_PURITY = 0.5
"""The strongest tone of a group holds so much of the group, or it is not a word."""
_ECHO_RATIO = 2.0
_MIN_FRAMES = 6
_MAX_HOLE_S = 0.02
_HOLE_LEVEL = 0.4
_SNAP_S = 0.016
_MAX_PART_S = WORD_S + 2 * _MARGIN_S


@dataclass(frozen=True, slots=True)
class CodedWord:
    """A word or an unbroken piece of one, as it was rendered.

    `start_s`, `end_s` count from the recording's beginning; `from_s`, `to_s` say which part of
    the word (0 to `WORD_S`) that was.
    """

    index: int
    start_s: float
    end_s: float
    from_s: float = 0.0
    to_s: float = WORD_S

    @property
    def whole(self) -> bool:
        """Whether nothing audible of the word is missing."""
        return self.from_s < 0.02 and self.to_s > WORD_S - 0.02


@dataclass(frozen=True, slots=True)
class Account:
    """What became of the words that were said, by their position in what was said."""

    lost: list[int] = field(default_factory=list)
    """Not rendered, or less than half of it."""
    damaged: list[int] = field(default_factory=list)
    """More than 30 ms of it missing."""
    repeated: list[int] = field(default_factory=list)
    """The same 30 ms of it rendered twice."""
    interrupted: list[int] = field(default_factory=list)
    """Rendered in more than one piece."""


def encode(indices: Sequence[int]) -> FloatArray:
    """The words `indices` (0–255), one after the other, [250 ms each] at 24 kHz."""
    if not indices:
        return np.zeros(0, np.float32)
    return np.concatenate([_word(index) for index in indices])


@lru_cache(maxsize=INDICES)
def _word(index: int) -> FloatArray:
    if not 0 <= index < INDICES:
        raise ValueError(f"words go from 0 to {INDICES - 1}, not {index}")
    seconds = np.arange(_WORD_SAMPLES) / SPEECH_RATE_HZ
    cycles = (
        _LOW_HZ[index // 16] * seconds,
        _MIDDLE_HZ[index % 16] * seconds,
        _SWEEP_FROM_HZ * seconds + _SWEEP_HZ_PER_S / 2 * seconds**2,
    )
    sound = np.sum([np.sin(2 * np.pi * cycle) for cycle in cycles], axis=0)
    sound *= 10 ** (LEVEL_DBFS / 20) / np.sqrt(np.mean(sound**2))
    edge = 0.5 - 0.5 * np.cos(np.pi * (np.arange(_EDGE_SAMPLES) + 0.5) / _EDGE_SAMPLES)
    sound[:_EDGE_SAMPLES] *= edge
    sound[-_EDGE_SAMPLES:] *= edge[::-1]
    word = np.zeros(_SLOT_SAMPLES, np.float32)
    word[:_WORD_SAMPLES] = sound
    return word


def decode(samples: FloatArray, rate_hz: int) -> list[CodedWord]:
    """Every word and piece of a word of 30 ms or more in `samples` [T], in order of time.

    Any rate from 8 kHz on. Times are exact to 10 ms. Silence, noise and speech give nothing.
    """
    frames = _Frames.of(samples, rate_hz)
    found = [piece for run in frames.runs() for piece in frames.pieces(run)]
    direct = [word for word, level in found if not _is_echo(word, level, found)]
    return sorted(direct, key=lambda word: word.start_s)


def _is_echo(word: CodedWord, level: float, found: list[tuple[CodedWord, float]]) -> bool:
    """Whether the same word was there shortly before, and much louder."""
    return any(
        other.index == word.index
        and _TOLERANCE_S / 2 < (word.start_s - word.from_s) - (other.start_s - other.from_s) < 1.0
        and other_level > _ECHO_RATIO * level
        for other, other_level in found
    )


def account(words: Sequence[CodedWord], said: Sequence[int]) -> Account:
    """Compare what was rendered with what was said. No index twice within 128 words of `said`."""
    parts: dict[int, list[CodedWord]] = {}
    reached = 0
    for word in words:
        near = range(max(0, reached - 64), min(len(said), reached + 64))
        fitting = [position for position in near if said[position] == word.index]
        if fitting:
            reached = min(fitting, key=lambda position: abs(position - reached))
            parts.setdefault(reached, []).append(word)
    result = Account()
    for position in range(len(said)):
        _judge(position, parts.get(position, []), result)
    return result


def _judge(position: int, parts: list[CodedWord], result: Account) -> None:
    covered = np.zeros(round(WORD_S * 1000), np.int64)
    for part in parts:
        covered[max(0, round(part.from_s * 1000)) : round(part.to_s * 1000)] += 1
    missing_ms = int(np.sum(covered == 0))
    if missing_ms > WORD_S * 500:
        result.lost.append(position)
    elif missing_ms > 30:
        result.damaged.append(position)
    if np.sum(covered > 1) > 30:
        result.repeated.append(position)
    if len(parts) > 1:
        result.interrupted.append(position)


@dataclass(frozen=True, slots=True)
class _Frames:
    """What each 40 ms window, one every 5 ms, holds. Times in seconds, at the window's middle."""

    time_s: npt.NDArray[np.float64]  # [F]
    index: npt.NDArray[np.int64]  # [F], −1 where there is no word
    began_s: npt.NDArray[np.float64]  # [F], when the word began, by its sweep
    sweep: npt.NDArray[np.float32]  # [F, positions], amplitude

    @classmethod
    def of(cls, samples: FloatArray, rate_hz: int) -> "_Frames":
        """Look at all of `samples`, block by block."""
        length, hop = round(_WINDOW_S * rate_hz), round(_HOP_S * rate_hz)
        padded = np.pad(np.asarray(samples, np.float32), length // 2)
        windows = np.lib.stride_tricks.sliding_window_view(padded, length)[::hop]
        blocks = [
            _look(windows[at : at + _BLOCK_FRAMES], rate_hz)
            for at in range(0, len(windows), _BLOCK_FRAMES)
        ]
        index, position_s, sweep = (np.concatenate(part) for part in zip(*blocks, strict=True))
        time_s = np.arange(len(windows)) * hop / rate_hz
        return cls(time_s, index, time_s - position_s, sweep)

    def runs(self) -> list[tuple[int, float]]:
        """The stretches of frames that agree: index, and when the word began."""
        open_runs: list[list[int]] = []
        done: list[list[int]] = []
        for frame in np.flatnonzero(self.index >= 0):
            fitting = [run for run in open_runs if self._agrees(run, int(frame))]
            if fitting:
                fitting[0].append(int(frame))
            else:
                open_runs.append([int(frame)])
            fresh = self.time_s[frame] - _MAX_PART_S
            done += [run for run in open_runs if self.time_s[run[0]] < fresh]
            open_runs = [run for run in open_runs if self.time_s[run[0]] >= fresh]
        return [
            (int(self.index[run[0]]), float(np.median(self.began_s[run])))
            for run in (*done, *open_runs)
            if len(run) >= _MIN_FRAMES
        ]

    def _agrees(self, run: list[int], frame: int) -> bool:
        began_s = float(np.median(self.began_s[run]))
        same = self.index[run[0]] == self.index[frame]
        return bool(same and abs(self.began_s[frame] - began_s) < _TOLERANCE_S)

    def pieces(self, run: tuple[int, float]) -> list[tuple[CodedWord, float]]:
        """Where the sweep of a run can be heard, and its amplitude: one piece, or more with holes
        between them."""
        index, began_s = run
        inside = np.flatnonzero(
            (self.time_s > began_s - _MARGIN_S) & (self.time_s < began_s + WORD_S + _MARGIN_S)
        )
        at_s = self.time_s[inside] - began_s
        near = np.clip(np.rint((at_s + _MARGIN_S) / _HOP_S).astype(int), 1, len(_SWEEP_S) - 2)
        level = np.max([self.sweep[inside, near + step] for step in (-1, 0, 1)], axis=0)
        # A window half filled by a sound that begins or ends shows half its amplitude.
        half = float(level.max()) / 2
        return [
            (CodedWord(index, began_s + from_s, began_s + to_s, from_s, to_s), 2 * half)
            for a, b in _crossings(at_s, level, half)
            for from_s, to_s in ((_snapped(a, 0.0), _snapped(b, WORD_S)),)
            if to_s - from_s >= _MIN_FRAMES * _HOP_S
        ]


def _look(
    windows: npt.NDArray[np.float32], rate_hz: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float32]]:
    """Index or −1, position within the word in seconds, amplitude at each step of the sweep."""
    shape, basis = _basis(rate_hz)
    amplitude = np.abs(windows @ basis)
    low, middle, sweep = np.split(amplitude, (len(_LOW_HZ), len(_LOW_HZ) + len(_MIDDLE_HZ)), axis=1)
    power = (windows**2) @ shape
    tones = np.stack([part.max(axis=1) ** 2 / 2 for part in (low, middle, sweep)])
    groups = np.stack([(part**2).sum(axis=1) / 2 for part in (low, middle)])
    there = (
        (power > _MIN_POWER)
        & (tones.sum(axis=0) > _MIN_SHARE * power)
        & (tones[:2] > _MIN_PURITY * groups).all(axis=0)
        & (tones.min(axis=0) > _MIN_TONE_SHARE * power)
    )
    index = np.where(there, low.argmax(axis=1) * 16 + middle.argmax(axis=1), -1)
    return index, _peak_s(sweep), sweep.astype(np.float32)


def _peak_s(sweep: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The position of the highest point, between the steps, by a parabola through three."""
    peak = np.clip(sweep.argmax(axis=1), 1, sweep.shape[1] - 2)
    rows = np.arange(len(sweep))
    before, top, after = (sweep[rows, peak + step].astype(np.float64) for step in (-1, 0, 1))
    bend = np.minimum(before - 2 * top + after, -1e-12)
    offset = np.clip((before - after) / (2 * bend), -0.5, 0.5)
    return np.asarray(_SWEEP_S[peak] + offset * _HOP_S)


@lru_cache(maxsize=8)
def _basis(rate_hz: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.complex64]]:
    """The window [T], of sum 1, and what to multiply with for amplitudes [T, components]."""
    length = round(_WINDOW_S * rate_hz)
    seconds = (np.arange(length) - length // 2) / rate_hz
    window = np.hanning(length + 2)[1:-1]
    window /= window.sum()
    steady = np.concatenate((_LOW_HZ, _MIDDLE_HZ))[None, :] * seconds[:, None]
    passing_hz = _SWEEP_FROM_HZ + _SWEEP_HZ_PER_S * _SWEEP_S
    bend = _SWEEP_HZ_PER_S / 2 * seconds[:, None] ** 2
    cycles = np.concatenate((steady, passing_hz[None, :] * seconds[:, None] + bend), axis=1)
    basis = 2 * window[:, None] * np.exp(-2j * np.pi * cycles)
    return window.astype(np.float32), basis.astype(np.complex64)


def _crossings(
    at_s: npt.NDArray[np.float64], level: npt.NDArray[np.float32], half: float
) -> list[tuple[float, float]]:
    """The stretches in which `level` is above `half`, ends interpolated.

    Short holes are closed, and those in which the sound is only weaker: rooms colour it.
    """
    above = np.concatenate(([False], level > half, [False]))
    edges = np.flatnonzero(above[1:] != above[:-1])
    stretches: list[tuple[float, float]] = []
    left = 0
    for first, past in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        begin_s = _between(at_s, level, half, first - 1) if first else float(at_s[0])
        end_s = _between(at_s, level, half, past - 1) if past < len(level) else float(at_s[-1])
        if stretches:
            weaker = level[left:first].min() > _HOLE_LEVEL * half
            if weaker or begin_s - stretches[-1][1] < _MAX_HOLE_S:
                begin_s = stretches.pop()[0]
        stretches.append((begin_s, end_s))
        left = past
    return stretches


def _snapped(edge_s: float, natural_s: float) -> float:
    """An edge near a word's own is that one: the sweep tells it better than a coloured level."""
    return natural_s if abs(edge_s - natural_s) < _SNAP_S else min(max(edge_s, 0.0), WORD_S)


def _between(
    at_s: npt.NDArray[np.float64], level: npt.NDArray[np.float32], half: float, before: int
) -> float:
    """Where, between frames `before` and the next, the level passes `half`."""
    first, second = float(level[before]), float(level[before + 1])
    share = (half - first) / (second - first)
    return float(at_s[before] + share * (at_s[before + 1] - at_s[before]))
