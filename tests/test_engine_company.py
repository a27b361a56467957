"""Conversations in any company: whoever shares a batch or a lane with whom, each says what it says
alone."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from agent.chat_types import ChatDone, ChatMessage, ChatRequest, ChatText
from agent.commands import AddText, Interrupt, Pause, Resume
from agent.duplex.engine import DuplexEngine
from agent.types import (
    CallMode,
    Listened,
    SessionSettings,
    SpeechEnded,
    SpeechStarted,
    TextDelta,
    VideoFrame,
)
from tests.rig.late_desk import Desk
from tests.rig.late_lanes import Watch
from tests.rig.scripted_call import SETTINGS, Beeper
from tests.rig.tiny_mind import LISTEN, says, second

# ---- random schedules ---------------------------------------------------------------------------


SHOWN = VideoFrame(np.full((24, 32, 3), 90, np.uint8), 0)


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
    for _ in range(chance.randrange(4, 7)):
        count = chance.choice((1, 1, 2))
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
            engine.push(number, second(index, (SHOWN,) if index % 3 == 1 else ()))

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
        *(chatter(one.seed) for one in programs.values()), watch=watch, slots=3, vocoder=Beeper()
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


@pytest.mark.parametrize("seed", range(2))
def test_calls_in_any_company_say_what_each_says_alone_to_the_bit(seed: int) -> None:
    chance = random.Random(seed)
    programs = {number: made_program(chance) for number in range(1, 4)}
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
    assert desk.slots.free == len(ends)


def ask(text: str) -> ChatRequest:
    message = ChatMessage("user", (ChatText(text),))
    return ChatRequest((message,), max_tokens=10, seed=1)


def say_a_turn(engine: DuplexEngine, number: int) -> None:
    engine.push(number, SpeechStarted(100))
    engine.push(number, second(0))
    engine.push(number, SpeechEnded(15_000))


def answered(*wanted: int, watch: Watch | None = None) -> Desk:
    """Two chats, a half-duplex call and a duplex one, as far as they are wanted."""
    desk = Desk(watch=watch, slots=5)
    for number in wanted:
        if number < 3:
            desk.engine.chat(number, ask("hi" * number))
        else:
            mode: CallMode = "half_duplex" if number == 3 else "duplex"
            desk.engine.open(number, replace(SETTINGS, mode=mode))
            say_a_turn(desk.engine, number)
    while desk.engine.idle_s() == 0:
        desk.step()
        if sum(isinstance(event, TextDelta) for event in desk.of(3)) == 2:
            desk.engine.finish(3)  # it finds no end
    return desk


def test_half_duplex_turns_and_chats_are_answered_as_each_is_alone() -> None:
    watch = Watch(random.Random(1))
    together = answered(1, 2, 3, 4, watch=watch)
    for number in (1, 2, 3, 4):
        assert together.of(number) == answered(number).of(number)
    assert isinstance(together.of(1)[-1], ChatDone) and together.of(4) == [Listened(0)]
    assert len(together.of(3)) > 3 and max(watch.sizes) > 1
