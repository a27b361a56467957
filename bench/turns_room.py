"""The way from the loudspeaker back into the microphone, a block at a time: the loop is closed."""

from collections import deque
from dataclasses import dataclass

import numpy as np

from agent.media.audio import Resampler
from agent.types import MIC_RATE_HZ, SPEECH_RATE_HZ, FloatArray

BLOCK_SAMPLES = MIC_RATE_HZ // 50
"""20 ms, as they are rendered."""


@dataclass(frozen=True, slots=True)
class RoomTraits:
    """A room and a loudspeaker. `erl_db`: how much weaker the echo is than what was sent."""

    rt60_s: float
    erl_db: float
    drive: float
    noise_dbfs: float
    air_ms: float
    seed: int


class Room:
    """Streaming: what is rendered at 24 kHz in, what the microphone hears of it at 16 kHz out."""

    def __init__(self, traits: RoomTraits, sample: FloatArray) -> None:
        """`sample` of the agent's speech [T] at 24 kHz, by which the echo's level is set."""
        self._traits = traits
        self._resampler = Resampler(SPEECH_RATE_HZ, MIC_RATE_HZ)
        self._random = np.random.default_rng(traits.seed + 1)
        self._response = _response(traits)
        self._size = 1 << int(np.ceil(np.log2(BLOCK_SAMPLES + len(self._response))))
        self._spectrum = np.fft.rfft(self._response, self._size)
        self._tail = np.zeros(self._size, np.float32)
        self._gain = 1.0
        self._gain = self._measured_gain(sample)

    def hear(self, rendered: FloatArray) -> FloatArray:
        """20 ms rendered [480] in, the same 20 ms at the microphone [320] out, noise included."""
        heard = self._echo(self._resampler.push(rendered))
        noise = self._random.standard_normal(len(heard)) * 10 ** (self._traits.noise_dbfs / 20)
        return (heard + noise).astype(np.float32)

    def _echo(self, sent: FloatArray) -> FloatArray:
        loud = np.tanh(self._traits.drive * sent) / self._traits.drive
        spread = np.fft.irfft(np.fft.rfft(loud, self._size) * self._spectrum, self._size)
        self._tail += (spread * self._gain).astype(np.float32)
        heard = self._tail[: len(sent)].copy()
        self._tail = np.concatenate((self._tail[len(sent) :], np.zeros(len(sent), np.float32)))
        return heard

    def _measured_gain(self, sample: FloatArray) -> float:
        resampler = Resampler(SPEECH_RATE_HZ, MIC_RATE_HZ)
        sent = resampler.push(sample[: 10 * SPEECH_RATE_HZ])
        loud = np.tanh(self._traits.drive * sent) / self._traits.drive
        size = len(loud) + len(self._response)
        echo = np.fft.irfft(np.fft.rfft(loud, size) * np.fft.rfft(self._response, size), size)
        ratio = np.sqrt(np.mean(sent**2) / np.mean(echo[: len(sent)] ** 2))
        return float(ratio * 10 ** (-self._traits.erl_db / 20))


def _response(traits: RoomTraits) -> FloatArray:
    """The way through the air, a direct sound and a tail of noise that falls by 60 dB in RT60."""
    time_s = np.arange(int(traits.rt60_s * MIC_RATE_HZ)) / MIC_RATE_HZ
    tail = np.random.default_rng(traits.seed).standard_normal(len(time_s))
    tail *= 0.05 * 10 ** (-3 * time_s / traits.rt60_s)
    tail[0] = 1.0
    air = np.zeros(int(traits.air_ms * MIC_RATE_HZ / 1000))
    return np.concatenate((air, tail)).astype(np.float32)


class Delay:
    """A network: what goes in comes out so many steps later."""

    def __init__(self, steps: int, silence: FloatArray) -> None:
        self._line = deque([silence] * steps, maxlen=steps + 1)

    def pass_on(self, samples: FloatArray) -> FloatArray:
        """The newest in, the one due now out."""
        self._line.append(samples)
        return self._line.popleft()
