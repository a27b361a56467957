"""Voices for tests: espeak-ng, as samples."""

import io
import subprocess
import wave
from functools import lru_cache

import numpy as np

from agent.types import FloatArray
from tests.rig.programs import require_program

AGENT_TEXT = (
    "Good morning, and thank you for calling. I have looked at your question about the train to "
    "Hamburg. The next one leaves at half past nine from platform seven, and you will arrive "
    "shortly after noon. There is a dining car, and the seats by the window are still free. "
    "Would you like me to tell you about the way back as well? On Sunday evening there are two "
    "good connections, one of them without any change of trains. "
)
USER_TEXT = "Wait a moment please, I wanted to ask about something else entirely."


def say(text: str, rate_hz: int, voice: str = "en-us", level_dbfs: float = -23.0) -> FloatArray:
    """Spoken `text` [T] at `rate_hz`, its effective level set; silence around it cut off."""
    spoken = _trimmed(_change_rate(*_espeak(text, voice), rate_hz))
    level = np.sqrt(np.mean(spoken**2))
    leveled: FloatArray = (spoken * (10 ** (level_dbfs / 20) / level)).astype(np.float32)
    return leveled


def talk(
    seconds: float, rate_hz: int, voice: str = "en-us", level_dbfs: float = -23.0
) -> FloatArray:
    """So many seconds of the agent's text, over and over."""
    return np.resize(say(AGENT_TEXT, rate_hz, voice, level_dbfs), int(seconds * rate_hz))


@lru_cache(maxsize=16)
def _espeak(text: str, voice: str) -> tuple[FloatArray, int]:
    program = require_program("espeak-ng", "espeak-ng")
    command = [program, "-v", voice, "--stdout", text]
    result = subprocess.run(command, check=True, capture_output=True)
    with wave.open(io.BytesIO(result.stdout)) as spoken:
        # The length in the header of a stream is a dummy: read what is there.
        pcm = np.frombuffer(spoken.readframes(1 << 30), "<i2").astype(np.float32)
        return pcm / np.float32(32768), spoken.getframerate()


def _change_rate(samples: FloatArray, from_hz: int, to_hz: int) -> FloatArray:
    spectrum = np.fft.rfft(samples)
    length = round(len(samples) * to_hz / from_hz)
    # Cutting or padding the spectrum is an exact change of rate, good enough off line.
    return np.fft.irfft(spectrum, length).astype(np.float32) * np.float32(to_hz / from_hz)


def _trimmed(samples: FloatArray) -> FloatArray:
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
    return samples[loud[0] : loud[-1] + 1]
