"""What flows through a WebRTC connection, turned into ours and back; knows PyAV, not aiortc."""

from collections.abc import Callable
from fractions import Fraction

import av
import numpy as np

from agent.clock import Clock
from agent.media.audio import Resampler, to_pcm16
from agent.types import (
    MIC_FRAME_SAMPLES,
    MIC_RATE_HZ,
    SPEECH_FRAME_SAMPLES,
    SPEECH_RATE_HZ,
    AudioFrame,
    FloatArray,
    VideoFrame,
)

WIRE_RATE_HZ = 48_000
FRAME_S = 0.02
WIRE_FRAME_SAMPLES = WIRE_RATE_HZ // 50
_MAX_BEHIND_S = 0.2
_MAX_GAP_S = 1.0
_SILENCE = np.zeros(SPEECH_FRAME_SAMPLES, np.float32)
_TIME_BASE = Fraction(1, WIRE_RATE_HZ)


class SendGrid:
    """When the n-th packet is due: on an absolute grid, so that lateness never adds up.

    A sender that is more than 200 ms behind jumps forward: a burst would only inflate the
    listener's jitter buffer, for the rest of the call.
    """

    def __init__(self, clock: Clock, late: Callable[[], None]) -> None:
        self._clock = clock
        self._late = late
        self._start_s: float | None = None
        self._slot = -1

    async def next_slot(self) -> int:
        """Wait for the next slot and return its number; slots slept through are skipped."""
        now_s = self._clock.now_s()
        if self._start_s is None:
            self._start_s = now_s
        self._slot += 1
        behind_s = now_s - self._due_s()
        if behind_s > _MAX_BEHIND_S:
            self._slot += int(behind_s / FRAME_S)
        await self._clock.sleep_until(self._due_s())
        if self._clock.now_s() - self._due_s() > FRAME_S:
            self._late()
        return self._slot

    def _due_s(self) -> float:
        return (self._start_s or 0.0) + self._slot * FRAME_S


class SpeechEncoder:
    """24 kHz speech as 48 kHz frames; pts follow the slots, so they never lag behind real time."""

    def __init__(self) -> None:
        self._resampler = Resampler(SPEECH_RATE_HZ, WIRE_RATE_HZ)

    def frame(self, samples: FloatArray | None, slot: int) -> av.AudioFrame:
        """20 ms, [480] at 24 kHz, None for silence."""
        sound = self._resampler.push(_SILENCE if samples is None else samples)
        frame = av.AudioFrame.from_ndarray(to_pcm16(sound)[None, :], format="s16", layout="mono")
        frame.sample_rate = WIRE_RATE_HZ
        frame.time_base = _TIME_BASE
        frame.pts = slot * WIRE_FRAME_SAMPLES
        return frame


class MicrophoneTimeLine:
    """Decoded frames of any rate and layout as 10 ms frames at 16 kHz without holes.

    The time line is that of the peer: what its packets skip becomes silence, up to a second at
    a time; a longer absence is not made up for.
    """

    def __init__(self) -> None:
        self._rate_hz = 0
        self._resampler: Resampler | None = None
        self._next_pts: int | None = None
        self._waiting = np.zeros(0, np.float32)
        self._start = 0

    def push(self, frame: av.AudioFrame) -> list[AudioFrame]:
        """Take one decoded frame; give the 10 ms frames that are complete."""
        if frame.sample_rate != self._rate_hz:
            self._retune(frame.sample_rate)
        sound = np.concatenate((self._gap_before(frame), _mono(frame)))
        sound = self._resampler.push(sound) if self._resampler else sound
        return self._cut(np.concatenate((self._waiting, sound)))

    def _retune(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._resampler = None if rate_hz == MIC_RATE_HZ else Resampler(rate_hz, MIC_RATE_HZ)
        self._next_pts = None

    def _gap_before(self, frame: av.AudioFrame) -> FloatArray:
        if frame.pts is None:
            return np.zeros(0, np.float32)
        # aiortc counts Opus in 48 kHz ticks and every other codec in its own rate.
        missing = 0 if self._next_pts is None else frame.pts - self._next_pts
        self._next_pts = frame.pts + frame.samples
        return np.zeros(min(max(missing, 0), int(_MAX_GAP_S * self._rate_hz)), np.float32)

    def _cut(self, sound: FloatArray) -> list[AudioFrame]:
        whole = len(sound) // MIC_FRAME_SAMPLES
        frames = [
            AudioFrame(piece, MIC_RATE_HZ, self._start + index * MIC_FRAME_SAMPLES)
            for index, piece in enumerate(
                sound[: whole * MIC_FRAME_SAMPLES].reshape(whole, MIC_FRAME_SAMPLES)
            )
        ]
        self._start += whole * MIC_FRAME_SAMPLES
        self._waiting = sound[whole * MIC_FRAME_SAMPLES :]
        return frames


def _mono(frame: av.AudioFrame) -> FloatArray:
    """[T], −1..1."""
    samples = frame.to_ndarray()
    if samples.dtype == np.int16:
        samples = samples.astype(np.float32) / 32768
    channels = len(frame.layout.channels)
    if not frame.format.is_planar:
        samples = samples.reshape(-1, channels).T
    return np.asarray(samples.mean(axis=0), dtype=np.float32)


class NewestPicture:
    """Keeps the newest camera frame; it becomes RGB only when somebody asks for it."""

    def __init__(self) -> None:
        self._frame: av.VideoFrame | None = None

    def put(self, frame: av.VideoFrame) -> None:
        """Replace whatever was not taken yet."""
        self._frame = frame

    def take(self, captured_at: int) -> VideoFrame | None:
        """The newest picture, once; None when it was taken already or none came."""
        frame, self._frame = self._frame, None
        if frame is None:
            return None
        return VideoFrame(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8), captured_at)
