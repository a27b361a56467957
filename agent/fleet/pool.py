"""Keeps the engines' processes running: starts them, watches them, starts them again.

One process today; `Worker` is one of them, and `RemoteEngine` is where the next call's is chosen.
"""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from agent import engines
from agent.chat_types import AnswerRequest, ChatEvent
from agent.clock import SYSTEM_CLOCK, Clock
from agent.engines import EngineSettings
from agent.errors import AgentError, CapacityError, EngineError
from agent.fleet.conversation import RemoteConversation, chat, open_conversation
from agent.fleet.exchange import Exchange
from agent.fleet.host import Host, ProcessHost
from agent.fleet.life import Life
from agent.fleet.messages import Message, Progress, Pulse, Ready, Unable
from agent.fleet.worker import Job
from agent.interfaces import Engine
from agent.types import Abilities, Load, SessionSettings

log = logging.getLogger(__name__)

Status: TypeAlias = Literal["ok", "starting", "degraded"]
"""degraded: the engine does not come up any more, and nobody tries."""
OnProgress: TypeAlias = Callable[[int, int], None]
MakeHost: TypeAlias = Callable[[Job], Host]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a child may take for what, and how often it may fail.

    A child that says nothing for `hang_s`, or for `load_s` while it loads, counts as lost. The
    n-th try in a row is put off by `backoff_s`, doubled each time up to `max_backoff_s`; a child
    that was there for `steady_s` is replaced at once. After `max_failures` tries in a row that
    came to nothing there are no more.
    """

    hang_s: float = 60.0
    load_s: float = 1800.0
    close_s: float = 5.0
    backoff_s: float = 1.0
    max_backoff_s: float = 30.0
    steady_s: float = 60.0
    max_failures: int = 5

    def delay_s(self, early: int) -> float:
        """How long the next try is put off after `early` children in a row that ended early."""
        return min(self.max_backoff_s, self.backoff_s * 2.0 ** (early - 1)) if early else 0.0


class Worker:
    """One engine in a process of its own, started again whenever it is lost."""

    def __init__(
        self, job: Job, make_host: MakeHost, patience: Patience, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._job = job
        self._make_host = make_host
        self._patience = patience
        self._clock = clock
        self._on_progress: OnProgress = _ignore
        self._life: Life | None = None
        self._exchange: Exchange | None = None
        self._ready: Ready | None = None
        self._load = Load(0, 0)
        self._unable: AgentError | None = None
        self._began_s = 0.0
        self._load_took_s = 0.0
        self._status: Status = "starting"
        self._came: asyncio.Future[None] | None = None
        self._keeping: asyncio.Task[None] | None = None

    # ---- what it is ---------------------------------------------------------------------------

    @property
    def status(self) -> Status:
        """Whether it serves, comes up, or is down for good."""
        return self._status

    @property
    def abilities(self) -> Abilities:
        """What its engine can do."""
        return self._ready.abilities if self._ready else Abilities()

    @property
    def load(self) -> Load:
        """How full it is; without any place while it is not there."""
        if self._status == "ok":
            return self._load
        return Load(0, 0, self._wait_s())

    def exchange(self) -> Exchange:
        """The way to it. `CapacityError` while it is not there."""
        if self._status == "ok" and self._exchange is not None:
            return self._exchange
        if self._status == "degraded":
            raise CapacityError("the engine is down", retry_after_s=self._patience.max_backoff_s)
        raise CapacityError("the engine is starting again", retry_after_s=self._wait_s())

    def _wait_s(self) -> float:
        """Until it is there, judging by the last time."""
        return max(1.0, self._began_s + self._load_took_s - self._clock.now_s())

    # ---- life ---------------------------------------------------------------------------------

    async def start(self, on_progress: OnProgress) -> None:
        """Return when it is there for the first time; why it cannot be is raised."""
        self._on_progress = on_progress
        life = self._begin()
        try:
            await self._until_there(life)
        except asyncio.CancelledError:
            life.kill()
            await life.over()
            raise
        finally:
            self._on_progress = _ignore
        if self._status != "ok":
            how = await life.over()
            raise self._unable or EngineError(
                f"the engine {self._job.name} did not load: its process {how}"
            )
        keeping = self._keep(life)
        self._keeping = asyncio.get_running_loop().create_task(keeping, name="engine-keeper")

    async def close(self) -> None:
        """End it; its conversations end. Idempotent."""
        if self._keeping:
            self._keeping.cancel()
            await asyncio.wait((self._keeping,))
        if self._exchange:
            self._exchange.end(None)
        if self._life:
            await self._end(self._life)

    async def _end(self, life: Life) -> None:
        if self._status == "ok":
            life.stop()
            await asyncio.wait((life.ended,), timeout=self._patience.close_s)
        self._status = "degraded"
        life.cut()
        await life.over()

    def _begin(self) -> Life:
        self._status, self._unable = "starting", None
        self._came = asyncio.get_running_loop().create_future()
        self._began_s = self._clock.now_s()
        life = Life(self._make_host(self._job), self._take, self._clock)
        self._life, self._exchange = life, Exchange(life)
        life.begin()
        return life

    async def _keep(self, life: Life) -> None:
        """From the first time it is there on: when it is lost, put another one in its place."""
        failures = early = 0
        while True:
            was_there, since_s = self._status == "ok", self._clock.now_s()
            await self._until_lost(life)
            steady = self._clock.now_s() - since_s > self._patience.steady_s
            failures = 0 if was_there else failures + 1
            early = 0 if was_there and steady else early + 1
            if failures >= self._patience.max_failures:
                self._status = "degraded"
                log.error("the engine did not come up %d times in a row: it stays down", failures)
                return
            self._began_s = self._clock.now_s() + self._patience.delay_s(early)
            await self._clock.sleep_until(self._began_s)
            life = self._begin()
            await self._until_there(life)

    async def _until_there(self, life: Life) -> None:
        assert self._came is not None
        await self._watch(life, (life.silent, self._came), self._patience.load_s)

    async def _until_lost(self, life: Life) -> None:
        """Wait until the child is gone, and tell all that depended on it."""
        await self._watch(life, (life.silent,), self._patience.hang_s)
        self._status, calls = "starting", len(self._exchange or ())
        if self._exchange:
            self._exchange.end("the engine's process was lost; it is started again")
        how = await life.over()
        if self._unable:
            how = f"could not load it ({self._unable})"
        log.error("the process of the engine %s %s: %d calls lost", self._job.name, how, calls)

    async def _watch(
        self, life: Life, news: Collection[asyncio.Future[None]], silence_s: float
    ) -> None:
        """Wait for `news`; a child that is silent for too long is killed."""
        while True:
            since_s = self._clock.now_s()
            done, _ = await asyncio.wait(
                news, timeout=silence_s / 4, return_when=asyncio.FIRST_COMPLETED
            )
            now_s = self._clock.now_s()
            if now_s - since_s > silence_s / 2:
                # It was this process that stood still, so nothing is known of the other one.
                life.heard_s = now_s
            if done:
                return
            if now_s - life.heard_s > silence_s:
                log.error("the engine has not moved for %.0f s and is killed", silence_s)
                life.kill()

    def _take(self, message: Message) -> None:
        match message:
            case Progress(done=done, total=total):
                self._on_progress(done, total)
            case Ready(load=load):
                self._ready, self._load, self._status = message, load, "ok"
                self._load_took_s = self._clock.now_s() - self._began_s
                if self._came and not self._came.done():
                    self._came.set_result(None)
            case Unable(error=error):
                self._unable = error
            case Pulse(load=load):
                self._load = load
            case _:
                if self._exchange:
                    self._exchange.take(message)


def _ignore(done: int, total: int) -> None:
    """Nobody is told of progress after the start."""


class RemoteEngine:
    """An `Engine` whose core is elsewhere."""

    def __init__(self, name: str, worker: Worker) -> None:
        self._name = name
        self._worker = worker
        self._numbers = itertools.count(1)

    @property
    def name(self) -> str:
        """The name by which it was picked."""
        return self._name

    @property
    def abilities(self) -> Abilities:
        """What it can do."""
        return self._worker.abilities

    @property
    def status(self) -> Status:
        """Whether it serves, comes up again, or is down for good."""
        return self._worker.status

    async def open(self, settings: SessionSettings) -> RemoteConversation:
        """Start a conversation; `CapacityError` without a slot or while the engine starts again.

        Also what else its core raises, `WorkerLost`, and `EngineError` when it is overrun.
        """
        exchange = self._worker.exchange()
        return await open_conversation(exchange, next(self._numbers), settings)

    def chat(self, request: AnswerRequest) -> AsyncIterator[ChatEvent]:
        """Answer once; errors as in `open` come with the first piece, `WorkerLost` at any time."""
        return chat(self._worker.exchange(), next(self._numbers), request)

    def load(self) -> Load:
        """How full it is; no place and how long to wait for one while it starts again."""
        return self._worker.load

    async def close(self) -> None:
        """End the process; open conversations end."""
        await self._worker.close()


def status_of(engine: Engine) -> Status:
    """Whether `engine` serves; one of this process always does."""
    return engine.status if isinstance(engine, RemoteEngine) else "ok"


async def start_engine(
    name: str, settings: EngineSettings, on_progress: OnProgress = _ignore
) -> Engine:
    """Engine `name`, ready for calls; in a process of its own if it needs one.

    `on_progress` is called with how much is done of loading and how much there is in all.
    `ConfigError`, `CheckpointError` when it cannot be loaded; `EngineError` when its process ends
    meanwhile.
    """
    if not engines.needs_worker(name):
        return engines.create(name, settings)
    return await start_core(Job(engines.load_core, name, settings), on_progress)


async def start_core(
    job: Job,
    on_progress: OnProgress = _ignore,
    patience: Patience | None = None,
    make_host: MakeHost = ProcessHost,
) -> RemoteEngine:
    """The engine that `job` loads; with `ThreadHost` as `make_host` a thread of this process.

    Errors as of `start_engine`; to cancel it ends the process.
    """
    patience = patience or Patience()
    pulse_s = min(job.pulse_s, patience.hang_s / 4)
    job = replace(job, pulse_s=pulse_s, log_level=logging.getLogger().getEffectiveLevel())
    worker = Worker(job, make_host, patience)
    await worker.start(on_progress)
    return RemoteEngine(job.name, worker)
