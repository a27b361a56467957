"""Those who follow a call besides its client, and what they asked for in it."""

from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeAlias

from agent.errors import CapacityError

MAX_WATCHERS = 4
_RETRY_S = 5.0
_MOST_ASKED = 64

Watcher: TypeAlias = Callable[[dict[str, object]], None]
"""Is given every server event once it was sent. Never waits."""


class Watchers:
    """At most `MAX_WATCHERS` at a time, each until it leaves."""

    def __init__(self) -> None:
        self._watchers: dict[int, Watcher] = {}

    def add(self, watcher: Watcher) -> Callable[[], None]:
        """One more, until what comes back is called. `CapacityError` when there are too many."""
        if len(self._watchers) >= MAX_WATCHERS:
            raise CapacityError(
                f"{MAX_WATCHERS} follow this call already; no more may", retry_after_s=_RETRY_S
            )
        key = max(self._watchers, default=0) + 1
        self._watchers[key] = watcher
        return lambda: self._leave(key)

    def tell(self, event: dict[str, object]) -> None:
        """The event that was just sent."""
        for watcher in list(self._watchers.values()):
            watcher(event)

    def _leave(self, key: int) -> None:
        self._watchers.pop(key, None)


class Askers:
    """Who asked for what the engine is to do, where that was not the client: the newest of it.

    Of what is older the client itself is told when the engine refuses it.
    """

    def __init__(self) -> None:
        self._asked: deque[tuple[object, Watcher]] = deque(maxlen=_MOST_ASKED)

    def note(self, actions: Iterable[object], asker: Watcher | None) -> None:
        """It asked for these; None: the client did."""
        if asker is not None:
            self._asked.extend((action, asker) for action in actions)

    def tell(self, command: object, refusal: dict[str, object]) -> bool:
        """Tell whoever asked for this very `command` why not; False where that was the client."""
        for asked, asker in self._asked:
            if asked is command:
                asker(refusal)
                return True
        return False
