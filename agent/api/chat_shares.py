"""How many chats each holder of a key has under way, those beside calls among them."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from agent.api.caller import Caller
from agent.errors import QuotaError


class TooManyChats(QuotaError):
    """Whoever asks has as many chats as they may."""

    code = "chat_limit_exceeded"
    reason = "chats"


class ChatShares:
    """Counts chats by the shares of those who asked for them."""

    def __init__(self) -> None:
        self.held: Counter[str] = Counter()
        """Those under way, by the name of the share; of none, nothing is remembered."""

    @contextmanager
    def one_more(self, caller: Caller, retry_after_s: int) -> Iterator[None]:
        """Held while a chat of `caller` is under way. `TooManyChats`."""
        for share in caller.chat_shares:
            if self.held[share.name] >= share.most:
                raise TooManyChats(
                    f"{share.name} may have {share.most} chat(s) at a time; wait for an answer",
                    retry_after_s=float(retry_after_s),
                )
        names = [share.name for share in caller.chat_shares]
        self.held.update(names)
        try:
            yield
        finally:
            self.held.subtract(names)
            self.held = +self.held

    @contextmanager
    def aside(self, caller: Caller, retry_after_s: int) -> Iterator[None]:
        """The same beside a call, where it counts as a request, too. `QuotaError`."""
        caller.count_request()
        with self.one_more(caller, retry_after_s):
            yield
