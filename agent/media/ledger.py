"""What the user has really heard of each turn, and what of it can still not be recalled.

Three clocks meet. The sent stream counts samples (24 kHz, silence included); `Playout` tells which
of them carried which sound. The client reports which sample it plays, on its own clock, which
`ReportClock` turns into the server's. `Ledger` puts both together.

A client plays what it got at real-time pace, so between two reports the position goes on by
itself. Two things end that: reports that name a later time but no later position (the way to the
client is broken; nothing more sounded), and reports that have long stopped coming (page paused).
The sender sends silence too, so pauses and ducks advance the position like speech. In the agent's
silence clients do not report: only what they say, or fail to say, since it sounds again counts
against what sounds now. Clients that never report are taken to hear everything by a constant
delay after it was sent.
"""

import math
from collections import deque
from dataclasses import dataclass

from agent.clock import SYSTEM_CLOCK, Clock
from agent.media.playout import MAX_TURNS, SentSpan
from agent.types import SPEECH_RATE_HZ, LinkQuality

MAX_SPANS = 1_500
"""30 s of pulls with sound in them; what is older counts as heard."""
JITTER_BUFFER_S = 0.06
"""What a browser typically holds back; Chromium was seen at 30–120 ms."""
REPORT_LEAD_S = 0.02
"""The timestamp that Chromium's receivers name leads the sound by 15–27 ms, 21 in the mean."""
STUCK_AFTER_S = 0.3
"""Reports that have not advanced for so long say that nothing sounds any more: three in a row
that come every 100 ms. A jitter buffer that stretches sound only slows down."""
SILENT_AFTER_S = 1.5
"""No report for so long counts as an outage. A lost packet holds the others of a data channel up
for about a second, and a page in the background reports once a second; both play on."""
SOUNDS_ANEW_S = 0.5
"""Sound after so long a silence is a new beginning: clients may have ceased to report."""
MAX_WAY_S = 5.0
"""No report is taken to have travelled for longer."""
_BUCKETS = 10
_SLACK_SAMPLES = SPEECH_RATE_HZ // 2
"""Reports may name so much more than real-time pace explains: a transport may send ahead."""
_SAMPLES_PER_MS = SPEECH_RATE_HZ // 1000


def path_delay_s(link: LinkQuality) -> float:
    """From sending a sample to its sound, for `Ledger.estimate`: by half the round trip and a
    jitter buffer that grows with what it has to even out."""
    return link.rtt_ms / 2000.0 + max(JITTER_BUFFER_S, 2.0 * link.jitter_ms / 1000.0)


class ReportClock:
    """A page's clock in terms of the server's: `server_s` for each report, in any order.

    A report cannot arrive before it was written, so the smallest difference seen between both
    clocks is their offset plus the quickest way here, taken as half the round trip. Only the last
    `window_s` count: drifting clocks are followed, and one that was set back or stood still is
    so after that.
    """

    def __init__(self, window_s: float = 10.0) -> None:
        self._buckets: deque[tuple[int, float]] = deque(maxlen=_BUCKETS)
        self._bucket_s = window_s / _BUCKETS

    def server_s(self, at_ms: float, arrived_s: float, rtt_s: float = 0.0) -> float:
        """When on the server's clock it was `at_ms` on the page's.

        `arrived_s` is when the report came, on the server's clock: the answer is at most that,
        and at most `MAX_WAY_S` earlier, however wild the page's clock is. A time that is no
        number is taken for the one of arrival.
        """
        way_s = max(0.0, rtt_s) / 2.0
        if not math.isfinite(at_ms):
            return arrived_s - way_s
        self._note(arrived_s - at_ms / 1000.0, arrived_s)
        offset_s = min(offset for _, offset in self._buckets)
        written_s = at_ms / 1000.0 + offset_s - way_s
        return min(arrived_s, max(arrived_s - MAX_WAY_S, written_s))

    def _note(self, offset_s: float, arrived_s: float) -> None:
        """Keep the smallest offset of each tenth of the window."""
        index = int(arrived_s / self._bucket_s)
        while self._buckets and self._buckets[0][0] <= index - _BUCKETS:
            self._buckets.popleft()
        if self._buckets and self._buckets[-1][0] >= index:
            index, known_s = self._buckets.pop()
            offset_s = min(offset_s, known_s)
        self._buckets.append((index, offset_s))


@dataclass(frozen=True, slots=True)
class _Sent:
    """Sound that left at `at_s`."""

    span: SentSpan
    at_s: float

    @property
    def end(self) -> int:
        return self.span.position + self.span.samples


@dataclass(frozen=True, slots=True)
class _Report:
    """Sample `position` of the sent stream sounds at `sounds_s`; told for `at_s`."""

    position: int
    at_s: float
    sounds_s: float


class Ledger:
    """Which part of each turn was sent, and which of it has sounded. One for each call.

    To be fed by `playout.tap_spans(ledger.sent)` on the thread that asks. Never raises on what
    a client says: impossible reports are ignored, a time to come is now. Remembers 30 s of sound
    and `MAX_TURNS` turns.
    """

    def __init__(self, clock: Clock = SYSTEM_CLOCK, report_lead_s: float = REPORT_LEAD_S) -> None:
        """`report_lead_s`: by how much the client's position leads the sound."""
        self._clock = clock
        self._report_lead_s = report_lead_s
        self._spans: deque[_Sent] = deque()
        self._settled: dict[int, int] = {}  # turn to samples that are heard for certain
        self._delay_s = JITTER_BUFFER_S
        self._furthest: _Report | None = None
        self._newest_s = -math.inf
        self._arrived_s = -math.inf
        self._sounding_since_s = -math.inf

    # ---- what goes in -------------------------------------------------------------------------

    def sent(self, span: SentSpan) -> None:
        """This sound was handed to the sender just now."""
        now_s = self._clock.now_s()
        if not self._spans or now_s - self._spans[-1].at_s > SOUNDS_ANEW_S:
            self._sounding_since_s = now_s
        self._spans.append(_Sent(span, now_s))
        if len(self._spans) > MAX_SPANS:
            oldest = self._spans.popleft().span
            self._settled[oldest.turn] = oldest.start + oldest.samples
            if len(self._settled) > MAX_TURNS:
                del self._settled[next(iter(self._settled))]

    def rendered(self, position: int, at_s: float) -> None:
        """The client says that sample `position` of the sent stream played at `at_s`.

        In any order, as often as it likes; `report_lead_s` is taken off here. The same position
        at a later time says that playing has stopped there.
        """
        now_s = self._clock.now_s()
        if not math.isfinite(at_s) or not 0 <= position <= self._possible(now_s):
            return
        at_s = min(at_s, now_s)
        self._arrived_s = now_s
        self._newest_s = max(self._newest_s, at_s)
        if self._furthest is None or position > self._furthest.position:
            self._furthest = _Report(position, at_s, at_s + self._report_lead_s)

    def estimate(self, delay_s: float) -> None:
        """Until a client reports, what was sent is taken to sound `delay_s` later."""
        if math.isfinite(delay_s):
            self._delay_s = max(0.0, delay_s)

    # ---- what comes out -----------------------------------------------------------------------

    def heard_ms(self, turn: int, now_s: float) -> int:
        """How much of `turn` has sounded by now; 0 for one not begun, or forgotten long ago."""
        return self._until(turn, min(self._playing(now_s), self._bound(now_s)))

    def final_ms(self, turn: int, now_s: float) -> int:
        """How much of `turn` will have sounded if nothing more is sent: what an interruption
        claims. All that was sent, unless the way to the client is broken."""
        return self._until(turn, self._bound(now_s))

    # ---- inside -------------------------------------------------------------------------------

    def _playing(self, now_s: float) -> float:
        """The position that sounds now, if all is well."""
        if self._furthest is None:
            return self._sent_by(now_s - self._delay_s)
        since_s = now_s - self._furthest.sounds_s
        return self._furthest.position + since_s * SPEECH_RATE_HZ

    def _bound(self, now_s: float) -> float:
        """The position beyond which nothing will sound."""
        furthest = self._furthest
        if furthest is None:
            return math.inf
        told = self._newest_s >= self._sounding_since_s
        if told and self._newest_s - furthest.at_s > STUCK_AFTER_S:
            return furthest.position
        if now_s - max(self._arrived_s, self._sounding_since_s) > SILENT_AFTER_S:
            # What had left by then was on its way, a lag ahead; of the rest nobody knows.
            return max(furthest.position, self._sent_by(furthest.sounds_s))
        return math.inf

    def _possible(self, now_s: float) -> float:
        """The furthest position that a client can have been sent; −1 before the first sound."""
        if not self._spans:
            return -1
        last = self._spans[-1]
        return last.end + (now_s - last.at_s) * SPEECH_RATE_HZ + _SLACK_SAMPLES

    def _sent_by(self, at_s: float) -> float:
        """Up to where sound had left by `at_s`, had it left at real-time pace."""
        for sent in reversed(self._spans):
            if sent.at_s <= at_s:
                return min(sent.end, sent.span.position + (at_s - sent.at_s) * SPEECH_RATE_HZ)
        return 0

    def _until(self, turn: int, position: float) -> int:
        """How much of `turn` lies before `position` of the sent stream."""
        for sent in reversed(self._spans):
            span = sent.span
            if span.turn == turn and span.position < position:
                samples = min(span.samples, position - span.position)
                return int(span.start + samples) // _SAMPLES_PER_MS
        return self._settled.get(turn, 0) // _SAMPLES_PER_MS
