"""The real server on a free port of the loopback, in the test's own event loop."""

import asyncio
import gc
import os
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import astuple, dataclass

import aioice.ice
import psutil
from aiohttp import web

from agent.api.realtime import CALLS
from agent.api.server import SERVICES, build_app
from agent.config import load_config


@dataclass(frozen=True)
class Running:
    """A server that listens."""

    app: web.Application
    url: str

    @property
    def calls(self) -> int:
        """Calls in progress."""
        return self.app[CALLS].count

    @property
    def call_ids(self) -> list[str]:
        """Those of the calls in progress."""
        return list(self.app[CALLS]._live)

    async def end_calls(self) -> None:
        """What the server does to its calls when it is told to stop."""
        await self.app[CALLS].close()

    def metric(self, name: str) -> float:
        """The value of one line of `/metrics`; 0 when the line is not there."""
        for line in self.app[SERVICES].telemetry.render().decode().splitlines():
            if line.startswith(name + " "):
                return float(line.rsplit(" ", 1)[1])
        return 0.0


@asynccontextmanager
async def running_server(overrides: Sequence[str] = ()) -> AsyncIterator[Running]:
    """Serve with default settings and `overrides` ("section.key=value")."""
    config = load_config(
        None, {}, ["server.port=0", "rtc.addresses=127.0.0.1", "engine.name=echo", *overrides]
    )
    app = build_app(config)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield Running(app, f"http://127.0.0.1:{runner.addresses[0][1]}")
    finally:
        await runner.cleanup()


@dataclass(frozen=True)
class Footprint:
    """What a process holds at one moment."""

    tasks: int
    threads: int
    sockets: int
    files: int

    @classmethod
    def now(cls) -> "Footprint":
        """Measure, after garbage is collected."""
        gc.collect()
        files = _open_files()
        sockets = sum(name.startswith("socket:") for name in files)
        # The loop's own pool of at most a few workers stays until the loop is closed.
        threads = [t for t in threading.enumerate() if not t.name.startswith("asyncio_")]
        return cls(len(asyncio.all_tasks()), len(threads), sockets, len(files))

    def exceeds(self, other: "Footprint") -> bool:
        """Whether there is more of anything."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return any(mine > theirs for mine, theirs in pairs)


def _open_files() -> list[str]:
    names = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            continue
    return names


async def settle(before: Footprint, timeout_s: float = 30) -> Footprint:
    """`before`, once nothing of it is exceeded, or what there still is after `timeout_s`.

    There may be less: what a closed connection held is given back a moment later.
    """
    loop = asyncio.get_running_loop()
    due = loop.time() + timeout_s
    while (now := Footprint.now()).exceeds(before) and loop.time() < due:
        await asyncio.sleep(0.05)
    return now if now.exceeds(before) else before


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[str, psutil.Process, asyncio.subprocess.Process]]:
    """`voice-agent serve` in a process of its own, on a free port: its address and itself."""
    command = [sys.executable, "-m", "agent", "serve", "--port", "0", "--engine", "echo"]
    environment = {**os.environ, "VOICE_AGENT__RTC__ADDRESSES": "127.0.0.1"}
    pipe = asyncio.subprocess.PIPE
    server = await asyncio.create_subprocess_exec(
        *command, stdout=pipe, stderr=pipe, env=environment
    )
    assert server.stdout is not None
    addresses = aioice.ice.get_host_addresses
    # The clients in this process must offer the loopback, too.
    aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"]
    try:
        line = (await asyncio.wait_for(server.stdout.readline(), 60)).decode()
        yield line.split("open ")[1].strip().rstrip("/"), psutil.Process(server.pid), server
    finally:
        aioice.ice.get_host_addresses = addresses
        if server.returncode is None:
            server.terminate()
        await server.communicate()
