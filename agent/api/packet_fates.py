"""What became of the packets of one call's microphone, for the metrics."""

from agent.media.jitter import LineCounts
from agent.telemetry import Telemetry
from agent.types import MIC_RATE_HZ

_FATES = ("received", "late", "duplicate", "malformed", "lost", "repaired", "resynchronised")


class PacketFates:
    """Tells the telemetry what has come since the last time."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._told = LineCounts()

    def note(self, counts: LineCounts) -> None:
        """All so far."""
        self._telemetry.microphone({name: self._fresh(counts, name) for name in _FATES})
        self._telemetry.concealed(
            self._fresh(counts, "concealed_samples") / MIC_RATE_HZ,
            self._fresh(counts, "silent_samples") / MIC_RATE_HZ,
        )
        self._told = counts

    def _fresh(self, counts: LineCounts, name: str) -> int:
        return int(getattr(counts, name) - getattr(self._told, name))
