"""Out-of-band responses in real calls: a server on the loopback, real clients, and the tiny model
or chats that the test answers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from agent.api.calls import Services
from agent.api.chat import CHATS
from agent.api.loading import Started
from agent.api.server import SERVICES, make_app
from agent.config import load_config
from agent.engines import Choice, EngineSettings, ModelSettings
from agent.fleet.pool import start_core
from agent.fleet.worker import Job
from tests.rig import scripted_engine
from tests.rig.caller import Caller
from tests.rig.keyed_server import KeyedServer, bearer, keyed_server
from tests.rig.realtime_schema import check_events, check_order
from tests.rig.realtime_watch import message
from tests.rig.server import Running
from tests.rig.socket_caller import SocketCaller
from tests.rig.tiny_checkpoint import shared_checkpoint
from tests.test_tools_call import EchoThatChats, in_writing, serving

ASIDE: dict[str, Any] = {"conversation": "none", "output_modalities": ["text"]}


def asked(**more: object) -> dict[str, Any]:
    return {**ASIDE, "instructions": "Judge.", **more}


def of(response_id: object) -> Any:
    """Whether an event is the end of that response."""
    return lambda event: event["response"]["id"] == response_id


# ---- the model ----------------------------------------------------------------------------------


@asynccontextmanager
async def tiny_server(checkpoint: Path, slots: int) -> AsyncIterator[Running]:
    """The tiny model in a process of its own, which speaks of its own accord now and then."""
    model = ModelSettings(checkpoint, device="cpu", context_tokens=2048)
    job = Job(scripted_engine.load, "minicpm-o", EngineSettings(checkpoint, slots, model))
    started = Started(Choice("minicpm-o", "for a test"), await start_core(job))
    overrides = ["server.port=0", f"voices.folder={checkpoint / 'voices'}"]
    app = make_app(load_config(None, {}, overrides), started)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield Running(app, f"http://127.0.0.1:{runner.addresses[0][1]}")
    finally:
        await runner.cleanup()


async def all_done(caller: SocketCaller, count: int) -> list[dict[str, Any]]:
    """The responses that have ended, once there are so many."""
    last = 0
    for _ in range(count):
        done = await caller.wait_for("response.done", after=last)
        last = caller.events.index(done) + 1
    return [event["response"] for event in caller.of("response.done")]  # type: ignore[misc]


async def test_the_tiny_model_answers_beside_what_it_says(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    async with tiny_server(shared_checkpoint(tmp_path_factory), slots=4) as server:
        caller = SocketCaller(server.url)
        await caller.dial()
        await caller.send("conversation.item.create", item=message("I am glad", id="item_1"))
        bounded = asked(max_output_tokens=4, metadata={"topic": "mood"})
        await caller.send("response.create", response=bounded)
        item = {"type": "item_reference", "id": "item_1"}
        await caller.send("response.create", response=bounded | {"input": [item]})
        await caller.say(bytes(48_000 * 5))
        done = await all_done(caller, 3)
        await caller.hang_up()
    check_order(check_events(caller.events), "websocket")
    asides = [response for response in done if response["conversation_id"] is None]
    assert [response["metadata"] for response in asides] == [{"topic": "mood"}] * 2
    for response in asides:
        assert response["status"] in ("completed", "incomplete")
        assert 0 < response["usage"]["output_tokens"] <= 4
    first, second = [response["usage"]["input_tokens"] for response in asides]
    assert first == second > len("I am glad".split()), "the very same is shown"
    (spoken,) = [response for response in done if response["conversation_id"] is not None]
    assert spoken["status"] == "completed"


async def test_without_a_slot_to_spare_it_fails_and_the_end_of_the_call_frees_all(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    async with tiny_server(shared_checkpoint(tmp_path_factory), slots=3) as server:
        engine = server.app[SERVICES].engine
        caller = SocketCaller(server.url)
        await caller.dial()
        await caller.send("response.create", response=asked(max_output_tokens=1000))
        await caller.wait_for("response.output_text.delta")
        assert engine.load().slots_used == 2
        failed = await ended(caller)
        assert failed["status_details"]["error"]["code"] == "no_capacity"
        await caller.hang_up()
        async with asyncio.timeout(30):
            while engine.load().slots_used:
                await asyncio.sleep(0.01)


# ---- whoever takes part -------------------------------------------------------------------------


async def test_a_sideband_asks_and_cancels_and_everybody_is_told() -> None:
    engine = EchoThatChats()
    async with serving(engine) as url, in_writing(url) as caller:
        side = SocketCaller(url, f"call_id={caller.location.rpartition('/')[2]}")
        await side.dial()
        await side.send("response.create", response=asked(metadata={"by": "the sideband"}))
        created = await caller.wait_for(
            "response.created", lambda event: event["response"]["conversation_id"] is None
        )
        response_id = created["response"]["id"]
        await side.send("response.cancel", response_id=response_id)
        for one in (caller, side):
            done = await one.wait_for("response.done", of(response_id))
            assert done["response"]["status"] == "cancelled"
            assert done["response"]["metadata"] == {"by": "the sideband"}
        await side.send("response.create", response=asked(input=[]) | {"instructions": ""})
        await side.wait_for("error")
        assert caller.of("error") == [], "that was not its own"
        await side.hang_up()
    check_order(check_events(caller.events), "websocket")


async def test_over_webrtc_it_comes_by_the_data_channel_and_goes_with_the_call() -> None:
    engine = EchoThatChats()
    async with serving(engine, "rtc.addresses=127.0.0.1") as url:
        caller = Caller(url)
        await caller.dial()
        for text in ("one", "two"):
            caller.send({"type": "response.create", "response": asked(instructions=text)})
        while len(engine.asked) < 2:
            await asyncio.sleep(0.001)
        await engine.asked[0].say("Well said")
        done = await caller.wait_for("response.output_text.done")
        assert done["text"] == "Well said"
        await caller.hang_up()
        while not engine.asked[1].given_up:
            await asyncio.sleep(0.001)
        await caller.close()
    check_order(check_events(caller.events))


# ---- keys ---------------------------------------------------------------------------------------


@asynccontextmanager
async def calling(server: KeyedServer, key: str) -> AsyncIterator[SocketCaller]:
    caller = SocketCaller(server.running.url)
    await caller.dial(headers=bearer(key))
    try:
        yield caller
    finally:
        await caller.hang_up()


async def ended(caller: SocketCaller, **more: object) -> dict[str, Any]:
    """Ask; the response as it ended, known by its mark: others begin and end meanwhile."""
    mark = {"mark": str(len(caller.events))}
    await caller.send("response.create", response=asked(metadata=mark, **more))
    done: Any = await caller.wait_for(
        "response.done",
        lambda event: event["response"].get("metadata") == mark,  # type: ignore[attr-defined]
    )
    response: dict[str, Any] = done["response"]
    return response


async def test_it_counts_among_the_chats_of_a_key(tmp_path: Path) -> None:
    engine = EchoThatChats()
    async with keyed_server(tmp_path, engine=engine) as server:
        key = server.add_key("one", max_chats=1)
        services: Services = server.running.app[SERVICES]
        async with calling(server, key) as caller:
            await caller.send("response.create", response=asked())
            while not engine.asked:
                await asyncio.sleep(0.001)
            second = await ended(caller)
            assert second["status_details"]["error"]["code"] == "chat_limit_exceeded"
            question = {"messages": [{"role": "user", "content": "one"}]}
            async with aiohttp.ClientSession(server.running.url, headers=bearer(key)) as http:
                async with http.post("/v1/chat/completions", json=question) as refused:
                    assert refused.status == 429
            await engine.asked[0].say("done")
            await caller.wait_for("response.output_text.done")
            while services.chat_shares.held:
                await asyncio.sleep(0.001)
            assert server.running.app[CHATS]._inside == 0


async def test_it_counts_among_the_requests_of_a_key(tmp_path: Path) -> None:
    engine = EchoThatChats()
    async with keyed_server(tmp_path, engine=engine) as server:
        key = server.add_key("few", requests_per_minute=2)
        async with calling(server, key) as caller:
            await caller.send("response.create", response=asked())
            while not engine.asked:
                await asyncio.sleep(0.001)
            failed = await ended(caller)
            assert failed["status_details"]["error"]["code"] == "rate_limit_exceeded"
            assert len(engine.asked) == 1
