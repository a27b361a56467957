"""This server's functions in real calls: a server on the loopback, the echo engine, a socket."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from agent.__main__ import main
from agent.api.loading import Started
from agent.api.server import make_app
from agent.chat_types import ChatToolCall
from agent.config import load_config
from agent.engines import EngineSettings, choose, create
from agent.interfaces import Conversation
from agent.resources import assets_folder
from agent.types import Load, SessionSettings
from tests.rig.attended_call import ScriptedChats
from tests.rig.realtime_schema import check_events
from tests.rig.server import running_server
from tests.rig.socket_caller import SocketCaller

TOOLS = '''
import asyncio
import threading
from typing import Annotated
from agent.tools import ToolContext, ToolError, tool

@tool
def opening_hours(day: Annotated[str, "In English."]) -> str:
    """When the shop is open."""
    assert threading.current_thread() is not threading.main_thread()
    return f"from nine on {day}"

@tool
async def who(context: ToolContext) -> dict[str, str]:
    """Who calls."""
    return {"call": context.call_id, "key": context.key}

@tool
def fails() -> None:
    """It does."""
    raise ValueError("secret")
'''


@pytest.fixture
def tools(tmp_path: Path) -> str:
    (tmp_path / "my_tools.py").write_text(TOOLS, encoding="utf-8")
    return str(tmp_path / "my_tools.py")


@asynccontextmanager
async def in_writing(url: str, **session: object) -> AsyncIterator[SocketCaller]:
    """A call in which the agent writes; its greeting is over."""
    caller = SocketCaller(url)
    await caller.dial()
    try:
        asked = {"type": "realtime", "output_modalities": ["text"], **session}
        await caller.send("session.update", session=asked)
        await caller.wait_for("session.updated")
        if (greeting := next(iter(caller.of("response.created")), None)) is not None:
            await caller.send("response.cancel")
            await caller.wait_for("response.done", after=caller.events.index(greeting))
        yield caller
    finally:
        await caller.hang_up()
    check_events(caller.events)


async def type_in(caller: SocketCaller, text: str) -> None:
    part = {"type": "input_text", "text": text}
    item = {"type": "message", "role": "user", "content": [part]}
    await caller.send("conversation.item.create", item=item)
    await caller.send("response.create")


async def output_of(caller: SocketCaller) -> str:
    def is_output(event: dict[str, object]) -> bool:
        item = event["item"]
        return isinstance(item, dict) and item["type"] == "function_call_output"

    item = (await caller.wait_for("conversation.item.added", is_output))["item"]
    assert isinstance(item, dict)
    return str(item["output"])


def says(words: str) -> Callable[[dict[str, object]], bool]:
    return lambda event: words in str(event["text"])


async def test_a_typed_call_is_run_here_and_spoken_of(tools: str) -> None:
    async with running_server([f"tools.files={tools}"]) as running:
        async with in_writing(running.url) as caller:
            await type_in(caller, '/opening_hours {"day": "Monday"}')
            assert await output_of(caller) == "from nine on Monday"
            await caller.wait_for("response.output_text.done", says("from nine on Monday"))
            kinds = caller.types()
            made = kinds.index("response.function_call_arguments.done")
            assert "response.done" in kinds[made:]
            assert caller.of("error") == []
            assert caller.of("session.updated")[0]["session"]["tools"] == []  # type: ignore[index]
            count = 'voice_agent_beside_total{outcome="done",work="function"}'
            assert running.metric(count) == 1


async def test_what_fails_is_an_answer_and_the_log_says_why(
    tools: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_server([f"tools.files={tools}"]) as running:
        async with in_writing(running.url) as caller:
            await type_in(caller, "/fails")
            assert await output_of(caller) == "Error: fails failed"
    assert "secret" in caplog.text
    assert "secret" not in str(caller.events)


async def test_the_call_s_own_id_is_known_to_a_function(tools: str) -> None:
    async with running_server([f"tools.files={tools}"]) as running:
        async with in_writing(running.url) as caller:
            await type_in(caller, "/who")
            assert '"call":"rtc_' in await output_of(caller)


class EchoThatChats(ScriptedChats):
    """Calls as the echo engine has them, and chats as the test says."""

    def __init__(self) -> None:
        settings = EngineSettings(assets_folder(), 4)
        self.echo = create("echo", settings)
        super().__init__(replace(self.echo.abilities, chat=True))

    async def open(self, settings: SessionSettings) -> Conversation:
        return await self.echo.open(settings)

    def load(self) -> Load:
        return self.echo.load()

    async def close(self) -> None:
        await self.echo.close()


@asynccontextmanager
async def serving(engine: EchoThatChats, *overrides: str) -> AsyncIterator[str]:
    config = load_config(None, {}, ["server.port=0", *overrides])
    runner = web.AppRunner(make_app(config, Started(choose("echo"), engine)), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_a_call_beside_the_conversation_goes_all_the_way(tools: str) -> None:
    engine = EchoThatChats()
    async with (
        serving(engine, f"tools.files={tools}") as url,
        in_writing(url, voice_agent={"tools": "side"}) as caller,
    ):
        await type_in(caller, "When do you open?")
        while not engine.asked:
            await asyncio.sleep(0.001)
        called = ChatToolCall("chat_1", "opening_hours", '{"day": "Monday"}')
        await engine.asked[0].answer(called)
        assert await output_of(caller) == "from nine on Monday"
        note = await caller.wait_for("voice_agent.tool")
        assert note["name"] == "opening_hours"
        assert caller.of("error") == []


async def test_a_call_begins_beside_where_the_settings_say_so(tools: str) -> None:
    overrides = (f"tools.files={tools}", "tools.channel=side")
    async with serving(EchoThatChats(), *overrides) as url, in_writing(url) as caller:
        session = caller.of("session.created")[0]["session"]
        assert isinstance(session, dict)
        assert session["voice_agent"]["tools"] == "side"
    async with running_server(overrides) as running, in_writing(running.url) as caller:
        session = caller.of("session.created")[0]["session"]
        assert isinstance(session, dict)
        assert session["voice_agent"]["tools"] == "native", "that engine cannot chat"


def test_a_file_that_cannot_be_loaded_ends_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.py").write_text("import no_such_library\n", encoding="utf-8")
    bad = str(tmp_path / "bad.py")
    assert main(["serve", "--port", "0", "--engine", "echo", "--tools", bad]) == 2
    told = capsys.readouterr().err
    assert f"tools.files: {bad} cannot be loaded: ModuleNotFoundError" in told
