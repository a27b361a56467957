"""Steps of several at once: a piece of each together, round by round, and one end for all."""

from collections.abc import Generator
from typing import Any

import pytest

from agent.duplex.engine_loop import LaneLoop, Task
from agent.duplex.job import Job
from agent.duplex.work import Together, alongside
from agent.errors import EngineError
from agent.scheduler import Costs
from tests.rig.timed_device import TimedDevice, TimedWork

READ: Any = TimedWork("prefill", "llm")
MOVE: Any = TimedWork("move", "llm")
VOICE: Any = TimedWork("vocoder", "voice")
MORE: Any = TimedWork("more", "voice")
HEAR: Any = TimedWork("audio", "audio")


def steps(log: list[str], name: str, *works: Any) -> Generator[Any, None, None]:
    """Asks for `works`, and notes how far it has come and when it is ended."""
    try:
        for work in works:
            log.append(f"{name} asks")
            yield work
        log.append(f"{name} is done")
    finally:
        log.append(f"{name} ends")


def shape(work: Any) -> list[Any]:
    """A list of lists for pieces that came together, of works for those that came alone."""
    return list(work.parts) if isinstance(work, Together) else work


def rounds(*several: Generator[Any, None, None]) -> list[Any]:
    return [shape(work) for work in alongside(*several)]


# ---- rounds -------------------------------------------------------------------------------------


def test_a_piece_of_each_comes_together_and_what_is_left_of_the_longer_one_alone() -> None:
    log: list[str] = []
    assert rounds(steps(log, "a", READ, MOVE, READ), steps(log, "b", VOICE)) == [
        [READ, VOICE],
        MOVE,
        READ,
    ]
    several = steps(log, "a", READ), steps(log, "b", VOICE, MORE), steps(log, "c", HEAR, HEAR)
    assert rounds(*several) == [[READ, VOICE, HEAR], [MORE, HEAR]]


def test_pieces_that_are_together_already_stay_one_round_with_the_others() -> None:
    log: list[str] = []
    both = Together([VOICE, HEAR])
    assert rounds(steps(log, "a", READ, MOVE), steps(log, "b", both)) == [[READ, VOICE, HEAR], MOVE]
    assert rounds(steps(log, "a", both)) == [[VOICE, HEAR]]


def test_who_has_nothing_to_do_is_no_round_and_keeps_nobody_from_his_own() -> None:
    log: list[str] = []
    assert rounds() == rounds(steps(log, "a"), steps(log, "b")) == []
    assert rounds(steps(log, "a"), steps(log, "b", VOICE, MORE)) == [VOICE, MORE]


def test_each_ends_when_it_is_done_and_not_with_the_last() -> None:
    log: list[str] = []
    going = alongside(steps(log, "a", READ, MOVE), steps(log, "b", VOICE))
    next(going)
    assert log == ["a asks", "b asks"]
    next(going)
    assert log[2:] == ["a asks", "b is done", "b ends"]
    assert list(going) == []
    assert log[5:] == ["a is done", "a ends"]


def test_nobody_goes_on_before_all_of_a_round_are_done() -> None:
    device = TimedDevice({"prefill": lambda _: 0.004, "vocoder": lambda _: 0.02})
    went_on_s: list[float] = []
    over: list[Exception | None] = []

    def noted(work: Any) -> Generator[Any, None, None]:
        yield work
        went_on_s.append(device.clock.now_s())

    job = Job(alongside(noted(READ), noted(VOICE)), lambda result, stage_ms: None)
    loop = LaneLoop(device.runner, Costs(), device.pause)
    loop.start(Task(job, 0, over.append))
    while not over:
        loop.step()
    assert over == [None]
    # They share the device: the shorter one is done after 8 ms, both after 24.
    assert went_on_s == pytest.approx([0.024, 0.024], abs=0.001)


# ---- what fails ---------------------------------------------------------------------------------


def test_an_error_where_the_pieces_are_asked_for_ends_all_and_is_raised() -> None:
    log: list[str] = []
    several = [steps(log, "a", READ, MOVE), steps(log, "b", VOICE, MORE), steps(log, "c", HEAR)]
    going = alongside(*several)
    next(going)
    next(going)
    with pytest.raises(EngineError, match="not now"):
        going.throw(EngineError("not now"))
    assert log[3:] == ["a asks", "b asks", "c is done", "c ends", "a ends", "b ends"]


def test_an_error_of_one_ends_the_others_and_is_raised() -> None:
    log: list[str] = []

    def failing() -> Generator[Any, None, None]:
        yield VOICE
        raise EngineError("out of tune")

    other = steps(log, "a", READ, MOVE)
    going = alongside(other, failing())
    next(going)
    with pytest.raises(EngineError, match="out of tune"):
        next(going)
    assert log == ["a asks", "a asks", "a ends"]


def test_whoever_drops_it_ends_all() -> None:
    log: list[str] = []
    several = [steps(log, "a", READ), steps(log, "b", VOICE)]
    going = alongside(*several)
    next(going)
    going.close()
    assert log == ["a asks", "b asks", "a ends", "b ends"]
