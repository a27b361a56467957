"""The HTTP side: endpoints, OpenAI-shaped errors, CORS, hostile bodies, start and stop."""

import asyncio
import io
import json
import signal
from collections.abc import AsyncIterator

import aiohttp
import pytest
from openai import AsyncOpenAI, NotFoundError
from yarl import URL

from agent.api.server import SERVICES
from agent.errors import CapacityError, WorkerLost
from agent.interfaces import Conversation
from agent.types import SessionSettings
from tests.rig.caller import Caller
from tests.rig.server import Footprint, Running, running_server, serving, settle

CALLS = "/v1/realtime/calls"
SDP = {"Content-Type": "application/sdp"}


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    async with running_server() as running:
        yield running


@pytest.fixture
async def http(server: Running) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(server.url) as session:
        yield session


async def problem(response: aiohttp.ClientResponse, status: int) -> dict[str, object]:
    """The error object of a refused request, checked for OpenAI's shape."""
    assert response.status == status, await response.text()
    body = await response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "code", "param"}
    assert body["error"]["message"]
    error: dict[str, object] = body["error"]
    return error


async def test_health_models_metrics_and_page(http: aiohttp.ClientSession) -> None:
    async with http.get("/healthz") as response:
        assert (await response.json())["status"] == "ok"
    async with http.get("/v1/models") as response:
        model = (await response.json())["data"][0]
        assert model["id"] == "echo" and model["object"] == "model"
        assert model["voice_agent"]["abilities"]["transcription"] is False
        assert model["voice_agent"]["reason"]
    async with http.get("/metrics") as response:
        text = await response.text()
        for name in ("calls_active", "stage_seconds", "underruns_total", "loop_lag_seconds"):
            assert f"# HELP voice_agent_{name.removesuffix('_total')}" in text
    async with http.get("/") as response:
        assert response.status == 200 and "<title" in await response.text()
        assert "default-src 'self'" in response.headers["Content-Security-Policy"]
    async with http.get("/README.md") as response:
        assert response.content_type == "text/plain"
        assert "How to get the model" in await response.text()
    async with http.get("/app.js") as response:
        assert response.status == 200 and "javascript" in response.content_type


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"v=0",
        b"hello",
        b"\xff\xfe\x00",
        b"v=0\r\n" + b"a=x\r\n" * 2000,
        b"v=0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=ice-ufrag:x\r\na=ice-pwd:y\r\n"
        b"a=fingerprint:z\r\n",
        b"v=0\r\nm=audio x y z\r\na=ice-ufrag:abcd\r\na=ice-pwd:0123456789012345678901\r\n"
        b"a=fingerprint:sha-256 00\r\n",
    ],
)
async def test_an_offer_that_is_none_is_refused_and_costs_nothing(
    http: aiohttp.ClientSession, server: Running, body: bytes
) -> None:
    async with http.get("/healthz"):
        before = Footprint.now()
    async with http.post(CALLS, data=body, headers=SDP) as response:
        error = await problem(response, 400)
        assert error["param"] == "sdp"
    assert server.calls == 0
    assert (await settle(before)).tasks == before.tasks


async def test_a_real_offer_damaged_at_any_line_never_breaks_the_server(
    http: aiohttp.ClientSession, server: Running
) -> None:
    caller = Caller(server.url)
    parsed = 0
    lines = (await caller.offer()).split("\r\n")
    for index in range(0, len(lines), 2):
        for damaged in ("", lines[index][: len(lines[index]) // 2], "m=audio", "a=rtpmap:"):
            body = "\r\n".join([*lines[:index], damaged, *lines[index + 1 :]])
            async with http.post(CALLS, data=body, headers=SDP) as response:
                assert response.status in (201, 400), (lines[index], damaged)
                location = response.headers.get("Location")
            if location:
                parsed += 1
                async with http.delete(location) as response:
                    assert response.status == 200
    assert parsed
    await caller.close()
    await server.end_calls()


async def test_a_body_of_10_mb_is_refused(http: aiohttp.ClientSession) -> None:
    body = io.BytesIO(b"v=0\r\n" * 2_000_000)
    async with http.post(CALLS, data=body, headers=SDP) as response:
        await problem(response, 413)
    form = aiohttp.FormData(default_to_multipart=True)
    form.add_field("sdp", io.BytesIO(b"v=0\r\n" * 2_000_000), content_type="application/sdp")
    async with http.post(CALLS, data=form) as response:
        await problem(response, 413)


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "", "application/octet-stream"])
async def test_a_wrong_content_type_is_named(http: aiohttp.ClientSession, kind: str) -> None:
    async with http.post(CALLS, data=b"v=0", headers={"Content-Type": kind}) as response:
        error = await problem(response, 415)
        assert error["param"] == "Content-Type" and "application/sdp" in str(error["message"])


async def test_multipart_carries_the_session(http: aiohttp.ClientSession, server: Running) -> None:
    caller = Caller(server.url)
    session = {"type": "realtime", "model": "gpt-realtime", "instructions": "Be brief."}
    form = aiohttp.FormData()
    form.add_field("sdp", await caller.offer(), content_type="application/sdp")
    form.add_field("session", json.dumps(session), content_type="application/json")
    async with http.post(CALLS, data=form) as response:
        assert response.status == 201, await response.text()
        assert response.headers["Location"].startswith(f"{CALLS}/rtc_")
        assert response.content_type == "application/sdp"
        answer = await response.text()
    assert "a=candidate" in answer
    await caller.accept(answer)
    created = await caller.wait_for("session.created")
    assert created["session"]["instructions"] == "Be brief."  # type: ignore[index]
    await caller.close()


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        ({"session": "{}"}, "sdp"),
        ({"sdp": "v=0", "session": "{"}, "session"),
        ({"sdp": "v=0", "session": "[" * 100_000}, "session"),
        ({"sdp": "v=0", "session": '{"instructions": 5}'}, "session.instructions"),
    ],
)
async def test_a_wrong_part_is_named(
    http: aiohttp.ClientSession, parts: dict[str, str], param: str
) -> None:
    form = aiohttp.FormData(default_to_multipart=True)
    for name, text in parts.items():
        form.add_field(name, text)
    async with http.post(CALLS, data=form) as response:
        assert (await problem(response, 400))["param"] == param


@pytest.mark.parametrize(
    "header", ["Content-Type: text/plain; charset=nope", "Content-Transfer-Encoding: nope"]
)
async def test_a_part_in_an_unknown_coding_is_a_clear_error(
    http: aiohttp.ClientSession, header: str
) -> None:
    body = f'--x\r\nContent-Disposition: form-data; name="sdp"\r\n{header}\r\n\r\nv=0\r\n--x--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    async with http.post(CALLS, data=body.encode(), headers=headers) as response:
        await problem(response, 400)


async def test_a_body_that_is_not_packed_as_it_says_is_a_clear_error(
    http: aiohttp.ClientSession,
) -> None:
    async with http.post(
        CALLS, data=b"v=0", headers={**SDP, "Content-Encoding": "gzip"}, compress=None
    ) as response:
        await problem(response, 400)


async def test_more_sections_than_a_call_has_are_refused(
    http: aiohttp.ClientSession, server: Running
) -> None:
    caller = Caller(server.url)
    offer = await caller.offer()
    audio = offer[offer.index("m=audio") : offer.index("m=application")]
    async with http.post(CALLS, data=offer + audio, headers=SDP) as response:
        assert "more than 1 audio" in str((await problem(response, 400))["message"])
    await caller.close()


async def test_odd_paths_are_not_found(http: aiohttp.ClientSession) -> None:
    for path in ("/%00", "/" + "a" * 5000, "/..%2fpyproject.toml", "/%2e%2e/pyproject.toml"):
        async with http.get(URL(path, encoded=True)) as response:
            await problem(response, 404)


async def test_a_call_that_cannot_be_set_up_gives_its_place_back(
    http: aiohttp.ClientSession, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError("no more sockets")

    monkeypatch.setattr("agent.transport.rtc.RtcTransport.answer", broken)
    for _ in range(20):
        async with http.post(CALLS, data=b"v=0", headers=SDP) as response:
            await problem(response, 500)
    assert server.calls == 0
    async with http.get("/healthz") as response:
        assert (await response.json())["slots_free"] == 16


class Refusing:
    """An `open` of an engine that only counts how often it was called, and raises."""

    def __init__(self, error: Exception) -> None:
        self.opened = 0
        self._error = error

    async def open(self, _: SessionSettings) -> Conversation:
        self.opened += 1
        raise self._error


async def test_only_an_offer_that_can_be_answered_reaches_the_engine(
    http: aiohttp.ClientSession, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Refusing(CapacityError("every slot is taken", retry_after_s=3.2))
    monkeypatch.setattr(server.app[SERVICES].engine, "open", full.open)
    caller = Caller(server.url)
    good = await caller.offer()
    # Only the WebRTC library itself finds out about the second.
    for bad in ("v=0", good.replace("a=setup:", "a=setup:x")):
        async with http.post(CALLS, data=bad, headers=SDP) as response:
            await problem(response, 400)
    assert full.opened == 0 and server.metric("voice_agent_calls_refused_total") == 0
    before = Footprint.now()
    async with http.post(CALLS, data=good, headers=SDP) as response:
        await problem(response, 503)
        assert response.headers["Retry-After"] == "4"
    assert full.opened == 1 and server.metric("voice_agent_calls_refused_total") == 1
    assert (await settle(before)).tasks == before.tasks and server.calls == 0
    await caller.close()


async def test_who_calls_while_the_engine_is_lost_is_told_when_to_try_again(
    http: aiohttp.ClientSession, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = Refusing(WorkerLost("the engine's process is gone"))
    monkeypatch.setattr(server.app[SERVICES].engine, "open", lost.open)
    caller = Caller(server.url)
    async with http.post(CALLS, data=await caller.offer(), headers=SDP) as response:
        assert (await problem(response, 503))["code"] == "worker_lost"
        assert int(response.headers["Retry-After"]) > 0
    await caller.close()


async def test_a_broken_multipart_body_is_a_clear_error(http: aiohttp.ClientSession) -> None:
    for kind in ("multipart/form-data", "multipart/form-data; boundary=x"):
        async with http.post(CALLS, data=b"--y\r\nbroken", headers={"Content-Type": kind}) as reply:
            await problem(reply, 400)


async def test_calls_and_paths_that_do_not_exist(http: aiohttp.ClientSession) -> None:
    async with http.post(f"{CALLS}/rtc_nope/hangup") as response:
        assert (await problem(response, 404))["code"] == "call_not_found"
    async with http.delete(f"{CALLS}/rtc_nope") as response:
        await problem(response, 404)
    async with http.get("/v1/nothing") as response:
        await problem(response, 404)
    async with http.get("/../pyproject.toml") as response:
        await problem(response, 404)
    for method, path in (("POST", "/v1/nothing"), ("DELETE", "/v1"), ("PUT", "/v1/audio/shouts")):
        async with http.request(method, path) as response:
            error = await problem(response, 404)
            assert path in str(error["message"]) and error["code"] == "unknown_url"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", CALLS, "OPTIONS,POST"),
        ("GET", CALLS, "OPTIONS,POST"),
        ("GET", "/v1/chat/completions", "POST"),
        ("GET", f"{CALLS}/rtc_nope/hangup", "POST"),
        ("PUT", f"{CALLS}/rtc_nope", "DELETE,GET,HEAD,PATCH"),
        ("POST", "/v1/models", "GET,HEAD"),
        ("POST", "/healthz", "GET,HEAD"),
    ],
)
async def test_another_method_of_a_path_is_told_which_it_takes(
    http: aiohttp.ClientSession, method: str, path: str, allowed: str
) -> None:
    async with http.request(method, path) as response:
        assert (await problem(response, 405))["code"] == "method_not_supported"
        assert response.headers["Allow"] == allowed


async def test_a_model_is_had_by_its_id(server: Running, http: aiohttp.ClientSession) -> None:
    client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    async with client, http.get("/v1/models") as listed:
        model = await client.models.retrieve("echo")
        assert model.to_dict() == (await listed.json())["data"][0]
        for other in ("gpt-realtime", "owner/name"):
            with pytest.raises(NotFoundError) as refused:
                await client.models.retrieve(other)
            assert refused.value.code == "model_not_found" and other in refused.value.message


async def test_pages_from_elsewhere_may_call_and_read_the_location(
    http: aiohttp.ClientSession,
) -> None:
    headers = {
        "Origin": "http://localhost:5173",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-openai-agents-sdk",
    }
    async with http.options(CALLS, headers=headers) as response:
        assert response.status == 204
        allowed = response.headers["Access-Control-Allow-Headers"].lower()
        assert {"authorization", "content-type", "x-openai-agents-sdk"} <= set(allowed.split(","))
        assert "POST" in response.headers["Access-Control-Allow-Methods"]
    here = {**SDP, "Origin": headers["Origin"]}
    async with http.post(CALLS, data=b"", headers=here) as response:
        await problem(response, 400)
        assert response.headers["Access-Control-Allow-Origin"] == headers["Origin"]
        assert "Location" in response.headers["Access-Control-Expose-Headers"]


async def test_an_allow_list_of_origins_is_kept() -> None:
    async with running_server(["server.cors_origins=https://kiosk.test"]) as server:
        async with aiohttp.ClientSession(server.url) as http:
            for origin, allowed in (("https://kiosk.test", True), ("https://else.test", False)):
                async with http.get("/v1/models", headers={"Origin": origin}) as response:
                    assert ("Access-Control-Allow-Origin" in response.headers) is allowed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_serve_says_what_it_does_and_ends_calls_at_a_signal(number: signal.Signals) -> None:
    async with serving() as (url, _, process):
        assert url.startswith("http://127.0.0.1:")
        caller = Caller(url)
        await caller.dial()
        process.send_signal(number)
        await caller.wait_until_closed()
        assert await asyncio.wait_for(process.wait(), 30) == 0
        assert process.stderr is not None
        assert "Traceback" not in (await process.stderr.read()).decode()
        await caller.close()
