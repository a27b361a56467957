"""How calls end between the real server and a plain aiortc client, and what they leave."""

import asyncio
import logging

import aiohttp
import psutil
import pytest

from tests.rig.caller import Caller
from tests.rig.server import Footprint, running_server, serving, settle

PATIENCE_S = 60


@pytest.mark.parametrize("how", ["post", "delete", "peer", "server"])
async def test_a_call_ends_from_either_side_and_leaves_nothing(how: str) -> None:
    async with running_server() as server:
        before = Footprint.now()
        caller = Caller(server.url)
        await caller.dial()
        await caller.wait_for("output_audio_buffer.started")
        if how == "post":
            assert await caller.hang_up() == 200
            await caller.wait_until_closed()
            assert await caller.hang_up() == 404
        elif how == "delete":
            async with aiohttp.ClientSession() as http:
                async with http.delete(server.url + caller.location) as response:
                    assert response.status == 200
            await caller.wait_until_closed()
        elif how == "server":
            await server.end_calls()
            await caller.wait_until_closed()
        await caller.close()
        assert await settle(before) == before
        assert server.calls == 0
        assert server.metric("voice_agent_calls_active") == 0


async def test_a_peer_that_vanishes_is_noticed_by_our_own_watchdog(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "agent.session")
    async with running_server(["calls.return_s=0"]) as server:
        caller = Caller(server.url)
        await caller.dial()
        connection = caller.peer.getTransceivers()[0].receiver.transport.transport._connection
        for protocol in connection._protocols:
            protocol.transport.abort()
        async with asyncio.timeout(PATIENCE_S):
            while server.calls:
                await asyncio.sleep(0.05)
        assert server.metric('voice_agent_calls_total{outcome="peer_gone"}') == 1
        silent_s = float(caplog.text.split("from the peer for ")[1].split(" s")[0])
        assert silent_s <= 8, "seconds without a sign of life, on the server's own clock"
        await caller.close()


async def test_a_muted_peer_is_not_taken_for_a_vanished_one() -> None:
    async with running_server(["calls.watchdog_s=1"]) as server:
        caller = Caller(server.url)
        await caller.dial()
        caller.microphone.stop()
        await asyncio.sleep(2)
        assert server.calls == 1
        await caller.close()


async def test_a_call_that_never_connects_is_given_up() -> None:
    async with running_server(["calls.connect_timeout_s=1"]) as server:
        before = Footprint.now()
        caller = Caller(server.url)
        async with aiohttp.ClientSession() as http:
            headers = {"Content-Type": "application/sdp"}
            url = f"{server.url}/v1/realtime/calls"
            async with http.post(url, data=await caller.offer(), headers=headers) as response:
                assert response.status == 201
        assert server.calls == 1
        await caller.close()
        async with asyncio.timeout(PATIENCE_S):
            while server.calls:
                await asyncio.sleep(0.05)
        assert server.metric('voice_agent_calls_total{outcome="connection_lost"}') == 1
        assert await settle(before) == before


async def test_beyond_the_limit_callers_are_told_when_to_come_back() -> None:
    async with running_server(["calls.max_calls=1", "calls.retry_after_s=7"]) as server:
        first, second = Caller(server.url), Caller(server.url)
        await first.dial()
        async with aiohttp.ClientSession() as http:
            headers = {"Content-Type": "application/sdp"}
            url = f"{server.url}/v1/realtime/calls"
            async with http.post(url, data=await second.offer(), headers=headers) as response:
                assert response.status == 503
                assert response.headers["Retry-After"] == "7"
                assert (await response.json())["error"]["code"] == "no_capacity"
        assert await first.hang_up() == 200
        await second.close()
        third = Caller(server.url)
        await third.dial()
        await third.close()
        await first.close()


async def test_calls_in_a_row_leave_no_task_thread_or_socket() -> None:
    async with running_server() as server:
        before: Footprint | None = None
        for number in range(10):
            caller = Caller(server.url, camera=number % 2 == 0)
            await caller.dial()
            assert await caller.hang_up() == 200
            await caller.close()
            before = before or Footprint.now()
        assert before is not None
        assert await settle(before) == before


async def test_calls_in_a_row_leave_the_server_as_it_was() -> None:
    async with serving() as (url, process, _):
        await _call_again_and_again(url, 10)
        before_mb, before = _memory_mb(process), _held(process)
        await _call_again_and_again(url, 40)
        # Peers are rings of objects: how many of them wait for the collector varies.
        assert _memory_mb(process) <= before_mb + 25
        # A connection ends a moment after its answer, and the loop's pool grows by a thread or two.
        async with asyncio.timeout(PATIENCE_S):
            while _held(process) > before + 5:
                await asyncio.sleep(0.05)


async def _call_again_and_again(url: str, times: int) -> None:
    for number in range(times):
        caller = Caller(url, camera=number % 2 == 0)
        await caller.dial()
        assert await caller.hang_up() == 200
        await caller.close()


def _held(process: psutil.Process) -> int:
    """Threads and open files: one that a call left behind would be there for each of them."""
    return process.num_threads() + process.num_fds()


def _memory_mb(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / 1e6
