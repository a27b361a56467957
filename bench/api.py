"""How long it takes until a call stands, and what sessions leave behind: `python -m bench.api`.

WebRTC: from the offer's POST to the answer, and to a connection whose data channel is open; beside
it a plain aiortc server, as one would write it by aiortc's examples. WebSocket: from dialling to
`session.created`, and what many sessions, opened and closed one after another and together, leave
of memory, tasks, threads and sockets. Each server is a process of its own, with the echo engine.
"""

import argparse
import asyncio
import json
import math
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import aioice.ice
import numpy as np
import psutil
from aiortc import RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import AudioStreamTrack, VideoStreamTrack

from bench.load_server import OFFER_PATHS, Kind
from bench.report import Report, Target, add_arguments, at_most

ANSWER_MS = at_most(40)
CONNECTED_MS = at_most(400)
LEFT = at_most(0)
LEFT_MB = at_most(8)
_PATIENCE_S = 30.0
_WARM_UP = 5
_TOGETHER = 20


@dataclass(frozen=True, slots=True)
class Dialled:
    """What one WebRTC call took from the POST on."""

    answer_ms: float
    connected_ms: float


@dataclass(frozen=True, slots=True)
class Held:
    """What a server's process holds."""

    memory_mb: float
    tasks: int
    threads: int
    files: int


@dataclass(frozen=True, slots=True)
class Served:
    """A server that listens."""

    url: str
    process: psutil.Process

    async def holds(self) -> Held:
        """Now, once nobody is connected but who asks."""
        async with aiohttp.ClientSession() as http, http.post(f"{self.url}/bench/tasks") as reply:
            tasks = (await reply.json())["tasks"]
            memory_mb = self.process.memory_info().rss / 2**20
            return Held(memory_mb, tasks, self.process.num_threads(), self.process.num_fds())


@asynccontextmanager
async def served(kind: Kind) -> AsyncIterator[Served]:
    """A fresh server in a process of its own."""
    core = max(psutil.Process().cpu_affinity())
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.load_server", kind, "--core", str(core)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )
    assert process.stdout is not None and process.stdin is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), _PATIENCE_S)
        yield Served(f"http://127.0.0.1:{json.loads(line)['port']}", psutil.Process(process.pid))
    finally:
        process.stdin.close()
        await asyncio.wait_for(process.wait(), _PATIENCE_S)


# ---- WebRTC -----------------------------------------------------------------------------------


async def dial(http: aiohttp.ClientSession, url: str, *, channel: bool) -> Dialled:
    """One call with microphone and camera, up and down again; with a data channel for events."""
    peer, connected = RTCPeerConnection(), asyncio.Event()
    peer.addTrack(AudioStreamTrack())
    peer.addTrack(VideoStreamTrack())
    if channel:
        peer.createDataChannel("oai-events").on("open", connected.set)
    else:
        peer.on("connectionstatechange", lambda: _note_state(peer, connected))
    try:
        await peer.setLocalDescription(await peer.createOffer())
        began_s = time.perf_counter()
        answer = await _post_offer(http, url, peer.localDescription.sdp)
        answered_s = time.perf_counter()
        await peer.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        async with asyncio.timeout(_PATIENCE_S):
            await connected.wait()
        connected_s = time.perf_counter()
    finally:
        await peer.close()
    return Dialled((answered_s - began_s) * 1000, (connected_s - began_s) * 1000)


def _note_state(peer: RTCPeerConnection, connected: asyncio.Event) -> None:
    if peer.connectionState == "connected":
        connected.set()


async def _post_offer(http: aiohttp.ClientSession, url: str, offer: str) -> str:
    headers = {"Content-Type": "application/sdp"}
    async with http.post(url, data=offer, headers=headers) as reply:
        text = await reply.text()
        if reply.status not in (200, 201):
            raise RuntimeError(f"the server refuses a call: {reply.status} {text}")
        return text


async def dialled(kind: Kind, times: int) -> list[Dialled]:
    """So many calls, one after another, on a server of that kind."""
    async with served(kind) as server, aiohttp.ClientSession() as http:
        url = server.url + OFFER_PATHS[kind]
        calls = [await dial(http, url, channel=kind == "full") for _ in range(times + _WARM_UP)]
    return calls[_WARM_UP:]


def report_calls(report: Report, ours: Sequence[Dialled], stock: Sequence[Dialled]) -> None:
    """Rows of both, the stock server's beside ours."""
    rows: tuple[tuple[str, Callable[[Dialled], float], Target], ...] = (
        ("answer", lambda one: one.answer_ms, ANSWER_MS),
        ("connected", lambda one: one.connected_ms, CONNECTED_MS),
    )
    for name, figure, target in rows:
        for share, wanted in ((50, None), (95, target)):
            report.row(
                f"{name}_p{share}_ms",
                _percentile([figure(one) for one in ours], share),
                "ms",
                target=wanted,
                against=_percentile([figure(one) for one in stock], share),
                n=len(ours),
            )


# ---- WebSocket --------------------------------------------------------------------------------


async def open_and_close(http: aiohttp.ClientSession, url: str) -> float:
    """One session, opened and closed → until `session.created`, in ms."""
    began_s = time.perf_counter()
    async with http.ws_connect(f"{url}/v1/realtime?model=echo") as socket:
        first = await socket.receive_json(timeout=_PATIENCE_S)
        took_ms = (time.perf_counter() - began_s) * 1000
        if first["type"] != "session.created":
            raise RuntimeError(f"the first event is {first}")
    return took_ms


async def sessions(server: Served, times: int) -> list[float]:
    """Half of them one after another, the others together."""
    async with aiohttp.ClientSession() as http:
        took_ms = [await open_and_close(http, server.url) for _ in range(times // 2)]
        for _ in range(times // 2 // _TOGETHER):
            together = (open_and_close(http, server.url) for _ in range(_TOGETHER))
            took_ms += await asyncio.gather(*together)
    await _until_no_call(server)
    return took_ms


async def _until_no_call(server: Served) -> None:
    async with aiohttp.ClientSession() as http, asyncio.timeout(_PATIENCE_S):
        while True:
            async with http.get(f"{server.url}/healthz") as reply:
                if (await reply.json())["calls"] == 0:
                    break
            await asyncio.sleep(0.1)
    await asyncio.sleep(1.0)  # sockets that were closed linger for a moment


async def report_sessions(report: Report, times: int) -> None:
    """What opening them takes, and what they leave behind."""
    async with served("full") as server:
        await sessions(server, 2 * _TOGETHER)
        before = await server.holds()
        took_ms = await sessions(server, times)
        after = await server.holds()
    report.row("websocket_created_p95_ms", _percentile(took_ms, 95), "ms", n=len(took_ms))
    left_mb = max(0.0, after.memory_mb - before.memory_mb)
    report.row("websocket_left_memory_mb", left_mb, "MB", target=LEFT_MB, n=times)
    for name in ("tasks", "threads", "files"):
        left = max(0, getattr(after, name) - getattr(before, name))
        report.row(f"websocket_left_{name}", left, "", target=LEFT, n=times)


def _percentile(values: Sequence[float], share: float) -> float:
    return float(np.percentile(values, share)) if values else math.nan


# ---- the command ------------------------------------------------------------------------------


async def measure(report: Report, calls: int, websockets: int) -> None:
    """All rows."""
    # The clients offer the loopback alone, as the servers do.
    aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"]
    ours, stock = await dialled("full", calls), await dialled("stock", calls)
    report_calls(report, ours, stock)
    await report_sessions(report, websockets)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 when a target was missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.api", description=__doc__)
    parser.add_argument("--calls", type=int, default=60, help="WebRTC calls of each server")
    parser.add_argument("--sockets", type=int, default=200, help="WebSocket sessions")
    add_arguments(parser)
    chosen = parser.parse_args(arguments)
    report = Report(as_json=chosen.json)
    asyncio.run(measure(report, chosen.calls, chosen.sockets))
    return 1 if report.missed else 0


if __name__ == "__main__":
    sys.exit(main())
