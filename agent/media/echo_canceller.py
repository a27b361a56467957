"""Takes the agent's own voice out of the microphone: WebRTC's AEC3, aligned with the echo."""

import importlib
from typing import Protocol, runtime_checkable

import numpy as np

from agent.errors import ConfigError
from agent.interfaces import EchoCanceller
from agent.media.audio import power_dbfs
from agent.media.echo_absence import EchoAbsence
from agent.media.echo_align import AlignmentPolicy, EchoFound
from agent.media.echo_delay import EchoDelay
from agent.media.echo_far import FAR_DELAY_SAMPLES, FarEnd, History
from agent.media.echo_lane import DELAY_SAMPLES, FALLING, AudioProcessing, Lane, Rival, delayed
from agent.media.echo_reference import Reference
from agent.types import MIC_FRAME_SAMPLES, MIC_RATE_HZ, SPEECH_RATE_HZ, AudioFrame, FloatArray

_SAMPLES_PER_MS = MIC_RATE_HZ // 1000
_TRACED_SLOTS = 4
"""40 ms either way: a delay that has just changed is not found at once."""
_NEAR_HISTORY_SAMPLES = 2 * MIC_RATE_HZ


@runtime_checkable
class MeasuringCanceller(EchoCanceller, Protocol):
    """An echo canceller that knows how well it does."""

    @property
    def erle_db(self) -> float:
        """How much weaker the microphone became while the agent spoke; 0 until it has."""

    @property
    def delay_ms(self) -> float:
        """How long after it was sent the agent's voice comes back; 0 while unknown."""


@runtime_checkable
class TracingCanceller(EchoCanceller, Protocol):
    """An echo canceller that knows what the microphone may hear an echo of."""

    @property
    def sent_power(self) -> float | None:
        """Of what the last 10 ms may be an echo of, the loudest 10 ms; None while unknown."""

    @property
    def no_echo(self) -> bool:
        """Whether it knows that the agent's voice does not come back."""


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

    The near end sets the pace: every `cancel` consumes 10 ms of the far end. While the agent
    speaks, the delay of its echo and the drift between the two clocks are measured. Where AEC3
    needs another reference for them, a second one learns it from the last two seconds of both
    ends, several times as fast as they were heard, and takes over when it does better. While the
    agent has nothing to say, AEC3 rests. Where its voice turns out not to come back, the
    microphone goes through as it is, 8 ms late, until an echo is found.

    `push_far` may be called from another thread than `cancel`, which itself belongs to one
    thread. Raises `ConfigError` where pywebrtc-audio is missing.
    """

    delay_samples = DELAY_SAMPLES

    def __init__(self) -> None:
        self._far = FarEnd()
        self._near = History(_NEAR_HISTORY_SAMPLES)
        self._lane = Lane(_load_aec3(), Reference(self._far))
        self._rival: Rival | None = None
        self._delay = EchoDelay()
        self._policy = AlignmentPolicy()
        self._gauge = _ErleGauge()
        self._absence = EchoAbsence()
        self._passes = False

    @property
    def erle_db(self) -> float:
        """Smoothed over the last second or so in which the far end was heard; 0 before."""
        return self._gauge.erle_db

    @property
    def delay_ms(self) -> float:
        """Found while the agent speaks, followed from then on; 0 before, and without any echo."""
        if self._delay.lag is None:
            return 0.0
        late = self._delay.lag - self._arrival_lag + FAR_DELAY_SAMPLES
        return max(0.0, late) / _SAMPLES_PER_MS

    @property
    def drift_ppm(self) -> float:
        """How much faster the microphone's clock runs than the echo's, as far as corrected."""
        return self._lane.reference.drift_ppm

    @property
    def sent_power(self) -> float | None:
        """Of what the last 10 ms may be an echo of, the loudest 10 ms; None before the delay of
        the echo was found."""
        if self._delay.lag is None:
            return None
        newest = self._near.end - round(self._delay.lag) + _TRACED_SLOTS * MIC_FRAME_SAMPLES
        count = (2 * _TRACED_SLOTS + 1) * MIC_FRAME_SAMPLES
        slots = self._far.read(newest - count, count).reshape(-1, MIC_FRAME_SAMPLES)
        return float(np.einsum("st,st->s", slots, slots).max()) / MIC_FRAME_SAMPLES

    @property
    def pre_delay_ms(self) -> float:
        """How long the reference is held back, so that AEC3 finds a late echo."""
        return (self._lane.reference.lag - self._arrival_lag) / _SAMPLES_PER_MS

    @property
    def no_echo(self) -> bool:
        """See `TracingCanceller`."""
        return self._absence.is_known

    def push_far(self, frame: AudioFrame) -> None:
        """What was just sent: 24 kHz, normally 20 ms. Raises `ValueError` for another rate."""
        if frame.rate_hz != SPEECH_RATE_HZ:
            raise ValueError(f"the far end comes at {SPEECH_RATE_HZ} Hz, not {frame.rate_hz}")
        self._far.push(frame.samples)

    def cancel(self, near: FloatArray) -> FloatArray:
        """10 ms of microphone at 16 kHz [160] in, the same without the agent's voice out."""
        padding = self._lane.reference.padding(self._far.advance())
        if padding:
            # Skipped far frames meet silence: their echo may still be on its way.
            near = np.concatenate((np.zeros(padding, np.float32), near))
            self._rival = None
        self._near.append(near)
        lane = self._lane
        cleaned = lane.process(near) if self._rival is not None else lane.doze(near, self._near)
        near = near[-MIC_FRAME_SAMPLES:]
        self._gauge.push(near, cleaned, self._lane.far)
        self._measure(near)
        self._look_for_absence(near)
        return self._pass(self._challenge(cleaned) if self._rival is not None else cleaned)

    @property
    def _arrival_lag(self) -> int:
        return self._near.end - self._far.anchor

    def _look_for_absence(self, near: FloatArray) -> None:
        sent = self._far.read(self._far.anchor - MIC_FRAME_SAMPLES, MIC_FRAME_SAMPLES)
        self._absence.push(
            float(np.dot(near, near)) / MIC_FRAME_SAMPLES,
            float(np.dot(sent, sent)) / MIC_FRAME_SAMPLES,
            found=self._delay.lag is not None,
        )

    def _pass(self, cleaned: FloatArray) -> FloatArray:
        """`cleaned`, or the microphone where there is no echo; crossed over within this frame."""
        before, self._passes = self._passes, self._absence.is_known
        if not (before or self._passes):
            return cleaned
        plain = delayed(self._near)
        if before == self._passes:
            return plain
        leaving, coming = (cleaned, plain) if self._passes else (plain, cleaned)
        return leaving * FALLING + coming * (1.0 - FALLING)

    def _measure(self, near: FloatArray) -> None:
        self._delay.push(near, self._near.end - len(near), self._arrival_lag)
        if not self._delay.work(self._far.read) or self._rival is not None:
            return
        found = self._found()
        move = self._policy.judge(found, self._lane.reference) if found else None
        if move is not None:
            self._rival = Rival(_load_aec3(), self._far, self._near, move)

    def _found(self) -> EchoFound | None:
        delay = self._delay
        if delay.lag is None:
            return None
        return EchoFound(self._near.end, delay.since, delay.lag, self._arrival_lag, delay.drift_ppm)

    def _challenge(self, cleaned: FloatArray) -> FloatArray:
        """Let the rival work; what is heard, crossed over within this frame if it takes over."""
        assert self._rival is not None
        theirs = self._rival.advance(self._near, self._lane.residual)
        if theirs is not None:
            self._lane = self._rival.lane
            self._lane.reference.settle()
            cleaned = cleaned * FALLING + theirs * (1.0 - FALLING)
        if theirs is not None or self._rival.beaten:
            self._rival = None
            found = self._found()
            if found is not None:
                self._policy.decided(found, self._lane.reference)
        return cleaned


def _load_aec3() -> AudioProcessing:
    try:
        module = importlib.import_module("pywebrtc_audio")
    except ImportError as error:
        raise ConfigError(
            "echo cancellation needs the package pywebrtc-audio: install it, or switch echo "
            "cancellation off where every client cancels its own echo"
        ) from error
    apm: AudioProcessing = module.EchoCanceller(sample_rate=MIC_RATE_HZ)
    return apm


class _ErleGauge:
    """Compares the microphone before and after, while an echo can be expected."""

    _far_active_power = 1e-5  # −50 dBFS
    # The echo comes up to 420 ms after its reference.
    _hold_frames = 42
    _smoothing = 0.01

    def __init__(self) -> None:
        self._active_frames = 0
        self._near_power = 0.0
        self._residual_power = 0.0

    @property
    def erle_db(self) -> float:
        """In a silent room the canceller's comfort noise is louder than what it replaces."""
        return max(0.0, power_dbfs(self._near_power) - power_dbfs(self._residual_power))

    def push(self, near: FloatArray, cleaned: FloatArray, far: FloatArray) -> None:
        loud = float(np.dot(far, far)) > self._far_active_power * len(far)
        self._active_frames = self._hold_frames if loud else self._active_frames - 1
        if self._active_frames <= 0:
            return
        self._near_power += self._smoothing * (float(np.dot(near, near)) - self._near_power)
        residual = float(np.dot(cleaned, cleaned))
        self._residual_power += self._smoothing * (residual - self._residual_power)
