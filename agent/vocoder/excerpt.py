"""Which part of a long recording a voice is cloned from, and how it is cut out.

    for excerpt in excerpts(measure(mono, rate_hz), longest_s=15.0):  # the most promising first
        cut(planar, rate_hz, excerpt)  # [channels, T], long pauses shortened

What is short enough stays in one piece with all its pauses. Of what is longer, a part is taken that
starts and ends in pauses, holds much speech and little noise.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from agent.types import FloatArray
from agent.vocoder.sound_levels import NOISE_FRAMES, STEP_S, PowerArray, SoundLevels, noise_floors

Run: TypeAlias = tuple[int, int]
"""(first, behind the last) of frames of 10 ms."""

_LONG_PAUSE = round(0.6 / STEP_S)
_PAUSE = round(0.4 / STEP_S)
"""Frames that a long pause is shortened to."""
_MARGIN = round(0.1 / STEP_S)
"""Frames of what is around the speech, kept at either end."""
_TAIL_S = 0.12
"""Silence at the end, or the look-ahead past the end of a prompt can be heard."""
_JOINT_S = 0.01
_CUT_FROM = 0.6
"""Speech without a pause is cut at its quietest, but not before this share of what may stay."""
_DIP = 10
"""Frames over which that is looked for."""
_BAD_SNR_DB = 10.0
"""Below, speech does more harm than good."""
_GOOD_SNR_DB = 30.0
"""From here on, longer is better than cleaner."""
_LEAST_POWER = 1e-12
_AS_GOOD = 0.05
"""Of parts that are about as good, the earliest is taken, or a breath would decide."""
_MOST = 8
_SHARED = 0.5
"""How much of its speech a part may have in common with one that is before it in the list."""


@dataclass(frozen=True, slots=True)
class Excerpt:
    """What is kept of a recording: `pieces`, the `speech` in it, frames of 10 ms of the recording.

    `is_all`: nothing but what is before and after the speech was left out.
    """

    pieces: tuple[Run, ...]
    speech: tuple[Run, ...]
    is_all: bool

    @property
    def start_s(self) -> float:
        """Where in the recording it starts."""
        return self.pieces[0][0] * STEP_S

    @property
    def kept_s(self) -> float:
        """How long all pieces are together."""
        return sum(last - first for first, last in self.pieces) * STEP_S

    @property
    def has_shorter_pauses(self) -> bool:
        return len(self.pieces) > 1

    @property
    def missing_tail_s(self) -> float:
        """Silence that it lacks at its end."""
        return max(0.0, _TAIL_S - (self.pieces[-1][1] - self.speech[-1][1]) * STEP_S)

    def spoken_s(self) -> list[tuple[float, float]]:
        """Where in what `cut` returns somebody speaks, (from, to) in seconds."""
        spoken, offset = [], 0
        for first, last in self.pieces:
            inside = [(a, b) for a, b in self.speech if first <= a and b <= last]
            spoken += [
                ((a - first + offset) * STEP_S, (b - first + offset) * STEP_S) for a, b in inside
            ]
            offset += last - first
        return spoken


def excerpts(levels: SoundLevels, longest_s: float) -> list[Excerpt]:
    """At most eight, the best first; one when all of it fits; none without speech."""
    spans = levels.spans()
    if not spans:
        return []
    room = round((longest_s - _TAIL_S) / STEP_S)
    lead = min(_MARGIN, spans[0][0])
    end = len(levels.active)
    if spans[-1][1] - spans[0][0] + lead <= room:
        pieces = ((spans[0][0] - lead, min(end, spans[-1][1] + _MARGIN)),)
        return [Excerpt(pieces, tuple(spans), is_all=True)]
    parts = _parts(levels, spans, room - _MARGIN)
    fitting = [_longest_from(parts, index, room, end) for index in range(len(parts))]
    return _best(fitting, levels)


def cut(planar: FloatArray, rate_hz: int, excerpt: Excerpt) -> FloatArray:
    """Its pieces of [channels, T], one fading into the next; as long as they are together."""
    joint = int(_JOINT_S * rate_hz)
    rising = np.linspace(0, 1, joint, endpoint=False, dtype=np.float32)
    kept: list[FloatArray] = []
    for first, last in excerpt.pieces:
        begin, end = int(first * STEP_S * rate_hz), int(last * STEP_S * rate_hz)
        piece = planar[:, begin:end].astype(np.float32)
        if kept:
            # What comes before a later piece is a pause, so there is some to fade in with.
            before = planar[:, begin - joint : begin] * rising
            kept[-1][:, -joint:] = kept[-1][:, -joint:] * (1 - rising) + before
        kept.append(piece)
    return np.concatenate(kept, axis=1)


def _parts(levels: SoundLevels, spans: list[Run], room: int) -> list[Run]:
    """The spans, those that are too long for themselves in parts."""
    parts = []
    for first, last in spans:
        begin = first
        while last - begin > room:
            end = _quietest(levels, begin + int(_CUT_FROM * room), begin + room)
            parts.append((begin, end))
            begin = end
        parts.append((begin, last))
    return parts


def _quietest(levels: SoundLevels, first: int, last: int) -> int:
    """The frame in the middle of the quietest tenth of a second; the last of those."""
    around = np.convolve(levels.powers[first:last], np.ones(_DIP) / _DIP, "valid")
    quiet = np.flatnonzero(around <= around.min() * (1 + 1e-6))
    return first + int(quiet[-1]) + _DIP // 2


def _longest_from(parts: list[Run], index: int, room: int, end: int) -> Excerpt:
    """As many parts from this one on as fit, with pauses of no more than 0.4 s."""
    before = parts[index][0] - (parts[index - 1][1] if index else 0)
    used = min(_MARGIN, before) + parts[index][1] - parts[index][0]
    behind = index + 1
    while behind < len(parts):
        pause = parts[behind][0] - parts[behind - 1][1]
        used += (_PAUSE if pause > _LONG_PAUSE else pause) + parts[behind][1] - parts[behind][0]
        if used > room:
            break
        behind += 1
    after = (parts[behind][0] if behind < len(parts) else end) - parts[behind - 1][1]
    taken = parts[index:behind]
    pieces = [(taken[0][0] - min(_MARGIN, before), taken[0][1])]
    for first, last in taken[1:]:
        begin, so_far = pieces[-1]
        if first - so_far <= _LONG_PAUSE:
            pieces[-1] = (begin, last)
        else:
            pieces[-1] = (begin, so_far + _PAUSE // 2)
            pieces.append((first - _PAUSE // 2, last))
    pieces[-1] = (pieces[-1][0], pieces[-1][1] + min(_MARGIN, after))
    return Excerpt(tuple(pieces), tuple(taken), is_all=False)


def _best(fitting: list[Excerpt], levels: SoundLevels) -> list[Excerpt]:
    gains = _gains(levels)
    left = [(_total(excerpt, gains), excerpt) for excerpt in fitting]
    best: list[Excerpt] = []
    while left and len(best) < _MOST:
        most = max(worth for worth, _ in left)
        enough = most - _AS_GOOD * abs(most)
        taken = next(excerpt for worth, excerpt in left if worth >= enough)
        best.append(taken)
        fresh = np.ones(len(gains), np.float64)
        for first, last in taken.speech:
            fresh[first:last] = 0
        left = [
            (worth, each)
            for worth, each in left
            if _total(each, fresh) > (1 - _SHARED) * _total(each, np.ones_like(fresh))
        ]
    return best


def _total(excerpt: Excerpt, values: PowerArray) -> float:
    return float(sum(values[first:last].sum() for first, last in excerpt.speech))


def _gains(levels: SoundLevels) -> PowerArray:
    """What a frame of speech is worth, −1..1: less where there is noise around it."""
    speech = max(float(levels.powers[levels.active].mean()), _LEAST_POWER)
    first, noise = noise_floors(levels.powers)
    nearby = np.interp(np.arange(len(levels.powers)), first + NOISE_FRAMES / 2, noise)
    snr_db = 10 * np.log10(speech / np.maximum(nearby, _LEAST_POWER))
    gains: PowerArray = (snr_db - _BAD_SNR_DB) / (_GOOD_SNR_DB - _BAD_SNR_DB)
    return np.clip(gains, -1.0, 1.0)
