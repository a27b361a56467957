"""The fifteen traps of stock clients, by their numbers; each was found by reading a real client.

Two are tried where they belong: 4, that browsers take no key but one that begins with ek_, where
such are made; 13, that clients wait five seconds for a connection to come back, where it does.
"""

from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from agent.commands import AddPicture, AddToolResult, Respond
from agent.realtime import CancelTurn, ClearPlayout
from agent.types import Abilities, ToolCalled, TurnEnded, Usage, UserText, Wire
from tests.rig.caller import Caller
from tests.rig.realtime_watch import Watched, kinds
from tests.rig.server import running_server

ABLE = Abilities(
    duplex=True, speech=True, typed_text=True, pictures=True, tools=True, transcription=True
)
WIRES: tuple[Wire, ...] = ("webrtc", "websocket")


@pytest.fixture(params=WIRES)
def call(request: pytest.FixtureRequest) -> Iterator[Watched]:
    """A call on either wire; at the end the order of everything it said is checked."""
    watched = Watched(abilities=ABLE, wire=request.param)
    yield watched
    watched.finish()


def play(call: Watched, turn: int) -> None:
    """The first sound of the turn reaches the client."""
    call.take(call.call.playout_started(turn))
    if call.wire == "websocket":
        call.sent(turn)


def said(call: Watched, turn: int) -> str:
    """The agent has said "One two"; the id of its item."""
    call.start(turn)
    call.text(turn, "One ")
    call.sound(turn, 1000)
    play(call, turn)
    call.text(turn, "two")
    call.sound(turn, 1000)
    call.end(turn)
    item_id: str = call.last("response.output_item.added")["item"]["id"]
    return item_id


def everything(call: Watched) -> None:
    """A call in which whatever a client may meet happens."""
    item_id = call.user_says()
    call.engine(UserText(item_id, "Hello"))
    said(call, 1)
    call.drained(1)
    call.start(2)
    call.engine(ToolCalled(2, "call_1", "weather", '{"city":"Bonn"}'))
    call.end(2)
    said(call, 3)
    call.take(call.call.speech_started(64_000))
    call.take(call.call.playout_cleared(3, 600, "turn_detected"))
    call.take(call.call.speech_ended(80_000))


async def test_traps_1_and_14_an_offer_without_candidates_and_with_a_camera_is_enough() -> None:
    async with running_server() as server:
        caller = Caller(server.url, camera=True)
        assert "a=candidate" not in await caller.offer()
        try:
            await caller.dial()
        finally:
            await caller.close()
        assert "a=candidate" in caller.answer, "all of ours: nothing trickles"
        assert caller.types()[0] == "session.created"


async def test_trap_2_pages_may_read_where_their_call_is() -> None:
    async with running_server() as server, aiohttp.ClientSession(server.url) as http:
        headers = {"Origin": "http://localhost:5173", "Content-Type": "application/sdp"}
        async with http.post("/v1/realtime/calls", data=b"", headers=headers) as response:
            assert "Location" in response.headers["Access-Control-Expose-Headers"]
        asks = {"Access-Control-Request-Method": "POST", "Origin": headers["Origin"]}
        asked = "authorization,content-type,x-openai-agents-sdk"
        asks["Access-Control-Request-Headers"] = asked
        async with http.options("/v1/realtime/calls", headers=asks) as response:
            allowed = response.headers["Access-Control-Allow-Headers"].lower()
            assert set(asked.split(",")) <= {name.strip() for name in allowed.split(",")}


def test_trap_3_each_of_two_updates_at_once_is_answered(call: Watched) -> None:
    update = {"type": "realtime", "instructions": "Be kind.", "tools": [], "tool_choice": "auto"}
    assert kinds(call.send("session.update", session=update)) == ["session.updated"]
    tracing = {"type": "realtime", "tracing": "auto"}
    assert kinds(call.send("session.update", session=tracing)) == ["session.updated"]


def test_trap_5_parts_are_audio_or_text_and_hold_no_null(call: Watched) -> None:
    everything(call)
    call.start(4)
    call.text(4, "Only text")
    call.end(4)
    parts = [event["part"] for event in call.events if "part" in event]
    assert {part["type"] for part in parts} == {"audio", "text"}
    for part in parts:
        assert None not in part.values()
        assert set(part) == {"type", "transcript" if part["type"] == "audio" else "text"}


def test_trap_6_items_are_added_and_done_never_created(call: Watched) -> None:
    everything(call)
    assert "conversation.item.created" not in kinds(call.events)
    added, done = (
        [
            event["item"]["id"]
            for event in call.events
            if event["type"] == f"conversation.item.{what}"
        ]
        for what in ("added", "done")
    )
    assert sorted(added) == sorted(done), "also of a response that was cancelled"


def test_trap_7_pictures_are_taken_though_the_client_ignores_their_items(call: Watched) -> None:
    picture = {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo="}
    item = {"type": "message", "role": "user", "content": [picture]}
    added, done = call.send("conversation.item.create", item=item)
    assert added["item"]["content"] == done["item"]["content"] == [{"type": "input_image"}]
    assert isinstance(call.actions[0], AddPicture)


def test_trap_8_tools_fire_when_their_item_is_done_and_the_answer_follows(call: Watched) -> None:
    call.start(1)
    events = call.engine(ToolCalled(1, "call_1", "weather", '{"city":"Bonn"}'))
    (done,) = [event for event in events if event["type"] == "response.output_item.done"]
    fired = {
        name: done["item"][name] for name in ("type", "status", "call_id", "name", "arguments")
    }
    assert fired == {
        "type": "function_call",
        "status": "completed",
        "call_id": "call_1",
        "name": "weather",
        "arguments": '{"city":"Bonn"}',
    }
    in_progress = [event["item"] for event in events if event["type"].endswith("item.added")]
    assert all(item["status"] == "in_progress" for item in in_progress), "it would fire twice"
    output = {"type": "function_call_output", "call_id": "call_1", "output": "rain"}
    assert kinds(call.send("conversation.item.create", item=output))[0] != "error"
    assert kinds(call.send("response.create")) == ["error"], "the client waits for response.done"
    assert kinds(call.end(1)) == ["response.done"]
    assert call.send("response.create") == []
    assert call.actions == [AddToolResult("call_1", "rain"), Respond()]


def test_trap_9_history_is_rebuilt_from_what_was_heard(call: Watched) -> None:
    spoken = call.user_says()
    call.engine(UserText(spoken, "Hello"))
    assert call.retrieve(spoken)["content"] == [{"type": "input_audio", "transcript": "Hello"}]
    item_id = said(call, 1)
    call.take(call.call.playout_cleared(1, 1500, "turn_detected"))
    if call.wire == "websocket":
        where = {"item_id": item_id, "content_index": 0, "audio_end_ms": 1400}
        call.send("conversation.item.truncate", **where)
    assert call.last("conversation.item.truncated")["item_id"] == item_id
    assert call.retrieve(item_id)["content"] == [{"type": "output_audio", "transcript": "One"}]


def test_trap_10_costs_are_numbers_or_a_duration(call: Watched) -> None:
    call.start(1)
    call.text(1, "Hi")
    call.engine(TurnEnded(1, "completed", Usage(text_in=3, audio_in=4, cached_in=2)))
    usage: dict[str, Any] = call.last("response.done")["response"]["usage"]
    for details in (usage["input_token_details"], usage["output_token_details"]):
        assert isinstance(details["text_tokens"], int) and isinstance(details["audio_tokens"], int)
    item_id = call.user_says()
    completed = call.engine(UserText(item_id, "Hello"))[-1]
    assert completed["usage"] == {"type": "duration", "seconds": 1.5}


def test_trap_11_an_interruption_cancels_and_then_clears() -> None:
    call = Watched(abilities=ABLE)
    item_id = said(call, 1)
    cancelled = call.send("response.cancel")
    assert cancelled[0]["error"]["code"] == "response_cancel_not_active"
    assert cancelled[0]["error"]["message"].startswith("Cancellation failed")
    assert call.send("output_audio_buffer.clear") == []
    assert call.actions == [ClearPlayout()]
    call.take(call.call.playout_cleared(1, 1000, "client_cancelled"))
    assert call.retrieve(item_id)["content"][0]["transcript"] == "One"
    call.start(2)
    call.sound(2, 500)
    play(call, 2)
    assert kinds(call.send("response.cancel"))[-1] == "response.done"
    assert call.actions[-1] == CancelTurn(2)
    assert call.send("output_audio_buffer.clear") == []
    call.take(call.call.playout_cleared(2, 100, "client_cancelled"))
    call.finish()


def test_trap_12_what_clients_ask_for_by_default_is_served(call: Watched) -> None:
    session = {
        "type": "realtime",
        "model": "gpt-realtime-2.1",
        "audio": {
            "input": {
                "turn_detection": {"type": "semantic_vad"},
                "transcription": {"model": "gpt-4o-mini-transcribe"},
                "noise_reduction": None,
            },
            "output": {"voice": "marin"},
        },
    }
    (updated,) = call.send("session.update", session=session)
    assert updated["type"] == "session.updated"
    told = updated["session"]["audio"]["input"]
    assert told["turn_detection"]["type"] == "semantic_vad"
    assert told["transcription"] == {"model": "gpt-4o-mini-transcribe"}


@pytest.mark.parametrize(("asked", "cut"), [(10**9, 2000), (0, 0), (-1, 0), (1999.9, 1999)])
def test_trap_15_cuts_beyond_the_end_are_clamped(call: Watched, asked: float, cut: int) -> None:
    where = {"item_id": said(call, 1), "content_index": 0, "audio_end_ms": asked}
    (truncated,) = call.send("conversation.item.truncate", **where)
    assert truncated["audio_end_ms"] == cut
