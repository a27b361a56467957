"""Takes the agent's own voice out of the microphone: WebRTC's AEC3, and its alignment in time."""

import importlib
from collections import deque
from typing import Any, Protocol, runtime_checkable

import numpy as np

from agent.errors import ConfigError
from agent.interfaces import EchoCanceller
from agent.media.audio import Resampler, power_dbfs
from agent.types import MIC_FRAME_SAMPLES, MIC_RATE_HZ, SPEECH_RATE_HZ, AudioFrame, FloatArray

FAR_RING_SAMPLES = 2 * MIC_RATE_HZ
"""What may wait for the microphone at most; beyond that the oldest is dropped."""

_INBOX_FRAMES = 128
_SAMPLES_PER_MS = MIC_RATE_HZ // 1000


@runtime_checkable
class MeasuringCanceller(EchoCanceller, Protocol):
    """An echo canceller that knows how well it does."""

    @property
    def erle_db(self) -> float:
        """How much weaker the microphone became while the agent spoke; 0 until it has."""


class PassThrough:
    """No cancelling: for peers that do it themselves, and for transports without a far end."""

    delay_samples = 0
    erle_db = 0.0

    def push_far(self, frame: AudioFrame) -> None:
        """Ignored."""

    def cancel(self, near: FloatArray) -> FloatArray:
        """`near` as it is."""
        return near


class Aec3:
    """AEC3 of WebRTC, noise suppression and gain control off: a `MeasuringCanceller`.

    The near end sets the pace: every `cancel` consumes 10 ms of the far end. `push_far` may be
    called from another thread than `cancel`, which itself belongs to one thread. Raises
    `ConfigError` where pywebrtc-audio is missing.
    """

    delay_samples = 128
    """8 ms, its filter bank; measured by correlating output with input."""

    def __init__(self) -> None:
        self._apm = _load_aec3()
        self._far = _FarRing()
        self._gauge = _ErleGauge()

    @property
    def erle_db(self) -> float:
        """Smoothed over the last second or so in which the far end was heard; 0 before."""
        return self._gauge.erle_db

    def push_far(self, frame: AudioFrame) -> None:
        """What was just sent: 24 kHz, normally 20 ms. Raises `ValueError` for another rate."""
        if frame.rate_hz != SPEECH_RATE_HZ:
            raise ValueError(f"the far end comes at {SPEECH_RATE_HZ} Hz, not {frame.rate_hz}")
        self._far.push(frame.samples)

    def cancel(self, near: FloatArray) -> FloatArray:
        """10 ms of microphone at 16 kHz [160] in, the same without the agent's voice out."""
        far = self._far.take()
        # Skipped far frames meet silence: their echo may still be on its way.
        padded = np.zeros(len(far), np.float32)
        padded[-MIC_FRAME_SAMPLES:] = near
        cleaned: FloatArray = self._apm.process(padded, far)[-MIC_FRAME_SAMPLES:]
        self._gauge.push(near, cleaned, far[-MIC_FRAME_SAMPLES:])
        return cleaned


def _load_aec3() -> Any:
    try:
        module = importlib.import_module("pywebrtc_audio")
    except ImportError as error:
        raise ConfigError(
            "echo cancellation needs the package pywebrtc-audio: install it, or switch echo "
            "cancellation off where every client cancels its own echo"
        ) from error
    return module.EchoCanceller(sample_rate=MIC_RATE_HZ)


class _FarRing:
    """The far end at 16 kHz, kept in step with the near end.

    AEC3 finds echoes up to some 400 ms after their far end, but none before it. So the far end
    may be early, never late, and lateness is what waits here: the backlog. Sound that was missing
    when the microphone asked (silence is fed instead) makes it grow, and so does a microphone
    that stalls and skips what it missed. What is real backlog, and what only waits for the next
    burst of near frames, shows in the smallest backlog over a while, looked at just before each
    push and only when the microphone moved since the last one: after a mere delay, near frames
    come in a burst and take it down to nothing.
    """

    # (backlog above which to act, pushes in a row that must show it). The further the far end has
    # fallen behind its echo, the sooner: a voice detector opens after 96 ms of uncancelled echo.
    _limits = ((150 * _SAMPLES_PER_MS, 2), (60 * _SAMPLES_PER_MS, 4), (30 * _SAMPLES_PER_MS, 50))
    _kept = MIC_FRAME_SAMPLES

    def __init__(self) -> None:
        self._inbox: deque[FloatArray] = deque(maxlen=_INBOX_FRAMES)
        self._resampler = Resampler(SPEECH_RATE_HZ, MIC_RATE_HZ)
        self._ring = np.zeros(FAR_RING_SAMPLES, np.float32)
        self._first = 0
        self._backlog = 0
        self._lowest: deque[int] = deque(maxlen=max(pushes for _, pushes in self._limits))
        self._near_moved = False

    def push(self, samples: FloatArray) -> None:
        """Sound [T] at 24 kHz; only noted here, so that any thread may call."""
        self._inbox.append(samples)

    def take(self) -> FloatArray:
        """The next 10 ms [160], silence where there is none; before it, what is to be skipped.

        That makes [160 * k] in all.
        """
        skipped = 0
        while self._inbox:
            skipped = max(skipped, self._note_backlog())
            self._store(self._resampler.push(self._inbox.popleft()))
        self._near_moved = True
        wanted = skipped + MIC_FRAME_SAMPLES
        count = min(self._backlog, wanted)
        far = np.zeros(wanted, np.float32)
        far[:count] = self._ring.take(self._first + np.arange(count), mode="wrap")
        self._drop(count)
        return far

    def _note_backlog(self) -> int:
        """How many samples to skip, whole frames, judging by the backlog before this push."""
        if not self._near_moved:
            return 0
        self._near_moved = False
        self._lowest.append(self._backlog)
        excess = self._excess()
        if excess:
            self._lowest.clear()
        return excess - excess % MIC_FRAME_SAMPLES

    def _excess(self) -> int:
        seen = list(self._lowest)
        for tolerated, pushes in self._limits:
            if len(seen) >= pushes and min(seen[-pushes:]) > tolerated:
                return min(seen[-pushes:]) - self._kept
        return 0

    def _store(self, samples: FloatArray) -> None:
        newest = samples[-FAR_RING_SAMPLES:]
        self._drop(max(0, self._backlog + len(newest) - FAR_RING_SAMPLES))
        end = self._first + self._backlog
        self._ring.put(end + np.arange(len(newest)), newest, mode="wrap")
        self._backlog += len(newest)

    def _drop(self, count: int) -> None:
        self._first = (self._first + count) % FAR_RING_SAMPLES
        self._backlog -= count


class _ErleGauge:
    """Compares the microphone before and after, while an echo can be expected."""

    _far_active_dbfs = -50.0
    # The echo of a far end comes up to some 300 ms later.
    _hold_frames = 30
    _smoothing = 0.01

    def __init__(self) -> None:
        self.erle_db = 0.0
        self._active_frames = 0
        self._near_power = 0.0
        self._residual_power = 0.0

    def push(self, near: FloatArray, cleaned: FloatArray, far: FloatArray) -> None:
        loud = power_dbfs(float(np.dot(far, far)) / len(far)) > self._far_active_dbfs
        self._active_frames = self._hold_frames if loud else self._active_frames - 1
        if self._active_frames <= 0:
            return
        self._near_power += self._smoothing * (float(np.dot(near, near)) - self._near_power)
        residual = float(np.dot(cleaned, cleaned))
        self._residual_power += self._smoothing * (residual - self._residual_power)
        reduction_db = power_dbfs(self._near_power) - power_dbfs(self._residual_power)
        # In a silent room the canceller's comfort noise is louder than what it replaces.
        self.erle_db = max(0.0, reduction_db)
