"""An event loop beside a terminal: the engine is to be attended to while the user types."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import CancelledError, Future, wait
from typing import Any, TypeVar

Result = TypeVar("Result")

_STOP_S = 10.0


class Interrupts:
    """Ctrl-C, where there is something to be stopped: `KeyboardInterrupt`, once each time.

    Anywhere else it is passed over: who presses it twice must not be thrown out by the second,
    which comes while the first is dealt with.
    """

    def __init__(self) -> None:
        self._heard = False

    @contextlib.contextmanager
    def taken_over(self) -> Iterator[None]:
        """From here on this is who hears it; for the main thread."""
        before = signal.signal(signal.SIGINT, self._come)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Here it stops what goes on."""
        self._heard = True
        try:
            yield
        finally:
            self._heard = False

    def _come(self, *_: object) -> None:
        if self._heard:
            self._heard = False
            raise KeyboardInterrupt


class Run:
    """Runs coroutines on a loop in another thread, one at a time; Ctrl-C cancels the one."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def __call__(self, work: Coroutine[Any, Any, Result]) -> Result:
        """What `work` returns; KeyboardInterrupt once it has ended, if Ctrl-C did that."""
        outcome: Future[Result] = Future()
        begun: list[asyncio.Task[Result]] = []

        def begin() -> None:
            begun.append(self._loop.create_task(work))
            begun[0].add_done_callback(lambda task: _hand_over(task, outcome))

        def give_up() -> None:
            if begun:
                begun[0].cancel()
            else:
                work.close()
                _cancel(outcome)

        try:
            self._loop.call_soon_threadsafe(begin)
            return outcome.result()
        except KeyboardInterrupt:
            # It may have come before `begin` was even called; the two keep their order.
            self._loop.call_soon_threadsafe(give_up)
            wait((outcome,), _STOP_S)
            raise
        except CancelledError as error:
            raise KeyboardInterrupt from error


def _hand_over(task: "asyncio.Task[Result]", outcome: "Future[Result]") -> None:
    if task.cancelled():
        _cancel(outcome)
    elif error := task.exception():
        outcome.set_exception(error)
    else:
        outcome.set_result(task.result())


def _cancel(outcome: "Future[Result]") -> None:
    outcome.cancel()
    # Only now do those who wait for it hear of it.
    outcome.set_running_or_notify_cancel()


@contextlib.contextmanager
def background() -> Iterator[Run]:
    """A loop in a thread of its own, for as long as the context lasts."""
    ready: Future[asyncio.AbstractEventLoop] = Future()
    over = asyncio.Event()

    async def stay() -> None:
        ready.set_result(asyncio.get_running_loop())
        await over.wait()

    # Not `daemon`: what the engine has started ends in order.
    thread = threading.Thread(target=lambda: asyncio.run(stay()), name="chat")
    thread.start()
    loop = ready.result()
    try:
        yield Run(loop)
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
