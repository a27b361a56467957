"""What callers are told of STUN and TURN servers, tried with a real TURN server."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiortc import RTCConfiguration, RTCIceServer, RTCPeerConnection

from agent.api.ice_servers import ice_servers
from agent.clock import Clock
from agent.config import load_config
from agent.errors import ConfigError
from tests.rig.caller import Caller
from tests.rig.programs import require_program
from tests.rig.server import Running, running_server

PATH = "/v1/realtime/ice-servers"
SECRET = "north"


class Noon(Clock):
    """Stands still."""

    def unix_s(self) -> float:
        return 1_800_000_000.5


@pytest.fixture
async def turn_port(tmp_path: Path) -> AsyncIterator[int]:
    """Where a coturn listens that shares `SECRET`."""
    program = require_program("turnserver", "coturn")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    options = [
        *("--listening-ip=127.0.0.1", "--relay-ip=127.0.0.1", f"--listening-port={port}"),
        *("--use-auth-secret", f"--static-auth-secret={SECRET}", "--realm=example.org"),
        *("--no-tls", "--no-dtls", "--no-cli", "--allow-loopback-peers", "--log-file=stdout"),
        *(f"--userdb={tmp_path / 'turn.db'}", f"--pidfile={tmp_path / 'turn.pid'}", "-n"),
    ]
    nowhere = asyncio.subprocess.DEVNULL
    turn = await asyncio.create_subprocess_exec(program, *options, stdout=nowhere, stderr=nowhere)
    async with asyncio.timeout(30):
        while not await listens(port):
            await asyncio.sleep(0.05)
    yield port
    turn.terminate()
    await turn.wait()


async def listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


async def told(server: Running) -> list[dict[str, object]]:
    async with aiohttp.ClientSession(server.url) as http, http.get(PATH) as response:
        assert response.status == 200 and response.headers["Cache-Control"] == "no-store"
        servers: list[dict[str, object]] = (await response.json())["ice_servers"]
        return servers


def relayed(sdp: str) -> bool:
    return any("typ relay" in line for line in sdp.splitlines() if "a=candidate" in line)


async def test_pairs_made_of_the_secret_open_a_real_turn_server(turn_port: int) -> None:
    url = f"turn:127.0.0.1:{turn_port}"
    async with running_server([f"rtc.turn_secret={SECRET}", f"rtc.ice_servers={url}"]) as server:
        (one,) = await told(server)
        assert one["urls"] == [url]
        caller = Caller(server.url)
        await caller.dial()
        assert relayed(caller.answer), "the server goes by it itself"
        await caller.close()
    wrong = {**one, "credential": "south"}
    for given, opens in ((one, True), (wrong, False)):
        peer = RTCPeerConnection(RTCConfiguration([RTCIceServer(**given)]))  # type: ignore[arg-type]
        peer.createDataChannel("any")
        await peer.setLocalDescription(await peer.createOffer())
        assert relayed(peer.localDescription.sdp) is opens
        await peer.close()


async def test_servers_with_a_user_and_stun_servers_are_told_as_they_are() -> None:
    servers = "stun:127.0.0.1:9,turns:ann:p@ss:word@127.0.0.1:9?transport=tcp"
    async with running_server([f"rtc.ice_servers={servers}", "rtc.turn_secret=x"]) as server:
        assert await told(server) == [
            {"urls": ["stun:127.0.0.1:9"]},
            {
                "urls": ["turns:127.0.0.1:9?transport=tcp"],
                "username": "ann",
                "credential": "p@ss:word",
            },
        ]
    async with running_server() as server:
        assert await told(server) == []


def test_a_pair_lasts_as_long_as_the_longest_call_and_is_the_user_s_own() -> None:
    clock = Noon()
    given = ["rtc.turn_secret=x", "rtc.ice_servers=turn:h:1", "calls.max_duration_s=100"]
    config = load_config(None, {}, given)
    (ann,), (bob,) = (ice_servers(config, user, clock) for user in ("ann", "bob"))
    ends, _, user = ann.username.partition(":")
    assert int(ends) == 1_800_000_700 and user == "ann"
    assert ann.credential != bob.credential


def test_a_turn_server_without_a_user_needs_the_secret() -> None:
    with pytest.raises(ConfigError, match=r"rtc\.ice_servers .*turn_secret"):
        load_config(None, {}, ["rtc.ice_servers=turn:h:1"])
