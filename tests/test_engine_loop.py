"""The engine's loop over lanes that take their time: no slot is touched while something in it is
under way, what fails is its call's alone, and nothing waits for long."""

import random
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import pytest

from agent.commands import Pause, UpdateSettings
from agent.duplex.answer_speech import OpenVoice
from agent.duplex.engine import PARK_AFTER_S
from agent.duplex.engine_loop import LaneLoop, Task
from agent.duplex.job import Job
from agent.duplex.kv_cache import KvStream
from agent.duplex.work import Hear, Read, Speak, Voice, Work
from agent.errors import CapacityError, EngineError
from agent.scheduler import ENOUGH, Costs
from agent.types import Failed, Listened, Paused, SpeechAudio, TextDelta, TurnStarted
from tests.rig.late_desk import Desk
from tests.rig.late_lanes import Watch, slot_of
from tests.rig.scripted_call import SETTINGS, Beeper
from tests.rig.timed_device import TimedDevice, TimedWork
from tests.rig.tiny_mind import LISTEN, says, second

# ---- whoever leaves while something is under way ------------------------------------------------


def in_the_middle(desk: Desk, kind: type[Work], number: int = 1) -> None:
    """Go on until a work of that kind is under way for call `number`."""
    for _ in range(500):
        desk.step()
        task = desk.engine._calls[number].task
        parts = task.parts if task is not None else []
        if any(part.is_begun and isinstance(part.work, kind) for part in parts):
            return
    pytest.fail(f"no {kind.__name__} came")


@pytest.fixture
def watch() -> Watch:
    return Watch(random.Random(5), patience=8)


@pytest.mark.parametrize("kind", [Hear, Read, Speak, Voice])
def test_who_leaves_in_the_middle_of_anything_keeps_the_slot_until_that_is_finished(
    watch: Watch, kind: type[Work]
) -> None:
    desk = Desk(iter([*says("ab"), *LISTEN]), watch=watch, slots=1, vocoder=Beeper())
    desk.engine.open(1, SETTINGS)
    for index in range(4):
        desk.engine.push(1, second(index))
    in_the_middle(desk, kind)
    said = len(desk.of(1))
    desk.engine.finish(1)
    assert desk.engine.load().slots_free == 0 and desk.engine.idle_s() == 0
    desk.work()
    assert desk.engine.load().slots_free == 1 and len(desk.of(1)) == said
    assert desk.engine.idle_s() is None


def test_a_call_gets_the_last_place_that_another_is_about_to_leave(watch: Watch) -> None:
    desk = Desk(watch=watch, slots=1)
    desk.engine.open(1, SETTINGS)
    desk.engine.push(1, second(0))
    in_the_middle(desk, Read)
    with pytest.raises(CapacityError) as caught:
        desk.engine.open(2, SETTINGS)
    assert caught.value.retry_after_s >= 1
    desk.engine.finish(1)
    desk.engine.open(3, SETTINGS)
    desk.engine.push(3, second(0))
    desk.work()
    assert desk.of(3) == [Listened(0)]


@pytest.mark.parametrize("slots", [1, 2])
def test_a_call_that_begins_anew_in_the_middle_of_a_unit_forgets_it(
    watch: Watch, slots: int
) -> None:
    desk = Desk(watch=watch, slots=slots)
    desk.engine.open(1, SETTINGS)
    desk.engine.push(1, second(0))
    in_the_middle(desk, Hear)
    desk.engine.control(1, UpdateSettings(replace(SETTINGS, mode="half_duplex")))
    desk.engine.control(1, UpdateSettings(SETTINGS))
    desk.engine.push(1, second(1))
    desk.work()
    assert desk.of(1) == [Listened(1)] and desk.engine.load().slots_used == 1


def test_a_pause_in_the_middle_of_a_unit_waits_for_it_and_so_does_leaving_the_slot(
    watch: Watch,
) -> None:
    desk = Desk(watch=watch)
    desk.engine.open(1, SETTINGS)
    desk.engine.push(1, second(0))
    in_the_middle(desk, Hear)
    desk.engine.control(1, Pause())
    desk.clock.time_s += PARK_AFTER_S
    desk.step()
    assert desk.engine.load().slots_used == 1
    desk.work()
    desk.step()
    assert desk.of(1) == [Listened(0), Paused("asked by the client")]
    assert desk.engine.load().slots_used == 0


# ---- failures -----------------------------------------------------------------------------------


def failing(desk: Desk, number: int, kind: type[Work], error: Exception) -> None:
    """From now on such works of call `number` fail."""
    slot = desk.engine._calls[number].call._talk.slot  # type: ignore[attr-defined]

    def fails(work: Work) -> None:
        if isinstance(work, kind) and slot_of(work) == slot:
            raise error

    assert desk.watch is not None
    desk.watch.fails = fails


def test_what_fails_of_a_batch_ends_its_call_alone(watch: Watch) -> None:
    desk = Desk(watch=watch, slots=3)
    for number in (1, 2, 3):
        desk.engine.open(number, SETTINGS)
    desk.work()
    failing(desk, 2, Hear, RuntimeError("no such sound"))
    for number in (1, 2, 3):
        desk.engine.push(number, second(0))
    desk.work()
    assert [type(event) for event in desk.of(2)] == [Failed]
    assert desk.of(1) == desk.of(3) == [Listened(0)]
    assert watch.sizes[3] and desk.engine.load().slots_free == 1


def test_a_broken_device_ends_everything(watch: Watch) -> None:
    desk = Desk(watch=watch)
    desk.engine.open(1, SETTINGS)
    desk.work()
    failing(desk, 1, Hear, RuntimeError("CUDA error: an illegal memory access"))
    desk.engine.push(1, second(0))
    with pytest.raises(RuntimeError, match="illegal"):
        desk.work()


def test_a_job_that_mends_a_failure_goes_on_with_what_it_does_instead() -> None:
    def steps() -> Generator[Work, None, str]:
        try:
            yield Read(KvStream(0))
        except EngineError:
            yield Read(KvStream(1))
        return "mended"

    done: list[Any] = []
    job = Job(steps(), lambda result, _: done.append(result))
    assert isinstance(job.next(), Read)
    mended = job.fail(EngineError("not now"))
    assert isinstance(mended, Read) and mended.stream.slot == 1
    assert job.next() is None and done == ["mended"]


# ---- time, and none of it -----------------------------------------------------------------------


def test_calls_that_hear_nothing_cost_no_work_and_neither_do_paused_ones(watch: Watch) -> None:
    desk = Desk(watch=watch, slots=3)
    for number in (1, 2, 3):
        desk.engine.open(number, SETTINGS)
    desk.engine.control(2, Pause())
    desk.work()
    before = len(watch.works)
    for index in range(3):
        desk.engine.push(1, second(index))
        desk.engine.push(2, second(index))
        desk.work()
    streams = {slot_of(work) for work in watch.works[before:]}
    assert streams == {desk.engine._calls[1].call._talk.slot}  # type: ignore[attr-defined]
    assert desk.engine.idle_s() == PARK_AFTER_S


def test_a_call_is_opened_without_any_work_and_reads_its_prompt_beside_the_others(
    watch: Watch,
) -> None:
    desk = Desk(watch=watch)
    desk.engine.open(1, SETTINGS)
    assert not watch.works and not watch.at_work
    desk.engine.open(2, SETTINGS)
    desk.work()
    assert watch.sizes[2] == 1 and [work.stage for work in watch.works] == ["prefill"] * 2


def test_a_step_waits_for_the_device_no_longer_than_a_moment(watch: Watch) -> None:
    watch.patience = 10_000
    paused: list[float] = []
    desk = Desk(watch=watch)
    desk.engine._loop._pause = paused.append
    desk.engine.open(1, SETTINGS)
    desk.step()
    for _ in range(3):
        desk.step()
        assert 0 < sum(paused) <= 0.01
        paused.clear()


def test_words_are_told_and_the_voice_is_opened_while_they_become_speech(watch: Watch) -> None:
    watch.patience = 30
    desk = Desk(iter([*says("ab"), *LISTEN]), watch=watch, vocoder=Beeper())
    desk.engine.open(1, SETTINGS)
    for index in range(4):
        desk.engine.push(1, second(index))
    in_the_middle(desk, Speak)
    assert desk.of(1)[-2:] == [TurnStarted(1), TextDelta(3, 1, "ab")]
    task = desk.engine._calls[1].task
    assert task is not None and {type(part.work) for part in task.parts} == {Speak, OpenVoice}
    assert all(part.is_begun for part in task.parts)
    in_the_middle(desk, Voice)
    assert not any(isinstance(event, SpeechAudio) for event in desk.of(1))


# ---- batches that are done sooner than expected -------------------------------------------------


class Sooner:
    """A loop whose only batch takes `takes_s`, a fifth less than it was told."""

    def __init__(self, takes_s: float) -> None:
        self.device = TimedDevice({"prefill": lambda size: takes_s})
        self.costs = Costs()
        self.costs.took("prefill", 1, 1.25 * takes_s, times=ENOUGH)
        # As if a thread could sleep as short as it likes, so that nothing but the loop is late.
        self.loop = LaneLoop(self.device.runner, self.costs, self.device.pass_time)

    def took_s(self) -> float:
        """One more batch → how long until it is taken in."""
        began_s, over = self.device.clock.now_s(), list[Exception | None]()

        def steps() -> Generator[Any, None, None]:
            yield TimedWork("prefill", "llm")

        job = Job(steps(), lambda result, stage_ms: None, due_s=began_s + 1)
        self.loop.start(Task(job, 0, over.append))
        while not over:
            self.loop.step()
        return self.device.clock.now_s() - began_s

    @property
    def expected_s(self) -> float:
        return self.costs.expected_s("prefill", 1)


@pytest.mark.parametrize("takes_s", [0.0015, 0.003, 0.005, 0.0111, 0.0301])
def test_a_batch_that_is_done_sooner_than_expected_is_taken_in_when_it_is(takes_s: float) -> None:
    assert takes_s <= Sooner(takes_s).took_s() <= 1.02 * takes_s


@pytest.mark.parametrize("takes_s", [0.005, 0.0111, 0.0301])
def test_what_a_batch_takes_is_learnt_within_a_few(takes_s: float) -> None:
    sooner = Sooner(takes_s)
    assert sooner.expected_s == pytest.approx(1.25 * takes_s)
    for _ in range(22):  # in which an average of the newest tenth forgets nine tenths of the rest
        sooner.took_s()
    assert sooner.expected_s == pytest.approx(takes_s, rel=0.035)
