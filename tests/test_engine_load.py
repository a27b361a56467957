"""What an engine does when there is too much to do: whom it lets in, and what it leaves out of whom
when units are late."""

import itertools
import logging
import random
from dataclasses import replace

import numpy as np
import pytest

from agent.chat_types import ChatDone, ChatMessage, ChatRequest, ChatText
from agent.commands import Pause, Resume
from agent.duplex.engine import PARK_AFTER_S
from agent.duplex.work import Look
from agent.errors import CapacityError, EngineError, RequestError
from agent.scheduler import ENOUGH, RECOVERED_UNITS
from agent.types import Listened, VideoFrame
from tests.rig.answer_voice import Choir
from tests.rig.late_desk import Desk
from tests.rig.late_lanes import Watch
from tests.rig.scripted_call import SETTINGS, Beeper
from tests.rig.tiny_mind import LISTEN, second

WIDE = VideoFrame(np.full((448, 896, 3), 90, np.uint8), 0)
"""A thumbnail and two cells."""
SEEING = replace(SETTINGS, max_slices=2)


@pytest.fixture
def watch() -> Watch:
    return Watch(random.Random(3))


def seen(desk: Desk, watch: Watch, index: int, late: dict[int, float]) -> dict[int, int]:
    """Each call's unit `index`, done so late → how many pieces of its picture were looked at."""
    pieces = {}
    for number, late_s in late.items():
        before = len(watch.works)
        desk.engine.push(number, second(index, (WIDE,)))
        desk.clock.time_s += 1 + late_s
        desk.work()
        looks = [work for work in watch.works[before:] if isinstance(work, Look)]
        pieces[number] = sum(len(work.pieces) for work in looks)
    return pieces


def test_only_a_call_that_is_late_sees_less_and_sees_all_again_when_it_is_in_time(
    watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    desk = Desk(*(itertools.cycle(LISTEN) for _ in range(2)), watch=watch)
    for number in (1, 2):
        desk.engine.open(number, SEEING)
    with caplog.at_level(logging.WARNING):
        shown = [seen(desk, watch, index, {1: 0.5, 2: -0.5}) for index in range(4)]
    assert [one[1] for one in shown] == [3, 1, 0, 0]
    assert [one[2] for one in shown] == [3, 3, 3, 3]
    assert caplog.text.count("call 1 is 0.5 s late") == 3 and "call 2" not in caplog.text
    for index in range(4, 4 + 3 * RECOVERED_UNITS):
        desk.engine.push(1, second(index % 60))
        desk.work()
    assert seen(desk, watch, 30, {1: 0.0})[1] == 3
    assert desk.of(1)[-1] == Listened(30)


def test_chats_are_held_while_a_late_call_has_units_and_go_on_when_it_has_none(
    watch: Watch,
) -> None:
    desk = Desk(watch=watch, slots=3)
    desk.engine.open(1, SETTINGS)
    desk.work()
    desk.engine.push(1, second(0))
    desk.clock.time_s += 2
    desk.work()  # it is late, and has no camera
    desk.engine.chat(7, ChatRequest((ChatMessage("user", (ChatText("hi"),)),), max_tokens=3))
    desk.engine.push(1, second(1))
    slot = desk.engine._chats[7].chat.slot  # type: ignore[attr-defined]
    desk.step()
    while desk.engine._calls[1].has_work:
        assert not watch.busy[slot]
        desk.step()
    desk.work()
    assert isinstance(desk.of(7)[-1], ChatDone)


def slow(desk: Desk) -> None:
    """A unit takes so long that one call is all that the device can do."""
    for size in (1, 2):
        desk.engine.costs.took("prefill", size, 0.5 * size, times=ENOUGH)


def test_a_call_that_would_make_others_late_is_refused_and_told_when_to_ask_again(
    watch: Watch,
) -> None:
    desk = Desk(watch=watch, slots=4)
    desk.engine.open(1, SETTINGS)
    desk.clock.time_s += 40
    slow(desk)
    with pytest.raises(CapacityError, match="would make the others wait") as caught:
        desk.engine.open(2, SETTINGS)
    assert caught.value.retry_after_s == pytest.approx(40)
    assert desk.engine.load().slots_used == 1
    desk.engine.finish(1)
    desk.engine.open(2, SETTINGS)


def test_a_parked_call_comes_back_only_where_it_makes_nobody_late(watch: Watch) -> None:
    desk = Desk(watch=watch, slots=4)
    desk.engine.open(1, SETTINGS)
    desk.engine.control(1, Pause())
    desk.work()
    desk.clock.time_s += PARK_AFTER_S
    desk.step()
    desk.engine.open(2, SETTINGS)
    slow(desk)
    with pytest.raises(RequestError, match="stays paused"):
        desk.engine.control(1, Resume())
    desk.engine.finish(2)
    desk.engine.control(1, Resume())
    desk.engine.push(1, second(0))
    desk.work()
    assert desk.of(1)[-1] == Listened(0)


def test_what_batches_took_is_measured_as_they_are_done(watch: Watch) -> None:
    desk = Desk(itertools.cycle(LISTEN), watch=watch)
    desk.engine._loop._pause = lambda seconds: desk.clock.__dict__.update(
        time_s=desk.clock.time_s + 0.01
    )
    desk.engine.open(1, SETTINGS)
    for index in range(ENOUGH):
        desk.engine.push(1, second(index))
        desk.work()
    assert 0.005 < desk.engine.costs.expected_s("audio", 1) < 0.2
    assert desk.engine.costs.expected_s("prefill", 1) > 0.005
    assert desk.engine.costs.expected_s("speech", 1) == 0


def test_what_batches_take_is_rehearsed_before_the_first_call(watch: Watch) -> None:
    desk = Desk(itertools.cycle(LISTEN), slots=2, watch=watch, vocoder=Beeper())
    clock = desk.clock
    passes = iter(range(1, 1 << 30))
    clock.now_s = lambda: 0.001 * next(passes)  # type: ignore[method-assign]
    desk.engine.rehearse()
    stages = {work.stage for work in watch.works}
    assert stages == {"audio", "vision", "prefill", "decode", "speech", "vocoder"}
    for stage in stages:
        assert desk.engine.costs.expected_s(stage, 1) > 0
    assert max(watch.sizes) == 2 and desk.engine.load().slots_used == 0
    del clock.now_s  # type: ignore[method-assign]
    desk.engine.open(1, SETTINGS)
    desk.engine.push(1, second(0))
    desk.work()
    assert desk.of(1) == [Listened(0)]


def test_a_voice_that_fails_is_found_out_before_the_first_call() -> None:
    desk = Desk(slots=1, vocoder=Choir(fails_at=0))
    with pytest.raises(EngineError, match="not finite"):
        desk.engine.rehearse()
