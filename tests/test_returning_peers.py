"""Peers that are away for a while: what their calls cost meanwhile, and how long they are kept."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.api.realtime import CALLS as CALLS_KEY
from agent.transport.options import RtcOptions
from agent.transport.presence import Presence
from tests.rig.keyed_server import HandClock, bearer, keyed_server
from tests.rig.server import Running, running_server
from tests.rig.whip_caller import SDP, WhipCaller
from tests.test_whip_ice import ANY_OFFER, said_back

CALLS = "/v1/realtime/calls"
PATIENCE_S = 60
BRIEF = ("calls.watchdog_s=1", "calls.return_s=25")


@asynccontextmanager
async def whip(server: Running, key: str = "") -> AsyncIterator[WhipCaller]:
    """One that is connected."""
    client = WhipCaller(server.url + CALLS, kinds=("audio",), direction="sendrecv")
    client.http.headers.update(bearer(key))
    try:
        await client.post()
        await client.connected()
        yield client
    finally:
        await client.close()


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not is_so():
            await asyncio.sleep(0.02)


def live(server: Running, client: WhipCaller) -> Any:
    return server.app[CALLS_KEY]._live[client.call_id]


# ---- how long ---------------------------------------------------------------------------------


def test_who_is_silent_is_away_and_then_lost() -> None:
    clock = HandClock()
    presence = Presence(RtcOptions(watchdog_s=3.5, return_s=12), clock)
    for passed_s, away_s, is_lost in ((3.4, 0, False), (5.5, 2, False), (15.6, 12.1, True)):
        clock.passed_s = passed_s
        assert (presence.away_s, presence.is_lost) == (pytest.approx(away_s), is_lost)
    presence.hear()
    assert (presence.silent_s, presence.away_s, presence.is_lost) == (0, 0, False)


async def test_who_does_not_come_back_is_hung_up_on() -> None:
    async with running_server(["calls.watchdog_s=1", "calls.return_s=0.5"]) as server:
        async with whip(server) as client:
            client.lose_network()
            await until(lambda: server.calls == 0)
        assert server.metric('voice_agent_calls_total{outcome="peer_gone"}') == 1


# ---- meanwhile --------------------------------------------------------------------------------


async def test_the_engine_has_nothing_to_do_for_who_is_away_and_goes_on_when_he_is_back() -> None:
    async with running_server(BRIEF) as server, whip(server) as client:
        await client.greeted()
        call = live(server, client)
        client.lose_network()
        # Looked at twice a second, so by then it rests.
        await until(lambda: call.transport.away_s > 1.1)
        told = call.session._pace._told
        await until(lambda: call.transport.away_s > 3.5)
        assert call.session._pace._told == told, "no second of the silence is thought about"
        await client.restart()
        assert await said_back(client) > 0.7
        assert call.session._pace._told > told
        assert (server.calls, call.transport.away_s) == (1, 0)


# ---- whose place it is ------------------------------------------------------------------------


async def posted(client: WhipCaller) -> int:
    """What is answered to one call more, of nobody in particular, by whoever that client is."""
    headers = {"Content-Type": SDP}
    async with client.http.post(client.endpoint, data=ANY_OFFER, headers=headers) as response:
        return response.status


async def lost(server: Running, *clients: WhipCaller) -> None:
    """They lose their network, of which the server takes note."""
    for client in clients:
        client.lose_network()
    for client in clients:
        transport = live(server, client).transport
        while not transport.away_s:
            await asyncio.sleep(0.02)


async def test_a_place_that_is_kept_is_given_to_who_is_there() -> None:
    async with running_server([*BRIEF, "calls.max_calls=2"]) as server:
        async with whip(server) as there, whip(server) as away:
            assert await posted(there) == 503, "who is there keeps his place"
            await lost(server, away)
            assert await posted(there) == 201
            assert there.call_id in server.call_ids and away.call_id not in server.call_ids
            assert await posted(there) == 503
        assert server.metric('voice_agent_calls_total{outcome="peer_gone"}') == 1


async def test_who_has_his_share_gets_the_place_of_his_own_and_of_nobody_else(
    tmp_path: Path,
) -> None:
    async with keyed_server(tmp_path, BRIEF) as keyed:
        server = keyed.running
        limited, other = keyed.add_key("limited", max_calls=1), keyed.add_key("other")
        async with whip(server, limited) as mine, whip(server, other) as theirs:
            assert await posted(mine) == 429
            await lost(server, theirs)
            assert await posted(mine) == 429
            await lost(server, mine)
            assert await posted(mine) == 201
            assert theirs.call_id in server.call_ids and mine.call_id not in server.call_ids
