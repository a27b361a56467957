"""What `/docs` says of the events, held to events that were sent and to what is refused."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from agent.api.openapi import EVENTS
from agent.realtime import RateLimit
from agent.types import (
    Abilities,
    Listened,
    Paused,
    SessionSettings,
    ToolCalled,
    Transcription,
    TurnDetection,
    UnitReport,
    UserText,
    UserTextFailed,
    Wire,
)
from tests.rig.described_events import strays, top_fields
from tests.rig.realtime_watch import Watched, message
from tests.rig.server import running_server
from tests.rig.socket_caller import SocketCaller

WIRES: tuple[Wire, ...] = ("webrtc", "websocket")
ABLE = Abilities(
    duplex=True,
    speech=True,
    typed_text=True,
    pictures=True,
    recordings=True,
    tools=True,
    side_tools=True,
    transcription=True,
)
WAITS = SessionSettings(
    model="echo",
    turn_detection=TurnDetection(idle_timeout_ms=5000),
    transcription=Transcription("whisper-1"),
)
PICTURE = "data:image/png;base64,AAAA"
TOOL = {"type": "function", "name": "weather", "description": "It is told.", "parameters": {}}
SOUND = {"format": {"type": "audio/pcmu"}, "voice": "anna"}


def conversation(wire: Wire, *, is_omni: bool = False) -> list[dict[str, Any]]:
    """A call on that wire in which everything is told that can be."""
    limits = [RateLimit("requests", 60, 12, 20.0)]
    call = Watched(
        abilities=ABLE, settings=WAITS, wire=wire, allowance=lambda: limits, is_omni=is_omni
    )
    call.send("session.update", session={"voice_agent": {}, "tools": [TOOL]})
    call.send("session.update", session={"tool_choice": {"type": "function", "name": "weather"}})
    call.send("session.update", session={"max_output_tokens": 99, "audio": {"output": SOUND}})
    item_id = call.user_says()
    call.engine(UserText(item_id, "Hello"), UserTextFailed(item_id, "mumbled"))
    _speaks(call, 1)
    call.send("response.create", response={"metadata": {"a": "b"}})
    call.start(2)
    call.text(2, "Only text")
    call.end(2)
    call.speak(3, ("Three", 1000))
    call.take(call.call.ducked(3, 100))
    call.take(call.call.resumed(3, 100))
    call.take(call.call.playout_cleared(3, 500, "turn_detected"))
    call.take(call.call.idle_timed_out(160_000, 240_000))
    detection = {"type": "semantic_vad", "eagerness": "low"}
    call.send("session.update", session={"audio": {"input": {"turn_detection": detection}}})
    _asks(call)
    call.take(call.call.echo(20.0, 100.0))
    call.take(call.call.latency(1, 300.0))
    call.engine(Listened(1), UnitReport(1, (("hear", 3.0),), 20), Paused("client"))
    call.send("voice_agent.resume")
    call.send("session.update", session={"audio": {"input": {"turn_detection": None}}})
    call.send("nonsense", event_id="mine")
    call.send("session.heartbeat")
    call.take(call.call.expired())
    call.send("session.close")
    return call.events


def _speaks(call: Watched, turn: int) -> None:
    call.start(turn)
    call.engine(ToolCalled(turn, "call_1", "weather", "{}"))
    call.text(turn, "One")
    call.sound(turn, 1000)
    call.take(call.call.playout_started(turn))
    call.sent(turn)
    call.end(turn)
    call.drained(turn)
    call.send("playback.ack", played_ms=400)


def _asks(call: Watched) -> None:
    """Items of every kind, told back."""
    parts = [
        {"type": "input_text", "text": "Look"},
        {"type": "input_image", "image_url": PICTURE, "detail": "low"},
        {"type": "input_audio", "audio": "AAAAAA=="},
    ]
    call.send("conversation.item.create", item={"type": "message", "content": parts})
    past = {"type": "function_call", "call_id": "call_2", "name": "weather", "arguments": "{}"}
    call.send("conversation.item.create", item=past, previous_item_id="root")
    result = {"type": "function_call_output", "call_id": "call_2", "output": "sunny"}
    call.send("conversation.item.create", item=result)
    spoken = next(
        event["item"]["id"]
        for event in call.events
        if event["type"] == "response.output_item.added" and event["item"]["type"] == "message"
    )
    where = {"item_id": spoken, "content_index": 0, "audio_end_ms": 400}
    for kind in ("truncate", "retrieve", "delete"):
        call.send(f"conversation.item.{kind}", **where)
    call.send("input_audio_buffer.clear")


TOOL_TOLD = {  # By `agent.attendants`, beside the call.
    "type": "voice_agent.tool",
    "event_id": "event_1",
    "call_id": "call_1",
    "name": "weather",
    "decided_ms": 12.5,
}


def test_events_are_exactly_as_they_are_described_and_none_is_left_out() -> None:
    events = [event for wire in WIRES for event in conversation(wire)]
    events += [*conversation("websocket", is_omni=True), TOOL_TOLD]
    assert [line for event in events for line in strays(event)] == []
    assert {event["type"] for event in events} == EVENTS["server"].keys()
    for kind, seen in top_fields(events).items():
        schema = EVENTS["server"][kind]
        assert set.union(*seen) == schema["properties"].keys(), f"{kind}: never sent"
        assert set.intersection(*seen) == set(schema["required"]), kind


async def test_a_real_conversation_is_as_it_is_described() -> None:
    """Over a WebSocket, with the echo, which greets and answers what is typed."""
    async with running_server() as server:
        caller = SocketCaller(server.url)
        await caller.dial()
        await caller.send("session.update", session={"voice_agent": {}, "tools": [TOOL]})
        await caller.wait_for("response.done")
        await caller.send("conversation.item.create", item=message("Hello"))
        await caller.send("response.create")
        known = len(caller.events)
        await caller.wait_for("response.done", after=known)
        await caller.wait_for("voice_agent.unit")
        await caller.send("nonsense")
        await caller.wait_for("error")
        await caller.hang_up()
    assert [line for event in caller.events for line in strays(event)] == []
    assert {"voice_agent.state", "response.output_audio.delta"} <= set(
        caller.types(extensions=True)
    )


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1},
        {"state": "dancing"},
        {"turn": None},
    ],
)
def test_what_is_not_so_is_noticed(change: dict[str, object]) -> None:
    event = {"type": "voice_agent.state", "event_id": "event_1", "state": "listening", "turn": 1}
    assert strays(event) == []
    assert strays(event | change)
    assert strays({name: value for name, value in event.items() if name != "state"})
    session = {"type": "session.created", "event_id": "event_1", "session": {"id": "sess_1"}}
    assert strays(session)


# ---- what clients send ------------------------------------------------------------------------

EXAMPLES = [
    pytest.param(schema["examples"][0], id=kind) for kind, schema in EVENTS["client"].items()
]


def ready(kind: str) -> Watched:
    """A call in which an event of this type can be obeyed; what was said is `item_1`."""
    manual = SessionSettings(model="echo", turn_detection=None)
    wire: Wire = "webrtc" if kind == "output_audio_buffer.clear" else "websocket"
    call = Watched(abilities=ABLE, settings=manual, wire=wire)
    call.start(1)
    call.call._call.turns.active.item.id = "item_1"  # type: ignore[union-attr]
    call.text(1, "One")
    call.sound(1, 2000)
    call.sent(1)
    if kind != "response.cancel":
        call.end(1)
        call.drained(1)
    call.send("input_audio_buffer.append", audio="AAAA")
    call.engine(ToolCalled(0, "c", "weather", "{}"))
    return call


def refusals(event: dict[str, Any]) -> list[str]:
    """The fields at fault."""
    kind = event["type"]
    told = ready(kind).send(**{"kind": kind, **_less(event, "type")})
    return [each["error"]["param"] for each in told if each["type"] == "error"]


def _less(event: dict[str, Any], field: str) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name != field}


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_as_described_and_is_obeyed(example: dict[str, Any]) -> None:
    assert strays(example, "client") == []
    assert refusals(example) == []


@pytest.mark.parametrize("example", EXAMPLES)
def test_needed_is_what_is_refused_without(example: dict[str, Any]) -> None:
    schema = EVENTS["client"][example["type"]]
    for field in schema["properties"].keys() - {"type"}:
        at_fault = refusals(_less(example, field))
        if field in schema["required"]:
            assert at_fault and at_fault[0].split(".")[0] == field
        else:
            assert at_fault == [], f"{field} is not needed"


ITEMS: dict[str, dict[str, Any]] = {
    "words": message("Hello"),
    "picture": message("") | {"content": [{"type": "input_image", "image_url": PICTURE}]},
    "sound": message("") | {"content": [{"type": "input_audio", "audio": "AAAAAA=="}]},
    "answer": {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "Hi"}],
    },
    "speech": {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_audio", "transcript": "Hi"}],
    },
    "call": {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"},
    "result": {"type": "function_call_output", "call_id": "c", "output": "sunny"},
}


def shortened(item: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The item without each of its fields in turn, those of its part included."""
    for field in item:
        yield field, _less(item, field)
    for field in item.get("content", [{}])[0]:
        short = copy.deepcopy(item)
        del short["content"][0][field]
        yield f"content[0].{field}", short


@pytest.mark.parametrize("name", ITEMS)
def test_of_items_too(name: str) -> None:
    whole = {"type": "conversation.item.create", "item": ITEMS[name]}
    assert strays(whole, "client") == [] and refusals(whole) == []
    for field, short in shortened(ITEMS[name]):
        if field == "role" and name in ("answer", "speech"):
            continue  # Then it is the user's, who says no such thing.
        event = whole | {"item": short}
        assert bool(strays(event, "client")) == bool(refusals(event)), field
