"""Serves `web/` under the strict policy that the real server uses, and answers by script."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

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
    url: str = ""

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


async def _index(_request: web.Request) -> web.FileResponse:
    return web.FileResponse(WEB / "index.html")


async def _add_policy(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Content-Security-Policy"] = POLICY


@asynccontextmanager
async def serve_page() -> AsyncIterator[ScriptedServer]:
    """The page at a free port of this machine."""
    script = ScriptedServer()
    app = web.Application(client_max_size=8 * 1024**2)
    app.on_response_prepare.append(_add_policy)
    app.router.add_get("/", _index)
    app.router.add_get("/v1/models", script.list_models)
    app.router.add_route("*", "/v1/audio/{rest:.*}", script.audio)
    app.router.add_post("/v1/realtime/calls", script.call)
    app.router.add_post("/v1/realtime/calls/{call}/hangup", script.call)
    app.router.add_static("/", WEB)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    script.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    try:
        yield script
    finally:
        await runner.cleanup()
