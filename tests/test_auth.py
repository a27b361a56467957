"""Keys asked for and looked at: who gets in, who may do what, how often, and what is said."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web

from agent.api.chat import CHATS
from tests.rig.caller import Caller
from tests.rig.keyed_server import (
    BORN_UNIX_S,
    MODELS,
    SECRETS,
    KeyedServer,
    bearer,
    keyed_server,
    problem,
)
from tests.rig.reading_engine import ReadingEngine
from tests.rig.socket_caller import SocketCaller
from tests.rig.speaking_engine import SpeakingEngine

CALLS = "/v1/realtime/calls"
CHAT, SPEECH, VOICES = "/v1/chat/completions", "/v1/audio/speech", "/v1/audio/voices"
SDP = {"Content-Type": "application/sdp"}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[KeyedServer]:
    async with keyed_server(tmp_path) as running:
        yield running


@pytest.fixture
def key(server: KeyedServer) -> str:
    return server.add_key("acme")


def guarded(app: web.Application) -> list[tuple[str, str]]:
    """Method and path of all that needs a key, with something in place of what varies."""
    found = []
    for route in app.router.routes():
        resource = route.resource
        assert resource is not None
        place = resource.canonical
        if place.startswith("/v1/") or place == "/metrics":
            path = place.replace("{call_id}", "rtc_x").replace("{id}", "x")
            assert "{" not in path, "say what stands there"
            found.append((route.method, path))
    return found


# ---- who gets in ------------------------------------------------------------------------------


async def test_everything_below_v1_asks_for_a_key(server: KeyedServer, key: str) -> None:
    places = [each for each in guarded(server.running.app) if each[0] != "OPTIONS"]
    assert {MODELS, CALLS, CHAT, SPEECH, VOICES, SECRETS, "/metrics"} <= {p for _, p in places}
    for method, path in [*places, ("GET", "/v1/nothing"), ("GET", "/%761/models")]:
        async with server.http.request(method, path) as response:
            assert response.status == 401, (method, path)
            assert response.headers["WWW-Authenticate"] == 'Bearer realm="voice-agent"'
            if method != "HEAD":
                error = problem(await response.json())
                assert error["code"] == "invalid_api_key"
                assert error["type"] == "invalid_request_error"
    assert server.refused("no_key") == len(places) + 2
    assert await server.status(key) == 200
    assert await server.status(key, path="/metrics") == 200
    assert await server.status(key, path="/v1/nothing") == 404


async def test_what_is_open_stays_open(server: KeyedServer, key: str) -> None:
    for path in ("/healthz", "/", "/app.js", "/README.md"):
        assert await server.status("", path=path) == 200


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Basic {key}", "{key}", "Bearer {key}x", "Bearer x{key}", "Bearer é"],
)
async def test_a_key_that_is_none_is_refused(server: KeyedServer, key: str, header: str) -> None:
    headers = {"Authorization": header.replace("{key}", key)}
    assert await server.status("", headers=headers) == 401
    assert await server.status("", headers={"Authorization": f"bearer {key}"}) == 200


async def test_the_first_key_closes_the_server_and_the_last_does_not_open_it(
    server: KeyedServer,
) -> None:
    assert await server.status("") == 200
    key = server.add_key("first")
    assert await server.status("") == 401 and await server.status(key) == 200
    server.remove_key("first")
    assert await server.status("") == 401
    status, document, _ = await server.ask(key)
    assert status == 401 and problem(document)["code"] == "invalid_api_key"


async def test_a_key_is_good_until_it_expires(server: KeyedServer) -> None:
    key = server.add_key("brief", expires_at=BORN_UNIX_S + 60)
    server.clock.passed_s = 59
    assert await server.status(key) == 200
    server.clock.passed_s = 60
    status, document, _ = await server.ask(key)
    assert status == 401 and "expired" in problem(document)["message"]
    assert server.refused("expired_key") == 1


async def test_a_websocket_names_its_key_as_a_subprotocol(server: KeyedServer, key: str) -> None:
    caller = SocketCaller(server.running.url)
    await caller.dial(protocols=("realtime", f"openai-insecure-api-key.{key}"))
    assert caller.socket.protocol == "realtime"
    await caller.hang_up()
    for protocols in ((), ("realtime",), ("realtime", f"openai-insecure-api-key.{key}x")):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await server.http.ws_connect("/v1/realtime?model=x", protocols=protocols)
        assert refused.value.status == 401
    as_plain_http = {"Sec-WebSocket-Protocol": f"openai-insecure-api-key.{key}"}
    assert await server.status("", headers=as_plain_http) == 401


async def test_clients_see_the_errors_that_they_know(server: KeyedServer, key: str) -> None:
    def client(secret: str) -> openai.AsyncOpenAI:
        base_url = f"{server.running.url}/v1"
        return openai.AsyncOpenAI(api_key=secret, base_url=base_url, max_retries=0)

    limited = server.add_key("limited", requests_per_minute=1)
    secret = (await server.secret(key))["value"]
    async with client(key) as good, client("wrong") as wrong, client(limited) as often:
        assert [model.id async for model in good.models.list()] == ["echo"]
        with pytest.raises(openai.AuthenticationError) as unknown:
            await wrong.models.list()
        assert unknown.value.code == "invalid_api_key" and "wrong" not in str(unknown.value.body)
        await often.models.list()
        with pytest.raises(openai.RateLimitError) as limit:
            await often.models.list()
        assert limit.value.code == "rate_limit_exceeded"
    async with client(secret) as browser:
        with pytest.raises(openai.PermissionDeniedError) as forbidden:
            await browser.realtime.client_secrets.create()
        assert forbidden.value.code == "permission_denied"


async def test_no_key_is_ever_told(
    server: KeyedServer, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = (await server.secret(key))["value"]
    caller = SocketCaller(server.running.url)
    await caller.dial(headers=bearer(secret))
    said = [
        json.dumps(caller.events),
        *[str(await server.ask(each + "?")) for each in (key, secret)],
    ]
    for path in ("/metrics", "/healthz", MODELS):
        said.append(str(await server.ask(key, path=path)))
    await caller.hang_up()
    server.file.write_text(f'{{"name": "{key}"}}\n')
    server.clock.passed_s += 1
    assert await server.status(key) == 200
    assert "line 1" in caplog.text
    everything = "\n".join([*said, caplog.text])
    assert key not in everything and key.removeprefix("va_") not in everything
    assert secret not in everything and secret.rpartition("_")[2] not in everything


# ---- how often --------------------------------------------------------------------------------


async def test_requests_of_a_key_are_bounded_a_minute(server: KeyedServer, key: str) -> None:
    often = server.add_key("often", requests_per_minute=3)
    secret = (await server.secret(often))["value"]
    assert [await server.status(each) for each in (often, secret, often)] == [200, 200, 429]
    status, document, headers = await server.ask(secret)
    assert status == 429 and headers["Retry-After"] == "20"
    assert problem(document)["type"] == "rate_limit_error"
    assert await server.status(key) == 200
    server.clock.passed_s += 20
    assert [await server.status(often), await server.status(often)] == [200, 429]
    assert server.refused("rate") == 3


async def test_each_response_tells_how_many_requests_are_left(server: KeyedServer) -> None:
    few = server.add_key("few", requests_per_minute=6)
    await server.status(few)
    caller = SocketCaller(server.running.url)
    await caller.dial(headers={"Authorization": f"Bearer {few}"})
    told = await caller.wait_for("rate_limits.updated")
    await caller.hang_up()
    assert caller.types().index("rate_limits.updated") == 1 + caller.types().index(
        "response.created"
    )
    left = {"name": "requests", "limit": 6, "remaining": 4, "reset_seconds": 20.0}
    assert told["rate_limits"] == [left]


async def test_guessing_is_slowed_down_and_disturbs_nobody(tmp_path: Path) -> None:
    async with keyed_server(tmp_path, ["auth.failures_per_minute=2"]) as server:
        key = server.add_key("acme")
        found = [await server.status(f"va_guess{guess}") for guess in range(4)]
        assert found == [401, 401, 429, 429]
        # From the same address, as behind a proxy.
        assert await server.status(key) == 200 and await server.status("") == 401
        server.clock.passed_s += 30
        assert [await server.status("va_x"), await server.status("va_x")] == [401, 429]


async def test_whose_address_counts_is_what_a_known_proxy_says(tmp_path: Path) -> None:
    settings = ["auth.failures_per_minute=1", "server.proxies=127.0.0.0/8"]
    for overrides, another in ((settings, 401), (settings[:1], 429)):
        async with keyed_server(tmp_path, overrides) as server:
            if not server.file.exists():
                server.add_key("acme")

            async def guess(forwarded: str, server: KeyedServer = server) -> int:
                return await server.status("va_x", headers={"X-Forwarded-For": forwarded})

            assert await guess("192.0.2.1") == 401
            assert await guess("192.0.2.2") == another
            # What the client wrote there itself stands before, and a host has many addresses.
            assert await guess("192.0.2.9, 192.0.2.1") == 429
            assert await guess("192.0.2.1:4711") == 429
            assert await guess("2001:db8:1:2::3") == another
            assert await guess("2001:db8:1:2:ffff::4") == 429


# ---- whose calls ------------------------------------------------------------------------------


async def test_calls_are_their_keys_alone(server: KeyedServer, key: str) -> None:
    other, peer = server.add_key("other"), Caller(server.running.url)
    offer = await peer.offer()
    secret, second = [(await server.secret(key))["value"] for _ in range(2)]
    status, _, headers = await server.ask(secret, "POST", CALLS, data=offer, headers=SDP)
    assert status == 201
    place = headers["Location"]
    sideband = f"/v1/realtime?call_id={place.rpartition('/')[2]}"
    for stranger in (other, second, (await server.secret(other))["value"]):
        for method, path in (("POST", f"{place}/hangup"), ("DELETE", place), ("PATCH", place)):
            status, document, _ = await server.ask(stranger, method, path)
            assert (status, problem(document)["code"]) == (404, "call_not_found"), (method, path)
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await server.http.ws_connect(sideband, headers=bearer(stranger))
        assert refused.value.status == 404
    for owner in (key, secret):
        async with server.http.ws_connect(sideband, headers=bearer(owner)) as socket:
            assert (await socket.receive_json(timeout=60))["type"] == "session.created"
    assert await server.status(key, "POST", f"{place}/hangup") == 200
    assert server.running.calls == 0
    await peer.close()


async def test_a_key_has_so_many_calls_at_a_time(server: KeyedServer, key: str) -> None:
    two = server.add_key("two", max_calls=2)
    secret = (await server.secret(two))["value"]
    callers = []
    for each in (two, secret):
        callers.append(SocketCaller(server.running.url))
        await callers[-1].dial(headers=bearer(each))
    for each in (two, secret):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await server.http.ws_connect("/v1/realtime?model=x", headers=bearer(each))
        assert refused.value.status == 429 and refused.value.headers is not None
        assert refused.value.headers["Retry-After"] == "5"
    assert server.refused("calls") == 2
    callers.append(SocketCaller(server.running.url))
    await callers[-1].dial(headers=bearer(key))
    await callers.pop(0).hang_up()
    async with asyncio.timeout(60):
        while server.running.calls > 2:
            await asyncio.sleep(0.01)
    callers.append(SocketCaller(server.running.url))
    await callers[-1].dial(headers=bearer(two))
    for caller in callers:
        await caller.hang_up()


# ---- which voices -----------------------------------------------------------------------------


def in_voice(voice: object) -> dict[str, Any]:
    return {"type": "realtime", "audio": {"output": {"voice": voice}}}


async def test_a_key_has_its_voices_and_no_others(server: KeyedServer) -> None:
    key = server.add_key("choosy", voices=("rosa", "carl"))
    for voice in ("clara", {"id": "clara"}):
        body = {"session": in_voice(voice)}
        status, document, _ = await server.ask(key, "POST", SECRETS, json=body)
        assert (status, problem(document)["code"]) == (403, "voice_not_allowed")
        assert "rosa, carl" in problem(document)["message"]
    assert server.refused("voice") == 2
    for voice, got in (("carl", "carl"), ("alloy", "rosa"), (None, "rosa")):
        made = await server.secret(key, session=in_voice(voice))
        assert made["session"]["audio"]["output"]["voice"] == got
    caller = SocketCaller(server.running.url)
    await caller.dial(headers=bearer(key))
    await caller.send("session.update", session=in_voice("clara"))
    refused = await caller.wait_for("error")
    assert "rosa, carl" in str(refused["error"])
    await caller.hang_up()
    assert await server.status(key, "POST", VOICES) == 403
    _, listed, _ = await server.ask(key, path=VOICES)
    assert listed["data"] == []


async def test_speech_and_chats_have_only_the_key_s_voices(server: KeyedServer) -> None:
    engine: Any = SpeakingEngine()
    server.running.app[CHATS].engine = engine
    known = engine.abilities.voices
    assert len(known) > 1
    key = server.add_key("choosy", voices=(known[1],))
    spoken = {"input": "one", "response_format": "wav"}
    told = {"messages": [{"role": "user", "content": "one"}], "modalities": ["text", "audio"]}
    for path, body, field in ((SPEECH, spoken, "voice"), (CHAT, told, "audio")):
        for voice, status in ((known[0], 403), (known[1], 200), ("alloy", 200)):
            asked = {"voice": voice, "format": "wav"} if field == "audio" else voice
            found, document, _ = await server.ask(key, "POST", path, json={**body, field: asked})
            assert found == status, document
    written = [each.voice for each in engine.requests if not hasattr(each, "order")]
    assert [each.voice for each in engine.spoken] == written == [known[1]] * 2


# ---- what secrets may not ---------------------------------------------------------------------


async def test_a_client_secret_opens_calls_and_little_else(server: KeyedServer, key: str) -> None:
    server.running.app[CHATS].engine = ReadingEngine()
    secret = (await server.secret(key))["value"]
    for method, path in (
        ("POST", SECRETS),
        ("POST", VOICES),
        ("POST", f"{VOICES}/check"),
        ("DELETE", f"{VOICES}/clara"),
        ("POST", CHAT),
        ("POST", SPEECH),
        ("GET", "/metrics"),
    ):
        status, document, _ = await server.ask(secret, method, path, json={})
        assert (status, problem(document)["type"]) == (403, "permission_error"), path
        assert problem(document)["code"] == "permission_denied"
    for path in (MODELS, VOICES, "/v1/realtime/ice-servers"):
        assert await server.status(secret, path=path) == 200
    assert await server.status(key, "POST", CHAT, json={"messages": []}) == 400
