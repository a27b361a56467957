"""The stand-in for an engine that computes, as `bench.load_server` runs it on a core of its own."""

import os
from collections.abc import Callable
from pathlib import Path

from agent.engines import EngineSettings
from agent.fleet.host import ProcessHost, ThreadHost
from agent.fleet.pool import RemoteEngine, start_core
from agent.fleet.worker import Job
from tests.rig.busy_core import BusyCore

ORDERS = {
    "engine_process": "do speak and busy 20",
    "engine_thread": "do speak and busy 20",
    "engine_rest": "do speak",
}
"""A unit of speech each 20 ms of work: the length of a decoding step, and never a pause."""
_CORE = "BENCH_ENGINE_CORE"
_SLOTS = 4


def load(_: str, settings: EngineSettings, on_progress: Callable[[int, int], None]) -> BusyCore:
    """The stand-in, on the core of the machine that the server does not use."""
    on_progress(1, 1)
    # Of the calling thread alone, so that only the interpreter is shared where one is.
    os.sched_setaffinity(0, {int(os.environ[_CORE])})
    return BusyCore("busy", settings.slots)


async def start(in_thread: bool, core: int) -> RemoteEngine:
    """The engine, in a process of its own or in a thread of this one."""
    os.environ[_CORE] = str(core)
    job = Job(load, "busy", EngineSettings(Path(), _SLOTS))
    return await start_core(job, make_host=ThreadHost if in_thread else ProcessHost)
