"""The side of an engine's process: one thread reads, the other one alone touches the core."""

import ctypes
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from agent.clock import SYSTEM_CLOCK, Clock
from agent.engines import EngineSettings, Progress
from agent.errors import AgentError, EngineError
from agent.fleet.channel import Channel, ChannelClosed
from agent.fleet.link import Link, LinkClosed, SocketLink
from agent.fleet.messages import (
    Answered,
    Chat,
    Control,
    Finish,
    FromEngine,
    Message,
    Open,
    Pulse,
    Push,
    Ready,
    Said,
    Stop,
    Unable,
)
from agent.fleet.messages import Progress as Loaded
from agent.interfaces import EngineCore
from agent.torch_parts.device import breaks_device
from agent.types import Load

log = logging.getLogger(__name__)

_MAX_WAITING = 512
"""Messages read while the core is at work; when so many wait, the sender does, too."""
_PROGRESS_STEPS = 200
"""Steps of loading that are told; a checkpoint has thousands of tensors."""
_LOG_FORMAT = "%(asctime)s %(levelname)s engine %(process)d %(name)s: %(message)s"
_PR_SET_PDEATHSIG = 1
_PR_SET_TIMERSLACK = 29

Loader: TypeAlias = Callable[[str, EngineSettings, Progress], EngineCore]
Inbox: TypeAlias = Channel[Message]


@dataclass(frozen=True, slots=True)
class Job:
    """What an engine's process is started with; `loader` is a function that a module names."""

    loader: Loader
    name: str
    settings: EngineSettings
    pulse_s: float = 15.0
    """So often at least the core's thread says that it lives."""
    log_level: int = logging.WARNING


def run_process(end: socket.socket, job: Job) -> None:
    """The whole life of an engine's own process, whose link to the server is `end`."""
    # Ctrl-C goes to the whole group of a terminal; it is the server that ends its engine.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=job.log_level, format=_LOG_FORMAT)
    _die_with_parent()
    _wake_promptly()
    if not run(job, SocketLink(end), orphaned=lambda: os._exit(1)):
        sys.exit(1)


def run(job: Job, link: Link, orphaned: Callable[[], object]) -> bool:
    """Load the core and serve it until told to stop; says whether that went well.

    `orphaned` is called, by the thread that reads, when the link ends from the other side.
    """
    inbox: Inbox = Channel(_MAX_WAITING)
    reader = threading.Thread(
        target=_read, args=(link, inbox, orphaned), name="engine-inbox", daemon=True
    )
    reader.start()
    try:
        return _load_and_serve(job, inbox, link)
    except (LinkClosed, ChannelClosed):
        return False
    except Exception:
        log.exception("the engine %s failed", job.name)
        return False
    finally:
        inbox.close()
        link.close()
        reader.join()


def _load_and_serve(job: Job, inbox: Inbox, link: Link) -> bool:
    try:
        core = job.loader(job.name, job.settings, _progress_to(link))
    except AgentError as error:
        link.send(link.pack(Unable(error)))
        return False
    # What is loaded by now stays: to look through it all would hold a step up for long.
    gc.collect()
    gc.freeze()
    serve_core(core, inbox, link, job.pulse_s)
    return True


def serve_core(core: EngineCore, inbox: Inbox, link: Link, pulse_s: float) -> None:
    """Do what `inbox` brings and what `core` has to do, until `Stop` or the inbox is closed.

    `ChannelClosed`, `LinkClosed` when the other side is gone.
    """
    desk = _Desk(core, link, pulse_s, SYSTEM_CLOCK)
    while True:
        for message in inbox.drain(desk.patience_s()):
            if isinstance(message, Stop):
                return
            desk.obey(message)
        if core.idle_s() == 0:
            desk.work()
        desk.pulse()


class _Desk:
    """What passes between the core and the link, on the core's own thread."""

    def __init__(self, core: EngineCore, link: Link, pulse_s: float, clock: Clock) -> None:
        self._core = core
        self._link = link
        self._pulse_s = pulse_s
        self._clock = clock
        self._told = core.load()
        self._next_pulse_s = clock.now_s() + pulse_s
        self._send(Ready(core.name, core.abilities, self._told))

    def patience_s(self) -> float:
        """How long to wait for a message before there is something else to do."""
        until_pulse_s = max(0.0, self._next_pulse_s - self._clock.now_s())
        idle_s = self._core.idle_s()
        return until_pulse_s if idle_s is None else min(idle_s, until_pulse_s)

    def obey(self, message: Message) -> None:
        """Pass one message on to the core."""
        match message:
            case Push(number=number, item=item):
                self._core.push(number, item)
            case Finish(number=number):
                self._core.finish(number)
            case Open(number=number, settings=settings):
                self._answer(message, lambda: self._core.open(number, settings))
            case Chat(number=number, request=request):
                self._answer(message, lambda: self._core.chat(number, request))
            case Control(number=number, command=command):
                self._answer(message, lambda: self._core.control(number, command))

    def work(self) -> None:
        """One piece of work, and what is said because of it."""
        if events := self._core.work():
            self._send(Said(tuple(events)))

    def pulse(self) -> None:
        """Say that this thread lives, when it is time to or when the load has changed."""
        load = self._core.load()
        if self._slots(load) == self._slots(self._told) and self._clock.now_s() < (
            self._next_pulse_s
        ):
            return
        self._told = load
        self._next_pulse_s = self._clock.now_s() + self._pulse_s
        self._send(Pulse(load))

    def _answer(self, asked: Open | Chat | Control, act: Callable[[], None]) -> None:
        error = self._outcome(asked, act)
        # First, so that whoever is answered already finds the load changed.
        self.pulse()
        self._send(Answered(asked.ticket, error))

    def _outcome(self, asked: Open | Chat | Control, act: Callable[[], None]) -> AgentError | None:
        """Outermost loop of what one caller asks for: a bug that it sets off is its own alone."""
        try:
            act()
        except AgentError as refusal:
            return refusal
        except Exception as error:
            if breaks_device(error):
                raise
            log.exception("%s of %d failed", type(asked).__name__, asked.number)
            # What was half begun holds no slot; the caller ends a conversation by itself.
            if not isinstance(asked, Control):
                self._core.finish(asked.number)
            return EngineError("the engine failed at this; its log says more")
        return None

    def _send(self, message: FromEngine) -> None:
        self._link.send(self._link.pack(message))

    @staticmethod
    def _slots(load: Load) -> tuple[int, int]:
        return load.slots_used, load.slots_free


def _read(link: Link, inbox: Inbox, orphaned: Callable[[], object]) -> None:
    """Only this: what comes is in the inbox at once, whatever the core is doing."""
    try:
        while True:
            inbox.put(link.receive())
    except ChannelClosed:
        return
    except LinkClosed:
        if not inbox.closed:
            inbox.close()
            orphaned()


def _progress_to(link: Link) -> Progress:
    """Tell of loading, but not of every tensor."""
    told = -1

    def tell(done: int, total: int) -> None:
        nonlocal told
        step = done * _PROGRESS_STEPS // max(1, total)
        if step != told:
            told = step
            link.send(link.pack(Loaded(done, total)))

    return tell


def _die_with_parent() -> None:
    """A core that hangs inside of a library keeps the reading thread from seeing the link end.

    The kernel counts as parent the thread that started this process: the one in `agent.fleet.life`
    that outlives it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _wake_promptly() -> None:
    """While the core waits for its device it sleeps for 20 microseconds at a time; Linux makes 70
    to 100 of them unless it is told that this thread minds."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1000)
