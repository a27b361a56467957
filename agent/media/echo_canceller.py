"""Takes the agent's own voice out of the microphone: WebRTC's AEC3, and its alignment in time."""

import importlib
from typing import Any, Protocol, runtime_checkable

import numpy as np

from agent.errors import ConfigError
from agent.interfaces import EchoCanceller
from agent.media.audio import power_dbfs
from agent.media.echo_align import EchoAlignment
from agent.types import MIC_FRAME_SAMPLES, MIC_RATE_HZ, SPEECH_RATE_HZ, AudioFrame, FloatArray


@runtime_checkable
class MeasuringCanceller(EchoCanceller, Protocol):
    """An echo canceller that knows how well it does."""

    @property
    def erle_db(self) -> float:
        """How much weaker the microphone became while the agent spoke; 0 until it has."""

    @property
    def delay_ms(self) -> float:
        """How long after it was sent the agent's voice comes back; 0 while unknown."""


class PassThrough:
    """No cancelling: for peers that do it themselves, and for transports without a far end."""

    delay_samples = 0
    erle_db = 0.0
    delay_ms = 0.0

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
        self._alignment = EchoAlignment()
        self._gauge = _ErleGauge()

    @property
    def erle_db(self) -> float:
        """Smoothed over the last second or so in which the far end was heard; 0 before."""
        return self._gauge.erle_db

    @property
    def delay_ms(self) -> float:
        """Found while the agent speaks, followed from then on; 0 before, and without any echo."""
        return self._alignment.delay_ms

    @property
    def drift_ppm(self) -> float:
        """How much faster the microphone's clock runs than the echo's, as far as corrected."""
        return self._alignment.drift_ppm

    @property
    def pre_delay_ms(self) -> float:
        """How long the reference waits, so that AEC3 finds a late echo."""
        return self._alignment.pre_delay_ms

    def push_far(self, frame: AudioFrame) -> None:
        """What was just sent: 24 kHz, normally 20 ms. Raises `ValueError` for another rate."""
        if frame.rate_hz != SPEECH_RATE_HZ:
            raise ValueError(f"the far end comes at {SPEECH_RATE_HZ} Hz, not {frame.rate_hz}")
        self._alignment.push_far(frame.samples)

    def cancel(self, near: FloatArray) -> FloatArray:
        """10 ms of microphone at 16 kHz [160] in, the same without the agent's voice out."""
        far = self._alignment.take(near)
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


class _ErleGauge:
    """Compares the microphone before and after, while an echo can be expected."""

    _far_active_dbfs = -50.0
    # The echo comes up to 420 ms after its reference.
    _hold_frames = 42
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
