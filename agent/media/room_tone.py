"""Silence as this microphone hears it: the noise of the room, in the place of what is to come.

A second of speech followed by digital silence sounds like a line that went dead, which is not what
the engine hears when the user really falls silent. Noise with the spectrum and the level of what
was heard last does; it is not that sound again, so a breath or the end of an echo in it is not
repeated.
"""

from collections import deque

import numpy as np

from agent.types import MIC_FRAME_SAMPLES, FloatArray

_KEPT_FRAMES = 40
"""400 ms: longer than the silence after which a unit is tried."""
_QUIET_SHARE = 0.5
"""Of the frames of silence the quieter ones: the others may hold a breath or a click."""
_LEAST_POWER = 1e-10
"""−100 dBFS: a microphone that is muted, or has a gate."""


class RoomTone:
    """Listens to what units hear, and makes more of its quiet."""

    def __init__(self) -> None:
        self._frames: deque[FloatArray] = deque(maxlen=_KEPT_FRAMES)

    def push(self, frame: FloatArray) -> None:
        """The next 10 ms [160]."""
        self._frames.append(frame)

    def silence(self, heard_samples: int, samples: int, seed: int) -> FloatArray:
        """`samples` of noise like the quieter part of the last `heard_samples`, which were silent.

        The same for the same `seed`. Zeros where nothing was heard.
        """
        count = max(1, min(heard_samples // MIC_FRAME_SAMPLES, len(self._frames)))
        heard = np.array(list(self._frames)[-count:], np.float64).reshape(-1, MIC_FRAME_SAMPLES)
        powers = (heard**2).mean(axis=1)
        quiet = np.argsort(powers)[: max(1, int(len(heard) * _QUIET_SHARE))]
        if not len(heard) or powers[quiet].mean() < _LEAST_POWER:
            return np.zeros(samples, np.float32)
        noise = _shaped(heard[quiet], samples, seed)
        level = np.sqrt(powers[quiet].mean() / (noise**2).mean())
        return np.asarray(noise * level, np.float32)


def _shaped(frames: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Noise [samples] with the mean spectrum of `frames` [n, 160], at any level."""
    window = np.hanning(MIC_FRAME_SAMPLES)
    spectrum = np.sqrt((np.abs(np.fft.rfft(frames * window)) ** 2).mean(axis=0))
    bins = samples // 2 + 1
    gains = np.interp(np.linspace(0, 1, bins), np.linspace(0, 1, len(spectrum)), spectrum)
    turns = np.random.default_rng(seed).uniform(0, 1, bins)
    return np.fft.irfft(gains * np.exp(2j * np.pi * turns), samples)
