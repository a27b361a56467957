"""The bench of voices in a thread, and recordings to bring to it."""

import os
import socket
import threading
from collections.abc import Callable
from functools import lru_cache
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import numpy as np

from agent.voices_bench import BenchSettings, Child, Order, serve
from tests.rig.attached import sound, wav
from tests.rig.voices import AGENT_TEXT, say

TEXT = AGENT_TEXT[:75]
"""Four seconds of speech."""
CONSENT = "This is my own voice."


@lru_cache(maxsize=8)
def spoken(voice: str = "en-us", rate_hz: int = 24_000) -> bytes:
    """A WAV file of speech that is accepted as it is."""
    return wav((say(TEXT, rate_hz, voice) * 32767).astype(np.int16), rate_hz)


def coded(container: str, codec: str, rate_hz: int) -> bytes:
    """The same, encoded."""
    return sound(container, codec, say(TEXT, rate_hz), rate_hz)


class HeldBench:
    """A bench that notes its orders, and begins with those of a kind when `go` is set."""

    def __init__(self, *kinds: type[Order]) -> None:
        self.orders: list[str] = []
        self.reached, self.go = threading.Event(), threading.Event()
        self._kinds = kinds

    def __call__(self, end: Connection, settings: BenchSettings) -> None:
        """Its whole life, as `serve`."""
        held = self

        class Holding:
            def __getattr__(self, name: str) -> object:
                return getattr(end, name)

            def recv(self) -> object:
                order = end.recv()
                held.orders.append(type(order).__name__)
                if isinstance(order, held._kinds):
                    held.reached.set()
                    held.go.wait(10)
                return order

        serve(Holding(), settings)  # type: ignore[arg-type]


class Benches:
    """Starts benches in threads; `before` is called with the settings each time."""

    def __init__(self, run: Callable[[Connection, BenchSettings], None] = serve) -> None:
        self.started = 0
        self._run = run

    def __call__(self, settings: BenchSettings) -> Child:
        self.started += 1
        ours, theirs = Pipe()
        thread = threading.Thread(target=self._run, args=(theirs, settings), daemon=True)
        line = socket.socket(fileno=os.dup(ours.fileno()))

        def kill() -> None:
            try:
                line.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # It has ended.

        def bury() -> str:
            # The link is closed, but this second handle would keep the other end waiting.
            kill()
            thread.join(10)
            line.close()
            return "ended"

        thread.start()
        return Child(ours, kill, bury)
