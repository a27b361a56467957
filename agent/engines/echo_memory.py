"""What the `echo` engine keeps: units and utterances that it heard, and the turn it hands out."""

from dataclasses import dataclass

from agent.types import SPEECH_RATE_HZ, FloatArray, VideoFrame

CHUNK_SAMPLES = SPEECH_RATE_HZ // 5
_LEAD_S = 0.4
"""Speech is handed on this far ahead of real time, as by an engine that generates as it speaks;
enough for an uneven event loop, little enough that an interruption finds the turn unfinished."""


@dataclass(slots=True)
class Speech:
    """A turn that is being handed out."""

    turn: int
    samples: FloatArray
    since_s: float
    position: int = 0

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
