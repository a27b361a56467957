"""The servers that `bench.load` puts under load, each in a process of its own on one core.

`python -m bench.load_server KIND` serves until its standard input ends. `full` is what
`voice-agent serve` runs with the echo engine; `transport` is its WebRTC transport alone;
`stock` is a plain aiortc peer with a paced track, as one would write it by aiortc's examples.
The three of the engine are the whole server with a stand-in for one that computes, which speaks
without end: `engine_process` and `engine_thread` never rest, in a process of their own and in
the server's, `engine_rest` only speaks.
Each has a route that takes offers and three for the bench: POST /bench/begin, /bench/figures and
/bench/tasks.
"""

import argparse
import asyncio
import json
import os
import struct
import sys
import time
from collections.abc import Awaitable, Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args

import aioice.ice
import av
import numpy as np
import uvloop
from aiohttp import web
from aiortc import MediaStreamTrack, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError

from agent.api.loading import Started
from agent.api.server import build_app, spare_collector
from agent.api.server import make_app as whole_app
from agent.config import load_config
from agent.engines import Choice
from agent.transport.aiortc_inside import offer_addresses
from agent.transport.rtc import RtcOptions, RtcTransport
from bench import load_core
from bench.load_slots import Lateness, SlotLog
from bench.load_speech import HalfTheTime, agent_speech

EngineKind = Literal["engine_process", "engine_thread", "engine_rest"]
Kind = Literal["stock", "transport", "full"] | EngineKind
ENGINE_KINDS: tuple[EngineKind, ...] = get_args(EngineKind)
KINDS: tuple[Kind, ...] = ("stock", "transport", "full")
WHOLE_SERVERS: tuple[Kind, ...] = ("full", *ENGINE_KINDS)
OFFER_PATHS: dict[Kind, str] = {
    "stock": "/offer",
    "transport": "/offer",
    **dict.fromkeys(WHOLE_SERVERS, "/v1/realtime/calls"),
}

_MAX_CALLS = 100
_LAG_EVERY_S = 0.05
_NICE_FIRST = -19
_AUTOGROUP = Path("/proc/self/autogroup")
_STOCK_RATE_HZ = 48_000
_STOCK_FRAME = _STOCK_RATE_HZ // 50
Answer = Callable[[str], Awaitable[str]]


class Watch:
    """What is measured inside the server: when packets reach a socket, and the loop's lag."""

    def __init__(self) -> None:
        self.frames = 0
        """Pieces of sound that came out of the receiving side, of whatever length."""
        self._logs: dict[tuple[str, int], SlotLog] = {}
        self._lags_s: list[float] = []
        self._since_s = time.monotonic()
        self._spent_s = time.process_time()

    def tap_sockets(self) -> None:
        """Note every packet of sound that this process hands to a socket."""

        async def send_data(protocol: Any, data: bytes, addr: tuple[str, int]) -> None:
            if data[0] >> 6 == 2 and not 192 <= data[1] <= 223:
                log = self._logs.get(addr)
                if log is None:
                    log = self._logs[addr] = SlotLog()
                timestamp = struct.unpack_from("!L", data, 4)[0]
                log.note(time.monotonic(), timestamp, len(data))
            protocol.transport.sendto(data, addr)

        protocols: Any = aioice.ice.StunProtocol
        protocols.send_data = send_data

    async def follow_lag(self) -> None:
        """Measure how late the event loop wakes timers."""
        while True:
            # Not the loop's own time: uvloop's moves only once for each of its rounds.
            due_s = time.monotonic() + _LAG_EVERY_S
            await asyncio.sleep(_LAG_EVERY_S)
            self._lags_s.append(time.monotonic() - due_s)

    async def begin(self, _: web.Request) -> web.Response:
        """A window begins."""
        for log in self._logs.values():
            log.begin()
        self._lags_s.clear()
        self.frames = 0
        self._since_s, self._spent_s = time.monotonic(), time.process_time()
        return web.Response()

    async def figures(self, _: web.Request) -> web.Response:
        """What the window showed, which ends now."""
        passed_s = time.monotonic() - self._since_s
        spent_s = time.process_time()
        late_ms = [log.late_ms(passed_s) for log in self._logs.values()]
        sent = Lateness.of(np.concatenate([*late_ms, np.zeros(0)]))
        lags_s = self._lags_s or [0.0]
        return web.json_response(
            {
                "cpu_percent": 100 * (spent_s - self._spent_s) / passed_s,
                # Whole calls hand their frames to an engine, which does not count them.
                **({"frames_per_s": self.frames / passed_s} if self.frames else {}),
                "sent_late_p99_ms": _finite(sent.p99_ms),
                "sent_late_max_ms": _finite(sent.max_ms),
                "lag_p50_ms": 1000 * float(np.percentile(lags_s, 50)),
                "lag_p99_ms": 1000 * float(np.percentile(lags_s, 99)),
                "lag_max_ms": 1000 * max(lags_s),
            }
        )


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


# ---- the three servers ------------------------------------------------------------------------


async def make_app(kind: Kind, watch: Watch, engine_core: int) -> web.Application:
    """The application, not yet running."""
    limits = [f"calls.max_calls={_MAX_CALLS}", "rtc.addresses=127.0.0.1"]
    if kind == "full":
        app = build_app(load_config(None, {}, ["engine.name=echo", *limits]))
    elif kind in ENGINE_KINDS:
        orders = f"session.instructions={load_core.ORDERS[kind]}"
        engine = await load_core.start(kind == "engine_thread", engine_core)
        started = Started(Choice(engine.name, "it is measured"), engine)
        app = whole_app(load_config(None, {}, [orders, *limits]), started)
    else:
        offer_addresses(("127.0.0.1",), loopback=True)
        answer = _transport(watch) if kind == "transport" else _stock(watch)
        app = web.Application()
        app.router.add_post(OFFER_PATHS[kind], _offer_route(answer))
    app.router.add_post("/bench/begin", watch.begin)
    app.router.add_post("/bench/figures", watch.figures)
    app.router.add_post("/bench/tasks", _count_tasks)
    # As `voice-agent serve` does; the stock server gets the same.
    spare_collector()
    return app


async def _count_tasks(_: web.Request) -> web.Response:
    return web.json_response({"tasks": len(asyncio.all_tasks())})


def _offer_route(answer: Answer) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def route(request: web.Request) -> web.Response:
        return web.Response(text=await answer(await request.text()))

    return route


def _transport(watch: Watch) -> Answer:
    """Our transport, its microphone drained, its loudspeaker fed half of the time."""
    cycle = agent_speech()
    tasks: set[asyncio.Task[None]] = set()

    async def talk(transport: RtcTransport, place: float) -> None:
        await transport.connected()
        transport.play(HalfTheTime(cycle, place))
        async for _ in transport.microphone():
            watch.frames += 1
        await transport.close()

    async def answer(offer: str) -> str:
        transport = RtcTransport(RtcOptions())
        sdp = await transport.answer(offer)
        place = len(tasks) * 0.618 % 1.0
        tasks.add(asyncio.get_running_loop().create_task(talk(transport, place)))
        return sdp

    return answer


class _StockVoice(MediaStreamTrack):
    """Gives frames of 20 ms, paced as aiortc's own silent track is."""

    kind = "audio"

    def __init__(self, pcm: np.ndarray, place: float) -> None:
        super().__init__()
        self._frames = pcm[: len(pcm) // _STOCK_FRAME * _STOCK_FRAME].reshape(-1, 1, _STOCK_FRAME)
        self._next = int(place * len(self._frames))
        self._start_s = 0.0
        self._sent = 0

    async def recv(self) -> av.AudioFrame:
        if self.readyState != "live":
            raise MediaStreamError
        self._start_s = self._start_s or time.monotonic()
        due_s = self._start_s + self._sent / _STOCK_RATE_HZ
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        samples = self._frames[self._next]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate, frame.time_base = _STOCK_RATE_HZ, Fraction(1, _STOCK_RATE_HZ)
        frame.pts = self._sent
        self._sent += _STOCK_FRAME
        self._next = (self._next + 1) % len(self._frames)
        return frame


def _stock(watch: Watch) -> Answer:
    """A plain peer: a paced track out, `await track.recv()` in."""
    pcm = (agent_speech(_STOCK_RATE_HZ) * 32767).astype(np.int16)
    tasks: set[asyncio.Task[None]] = set()

    async def listen(track: MediaStreamTrack) -> None:
        try:
            while True:
                await track.recv()
                watch.frames += 1
        except MediaStreamError:
            pass

    async def answer(offer: str) -> str:
        peer = RTCPeerConnection()
        loop = asyncio.get_running_loop()
        peer.on("track", lambda track: tasks.add(loop.create_task(listen(track))))
        await peer.setRemoteDescription(RTCSessionDescription(offer, "offer"))
        peer.addTrack(_StockVoice(pcm, len(tasks) * 0.618 % 1.0))
        await peer.setLocalDescription(await peer.createAnswer())
        return str(peer.localDescription.sdp)

    return answer


# ---- the process ------------------------------------------------------------------------------


async def serve(kind: Kind, engine_core: int) -> None:
    """Print the port as a line of JSON, serve until standard input ends."""
    watch = Watch()
    watch.tap_sockets()
    app = await make_app(kind, watch, engine_core)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    loop = asyncio.get_running_loop()
    following = loop.create_task(watch.follow_lag())
    stop = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), stop.set)
    sys.stdout.write(json.dumps({"port": runner.addresses[0][1]}) + "\n")
    sys.stdout.flush()
    await stop.wait()
    following.cancel()
    await runner.cleanup()


def pin(core: int, *, first: bool) -> None:
    """Run on `core` alone; `first` ahead of whatever else wants it. Call before any thread."""
    os.sched_setaffinity(0, {core})
    if first:
        os.setpriority(os.PRIO_PROCESS, 0, _NICE_FIRST)
        if _AUTOGROUP.exists():
            # Where the kernel groups processes by session, niceness counts only within one.
            _AUTOGROUP.write_text(str(_NICE_FIRST), "utf-8")


def main() -> None:
    """The command line of this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=(*KINDS, *ENGINE_KINDS))
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--engine-core", type=int, default=0, help="where a stand-in computes")
    parser.add_argument("--first", action="store_true")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="uvloop")
    arguments = parser.parse_args()
    pin(arguments.core, first=arguments.first)
    factory = uvloop.new_event_loop if arguments.loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(arguments.kind, arguments.engine_core))
    # Peers that were in a call need not be waited for.
    os._exit(0)


if __name__ == "__main__":
    main()
