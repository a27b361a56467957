"""What the `echo` engine keeps: units and utterances that it heard, and the turn it hands out."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agent.types import MIC_RATE_HZ, SPEECH_RATE_HZ, FloatArray, TurnEndReason, VideoFrame

CHUNK_SAMPLES = SPEECH_RATE_HZ // 5
_LEAD_S = 0.4
"""Speech is handed on this far ahead of real time, as by an engine that generates as it speaks;
enough for an uneven event loop, little enough that an interruption finds the turn unfinished."""


@dataclass(slots=True)
class Speech:
    """A turn that is being handed out: its sound, and its words each where they begin in it."""

    turn: int
    samples: FloatArray
    since_s: float
    words: deque[tuple[int, str]]
    reason: TurnEndReason = "completed"
    """Why it ends where it does, unless it is stopped."""
    position: int = 0
    said: int = 0
    """Words that were handed out."""

    def next_words(self) -> str:
        """Those that begin by now; "" where none do."""
        text = ""
        while self.words and self.words[0][0] <= self.position:
            text += self.words.popleft()[1]
        self.said += len(text.split())
        return text

    def next_sound(self) -> FloatArray:
        """What comes next, up to the next words; [T] at 24 kHz."""
        end = self.position + CHUNK_SAMPLES
        if self.words:
            end = min(end, self.words[0][0])
        return self.samples[self.position : end]

    def due_samples(self, now_s: float) -> int:
        return int((now_s - self.since_s + _LEAD_S) * SPEECH_RATE_HZ)

    def next_due_s(self) -> float:
        return self.since_s + (self.position + CHUNK_SAMPLES) / SPEECH_RATE_HZ - _LEAD_S


@dataclass(frozen=True, slots=True)
class Utterance:
    """What the user said: samples on the microphone's clock, and its sound once it is all there."""

    start: int
    end: int
    answer: bool
    sound: FloatArray | None = None  # [T] at 16 kHz
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Heard:
    """A unit as it is remembered: its pictures as measures, the pictures themselves are let go."""

    index: int
    start: int
    audio: FloatArray  # [T] at 16 kHz: what the microphone heard from its sample `start` on
    pictures: tuple["Glimpse", ...]

    @property
    def end(self) -> int:
        return self.start + len(self.audio)


@dataclass(frozen=True, slots=True)
class Glimpse:
    """What there is to say about a picture."""

    width: int
    height: int
    brightness: float

    @classmethod
    def of(cls, picture: VideoFrame) -> "Glimpse":
        height, width = picture.rgb.shape[:2]
        return cls(width, height, float(picture.rgb[::4, ::4].mean()) / 255)


# ---- utterances ---------------------------------------------------------------------------------


def recalled(
    units: Sequence[Heard], utterance: Utterance, tail_samples: int, most_samples: int
) -> FloatArray:
    """The sound of `utterance` and its tail, the last of it at most, as far as it is still kept."""
    end = utterance.end + tail_samples
    start = max(utterance.start, end - most_samples)
    pieces = [
        unit.audio[max(0, start - at) : max(0, end - at)] for unit in units for at in (unit.start,)
    ]
    return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)


def caption_of(
    units: Sequence[Heard], utterance: Utterance, tail_samples: int, most_samples: int
) -> str:
    """What there is to say about `utterance`."""
    seconds = (utterance.end - utterance.start) / MIC_RATE_HZ
    caption = f"You spoke for {seconds:.1f} s."
    if utterance.end + tail_samples - utterance.start > most_samples:
        caption += f" Here are the last {most_samples // MIC_RATE_HZ}."
    return caption + _camera_caption(units, utterance.start, utterance.end)


def _camera_caption(units: Sequence[Heard], start: int, end: int) -> str:
    """What was seen meanwhile."""
    meanwhile = [unit for unit in units if unit.end > start and unit.start <= end]
    seen = [glimpse for unit in meanwhile for glimpse in unit.pictures]
    if not seen:
        return ""
    rate_hz = len(seen) / len(meanwhile)
    return (
        f" I saw {seen[-1].width}×{seen[-1].height} pixels,"
        f" brightness {seen[-1].brightness:.0%}, {rate_hz:.1f} pictures a second."
    )
