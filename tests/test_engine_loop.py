"""The engine's loop over lanes that take their time: who shares a batch with whom changes nothing,
and no slot is touched while something in it is under way."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from agent.clock import Clock
from agent.duplex.engine import DuplexEngine
from agent.types import (
    Abilities,
    AddText,
    Interrupt,
    Pause,
    Resume,
    SessionSettings,
    SpeechAudio,
    UnitReport,
)
from tests.rig.late_lanes import Watch, late
from tests.rig.scripted_call import SETTINGS, Beeper, parts
from tests.rig.tiny_mind import LISTEN, says, second

Event = tuple[int, Any]


class StoppedClock(Clock):
    """Time stands still unless it is moved."""

    time_s = 100.0

    def now_s(self) -> float:
        return self.time_s


class Desk:
    """An engine; on late lanes where it is given a `watch`."""

    def __init__(
        self,
        *scripts: Iterator[int],
        watch: Watch | None = None,
        slots: int = 2,
        **changes: Any,
    ) -> None:
        self.clock = StoppedClock()
        waiting = [*scripts]
        made = parts(slots=slots, **changes)
        if scripts:
            made = replace(made, script=lambda: waiting.pop(0))
        runner = replace(made.runner, clock=self.clock)
        self.slots = runner.slots
        made = replace(made, runner=late(runner, watch) if watch else runner)
        self.engine = DuplexEngine(
            made, Abilities(duplex=True, chat=True), self.clock, pause=lambda seconds: None
        )
        self.said: list[Event] = []

    def step(self) -> None:
        self.said += self.engine.work()

    def work(self) -> None:
        while self.engine.idle_s() == 0:
            self.step()

    def is_at_rest(self, number: int) -> bool:
        line = self.engine._calls.get(number)
        return line is None or not line.has_work

    def of(self, number: int) -> list[Any]:
        """All that was said, but for how long it took."""
        events = [event for to, event in self.said if to == number]
        return [
            replace(one, samples=one.samples.tobytes()) if isinstance(one, SpeechAudio) else one
            for one in events
            if not isinstance(one, UnitReport)
        ]


# ---- random schedules ---------------------------------------------------------------------------


@dataclass
class Program:
    """What one call is told, in order; each step is taken when the one before has been obeyed.

    A `hurried` one is taken at any time after the unit before it was begun.
    """

    settings: SessionSettings
    seed: int
    steps: list[Callable[[DuplexEngine, int], None]] = field(default_factory=list)
    hurried: set[int] = field(default_factory=set)
    turn: int = 0
    """The newest turn before the last unit: what follows is told of that one."""


def chatter(seed: int) -> Iterator[int]:
    """What a model might decide, without end."""
    chance = random.Random(seed)
    while True:
        letters = [chance.choice("abcdefgh") for _ in range(chance.randrange(1, 6))]
        speaks = says("".join(letters), ends=chance.random() < 0.4)
        yield from speaks if chance.random() < 0.6 else LISTEN


def made_program(chance: random.Random) -> Program:
    made = Program(SETTINGS, chance.randrange(1 << 30))
    heard = 0
    for _ in range(chance.randrange(6, 12)):
        count = chance.choice((1, 1, 1, 2))
        made.steps.append(_hear(made, heard, count))
        heard += count
        if heard > 3 and chance.random() < 0.3:
            made.hurried.add(len(made.steps))
            made.steps.append(_interrupt(made, chance.randrange(1500)))
        elif chance.random() < 0.2:
            made.steps.append(_type(chance.choice(("hi", "what is it"))))
        elif chance.random() < 0.1:
            made.steps += [_pause, _resume]
    return made


def _hear(made: Program, start: int, count: int) -> Callable[[DuplexEngine, int], None]:
    def push(engine: DuplexEngine, number: int) -> None:
        made.turn = engine._calls[number].voice.turn
        for index in range(start, start + count):
            engine.push(number, second(index))

    return push


def _interrupt(made: Program, heard_ms: int) -> Callable[[DuplexEngine, int], None]:
    return lambda engine, number: engine.control(number, Interrupt(made.turn, heard_ms))


def _type(text: str) -> Callable[[DuplexEngine, int], None]:
    return lambda engine, number: engine.control(number, AddText(text, "user", text))


def _pause(engine: DuplexEngine, number: int) -> None:
    engine.control(number, Pause())


def _resume(engine: DuplexEngine, number: int) -> None:
    engine.control(number, Resume())


def run_alone(made: Program, number: int) -> list[Any]:
    desk = Desk(chatter(made.seed), slots=1, vocoder=Beeper())
    desk.engine.open(number, made.settings)
    for step in made.steps:
        desk.work()
        step(desk.engine, number)
    desk.work()
    return desk.of(number)


def run_together(
    programs: dict[int, Program], chance: random.Random, watch: Watch, ends: dict[int, int]
) -> Desk:
    """All at once, at random phases; `ends` says after how many steps a call is closed."""
    desk = Desk(
        *(chatter(one.seed) for one in programs.values()), watch=watch, slots=5, vocoder=Beeper()
    )
    for number, made in programs.items():
        desk.engine.open(number, made.settings)
    at = dict.fromkeys(programs, 0)
    while at:
        for number in list(at):
            made = programs[number]
            if at[number] == min(len(made.steps), ends.get(number, 1 << 30)):
                if number in ends:
                    desk.engine.finish(number)
                del at[number]
            elif chance.random() < 0.4 and _may_go_on(desk, number, made, at[number]):
                made.steps[at[number]](desk.engine, number)
                at[number] += 1
        desk.step()
    desk.work()
    return desk


def _may_go_on(desk: Desk, number: int, made: Program, at: int) -> bool:
    if desk.is_at_rest(number):
        return True
    line = desk.engine._calls[number]
    return at in made.hurried and not line.call._units and line.task is not None


@pytest.mark.parametrize("seed", range(4))
def test_calls_in_any_company_say_what_each_says_alone_to_the_bit(seed: int) -> None:
    chance = random.Random(seed)
    programs = {number: made_program(chance) for number in range(1, 6)}
    ends = {number: chance.randrange(2, 5) for number in programs if chance.random() < 0.3}
    watch = Watch(chance)
    desk = run_together(programs, chance, watch, ends)
    for number, made in programs.items():
        alone, said = run_alone(made, number), desk.of(number)
        if number in ends:
            assert said == alone[: len(said)]
        else:
            assert said == alone
    assert watch.together > 1 and any(size > 1 for size in watch.sizes)
    assert not any(watch.busy.values()) or set(+watch.busy) <= {-1}
    assert desk.slots.free == 5 - len(programs) + len(ends)
