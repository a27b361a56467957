"""What the server counts and times, in Prometheus's text format.

One registry per server, so that two servers in one process do not mix.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, TypeAlias

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from agent.types import LinkQuality, UnitReport

_STAGE_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_LAG_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)
_ERLE_BUCKETS_DB = (3, 6, 10, 15, 20, 25, 30, 40, 50)
_ECHO_DELAY_BUCKETS_MS = (20, 50, 100, 150, 200, 300, 400, 600, 800, 1000)
_RTT_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8)
_LOSS_BUCKETS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
_BESIDE_BUCKETS_S = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
_FIRST_SOUND_BUCKETS_S = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)

BesideWork: TypeAlias = Literal["function", "decision", "result", "transcript", "aside"]
"""A function of this server; whether one is to be called; what came of that; what the user said."""


class Telemetry:
    """Counters, gauges and histograms of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._active = self._gauge("calls_active", "Calls in progress")
        self._calls = self._counter("calls", "Calls by how they ended", "outcome")
        self._refused = self._counter("calls_refused", "Calls refused for want of a slot")
        self._kept_out = self._counter("requests_refused", "Requests by why not", "reason")
        self._underruns = self._counter("underruns", "Gaps inside the agent's speech")
        self._late_frames = self._counter("late_frames", "20 ms frames sent more than 20 ms late")
        self._barge_ins = self._counter("barge_ins", "Times that the user talked over the agent")
        self._ducks = self._counter("ducks", "Times that the agent grew quiet", "verdict")
        self._packets = self._counter("microphone_packets", "Packets by their fate", "fate")
        self._made_up = self._counter(
            "microphone_concealed_seconds", "Sound made up for what did not come", "kind"
        )
        self._erle = self._histogram(
            "echo_erle_db",
            "Echo taken out, once a second of speech with a known echo",
            _ERLE_BUCKETS_DB,
        )
        self._echo_delay = self._histogram(
            "echo_delay_ms",
            "The echo's way, once a second of speech with a known echo",
            _ECHO_DELAY_BUCKETS_MS,
        )
        self._rtt = self._histogram(
            "link_rtt_seconds", "Round trip, once a second of speech", _RTT_BUCKETS_S
        )
        self._loss = self._histogram(
            "link_loss_ratio", "Our packets that peers lost, once a second of speech", _LOSS_BUCKETS
        )
        self._stages = _Stages()
        self._registry.register(self._stages)
        self._lag = self._histogram("loop_lag_seconds", "Event loop lateness", _LAG_BUCKETS_S)
        self._first_sound = self._histogram(
            "first_sound_seconds",
            "User's last sound to agent's first, as handed to the sender",
            _FIRST_SOUND_BUCKETS_S,
        )
        self._beside = self._counter(
            "beside", "What was done beside the engine of calls", "work", "outcome"
        )
        self._beside_took = Histogram(
            "voice_agent_beside_seconds",
            "How long that took: functions and answers out of band by themselves, all else from "
            "the user's last word on",
            ("work",),
            registry=self._registry,
            buckets=_BESIDE_BUCKETS_S,
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

    def request_refused(self, reason: str) -> None:
        """Somebody was not let in: `no_key`, `unknown_key`, `rate`, `calls`, `voice`, `host`, …"""
        self._kept_out.labels(reason).inc()

    def underruns(self, count: int) -> None:
        """`count` gaps opened inside the agent's speech."""
        self._underruns.inc(count)

    def late_frame(self) -> None:
        """A 20 ms frame left more than 20 ms after it was due."""
        self._late_frames.inc()

    def barge_in(self) -> None:
        """The user talked over the agent."""
        self._barge_ins.inc()

    def duck_ended(self, verdict: Literal["resumed", "flushed"]) -> None:
        """The agent had grown quiet; it went on, or gave the turn up."""
        self._ducks.labels(verdict).inc()

    def microphone(self, fates: Mapping[str, int]) -> None:
        """So many more packets were received, lost, repaired, …"""
        for fate, count in fates.items():
            if count > 0:
                self._packets.labels(fate).inc(count)

    def concealed(self, concealed_s: float, silent_s: float) -> None:
        """So much more of a microphone was filled in, and left silent when it lasted too long."""
        for kind, spent_s in (("concealed", concealed_s), ("silent", silent_s)):
            if spent_s > 0:
                self._made_up.labels(kind).inc(spent_s)

    def echo(self, erle_db: float, delay_ms: float) -> None:
        """How well the echo is cancelled. A delay of 0 says that no echo is known, as before the
        first measurement, without a canceller or with one in the browser: nothing to count."""
        if delay_ms > 0:
            self._erle.observe(erle_db)
            self._echo_delay.observe(delay_ms)

    def link(self, quality: LinkQuality) -> None:
        """What a peer reports of the way to it; nothing to count before it does."""
        if quality.rtt_ms == 0:
            return
        self._rtt.observe(quality.rtt_ms / 1000)
        self._loss.observe(quality.loss)

    def unit(self, report: UnitReport) -> None:
        """Stage times of one unit."""
        for stage, spent_ms in report.stage_ms:
            self.stage(stage, spent_ms / 1000)

    def stage(self, stage: str, spent_s: float) -> None:
        """One run of `stage`."""
        self._stages.observe(stage, spent_s)

    def loop_lag(self, late_s: float) -> None:
        """The event loop woke a timer `late_s` late."""
        self._lag.observe(late_s)

    def first_sound(self, delay_s: float) -> None:
        """The agent answered `delay_s` after the user fell silent."""
        self._first_sound.observe(delay_s)

    def beside(self, work: BesideWork, outcome: str, took_s: float | None = None) -> None:
        """Something was done, or not, beside the engine of a call; `took_s` where it counts."""
        self._beside.labels(work, outcome).inc()
        if took_s is not None:
            self._beside_took.labels(work).observe(took_s)

    def render(self) -> bytes:
        """Everything in Prometheus's text format."""
        return generate_latest(self._registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"voice_agent_{name}", text, registry=self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"voice_agent_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"voice_agent_{name}", text, registry=self._registry, buckets=buckets)


@dataclass(slots=True)
class _Runs:
    """Those of one stage; the last count is of those beyond all bounds."""

    counts: list[int]
    total_s: float = 0.0


class _Stages(Collector):
    """A histogram of the runs of each stage, for one thread.

    The library's own histogram, with its locks and its label, takes nearly four times as long for
    each of the hundred frames that a call has in a second.
    """

    def __init__(self) -> None:
        self._runs: dict[str, _Runs] = {}

    def observe(self, stage: str, spent_s: float) -> None:
        runs = self._runs.get(stage)
        if runs is None:
            runs = self._runs[stage] = _Runs([0] * (len(_STAGE_BUCKETS_S) + 1))
        runs.counts[bisect_left(_STAGE_BUCKETS_S, spent_s)] += 1
        runs.total_s += spent_s

    def collect(self) -> Iterator[HistogramMetricFamily]:
        text = (
            "One run of a stage: front_end for each 10 ms of the microphone, others for each unit"
        )
        family = HistogramMetricFamily("voice_agent_stage_seconds", text, labels=["stage"])
        bounds = [*(str(bound) for bound in _STAGE_BUCKETS_S), "+Inf"]
        for stage, runs in self._runs.items():
            within = list(zip(bounds, accumulate(runs.counts), strict=True))
            family.add_metric([stage], within, runs.total_s)
        yield family
