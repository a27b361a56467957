"""`WS /v1/realtime?duplex=1` between the real server, with the echo, and a plain client."""

from collections.abc import AsyncIterator

import aiohttp
import numpy as np
import pytest

from agent.media.audio import from_pcm16
from agent.realtime.omni import SERVER_EVENTS
from tests.rig.omni_client import CLIENTS_SESSION
from tests.rig.realtime_schema import check_events
from tests.rig.server import Running, running_server
from tests.rig.socket_caller import Event, SocketCaller, pcm16
from tests.rig.socket_visits import calling, gone
from tests.rig.sound import alike
from tests.rig.voices import say

DONE = "response.done"
QUERY = "model=echo&duplex=1&autostart=0"
RATE_HZ = 16_000
SENTENCE = "The quick brown fox jumps over the lazy dog."


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    async with running_server() as running:
        yield running


async def test_a_whole_call_as_vllm_omnis_client_makes_it(server: Running) -> None:
    async with calling(server, quiet=False, query=QUERY) as caller:
        session = caller.events[0]["session"]
        assert session["capabilities"]["chunk_period_ms"] == 1000  # type: ignore[index]
        await caller.send("session.update", session=CLIENTS_SESSION)
        await caller.wait_for("session.updated")
        await _talks_over(caller)
        await _asks(caller)
        await _closes(caller)
        assert [error["error"]["code"] for error in caller.of("error")] == [  # type: ignore[index]
            "unsupported_session_resume"
        ]
    await gone(server)


async def _talks_over(caller: SocketCaller) -> None:
    """The greeting begins, is talked over, and gives way; what was said is said back."""
    speak = await caller.wait_for("response.speak")
    delta = await caller.wait_for("response.output_audio.delta")
    assert speak["response_id"] == delta["response_id"]
    assert caller.events.index(speak) < caller.events.index(delta)
    sentence = say(SENTENCE, RATE_HZ, level_dbfs=-20)
    await caller.say_live(pcm16(sentence), 100, 2 * RATE_HZ)
    decision = await caller.wait_for("overlap.decision", lambda one: one["action"] == "barge_in")
    assert decision["policy"] == "barge_in_on_speech"
    done = await caller.wait_for(DONE)
    assert decision["metadata"]["response_id"] == done["response"]["id"]  # type: ignore[index]
    after = caller.events.index(done) + 1
    await caller.send("input_audio_buffer.commit", final=True, response_create=True)
    answer = await caller.wait_for(DONE, after=after)
    said = from_pcm16(caller.sound(answer["response"]["id"]))  # type: ignore[index]
    at = np.arange(len(sentence) * 3 // 2) / 1.5
    assert alike(said, np.interp(at, np.arange(len(sentence)), sentence).astype(np.float32)) > 0.8


async def _asks(caller: SocketCaller) -> None:
    """It listens on, and is there."""
    listen = await caller.wait_for("response.listen", after=len(caller.events))
    assert listen["epoch"] == 1
    await caller.send("session.heartbeat")
    beat = await caller.wait_for("session.heartbeat_ack")
    assert beat["session_id"] == caller.events[0]["session"]["id"]  # type: ignore[index]
    await caller.send("session.resume", resume_token="none")
    await caller.wait_for("error")


async def _closes(caller: SocketCaller) -> None:
    await caller.send("session.close")
    closed = await caller.wait_for("session.closed")
    assert closed["reason"] == "client_close"
    assert await caller.wait_until_closed() == aiohttp.WSCloseCode.OK
    assert caller.events[-1] == closed


async def test_a_sideband_is_told_what_it_asked_for(server: Running) -> None:
    async with calling(server, query=QUERY) as caller:
        call_id = caller.location.rpartition("/")[2]
        stock = SocketCaller(server.url, f"call_id={call_id}")
        omni = SocketCaller(server.url, f"call_id={call_id}&duplex=1")
        for side in (stock, omni):
            await side.dial()
        await omni.wait_for("response.listen")
        await stock.send("conversation.item.retrieve", item_id="nobody")
        await stock.wait_for("error")
        assert not SERVER_EVENTS & set(stock.types())
        await stock.send("session.heartbeat")
        for one in (stock, omni, caller):
            await one.wait_for("session.heartbeat_ack")
        for side in (stock, omni):
            await side.hang_up()
        check_events(omni.events, is_omni=True)


async def test_a_call_that_has_lasted_long_enough_is_expired() -> None:
    async with running_server(["calls.max_duration_s=1"]) as server:
        caller = SocketCaller(server.url, QUERY)
        await caller.dial()
        assert await caller.wait_until_closed() == aiohttp.WSCloseCode.POLICY_VIOLATION
        last: list[Event] = caller.events[-2:]
        assert [event["type"] for event in last] == ["error", "session.expired"]
        await caller.hang_up()


async def test_other_values_of_duplex_ask_for_nothing(server: Running) -> None:
    async with calling(server, query="model=x&duplex=0") as caller:
        assert not SERVER_EVENTS & set(caller.types())
