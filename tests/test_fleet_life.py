"""What waits for a child that does not read: chats and calls each have room of their own."""

import asyncio
import threading
from collections.abc import AsyncIterator

import numpy as np
import pytest

from agent.chat_types import ChatMessage, ChatPicture, ChatRequest
from agent.errors import CapacityError, EngineError
from agent.fleet import life as lives
from agent.fleet.life import Life
from agent.fleet.link import LinkClosed, Parcel
from agent.fleet.messages import Chat, Finish, Message, Push
from agent.types import Unit

SIZE = 1000


class StuckHost:
    """A `Host` and its `Link`: it takes one message, and no other before `go`."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.taken = threading.Event()
        self.sent: list[Message] = []
        self._over = threading.Event()

    def start(self) -> "StuckHost":
        return self

    def kill(self) -> None:
        self.close()

    def bury(self) -> str:
        return "ended"

    def pack(self, message: Message) -> Parcel:
        size = SIZE if isinstance(message, Push) else 0
        if isinstance(message, Chat):
            pictures = [p for one in message.request.messages for p in one.content]
            size = sum(p.rgb.nbytes for p in pictures if isinstance(p, ChatPicture))
        return Parcel(size, message)

    def send(self, parcel: Parcel) -> None:
        self.taken.set()
        self.go.wait()
        self.sent.append(parcel.content)

    def receive(self) -> Message:
        self._over.wait()
        raise LinkClosed("closed")

    def close(self) -> None:
        self._over.set()
        self.go.set()


@pytest.fixture
async def host() -> StuckHost:
    return StuckHost()


@pytest.fixture
async def life(host: StuckHost, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Life]:
    """It holds one message in its hands, and nothing waits."""
    monkeypatch.setattr(lives, "_MAX_WAITING_BYTES", 3 * SIZE)
    monkeypatch.setattr(lives, "_MAX_CHAT_BYTES", 3 * SIZE)
    life = Life(host, lambda message: None)
    life.begin()
    async with asyncio.timeout(60):
        while life._link is None:
            await asyncio.sleep(0)
        life.tell(Finish(0))
        await asyncio.to_thread(host.taken.wait)
        yield life
        life.cut()
        await life.over()


def chat(number: int, size: int) -> Chat:
    picture = ChatPicture(np.zeros((1, size, 1), np.uint8))
    return Chat(number, number, ChatRequest((ChatMessage("user", (picture,)),)))


def unit(number: int) -> Push:
    return Push(number, Unit(0, np.zeros(16_000, np.float32), 16_000))


async def test_chats_that_wait_take_no_room_from_calls(life: Life, host: StuckHost) -> None:
    life.tell(chat(1, 100 * SIZE))  # larger than all, but alone
    with pytest.raises(CapacityError) as refused:
        life.tell(chat(2, 1))
    assert refused.value.retry_after_s > 0
    for _ in range(3):
        life.tell(unit(7))
    with pytest.raises(EngineError, match="no longer takes"):
        life.tell(unit(7))
    host.go.set()
    while len(host.sent) < 5:
        await asyncio.sleep(0)
    life.tell(chat(3, 2 * SIZE))
    assert [type(message) for message in host.sent[:5]] == [Finish, Chat, Push, Push, Push]


async def test_calls_that_wait_take_no_room_from_chats(life: Life) -> None:
    for _ in range(3):
        life.tell(unit(7))
    life.tell(chat(1, 2 * SIZE))
    life.tell(chat(2, SIZE))
    with pytest.raises(CapacityError, match="taking other chats in"):
        life.tell(chat(3, 1))
