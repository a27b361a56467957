"""Events on their way to a socket: in order, bounded, and never waited for by whoever sends."""

import asyncio

import pytest

from agent.transport import websocket_writer
from agent.transport.websocket_writer import MAX_QUEUED_BYTES, EventWriter
from tests.rig.call_parts import settle

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


class Wire:
    """A socket that takes an event when it is let, and notes it."""

    def __init__(self, *, open_: bool = True) -> None:
        self.taken: list[str] = []
        self.open = asyncio.Event()
        self.broken = False
        if open_:
            self.open.set()

    async def send_str(self, data: str) -> None:
        await self.open.wait()
        if self.broken:
            raise ConnectionResetError
        self.taken.append(data)


class Reader:
    """Whoever is told that a client does not read."""

    def __init__(self) -> None:
        self.given_up = 0

    def stuck(self) -> None:
        self.given_up += 1


async def test_events_are_written_in_order_also_those_from_before_there_was_a_socket() -> None:
    reader, wire = Reader(), Wire()
    writer = EventWriter(reader.stuck)
    writer.send("0")
    writer.begin(wire)
    for number in range(1, 50):
        writer.send(str(number))
    await settle()
    writer.send("50")
    await writer.finish()
    assert wire.taken == [str(number) for number in range(51)]
    writer.send("late")
    assert not reader.given_up and "late" not in wire.taken


async def test_beyond_its_bound_a_client_is_given_up_once_and_nothing_is_kept() -> None:
    reader, wire = Reader(), Wire(open_=False)
    writer = EventWriter(reader.stuck)
    writer.begin(wire)
    event = "x" * (MAX_QUEUED_BYTES // 8)
    for _ in range(8):
        writer.send(event)
    assert not reader.given_up
    for _ in range(3):
        writer.send(event)
    assert reader.given_up == 1
    wire.open.set()
    await writer.finish()
    assert len(wire.taken) <= 1, "the one that was being written"


async def test_an_event_that_is_not_taken_in_time_gives_the_client_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(websocket_writer, "STUCK_S", 0.01)
    reader, wire = Reader(), Wire(open_=False)
    writer = EventWriter(reader.stuck)
    writer.begin(wire)
    writer.send("never taken")
    async with asyncio.timeout(60):
        while not reader.given_up:
            await asyncio.sleep(0.005)
    await writer.room()
    await writer.finish()
    assert wire.taken == []


async def test_there_is_room_again_when_most_of_it_is_written() -> None:
    reader, wire = Reader(), Wire(open_=False)
    writer = EventWriter(reader.stuck)
    writer.begin(wire)
    await writer.room()
    for _ in range(6):
        writer.send("x" * (MAX_QUEUED_BYTES // 8))
    waiting = asyncio.ensure_future(writer.room())
    await settle()
    assert not waiting.done()
    wire.open.set()
    await settle()
    assert waiting.done() and not reader.given_up
    await writer.finish()


async def test_a_broken_connection_keeps_nobody_waiting() -> None:
    reader, wire = Reader(), Wire()
    wire.broken = True
    writer = EventWriter(reader.stuck)
    writer.begin(wire)
    writer.send("lost")
    await settle()
    await writer.room()
    await writer.finish()
    assert not reader.given_up, "whoever reads from it hears of its end"


async def test_what_is_never_taken_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(websocket_writer, "_FLUSH_S", 0.01)
    writer, wire = EventWriter(Reader().stuck), Wire(open_=False)
    writer.begin(wire)
    writer.send("never taken")
    await writer.finish()
    assert wire.taken == []


async def test_without_a_socket_there_is_nothing_to_finish() -> None:
    writer = EventWriter(Reader().stuck)
    writer.send("for nobody")
    await writer.finish()
