"""One rung after the other: more and more calls to one server, each rung measured for a while."""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import numpy as np

from bench.load_clients import ANSWER_PATIENCE, Crowd
from bench.load_server import OFFER_PATHS, WHOLE_SERVERS, Kind
from bench.load_slots import Lateness

ON_TIME = 0.995
CLIENT_MAX_LATE_MS = 10.0
"""Callers that are later than half a slot one time in a hundred are no measure for a server."""
_SPEECH_BYTES = 80
"""Packets of silence are smaller, header and authentication included."""
_START_PATIENCE_S = 60.0
_END_PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to measure: the server's and the callers' core, and for how long each rung."""

    server_core: int = 0
    client_core: int = 1
    warm_up_s: float = 4.0
    seconds: float = 12.0
    first: bool = False
    loop: str = "auto"


@dataclass(frozen=True, slots=True)
class Step:
    """What `calls` calls at a time did to a server."""

    calls: int
    cpu_percent: float
    others_percent: float
    """Of the server's core, what other programs took."""
    late: Lateness
    """As the callers' kernel saw it."""
    inside: dict[str, float | None]
    """What the server measured itself."""
    client_late_p99_ms: float
    speaking: float
    """The share of packets in which the agent spoke."""
    errors: list[str]

    @property
    def valid(self) -> bool:
        """Whether the callers were on time, so that the server is what was measured."""
        return self.client_late_p99_ms <= CLIENT_MAX_LATE_MS

    @property
    def on_time(self) -> bool:
        """Whether 99.5 % of the slots were at most 20 ms late."""
        return self.late.on_time >= ON_TIME


class Ladder:
    """A server and its callers. `climb` to more and more calls."""

    def __init__(self, url: str, crowd: Crowd, options: LoadOptions) -> None:
        self._url = url
        self._crowd = crowd
        self._options = options

    async def climb(self, calls: int) -> Step:
        """Let the crowd grow to `calls`, warm up, measure."""
        await self._crowd.grow_to(calls)
        await asyncio.sleep(self._options.warm_up_s)
        await self._ask("begin")
        self._crowd.begin()
        since_s, busy_s = time.monotonic(), _core_busy_s(self._options.server_core)
        await asyncio.sleep(self._options.seconds)
        passed_s = time.monotonic() - since_s
        busy_s = _core_busy_s(self._options.server_core) - busy_s
        step = self._step(calls, await self._ask("figures"), passed_s)
        others_percent = max(0.0, 100 * busy_s / passed_s - step.cpu_percent)
        return replace(step, others_percent=others_percent)

    def _step(self, calls: int, inside: dict[str, float | None], passed_s: float) -> Step:
        callers = self._crowd.callers
        late_ms = [caller.heard.late_ms(passed_s) for caller in callers]
        return Step(
            calls=calls,
            cpu_percent=inside.pop("cpu_percent") or 0.0,
            others_percent=0.0,
            late=Lateness.of(np.concatenate(late_ms)),
            inside=inside,
            client_late_p99_ms=float(np.percentile(self._crowd.late_ms, 99)),
            speaking=float(np.mean([each.heard.share_above(_SPEECH_BYTES) for each in callers])),
            errors=[error for caller in callers for error in caller.errors],
        )

    async def _ask(self, what: str) -> dict[str, float | None]:
        async with aiohttp.ClientSession(timeout=ANSWER_PATIENCE) as http:
            async with http.post(f"{self._url}/bench/{what}") as reply:
                text = await reply.text()
        figures: dict[str, float | None] = json.loads(text) if text else {}
        return figures


@asynccontextmanager
async def ladder(
    kind: Kind, packets: tuple[bytes, ...], options: LoadOptions
) -> AsyncIterator[Ladder]:
    """A fresh server of that kind, without calls."""
    process = await asyncio.create_subprocess_exec(
        *_command(kind, options),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )
    assert process.stdout is not None and process.stdin is not None
    line = await asyncio.wait_for(process.stdout.readline(), _START_PATIENCE_S)
    url = f"http://127.0.0.1:{json.loads(line)['port']}"
    crowd = Crowd(url + OFFER_PATHS[kind], packets, reports=kind in WHOLE_SERVERS)
    try:
        yield Ladder(url, crowd, options)
    finally:
        await _end(process)
        await crowd.close()


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ask the server to end, which it may be too busy to hear."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(_END_PATIENCE_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _command(kind: Kind, options: LoadOptions) -> list[str]:
    # What one would serve with: uvloop for ours, asyncio as it comes for the stock peer.
    loop = ("asyncio" if kind == "stock" else "uvloop") if options.loop == "auto" else options.loop
    command = [sys.executable, "-m", "bench.load_server", kind, "--loop", loop]
    command += ["--core", str(options.server_core), "--engine-core", str(options.client_core)]
    return [*command, "--first"] if options.first else command


def _core_busy_s(core: int) -> float:
    """Seconds since boot that this core was not idle."""
    for line in Path("/proc/stat").read_text("utf-8").splitlines():
        name, *ticks = line.split()
        if name == f"cpu{core}":
            user, nice, system, _, _, irq, softirq, *_ = (int(tick) for tick in ticks)
            return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    return 0.0
