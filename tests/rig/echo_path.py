"""A room: what the agent says comes back into the microphone, late, coloured and distorted."""

from dataclasses import dataclass

import numpy as np

from agent.media.audio import Resampler
from agent.types import MIC_RATE_HZ, SPEECH_RATE_HZ, FloatArray


@dataclass(frozen=True)
class EchoPath:
    """From the far end at 24 kHz to the microphone at 16 kHz.

    `delay_ms` covers network, both jitter buffers and the air; `erl_db` is how much weaker the
    echo is than what was sent; `drive` is how hard the loudspeaker is pushed (1: some percent of
    distortion on the peaks of speech at −23 dBFS).
    """

    delay_ms: int = 120
    rt60_s: float = 0.3
    erl_db: float = 6.0
    drive: float = 1.0
    noise_dbfs: float = -75.0
    seed: int = 1

    def record(self, far: FloatArray) -> FloatArray:
        """The microphone while `far` [T] at 24 kHz is sent, [T * 2 / 3], the two in step."""
        resampler = Resampler(SPEECH_RATE_HZ, MIC_RATE_HZ)
        sent = np.concatenate((resampler.push(far), resampler.finish()))[resampler.delay_samples :]
        loud = np.tanh(self.drive * sent) / self.drive
        room = self._room()
        size = len(loud) + len(room)
        echo = np.fft.irfft(np.fft.rfft(loud, size) * np.fft.rfft(room, size), size)
        late = np.concatenate((np.zeros(self.delay_ms * MIC_RATE_HZ // 1000), echo))[: len(sent)]
        late *= np.sqrt(np.mean(sent**2) / np.mean(late**2)) * 10 ** (-self.erl_db / 20)
        return (late + self._noise(len(late))).astype(np.float32)

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
