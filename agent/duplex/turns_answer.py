"""What there is to tell of a half-duplex answer: calls only once nothing takes back their cause."""

from dataclasses import dataclass, field

from agent.chat_types import ChatToolCall
from agent.duplex.answer import AnswerPiece
from agent.types import TurnEndReason


@dataclass(slots=True)
class Telling:
    """One answer. What a function did cannot be undone: where the answer is to a unit that is only
    `tried`, its calls wait, and its end with them."""

    tried: int | None = None
    """That unit, until it stands; None: it stands."""
    ends: TurnEndReason | None = None
    is_dropped: bool = False
    """Whether that unit was taken back: nothing is called."""
    _calls: list[ChatToolCall] = field(default_factory=list)

    def hear(self, unit: int) -> None:
        """The next unit came."""
        if self.tried is not None and unit > self.tried:
            self.tried = None
        else:
            self.retract(unit)

    def retract(self, unit: int) -> None:
        """Unit `unit` never was."""
        if unit == self.tried:
            self.is_dropped = True
            self._calls.clear()

    def add(self, piece: AnswerPiece) -> None:
        """The next of the answer."""
        if not self.is_dropped:
            self._calls += [one.told() for one in piece.calls]
        if piece.finish is not None:
            self.ends = "completed" if piece.finish == "stop" else "max_tokens"

    def take_calls(self) -> list[ChatToolCall]:
        """Those that are told now."""
        if self.tried is not None:
            return []
        calls, self._calls = self._calls, []
        return calls

    @property
    def end(self) -> TurnEndReason | None:
        """Why the turn is over; None while it goes on, or a call waits."""
        return None if self._calls else self.ends

    @property
    def is_due(self) -> bool:
        """Whether nothing but the unit was waited for."""
        return self.ends is not None and (self.tried is None or not self._calls)
