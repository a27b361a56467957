"""The log says when an engine that was lost takes calls again."""

import asyncio

import pytest

from agent.api import server
from tests.rig.reading_engine import ReadingEngine


class _Steps:
    """A clock on which each look comes at once, until there are no more."""

    def __init__(self, looks: int) -> None:
        self._looks = looks
        self._time_s = 0.0

    def now_s(self) -> float:
        return self._time_s

    async def sleep_until(self, time_s: float) -> None:
        self._looks -= 1
        if not self._looks:
            raise asyncio.CancelledError
        self._time_s = time_s


async def test_each_return_of_the_engine_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen = ["ok", "starting", "starting", "ok", "ok", "degraded", "ok"]
    looks = iter(seen)
    monkeypatch.setattr(server, "status_of", lambda _: next(looks))
    with pytest.raises(asyncio.CancelledError):
        await server.tell_returns(ReadingEngine(), _Steps(len(seen)))
    told = [record.getMessage().partition(" is ")[2] for record in caplog.records]
    assert told == ["back after 2 s", "back after 1 s"]
