"""The page where the server asks for keys: its own secret, the user's key, limits, and renewal."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, Request, async_playwright

from agent.api.chat import CHATS
from agent.api.page import SECONDS
from tests.rig.caller import Caller
from tests.rig.keyed_server import SECRETS, KeyedServer, bearer, keyed_server, problem
from tests.rig.speaking_engine import SpeakingEngine
from tests.web_page.browser import PATIENCE_MS
from tests.web_page.chromium import start_chromium

PAGE_SECRET = "/page/secret"
CALLS, CHAT, VOICES = "/v1/realtime/calls", "/v1/chat/completions", "/v1/audio/voices"
OWN = {"Sec-Fetch-Site": "same-origin"}
SDP = {"Content-Type": "application/sdp"}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[KeyedServer]:
    async with keyed_server(tmp_path, ["auth.page_calls_per_address=1"]) as running:
        running.add_key("acme")
        yield running


async def page_secret(server: KeyedServer, old: str = "", **headers: str) -> str:
    status, made, _ = await server.ask(old, "POST", PAGE_SECRET, headers={**OWN, **headers})
    assert status == 200, made
    return str(made["value"])


# ---- the endpoint -----------------------------------------------------------------------------


async def test_where_no_key_is_asked_for_none_is_given(tmp_path: Path) -> None:
    async with keyed_server(tmp_path) as server:
        assert await server.status("", "POST", PAGE_SECRET, headers=OWN) == 204


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin", "Host": "behind.proxy"}, 200),
        ({"Origin": "http://{here}"}, 200),
        ({}, 403),
        ({"Sec-Fetch-Site": "none"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://{here}"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:5173"}, 403),
        ({"Origin": "http://localhost:5173"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://evil.example", "Host": "evil.example"}, 421),
    ],
)
async def test_only_the_server_s_own_page_gets_one(
    server: KeyedServer, headers: dict[str, str], status: int
) -> None:
    here = server.running.url.removeprefix("http://")
    sent = {name: value.replace("{here}", here) for name, value in headers.items()}
    found, document, told = await server.ask("", "POST", PAGE_SECRET, headers=sent)
    assert found == status, document
    assert not any(name.startswith("Access-Control") for name in told)
    if status == 200:
        assert told["Cache-Control"] == "no-store" and document["value"].startswith("ek_")
        assert document["seconds"] == SECONDS
        assert document["expires_at"] == server.clock.unix_s() + SECONDS
    preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    async with server.http.options(PAGE_SECRET, headers=preflight) as response:
        assert not any(name.startswith("Access-Control") for name in response.headers)


async def test_a_page_may_call_and_chat_but_not_hand_on_or_change(server: KeyedServer) -> None:
    server.running.app[CHATS].engine = SpeakingEngine()
    secret = await page_secret(server)
    told = {"messages": [{"role": "user", "content": "one"}]}
    assert await server.status(secret, "POST", CHAT, json=told) == 200
    assert await server.status(secret, path=VOICES) == 200
    _, models, _ = await server.ask(secret)
    assert models["data"][0]["voice_agent"]["may"] == {
        "chat": True,
        "change_voices": False,
        "make_secrets": False,
    }
    for method, path in (("POST", SECRETS), ("POST", VOICES), ("DELETE", f"{VOICES}/x")):
        status, document, _ = await server.ask(secret, method, path, json={})
        assert (status, problem(document)["code"]) == (403, "permission_denied")
    assert await server.status(secret, path="/metrics") == 403


async def test_calls_stay_a_visitor_s_own_when_the_secret_is_renewed(server: KeyedServer) -> None:
    peer = Caller(server.running.url)
    offer = await peer.offer()
    first = await page_secret(server)
    status, _, headers = await server.ask(first, "POST", CALLS, data=offer, headers=SDP)
    assert status == 201
    place = headers["Location"]
    status, document, told = await server.ask(first, "POST", CALLS, data=offer, headers=SDP)
    assert (status, problem(document)["code"]) == (429, "call_limit_exceeded"), "one per address"
    assert int(told["Retry-After"]) > 0
    server.clock.passed_s += SECONDS - 1
    second, stranger = await page_secret(server, first), await page_secret(server)
    server.clock.passed_s += 1
    assert await server.status(first) == 401
    assert await server.status(stranger, "DELETE", place) == 404
    assert await server.status(second, "DELETE", place) == 200
    await peer.close()


async def test_calls_of_all_pages_are_bounded_together(tmp_path: Path) -> None:
    settings = ["auth.page_calls=1", "server.proxies=127.0.0.1"]
    async with keyed_server(tmp_path, settings) as server:
        server.add_key("acme")
        peer = Caller(server.running.url)
        offer, found = await peer.offer(), []
        for address in ("192.0.2.1", "192.0.2.2"):
            from_there = {"X-Forwarded-For": address}
            secret = await page_secret(server, **from_there)
            asked = {**SDP, **from_there}
            found.append(await server.status(secret, "POST", CALLS, data=offer, headers=asked))
        assert found == [201, 429]
        await server.running.end_calls()
        await peer.close()


async def test_requests_of_a_page_are_bounded_by_address(tmp_path: Path) -> None:
    async with keyed_server(tmp_path, ["auth.page_requests_per_minute=2"]) as server:
        key = server.add_key("acme")
        secret = await page_secret(server)
        assert [await server.status(secret), await server.status(secret)] == [200, 429]
        assert await server.status("", "POST", PAGE_SECRET, headers=OWN) == 429
        assert await server.status(key) == 200


async def test_a_page_may_be_let_change_voices(tmp_path: Path) -> None:
    async with keyed_server(tmp_path, ["auth.page_voices=true"]) as server:
        server.add_key("acme")
        secret = await page_secret(server)
        assert await server.status(secret, "DELETE", f"{VOICES}/nobody") == 404


# ---- in the browser ---------------------------------------------------------------------------


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    async with async_playwright() as driver:
        browser = await start_chromium(driver)
        yield browser
        await browser.close()


class Visit:
    """The page of `server` in a browser, and the API requests that it made."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.requests: list[Request] = []
        page.on("request", self._note)

    def _note(self, request: Request) -> None:
        if "/v1/" in request.url:
            self.requests.append(request)

    def keys(self, path: str) -> list[str]:
        """The header with which each request went there."""
        made = [each for each in self.requests if each.url.endswith(path)]
        return [each.headers.get("authorization", "") for each in made]

    async def engine(self, name: str) -> None:
        await self.page.wait_for_selector(f'#engine[data-engine="{name}"]', timeout=PATIENCE_MS)

    async def call(self) -> None:
        await self.page.click("#call-button")
        await self.page.wait_for_selector('#state[data-state="speaking"]', timeout=PATIENCE_MS)

    async def hang_up(self, server: KeyedServer) -> None:
        async with self.page.expect_response(lambda each: "/hangup" in each.url) as ended:
            await self.page.click("#call-button")
        assert (await ended.value).status == 200
        assert server.running.calls == 0


async def test_a_call_the_voices_and_the_chat_work_with_keys(server: KeyedServer) -> None:
    engine: Any = SpeakingEngine()
    server.running.app[CHATS].engine = engine
    async with chromium() as browser:
        visit = Visit(await browser.new_page())
        await visit.page.goto(server.running.url)
        await visit.engine("echo")
        await visit.call()
        await visit.hang_up(server)
        said: Any = await visit.page.evaluate(
            """async () => {
              const { PageKey } = await import('./page_key.js');
              const { VoicesApi } = await import('./voices.js');
              const { streamAnswer } = await import('./chat_stream.js');
              const key = new PageKey(document.baseURI);
              const voices = await new VoicesApi(document.baseURI, key).list();
              const url = new URL('v1/chat/completions', document.baseURI);
              const body = { stream: true, messages: [{ role: 'user', content: 'hello' }] };
              let text = '';
              for await (const piece of streamAnswer(url, body, new AbortController().signal, key))
                text += piece.text;
              return { voices: voices.length, text };
            }"""
        )
        assert "hello" in said["text"]
        _, listed, _ = await server.ask(await page_secret(server), path=VOICES)
        assert said["voices"] == len(listed["data"])
        for path in ("/v1/models", CALLS, "/hangup", VOICES, CHAT):
            found = visit.keys(path)
            assert found and all(each.startswith("Bearer ek_p") for each in found), path


async def test_a_secret_is_renewed_before_it_expires_and_once_when_it_is_refused(
    server: KeyedServer,
) -> None:
    async with chromium() as browser:
        visit = Visit(await browser.new_page())
        await visit.page.clock.install()
        await visit.page.goto(server.running.url)
        await visit.engine("echo")
        ask = """import('./app.js').then(async ({ pageKey }) =>
          (await pageKey.fetch('v1/models', {})).status)"""
        assert await visit.page.evaluate(ask) == 200
        first = visit.keys("/v1/models")[-1]
        await visit.page.clock.fast_forward(SECONDS * 900)
        server.clock.passed_s += SECONDS * 0.9
        assert await visit.page.evaluate(ask) == 200
        second = visit.keys("/v1/models")[-1]
        assert second != first and len(visit.keys("/v1/models")) == 3, "renewed unasked"
        server.clock.passed_s += SECONDS
        assert await visit.page.evaluate(ask) == 200
        refused, third = visit.keys("/v1/models")[-2:]
        assert refused == second != third
        assert server.refused("unknown_secret") + server.refused("expired_secret") == 1


async def test_the_user_s_key_is_asked_for_where_the_page_has_none(tmp_path: Path) -> None:
    async with keyed_server(tmp_path, ["auth.page=off"]) as server:
        key = server.add_key("acme")
        status, document, _ = await server.ask("", "POST", PAGE_SECRET, headers=OWN)
        assert (status, problem(document)["code"]) == (403, "page_needs_key")
        async with chromium() as browser:
            visit = Visit(await browser.new_page())
            page = visit.page
            await page.goto(server.running.url)
            await page.wait_for_selector("#key-dialog[open]", timeout=PATIENCE_MS)
            assert await page.inner_text("#engine") == "key needed"
            await page.keyboard.press("Escape")
            await page.wait_for_selector("text=key needed", timeout=PATIENCE_MS)
            await page.click("#call-button")
            await page.fill("#key-input", "  ")
            await page.keyboard.press("Enter")
            await page.wait_for_selector("#key-note >> text=Enter a key", timeout=PATIENCE_MS)
            assert await page.is_visible("#key-dialog[open]"), "nothing was given up"
            await page.click("#key-later")
            await page.wait_for_selector("#problem >> text=key", timeout=PATIENCE_MS)
            said = await page.inner_text("#problem")
            assert "Ask whoever runs this server for a key" in said
            note = await page.inner_text("#typing-note")
            assert "engine" not in note, "nobody knows yet what it can do"
            assert "Authorization" not in said and "voice-agent" not in said, said
            await page.click("#problem-action")
            await page.fill("#key-input", "va_wrong")
            await page.keyboard.press("Enter")
            await page.wait_for_selector("text=does not accept", timeout=PATIENCE_MS)
            await page.fill("#key-input", f" {key} ")
            await page.keyboard.press("Enter")
            await page.wait_for_selector('#state[data-state="speaking"]', timeout=PATIENCE_MS)
            await visit.engine("echo")
            await visit.hang_up(server)
            await page.reload()
            await visit.engine("echo")
            assert visit.keys("/v1/models")[-1] == bearer(key)["Authorization"]
            assert await page.evaluate("JSON.stringify(localStorage)") == "{}"
            # Another tab has to be told again.
            other = await browser.new_page()
            await other.goto(server.running.url)
            await other.wait_for_selector("#key-dialog[open]", timeout=PATIENCE_MS)
