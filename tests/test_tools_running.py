"""This server's functions at work: threads, time limits, places, and what the model hears of it."""

import asyncio
import contextvars
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from agent.attendants.toolbox import Ran, Toolbox, ToolRules
from agent.tools import ToolContext, ToolError, tool, tool_of
from tests.rig.attended_call import threads_over

pytestmark = pytest.mark.asyncio
WHO = contextvars.ContextVar("WHO", default="")


def toolbox(*functions: Callable[..., Any], **rules: Any) -> Toolbox:
    tools = [tool_of(tool(function)) for function in functions]
    return Toolbox([one for one in tools if one is not None], ToolRules(**rules))


async def run(box: Toolbox, name: str, arguments: str = "{}") -> Ran:
    return await box.run(name, arguments, ToolContext("rtc_1"))


@pytest.mark.usefixtures("nothing_left_behind")
async def test_a_plain_function_runs_in_a_thread_and_an_async_one_in_the_loop() -> None:
    def plain() -> dict[str, object]:
        return {"thread": threading.get_ident(), "who": WHO.get()}

    async def in_loop(number: int) -> int:
        assert asyncio.get_running_loop()
        return threading.get_ident() + number

    box = toolbox(plain, in_loop)
    WHO.set("the caller")
    ran = await run(box, "plain")
    assert ran.outcome == "done"
    assert '"who":"the caller"' in ran.output
    assert str(threading.get_ident()) not in ran.output
    assert (await run(box, "in_loop", '{"number": 1}')).output == str(threading.get_ident() + 1)
    await threads_over()


async def test_an_error_for_the_model_is_told_in_its_own_words() -> None:
    async def looks_up() -> str:
        raise ToolError("there is no such city")

    assert (await run(toolbox(looks_up), "looks_up")).output == "Error: there is no such city"


@pytest.mark.parametrize(
    "error", [ValueError("password=hunter2"), TimeoutError(), StopIteration(), SystemExit(3)]
)
@pytest.mark.parametrize("is_async", [True, False])
async def test_of_any_other_error_only_the_log_says_more(
    error: BaseException, is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def plain() -> str:
        raise error

    async def in_loop() -> str:
        raise error

    box = toolbox(in_loop if is_async else plain)
    with caplog.at_level(logging.ERROR):
        ran = await run(box, *box.tools)
    assert (ran.output, ran.outcome) == (f"Error: {next(iter(box.tools))} failed", "failed")
    assert "Traceback" in caplog.text


async def test_a_function_that_cancels_itself_fails_alone() -> None:
    async def leaves() -> None:
        raise asyncio.CancelledError

    assert (await run(toolbox(leaves), "leaves")).outcome == "failed"


async def test_wrong_arguments_do_not_reach_the_function() -> None:
    called = []

    def counts(number: int) -> None:
        called.append(number)

    ran = await run(toolbox(counts), "counts", '{"number": "many"}')
    assert ran.outcome == "refused"
    assert ran.output.startswith("Error: counts was called wrongly: number: Input should be")
    assert called == []


@pytest.mark.usefixtures("nothing_left_behind")
async def test_a_thread_that_is_late_keeps_its_place_until_it_is_over() -> None:
    go, begun = threading.Event(), threading.Event()

    def waits() -> str:
        begun.set()
        go.wait()
        return "at last"

    box = toolbox(waits, timeout_s=0.1, max_running=1)
    assert (await run(box, "waits")).output == "Error: waits did not answer within 0.1 s"
    begun.clear()
    assert (await run(box, "waits")).outcome == "late"
    assert not begun.is_set(), "there was no place for it"
    go.set()
    while (ran := await run(box, "waits")).outcome == "late":
        pass
    assert ran.output == "at last"
    await threads_over()


@pytest.mark.usefixtures("nothing_left_behind")
async def test_an_async_function_that_is_late_is_cancelled() -> None:
    ended = asyncio.Event()

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    box = toolbox(waits, timeout_s=0.05)
    assert (await run(box, "waits")).outcome == "late"
    await ended.wait()


@pytest.mark.usefixtures("nothing_left_behind")
async def test_a_limit_of_its_own_comes_before_that_of_the_settings() -> None:
    @tool(timeout_s=0.05)
    async def waits() -> None:
        await asyncio.Event().wait()

    made = tool_of(waits)
    assert made is not None
    ran = await Toolbox([made]).run("waits", "", ToolContext("rtc_1"))
    assert ran.output == "Error: waits did not answer within 0.05 s"


@pytest.mark.usefixtures("nothing_left_behind")
async def test_only_so_many_run_and_only_so_many_wait() -> None:
    go, running = asyncio.Event(), 0
    most = 0

    async def counts() -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await go.wait()
        running -= 1
        return "done"

    box = toolbox(counts, max_running=2, timeout_s=60)
    runs = [asyncio.ensure_future(run(box, "counts")) for _ in range(12)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert [one.done() for one in runs] == [False] * 10 + [True] * 2
    assert runs[-1].result().outcome == "busy"
    go.set()
    assert {ran.outcome for ran in await asyncio.gather(*runs[:10])} == {"done"}
    assert most == 2


@pytest.mark.usefixtures("nothing_left_behind")
async def test_who_is_cancelled_gives_the_function_up() -> None:
    ended = asyncio.Event()

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    box = toolbox(waits, max_running=1)
    waiting = [asyncio.ensure_future(run(box, "waits")) for _ in range(2)]
    for _ in range(5):
        await asyncio.sleep(0)
    for one in waiting:
        one.cancel()
    await asyncio.wait(waiting)
    await ended.wait()
    for _ in range(3):
        await asyncio.sleep(0)
    free = asyncio.ensure_future(run(box, "waits"))
    for _ in range(3):
        await asyncio.sleep(0)
    assert not free.done(), "it has the place that was given back"
    free.cancel()
    await asyncio.wait((free,))


async def test_a_long_result_is_cut_off() -> None:
    def tells() -> str:
        return "x" * 1000

    ran = await run(toolbox(tells, max_result_chars=100), "tells")
    assert ran.output == "x" * 100 + " … (cut off here)"
