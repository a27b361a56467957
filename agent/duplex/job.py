"""Somebody's work under way: piece by piece, so that others' pieces go between or along with it."""

from collections.abc import Callable, Generator
from typing import Any

from agent.duplex.lanes import StageTimes
from agent.duplex.work import Work


class Job:
    """Steps of a conversation and what to do with their result.

    work = job.next()
    while work is not None:
        ...  # have it done
        job.did(work, took_ms)
        work = job.next()
    """

    def __init__(
        self,
        steps: Generator[Work, None, Any],
        done: Callable[[Any, StageTimes], None],
        due_s: float | None = None,
    ) -> None:
        """`done` is called once with what the steps return and what they took.

        `due_s`: a unit's, on the engine's clock: then the next one is complete.
        """
        self._steps = steps
        self._done = done
        self._spent_ms: dict[str, float] = {}
        self.due_s = due_s

    def next(self) -> Work | None:
        """The next piece, once the last one is done; None when all is. Raises what the steps do."""
        return self._asked(lambda: next(self._steps))

    def did(self, work: Work, took_ms: float) -> None:
        """A piece was done, in so long."""
        self._spent_ms[work.stage] = self._spent_ms.get(work.stage, 0.0) + took_ms

    def fail(self, error: Exception) -> Work | None:
        """A piece could not be done: the steps are told, and raise what they do not mend.

        What they do in its place, or None, as from `next`.
        """
        return self._asked(lambda: self._steps.throw(error))

    def drop(self) -> None:
        """Nobody wants the rest; not while a piece is under way."""
        self._steps.close()

    def _asked(self, ask: Callable[[], Work]) -> Work | None:
        try:
            return ask()
        except StopIteration as stop:
            self._done(stop.value, tuple(self._spent_ms.items()))
            return None
