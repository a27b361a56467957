"""How many chats, and texts read aloud, a key may have at a time, and who opened the page."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import openai
import pytest

from agent.api.chat import CHATS
from agent.api.server import SERVICES
from tests.rig.keyed_server import KeyedServer, bearer, keyed_server, problem
from tests.rig.speaking_engine import SpeakingEngine
from tests.test_page_keys import page_secret

CHAT, SPEECH = "/v1/chat/completions", "/v1/audio/speech"
ASKED = {"messages": [{"role": "user", "content": "one"}]}
READ = {"input": "one", "response_format": "wav"}


@asynccontextmanager
async def chatting(
    folder: Path, *overrides: str
) -> AsyncIterator[tuple[KeyedServer, asyncio.Event]]:
    """A server that answers nothing before the event is set."""
    engine = SpeakingEngine()
    engine.go.clear()
    async with keyed_server(folder, overrides) as server:
        server.running.app[CHATS].engine = engine
        yield server, engine.go


async def begun(server: KeyedServer, key: str, path: str = CHAT) -> "asyncio.Task[int]":
    """A chat that is under way: its status, once there is one."""
    chats = server.running.app[CHATS]
    before = chats._inside
    body = ASKED if path == CHAT else READ
    task = asyncio.ensure_future(server.status(key, "POST", path, json=body))
    while chats._inside == before:
        assert not task.done(), task.result()
        await asyncio.sleep(0.01)
    return task


async def refused(server: KeyedServer, key: str, path: str = CHAT) -> str:
    """What is said to one chat more."""
    body = ASKED if path == CHAT else READ
    status, document, headers = await server.ask(key, "POST", path, json=body)
    error = problem(document)
    assert (status, error["code"], error["type"]) == (
        429,
        "chat_limit_exceeded",
        "rate_limit_error",
    )
    assert int(headers["Retry-After"]) >= 1
    return str(error["message"])


async def test_a_key_has_so_many_chats_at_a_time_and_others_have_theirs(tmp_path: Path) -> None:
    async with chatting(tmp_path) as (server, go):
        two, other = server.add_key("two", max_chats=2), server.add_key("other")
        asked = [await begun(server, two), await begun(server, two, SPEECH)]
        assert "the key two may have 2 chat(s)" in await refused(server, two)
        await refused(server, two, SPEECH)
        asked.append(await begun(server, other))
        assert server.refused("chats") == 2
        go.set()
        assert await asyncio.gather(*asked) == [200, 200, 200]
        assert await server.status(two, "POST", CHAT, json=ASKED) == 200
        held = server.running.app[SERVICES].chat_shares.held
        assert not held, "nothing is remembered of those that are over"


async def test_who_goes_away_gives_a_place_back(tmp_path: Path) -> None:
    async with chatting(tmp_path) as (server, go):
        key = server.add_key("one", max_chats=1)
        async with aiohttp.ClientSession(server.running.url, headers=bearer(key)) as http:
            gone = asyncio.ensure_future(http.post(CHAT, json=ASKED))
            while not server.running.app[CHATS]._inside:
                await asyncio.sleep(0.01)
            await refused(server, key)
            gone.cancel()
        while server.running.app[CHATS]._inside:
            await asyncio.sleep(0.01)
        go.set()
        assert await server.status(key, "POST", CHAT, json=ASKED) == 200


async def test_a_limit_for_all_keys_gives_way_to_one_of_its_own(tmp_path: Path) -> None:
    async with chatting(tmp_path, "auth.max_chats=1") as (server, go):
        usual, more = server.add_key("usual"), server.add_key("more", max_chats=2)
        asked = [await begun(server, key) for key in (usual, more, more)]
        for key in (usual, more):
            await refused(server, key)
        go.set()
        assert await asyncio.gather(*asked) == [200, 200, 200]


async def test_those_who_opened_the_page_share_theirs(tmp_path: Path) -> None:
    limits = ("auth.page_chats=3", "auth.page_chats_per_address=2", "server.proxies=127.0.0.1")
    async with chatting(tmp_path, *limits) as (server, go):
        server.add_key("acme")
        secret = await page_secret(server)
        asked = [await begun(server, secret), await begun(server, secret)]
        assert "the page at 127.0.0.1" in await refused(server, secret)
        there = {"X-Forwarded-For": "10.0.0.9"}
        far = await page_secret(server, **there)
        chats = server.running.app[CHATS]
        task = asyncio.ensure_future(server.status(far, "POST", CHAT, json=ASKED, headers=there))
        while chats._inside < 3:
            await asyncio.sleep(0.01)
        status, document, _ = await server.ask(far, "POST", CHAT, json=ASKED, headers=there)
        assert status == 429 and "the page may have 3" in problem(document)["message"]
        go.set()
        assert await asyncio.gather(*asked, task) == [200, 200, 200]


async def test_the_client_of_openai_takes_it_for_a_rate_limit(tmp_path: Path) -> None:
    async with chatting(tmp_path) as (server, go):
        key = server.add_key("one", max_chats=1)
        asked = await begun(server, key)
        url = f"{server.running.url}/v1"
        async with openai.AsyncOpenAI(api_key=key, base_url=url, max_retries=0) as client:
            with pytest.raises(openai.RateLimitError) as limited:
                await client.chat.completions.create(
                    model="any", messages=[{"role": "user", "content": "one"}]
                )
        assert limited.value.code == "chat_limit_exceeded"
        go.set()
        assert await asked == 200
