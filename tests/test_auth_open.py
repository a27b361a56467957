"""A server without keys: whom it listens to, and which names and pages it answers."""

import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest

from agent.__main__ import main
from agent.api.auth import expect_key_or_loopback
from agent.api.key_ring import KeyRing
from agent.config import load_config
from agent.errors import ConfigError
from agent.keys import given_key, sha256_of
from agent.tls import certificate_names, keep_certificate, names_of_this_machine
from tests.rig.keyed_server import MODELS, SECRETS, KeyedServer, keyed_server, problem
from tests.rig.socket_caller import SocketCaller

CALLS = "/v1/realtime/calls"
PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
}
ALLOWED = {"authorization", "content-type", "x-openai-agents-sdk", "openai-beta", "if-match"}
EXPOSED = {"location", "etag", "link", "retry-after"}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[KeyedServer]:
    """Without a key, as long as none is added."""
    async with keyed_server(tmp_path, ["server.public_hosts=voice.example"]) as running:
        yield running


# ---- where it listens -------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "kiosk.example"])
def test_no_key_no_network(host: str, tmp_path: Path) -> None:
    places = [f"server.host={host}", f"server.data_folder={tmp_path}"]
    config = load_config(None, {}, places)
    with pytest.raises(ConfigError) as refused:
        expect_key_or_loopback(config, KeyRing.of(config))
    for way_out in ("voice-agent keys add NAME", "--host 127.0.0.1", "--no-auth"):
        assert way_out in str(refused.value)
    expect_key_or_loopback(config, KeyRing([given_key("a:" + sha256_of("va_x"))]))
    told = load_config(None, {}, [*places, "auth.required=false"])
    expect_key_or_loopback(told, KeyRing.of(told))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_this_machine_needs_none(host: str, tmp_path: Path) -> None:
    config = load_config(None, {}, [f"server.host={host}", f"server.data_folder={tmp_path}"])
    expect_key_or_loopback(config, KeyRing.of(config))


def test_serve_ends_with_2_before_anything_is_loaded_or_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    line = ["serve", "--engine", "echo", "--host", "0.0.0.0", "--port", "0"]
    assert main([*line, "--set", f"server.data_folder={tmp_path}"]) == 2
    assert "--no-auth" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["nonsense\n", '{"name": "a"}\n'])
def test_a_broken_keys_file_keeps_the_server_from_starting(
    content: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    (tmp_path / "keys.jsonl").write_text(content)
    line = ["serve", "--engine", "echo", "--port", "0"]
    assert main([*line, "--set", f"server.data_folder={tmp_path}"]) == 2
    assert "keys.jsonl: line 1" in capsys.readouterr().err
    assert main([*line, "--set", f"auth.keys_file={tmp_path}/none.jsonl"]) == 2
    assert "voice-agent keys add" in capsys.readouterr().err


# ---- by which name ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8006", 200),
        ("[::1]:8006", 200),
        ("localhost:1", 200),
        ("LocalHost", 200),
        ("page.localhost", 200),
        ("192.0.2.1:8006", 200),
        ("voice.example", 200),
        ("voice.example.:443", 200),
        ("evil.example:8006", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421),
        ("a.voice.example", 421),
        ("", 421),
    ],
)
async def test_a_name_that_was_turned_here_is_not_answered(
    server: KeyedServer, host: str, status: int
) -> None:
    for method, path in (("GET", MODELS), ("GET", "/"), ("POST", "/page/secret")):
        found, document, _ = await server.ask("", method, path, headers={"Host": host})
        if status == 421:
            assert found == 421
            error = problem(document)
            assert error["code"] == "unknown_host" and "server.public_hosts" in error["message"]
        else:
            assert found == (204 if method == "POST" else 200)
    assert await server.status("", path="/healthz", headers={"Host": host}) == 200
    assert server.refused("host") == (3 if status == 421 else 0)


async def test_with_a_key_any_name_will_do(server: KeyedServer) -> None:
    key = server.add_key("acme")
    assert await server.status(key, headers={"Host": "evil.example"}) == 200
    assert await server.status("", headers={"Host": "evil.example"}) == 401
    assert await server.status("", path="/", headers={"Host": "evil.example"}) == 200


def test_the_names_of_a_certificate_are_the_server_s(tmp_path: Path) -> None:
    names = names_of_this_machine("Kiosk.example")
    path = keep_certificate(tmp_path / "tls" / "one.pem", names, datetime.now(UTC))
    assert {"localhost", "kiosk.example"} <= certificate_names(path)


# ---- from which page --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("origin", "site", "allowed"),
    [
        ("", None, True),
        ("http://localhost:5173", "cross-site", True),
        ("http://127.0.0.1:9", None, True),
        ("http://[::1]:9", None, True),
        ("https://voice.example", None, True),
        ("https://proxy.example", "same-origin", True),
        ("https://evil.example", "cross-site", False),
        ("https://evil.example", None, False),
        ("http://127.0.0.1.evil.example", None, False),
        ("null", "cross-site", False),
        ("http://[", None, False),
        ("http://[x]:9", None, False),
    ],
)
async def test_pages_from_elsewhere_are_not_answered(
    server: KeyedServer, origin: str, site: str | None, allowed: bool
) -> None:
    headers = {"Origin": origin} if origin else {}
    if site:
        headers["Sec-Fetch-Site"] = site
    status, document, found = await server.ask("", headers=headers)
    assert status == (200 if allowed else 403)
    caller = SocketCaller(server.running.url)
    if allowed:
        await caller.dial(headers=headers)
        await caller.hang_up()
        return
    assert problem(document)["code"] == "foreign_origin"
    assert "Access-Control-Allow-Origin" not in found
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await server.http.ws_connect("/v1/realtime?model=x", headers=headers)
    assert refused.value.status == 403
    async with server.http.options(CALLS, headers={**headers, **PREFLIGHT}) as response:
        assert "Access-Control-Allow-Origin" not in response.headers


async def test_who_says_so_lets_every_page_in(tmp_path: Path) -> None:
    foreign = {"Origin": "https://any.example"}
    async with keyed_server(tmp_path, ["auth.required=false"]) as server:
        status, _, headers = await server.ask("", headers=foreign)
        assert (status, headers["Access-Control-Allow-Origin"]) == (200, "https://any.example")
        assert await server.status("", headers={"Host": "evil.example"}) == 421


async def test_pages_that_have_a_key_can_read_what_is_said(server: KeyedServer) -> None:
    key, foreign = server.add_key("acme"), {"Origin": "https://any.example"}
    async with server.http.options(CALLS, headers={**foreign, **PREFLIGHT}) as response:
        assert response.status == 204, "a preflight has no key"
        assert response.headers["Access-Control-Allow-Origin"] == "https://any.example"
        names = response.headers["Access-Control-Allow-Headers"].lower()
        assert names == PREFLIGHT["Access-Control-Request-Headers"]
        methods = response.headers["Access-Control-Allow-Methods"]
        assert {"POST", "PATCH", "DELETE"} <= set(methods.split(", "))
    short = {**foreign, "Access-Control-Request-Method": "POST"}
    async with server.http.options(CALLS, headers=short) as response:
        assert set(response.headers["Access-Control-Allow-Headers"].lower().split(", ")) >= ALLOWED
    for secret, status in ((key, 200), ("", 401), ("va_wrong", 401)):
        found, _, headers = await server.ask(secret, headers=foreign)
        assert found == status
        assert headers["Access-Control-Allow-Origin"] == "https://any.example"
        assert headers["Vary"] == "Origin"
        exposed = headers["Access-Control-Expose-Headers"].lower().split(", ")
        assert set(exposed) >= EXPOSED


async def test_only_listed_pages_open_a_websocket_even_with_a_key(tmp_path: Path) -> None:
    async with keyed_server(tmp_path, ["server.cors_origins=https://kiosk.example"]) as server:
        protocols = ("realtime", f"openai-insecure-api-key.{server.add_key('acme')}")
        for origin, allowed in (
            ("https://kiosk.example", True),
            (server.running.url, True),
            ("https://other.example", False),
            ("null", False),
        ):
            caller, headers = SocketCaller(server.running.url), {"Origin": origin}
            if allowed:
                await caller.dial(protocols=protocols, headers=headers)
                await caller.hang_up()
                continue
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await server.http.ws_connect(
                    "/v1/realtime?model=x", protocols=protocols, headers=headers
                )
            assert refused.value.status == 403
        assert server.refused("origin") == 2


# ---- secrets where nobody needs one -----------------------------------------------------------


async def test_a_secret_binds_where_no_key_is_asked_for(server: KeyedServer) -> None:
    for key in ("", "sk-anything"):
        secret = await server.secret(key, session={"type": "realtime", "instructions": "Be brief."})
        assert secret["value"].startswith("ek_")
        caller = SocketCaller(server.running.url)
        await caller.dial(headers={"Authorization": f"Bearer {secret['value']}"})
        assert caller.events[0]["session"]["instructions"] == "Be brief."  # type: ignore[index]
        await caller.hang_up()
    server.clock.passed_s += 600
    status, document, _ = await server.ask(secret["value"])
    assert status == 401 and problem(document)["code"] == "invalid_api_key"
    fresh = (await server.secret(""))["value"]
    server.add_key("acme")
    assert await server.status(fresh) == 401, "nobody's secret opens nothing once keys are there"
    assert await server.status("", "POST", SECRETS, json={}) == 401


# ---- the keys file of a server that runs ------------------------------------------------------


async def test_a_file_that_breaks_changes_nothing_and_is_said_once(
    server: KeyedServer, caplog: pytest.LogCaptureFixture
) -> None:
    key = server.add_key("acme")
    assert await server.status(key) == 200
    good = server.file.read_text()
    for broken in ("nonsense", good + good, "x" * 2_000_000, None):
        caplog.clear()
        if broken is None:
            server.file.unlink()
        else:
            server.file.write_text(broken)
        for _ in range(3):
            server.clock.passed_s += 1
            assert await server.status(key) == 200 and await server.status("") == 401
        errors = [each for each in caplog.records if each.levelno == logging.ERROR]
        assert len(errors) == 1 and "the 1 keys so far stay" in errors[0].getMessage()
    server.file.write_text(good)
    server.remove_key("acme")
    assert await server.status(key) == 401


async def test_a_file_is_looked_at_once_a_second_at_most(server: KeyedServer) -> None:
    key = server.add_key("acme")
    assert await server.status(key) == 200
    server.file.write_text("")
    server.clock.passed_s += 0.9
    assert await server.status(key) == 200
    server.clock.passed_s += 0.2
    assert await server.status(key) == 401
