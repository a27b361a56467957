"""Servers of a busy core, in processes of their own that a test may end as it likes.

`python -m tests.rig.fleet_server work FOLDER WORK` keeps its engine at WORK, without end;
`python -m tests.rig.fleet_server load FOLDER` is `voice-agent serve` with that core.
"""

import asyncio
import sys
from pathlib import Path

from agent.commands import AddText
from agent.engines import Choice, EngineSettings
from agent.fleet.pool import start_core
from agent.fleet.worker import Job
from agent.types import SessionSettings
from tests.rig import busy_core


def _job(folder: Path) -> Job:
    return Job(busy_core.load, "busy", EngineSettings(folder, 1))


async def work(folder: Path, what: str) -> None:
    """Never returns."""
    engine = await start_core(_job(folder))
    conversation = await engine.open(SessionSettings("busy"))
    await conversation.control(AddText("item", "user", what))
    sys.stdout.write("working\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


def load(folder: Path) -> int:
    """Serve."""
    # The engine's process imports this module, too, and has no use for a server.
    from agent.api import loading, server
    from agent.config import Config, load_config

    async def start(_: Config) -> loading.Started:
        show = loading.DownloadLine("loading busy", sys.stderr)
        return loading.Started(Choice("busy", "for a test"), await start_core(_job(folder), show))

    server.start = start
    return server.serve(load_config(None, {}, ["server.port=0"]))


if __name__ == "__main__":
    if sys.argv[1] == "work":
        asyncio.run(work(Path(sys.argv[2]), sys.argv[3]))
    sys.exit(load(Path(sys.argv[2])))
