"""Whole calls through the server, whose engine is in a process of its own and may be lost."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import psutil
import pytest
from aiohttp import web

from agent.api.loading import Started
from agent.api.server import make_app, serve
from agent.config import load_config
from agent.engines import Choice, EngineSettings
from agent.fleet.pool import Patience, start_core
from agent.fleet.worker import Job, Loader
from tests.rig import busy_core
from tests.rig.caller import Caller
from tests.rig.realtime_schema import check_events, check_order

SPEAK = "session.instructions=do speak"


@asynccontextmanager
async def serving(
    assets: Path, *overrides: str, loader: Loader = busy_core.load
) -> AsyncIterator[str]:
    """The address of a server of a busy core."""
    config = load_config(None, {}, ["rtc.addresses=127.0.0.1", *overrides])
    patience = Patience(backoff_s=0.0, max_failures=2)
    job = Job(loader, "busy", EngineSettings(assets, 2))
    engine = await start_core(job, patience=patience)
    app = make_app(config, Started(Choice("busy", "for a test"), engine))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
        assert not psutil.pid_exists(busy_core.pid(assets)), "the engine ends with its server"


async def health(url: str) -> tuple[int, dict[str, object]]:
    async with aiohttp.ClientSession(url) as http:
        async with http.get("/healthz") as response:
            return response.status, await response.json()


async def health_is(url: str, wanted: str) -> tuple[int, dict[str, object]]:
    """Health once it is `wanted`."""
    async with asyncio.timeout(60):
        while True:
            code, body = await health(url)
            if body["status"] == wanted:
                return code, body
            await asyncio.sleep(0.02)


async def test_a_call_whose_engine_is_lost_is_told_and_ended_and_the_next_one_is_served(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, SPEAK) as url:
        caller = Caller(url)
        await caller.dial()
        await caller.wait_for("output_audio_buffer.started")
        assert (await health(url))[1]["slots_free"] == 1
        os.kill(busy_core.pid(tmp_path), signal.SIGKILL)
        error = await caller.wait_for("error")
        assert error["error"]["code"] == "worker_lost"  # type: ignore[index]
        done = await caller.wait_for("response.done")
        assert done["response"]["status"] == "failed"  # type: ignore[index]
        await caller.wait_until_closed()
        check_events(caller.events)
        check_order(caller.events)
        await caller.close()
        code, body = await health_is(url, "ok")
        assert (code, body["calls"], body["slots_free"]) == (200, 0, 2)
        again = Caller(url)
        await again.dial()
        await again.wait_for("output_audio_buffer.started")
        await again.close()


async def test_while_the_engine_starts_again_calls_are_put_off_and_in_the_end_refused(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as url, aiohttp.ClientSession(url) as http:
        os.mkfifo(tmp_path / "gate")
        (tmp_path / "refuse").write_text("the disk is gone", "utf-8")
        os.kill(busy_core.pid(tmp_path), signal.SIGKILL)
        code, body = await health_is(url, "starting")
        assert (code, body["slots_free"]) == (200, 0)
        caller = Caller(url)
        sdp = {"Content-Type": "application/sdp"}
        offer = await caller.offer()
        async with http.post("/v1/realtime/calls", data=offer, headers=sdp) as response:
            assert response.status == 503
            assert int(response.headers["Retry-After"]) >= 1
            assert "starting again" in (await response.json())["error"]["message"]
        with await asyncio.to_thread((tmp_path / "gate").open, "w", encoding="utf-8"):
            (tmp_path / "gate").unlink()
        code, body = await health_is(url, "degraded")
        assert (code, body["slots_free"]) == (503, 0)
        async with http.get("/v1/models") as response:
            model = (await response.json())["data"][0]
            assert model["voice_agent"]["status"] == "degraded"
        async with http.get("/metrics") as response:
            assert response.status == 200, "the server itself is well"
        await caller.close()


async def test_an_engine_without_a_voice_opens_calls_in_text(tmp_path: Path) -> None:
    async with serving(tmp_path, loader=busy_core.load_silent) as url:
        caller = Caller(url)
        await caller.dial()
        created = await caller.wait_for("session.created")
        assert created["session"]["output_modalities"] == ["text"]  # type: ignore[index]
        caller.send({"type": "session.update", "session": {"output_modalities": ["audio"]}})
        updated = await caller.wait_for("session.updated")
        assert updated["session"]["output_modalities"] == ["text"]  # type: ignore[index]
        assert "error" not in caller.types()
        await caller.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_server_that_is_told_to_stop_while_it_loads_does(
    tmp_path: Path, number: signal.Signals
) -> None:
    os.mkfifo(tmp_path / "gate")
    command = (sys.executable, "-m", "tests.rig.fleet_server", "load", str(tmp_path))
    server = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    assert server.stderr is not None
    line = await asyncio.wait_for(server.stderr.readline(), 30)
    assert line.startswith(b"loading busy: ")
    server.send_signal(number)
    _, rest = await asyncio.wait_for(server.communicate(), 30)
    assert server.returncode == 0
    assert b"Traceback" not in rest and b"Error" not in rest
    assert not psutil.pid_exists(busy_core.pid(tmp_path))


def test_an_address_that_is_taken_is_told_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agent.api.server.start", lambda _: pytest.fail("it loads"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            serve(load_config(None, {}, [f"server.port={port}"]))
