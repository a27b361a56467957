"""Sound compared: how alike two recordings are, how long one is loud, WAV files."""

import wave
from pathlib import Path

import numpy as np

from agent.types import FloatArray


def alike(heard: FloatArray, said: FloatArray) -> float:
    """The highest normalised correlation of `said` with any stretch of `heard`, 0..1."""
    heard = np.pad(heard, len(said))
    size = 1 << int(np.ceil(np.log2(len(heard) + len(said))))
    spectrum = np.fft.rfft(heard, size) * np.conj(np.fft.rfft(said, size))
    products = np.fft.irfft(spectrum, size)[: len(heard) - len(said) + 1]
    energy = np.concatenate(([0.0], np.cumsum(heard.astype(np.float64) ** 2)))
    local = energy[len(said) :] - energy[: len(energy) - len(said)]
    # The floor keeps stretches of near silence from looking like anything.
    whole = float(np.sum(said.astype(np.float64) ** 2))
    return float(np.max(products / np.sqrt(np.maximum(local, whole * 1e-2) * whole)))


def alike_in_pieces(heard: FloatArray, said: FloatArray, rate_hz: int) -> float:
    """The median of `alike` over half-second pieces of `said`.

    For sound that went through a browser: its jitter buffer stretches and squeezes time, so that
    the pieces of a sentence arrive well but not exactly where they were.
    """
    step = rate_hz // 2
    pieces = [said[at : at + step] for at in range(0, len(said) - step + 1, step)]
    return float(np.median([alike(heard, piece) for piece in pieces]))


def loud_s(sound: FloatArray, rate_hz: int) -> float:
    """Seconds of sound above −45 dBFS, counted in 10 ms frames."""
    step = rate_hz // 100
    frames = sound[: len(sound) // step * step].reshape(-1, step)
    return float(np.sum(np.sqrt(np.mean(frames**2, axis=1)) > 10 ** (-45 / 20))) / 100


def write_wav(path: Path, sound: FloatArray, rate_hz: int) -> None:
    """Mono, 16 bit."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())
