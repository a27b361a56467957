"""What a call tells its engine: in order, and without anybody who tells it waiting."""

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest

from agent.commands import AddPicture, AddText, Command, ForceListen, Interrupt, Pause
from agent.engine_line import MAX_WAITING, EngineLine, Refusal, Told
from agent.errors import CapacityError, EngineError, RequestError, UnsupportedError
from agent.types import SpeechEnded, SpeechStarted, Unit
from tests.rig.call_parts import ScriptedConversation, settle

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


class Line:
    """An `EngineLine` that runs, and what it said of refusals."""

    def __init__(self) -> None:
        self.engine = ScriptedConversation()
        self.refused: list[tuple[Refusal, Command]] = []
        self.line = EngineLine(self.engine, lambda *refusal: self.refused.append(refusal))
        self.running = asyncio.ensure_future(self.line.run())

    async def tell(self, *items: Told) -> None:
        for item in items:
            self.line.tell(item)
        await settle()


@pytest.fixture
async def line() -> AsyncIterator[Line]:
    line = Line()
    await settle()
    yield line
    line.running.cancel()
    await asyncio.wait((line.running,))


def unit(index: int) -> Unit:
    return Unit(index, np.zeros(16_000, np.float32), 16_000)


async def test_units_speech_and_commands_arrive_in_the_order_in_which_they_were_told(
    line: Line,
) -> None:
    items: list[Told] = [
        SpeechStarted(0),
        unit(0),
        Interrupt(1, 40),
        SpeechEnded(1600),
        Pause(),
        unit(1),
    ]
    await line.tell(*items)
    assert [id(told) for told in line.engine.told] == [id(item) for item in items]


async def test_an_engine_that_never_returns_keeps_nobody_who_tells_it_something(
    line: Line,
) -> None:
    line.engine.stuck = True
    await line.tell(Pause())  # the one that the engine holds
    for index in range(MAX_WAITING):
        line.line.tell(unit(index))
    with pytest.raises(EngineError, match="no longer takes"):
        line.line.tell(unit(MAX_WAITING))
    assert not line.running.done()


async def test_an_engine_that_comes_back_gets_all_that_waited(line: Line) -> None:
    for index in range(MAX_WAITING):
        line.line.tell(unit(index))
    await settle()
    await line.tell(*(unit(index) for index in range(MAX_WAITING, 2 * MAX_WAITING)))
    indices = [told.index for told in line.engine.told if isinstance(told, Unit)]
    assert indices == [*range(2 * MAX_WAITING)]


async def test_a_refused_command_is_named_and_the_next_ones_are_carried_out(line: Line) -> None:
    line.engine.refuses = error = UnsupportedError("cannot pause")
    pauses = Pause(), Pause()
    await line.tell(*pauses)
    assert [(told, id(command)) for told, command in line.refused] == [
        (error, id(pause)) for pause in pauses
    ], "equal commands are told apart by which they are"
    line.engine.refuses = None
    await line.tell(ForceListen(True), SpeechStarted(0))
    assert line.engine.told[2:] == [ForceListen(True), SpeechStarted(0)]
    assert len(line.refused) == 2


async def test_no_room_for_a_command_is_a_refusal_too(line: Line) -> None:
    line.engine.refuses = full = CapacityError("no slot", retry_after_s=2.0)
    pause = Pause()
    await line.tell(pause)
    assert line.refused == [(full, pause)]
    assert not line.running.done()


async def test_of_an_item_nothing_follows_what_was_refused(line: Line) -> None:
    line.engine.refuses = error = RequestError("no picture")
    picture, other = AddPicture("a", b""), AddText("b", "user", "Yes?")
    await line.tell(picture, AddText("a", "user", "What is this?"))
    assert line.engine.told == [picture]
    assert line.refused == [(error, picture)]
    line.engine.refuses = None
    await line.tell(other, AddText("a", "user", "Again."))
    assert line.engine.told == [picture, other, AddText("a", "user", "Again.")]


async def test_the_engine_is_told_what_a_command_has_become_and_the_teller_what_he_said() -> None:
    engine, refused = ScriptedConversation(), list[object]()
    engine.refuses = RequestError("no")
    line = EngineLine(engine, lambda *what: refused.append(what[1]), lambda _: ForceListen(True))
    line.tell(pause := Pause())
    running = asyncio.ensure_future(line.run())
    await settle()
    running.cancel()
    await asyncio.wait((running,))
    assert engine.told == [ForceListen(True)]
    assert refused == [pause]


async def test_an_engine_that_fails_ends_the_line() -> None:
    class Broken(ScriptedConversation):
        async def push(self, item: Unit | SpeechStarted | SpeechEnded) -> None:
            raise EngineError("out of memory")

    broken = EngineLine(Broken(), lambda *_: None)
    broken.tell(SpeechStarted(0))
    with pytest.raises(EngineError, match="out of memory"):
        await broken.run()


async def test_a_request_error_about_a_unit_is_a_failure_of_the_engine() -> None:
    class Confused(ScriptedConversation):
        async def push(self, item: Unit | SpeechStarted | SpeechEnded) -> None:
            raise RequestError("no client asked for this")

    refused: list[object] = []
    confused = EngineLine(Confused(), lambda *refusal: refused.append(refusal))
    confused.tell(SpeechStarted(0))
    with pytest.raises(RequestError):
        await confused.run()
    assert refused == []
