"""A chat that finds every slot taken: it waits for one, but not for ever, and holds nobody up."""

import asyncio
from collections.abc import AsyncIterator

import openai
import pytest

from agent.clock import Clock
from agent.errors import CapacityError
from agent.types import Load
from tests.rig.chat_server import ChatServer, chat_server
from tests.rig.reading_engine import ReadingEngine

FULL = CapacityError("every slot is taken", retry_after_s=5.0)


class SteppedClock(Clock):
    """Time goes on by itself as soon as somebody waits for it; `when` says what happens then."""

    def __init__(self) -> None:
        self.at_s = 0.0
        self.when: dict[float, ReadingEngine] = {}

    def now_s(self) -> float:
        return self.at_s

    async def sleep_until(self, due_s: float) -> None:
        await asyncio.sleep(0)
        self.at_s = max(self.at_s, due_s)
        for at_s in [at_s for at_s in self.when if at_s <= self.at_s]:
            self.when.pop(at_s).before = None


class FullEngine(ReadingEngine):
    """Keeps its only free slot for calls as long as it refuses."""

    def load(self) -> Load:
        return Load(1, 1 if self.before else 2)


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


@pytest.fixture
async def server(clock: SteppedClock) -> AsyncIterator[ChatServer]:
    async with chat_server(engine=FullEngine(before=FULL)) as server:
        server.chats.clock = clock
        yield server


@pytest.mark.parametrize("stream", [False, True])
async def test_a_chat_waits_for_a_slot_and_is_answered(
    server: ChatServer, clock: SteppedClock, stream: bool
) -> None:
    clock.when[7.0] = server.engine
    answer = await server.ask("at last", stream=stream)
    if stream:
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in answer])
    else:
        text = answer.choices[0].message.content
    assert text == "user: at last"
    # Asked at 0 and 5 s, and once there is room: what it holds is large to be sent.
    assert len(server.engine.requests) == 3
    assert clock.at_s == pytest.approx(7.0, abs=0.3)
    assert server.engine.running == 0 and server.chats._inside == 0


async def test_no_chat_waits_for_ever(server: ChatServer, clock: SteppedClock) -> None:
    with pytest.raises(openai.InternalServerError) as refused:
        await server.ask()
    assert refused.value.status_code == 503
    assert refused.value.response.headers["Retry-After"] == "5"
    assert clock.at_s == 25 and len(server.engine.requests) == 6, "every 5 s, within 30"


async def test_nobody_waits_for_what_takes_longer(server: ChatServer, clock: SteppedClock) -> None:
    server.engine.before = CapacityError("the engine is starting again", retry_after_s=90)
    with pytest.raises(openai.InternalServerError):
        await server.ask()
    assert clock.at_s == 0 and len(server.engine.requests) == 1


async def test_who_leaves_while_it_waits_leaves_its_place(server: ChatServer) -> None:
    server.chats.clock = Clock()
    asking = asyncio.ensure_future(server.ask("too long"))
    while not server.engine.requests:
        await asyncio.sleep(0.01)
    asking.cancel()
    while server.chats._inside:
        await asyncio.sleep(0.01)
    server.engine.before = None
    assert await server.answer("next") == "user: next"
