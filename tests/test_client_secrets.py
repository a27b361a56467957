"""`POST /v1/realtime/client_secrets`: made, used, expired, revoked, bounded."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from openai.types.realtime import ClientSecretCreateResponse
from pydantic import TypeAdapter

from agent.api import client_secrets
from agent.api.caller import Caller
from agent.api.client_secrets import ClientSecrets, TooManySecrets
from agent.api.key_ring import KeyRefused
from agent.errors import CapacityError
from tests.rig.caller import Caller as Peer
from tests.rig.keyed_server import (
    BORN_UNIX_S,
    SECRETS,
    HandClock,
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


# ---- made -------------------------------------------------------------------------------------


async def test_the_client_of_openai_makes_one(server: KeyedServer, key: str) -> None:
    url = f"{server.running.url}/v1"
    async with openai.AsyncOpenAI(api_key=key, base_url=url, max_retries=0) as client:
        made = await client.realtime.client_secrets.create(
            expires_after={"anchor": "created_at", "seconds": 90},
            session={
                "type": "realtime",
                "model": "gpt-realtime",
                "instructions": "Be brief.",
                "audio": {"input": {"turn_detection": None}},
            },
        )
        usual = await client.realtime.client_secrets.create()
    assert made.value.startswith("ek_") and made.value != usual.value
    assert made.expires_at == int(server.clock.unix_s()) + 90
    assert usual.expires_at == int(server.clock.unix_s()) + 600
    assert made.session.type == "realtime" and made.session.object == "realtime.session"
    assert made.session.instructions == "Be brief." and made.session.id.startswith("sess_")


async def test_the_answer_is_what_the_types_say(server: KeyedServer, key: str) -> None:
    status, document, headers = await server.ask(key, "POST", SECRETS)
    assert status == 200 and headers["Cache-Control"] == "no-store"
    assert set(document) == {"value", "expires_at", "session"}
    strict = TypeAdapter(ClientSecretCreateResponse).validate_json(json.dumps(document))
    assert strict.session.type == "realtime"
    assert document["session"]["object"] == "realtime.session"


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"expires_after": {"seconds": 9}}, "expires_after.seconds", "invalid_value"),
        ({"expires_after": {"seconds": 7201}}, "expires_after.seconds", "invalid_value"),
        ({"expires_after": {"seconds": 60.5}}, "expires_after.seconds", "invalid_type"),
        ({"expires_after": {"seconds": "60"}}, "expires_after.seconds", "invalid_type"),
        ({"expires_after": {"seconds": True}}, "expires_after.seconds", "invalid_type"),
        ({"expires_after": {"anchor": "now"}}, "expires_after.anchor", "invalid_value"),
        ({"expires_after": {"minutes": 1}}, "expires_after.minutes", "unknown_parameter"),
        ({"expires_after": 60}, "expires_after", "invalid_type"),
        ({"expires_at": 60}, "expires_at", "unknown_parameter"),
        ({"session": []}, "session", "invalid_type"),
        ({"session": {"type": "transcription"}}, "session.type", "invalid_value"),
        ({"session": {"instructions": 5}}, "session.instructions", "invalid_type"),
        ([], None, "invalid_type"),
    ],
)
async def test_what_is_wrong_is_named_now_and_not_in_the_browser(
    server: KeyedServer, key: str, body: Any, param: str | None, code: str
) -> None:
    status, document, _ = await server.ask(key, "POST", SECRETS, json=body)
    assert status == 400
    assert (problem(document)["param"], problem(document)["code"]) == (param, code)
    assert problem(document)["type"] == "invalid_request_error"


async def test_a_body_that_is_none_is_refused(server: KeyedServer, key: str) -> None:
    for body, kind, status in (
        (b"{", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"{}", "text/plain", 415),
        (b'{"session": "' + b"x" * 140_000 + b'"}', "application/json", 413),
    ):
        headers = {"Content-Type": kind}
        found, document, _ = await server.ask(key, "POST", SECRETS, data=body, headers=headers)
        assert found == status and problem(document), kind


# ---- used -------------------------------------------------------------------------------------


async def opened(server: KeyedServer, secret: str, **dialled: Any) -> dict[str, Any]:
    """The session that a call by that secret begins with."""
    caller = SocketCaller(server.running.url)
    await caller.dial(headers=bearer(secret), **dialled)
    session: Any = caller.events[0]["session"]
    await caller.hang_up()
    return session  # type: ignore[no-any-return]


async def test_a_secret_opens_several_calls_with_its_session(server: KeyedServer, key: str) -> None:
    detection = {"type": "server_vad", "silence_duration_ms": 900}
    session = {
        "type": "realtime",
        "instructions": "You are a kiosk.",
        "audio": {"input": {"turn_detection": detection}, "output": {"voice": "carl"}},
    }
    made = await server.secret(key, session=session)
    for _ in range(2):
        found = await opened(server, made["value"])
        assert found["instructions"] == "You are a kiosk."
        assert found["audio"]["output"]["voice"] == "carl"
        assert found["audio"]["input"]["turn_detection"]["silence_duration_ms"] == 900
        assert found | {"id": ""} == made["session"] | {"id": ""}
    assert (await opened(server, key))["instructions"] != "You are a kiosk."


BOUND: dict[str, Any] = {
    "type": "realtime",
    "instructions": "You are a kiosk.",
    "audio": {"input": {"turn_detection": None}, "output": {"voice": {"id": "carl"}}},
}


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (None, BOUND),
        ({}, BOUND),
        ({"instructions": "Be free."}, BOUND),
        ({"audio": {"output": {"voice": "anna"}}}, BOUND),
        ({"audio": {"input": {"turn_detection": {"type": "server_vad"}}}}, BOUND),
        ({"audio": None, "tools": []}, BOUND | {"tools": []}),
        (
            {"audio": {"output": {"speed": 1}}},
            BOUND | {"audio": BOUND["audio"] | {"output": {"voice": {"id": "carl"}, "speed": 1}}},
        ),
        ([1], [1]),
        ("x", "x"),
    ],
)
def test_what_a_secret_names_holds_and_the_rest_is_free(sent: object, expected: object) -> None:
    assert Caller(session=BOUND).opening(sent) == expected
    assert Caller().opening(sent) == sent


async def test_a_session_beside_the_offer_refines_the_secret_s(
    server: KeyedServer, key: str
) -> None:
    secret = await server.secret(key, session={"type": "realtime", "instructions": "Mine."})
    peer = Peer(server.running.url)
    form = aiohttp.FormData()
    form.add_field("sdp", await peer.offer(), content_type="application/sdp")
    session = {"type": "realtime", "instructions": "Yours.", "voice_agent": {"eagerness": 0.9}}
    form.add_field("session", json.dumps(session), content_type="application/json")
    headers = bearer(secret["value"])
    async with server.http.post(CALLS, data=form, headers=headers) as response:
        assert response.status == 201, await response.text()
        place = response.headers["Location"]
    async with server.http.ws_connect(
        f"/v1/realtime?call_id={place.rpartition('/')[2]}", headers=headers
    ) as socket:
        created = await socket.receive_json(timeout=60)
    assert created["session"]["instructions"] == "Mine."
    assert created["session"]["voice_agent"]["eagerness"] == 0.9
    assert await server.status(key, "DELETE", place) == 200
    await peer.close()


# ---- over -------------------------------------------------------------------------------------


async def test_a_secret_expires_and_its_calls_go_on(server: KeyedServer, key: str) -> None:
    made = await server.secret(key, expires_after={"anchor": "created_at", "seconds": 10})
    caller = SocketCaller(server.running.url)
    await caller.dial(headers=bearer(made["value"]))
    server.clock.passed_s += 9.9
    assert await server.status(made["value"]) == 200
    server.clock.passed_s += 0.1
    status, document, _ = await server.ask(made["value"])
    assert (status, problem(document)["code"]) == (401, "invalid_api_key")
    await caller.send("input_audio_buffer.clear")
    await caller.wait_for("input_audio_buffer.cleared")
    await caller.hang_up()


async def test_a_key_that_is_removed_or_expires_takes_its_secrets_along(
    server: KeyedServer, key: str
) -> None:
    brief = server.add_key("brief", expires_at=BORN_UNIX_S + 100)
    mine, theirs = [(await server.secret(each))["value"] for each in (key, brief)]
    server.remove_key("acme")
    assert await server.status(mine) == 401 and await server.status(theirs) == 200
    assert server.refused("removed_key") == 1
    server.clock.passed_s = 100
    assert await server.status(theirs) == 401


# ---- bounds -----------------------------------------------------------------------------------


def test_a_secret_is_found_by_all_of_it_and_by_nothing_less() -> None:
    known = ClientSecrets(HandClock())
    one, other = known.create("a", 60).value, known.create("b", 60).value
    assert known.find(one).holder == "a" and known.find(other).holder == "b"
    first, second = one.rpartition("_")[0], other.rpartition("_")[2]
    for wrong in ("", "ek_", "ek__", first, f"{first}_", f"{first}_{second}", one[:-1], one + "x"):
        with pytest.raises(KeyRefused):
            known.find(wrong)


def test_each_holder_has_so_many_and_those_that_expire_make_room() -> None:
    clock = HandClock()
    known = ClientSecrets(clock)
    for _ in range(1000):
        known.create("a", 60)
    with pytest.raises(TooManySecrets) as refused:
        known.create("a", 60)
    assert refused.value.status == 429
    known.create("b", 600)
    clock.passed_s += 60
    known.create("a", 60)
    assert len(known) == 2, "what has expired is forgotten"


def test_all_together_are_bounded_by_number_and_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_secrets, "_MOST_SECRETS", 3)
    clock = HandClock()
    known = ClientSecrets(clock)
    for holder in "abc":
        known.create(holder, 60)
    with pytest.raises(CapacityError) as refused:
        known.create("d", 60)
    assert refused.value.status == 503
    clock.passed_s += 60
    monkeypatch.setattr(client_secrets, "_MOST_SESSION_BYTES", 100)
    known.create("a", 60, {"instructions": "x" * 40})
    with pytest.raises(CapacityError):
        known.create("b", 60, {"instructions": "x" * 40})
    clock.passed_s += 60
    known.create("b", 60, {"instructions": "x" * 40})


def test_pages_are_given_secrets_however_many_somebody_has_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_secrets, "_MOST_SECRETS", 6)
    monkeypatch.setattr(client_secrets, "_MOST_OF_ONE", 4)
    known = ClientSecrets(HandClock(), "p", forgets=True)
    guest = known.create("guest", 60).value
    greedy = [known.create("greedy", 60).value for _ in range(6)]
    assert known.find(greedy[2]) and known.find(greedy[5]) and len(known) == 5
    others = [known.create(f"other {at}", 60).value for at in range(3)]
    assert len(known) == 6 and known.find(guest) and all(known.find(each) for each in others)
    for gone in greedy[:4]:
        with pytest.raises(KeyRefused):
            known.find(gone)
