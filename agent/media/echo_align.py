"""When an echo canceller needs another reference: policy between measuring and reading."""

from dataclasses import dataclass

from agent.media.echo_reference import Alignment, Reference
from agent.types import MIC_RATE_HZ

_SAMPLES_PER_MS = MIC_RATE_HZ // 1000
_LONGEST_LEAD_SAMPLES = 420 * _SAMPLES_PER_MS
"""AEC3 finds no echo that comes more than some 450 ms after its reference."""
_SHORTEST_LEAD_SAMPLES = 4 * _SAMPLES_PER_MS
"""None either that comes before it."""
_GOOD_LEAD_SAMPLES = 100 * _SAMPLES_PER_MS
_TOLERATED_SAMPLES = 150 * _SAMPLES_PER_MS
"""What changes by less, AEC3 follows by itself."""
_RESERVE_SAMPLES = 40 * _SAMPLES_PER_MS
_LEAST_SPARE_SAMPLES = 2 * _SAMPLES_PER_MS
_RESERVE_HISTORY_SAMPLES = 2 * MIC_RATE_HZ
_DRIFT_WORTH_PPM = 10.0
_DRIFT_STEP_PPM = 4.0
_DRIFT_WORTH_MOVING_PPM = 40.0
"""AEC3 follows less than this by itself with hardly any loss."""
_RETRY_SAMPLES = 4 * MIC_RATE_HZ
_LONGEST_RETRY_SAMPLES = 64 * MIC_RATE_HZ
_REHEARSALS = 3
"""AEC3 takes seconds to learn a room; twice more over the first second of it brings some 10 dB
at once where the room rings, further times bring no more."""
_REHEARSED_SAMPLES = MIC_RATE_HZ * 9 // 10
_RESERVE_RETRY_SAMPLES = 20 * MIC_RATE_HZ


@dataclass(frozen=True, slots=True)
class EchoFound:
    """At near index `at` the echo lags by `lag` and, where that is certain, drifts.

    `since` is where what was measured began; the two lags count samples at 16 kHz.
    """

    at: int
    since: int
    lag: float
    arrival_lag: int
    drift_ppm: float | None


@dataclass(frozen=True, slots=True)
class Move:
    """Give the canceller this alignment.

    It is to learn from what was heard since near index `since`, in so many `passes`.
    """

    alignment: Alignment
    since: int
    passes: int = 1


class AlignmentPolicy:
    """Decides from each measurement what becomes of the reference.

    The lead is how long before its echo the reference comes. AEC3 manages any lead up to 420 ms
    but must learn anew when it changes, so it is left alone unless it grows beyond that, vanishes
    or is another one by more than 150 ms. What did not help is tried again ever more rarely. Once
    the lead is right, the room is rehearsed. To follow drift, the reference must be held back: it
    may have to run ahead of arrival.
    """

    def __init__(self) -> None:
        self._lead: float | None = None
        self._rehearsed = False
        self._not_before = 0
        self._retry_samples = _RETRY_SAMPLES
        self._no_reserve_before = 0

    def judge(self, found: EchoFound, reference: Reference) -> Move | None:
        """What to do about `found`; a change that costs nothing is made on `reference` itself."""
        lead = found.lag - reference.lag
        if self._lead is None:
            self._lead = lead if _fits(lead) else _GOOD_LEAD_SAMPLES
        drift_ppm = _wanted_ppm(found.drift_ppm, reference.drift_ppm)
        if not _fits(lead) or abs(lead - self._lead) > _TOLERATED_SAMPLES:
            return self._restore(found, drift_ppm)
        if not self._rehearsed and found.at - found.since >= _REHEARSED_SAMPLES:
            self._rehearsed = True
            alignment = Alignment(found.at, reference.lag, reference.drift_ppm)
            return Move(alignment, found.since, _REHEARSALS)
        if reference.spare_samples < _LEAST_SPARE_SAMPLES and drift_ppm:
            reference.release(reference.drift_ppm)
            return self._reserve(found, lead, drift_ppm)
        reference.release(drift_ppm)
        return None

    def decided(self, found: EchoFound, reference: Reference) -> None:
        """The canceller moved, or proved better where it was: `reference` is the one to keep."""
        lead = found.lag - reference.lag
        if _fits(lead):
            self._lead = lead
            self._retry_samples = _RETRY_SAMPLES

    def _restore(self, found: EchoFound, drift_ppm: float) -> Move | None:
        """Bring back the lead that the canceller had, as far as sound that was sent allows."""
        if self._lead is None or found.at < self._not_before:
            return None
        self._not_before = found.at + self._retry_samples
        self._retry_samples = min(2 * self._retry_samples, _LONGEST_RETRY_SAMPLES)
        lead = min(self._lead, found.lag - found.arrival_lag)
        self._rehearsed = False
        return Move(Alignment(found.at, found.lag - lead, drift_ppm), found.since)

    def _reserve(self, found: EchoFound, lead: float, drift_ppm: float) -> Move | None:
        """Hold the reference back, so that it can run ahead of arrival for a while."""
        if found.at < self._no_reserve_before or abs(drift_ppm) < _DRIFT_WORTH_MOVING_PPM:
            return None
        self._no_reserve_before = found.at + _RESERVE_RETRY_SAMPLES
        lag = found.lag - lead + min(_RESERVE_SAMPLES, lead / 2)
        return Move(Alignment(found.at, lag, drift_ppm), found.at - _RESERVE_HISTORY_SAMPLES)


def _fits(lead: float) -> bool:
    return _SHORTEST_LEAD_SAMPLES <= lead <= _LONGEST_LEAD_SAMPLES


def _wanted_ppm(measured_ppm: float | None, followed_ppm: float) -> float:
    """Small drift and small changes of it are not worth a change."""
    if measured_ppm is None:
        return followed_ppm
    wanted_ppm = measured_ppm if abs(measured_ppm) >= _DRIFT_WORTH_PPM else 0.0
    return wanted_ppm if abs(wanted_ppm - followed_ppm) >= _DRIFT_STEP_PPM else followed_ppm
