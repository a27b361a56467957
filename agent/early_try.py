"""Early units of one call: when the engine is ready for one, and what came of it."""

from agent.clock import Clock
from agent.commands import ForceListen
from agent.engine_line import Told
from agent.media.front_end import FrontEnd, FrontEndEvent
from agent.media.playout import Playout
from agent.types import EngineEvent, TurnEnded, TurnStarted, Unit, UnitReport, VideoFrame

_MOST_LAG_S = 0.3
"""An engine that takes longer for a unit has no time for units that may be in vain."""
_UNHEARD_MS = 160
"""So much of an answer may be played before it is certain. What the user says comes in before the
echo of it does, and before the model's first word: its turns begin with 280 ms of silence."""


class EarlyTry:
    """Knows what the engine was told, what it said, and what is played.

    A unit is tried while nobody speaks for the agent, and not before the engine has dealt with the
    last one in good time. The answer to it is played as any other; once the user may have heard
    of it, what was tried stands: from then on he interrupts.
    """

    def __init__(self, front_end: FrontEnd, playout: Playout, clock: Clock) -> None:
        self._front_end = front_end
        self._playout = playout
        self._clock = clock
        self._told_unit = self._reported_unit = -1
        self._told_s = 0.0
        self._lag_s = 0.0
        self._open_turn = 0
        self._only_listens = False
        self._answer = 0

    def told(self, item: Told) -> None:
        """What the engine is told."""
        if isinstance(item, Unit):
            self._told_unit, self._told_s = item.index, self._clock.now_s()
            self._reported_unit = -1
        elif isinstance(item, ForceListen):
            self._only_listens = item.on

    def heard(self, event: EngineEvent) -> list[FrontEndEvent]:
        """What it says → what is found out by that, to be told first.

        Where it answers, the user has finished: clients put what he said before the answer.
        """
        match event:
            case UnitReport(unit=unit) if unit == self._told_unit:
                self._reported_unit = unit
                self._lag_s = self._clock.now_s() - self._told_s
            case TurnStarted(turn=turn):
                self._open_turn = turn
                if self._front_end.tries_early:
                    self._answer = turn
                    return self._front_end.end_speech()
            case TurnEnded(turn=turn) if turn == self._open_turn:
                self._open_turn = 0
        return []

    @property
    def is_due(self) -> bool:
        """Whether the user seems to have finished, and the engine waits to hear of it."""
        return self._front_end.early_is_due and self._engine_waits

    @property
    def _engine_waits(self) -> bool:
        """Before its first unit is done nobody knows how quick it is."""
        is_ready = 0 <= self._told_unit == self._reported_unit and self._lag_s <= _MOST_LAG_S
        speaks = self._open_turn or self._playout.playing or self._playout.queued_ms
        return is_ready and not speaks and not self._only_listens

    def begin(self, picture: VideoFrame | None) -> Unit:
        """The unit to be tried, when `is_due`."""
        self._answer = 0
        return self._front_end.try_early(picture)

    def follow(self) -> None:
        """To be called for each frame of the microphone, before it is looked at."""
        if self._front_end.tries_early and self._playout.played_ms(self._answer) > _UNHEARD_MS:
            self._front_end.stand_early()

    def take_back(self) -> int:
        """The user went on → the turn that nobody is to hear; 0 where none was begun."""
        answer, self._answer = self._answer, 0
        # What is yet to come of it is late, even if nothing of it has come so far.
        self._playout.end(answer)
        return answer
