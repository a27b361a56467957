"""How long a client's events wait that come faster than they may."""

import pytest

from agent.transport.websocket_pace import Pacer, SocketPace
from tests.rig.virtual_time import VirtualClock, run_virtually

PACE = SocketPace(events_s=100, events_at_once=20, bytes_s=1000, bytes_at_once=5000)


async def came_s(sizes: list[int]) -> float:
    """When the last of them may come in, of those that come together."""
    clock = VirtualClock()
    pacer = Pacer(PACE, clock)
    for size in sizes:
        await pacer.hold_back(size)
    return clock.now_s()


def test_what_may_come_at_once_does() -> None:
    assert run_virtually(came_s([1] * 20)) == run_virtually(came_s([5000])) == 0.0


@pytest.mark.parametrize(
    ("sizes", "waited_s"),
    [([1] * 120, 1.0), ([0] * 10 + [5000] * 2, 5.0), ([5000] + [100] * 10, 1.0)],
    ids=["events", "bytes", "both"],
)
def test_what_comes_faster_waits(sizes: list[int], waited_s: float) -> None:
    assert run_virtually(came_s(sizes)) == pytest.approx(waited_s, abs=0.02)
