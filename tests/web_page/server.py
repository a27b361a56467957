"""Serves `web/` under the strict policy that the real server uses, and answers by script."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from yarl import URL

from tests.web_page.voices import ScriptedVoices

WEB = Path(__file__).resolve().parents[2] / "web"
POLICY = (
    "default-src 'self'; style-src 'self'; script-src 'self'; media-src 'self' blob: mediastream:; "
    "connect-src 'self'; img-src 'self' data:"
)


def echo_models() -> dict[str, Any]:
    """What `/v1/models` says where only the echo engine is there."""
    return _models("echo", reason="no GPU and no checkpoint here")


def real_models() -> dict[str, Any]:
    """What `/v1/models` says where the model answers."""
    return _models("minicpm-o", reason="")


def able_models(**abilities: Any) -> dict[str, Any]:
    """What `/v1/models` says of an engine with a model behind it, and `abilities` besides."""
    able = {"duplex": True, "chat": True, "camera": True, "typed_text": True, "pictures": True}
    return _models("minicpm-o", "", able | {"speech": True, "languages": ["en", "zh"]} | abilities)


def _models(default: str, reason: str, abilities: dict[str, Any] | None = None) -> dict[str, Any]:
    able = abilities or {"duplex": True, "camera": True, "languages": ["en"]}

    def one(engine: str) -> dict[str, Any]:
        extension: dict[str, Any] = {"abilities": able}
        if engine == default:
            extension |= {"default": True, "reason": reason}
        return {"id": engine, "object": "model", "owned_by": "voice-agent"} | {
            "voice_agent": extension
        }

    return {"object": "list", "data": [one("other"), one(default)]}


@dataclass(slots=True)
class ScriptedServer:
    """What the server will answer, and what it was asked; `answer` is (status, headers, body)."""

    models: dict[str, Any] = field(default_factory=echo_models)
    answer: tuple[int, dict[str, str], dict[str, Any]] = (500, {}, {})
    requests: list[tuple[str, str]] = field(default_factory=list)
    voices: ScriptedVoices = field(default_factory=ScriptedVoices)

    async def call(self, request: web.Request) -> web.Response:
        """Note the request; a far end that answers really is the in-page one."""
        self.requests.append((request.method, request.path))
        if request.path.endswith("/hangup"):
            return web.json_response({})
        status, headers, body = self.answer
        return web.json_response(body, status=status, headers=headers)

    async def audio(self, request: web.Request) -> web.Response:
        """Voices and speech."""
        return await self.voices.answer(request)

    async def list_models(self, _request: web.Request) -> web.Response:
        """`GET /v1/models`."""
        return web.json_response(self.models)


_Answer = Callable[[ScriptedServer, web.Request], Awaitable[web.StreamResponse]]


async def _index(_request: web.Request) -> web.FileResponse:
    return web.FileResponse(WEB / "index.html")


async def _add_policy(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Content-Security-Policy"] = POLICY


class Site:
    """The page at one address of this machine: what a browser keeps of it serves test after test.

    Each test's page is asked for as `/?NUMBER`, and what it asks for then is answered by its own
    `ScriptedServer`, also where it is late.
    """

    def __init__(self) -> None:
        self.url = ""
        self._scripts: dict[str, ScriptedServer] = {}
        self._opened = 0

    @contextmanager
    def script(self) -> Iterator[tuple[str, ScriptedServer]]:
        """A page of its own: its address, and what answers it."""
        self._opened += 1
        number, script = str(self._opened), ScriptedServer()
        self._scripts[number] = script
        try:
            yield f"{self.url}?{number}", script
        finally:
            del self._scripts[number]

    def handler(self, answer: _Answer) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Lets the server of the page that asks `answer`; to who has left there is none."""

        async def handle(request: web.Request) -> web.StreamResponse:
            page = URL(request.headers.get("Referer", ""))
            if (script := self._scripts.get(page.query_string)) is None:
                raise web.HTTPNotFound
            return await answer(script, request)

        return handle


@asynccontextmanager
async def serve_page() -> AsyncIterator[Site]:
    """The page at a free port of this machine."""
    here = Site()
    app = web.Application(client_max_size=8 * 1024**2)
    app.on_response_prepare.append(_add_policy)
    app.router.add_get("/", _index)
    app.router.add_get("/v1/models", here.handler(ScriptedServer.list_models))
    app.router.add_route("*", "/v1/audio/{rest:.*}", here.handler(ScriptedServer.audio))
    app.router.add_post("/v1/realtime/calls", here.handler(ScriptedServer.call))
    app.router.add_post("/v1/realtime/calls/{call}/hangup", here.handler(ScriptedServer.call))
    app.router.add_static("/", WEB)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    here.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    try:
        yield here
    finally:
        await runner.cleanup()
