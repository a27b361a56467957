"""Has recordings examined and voices prepared, one at a time, and never by the event loop.

The process for it is started when there is something to do, and ended when there was nothing for a
minute: it takes some 0.4 GB, with a full-size vocoder's models twice that.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from agent.errors import AgentError, CapacityError, EngineError
from agent.vocoder.voice_store import StoredVoice
from agent.voices_bench import (
    BenchSettings,
    Child,
    Examine,
    Order,
    Prepare,
    Said,
    examined,
    start_process,
    why_not,
)
from agent.voices_recording import Examined

log = logging.getLogger(__name__)

_RETRY_AFTER_S = 5.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How many may wait, and how long things may take."""

    waiting: int = 8
    """Recordings that wait to be examined; more are refused."""
    examine_s: float = 60.0
    prepare_s: float = 300.0
    idle_s: float = 60.0


@dataclass(slots=True, eq=False)
class _Job:
    order: Order
    data: bytes
    within_s: float
    done: "asyncio.Future[tuple[Said, bytes]]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Workshop:
    """Its methods belong to one event loop. Whoever examines goes before those who prepare."""

    def __init__(
        self,
        settings: BenchSettings,
        start: Callable[[BenchSettings], Child] = start_process,
        patience: Patience = Patience(),
    ) -> None:
        self._settings = settings
        self._start = start
        self._patience = patience
        self._examining: deque[_Job] = deque()
        self._preparing: deque[_Job] = deque()
        self._wake = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "voices")
        self._child: Child | None = None
        self._closing = False

    async def examine(self, data: bytes) -> Examined:
        """As `voices_recording.examine`; CapacityError when too many wait, EngineError."""
        if len(self._examining) >= self._patience.waiting:
            raise CapacityError(
                "too many recordings wait to be examined; try again later",
                retry_after_s=_RETRY_AFTER_S,
            )
        job = _Job(Examine(), data, self._patience.examine_s)
        try:
            said, recording = await self._done(job, self._examining)
        except EngineError as error:
            raise EngineError(f"the recording could not be examined: {error}") from error
        return examined(said, recording)

    async def prepare(self, voice: StoredVoice, key: str) -> str:
        """Prepare a voice for the vocoder of `key`, unless it is; "" once it is.

        Else why it never will be; EngineError for what another try may mend.
        """
        job = _Job(Prepare(voice, key), b"", self._patience.prepare_s)
        said, _ = await self._done(job, self._preparing)
        return why_not(said)

    async def close(self) -> None:
        """End the process, whatever it is doing; what waits is told."""
        self._closing = True
        self._wake.set()
        if self._child is not None:
            self._child.kill()
        if self._runner is not None:
            await asyncio.wait((self._runner,))
        self._thread.shutdown()

    async def _done(self, job: _Job, queue: deque[_Job]) -> tuple[Said, bytes]:
        if self._closing:
            raise EngineError("the server is shutting down")
        queue.append(job)
        self._wake.set()
        if self._runner is None or self._runner.done():
            self._runner = asyncio.get_running_loop().create_task(self._run(), name="voices")
        return await job.done

    async def _run(self) -> None:
        """Do what waits; leave once nothing came for a while."""
        await self._work()
        # Something may have come while the process ended.
        while self._examining or self._preparing:
            await self._work()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while job := await self._next():
            try:
                outcome = await loop.run_in_executor(self._thread, self._ask, job)
            except AgentError as error:
                if not job.done.done():
                    job.done.set_exception(error)
            else:
                if not job.done.done():
                    job.done.set_result(outcome)
        await loop.run_in_executor(self._thread, self._leave)

    async def _next(self) -> _Job | None:
        """The next job; None when there was none for so long, or all is to end."""
        while not self._closing:
            for queue in (self._examining, self._preparing):
                while queue:
                    job = queue.popleft()
                    # Whoever asked for it may have left.
                    if not job.done.done():
                        return job
            self._wake.clear()
            try:
                async with asyncio.timeout(self._patience.idle_s):
                    await self._wake.wait()
            except TimeoutError:
                return None
        for queue in (self._examining, self._preparing):
            while queue:
                job = queue.popleft()
                if not job.done.done():
                    job.done.set_exception(EngineError("the server is shutting down"))
        return None

    # ---- on the thread ------------------------------------------------------------------------

    def _ask(self, job: _Job) -> tuple[Said, bytes]:
        try:
            if self._child is not None and self._child.link.poll():
                # It says nothing unasked: it was ended by somebody else.
                self._leave()
            if self._child is None:
                self._child = self._start(self._settings)
            if self._closing:
                raise EngineError("the server is shutting down")
            return self._child.ask(job.order, job.data, job.within_s)
        except OSError as error:
            raise EngineError(f"no process could be started for it: {error.strerror}") from error
        except EngineError:
            # Nobody knows what it is at: the next job gets a new one.
            if self._child is not None:
                self._child.kill()
            how = self._leave()
            if not self._closing:
                log.warning("the process that prepares voices %s", how)
            raise

    def _leave(self) -> str:
        child, self._child = self._child, None
        if child is None:
            return "was not there"
        child.link.close()
        return child.bury()
