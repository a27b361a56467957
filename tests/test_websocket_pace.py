"""How fast one client may send; time is driven."""

import asyncio

import pytest

from agent.transport.websocket_pace import Pacer, SocketPace
from tests.rig.call_parts import DrivenClock, settle

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


async def test_so_many_events_may_come_at_once_and_then_so_many_a_second() -> None:
    clock = DrivenClock()
    pacer = Pacer(SocketPace(events_s=10, events_at_once=50), clock)
    admitted = [await pacer.admit(1) for _ in range(60)]
    assert admitted == [True] * 50 + [False] * 10
    clock.advance(3)  # of which one second makes up for the ten too many
    assert [await pacer.admit(1) for _ in range(25)] == [True] * 20 + [False] * 5


async def test_live_sound_never_waits_and_is_never_too_much() -> None:
    clock = DrivenClock()
    pacer = Pacer(SocketPace(), clock)
    for _ in range(3000):
        assert await asyncio.wait_for(pacer.admit(700), 60)  # 10 ms of PCM16 in base64
        clock.advance(0.01)


async def test_more_bytes_than_that_wait_until_they_are_paid_for() -> None:
    clock = DrivenClock()
    pacer = Pacer(SocketPace(bytes_s=1000, bytes_at_once=5000), clock)
    assert await pacer.admit(5000)
    waiting = asyncio.ensure_future(pacer.admit(2000))
    await settle()
    clock.advance(1.9)
    await settle()
    assert not waiting.done()
    clock.advance(0.2)
    await settle()
    assert waiting.done() and waiting.result()


async def test_a_pause_earns_no_more_than_what_may_come_at_once() -> None:
    clock = DrivenClock()
    pacer = Pacer(SocketPace(events_s=10, events_at_once=20), clock)
    clock.advance(3600)
    assert sum([await pacer.admit(1) for _ in range(40)]) == 20
