"""An engine in a process of its own: the same to its callers, and lost without a loss to others."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from agent.chat_types import ChatDelta, ChatDone, ChatRequest
from agent.commands import AddText
from agent.engines import EngineSettings
from agent.engines.echo import EchoEngine
from agent.errors import (
    CapacityError,
    CheckpointError,
    ContextOverflow,
    EngineError,
    RequestError,
    UnsupportedError,
    WorkerLost,
)
from agent.fleet.host import Host, ProcessHost, ThreadHost
from agent.fleet.pool import Patience, RemoteEngine, start_core, start_engine, status_of
from agent.fleet.worker import Job
from agent.interfaces import Conversation
from agent.types import (
    EngineEvent,
    Failed,
    Listened,
    SessionSettings,
    SpeechAudio,
    TextDelta,
    Unit,
    VideoFrame,
)
from tests.rig import busy_core

QUICK = Patience(backoff_s=0.0, max_failures=3)
SETTINGS = SessionSettings("busy")
pytestmark = pytest.mark.usefixtures("nothing_left_behind")
MakeHost = Callable[[Job], Host]


def job(assets: Path, slots: int = 2) -> Job:
    return Job(busy_core.load, "busy", EngineSettings(assets, slots))


@asynccontextmanager
async def running(
    assets: Path, patience: Patience = QUICK, make_host: MakeHost = ProcessHost
) -> AsyncIterator[RemoteEngine]:
    engine = await start_core(job(assets), patience=patience, make_host=make_host)
    try:
        yield engine
    finally:
        await engine.close()
        if make_host is ProcessHost:
            assert not psutil.pid_exists(busy_core.pid(assets))


@pytest.fixture(params=[ProcessHost, ThreadHost])
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RemoteEngine]:
    """In both places: what callers see is the same."""
    async with running(tmp_path, make_host=request.param) as engine:
        yield engine


def unit(index: int, *pictures: VideoFrame) -> Unit:
    return Unit(index, np.full(16000, 0.5, np.float32), 16000, pictures)


async def tell(conversation: Conversation, text: str) -> None:
    await conversation.control(AddText("item", "user", text))


async def until(
    conversation: Conversation, kind: type[EngineEvent], count: int = 1
) -> list[object]:
    """Everything up to the `count`-th event of that kind."""
    seen: list[object] = []
    async with asyncio.timeout(60):
        async for event in conversation.events():
            seen.append(event)
            count -= isinstance(event, kind)
            if not count:
                return seen
    raise AssertionError(f"the events ended: {seen}")


async def again(engine: RemoteEngine) -> Conversation:
    """A conversation as soon as there can be one."""
    async with asyncio.timeout(60):
        while engine.status == "starting":
            with pytest.raises(CapacityError, match="starting again"):
                await engine.open(SETTINGS)
            await asyncio.sleep(0.01)
        return await engine.open(SETTINGS)


# ---- the same to its callers ------------------------------------------------------------------


async def test_a_conversation_goes_on_as_if_the_engine_were_here(engine: RemoteEngine) -> None:
    assert (engine.name, engine.abilities, status_of(engine)) == ("busy", busy_core.ABILITIES, "ok")
    conversation = await engine.open(SETTINGS)
    assert (engine.load().slots_used, engine.load().slots_free) == (1, 1)
    rgb = np.full((720, 1280, 3), 2, np.uint8)
    await conversation.push(unit(0))
    await conversation.push(unit(1, VideoFrame(rgb, 0), VideoFrame(rgb, 9)))
    assert await until(conversation, TextDelta, 2) == [
        Listened(0),
        TextDelta(0, 1, "0 8000.0 0"),
        Listened(1),
        TextDelta(1, 1, f"1 8000.0 {2 * 2 * rgb.size}"),
    ]
    await conversation.finish()
    await conversation.finish()
    assert [event async for event in conversation.events()] == []


async def test_each_conversation_hears_its_own(engine: RemoteEngine) -> None:
    one, other = await engine.open(SETTINGS), await engine.open(SETTINGS)
    await tell(one, "speak")
    await other.push(unit(5))
    speech = [event for event in await until(one, SpeechAudio, 3) if isinstance(event, SpeechAudio)]
    assert [event.start for event in speech] == [0, 4800, 9600]
    assert np.abs(np.concatenate([event.samples for event in speech])).max() > 0.1
    assert await until(other, TextDelta) == [Listened(5), TextDelta(5, 1, "5 8000.0 0")]


async def test_refusals_come_back_as_they_were(engine: RemoteEngine) -> None:
    with pytest.raises(RequestError, match="not that") as refused:
        await engine.open(SessionSettings("busy", instructions="refuse"))
    assert (refused.value.param, refused.value.code) == ("session.instructions", "nonsense")
    conversations = [await engine.open(SETTINGS) for _ in range(2)]
    with pytest.raises(CapacityError) as full:
        await engine.open(SETTINGS)
    assert full.value.retry_after_s == 7.5
    with pytest.raises(UnsupportedError) as unknown:
        await tell(conversations[0], "fly")
    assert unknown.value.param == "item.content"
    await conversations[0].finish()
    await engine.open(SETTINGS)


async def test_an_open_that_is_given_up_gives_its_slot_back(engine: RemoteEngine) -> None:
    for _ in range(3):
        opening = asyncio.ensure_future(engine.open(SETTINGS))
        await asyncio.sleep(0)
        opening.cancel()
        await asyncio.wait((opening,))
    await engine.open(SETTINGS)
    await engine.open(SETTINGS)


async def test_a_chat_is_answered_refused_or_given_up(engine: RemoteEngine) -> None:
    said = [event async for event in engine.chat(ChatRequest((), max_tokens=2))]
    assert said == [ChatDelta("0 "), ChatDelta("1 "), ChatDone("stop", 1, 2)]
    with pytest.raises(UnsupportedError, match="nothing to say"):
        await anext(engine.chat(ChatRequest((), max_tokens=0)))
    for _ in range(3):  # with two slots, each has to be given back
        endless = engine.chat(ChatRequest((), max_tokens=1, seed=1))
        assert await anext(endless) == ChatDelta("0 ")
        await endless.aclose()  # type: ignore[attr-defined]
    await engine.open(SETTINGS)
    await engine.open(SETTINGS)


async def test_a_failure_of_one_conversation_is_its_own(engine: RemoteEngine) -> None:
    conversation = await engine.open(SETTINGS)
    await tell(conversation, "fail")
    (failed,) = await until(conversation, Failed)
    assert isinstance(failed, Failed) and isinstance(failed.error, ContextOverflow)


async def test_closing_ends_conversations_in_peace(tmp_path: Path) -> None:
    async with running(tmp_path) as engine:
        conversation = await engine.open(SETTINGS)
    assert [event async for event in conversation.events()] == []
    with pytest.raises(WorkerLost):
        await conversation.push(unit(0))
    await engine.close()


# ---- loading ----------------------------------------------------------------------------------


async def test_progress_of_loading_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    engine = await start_core(job(tmp_path), lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (4, 4)]
    await engine.close()


async def test_a_checkpoint_that_is_refused_says_why(tmp_path: Path) -> None:
    (tmp_path / "refuse").write_text("no tensor named x", "utf-8")
    with pytest.raises(CheckpointError, match="no tensor named x"):
        await start_core(job(tmp_path))


async def test_a_process_that_dies_while_it_loads_says_how(tmp_path: Path) -> None:
    (tmp_path / "die").touch()
    with pytest.raises(EngineError, match="did not load: its process was killed by SIGKILL"):
        await start_core(job(tmp_path))


async def test_a_process_that_loads_without_end_is_given_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    with pytest.raises(EngineError, match="did not load: its process was killed by SIGKILL"):
        await start_core(job(tmp_path), patience=Patience(load_s=3.0))


async def test_a_start_that_is_cancelled_leaves_no_process(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    begun = asyncio.Event()
    starting = asyncio.ensure_future(start_core(job(tmp_path), lambda *_: begun.set()))
    await asyncio.wait_for(begun.wait(), 60)
    starting.cancel()
    await asyncio.wait((starting,))
    assert starting.cancelled()
    assert not psutil.pid_exists(busy_core.pid(tmp_path))


async def test_an_engine_that_needs_no_worker_stays_here() -> None:
    engine = await start_engine("echo", EngineSettings(Path("assets"), 3))
    assert isinstance(engine, EchoEngine)
    assert status_of(engine) == "ok"
    await engine.close()


# ---- a process that is lost -------------------------------------------------------------------


@pytest.mark.parametrize("how", ["kill", "raise", "exit", "hang", "freeze"])
async def test_a_lost_process_ends_its_calls_and_another_one_takes_new_ones(
    tmp_path: Path, how: str
) -> None:
    patience = Patience(backoff_s=0.0, hang_s=1.0) if how in ("hang", "freeze") else QUICK
    async with running(tmp_path, patience) as engine:
        conversation, other = await engine.open(SETTINGS), await engine.open(SETTINGS)
        await conversation.push(unit(0))
        await until(conversation, TextDelta)
        old = busy_core.pid(tmp_path)
        if how == "kill":
            os.kill(old, signal.SIGKILL)
        else:
            telling = asyncio.ensure_future(tell(other, how))
        for lost in (conversation, other):
            with pytest.raises(WorkerLost):
                await until(lost, Listened)
        if how != "kill":
            await asyncio.wait((telling,))
            assert isinstance(telling.exception(), WorkerLost | None)
        for say in (conversation.push(unit(1)), tell(conversation, "rest")):
            with pytest.raises(WorkerLost):
                await say
        await conversation.finish()
        assert engine.load().slots_free == 0
        replaced = await again(engine)
        assert busy_core.pid(tmp_path) != old and not psutil.pid_exists(old)
        await replaced.push(unit(0))
        await until(replaced, TextDelta)


async def test_whoever_waits_for_an_answer_hears_of_the_loss(tmp_path: Path) -> None:
    async with running(tmp_path) as engine:
        conversation = await engine.open(SETTINGS)
        await tell(conversation, "sleep 3600000")
        opening = asyncio.ensure_future(engine.open(SETTINGS))
        chatting = asyncio.ensure_future(anext(engine.chat(ChatRequest(()))))
        await asyncio.sleep(0)
        os.kill(busy_core.pid(tmp_path), signal.SIGKILL)
        for waiting in (opening, chatting):
            with pytest.raises(WorkerLost):
                await asyncio.wait_for(waiting, 60)


async def test_while_it_starts_again_it_says_how_long_to_wait(tmp_path: Path) -> None:
    async with running(tmp_path) as engine:
        conversation = await engine.open(SETTINGS)
        os.mkfifo(tmp_path / "gate")
        os.kill(busy_core.pid(tmp_path), signal.SIGKILL)
        with pytest.raises(WorkerLost):
            await until(conversation, Listened)
        assert status_of(engine) == "starting"
        with pytest.raises(CapacityError, match="starting again") as refused:
            await engine.open(SETTINGS)
        with pytest.raises(CapacityError, match="starting again"):
            engine.chat(ChatRequest(()))
        load = engine.load()
        assert (load.slots_used, load.slots_free) == (0, 0)
        assert 1 <= refused.value.retry_after_s < 60 and load.estimate_s >= 1
        with await asyncio.to_thread((tmp_path / "gate").open, "w", encoding="utf-8"):
            (tmp_path / "gate").unlink()
        await again(engine)


async def test_one_that_does_not_come_up_any_more_stays_down(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path) as engine:
        conversation = await engine.open(SETTINGS)
        (tmp_path / "refuse").write_text("the disk is gone", "utf-8")
        os.kill(busy_core.pid(tmp_path), signal.SIGKILL)
        with pytest.raises(WorkerLost):
            await until(conversation, Listened)
        async with asyncio.timeout(60):
            while status_of(engine) != "degraded":
                await asyncio.sleep(0.01)
        with pytest.raises(CapacityError, match="is down"):
            await engine.open(SETTINGS)
        assert engine.load().slots_free == 0
    assert "was killed by SIGKILL: 1 calls lost" in caplog.text
    assert caplog.text.count("the disk is gone") == QUICK.max_failures
    assert "stays down" in caplog.text


def test_tries_are_put_off_longer_and_longer_up_to_a_limit() -> None:
    patience = Patience()
    assert [patience.delay_s(early) for early in range(7)] == [0, 1, 2, 4, 8, 16, 30]


# ---- too much -----------------------------------------------------------------------------------


async def push_often(conversation: Conversation, item: Unit, times: int) -> None:
    for _ in range(times):
        await conversation.push(item)


async def test_an_engine_that_takes_nothing_ends_the_call_that_says_too_much(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as engine:
        conversation, other = await engine.open(SETTINGS), await engine.open(SETTINGS)
        os.kill(busy_core.pid(tmp_path), signal.SIGSTOP)
        large = unit(0, VideoFrame(np.zeros((1080, 1920, 3), np.uint8), 0))
        with pytest.raises(EngineError, match="no longer takes") as refused:
            await push_often(conversation, large, 100)
        assert not isinstance(refused.value, WorkerLost)
        await conversation.finish()
        os.kill(busy_core.pid(tmp_path), signal.SIGCONT)
        await other.push(unit(1))
        await until(other, TextDelta)
        await engine.open(SETTINGS)


# ---- the server goes first --------------------------------------------------------------------


@pytest.mark.parametrize("work", ["busy 3600000", "sleep 3600000", "freeze"])
async def test_a_child_in_the_middle_of_work_ends_with_its_server(
    tmp_path: Path, work: str
) -> None:
    server = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.rig.fleet_server",
        "work",
        str(tmp_path),
        work,
        stdout=asyncio.subprocess.PIPE,
    )
    assert server.stdout is not None
    assert await asyncio.wait_for(server.stdout.readline(), 30) == b"working\n"
    child = psutil.Process(busy_core.pid(tmp_path))
    server.kill()
    await server.communicate()
    await asyncio.to_thread(child.wait, 5)


async def test_ctrl_c_in_the_terminal_leaves_the_child_to_its_server(tmp_path: Path) -> None:
    async with running(tmp_path) as engine:
        conversation = await engine.open(SETTINGS)
        os.kill(busy_core.pid(tmp_path), signal.SIGINT)
        await conversation.push(unit(0))
        await until(conversation, TextDelta)


async def test_a_child_that_does_not_want_to_end_is_ended(tmp_path: Path) -> None:
    patience = Patience(close_s=0.1)
    async with running(tmp_path, patience) as engine:
        conversation = await engine.open(SETTINGS)
        await tell(conversation, "hang")
        await conversation.push(unit(0))
