"""The validators of the rig refuse what strict clients would drop."""

from typing import Any

import pytest

from agent.chat_types import ChatDelta, ChatDone, ChatToolCall
from agent.realtime.events import error_event, server_event
from agent.types import ToolCalled
from tests.rig.asking_call import ABLE, Asking
from tests.rig.realtime_schema import (
    OrderError,
    SchemaError,
    check_event,
    check_events,
    check_order,
)
from tests.rig.realtime_watch import Watched


def whole_call() -> list[dict[str, Any]]:
    """A greeting, a user turn, a barge-in; all in order."""
    call = Watched()
    call.spoken(1, ("Good ", 400), ("day", 400))
    call.take(call.call.playout_drained(1))
    call.take(call.call.speech_started(16_000))
    call.take(call.call.speech_ended(32_000))
    call.speak(2, ("I ", 400), ("see", 400))
    call.take(call.call.speech_started(64_000))
    call.take(call.call.playout_cleared(2, 200, "turn_detected"))
    return call.events


def test_a_whole_call_is_right() -> None:
    events = whole_call()
    assert check_events(events) == events
    check_order(events)


@pytest.mark.parametrize(
    "event",
    [
        "text",
        {"event_id": "event_1"},
        server_event("response.sung"),
        {"type": "input_audio_buffer.cleared"},
        {"type": "input_audio_buffer.cleared", "event_id": None},
        server_event("input_audio_buffer.cleared", extra=1),
        server_event("conversation.item.deleted", item_id=5),
        server_event("conversation.item.deleted"),
        server_event("conversation.item.truncated", item_id="i", content_index="0", audio_end_ms=1),
        server_event("error", error={"type": "x", "message": "m", "code": None}),
        server_event("voice_agent.state", state="dancing", turn=1),
        server_event("voice_agent.echo", erle_db=1.0, extra=2),
        server_event(
            "response.content_part.added",
            response_id="r",
            item_id="i",
            output_index=0,
            content_index=0,
            part={"type": "audio", "transcript": None},
        ),
        server_event(
            "conversation.item.done",
            item={
                "id": "i",
                "type": "message",
                "role": "user",
                "status": "completed",
                "content": [{"type": "input_audio"}],
            },
        ),
    ],
)
def test_a_wrong_event_is_refused(event: object) -> None:
    with pytest.raises(SchemaError):
        check_event(event)


def test_ids_are_unique() -> None:
    event = error_event("twice")
    with pytest.raises(SchemaError):
        check_events([event, event])


@pytest.mark.parametrize(
    "kind",
    [
        "session.created",
        "response.created",
        "response.output_item.added",
        "response.content_part.added",
        "output_audio_buffer.started",
        "response.output_audio_transcript.delta",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "conversation.item.done",
        "response.done",
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
    ],
)
def test_a_missing_event_is_noticed(kind: str) -> None:
    events = whole_call()
    first = next(at for at, event in enumerate(events) if event["type"] == kind)
    with pytest.raises(OrderError):
        check_order(events[:first] + events[first + 1 :])


def test_a_barge_in_is_one_piece() -> None:
    events = whole_call()
    kinds = [event["type"] for event in events]
    cleared = kinds.index("output_audio_buffer.cleared")
    between = [*events[: cleared + 1], error_event("x"), *events[cleared + 1 :]]
    with pytest.raises(OrderError, match=r"expected response\.done"):
        check_order(between)
    truncated = kinds.index("conversation.item.truncated")
    with pytest.raises(OrderError):
        check_order([*events[:truncated], *events[truncated + 1 :], error_event("x")])


def test_what_a_barge_in_leaves_open_is_noticed() -> None:
    events = whole_call()
    kinds = [event["type"] for event in events]
    cleared = kinds.index("output_audio_buffer.cleared")
    settled = kinds.index("conversation.item.done", cleared)
    with pytest.raises(OrderError, match="done before"):
        check_order(events[:settled] + events[settled + 1 :])


# ---- over a WebSocket -------------------------------------------------------------------------


def sent_call() -> list[dict[str, Any]]:
    """A turn whose sound goes inside of events, and a function called beside it."""
    call = Watched(wire="websocket")
    call.start(1)
    call.text(1, "Good day")
    call.sound(1, 400)
    call.sent(1)
    call.end(1)
    call.drained(1)
    call.engine(ToolCalled(0, "call_1", "weather", "{}"))
    return call.events


def test_a_call_over_a_websocket_is_right() -> None:
    check_order(sent_call(), "websocket")
    with pytest.raises(OrderError, match="transcript before"):
        check_order(sent_call())
    with pytest.raises(OrderError, match="no output buffer"):
        check_order(whole_call(), "websocket")


@pytest.mark.parametrize(
    "kind",
    [
        "response.output_audio_transcript.delta",
        "response.output_audio.done",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "conversation.item.added",
        "response.done",
    ],
)
def test_a_missing_event_of_it_is_noticed(kind: str) -> None:
    events = sent_call()
    first = next(at for at, event in enumerate(events) if event["type"] == kind)
    with pytest.raises(OrderError):
        check_order(events[:first] + events[first + 1 :], "websocket")


def test_sound_after_the_end_of_its_part_is_noticed() -> None:
    events = sent_call()
    sound = next(event for event in events if event["type"] == "response.output_audio.delta")
    end = next(n for n, event in enumerate(events) if event["type"] == "response.output_audio.done")
    late = [*events[: end + 1], sound | {"event_id": "event_late"}, *events[end + 1 :]]
    with pytest.raises(OrderError, match="outside of the open content part"):
        check_order(late, "websocket")


def test_an_item_at_another_index_is_noticed() -> None:
    events = sent_call()
    call = next(n for n, e in enumerate(events) if e["type"].endswith("arguments.done"))
    moved = [*events[:call], events[call] | {"output_index": 1}, *events[call + 1 :]]
    with pytest.raises(OrderError):
        check_order(moved, "websocket")


def aside_call() -> list[dict[str, Any]]:
    """Something is asked out of band while the agent speaks."""
    call = Asking(abilities=ABLE)
    call.speak(1, ("Good ", 400))
    response_id = call.ask()
    call.said(response_id, ChatDelta("One"), ChatToolCall("chat_1", "f", "{}"))
    call.text(1, "day")
    call.said(response_id, ChatDone("stop", 3, 1))
    return call.events


def of_aside(event: dict[str, Any]) -> bool:
    found = event.get("response", {}).get("conversation_id", "") is None
    return found or "text" in event["type"] or "function" in event["type"]


@pytest.mark.parametrize("kind", sorted({e["type"] for e in aside_call() if of_aside(e)}))
def test_a_missing_event_out_of_band_is_noticed(kind: str) -> None:
    events = aside_call()
    check_order(events)
    at = max(at for at, event in enumerate(events) if event["type"] == kind)
    if kind == "response.done":
        events.append(events[at])
    else:
        del events[at]
    with pytest.raises(OrderError):
        check_order(events)


def test_an_item_out_of_band_that_joins_the_conversation_is_noticed() -> None:
    events = aside_call()
    item = next(e["item"] for e in reversed(events) if e["type"] == "response.output_item.done")
    events.append(server_event("conversation.item.added", previous_item_id=None, item=item))
    with pytest.raises(OrderError, match="joins the conversation"):
        check_order(events)
