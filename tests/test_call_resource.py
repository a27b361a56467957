"""A call by its id: shown, accepted, ended; what is no such call or no such request."""

import asyncio
import io
from collections.abc import AsyncIterator

import aiohttp
import pytest

from agent.api import bodies
from tests.rig.caller import Caller
from tests.rig.realtime_schema import check_events
from tests.rig.server import Running, running_server
from tests.rig.socket_caller import SocketCaller

CALLS = "/v1/realtime/calls"
SDP = {"Content-Type": "application/sdp"}
JSON = {"Content-Type": "application/json"}
FRAGMENT = {"Content-Type": "application/trickle-ice-sdpfrag", "If-Match": '"1-abcd"'}
WITH_BODIES = [
    ("POST", "/accept", JSON),
    ("PATCH", "", FRAGMENT),
    ("PATCH", "", SDP),
]


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    async with running_server() as running:
        yield running


@pytest.fixture
async def http(server: Running) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(server.url) as session:
        yield session


@pytest.fixture
async def caller(server: Running) -> AsyncIterator[Caller]:
    client = Caller(server.url)
    await client.dial()
    yield client
    await client.close()


async def refused(response: aiohttp.ClientResponse, status: int) -> dict[str, object]:
    """The error object of a refused request, in OpenAI's shape."""
    assert response.status == status, await response.text()
    body = await response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "code", "param"}
    error: dict[str, object] = body["error"]
    return error


async def test_a_call_is_shown_with_its_session(
    http: aiohttp.ClientSession, caller: Caller
) -> None:
    async with http.get(caller.location) as response:
        shown = await response.json()
    assert shown["id"] == caller.location.rsplit("/", 1)[1]
    assert (shown["object"], shown["status"]) == ("realtime.call", "in_progress")
    created = await caller.wait_for("session.created")
    assert shown["session"] == created["session"]


async def test_a_session_that_is_accepted_is_in_force(
    http: aiohttp.ClientSession, caller: Caller
) -> None:
    session = {"type": "realtime", "instructions": "Be brief."}
    async with http.post(f"{caller.location}/accept", json=session) as response:
        assert response.status == 200
    updated = await caller.wait_for("session.updated")
    assert updated["session"]["instructions"] == "Be brief."  # type: ignore[index]
    async with http.get(caller.location) as response:
        assert (await response.json())["session"]["instructions"] == "Be brief."
    check_events(caller.events)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ('{"instructions": 5}', "invalid_type"),
        ('{"instructions": "no", "audio": {"output": {"voice": 7}}}', "invalid_type"),
        ('{"type": "transcription"}', "invalid_value"),
        ("[]", "invalid_type"),
        ('"text"', "invalid_type"),
        ("{", "invalid_json"),
        ('{"instructions": "no"}, "event_id": "mine"', "invalid_json"),
        ("[" * 50_000, "invalid_json"),
        ('{"instructions": "no", "speed": NaN}', "invalid_json"),
        ('{"instructions": "no", "include": [' + "0," * 70_000 + "0]}", "message_too_large"),
        (b"\xff", "invalid_text"),
    ],
)
async def test_a_bad_session_is_refused_and_changes_nothing(
    http: aiohttp.ClientSession, caller: Caller, body: str | bytes, code: str
) -> None:
    async with http.post(f"{caller.location}/accept", data=body, headers=JSON) as response:
        assert (await refused(response, 400))["code"] == code
    async with http.get(caller.location) as response:
        assert (await response.json())["session"]["instructions"] == ""
    caller.send({"type": "session.update", "session": {}})
    await caller.wait_for("session.updated")
    assert "error" not in caller.types(), "the client did not ask"


@pytest.mark.parametrize("how", ["/hangup", "/reject"])
async def test_a_call_is_ended_once(
    http: aiohttp.ClientSession, server: Running, caller: Caller, how: str
) -> None:
    async with http.post(caller.location + how) as response:
        assert response.status == 200
    assert server.calls == 0
    await caller.wait_until_closed()
    for again in (http.post(caller.location + how), http.delete(caller.location)):
        async with again as response:
            assert (await refused(response, 404))["code"] == "call_not_found"


async def test_a_call_that_is_none_of_a_telephone_is_not_passed_on(
    http: aiohttp.ClientSession, server: Running, caller: Caller
) -> None:
    async with http.post(f"{caller.location}/refer", json={"target_uri": "tel:+1"}) as response:
        assert (await refused(response, 400))["code"] == "not_a_sip_call"
    assert server.calls == 1


@pytest.mark.parametrize(
    ("method", "end", "headers"),
    [
        ("GET", "", {}),
        ("DELETE", "", {}),
        ("POST", "/hangup", {}),
        ("POST", "/reject", {}),
        ("POST", "/refer", JSON),
        *WITH_BODIES,
    ],
)
async def test_a_call_that_is_not_there_is_not_found(
    http: aiohttp.ClientSession, method: str, end: str, headers: dict[str, str]
) -> None:
    async with http.request(
        method, f"{CALLS}/rtc_nope{end}", data=b"{}" if headers else None, headers=headers
    ) as response:
        assert (await refused(response, 404))["code"] == "call_not_found"


async def test_a_call_by_websocket_is_shown_and_ended_but_has_no_way_to_steer(
    http: aiohttp.ClientSession, server: Running
) -> None:
    caller = SocketCaller(server.url)
    await caller.dial()
    (created,) = caller.of("session.created")
    call_id = next(iter(server.call_ids))
    async with http.get(f"{CALLS}/{call_id}") as response:
        shown = await response.json()
        assert shown["session"] == created["session"] and shown["status"] == "in_progress"
    async with http.patch(f"{CALLS}/{call_id}", data="a=x:y", headers=FRAGMENT) as response:
        assert (await refused(response, 400))["code"] == "not_webrtc"
    async with http.delete(f"{CALLS}/{call_id}") as response:
        assert response.status == 200
    await caller.wait_until_closed()
    await caller.hang_up()


# ---- bodies -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "end", "headers"), WITH_BODIES)
async def test_bodies_that_are_too_slow_or_large_or_of_another_type_are_refused(
    http: aiohttp.ClientSession,
    caller: Caller,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    end: str,
    headers: dict[str, str],
) -> None:
    monkeypatch.setattr(bodies, "BODY_TIMEOUT_S", 0.05)
    path, never = caller.location + end, asyncio.Event()
    if "If-Match" in headers:
        async with http.get(caller.location) as response:
            headers = {**headers, "If-Match": "*"}

    async def slowly() -> AsyncIterator[bytes]:
        yield b"{"
        await never.wait()

    async with http.request(method, path, data=slowly(), headers=headers) as response:
        assert (await refused(response, 408))["code"] == "request_timeout"
    never.set()
    body = io.BytesIO(b" " * 300_000)
    async with http.request(method, path, data=body, headers=headers) as response:
        await refused(response, 413)
    odd = {**headers, "Content-Type": "text/html"}
    async with http.request(method, path, data=b"{}", headers=odd) as response:
        error = await refused(response, 415)
        assert headers["Content-Type"] in str(error["message"])
        assert error["param"] == "Content-Type"


async def test_more_bodies_than_are_read_at_a_time_are_refused(server: Running) -> None:
    caller = Caller(server.url)
    await caller.dial()
    never = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b"{"
        await never.wait()

    async def accept(http: aiohttp.ClientSession) -> int:
        path = f"{caller.location}/accept"
        async with http.post(path, data=slowly(), headers=JSON) as response:
            return response.status

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(server.url, connector=connector) as http:
        asked = [asyncio.ensure_future(accept(http)) for _ in range(65)]
        done, reading = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        assert [task.result() for task in done] == [503]
        never.set()
        assert {task.result() for task in (await asyncio.wait(reading))[0]} == {400}
        session = {"instructions": "There is room again."}
        async with http.post(f"{caller.location}/accept", json=session) as response:
            assert response.status == 200
    await caller.close()
    await server.end_calls()
