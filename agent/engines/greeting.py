"""The recording with which the echo engine opens a call."""

import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.errors import ConfigError
from agent.media.audio import from_pcm16
from agent.types import SPEECH_RATE_HZ, FloatArray


@dataclass(frozen=True, slots=True)
class Greeting:
    """What the engine says first, and its words."""

    samples: FloatArray  # [T] at 24 kHz
    text: str


def load_greeting(path: Path) -> Greeting:
    """Read the greeting: WAV, 24 kHz, mono, 16 bit. `ConfigError` when it is anything else."""
    try:
        with wave.open(str(path), "rb") as file:
            layout = (file.getframerate(), file.getnchannels(), file.getsampwidth())
            data = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise ConfigError(f"cannot read the greeting {path}: {error}") from error
    if layout != (SPEECH_RATE_HZ, 1, 2):
        raise ConfigError(f"the greeting {path} must be 24 kHz, mono, 16 bit")
    text = "Hello! I am the echo engine. Say something, and I will say it back to you."
    return Greeting(from_pcm16(np.frombuffer(data, dtype="<i2")), text)
