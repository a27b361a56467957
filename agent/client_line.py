"""What a call tells its client, who may come later than others who take part in the call."""

import json
from collections import deque
from collections.abc import Callable, Mapping

MAX_WAITING = 1024


class ClientLine:
    """Hands events to `send`, once the client is there; those that came before wait for it.

    Of the settings none need wait: the client is told what is in force when it comes. Beyond
    `MAX_WAITING` the oldest is forgotten.
    """

    def __init__(self, send: Callable[[str], None]) -> None:
        self._send = send
        self._is_open = False
        self._waiting: deque[Mapping[str, object]] = deque(maxlen=MAX_WAITING)

    def greet(self, tell: Callable[[], None]) -> None:
        """The client is there: `tell` tells it so, and what came before comes behind that."""
        self._is_open = True
        tell()
        while self._waiting:
            self.tell(self._waiting.popleft())

    def tell(self, event: Mapping[str, object]) -> None:
        """The next event."""
        if self._is_open:
            self._send(json.dumps(event, allow_nan=False))
        elif event["type"] != "session.updated":
            self._waiting.append(event)
