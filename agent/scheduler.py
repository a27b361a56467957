"""Whose work is next and with whom, whether one more call fits, and what is left out where not.

Policy alone: it is told the time and what things cost, waits for nothing and needs no torch.

**Whose work is next.** Every call's unit is due when its next one is complete, a second after it
came. On each lane the work that is due first leads the next batch; others' works of the same kind
come along, then units' other works, in that order, as many as the lane takes at once. What is ready
goes now: to wait for company would make all of them later, and while a lane is busy company comes
by itself. Half-duplex turns and chats are behind every unit, but come along where they do not make
a batch longer; they go first when they have waited for PATIENCE_S and units can spare the time, at
the latest after STARVED_S. Units can spare it when the most pressed one can, and the slowest of
late were done so long within DEADLINE_SHARE of the second.

**When units fall behind.** Of a call whose units are late, and of no other: its pictures are seen
as thumbnails, then not at all. When that does not help, or it has no camera, chats are held until
no unit waits. Then the call itself leaves out its oldest units, as a call does that is further
behind than it can catch up. Every step is logged once, and taken back step by step after
RECOVERED_UNITS in time.

**Whether one more call fits.** `Costs` knows what a batch of every kind takes by its size, from
those that were done. Were the units of all calls to come at the same moment and SPEAKING_SHARE of
the calls to speak, so long would all of them take together; as they come at any time, the slowest
take longer, as a crowd's do, or as they did of late if that was worse. One more call fits when
this stays within DEADLINE_SHARE of the second. What was never measured counts nothing, and the
first call always fits: it makes nobody late.
"""

import logging
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

log = logging.getLogger(__name__)

Rank: TypeAlias = Literal[0, 1, 2]
"""A unit's work, a half-duplex call's, a chat's."""
Shown: TypeAlias = Literal["all", "thumbnail", "none"]
"""What a call sees of its pictures."""

UNIT_S = 1.0
PATIENCE_S: Mapping[Rank, float] = {0: 0.0, 1: 0.1, 2: 0.25}
STARVED_S = 5.0
SPEAKING_SHARE = 0.5
DEADLINE_SHARE = 0.8
RECOVERED_UNITS = 8
ENOUGH = 16
"""Fewer measurements tell nothing: the first ones are of a machine that is not warm yet."""
_SHOWN: tuple[Shown, ...] = ("all", "thumbnail", "none", "none")
_HELD = 3  # the level from which on chats are held
_NEWEST = 0.1
"""The weight of the newest measurement in an average."""
_CROWD = 1.5
"""By so much more a unit of many calls takes than if all came at once: it waits for batches that
were begun without it, and shares the device with what others are at. In virtual time, with works as
large as a GPU's, it was 1.0 to 1.4 for 8 to 128 calls at random phases."""
_WATCHED_UNITS = 256
_LATEST_UNITS = 64
_WATCHED_ENDS = 32
_LONGEST_RETRY_S = 600.0


# ---- whose work is next -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Waiting:
    """A work that waits for its lane."""

    rank: Rank
    order: int
    """Of the job that it belongs to: who came first, among equals."""
    kind: str
    """Works of one kind go best together."""
    size: int = 1
    """How long it makes a batch, beside others of its kind: positions."""
    due_s: float = math.inf
    since_s: float = 0.0
    """When it began to wait."""


def line_up(
    waiting: Sequence[Waiting],
    now_s: float,
    *,
    spare_s: float = math.inf,
    takes_s: float = 0.0,
    held: bool = False,
) -> list[int]:
    """The places of those that may go next on their lane, the first one first.

    `spare_s`: how long units can wait; `takes_s`: how long a batch that is
    no unit's is expected to take. `held`: chats are, as long as there are units.
    """
    places = sorted(range(len(waiting)), key=lambda at: _urgency(waiting[at]))
    units = [at for at in places if not waiting[at].rank]
    spared = takes_s <= spare_s
    others = [
        at
        for at in places
        if waiting[at].rank and not (held and waiting[at].rank == 2 and spare_s < math.inf)
    ]
    aged = [at for at in others if _has_aged(waiting[at], now_s, spared=spared)]
    if aged:
        leader = min(aged, key=lambda at: waiting[at].since_s)
    elif units:
        leader = units[0]
    elif others and spared:
        leader = others[0]
    else:
        return []
    return [leader, *_company(waiting, leader, units, others)]


def _urgency(one: Waiting) -> tuple[int, float, int]:
    return one.rank, one.due_s, one.order


def _has_aged(one: Waiting, now_s: float, *, spared: bool) -> bool:
    waited_s = now_s - one.since_s
    return waited_s > STARVED_S or (spared and waited_s > PATIENCE_S[one.rank])


def _company(
    waiting: Sequence[Waiting], leader: int, units: Iterable[int], others: Iterable[int]
) -> list[int]:
    first = waiting[leader]
    rest = [at for at in units if at != leader]
    alike = [at for at in rest if waiting[at].kind == first.kind]
    unlike = [at for at in rest if waiting[at].kind != first.kind]
    light = [
        at
        for at in others
        if at != leader and waiting[at].kind == first.kind and waiting[at].size <= first.size
    ]
    # Behind a leader that is no unit's, those of its own sort come before units of other kinds:
    # these are another batch, which the lane would make of them anyway.
    return [*alike, *light, *unlike] if first.rank else [*alike, *unlike, *light]


# ---- what things cost ---------------------------------------------------------------------------


class Costs:
    """Seconds of a batch by its kind and size, averaged exponentially."""

    def __init__(self) -> None:
        self._seconds: dict[str, dict[int, float]] = {}
        self._times: dict[str, int] = {}

    def took(self, kind: str, size: int, seconds: float, *, times: int = 1) -> None:
        """A batch of so many was done; it had the device for so long, the mean of so many times."""
        sizes = self._seconds.setdefault(kind, {})
        before = sizes.get(size, seconds)
        sizes[size] = before + (1 - (1 - _NEWEST) ** times) * (seconds - before)
        self._times[kind] = self._times.get(kind, 0) + times

    def expected_s(self, kind: str, size: float) -> float:
        """What so many take together; 0 before that kind was measured ENOUGH times.

        On the straight line through all sizes that were measured; where that was only one, in
        proportion to it.
        """
        if self._times.get(kind, 0) < ENOUGH:
            return 0.0
        start_s, each_s = _line([*self._seconds[kind].items()])
        return start_s + each_s * size


def _line(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """What a batch takes at least, and what one more adds: neither is less than nothing."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    if not spread:
        return 0.0, mean_y / mean_x
    each = max(0.0, sum((x - mean_x) * (y - mean_y) for x, y in points) / spread)
    start = mean_y - each * mean_x
    return (start, each) if start >= 0 else (0.0, mean_y / mean_x)


# ---- whether one more fits ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Demand:
    """So many calls, and so many of them with a camera."""

    calls: int
    seeing: int = 0


@dataclass(slots=True)
class Profile:
    """How many works of each kind a unit asks for: every unit, one with pictures, one that speaks.

    `decode` is averaged over units that spoke; the others are what the model is.
    """

    kinds: tuple[str, ...] = ("audio", "prefill")
    seeing: tuple[str, ...] = ("vision",)
    speaking: tuple[str, ...] = ("speech", "vocoder")
    repeated: str = "decode"
    decode: float = 6.0

    def spoke(self, count: int) -> None:
        """A unit that spoke took so many steps."""
        self.decode += _NEWEST * (count - self.decode)


class Admission:
    """Whether one more call would make others late, and when to ask again."""

    def __init__(self, costs: Costs) -> None:
        self._costs = costs
        self._took: deque[float] = deque(maxlen=_LATEST_UNITS)
        self._slower: deque[float] = deque(maxlen=_WATCHED_UNITS)
        self._ended: deque[float] = deque(maxlen=_WATCHED_ENDS)
        self.profile = Profile()

    def unit_over(self, took_s: float, decode_steps: int, present: Demand) -> None:
        """A unit was done so long after it came, among those calls; 0 steps: it listened."""
        self._took.append(took_s)
        if (reckoned_s := self.unit_s(present)) > 0:
            self._slower.append(took_s / reckoned_s)
        if decode_steps:
            self.profile.spoke(decode_steps)

    def ended(self, lasted_s: float) -> None:
        """A call or chat is over, and its slot is free."""
        self._ended.append(lasted_s)

    def unit_s(self, demand: Demand) -> float:
        """How long until all are done where all units come at once and nothing goes on beside."""
        profile, speaking = self.profile, demand.calls * SPEAKING_SHARE
        asked = [(kind, float(demand.calls), 1.0) for kind in profile.kinds]
        asked += [(kind, float(demand.seeing), 1.0) for kind in profile.seeing]
        asked += [(kind, speaking, 1.0) for kind in profile.speaking]
        asked += [(profile.repeated, speaking, profile.decode)]
        return sum(
            self._costs.expected_s(kind, max(1.0, size)) * times
            for kind, size, times in asked
            if size > 0
        )

    def estimate_s(self, demand: Demand) -> float:
        """What the slowest units of these calls take."""
        expected = 1 + _CROWD * (1 - 1 / max(1, demand.calls))
        return self.unit_s(demand) * max(expected, _slowest(self._slower))

    def fits(self, demand: Demand) -> bool:
        """Whether everybody's units would be in time."""
        return demand.calls <= 1 or self.estimate_s(demand) <= DEADLINE_SHARE * UNIT_S

    def margin_s(self) -> float:
        """By how much nineteen of twenty units of late were done before they should be."""
        return DEADLINE_SHARE * UNIT_S - _slowest(self._took)

    def retry_after_s(self, ages_s: Sequence[float]) -> float:
        """When the first of those that are there now, so old, has probably ended.

        How long they last is what fits best to those that ended and those that have not yet, with
        no memory of their age: the first of n ends n times sooner than one alone.
        """
        ended = [*self._ended]
        mean_s = (sum(ended) + sum(ages_s)) / max(1, len(ended))
        return min(max(1.0, mean_s / max(1, len(ages_s))), _LONGEST_RETRY_S)


def _slowest(values: Iterable[float]) -> float:
    """What nineteen of twenty do not exceed; 0 of fewer than ENOUGH."""
    ordered = sorted(values)
    return ordered[len(ordered) * 19 // 20] if len(ordered) >= ENOUGH else 0.0


# ---- when units fall behind ---------------------------------------------------------------------


@dataclass(slots=True)
class _Strain:
    level: int = 0
    in_time: int = 0


@dataclass(slots=True)
class Relief:
    """What is left out for the sake of calls whose units are late."""

    _calls: dict[int, _Strain] = field(default_factory=dict)

    def unit_over(self, call: int, late_s: float, *, sees: bool) -> None:
        """A unit of `call` was done so long after it was due; before, where that is negative."""
        strain = self._calls.setdefault(call, _Strain())
        if late_s <= 0:
            self._recover(call, strain)
            return
        strain.in_time = 0
        before = strain.level
        strain.level = min(strain.level + 1, _HELD) if sees else _HELD
        if strain.level != before:
            log.warning("call %d is %.1f s late: %s", call, late_s, _told(strain.level))

    def shown(self, call: int) -> Shown:
        """What `call` sees."""
        strain = self._calls.get(call)
        return _SHOWN[strain.level] if strain is not None else "all"

    @property
    def holds_chats(self) -> bool:
        """Whether chats wait until no unit does."""
        return any(strain.level == _HELD for strain in self._calls.values())

    def forget(self, call: int) -> None:
        """The call is over."""
        self._calls.pop(call, None)

    def _recover(self, call: int, strain: _Strain) -> None:
        strain.in_time += 1
        if strain.level and strain.in_time >= RECOVERED_UNITS:
            strain.level, strain.in_time = strain.level - 1, 0
            log.warning("call %d is in time again: %s", call, _told(strain.level))


def _told(level: int) -> str:
    return (
        "everything is seen",
        "its pictures are seen as thumbnails",
        "its pictures are not seen",
        "its pictures are not seen, and chats are held",
    )[level]
