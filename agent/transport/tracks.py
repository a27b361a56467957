"""When the agent's voice is sent, and in which form; knows PyAV, not aiortc."""

from collections.abc import Callable
from fractions import Fraction

import av
import numpy as np

from agent.clock import Clock
from agent.media.audio import Resampler, to_pcm16
from agent.types import SPEECH_FRAME_SAMPLES, SPEECH_RATE_HZ, FloatArray

WIRE_RATE_HZ = 48_000
FRAME_S = 0.02
WIRE_FRAME_SAMPLES = WIRE_RATE_HZ // 50
SILENCE = np.zeros(SPEECH_FRAME_SAMPLES, np.float32)
_MAX_BEHIND_S = 0.2
_TIME_BASE = Fraction(1, WIRE_RATE_HZ)
_TIMESTAMPS = 1 << 32


class SendGrid:
    """When the n-th packet is due: on an absolute grid, so that lateness never adds up.

    A sender that is more than 200 ms behind moves the grid: a burst would only inflate the
    listener's jitter buffer, for the rest of the call. Slots are counted without a gap all the
    same, since a gap in the timestamps is heard as one.
    """

    def __init__(self, clock: Clock, late: Callable[[], None]) -> None:
        self._clock = clock
        self._late = late
        self._start_s: float | None = None
        self._slot = -1

    async def next_slot(self) -> int:
        """Wait for the next slot and return its number: 0, 1, 2, …"""
        now_s = self._clock.now_s()
        if self._start_s is None:
            self._start_s = now_s
        self._slot += 1
        behind_s = now_s - self._due_s(self._start_s)
        if behind_s > _MAX_BEHIND_S:
            self._start_s += behind_s
            self._late()
        await self._clock.sleep_until(self._due_s(self._start_s))
        if self._clock.now_s() - self._due_s(self._start_s) > FRAME_S:
            self._late()
        return self._slot

    def _due_s(self, start_s: float) -> float:
        return start_s + self._slot * FRAME_S


class Frames:
    """48 kHz frames, which aiortc encodes: for peers without Opus."""

    def __init__(self) -> None:
        self._resampler = Resampler(SPEECH_RATE_HZ, WIRE_RATE_HZ)

    def form(self, samples: FloatArray, slot: int) -> av.AudioFrame:
        """One frame, 16 bit, mono."""
        sound = self._resampler.push(samples)
        frame = av.AudioFrame.from_ndarray(to_pcm16(sound)[None, :], format="s16", layout="mono")
        frame.sample_rate = WIRE_RATE_HZ
        frame.time_base = _TIME_BASE
        frame.pts = slot * WIRE_FRAME_SAMPLES
        return frame


class SentPositions:
    """Which sample of the speech an RTP timestamp stands for, counted since speech was played."""

    def __init__(self, clock_rate_hz: int = WIRE_RATE_HZ) -> None:
        """`clock_rate_hz`: how many ticks of the timestamp a second has."""
        self._clock_rate_hz = clock_rate_hz
        self._known: tuple[int, int] | None = None

    def note(self, rtp_timestamp: int, position: int) -> None:
        """The packet that begins with sample `position` (24 kHz) went out under that timestamp."""
        self._known = (rtp_timestamp, position)

    def position(self, rtp_timestamp: int) -> int | None:
        """The sample; None before anything was sent.

        Timestamps wrap after a day; what is meant is the nearest to what was sent last.
        """
        if self._known is None:
            return None
        known_timestamp, known_position = self._known
        ticks = (rtp_timestamp - known_timestamp + _TIMESTAMPS // 2) % _TIMESTAMPS
        ahead = ticks - _TIMESTAMPS // 2
        return known_position + ahead * SPEECH_RATE_HZ // self._clock_rate_hz
