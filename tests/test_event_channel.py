"""Events over a data channel: no faster than by a WebSocket, and never more than fit."""

import json
from collections.abc import Callable

from agent.errors import SessionError, TransportClosed
from agent.transport.event_channel import MAX_WAITING_BYTES, EventChannel
from agent.transport.websocket_pace import DEFAULT_PACE
from tests.test_pictures import StoppedClock


class OpenChannel:
    """The peer's side: what it was sent, and where what it sends goes."""

    label = "oai-events"
    readyState = "open"
    bufferedAmount = 0

    def __init__(self, most_bytes: int = 1 << 20) -> None:
        self.most_bytes = most_bytes
        self.sent: list[str] = []
        self.listeners: dict[str, Callable[..., None]] = {}

    def on(self, event: str, listener: Callable[..., None]) -> None:
        self.listeners[event] = listener

    def send(self, message: str) -> None:
        """As aiortc's, which takes no more than the far side has said that it does."""
        if len(message.encode()) > self.most_bytes:
            raise ValueError("Cannot send message")
        self.sent.append(message)


class Line:
    """An event channel with both its ends."""

    def __init__(self) -> None:
        self.clock = StoppedClock()
        self.reasons: list[SessionError | None] = []
        self.events = EventChannel(lambda: None, self._end, self.clock)
        self.far = OpenChannel()
        assert self.events.use(self.far)
        self.comes = self.far.listeners["message"]

    def _end(self, reason: SessionError | None) -> None:
        self.reasons.append(reason)
        self.events.finish()


async def test_a_client_that_sends_too_many_events_is_told_and_hung_up_on() -> None:
    line = Line()
    messages = line.events.messages()
    for _ in range(int(DEFAULT_PACE.events_at_once)):
        line.comes("{}")
        assert await anext(messages) == "{}"
    line.clock.now += 1
    for _ in range(int(DEFAULT_PACE.events_s)):
        line.comes("{}")
        await anext(messages)
    assert line.reasons == [] and line.far.sent == []
    line.comes("{}")
    assert [message async for message in messages] == []
    assert [type(reason) for reason in line.reasons] == [TransportClosed]
    (told,) = line.far.sent
    assert json.loads(told)["error"]["code"] == "rate_limit_exceeded"


async def test_events_that_nobody_reads_do_not_fill_the_memory() -> None:
    line = Line()
    large = "x" * (MAX_WAITING_BYTES // 8)
    for _ in range(8):
        line.comes(large)
    assert line.reasons == []
    line.comes("y")
    assert [type(reason) for reason in line.reasons] == [TransportClosed]
    line.clock.now += 60
    assert [len(message) async for message in line.events.messages()] == [len(large)] * 8


async def test_what_was_read_makes_room() -> None:
    line = Line()
    messages = line.events.messages()
    large = "x" * (MAX_WAITING_BYTES // 2)
    for _ in range(10):
        line.clock.now += 60
        line.comes(large)
        assert await anext(messages) == large
    assert line.reasons == []


def test_a_client_is_told_of_an_event_that_its_channel_does_not_take() -> None:
    line = Line()
    line.far.most_bytes = 1_000
    line.events.send(json.dumps({"type": "conversation.item.added", "item": "x" * 1_000}))
    line.events.send('{"type": "response.created"}')
    lost, following = map(json.loads, line.far.sent)
    assert (lost["type"], lost["error"]["code"]) == ("error", "event_too_large")
    assert (following["type"], line.reasons) == ("response.created", [])


async def test_a_channel_that_takes_nothing_ends_the_connection_and_nothing_else() -> None:
    line = Line()
    line.far.most_bytes = 1
    line.events.send('{"type": "response.created"}')
    assert [type(reason) for reason in line.reasons] == [TransportClosed]
