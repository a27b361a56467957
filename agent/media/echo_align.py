"""Keeps the canceller's reference close before its echo: policy between measuring and reading."""

from agent.media.echo_delay import EchoDelay
from agent.media.echo_far import FAR_DELAY_SAMPLES, Reference
from agent.types import MIC_FRAME_SAMPLES, MIC_RATE_HZ, FloatArray

_SAMPLES_PER_MS = MIC_RATE_HZ // 1000
_LONGEST_LEAD_SAMPLES = 420 * _SAMPLES_PER_MS
"""AEC3 finds no echo that comes more than some 450 ms after its reference."""
_SHORTEST_LEAD_SAMPLES = 8 * _SAMPLES_PER_MS
"""None either that comes before it; what the delay says may be off by a reflection."""
_GOOD_LEAD_SAMPLES = 100 * _SAMPLES_PER_MS
_TOLERATED_SAMPLES = 150 * _SAMPLES_PER_MS
"""What changes by less, AEC3 follows by itself; to move the reference costs it as much."""
_RESERVE_SAMPLES = 40 * _SAMPLES_PER_MS
_DRIFT_WORTH_PPM = 10.0
_DRIFT_STEP_PPM = 4.0


class EchoAlignment:
    """The reference that belongs to each 10 ms of microphone.

    Until an echo was found it is what arrives. Then it is moved when the echo comes more than
    420 ms after it, or before it, or when that lead changed by more than 150 ms; and its clock
    follows the drift of the echo.
    """

    def __init__(self) -> None:
        self._reference = Reference()
        self._delay = EchoDelay()
        self._lead: float | None = None

    @property
    def delay_ms(self) -> float:
        """How long after it was sent the echo arrives; 0 while unknown."""
        if self._delay.lag is None:
            return 0.0
        late = self._delay.lag - self._reference.arrival_lag + FAR_DELAY_SAMPLES
        return max(0.0, late) / _SAMPLES_PER_MS

    @property
    def pre_delay_ms(self) -> float:
        """How long the reference is held back."""
        return (self._reference.lag - self._reference.arrival_lag) / _SAMPLES_PER_MS

    @property
    def drift_ppm(self) -> float:
        """How much faster the microphone counts than the echo, as corrected; 0 while unknown."""
        return self._reference.drift_ppm

    def push_far(self, samples: FloatArray) -> None:
        """What was just sent, [T] at 24 kHz; any thread may call."""
        self._reference.far.push(samples)

    def take(self, near: FloatArray) -> FloatArray:
        """The reference of these 10 ms [160], before it what is to be skipped: [160 * k]."""
        taken = self._reference.take()
        reference = self._reference
        start = reference.near_index - MIC_FRAME_SAMPLES
        self._delay.push(near, start, reference.arrival_lag)
        if self._delay.work(reference.far.read) and self._delay.lag is not None:
            self._follow_drift()
            self._keep_lead(self._delay.lag - reference.lag)
        return taken

    def _keep_lead(self, lead: float) -> None:
        if self._lead is None:
            self._reference.release()
            fits = _SHORTEST_LEAD_SAMPLES <= lead <= _LONGEST_LEAD_SAMPLES
            self._lead = lead if fits else _GOOD_LEAD_SAMPLES
        strays = abs(lead - self._lead) > _TOLERATED_SAMPLES
        if strays or not _SHORTEST_LEAD_SAMPLES <= lead <= _LONGEST_LEAD_SAMPLES:
            self._move(lead - self._lead)
        elif self._reference.drift_ppm < 0 and self._reference.spare_samples < 0:
            self._move(min(_RESERVE_SAMPLES, lead / 2))

    def _move(self, samples: float) -> None:
        """Hold the reference back so much more, but never let it go before what was sent."""
        self._reference.hold_back(max(samples, -max(0.0, self._reference.spare_samples)))

    def _follow_drift(self) -> None:
        drift_ppm = self._delay.drift_ppm
        if drift_ppm is None:
            return
        wanted_ppm = drift_ppm if abs(drift_ppm) >= _DRIFT_WORTH_PPM else 0.0
        if abs(wanted_ppm - self._reference.drift_ppm) >= _DRIFT_STEP_PPM:
            self._reference.follow_drift(wanted_ppm)
