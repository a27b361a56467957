"""Work of several calls, done together."""

import asyncio

import pytest

from agent.transport.beat import FEWEST, PERIOD_S, Beat, next_beat_s, shared_beat


def unexpected(error: Exception) -> None:
    raise AssertionError from error


def beat_of(members: int) -> Beat:
    beat = Beat()
    for _ in range(members):
        beat.join()
    return beat


def test_beats_lie_on_one_grid_and_none_is_waited_for_longer_than_a_period() -> None:
    for now_s in (0.0, 0.0001, 0.0049, 7.0, 7.0123, 123_456.789):
        beat_s = next_beat_s(now_s)
        assert -1e-8 <= beat_s - now_s <= PERIOD_S
        assert beat_s / PERIOD_S == pytest.approx(round(beat_s / PERIOD_S))
        assert next_beat_s(beat_s) == beat_s


async def test_without_company_nobody_waits() -> None:
    done: list[str] = []
    beat_of(FEWEST - 1).do(lambda: done.append("at once"), unexpected)
    assert done == ["at once"]


async def test_with_company_all_that_was_asked_for_is_done_at_one_time_and_in_order() -> None:
    loop, done, ended = asyncio.get_running_loop(), list[str](), asyncio.Event()
    beat = beat_of(FEWEST)

    def first() -> None:
        done.append("first")
        loop.call_soon(done.append, "something else")
        loop.call_soon(ended.set)

    beat.do(first, unexpected)
    beat.do(lambda: done.append("second"), unexpected)
    assert done == []
    await ended.wait()
    assert done == ["first", "second", "something else"]


async def test_there_is_another_beat_after_the_first() -> None:
    beat, struck = beat_of(FEWEST), asyncio.Queue[int]()
    for number in range(3):
        beat.do(lambda number=number: struck.put_nowait(number), unexpected)  # type: ignore[misc]
        assert struck.empty()
        assert await struck.get() == number


async def test_who_fails_is_told_and_the_others_go_on() -> None:
    beat, ended = beat_of(FEWEST), asyncio.Event()
    failures: list[Exception] = []

    def fail() -> None:
        raise ValueError("a broken call")

    beat.do(fail, failures.append)
    beat.do(ended.set, unexpected)
    await ended.wait()
    assert [str(error) for error in failures] == ["a broken call"]


async def test_when_company_leaves_nobody_waits_any_more() -> None:
    beat, done = beat_of(FEWEST), list[int]()
    beat.leave()
    beat.do(lambda: done.append(1), unexpected)
    assert done == [1]


def test_each_event_loop_has_one() -> None:
    async def both() -> tuple[Beat, Beat]:
        return shared_beat(), shared_beat()

    (one, again), (other, _) = asyncio.run(both()), asyncio.run(both())
    assert one is again
    assert one is not other
