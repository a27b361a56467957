"""The server: builds the application, listens, and ends calls before it ends itself."""

import asyncio
import contextlib
import gc
import importlib
import logging
import resource
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from agent import __version__, engines, resources
from agent.api import (
    call_resource,
    chat,
    client_secrets,
    docs,
    page,
    realtime,
    replies,
    sockets,
    speech,
)
from agent.api.auth import GUARD, Guard, expect_key_or_loopback
from agent.api.caller import Caller, caller_of
from agent.api.calls import Calls, Services
from agent.api.key_ring import KeyRing
from agent.api.loading import Started, start
from agent.api.realtime import CALLS
from agent.api.staffing import note_tools
from agent.api.voices import add_to as add_voices_to
from agent.api.voices import open_voices
from agent.attendants.tool_files import load_tools
from agent.clock import SYSTEM_CLOCK, Clock
from agent.config import Config
from agent.engines import Choice, EngineSettings
from agent.errors import AgentError
from agent.fleet.pool import status_of
from agent.interfaces import Engine
from agent.media.vad import SileroModel
from agent.telemetry import Telemetry
from agent.tls import ListenPlan, is_loopback, listen_plan
from agent.transport.aiortc_inside import check_fit, offer_addresses
from agent.transport.codecs import codec_source

SERVICES = web.AppKey("services", Services)
CHOICE = web.AppKey("choice", Choice)

IDLE_S = 75.0
"""So long a connection may bring no whole request: sockets are not without end, and whoever holds
them with nothing to ask keeps others out. aiohttp gives an hour; nginx keeps its own for 60 s."""
MOST_SOCKETS = 16_384
"""Many systems begin with 1024, which a few strangers hold with ease."""

_LAG_EVERY_S = 0.1
_LOOK_EVERY_S = 1.0
log = logging.getLogger(__name__)


class ModelNotFound(AgentError):
    """This server has no model of that id."""

    status = 404
    code = "model_not_found"


def serve(config: Config) -> int:
    """Serve until SIGINT or SIGTERM; the exit status. `ConfigError` for settings that don't fit."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(config))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop wakes timers closer to their time when many calls share the loop."""
    try:
        return importlib.import_module("uvloop").new_event_loop  # type: ignore[no-any-return]
    except ImportError:
        return None


def build_app(config: Config, clock: Clock = SYSTEM_CLOCK) -> web.Application:
    """The application with an engine that needs no loading; to be run once, by one event loop."""
    choice = engines.choose(config.engine.name)
    settings = EngineSettings(resources.assets_folder(), config.calls.max_calls)
    return make_app(config, Started(choice, engines.create(choice.name, settings)), clock=clock)


def make_app(
    config: Config, started: Started, ring: KeyRing | None = None, clock: Clock = SYSTEM_CLOCK
) -> web.Application:
    """The application, which closes its engine in the end; to be run once, by one event loop.

    `ring` holds the keys; without, those that `config` names are read now. `ConfigError`.
    """
    telemetry = Telemetry()
    guard = Guard(config, ring or KeyRing.of(config, clock), telemetry, clock)
    voices = open_voices(config, started.voice)
    tools = load_tools(config.tools.files)
    services = Services(config, started.engine, telemetry, SileroModel(), voices, tools)
    note_tools(tools, services.abilities, config.tools.channel)
    app = web.Application(
        middlewares=[replies.cors(guard.origins), replies.errors_as_json, guard.let_in],
        client_max_size=config.server.max_body_bytes,
    )
    app[GUARD] = guard
    app[SERVICES], app[CHOICE], app[CALLS] = services, started.choice, Calls(services)
    chat.add_to(app, services)
    speech.add_to(app, services)
    add_voices_to(app, voices)
    client_secrets.add_to(app, guard.secrets)
    page.add_to(app, config)
    docs.add_to(app, config)
    app.on_response_prepare.append(replies.protect_page)
    app.on_response_prepare.append(replies.tell_pages(guard.origins))
    app.cleanup_ctx.append(_watch_loop)
    app.cleanup_ctx.append(_watch_engine)
    app.cleanup_ctx.append(_watch_keys)
    app.on_shutdown.append(_end_calls)
    _add_routes(app.router, resources.web_folder())
    offer_addresses(config.rtc.addresses, loopback=is_loopback(config.server.host))
    return app


async def _serve(config: Config) -> int:
    ring = KeyRing.of(config)
    expect_key_or_loopback(config, ring)
    if not ring.asks and not is_loopback(config.server.host):
        log.warning("there is no API key: whoever reaches %s may use it", config.server.host)
    plan = listen_plan(config)
    # What is wrong with them is to be said now, too, and not after minutes of loading.
    load_tools(config.tools.files)
    await check_fit()
    # Says so now, and not in the first call, when sound has to go a poorer way.
    codec_source()
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    # An address that is taken is to be said now, and not after minutes of loading.
    address = (config.server.host, config.server.port)
    (await loop.create_server(asyncio.Protocol, *address, start_serving=False)).close()
    starting = asyncio.ensure_future(start(config))
    await _started_or_stopped(starting, stop)
    if not stop.is_set():
        await _listen(config, plan, make_app(config, await starting, ring), stop)
    return 0


async def _started_or_stopped(starting: "asyncio.Future[Started]", stop: asyncio.Event) -> None:
    """Wait until the engine has started or need not any more."""
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if stop.is_set() and not starting.cancel():
        await (await starting).engine.close()
    await asyncio.wait((starting,))


async def _listen(
    config: Config, plan: ListenPlan, app: web.Application, stop: asyncio.Event
) -> None:
    allow_sockets()
    runner = make_runner(app)
    await runner.setup()
    spare_collector()
    server = config.server
    site = web.TCPSite(runner, server.host, server.port, ssl_context=plan.ssl_context)
    try:
        await site.start()
        if plan.warning:
            sys.stderr.write(f"voice-agent: {plan.warning}\n")
        port = runner.addresses[0][1]
        url = plan.url.replace(f":{server.port}", f":{port}") if server.port == 0 else plan.url
        choice = app[CHOICE]
        sys.stdout.write(
            f"voice-agent {__version__}: engine {choice.name} ({choice.reason}); open {url}\n"
        )
        sys.stdout.flush()
        await stop.wait()
    finally:
        await runner.cleanup()


def make_runner(app: web.Application) -> web.AppRunner:
    """What serves `app`, to nobody who only holds the line."""
    log.addFilter(_is_no_stranger_s_fault)
    return web.AppRunner(
        app, access_log=None, logger=log, shutdown_timeout=1.0, keepalive_timeout=IDLE_S
    )


def _is_no_stranger_s_fault(record: logging.LogRecord) -> bool:
    """Requests that are no HTTP are answered, and not written down: with each would come a page,
    and in that what was sent, which may be a key."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


def allow_sockets() -> None:
    """As many as the system lets this process have, up to `MOST_SOCKETS`."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_SOCKETS if most == resource.RLIM_INFINITY else min(MOST_SOCKETS, most)
    if now != resource.RLIM_INFINITY and now < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def spare_collector() -> None:
    """What is loaded by now stays: to look through it all takes 50 ms, in which no frame leaves."""
    gc.collect()
    gc.freeze()


def _add_routes(router: web.UrlDispatcher, web_folder: Path) -> None:
    realtime.add_routes(router)
    sockets.add_routes(router)
    call_resource.add_routes(router)
    router.add_get("/v1/models", _models)
    router.add_get("/v1/models/{id:.+}", _one_model)
    router.add_get("/healthz", _health)
    router.add_get("/metrics", _metrics)

    root = web_folder.resolve()

    async def index(_: web.Request) -> web.FileResponse:
        return web.FileResponse(root / "index.html")

    async def file(request: web.Request) -> web.FileResponse:
        try:
            path = (root / request.match_info["name"]).resolve()
            found = path.is_relative_to(root) and path.is_file()
        except (OSError, ValueError) as error:
            raise web.HTTPNotFound from error
        if not found:
            raise web.HTTPNotFound
        return web.FileResponse(path)

    async def readme(_: web.Request) -> web.Response:
        return web.Response(text=resources.readme().read_text("utf-8"))

    router.add_get("/", index)
    router.add_get("/README.md", readme)
    # Less the API: a path that is none of it is not found, whatever the method, and another
    # method of one that is gets its Allow header from the route that it belongs to.
    router.add_get(r"/{name:(?!v1(?:/|$)).+}", file)


async def _models(request: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [_model(request.app, caller_of(request))]})


async def _one_model(request: web.Request) -> web.Response:
    model, asked = _model(request.app, caller_of(request)), request.match_info["id"]
    if asked != model["id"]:
        raise ModelNotFound(f"there is no model {asked[:80]!r}; this server has {model['id']!r}")
    return web.json_response(model)


def _model(app: web.Application, caller: Caller) -> dict[str, object]:
    engine, choice = app[SERVICES].engine, app[CHOICE]
    able = caller.able(app[SERVICES].abilities)
    abilities = {name: getattr(able, name) for name in type(able).__slots__}
    prompts = dict(abilities.pop("default_instructions"))
    return {
        "id": engine.name,
        "object": "model",
        "created": 0,
        "owned_by": "voice-agent",
        "voice_agent": {
            "abilities": abilities,
            "default": True,
            "reason": choice.reason,
            "status": status_of(engine),
            "default_instructions": prompts,
            "may": {
                "chat": caller.may_chat,
                "change_voices": caller.may_change_voices,
                "make_secrets": caller.may_grant,
            },
        },
    }


async def _health(request: web.Request) -> web.Response:
    services, calls = request.app[SERVICES], request.app[CALLS]
    load, now = services.engine.load(), status_of(services.engine)
    body = {
        "status": now,
        "version": __version__,
        "engine": services.engine.name,
        "calls": calls.count,
        "slots_free": load.slots_free,
    }
    # An engine that starts again does that by itself; one that is down needs somebody.
    return web.json_response(body, status=503 if now == "degraded" else 200)


async def _metrics(request: web.Request) -> web.Response:
    body = request.app[SERVICES].telemetry.render()
    return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4"})


async def _end_calls(app: web.Application) -> None:
    await app[CALLS].close()
    await app[SERVICES].engine.close()


async def _watch_loop(app: web.Application) -> AsyncIterator[None]:
    """Measure how late the event loop wakes a timer: everything audible hangs on that."""
    telemetry = app[SERVICES].telemetry

    async def measure() -> None:
        while True:
            due_s = SYSTEM_CLOCK.now_s() + _LAG_EVERY_S
            await SYSTEM_CLOCK.sleep_until(due_s)
            telemetry.loop_lag(max(0.0, SYSTEM_CLOCK.now_s() - due_s))

    task = asyncio.get_running_loop().create_task(measure())
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _watch_engine(app: web.Application) -> AsyncIterator[None]:
    task = asyncio.get_running_loop().create_task(tell_returns(app[SERVICES].engine, SYSTEM_CLOCK))
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _watch_keys(app: web.Application) -> AsyncIterator[None]:
    task = asyncio.get_running_loop().create_task(_end_revoked(app[CALLS], app[GUARD]))
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _end_revoked(calls: Calls, guard: Guard) -> None:
    """With a key goes, within two seconds, what was opened with it; never returns."""
    while True:
        await SYSTEM_CLOCK.sleep_until(SYSTEM_CLOCK.now_s() + _LOOK_EVERY_S / 2)
        calls.end_revoked(guard.expect_still_in)


async def tell_returns(engine: Engine, clock: Clock) -> None:
    """Log, within a second, that an engine which was lost takes calls again; never returns."""
    was_there, lost_s = True, 0.0
    while True:
        is_there, now_s = status_of(engine) == "ok", clock.now_s()
        if was_there and not is_there:
            lost_s = now_s
        elif is_there and not was_there:
            log.warning("the engine %s is back after %.0f s", engine.name, now_s - lost_s)
        was_there = is_there
        await clock.sleep_until(now_s + _LOOK_EVERY_S)
