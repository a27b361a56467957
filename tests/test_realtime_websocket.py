"""The protocol where sound comes inside of events."""

import base64
from collections.abc import Iterator

import pytest

from agent.commands import Interrupt
from agent.realtime import CancelTurn, ClearPlayout, HearAudio, HeardReport
from agent.types import SessionSettings, ToolCalled, UserText
from tests.rig.realtime_order import AUDIO_CHAIN, OPENING, TEXT_CHAIN, TOOL_CHAIN
from tests.rig.realtime_watch import Watched, kinds
from tests.rig.server import running_server
from tests.rig.socket_caller import SocketCaller

SOUND = "response.output_audio.delta"
DELTA = "response.output_audio_transcript.delta"


@pytest.fixture
def call() -> Iterator[Watched]:
    """An open call; at the end the order of everything it said is checked."""
    watched = Watched(wire="websocket")
    yield watched
    watched.finish()


# ---- sound in ---------------------------------------------------------------------------------


def test_the_users_sound_is_handed_on_without_a_word(call: Watched) -> None:
    assert call.send("input_audio_buffer.append", audio=base64.b64encode(b"abcd").decode()) == []
    assert call.actions == [HearAudio(b"abcd", "audio/pcm")]


def test_it_is_in_the_format_that_the_session_names(call: Watched) -> None:
    call.send("session.update", session={"audio": {"input": {"format": {"type": "audio/pcmu"}}}})
    call.send("input_audio_buffer.append", audio="/w==")
    assert call.actions[-1] == HearAudio(b"\xff", "audio/pcmu")


@pytest.mark.parametrize("audio", ["", "====", "AAA", "not base64", 5, None])
def test_sound_that_is_none_is_refused(call: Watched, audio: object) -> None:
    (told,) = call.send("input_audio_buffer.append", audio=audio, event_id="mine")
    assert (told["error"]["param"], told["error"]["event_id"]) == ("audio", "mine")
    assert call.actions == []


# ---- sound out --------------------------------------------------------------------------------


def test_a_spoken_response_ends_with_its_last_sound(call: Watched) -> None:
    assert kinds(call.start(1)) == OPENING[:1]
    assert kinds(call.text(1, "Good ")) == OPENING[1:3]
    assert kinds(call.sound(1, 400)) == OPENING[3:]
    assert call.sent(1) == [DELTA, SOUND]
    assert call.last(SOUND)["delta"] == base64.b64encode(b"\x01\x02").decode()
    assert kinds(call.text(1, "day.")) == [DELTA]
    assert call.end(1) == []
    assert call.sent(1) == [SOUND]
    assert call.drained(1) == AUDIO_CHAIN
    assert call.sent(1) == [], "its book is closed"
    assert call.last("voice_agent.state")["state"] == "listening"


def test_a_response_that_was_sent_before_it_ended_ends_with_the_engine(call: Watched) -> None:
    call.start(1)
    call.sound(1, 400)
    call.sent(1)
    assert call.drained(1) == []
    assert kinds(call.end(1)) == AUDIO_CHAIN


def test_the_next_response_waits_until_the_last_was_sent(call: Watched) -> None:
    for turn in (1, 2):
        call.start(turn)
        call.sound(turn, 400)
        call.end(turn)
    call.sent(1)
    assert kinds(call.events).count("response.created") == 1
    assert call.drained(1) == [*AUDIO_CHAIN, *OPENING]
    call.sent(2)
    call.drained(2)


def test_a_barge_in_is_for_the_client_to_truncate(call: Watched) -> None:
    call.start(1)
    call.text(1, "One ")
    call.sound(1, 1000)
    call.sent(1)
    call.text(1, "two ")
    call.sound(1, 1000)
    call.end(1)
    events = call.take(call.call.speech_started(16_000))
    events += call.take(call.call.playout_cleared(1, 1200, "turn_detected"))
    assert kinds(events) == ["input_audio_buffer.speech_started", *AUDIO_CHAIN]
    details = call.last("response.done")["response"]["status_details"]
    assert details == {"type": "cancelled", "reason": "turn_detected"}
    assert call.sent(1) == []
    item_id = call.last("response.output_item.added")["item"]["id"]
    assert call.retrieve(item_id)["content"][0]["transcript"] == "One"
    where = {"item_id": item_id, "content_index": 0, "audio_end_ms": 800}
    (truncated,) = call.send("conversation.item.truncate", **where)
    assert truncated["audio_end_ms"] == 800


def test_nothing_is_sent_of_a_response_that_was_cancelled(call: Watched) -> None:
    call.start(1)
    call.sound(1, 1000)
    call.sent(1)
    assert kinds(call.send("response.cancel")) == AUDIO_CHAIN
    assert call.actions == [CancelTurn(1), ClearPlayout()]
    assert call.sent(1) == []
    assert call.take(call.call.playout_cleared(1, 200, "client_cancelled"))[:1] == [
        call.last("voice_agent.state")
    ]
    assert call.drained(1) == []


def test_a_client_that_truncates_what_it_is_being_sent_is_sent_no_more(call: Watched) -> None:
    """It has stopped playing, be it for a cough: the rest would only be thrown away there."""
    call.start(1)
    call.sound(1, 2000)
    call.sent(1)
    call.end(1)
    item_id = call.last("response.output_item.added")["item"]["id"]
    where = {"item_id": item_id, "content_index": 0}
    assert kinds(call.send("conversation.item.truncate", audio_end_ms=9000, **where)) == [
        "conversation.item.truncated"
    ]
    assert call.actions == [], "nothing was taken away"
    call.send("conversation.item.truncate", audio_end_ms=300, **where)
    assert call.actions == [ClearPlayout(), Interrupt(1, 300)]
    call.take(call.call.playout_cleared(1, 400, "client_cancelled"))
    details = call.last("response.done")["response"]["status_details"]
    assert details == {"type": "cancelled", "reason": "client_cancelled"}
    call.send("conversation.item.truncate", audio_end_ms=200, **where)
    assert call.actions[2:] == [Interrupt(1, 200)], "nothing is being sent"


def test_an_answer_in_text_waits_for_no_sound() -> None:
    settings = SessionSettings(model="echo", output_modalities=("text",))
    call = Watched(settings=settings, wire="websocket")
    call.start(1)
    call.text(1, "Hi")
    assert kinds(call.end(1)) == TEXT_CHAIN
    call.finish()


def test_there_is_no_output_buffer_to_clear(call: Watched) -> None:
    (told,) = call.send("output_audio_buffer.clear", event_id="mine")
    assert told["error"]["code"] == "unsupported_over_websocket"


# ---- function calls ---------------------------------------------------------------------------


def test_a_turn_that_only_calls_a_function_has_no_message(call: Watched) -> None:
    call.start(1)
    events = call.engine(ToolCalled(1, "call_1", "weather", "{}"))
    assert kinds(events) == TOOL_CHAIN
    assert {event["output_index"] for event in events if "output_index" in event} == {0}
    assert kinds(call.end(1)) == ["response.done"]
    output = call.last("response.done")["response"]["output"]
    assert [item["type"] for item in output] == ["function_call"]


def test_a_call_beside_all_turns_waits_for_the_response_in_progress(call: Watched) -> None:
    call.start(1)
    call.sound(1, 400)
    assert call.engine(ToolCalled(0, "call_1", "weather", '{"a":1}')) == []
    call.sent(1)
    call.end(1)
    aside = ["response.created", *TOOL_CHAIN, "response.done"]
    assert call.drained(1) == [*AUDIO_CHAIN, *aside]
    (item,) = call.last("response.done")["response"]["output"]
    assert (item["call_id"], item["name"], item["arguments"]) == ("call_1", "weather", '{"a":1}')
    assert kinds(call.engine(ToolCalled(0, "call_2", "weather", "{}"))) == aside


# ---- who commits ------------------------------------------------------------------------------

MANUAL = {"audio": {"input": {"turn_detection": None}}}


def append(call: Watched, ms: int) -> None:
    """The client sends so much sound, PCM16 at 24 kHz."""
    call.send("input_audio_buffer.append", audio=base64.b64encode(bytes(48 * ms)).decode())


def seconds(call: Watched, item_id: str) -> float:
    """How long the user's sound was, as told once it is written down."""
    told: float = call.engine(UserText(item_id, "Hello"))[1]["usage"]["seconds"]
    return told


def test_a_commit_takes_the_sound_since_the_last_one(call: Watched) -> None:
    call.send("session.update", session=MANUAL)
    append(call, 1000)
    append(call, 500)
    first = call.send("input_audio_buffer.commit")[0]["item_id"]
    append(call, 300)
    assert kinds(call.send("input_audio_buffer.clear")) == ["input_audio_buffer.cleared"]
    append(call, 250)
    committed = call.send("input_audio_buffer.commit")[0]
    assert committed["previous_item_id"] == first
    assert (seconds(call, first), seconds(call, committed["item_id"])) == (1.5, 0.25)


def test_a_commit_of_nothing_is_refused(call: Watched) -> None:
    call.send("session.update", session=MANUAL)
    append(call, 100)
    call.send("input_audio_buffer.commit")
    actions = list(call.actions)
    (told,) = call.send("input_audio_buffer.commit")
    assert told["error"]["code"] == "input_audio_buffer_commit_empty"
    assert call.actions == actions


# ---- our extension ----------------------------------------------------------------------------


def test_only_who_uses_the_extension_is_told_its_events(call: Watched) -> None:
    """Some stock clients end at an event that they do not know."""
    state = call.last("voice_agent.state")
    assert not call.call.tells(state)
    assert call.call.tells(call.last("session.created"))
    call.send("session.update", session={"voice_agent": None})
    assert not call.call.tells(state)
    updated = call.send("session.update", session={"voice_agent": {}})
    assert [event["type"] for event in updated] == ["session.updated", "voice_agent.state"]
    assert call.call.tells(state)


async def test_a_socket_carries_them_only_then() -> None:
    async with running_server() as server:
        caller = SocketCaller(server.url)
        await caller.dial()
        await caller.wait_for(SOUND)  # the state has changed by then
        assert not [name for name in caller.types(extensions=True) if name.startswith("voice_")]
        await caller.send("session.update", session={"voice_agent": {}})
        await caller.wait_for("voice_agent.state")
        await caller.hang_up()


def test_over_webrtc_everybody_is_told() -> None:
    call = Watched()
    assert call.call.tells(call.last("voice_agent.state"))


# ---- playback.ack -----------------------------------------------------------------------------


def spoken(call: Watched) -> dict[str, object]:
    """A turn of two seconds, sent; where an acknowledgement may point to."""
    call.start(1)
    call.text(1, "One ")
    call.sound(1, 1000)
    call.sent(1)
    call.text(1, "two")
    call.sound(1, 1000)
    item_id = call.last("response.output_item.added")["item"]["id"]
    return {"item_id": item_id, "response_id": call.last("response.created")["response"]["id"]}


def test_what_a_client_has_played_is_acknowledged(call: Watched) -> None:
    where = spoken(call)
    (told,) = call.send("playback.ack", played_ms=1200, **where)
    acknowledged = where | {"played_ms": 1200, "committed_ms": 1200, "truncate": False}
    assert told["event"] == acknowledged
    assert call.actions == [HeardReport(1, 1200)]
    for about in ({"item_id": where["item_id"]}, {"response_id": where["response_id"]}, {}):
        (told,) = call.send("playback.ack", played_ms=5000, committed_ms=3000.7, **about)
        assert told["event"] == where | {
            "played_ms": 5000,
            "committed_ms": 2000,
            "truncate": False,
        }
    assert call.actions[-1] == HeardReport(1, 2000)


def test_an_acknowledgement_may_cut_what_will_not_sound(call: Watched) -> None:
    where = spoken(call)
    call.send("playback.ack", played_ms=1200, truncate=True, **where)
    assert call.actions == [HeardReport(1, 1200), ClearPlayout(), Interrupt(1, 1200)]
    assert call.retrieve(str(where["item_id"]))["content"][0]["transcript"] == "One"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "played_ms"),
        ({"played_ms": "5"}, "played_ms"),
        ({"played_ms": -1}, "played_ms"),
        ({"played_ms": 5, "committed_ms": []}, "committed_ms"),
        ({"played_ms": 5, "truncate": 1}, "truncate"),
        ({"played_ms": 5, "item_id": "nobody"}, "item_id"),
        ({"played_ms": 5, "response_id": "nobody"}, "response_id"),
    ],
)
def test_an_acknowledgement_of_nothing_is_refused(
    call: Watched, fields: dict[str, object], param: str
) -> None:
    if "nobody" not in fields.values():
        fields = spoken(call) | fields
    actions = list(call.actions)
    (told,) = call.send("playback.ack", **fields)
    assert told["error"]["param"] == param
    assert call.actions == actions
