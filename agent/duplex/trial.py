"""A unit that a call only tries: the user seems to have finished, and may yet go on."""

from collections import OrderedDict
from dataclasses import dataclass

from agent.commands import Respond
from agent.duplex.memory import Snapshot

_MOST_TURNS = 64
"""Turns that may still be interrupted: the newest."""


@dataclass(slots=True)
class Trial:
    """Unit `unit`, and what it takes to have never heard it."""

    unit: int
    point: Snapshot
    asked: Respond | None
    """What the model had been asked to say, if nobody took that back since."""
    is_reprompted: bool = False
    """Whether the prompt was replaced since: that stays."""


class TurnNumbers:
    """A turn's number as it was told, which is never given twice, and the conversation's own,
    which is when a unit is taken back."""

    def __init__(self) -> None:
        self._own: OrderedDict[int, int] = OrderedDict()

    def begin(self, told: int, own: int) -> None:
        """Turn `own` was told as `told`."""
        self._own[told] = own
        if len(self._own) > _MOST_TURNS:
            self._own.popitem(last=False)

    def own(self, told: int) -> int:
        """0 for a turn that never was, or is long forgotten."""
        return self._own.get(told, 0)

    def take_back(self, newest: int) -> list[int]:
        """No turn beyond the conversation's own `newest` ever was → as what these were told."""
        gone = [told for told, own in self._own.items() if own > newest]
        for told in gone:
            del self._own[told]
        return gone
