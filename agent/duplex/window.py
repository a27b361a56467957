"""What to forget when a conversation grows long: bookkeeping over whole units, without torch.

The cache of a conversation is [prefix][previous][suffix][unit][unit]…; prefix and suffix are the
system prompt around `previous`, which is empty unless text of forgotten units is remembered there.

- off: nothing is forgotten; the cache overflows one day.
- basic: above `high_tokens` the oldest units go, until no more than `low_tokens` are left.
- context: more than `max_units` units are too many; what the agent said in those that go is kept as
  text in `previous`, of which the newest `previous_max_tokens` stay.

What stays in the cache was computed in sight of what has gone; it only moves to new positions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from agent.duplex.tokens import without_specials

WindowMode: TypeAlias = Literal["off", "basic", "context"]
PREVIOUS_MARKER = "\n\nprevious: "
"""Written before the remembered text."""


@dataclass(frozen=True, slots=True)
class WindowSettings:
    """How much is kept."""

    mode: WindowMode = "basic"
    high_tokens: int = 4000
    low_tokens: int = 3500
    max_units: int = 24
    previous_max_tokens: int = 500

    def __post_init__(self) -> None:
        if not 0 < self.low_tokens <= self.high_tokens:
            raise ValueError(f"low_tokens {self.low_tokens} of high_tokens {self.high_tokens}")
        if self.max_units < 1 or self.previous_max_tokens < 0:
            raise ValueError("at least one unit is kept")


@dataclass(frozen=True, slots=True)
class UnitSpan:
    """One unit in the cache: `<unit>` … `</unit>`.

    `audio` and `pictures` are vectors in it; `generated` tokens are the agent's own, in its `turn`.
    """

    length: int
    listened: bool
    said: tuple[int, ...] = ()
    audio: int = 0
    pictures: int = 0
    generated: int = 0
    turn: int = 0


@dataclass(frozen=True, slots=True)
class Cut:
    """What to do to the cache: what begins at `start` moves to `to`; then, where `rewrite` is not
    None, the positions from `at` to `to` are filled with these ids anew."""

    units: int
    """How many of the oldest units go."""
    start: int
    to: int
    at: int
    rewrite: tuple[int, ...] | None = None


class Window:
    """The layout of one conversation's cache."""

    def __init__(
        self,
        settings: WindowSettings,
        prefix_tokens: int,
        suffix: Sequence[int] = (),
        marker: Sequence[int] = (),
    ) -> None:
        """`prefix_tokens` stand before `previous`, the ids `suffix` behind it; `marker` are the
        ids of PREVIOUS_MARKER."""
        self.settings = settings
        self._prefix_tokens = prefix_tokens
        self._suffix = tuple(suffix)
        self._marker = tuple(marker)
        self._remembered: tuple[int, ...] = ()
        self._units: list[UnitSpan] = []

    @property
    def units(self) -> tuple[UnitSpan, ...]:
        """Oldest first."""
        return tuple(self._units)

    @property
    def previous(self) -> tuple[int, ...]:
        """What stands between prefix and suffix: marker and remembered text, or nothing."""
        return self._marker + self._remembered if self._remembered else ()

    @property
    def protected(self) -> int:
        """Positions before the first unit."""
        return self._prefix_tokens + len(self.previous) + len(self._suffix)

    @property
    def length(self) -> int:
        """Positions in all, every unit closed."""
        return self.protected + sum(unit.length for unit in self._units)

    def copy(self) -> "Window":
        other = Window(self.settings, self._prefix_tokens, self._suffix, self._marker)
        other._remembered, other._units = self._remembered, list(self._units)
        return other

    def continuing(self, other: "Window") -> "Window":
        """This layout with the units of `other` and what it remembers."""
        joined = self.copy()
        joined._remembered, joined._units = other._remembered, list(other._units)
        return joined

    def add(self, unit: UnitSpan) -> None:
        """A unit that was closed, or will be before anything is cut."""
        self._units.append(unit)

    def replace_newest(self, units: Iterable[UnitSpan]) -> None:
        """Put these in the place of as many of the newest units: a turn was rewritten."""
        newest = list(units)
        self._units[len(self._units) - len(newest) :] = newest

    def drop_newest(self) -> None:
        """The newest unit never was."""
        self._units.pop()

    def cut(self) -> Cut | None:
        """What is to be forgotten now; None when all fits. From here on the bookkeeping says so."""
        settings = self.settings
        if settings.mode == "basic" and self.length > settings.high_tokens:
            return self._drop(self._units_above(settings.low_tokens), 0)
        if settings.mode == "context" and len(self._units) > settings.max_units:
            gone = len(self._units) - settings.max_units
            return self._drop(gone, settings.previous_max_tokens)
        return None

    def cut_to(self, tokens: int) -> Cut | None:
        """The same because a slot holds no more than `tokens`, whatever the rule says.

        The remembered text may take a quarter of that.
        """
        if self.settings.mode == "off" or self.length <= tokens:
            return None
        most = min(self.settings.previous_max_tokens, tokens // 4)
        count = self._units_above(tokens)
        while count < len(self._units) - 1 and self._length_without(count, most) > tokens:
            count += 1  # what is remembered of a unit takes room too
        return self._drop(count, most)

    def _length_without(self, count: int, most: int) -> int:
        tried = self.copy()
        tried._drop(count, most)
        return tried.length

    def _units_above(self, tokens: int) -> int:
        """How many of the oldest units must go; the newest stays whatever it takes."""
        length, count = self.length, 0
        while length > tokens and count < len(self._units) - 1:
            length -= self._units[count].length
            count += 1
        return count

    def _drop(self, count: int, most_previous: int) -> Cut | None:
        """Let the `count` oldest units go, and remember so many tokens at most."""
        if not count:
            return None
        gone, self._units = self._units[:count], self._units[count:]
        start = self.protected + sum(unit.length for unit in gone)
        before = self.previous
        if self.settings.mode == "context":
            self._remember(gone, most_previous)
        changed = self.previous != before
        return Cut(
            units=count,
            start=start,
            to=self.protected,
            at=self._prefix_tokens if changed else self.protected,
            rewrite=self.previous + self._suffix if changed else None,
        )

    def _remember(self, gone: Iterable[UnitSpan], most: int) -> None:
        """Special tokens are left out, ends of turns with them: so the model was trained."""
        said = [token for unit in gone if not unit.listened for token in unit.said]
        kept = [*self._remembered, *without_specials(said)]
        self._remembered = tuple(kept[len(kept) - most :] if len(kept) > most else kept)
