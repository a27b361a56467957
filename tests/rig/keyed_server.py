"""A server with API keys, and a clock that only moves when it is told to."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from agent.api.loading import Started
from agent.api.server import build_app, make_app
from agent.clock import Clock
from agent.config import load_config
from agent.engines import choose
from agent.interfaces import Engine
from agent.keys import ApiKey, add_key, new_key, remove_key, sha256_of
from tests.rig.server import Running

BORN_UNIX_S = 1_800_000_000
SECRETS = "/v1/realtime/client_secrets"
MODELS = "/v1/models"


class HandClock(Clock):
    """Stands still. What sleeps on it sleeps for good: nothing that these tests look at does."""

    def __init__(self) -> None:
        self.passed_s = 0.0

    def now_s(self) -> float:
        """Since it was made."""
        return self.passed_s

    def unix_s(self) -> float:
        """The same, from 2027 on."""
        return BORN_UNIX_S + self.passed_s

    async def sleep_until(self, due_s: float) -> None:
        """Never returns."""
        await asyncio.Event().wait()


@dataclass(frozen=True)
class KeyedServer:
    """A server whose keys file is `file`."""

    running: Running
    http: aiohttp.ClientSession
    file: Path
    clock: HandClock

    def add_key(self, name: str, **limits: Any) -> str:
        """A new key, which the server knows from now on."""
        text = new_key()
        add_key(self.file, ApiKey(name, sha256_of(text), **limits))
        self.clock.passed_s += 1
        return text

    def remove_key(self, name: str) -> None:
        """The server knows at once."""
        remove_key(self.file, name)
        self.clock.passed_s += 1

    async def status(self, key: str, method: str = "GET", path: str = MODELS, **more: Any) -> int:
        """Of one request with that key ("": none)."""
        return (await self.ask(key, method, path, **more))[0]

    async def ask(
        self, key: str, method: str = "GET", path: str = MODELS, **more: Any
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        """Status, JSON and headers of one request with that key ("": none)."""
        headers = {**bearer(key), **more.pop("headers", {})}
        async with self.http.request(method, path, headers=headers, **more) as response:
            is_json = response.content_type == "application/json"
            body = await response.json() if is_json else {"bytes": await response.read()}
            return response.status, body, dict(response.headers)

    async def secret(self, key: str, **body: Any) -> dict[str, Any]:
        """What `POST /v1/realtime/client_secrets` answers."""
        status, document, _ = await self.ask(key, "POST", SECRETS, json=body)
        assert status == 200, document
        return document

    def refused(self, reason: str) -> float:
        """How many were, as the metrics have it."""
        return self.running.metric(f'voice_agent_requests_refused_total{{reason="{reason}"}}')


def bearer(key: str) -> dict[str, str]:
    """The header of a request with that key."""
    return {"Authorization": f"Bearer {key}"} if key else {}


@asynccontextmanager
async def keyed_server(
    folder: Path, overrides: Sequence[str] = (), engine: Engine | None = None
) -> AsyncIterator[KeyedServer]:
    """Serve with a keys file in `folder`, which need not be there yet; `engine` None: echo."""
    file = folder / "keys.jsonl"
    usual = ["server.port=0", "rtc.addresses=127.0.0.1", "engine.name=echo"]
    usual.append(f"server.data_folder={folder}")
    clock = HandClock()
    config = load_config(None, {}, [*usual, *overrides])
    if engine is None:
        app = build_app(config, clock)
    else:
        app = make_app(config, Started(choose("echo"), engine), clock=clock)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    running = Running(app, f"http://127.0.0.1:{runner.addresses[0][1]}")
    try:
        async with aiohttp.ClientSession(running.url) as http:
            yield KeyedServer(running, http, file, clock)
    finally:
        await runner.cleanup()


def problem(document: dict[str, Any]) -> dict[str, Any]:
    """The error object, which has OpenAI's shape."""
    assert set(document) == {"error"}, document
    error: dict[str, Any] = document["error"]
    assert set(error) == {"message", "type", "code", "param"} and error["message"]
    return error
