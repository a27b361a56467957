"""A sent stream whose ledger is told, as the test says, what the client plays."""

import numpy as np

from agent.clock import Clock
from agent.media.ledger import REPORT_LEAD_S, Ledger
from agent.media.playout import Playout
from agent.types import SpeechAudio

FRAME_S = 0.02
MS = 24


class Driven(Clock):
    """Time that a test moves."""

    def __init__(self) -> None:
        self.time_s = 1000.0

    def now_s(self) -> float:
        return self.time_s


class Line:
    """A sent stream at 20 ms a pull, kept in `ledger`."""

    def __init__(self) -> None:
        self.clock = Driven()
        self.ledger = Ledger(self.clock)
        self.playout = Playout(max_queued_ms=10**6)
        self.playout.tap_spans(self.ledger.sent)
        self.pulled = 0

    def speak(self, turn: int, length_ms: int, *, last: bool = True) -> None:
        samples = np.ones(length_ms * MS, np.float32)
        self.playout.push(SpeechAudio(turn, 0, 0, samples, last))

    def run(self, duration_ms: int) -> None:
        """Pulls, each followed by its 20 ms."""
        for _ in range(duration_ms // 20):
            self.playout.pull()
            self.pulled += 480
            self.clock.time_s += FRAME_S

    def report(self, lag_ms: int, *, late_ms: int = 0) -> None:
        """A client that is `lag_ms` behind says what sounds, in a report that takes `late_ms`.

        Its position leads the sound as Chromium's does.
        """
        behind_ms = lag_ms + late_ms - REPORT_LEAD_S * 1000
        position = self.pulled - round(behind_ms * MS)
        self.ledger.rendered(max(0, position), self.clock.time_s - late_ms / 1000)

    def stand_still(self, duration_ms: int, position: int) -> None:
        """`run` under reports every 100 ms of a page that nothing comes through to."""
        for _ in range(duration_ms // 100):
            self.run(100)
            self.ledger.rendered(position, self.clock.time_s)

    def follow(self, duration_ms: int, lag_ms: int) -> None:
        """`run` under reports every 100 ms."""
        for _ in range(duration_ms // 100):
            self.run(100)
            self.report(lag_ms)

    def heard(self, turn: int = 1) -> int:
        return self.ledger.heard_ms(turn, self.clock.time_s)

    def final(self, turn: int = 1) -> int:
        return self.ledger.final_ms(turn, self.clock.time_s)
