"""How calls over `WS /v1/realtime` end: who is told why, and what is left of them."""

import asyncio
import gc
from collections.abc import AsyncIterator, Sequence

import aiohttp
import aiohttp.web
import pytest

from agent.api import sockets
from agent.engines.echo import EchoConversation
from agent.errors import EngineError
from agent.session import Session
from agent.transport import websocket_writer
from agent.transport.websocket import WebSocketTransport
from agent.transport.websocket_line import TimeLine
from agent.transport.websocket_writer import EventWriter
from agent.types import EngineEvent, Listened
from tests.rig.realtime_schema import check_events
from tests.rig.server import Footprint, Running, running_server, settle
from tests.rig.socket_caller import SocketCaller
from tests.rig.socket_visits import calling, gone


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    async with running_server() as running:
        yield running


async def test_who_hangs_up_is_gone_and_the_place_is_free(server: Running) -> None:
    async with calling(server):
        assert server.calls == 1
    await gone(server)
    assert server.metric('voice_agent_calls_total{outcome="hung_up"}') == 1


async def test_a_call_is_hung_up_by_its_address_and_closes_as_agreed(server: Running) -> None:
    caller = SocketCaller(server.url)
    await caller.dial()
    async with aiohttp.ClientSession(server.url) as http, http.delete(caller.location) as response:
        assert response.status == 200
    assert await caller.wait_until_closed() == aiohttp.WSCloseCode.OK
    await caller.hang_up()


@pytest.mark.parametrize(
    ("settings", "code", "last"),
    [
        ([], aiohttp.WSCloseCode.GOING_AWAY, []),
        (["calls.max_duration_s=1"], aiohttp.WSCloseCode.POLICY_VIOLATION, ["session_expired"]),
    ],
)
async def test_the_close_code_says_why_the_server_ends_a_call(
    settings: Sequence[str], code: int, last: list[str]
) -> None:
    async with running_server(settings) as server:
        caller = SocketCaller(server.url)
        await caller.dial()
        if not settings:
            await server.end_calls()
        assert await caller.wait_until_closed() == code
        assert [event["error"]["code"] for event in caller.of("error")] == last  # type: ignore[index]
        check_events(caller.events)
        await caller.hang_up()
        await gone(server)


async def test_an_engine_that_fails_is_told_of_before_the_socket_closes(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def events(conversation: EchoConversation) -> AsyncIterator[EngineEvent]:
        yield Listened(0)
        raise EngineError("the model is gone")

    monkeypatch.setattr(EchoConversation, "events", events)
    caller = SocketCaller(server.url)
    await caller.dial()
    error = (await caller.wait_for("error"))["error"]
    assert error["type"] == "server_error"  # type: ignore[index]
    assert await caller.wait_until_closed() == aiohttp.WSCloseCode.INTERNAL_ERROR
    await caller.hang_up()
    await gone(server)


async def test_a_client_that_no_longer_answers_is_noticed(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "HEARTBEAT_S", 0.3)
    caller = SocketCaller(server.url, deaf=True)
    await caller.dial(autoping=False)
    assert server.calls == 1
    await gone(server)
    assert server.metric('voice_agent_calls_total{outcome="peer_gone"}') == 1
    await caller.hang_up()


LONG = {"type": "realtime", "instructions": "x" * 20_000}


async def test_a_client_that_does_not_read_is_disconnected_and_no_other_call_suffers(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each event is answered by one as long, until the network between takes no more."""
    monkeypatch.setattr(websocket_writer, "STUCK_S", 0.5)
    deaf = SocketCaller(server.url, deaf=True)
    await deaf.dial()
    flooding = asyncio.ensure_future(flood(deaf, 900))
    async with calling(server) as other, asyncio.timeout(30):
        while server.calls == 2:
            await other.send("input_audio_buffer.clear")
            await asyncio.sleep(0.05)
        asked = len(other.events)
        await other.send("input_audio_buffer.clear")
        await other.wait_for("input_audio_buffer.cleared", after=asked)
    assert server.metric('voice_agent_calls_total{outcome="connection_lost"}') == 1
    flooding.cancel()
    await asyncio.wait((flooding,))
    await deaf.hang_up()


async def flood(caller: SocketCaller, events: int) -> None:
    for _ in range(events):
        await caller.send("session.update", session=LONG)


async def test_a_client_that_reads_may_ask_for_much_at_once(server: Running) -> None:
    """Small questions with large answers: those that wait for theirs are not read."""
    async with calling(server) as caller:
        await flood(caller, 400)
        await caller.send("input_audio_buffer.clear")
        await caller.wait_for("input_audio_buffer.cleared")
        assert len(caller.of("session.updated")) == 400


def alive() -> list[object]:
    """What there is of calls in this process."""
    kinds = (Session, WebSocketTransport, EventWriter, TimeLine, aiohttp.web.WebSocketResponse)
    gc.collect()
    return [one for one in gc.get_objects() if type(one) in kinds]


async def test_sessions_opened_and_closed_leave_everything_as_it_was() -> None:
    others = {id(one) for one in alive()}  # of the tests before
    async with running_server(["calls.max_calls=40"]) as server:

        async def visit() -> None:
            caller = SocketCaller(server.url)
            await caller.dial()
            await caller.say(bytes(4800))
            await caller.send("input_audio_buffer.clear")
            await caller.wait_for("input_audio_buffer.cleared")
            await caller.hang_up()

        await visit()
        await gone(server)
        before = Footprint.now()
        for _ in range(10):
            await visit()
        for _ in range(2):
            await asyncio.gather(*(visit() for _ in range(20)))
        await gone(server)
        assert await settle(before, 10) == before
        assert [one for one in alive() if id(one) not in others] == []
        assert server.metric("voice_agent_calls_active") == 0
