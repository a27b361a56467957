"""What calls and chats say in `bench.engine`: written beforehand, since random weights decide at
random.

Nothing is left out for it: every token is drawn as ever, and then it is what was written. So the
lanes that an engine is served with do their work, and only its answers are replaced.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from agent.duplex.lanes import Batch, Failures, Lane
from agent.duplex.sampling import Drawing
from agent.duplex.tokens import Token
from agent.duplex.work import Choose, Read, Speak, Work

SPOKEN_WORDS = 5
"""Of a unit that speaks; its speech has 25 tokens."""
TURN_UNITS = 5
_FIRST_WORD = 1000
_MOST_LISTENING = 1000
"""Units between two turns, at a share of speech that is next to nothing."""

Plan: TypeAlias = Iterator[tuple[int, ...]]
"""The tokens of each unit in which the model is asked."""


def spoken_unit(*, ends: bool) -> tuple[int, ...]:
    """A unit that says five words, and `ends` its turn or not."""
    words = range(_FIRST_WORD, _FIRST_WORD + SPOKEN_WORDS)
    return (Token.SPEAK, *words, *([Token.TURN_EOS] if ends else []), Token.CHUNK_EOS)


def cycle(speak: float, turn_units: int = TURN_UNITS) -> list[tuple[int, ...]]:
    """Units of which the share `speak` is spoken: first it listens, then it has a turn."""
    if not 0 <= speak <= 1:
        raise ValueError(f"a share of {speak} cannot be spoken")
    if not speak:
        return [(Token.LISTEN,)]
    listened = min(_MOST_LISTENING, round(turn_units * (1 - speak) / speak))
    turn = [spoken_unit(ends=index == turn_units - 1) for index in range(turn_units)]
    return [(Token.LISTEN,)] * listened + turn


def plans(speak: float, turn_units: int = TURN_UNITS) -> Callable[[int], Plan]:
    """By slot: all go through the same cycle, each from another place on."""
    units = cycle(speak, turn_units)

    def of_slot(slot: int) -> Plan:
        # By a number that has nothing in common with the cycle's length of ten.
        return itertools.islice(itertools.cycle(units), slot * 7 % len(units), None)

    return of_slot


class WrittenAnswers:
    """What chats say, one chat after the other: each what `says` is when its answer begins."""

    def __init__(self) -> None:
        self.says: tuple[int, ...] = ()
        """The tokens before the answer's end."""
        self._drawing: object = self
        self._left: Iterator[int] = iter(())

    def begin(self, drawing: Drawing) -> int:
        """The first token of the answer that is drawn with that."""
        self._drawing, self._left = drawing, iter(self.says)
        return next(self._left, int(Token.IM_END))

    def go_on(self, drawing: Drawing) -> int | None:
        """The next one of the answer that was begun last; None: it is drawn with another."""
        return next(self._left, int(Token.IM_END)) if drawing is self._drawing else None


class DecidedLane:
    """A lane of the LLM whose answers become those of a plan, one for each slot, and what chats
    say those of `answers`.

    A unit begins where more than one position is read and a token is wanted.
    """

    def __init__(
        self, lane: Lane, plan_of: Callable[[int], Plan], answers: WrittenAnswers | None = None
    ) -> None:
        self._lane = lane
        self._plan_of = plan_of
        self._answers = answers or WrittenAnswers()
        self._plans: dict[int, Plan] = {}
        self._units: dict[int, Iterator[int]] = {}

    def count(self, works: Sequence[Work]) -> int:
        """See `Lane`."""
        return self._lane.count(works)

    def begin(self, works: Sequence[Work]) -> Batch:
        """See `Lane`."""
        return _DecidedBatch(self._lane.begin(works), works, self._decide)

    def _decide(self, work: Work) -> None:
        # Only chats choose a token for what was read before: the first one behind the prompt.
        if isinstance(work, Choose):
            work.token = self._answers.begin(work.choice.drawing)
        elif isinstance(work, Read) and work.choice is not None:
            answer = self._answers.go_on(work.choice.drawing)
            work.token = self._of_unit(work) if answer is None else answer

    def _of_unit(self, work: Read) -> int:
        slot = work.stream.slot
        if work.count > 1:
            if slot not in self._plans:
                self._plans[slot] = self._plan_of(slot)
            self._units[slot] = iter(next(self._plans[slot]))
        return next(self._units[slot], int(Token.CHUNK_EOS))


@dataclass(frozen=True, slots=True)
class _DecidedBatch:
    batch: Batch
    works: Sequence[Work]
    decide: Callable[[Work], None]

    @property
    def done(self) -> bool:
        """See `Batch`."""
        return self.batch.done

    def finish(self) -> Failures:
        """See `Batch`."""
        failures = self.batch.finish()
        for place, work in enumerate(self.works):
            if place not in failures:
                self.decide(work)
        return failures


@dataclass(frozen=True, slots=True)
class WholeSeconds:
    """A lane of the speech LM that never ends a unit's speech early: random weights might.

    25 tokens then come of every unit that speaks.
    """

    lane: Lane

    def count(self, works: Sequence[Work]) -> int:
        """See `Lane`."""
        return self.lane.count(works)

    def begin(self, works: Sequence[Work]) -> Batch:
        """See `Lane`."""
        for work in works:
            if isinstance(work, Speak):
                work.may_end = False
        return self.lane.begin(works)
