"""A key that is removed, replaced or limited: with it goes what was opened with it."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import WSCloseCode

from agent.keys import ApiKey, add_key, new_key, remove_key, sha256_of
from tests.rig.caller import Caller
from tests.rig.keyed_server import (
    BORN_UNIX_S,
    KeyedServer,
    bearer,
    keyed_server,
    problem,
)
from tests.rig.socket_caller import SocketCaller

CALLS = "/v1/realtime/calls"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[KeyedServer]:
    async with keyed_server(tmp_path) as running:
        yield running


@pytest.fixture
def key(server: KeyedServer) -> str:
    return server.add_key("acme")


async def dialled(server: KeyedServer, key: str, query: str = "model=any") -> SocketCaller:
    caller = SocketCaller(server.running.url, query)
    await caller.dial(headers=bearer(key))
    return caller


async def told_and_closed(caller: SocketCaller) -> dict[str, Any]:
    """The error that a caller was told last, once the server has closed."""
    assert await caller.wait_until_closed() == WSCloseCode.POLICY_VIOLATION
    *_, last = caller.of("error")
    error = last["error"]
    assert isinstance(error, dict)
    await caller.hang_up()
    return error


# ---- removed ----------------------------------------------------------------------------------


async def test_with_a_key_go_its_calls_those_of_its_secrets_and_their_sidebands(
    server: KeyedServer, key: str
) -> None:
    other = server.add_key("other")
    secret = (await server.secret(key))["value"]
    theirs = await dialled(server, other)
    own, granted = await dialled(server, key), await dialled(server, secret)
    aside = await dialled(server, key, f"call_id={own.location.rsplit('/', 1)[1]}")
    server.remove_key("acme")
    for caller in (own, granted):
        error = await told_and_closed(caller)
        assert error["code"] == "invalid_api_key" and "removed" in error["message"]
        assert error["type"] == "invalid_request_error"
    assert await aside.wait_until_closed() == WSCloseCode.OK
    assert [event["error"]["code"] for event in aside.of("error")] == ["invalid_api_key"]  # type: ignore[index]
    await aside.hang_up()
    assert server.running.metric('voice_agent_calls_total{outcome="revoked"}') == 2
    assert await server.status(secret) == 401
    # Those of others have lasted through as many looks.
    assert server.running.call_ids == [theirs.location.rsplit("/", 1)[1]]
    assert theirs.of("error") == []
    await theirs.hang_up()


async def test_a_peer_of_webrtc_is_told_before_it_is_hung_up(server: KeyedServer, key: str) -> None:
    caller = Caller(server.running.url)
    headers = {"Content-Type": "application/sdp", **bearer(key)}
    async with server.http.post(CALLS, data=await caller.offer(), headers=headers) as response:
        assert response.status == 201
        await caller.accept(await response.text())
    await caller.wait_for("session.created")
    server.remove_key("acme")
    told = await caller.wait_for("error")
    assert told["error"]["code"] == "invalid_api_key"  # type: ignore[index]
    await caller.wait_until_closed()
    await caller.close()


async def test_a_key_replaced_under_its_name_takes_its_calls_and_secrets_with_it(
    server: KeyedServer, key: str
) -> None:
    secret = (await server.secret(key))["value"]
    caller = await dialled(server, key)
    # Before the server has looked again: all it sees is that the name is still there.
    text = new_key()
    remove_key(server.file, "acme")
    add_key(server.file, ApiKey("acme", sha256_of(text)))
    server.clock.passed_s += 1
    assert (await told_and_closed(caller))["code"] == "invalid_api_key"
    status, document, _ = await server.ask(secret)
    assert status == 401 and problem(document)["code"] == "invalid_api_key"
    assert await server.status(text) == 200


async def test_calls_end_when_their_key_has_expired(server: KeyedServer) -> None:
    key = server.add_key("brief", expires_at=BORN_UNIX_S + 60)
    caller = await dialled(server, key)
    server.clock.passed_s = 60
    error = await told_and_closed(caller)
    assert error["code"] == "invalid_api_key" and "expired" in error["message"]


# ---- limited ----------------------------------------------------------------------------------


def limited(server: KeyedServer, key: str, **limits: Any) -> None:
    """The same key for less, as whoever edits the file makes it."""
    remove_key(server.file, "acme")
    add_key(server.file, ApiKey("acme", sha256_of(key), **limits))
    server.clock.passed_s += 1


async def test_calls_end_whose_voices_are_no_longer_their_key_s(
    server: KeyedServer, key: str
) -> None:
    caller = await dialled(server, key)
    limited(server, key, voices=("anna",))
    error = await told_and_closed(caller)
    assert error["code"] == "voice_not_allowed"


async def test_a_key_that_may_call_less_often_keeps_the_calls_that_it_has(
    server: KeyedServer, key: str
) -> None:
    first, second = await dialled(server, key), await dialled(server, key)
    limited(server, key, max_calls=1)
    doomed = await dialled(server, server.add_key("doomed"))
    server.remove_key("doomed")
    await told_and_closed(doomed)  # so that the server has looked at the file since
    assert server.running.calls == 2
    third = SocketCaller(server.running.url)
    with pytest.raises(aiohttp.WSServerHandshakeError, match="429"):
        await third.dial(headers=bearer(key))
    await third.close_http()
    for caller in (first, second):
        await caller.hang_up()
