"""Voices on the disk, as `agent.voices` leaves them there."""

import json
import wave
from pathlib import Path

import numpy as np

from agent.types import SPEECH_RATE_HZ
from agent.vocoder.voice_store import FACTS, RECORDING, digest_of


def store_voice(
    folder: Path,
    voice_id: str,
    *,
    seconds: float = 3.0,
    pitch_hz: float = 140.0,
    language: str = "en",
) -> Path:
    """A voice of that id in `folder`, humming at that pitch."""
    home = folder / voice_id
    home.mkdir(mode=0o700, parents=True)
    write_hum(home / RECORDING, seconds=seconds, pitch_hz=pitch_hz)
    digest = digest_of((home / RECORDING).read_bytes())
    facts = {"name": voice_id.title(), "digest": digest, "language": language}
    (home / FACTS).write_text(json.dumps(facts))
    return home


def write_hum(path: Path, *, seconds: float, pitch_hz: float) -> None:
    """Harmonics and a little noise, 24 kHz mono 16 bit."""
    time_s = np.arange(int(seconds * SPEECH_RATE_HZ)) / SPEECH_RATE_HZ
    tones = sum(np.sin(2 * np.pi * pitch_hz * k * time_s) / k for k in range(1, 12))
    noise = np.random.default_rng(int(pitch_hz)).normal(0, 0.01, len(time_s))
    pcm = (np.clip(0.15 * tones + noise, -1, 1) * 32767).astype(np.int16)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SPEECH_RATE_HZ)
        file.writeframes(pcm.tobytes())
