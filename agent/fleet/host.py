"""Where an engine's core lives: a process of its own, or in tests and benchmarks a thread."""

import multiprocessing
import multiprocessing.process
import signal
import socket
import threading
from typing import Protocol

from agent.fleet.link import Link, QueueLink, SocketLink
from agent.fleet.worker import Job, run, run_process

_LEAVE_S = 2.0
"""A process whose link is closed ends by itself within that, unless it hangs."""


class Host(Protocol):
    """One child. `start` it once; everything here waits, so it belongs on a thread."""

    def start(self) -> Link:
        """Begin to load; the server's end of the link. `OSError` when there is no process left."""

    def kill(self) -> None:
        """End it at once, whatever it is doing. Does not wait."""

    def bury(self) -> str:
        """Wait until it is over, by force if need be, once the link is closed; how it ended."""


class ProcessHost:
    """A `Host` that is a process, started afresh so that it shares nothing with the server."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._process: multiprocessing.process.BaseProcess | None = None

    def start(self) -> Link:
        """See `Host`."""
        ours, theirs = socket.socketpair()
        with theirs:
            # Should the server end without a word, the interpreter ends its daemons.
            process = multiprocessing.get_context("spawn").Process(
                target=run_process,
                args=(theirs, self._job),
                name=f"engine-{self._job.name}",
                daemon=True,
            )
            process.start()
        self._process = process
        return SocketLink(ours)

    def kill(self) -> None:
        """See `Host`."""
        if self._process is not None:
            self._process.kill()

    def bury(self) -> str:
        """See `Host`."""
        process = self._process
        if process is None:
            return "never started"
        for force in (process.terminate, process.kill):
            process.join(_LEAVE_S)
            if process.exitcode is not None:
                break
            force()
        process.join()
        return _ending(process.exitcode or 0)


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


class ThreadHost:
    """A `Host` that is a thread of this process: it cannot be killed, only left alone."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._thread = threading.Thread(name=f"engine-{job.name}", daemon=True)

    def start(self) -> Link:
        """See `Host`."""
        ours, theirs = QueueLink.pair()
        self._thread = threading.Thread(
            target=run,
            args=(self._job, theirs, lambda: None),
            name=f"engine-{self._job.name}",
            daemon=True,
        )
        self._thread.start()
        return ours

    def kill(self) -> None:
        """Not possible; see above."""

    def bury(self) -> str:
        """See `Host`."""
        self._thread.join(_LEAVE_S)
        return "hangs and was left alone" if self._thread.is_alive() else "ended"
