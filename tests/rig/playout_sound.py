"""Sound as the tests of the playout push it, and what they pull."""

import numpy as np

from agent.media.playout import Playout
from agent.types import SpeechAudio


def speech(turn: int, samples: np.ndarray, *, last: bool = False) -> SpeechAudio:
    return SpeechAudio(turn, 0, 0, samples.astype(np.float32), last)


def steady(turn: int, milliseconds: int, level: float = 0.5, *, last: bool = False) -> SpeechAudio:
    return speech(turn, np.full(milliseconds * 24, level), last=last)


def pull(playout: Playout, frames: int) -> np.ndarray:
    return np.concatenate([playout.pull() for _ in range(frames)])


def held(turn: int, milliseconds: int, hold_ms: int, *, last: bool = False) -> SpeechAudio:
    sound = np.full(milliseconds * 24, 0.5, np.float32)
    return SpeechAudio(turn, 0, 0, sound, last, hold_ms)
