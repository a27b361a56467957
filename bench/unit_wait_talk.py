"""How people speak, for `bench.unit_wait`: phrases with pauses in them, in a room, from a seed.

Pauses are log-normal and of three kinds, as Campione and Véronis found in some 6000 of them (A
large-scale multilingual study of silent pause duration, Speech Prosody 2002): brief ones below
200 ms, medium ones up to a second, long ones beyond it. How often each comes is assumed here:
between phrases, where people pause to think and not to breathe, few are brief. People take the
floor after 200 ms most often; who listens to a machine is given 600 ms here.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import signal

from agent.types import MIC_RATE_HZ, FloatArray
from bench.turns_sounds import (
    INTERRUPTIONS,
    QUESTIONS,
    SIDE_REMARKS,
    Random,
    Voice,
    draw_voice,
    say,
)

_PAUSES = ((0.15, 120.0, 0.3), (0.65, 450.0, 0.4), (0.2, 1500.0, 0.35))
"""Share, median in ms, and standard deviation of the logarithm."""
_REACTION_MS, _REACTION_SPREAD = 600.0, 0.4
_MOST_PHRASES = 4
_USER_DBFS = (-30.0, -20.0)
_NOISE_DBFS = (-75.0, -50.0)
_RT60_S = (0.15, 0.4)
_DIRECT_OVER_ROOM_DB = 12.0
_PHRASES = tuple(
    phrase.strip()
    for text in (*QUESTIONS, *INTERRUPTIONS, *SIDE_REMARKS)
    for phrase in text.split(",")
    if len(phrase.split()) > 1
)


@dataclass(frozen=True, slots=True)
class Utterance:
    """What the user says in one go: its sound [T] at 16 kHz, and where in it he pauses."""

    samples: FloatArray
    voiced_samples: int
    """What the room adds comes after that."""
    pauses: tuple[tuple[int, int], ...]
    reaction_samples: int
    """How long he waited before."""


class Talker:
    """One user in one room; the same for the same numbers."""

    def __init__(self, seed: int, number: int) -> None:
        self._random: Random = np.random.default_rng((seed, number, 0))
        # By itself: what is said does not depend on how long the user waited before.
        self._hiss: Random = np.random.default_rng((seed, number, 1))
        self._voice: Voice = draw_voice(self._random)
        self._level = 10 ** (self._random.uniform(*_USER_DBFS) / 20)
        self._noise = 10 ** (self._random.uniform(*_NOISE_DBFS) / 20)
        self._room = self._drawn_room()
        self._hum = np.zeros(1)

    def utterances(self, count: int) -> Iterator[Utterance]:
        """So many, one after the other."""
        for _ in range(count):
            yield self._utterance()

    def noise(self, samples: int) -> FloatArray:
        """The room by itself: more of it in the low notes, as where fans and traffic are."""
        white = self._hiss.standard_normal(samples)
        brown, self._hum = signal.lfilter([1.0], [1.0, -0.9], white, zi=self._hum)
        return np.asarray(self._noise * (0.5 * white + 0.35 * brown), np.float32)

    def _utterance(self) -> Utterance:
        count = int(self._random.integers(1, _MOST_PHRASES + 1))
        phrases = self._random.choice(len(_PHRASES), count, replace=False)
        parts: list[FloatArray] = []
        pauses: list[tuple[int, int]] = []
        for place, phrase in enumerate(phrases):
            if place:
                begin = sum(map(len, parts))
                parts.append(np.zeros(self._pause_samples(), np.float32))
                pauses.append((begin, begin + len(parts[-1])))
            parts.append(say(_PHRASES[phrase], self._voice) * np.float32(self._level))
        reaction_ms = self._random.lognormal(np.log(_REACTION_MS), _REACTION_SPREAD)
        reaction = int(reaction_ms * MIC_RATE_HZ / 1000)
        spoken = np.concatenate(parts)
        return Utterance(self._in_room(spoken), len(spoken), tuple(pauses), reaction)

    def _pause_samples(self) -> int:
        shares = [share for share, _, _ in _PAUSES]
        _, median_ms, spread = _PAUSES[int(self._random.choice(len(_PAUSES), p=shares))]
        return int(self._random.lognormal(np.log(median_ms), spread) * MIC_RATE_HZ / 1000)

    def _drawn_room(self) -> FloatArray:
        """What the room adds [T]: noise that dies away, weaker than the voice itself."""
        rt60_s = self._random.uniform(*_RT60_S)
        time_s = np.arange(int(rt60_s * MIC_RATE_HZ)) / MIC_RATE_HZ
        tail = self._random.standard_normal(len(time_s)) * np.exp(-6.9 * time_s / rt60_s)
        tail[: MIC_RATE_HZ // 200] = 0
        tail *= 10 ** (-_DIRECT_OVER_ROOM_DB / 20) / np.sqrt((tail**2).sum())
        tail[0] = 1.0
        return np.asarray(tail, np.float32)

    def _in_room(self, spoken: FloatArray) -> FloatArray:
        size = len(spoken) + len(self._room) - 1
        heard = np.fft.irfft(np.fft.rfft(spoken, size) * np.fft.rfft(self._room, size), size)
        return np.asarray(heard, np.float32)
