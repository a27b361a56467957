"""A room: what the agent says comes back into the microphone, late, coloured and distorted."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from agent.media.audio import Resampler, level_dbfs
from agent.media.echo_canceller import Aec3
from agent.types import MIC_RATE_HZ, SPEECH_RATE_HZ, AudioFrame, FloatArray

MILD_DRIVE = 1.0
"""One or two percent of distortion on the peaks of speech at −23 dBFS."""
HARD_DRIVE = 5.0
"""A small loudspeaker turned up: 15 to 25 percent on those peaks."""

_CHANGE_SAMPLES = 160
_TAPS = 48
_PHASES = 2048


@dataclass(frozen=True)
class PathChange:
    """From `at_s` of the microphone on the echo comes after `delay_ms`, from room `seed`."""

    at_s: float
    delay_ms: int
    seed: int | None = None


@dataclass(frozen=True)
class EchoPath:
    """From the far end at 24 kHz to the microphone at 16 kHz.

    `delay_ms` covers network, both jitter buffers and the air; `erl_db` is how much weaker the
    echo is than what was sent; `drive` is how hard the loudspeaker is pushed (`MILD_DRIVE`,
    `HARD_DRIVE`). With `drift_ppm` the microphone counts so many more samples than the
    loudspeaker: the echo comes ever later; negative, ever earlier.
    """

    delay_ms: int = 120
    rt60_s: float = 0.3
    erl_db: float = 6.0
    drive: float = MILD_DRIVE
    noise_dbfs: float = -75.0
    seed: int = 1
    drift_ppm: float = 0.0
    changes: tuple[PathChange, ...] = ()

    def record(self, far: FloatArray) -> FloatArray:
        """The microphone while `far` [T] at 24 kHz is sent, [T * 2 / 3], the two in step."""
        echo = self.echo(far)
        return (echo + self._noise(len(echo))).astype(np.float32)

    def record_with(
        self, far: FloatArray, user: FloatArray, at_s: float, over_echo_db: float
    ) -> FloatArray:
        """The same with `user` [S] at 16 kHz from `at_s` on, so much louder than the echo.

        Levels are effective ones: of all of the echo, and of all of what the user says.
        """
        mic = self.record(far)
        gain_db = level_dbfs(self.echo(far)) + over_echo_db - level_dbfs(user)
        start = round(at_s * MIC_RATE_HZ)
        heard = user[: max(0, len(mic) - start)]
        mic[start : start + len(heard)] += heard * np.float32(10 ** (gain_db / 20))
        return mic

    def echo(self, far: FloatArray) -> FloatArray:
        """What of `far` [T] at 24 kHz comes back, without noise, [T * 2 / 3]."""
        resampler = Resampler(SPEECH_RATE_HZ, MIC_RATE_HZ)
        sent = np.concatenate((resampler.push(far), resampler.finish()))[resampler.delay_samples :]
        echo = self._through_room(sent)
        for change in self.changes:
            seed = self.seed if change.seed is None else change.seed
            later = replace(self, delay_ms=change.delay_ms, seed=seed)._through_room(sent)
            echo = _crossed(echo, later, round(change.at_s * MIC_RATE_HZ))
        return echo.astype(np.float32)

    def _through_room(self, sent: FloatArray) -> FloatArray:
        loud = np.tanh(self.drive * sent) / self.drive
        room = self._room()
        size = len(loud) + len(room)
        echo = np.fft.irfft(np.fft.rfft(loud, size) * np.fft.rfft(room, size), size)
        padded = np.pad(echo, (self.delay_ms * MIC_RATE_HZ // 1000, 0))[: len(sent)]
        late: FloatArray = padded.astype(np.float32)
        if self.drift_ppm:
            late = stretched(late, self.drift_ppm)
        power = max(float(np.mean(late.astype(np.float64) ** 2)), 1e-20)
        gain = np.sqrt(float(np.mean(sent.astype(np.float64) ** 2)) / power)
        return late * np.float32(gain * 10 ** (-self.erl_db / 20))

    def _room(self) -> FloatArray:
        """A direct sound and, as strong, a tail of noise that falls by 60 dB in `rt60_s`."""
        time_s = np.arange(int(self.rt60_s * MIC_RATE_HZ)) / MIC_RATE_HZ
        tail = np.random.default_rng(self.seed).standard_normal(len(time_s))
        tail *= 0.05 * 10 ** (-3 * time_s / self.rt60_s)
        tail[0] = 1.0
        return tail.astype(np.float32)

    def _noise(self, samples: int) -> FloatArray:
        noise = np.random.default_rng(self.seed + 1).standard_normal(samples)
        return (noise * 10 ** (self.noise_dbfs / 20)).astype(np.float32)


def stretched(sound: FloatArray, ppm: float) -> FloatArray:
    """`sound` [T] as a clock counts it that is `ppm` millionths faster, [T], its rest cut off.

    By windowed sinc; exact to −70 dB up to 0.4 of the rate.
    """
    phases = np.arange(_PHASES)[:, None] / _PHASES
    offset = np.arange(_TAPS)[None, :] - (_TAPS // 2 - 1) - phases
    weights = np.sinc(offset) * np.cos(np.pi * offset / (_TAPS + 2)) ** 2
    padded = np.pad(sound, (_TAPS, 2 * _TAPS + int(len(sound) * abs(ppm) * 1e-6)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, _TAPS)
    result = np.empty(len(sound))
    for first in range(0, len(sound), MIC_RATE_HZ):
        position = np.arange(first, min(first + MIC_RATE_HZ, len(sound))) / (1 + ppm * 1e-6)
        cell = np.rint(position * _PHASES).astype(np.int64)
        rows = windows[cell // _PHASES + _TAPS // 2 + 1]
        result[first : first + len(rows)] = np.einsum("ij,ij->i", rows, weights[cell % _PHASES])
    return result.astype(np.float32)


def _crossed(before: FloatArray, after: FloatArray, at: int) -> FloatArray:
    """`before` until sample `at`, then within 10 ms `after`."""
    rising = np.clip((np.arange(len(before)) - at) / _CHANGE_SAMPLES, 0.0, 1.0)
    return (before * (1.0 - rising) + after * rising).astype(np.float32)


def far_frames(far: np.ndarray) -> Iterator[AudioFrame]:
    for start in range(0, len(far) - 479, 480):
        yield AudioFrame(far[start : start + 480], 24_000, start)


def cancel_all(canceller: Aec3, far: np.ndarray, mic: np.ndarray) -> np.ndarray:
    """20 ms of each in turn."""
    cleaned = []
    for index, frame in enumerate(far_frames(far)):
        canceller.push_far(frame)
        for start in (index * 320, index * 320 + 160):
            cleaned.append(canceller.cancel(mic[start : start + 160]))
    return np.concatenate(cleaned)
