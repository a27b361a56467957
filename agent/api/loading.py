"""What comes before the server listens: an engine is chosen, its weights fetched, and it is loaded.

All of that may take minutes, says so on stderr, and ends at once when the server is told to stop.
"""

import asyncio
import sys
from dataclasses import dataclass

from agent import model_hub
from agent.config import Config
from agent.engines import Choice, EngineSettings, VoiceSettings, needs_worker
from agent.errors import AgentError
from agent.fleet.pool import start_engine
from agent.interfaces import Engine
from agent.model_hub.progress import DownloadLine, LoadingLine


class _Stopped(AgentError):
    """The server was told to stop meanwhile."""


@dataclass(frozen=True, slots=True)
class Started:
    """An engine that is ready for calls, and why it is this one."""

    choice: Choice
    engine: Engine
    voice: VoiceSettings | None = None
    """What gives it its voice, where that is a vocoder."""


async def start(config: Config) -> Started:
    """Choose, fetch and load; to cancel it ends what was begun, to be taken up again.

    `ConfigError`, `CheckpointError`; `EngineError` when the engine's process ends meanwhile.
    """
    choice, settings = await _prepare(config)
    show = LoadingLine(f"voice-agent: loading {choice.name}", sys.stderr)
    if needs_worker(choice.name):
        sys.stderr.write(f"voice-agent: loading {choice.name} ({choice.reason})\n")
        sys.stderr.flush()
    engine = await start_engine(choice.name, settings, show)
    return Started(choice, engine, settings.voice)


async def _prepare(config: Config) -> tuple[Choice, EngineSettings]:
    stopped = False
    show = DownloadLine("voice-agent: downloading", sys.stderr)

    def go_on(done: int, total: int) -> None:
        # Nothing else can end a thread; what is here by then need not be fetched again.
        if stopped:
            raise _Stopped("the server was told to stop")
        show(done, total)

    try:
        choice = await asyncio.to_thread(model_hub.choose, config)
        return choice, await asyncio.to_thread(model_hub.engine_settings, config, choice, go_on)
    finally:
        stopped = True
