"""A server to be killed: `python -m tests.rig.fleet_server FOLDER WORK` keeps its engine busy."""

import asyncio
import sys
from pathlib import Path

from agent.engines import EngineSettings
from agent.fleet.pool import start_core
from agent.fleet.worker import Job
from agent.types import AddText, SessionSettings
from tests.rig import busy_core


async def main(folder: Path, work: str) -> None:
    """Never returns."""
    engine = await start_core(Job(busy_core.load, "busy", EngineSettings(folder, 1)))
    conversation = await engine.open(SessionSettings("busy"))
    await conversation.control(AddText("item", "user", work))
    sys.stdout.write("working\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
