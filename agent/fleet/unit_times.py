"""What became of the units of many calls: when each came, was reported and last sounded.

    log = UnitLog()
    log.arrived(number, unit, at_s)
    log.told(number, event, now_s)
    log.times(since_s, until_s).late

A unit is late when its report or the last of its sound comes later than a second after the unit,
when the next one is there. One that is never reported is late, too.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from agent.chat_types import ChatEvent
from agent.types import EngineEvent, Listened, SpeechAudio, TurnStarted, Unit, UnitReport

DEADLINE_S = 1.0
_SEEING = "vision"
"""The stage that a unit whose pictures were looked at has in its report."""


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest of these, which stand in order, that `share` of them do not exceed.

    NaN of nothing.
    """
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(frozen=True, slots=True)
class Times:
    """Of the units that came in a stretch of time.

    `latencies_s` stand in order, with `inf` for a unit that was not done; so do `first_sounds_s`,
    of units that began a turn. `unseen` counts units whose pictures were left out.
    """

    latencies_s: tuple[float, ...] = ()
    first_sounds_s: tuple[float, ...] = ()
    spoken: int = 0
    unseen: int = 0

    @property
    def units(self) -> int:
        """How many came."""
        return len(self.latencies_s)

    @property
    def late(self) -> int:
        """How many were not done a second after they came."""
        return sum(latency_s > DEADLINE_S for latency_s in self.latencies_s)

    @property
    def in_time(self) -> bool:
        """Whether nothing was late and nothing left out; False where nothing came."""
        return bool(self.units) and not self.late and not self.unseen

    def latency_s(self, share: float) -> float:
        """That which `share` of the units did not exceed; NaN where there were none."""
        return percentile(self.latencies_s, share)

    def first_sound_s(self, share: float) -> float:
        """The same of a turn's first sound, counted from the unit that it began in."""
        return percentile(self.first_sounds_s, share)


@dataclass(slots=True)
class _Entry:
    came_s: float
    shown: bool
    reported_s: float = math.inf
    sounded_s: float = -math.inf
    first_sound_s: float = math.inf
    listened: bool = False
    unseen: bool = False

    @property
    def latency_s(self) -> float:
        return max(self.reported_s, self.sounded_s) - self.came_s


class UnitLog:
    """Filled as things happen; `forget` what is over, or it grows.

    `by_model` False: only reports count. An engine without a model looks at nothing, and hands its
    sound out at the pace of speech, which says nothing of the time that it needs.
    """

    def __init__(self, *, by_model: bool = True) -> None:
        self._by_model = by_model
        self._entries: dict[tuple[int, int], _Entry] = {}
        self._silent_turns: set[int] = set()
        self._context_tokens: dict[int, int] = {}

    # ---- what happens ---------------------------------------------------------------------------

    def arrived(self, number: int, unit: Unit, at_s: float) -> None:
        """Call `number` sent `unit`, complete at `at_s`."""
        self._entries[number, unit.index] = _Entry(at_s, bool(unit.pictures))

    def told(self, number: int, event: EngineEvent | ChatEvent, now_s: float) -> None:
        """The engine said something to call `number`."""
        match event:
            case UnitReport(unit=unit):
                self._context_tokens[number] = event.context_tokens
                if entry := self._entries.get((number, unit)):
                    entry.reported_s = now_s
                    seen = any(stage == _SEEING for stage, _ in event.stage_ms)
                    entry.unseen = self._by_model and entry.shown and not seen
            case Listened(unit=unit):
                if entry := self._entries.get((number, unit)):
                    entry.listened = True
            case TurnStarted():
                self._silent_turns.add(number)
            case SpeechAudio(unit=unit):
                self._sounded(number, unit, now_s, heard=bool(event.samples.size))
            case _:
                pass

    def _sounded(self, number: int, unit: int, now_s: float, *, heard: bool) -> None:
        entry = self._entries.get((number, unit))
        if entry is None or not self._by_model:
            return
        entry.sounded_s = now_s
        if heard and number in self._silent_turns:
            self._silent_turns.discard(number)
            entry.first_sound_s = now_s

    def forget(self, before_s: float) -> None:
        """All units that came before then."""
        self._entries = {key: one for key, one in self._entries.items() if one.came_s >= before_s}

    def ended(self, number: int) -> None:
        """Call `number` is over: what it was not told it is not told any more."""
        self._entries = {key: one for key, one in self._entries.items() if key[0] != number}
        self._silent_turns.discard(number)
        self._context_tokens.pop(number, None)

    # ---- what became of it ----------------------------------------------------------------------

    def context_tokens(self, number: int) -> int:
        """How much call `number` remembers, by its last report; 0 before that."""
        return self._context_tokens.get(number, 0)

    def waits(self, since_s: float = -math.inf, until_s: float = math.inf) -> bool:
        """Whether a unit that came then was not reported yet."""
        return any(math.isinf(one.reported_s) for one in self._came(since_s, until_s))

    @property
    def quickest_s(self) -> float:
        """Of all that are known, the shortest time that one took; inf when none was done."""
        return min((one.latency_s for one in self._entries.values()), default=math.inf)

    def times(self, since_s: float, until_s: float) -> Times:
        """Of the units that came from `since_s` on and before `until_s`."""
        came = list(self._came(since_s, until_s))
        firsts = [one.first_sound_s - one.came_s for one in came]
        return Times(
            tuple(sorted(one.latency_s for one in came)),
            tuple(sorted(first_s for first_s in firsts if math.isfinite(first_s))),
            spoken=sum(not one.listened and math.isfinite(one.reported_s) for one in came),
            unseen=sum(one.unseen for one in came),
        )

    def _came(self, since_s: float, until_s: float) -> Iterable[_Entry]:
        return (one for one in self._entries.values() if since_s <= one.came_s < until_s)
