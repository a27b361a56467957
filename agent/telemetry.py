"""What the server counts and times, in Prometheus's text format.

One registry per server, so that two servers in one process do not mix.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from agent.types import UnitReport

_STAGE_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_LAG_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)
_FIRST_SOUND_BUCKETS_S = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)


class Telemetry:
    """Counters, gauges and histograms of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._active = self._gauge("calls_active", "Calls in progress")
        self._calls = self._counter("calls", "Calls by how they ended", "outcome")
        self._refused = self._counter("calls_refused", "Calls refused for want of a slot")
        self._underruns = self._counter("underruns", "Gaps inside the agent's speech")
        self._late_frames = self._counter("late_frames", "20 ms frames sent more than 20 ms late")
        self._barge_ins = self._counter("barge_ins", "Times that the user talked over the agent")
        self._stages = self._histogram("stage_seconds", "Work per unit", _STAGE_BUCKETS_S, "stage")
        self._lag = self._histogram("loop_lag_seconds", "Event loop lateness", _LAG_BUCKETS_S)
        self._first_sound = self._histogram(
            "first_sound_seconds",
            "User's last sound to agent's first, as handed to the sender",
            _FIRST_SOUND_BUCKETS_S,
        )

    def call_started(self) -> None:
        """A call was accepted."""
        self._active.inc()

    def call_ended(self, outcome: str) -> None:
        """A call is over: `hung_up`, `peer_gone`, `no_connection`, `failed`, …"""
        self._active.dec()
        self._calls.labels(outcome).inc()

    def call_refused(self) -> None:
        """No slot was free."""
        self._refused.inc()

    def underruns(self, count: int) -> None:
        """`count` gaps opened inside the agent's speech."""
        self._underruns.inc(count)

    def late_frame(self) -> None:
        """A 20 ms frame left more than 20 ms after it was due."""
        self._late_frames.inc()

    def barge_in(self) -> None:
        """The user talked over the agent."""
        self._barge_ins.inc()

    def unit(self, report: UnitReport) -> None:
        """Stage times of one unit."""
        for stage, spent_ms in report.stage_ms:
            self.stage(stage, spent_ms / 1000)

    def stage(self, stage: str, spent_s: float) -> None:
        """One run of `stage`."""
        self._stages.labels(stage).observe(spent_s)

    def loop_lag(self, late_s: float) -> None:
        """The event loop woke a timer `late_s` late."""
        self._lag.observe(late_s)

    def first_sound(self, delay_s: float) -> None:
        """The agent answered `delay_s` after the user fell silent."""
        self._first_sound.observe(delay_s)

    def render(self) -> bytes:
        """Everything in Prometheus's text format."""
        return generate_latest(self._registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"voice_agent_{name}", text, registry=self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"voice_agent_{name}", text, labels, registry=self._registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(
            f"voice_agent_{name}", text, labels, registry=self._registry, buckets=buckets
        )
