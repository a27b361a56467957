"""What the server tells of its own accord: costs, limits, silence, and what the user said."""

from collections.abc import Iterator

import pytest

import agent.realtime
from agent.commands import ForceListen, Pause, Respond
from agent.realtime import RateLimit
from agent.types import (
    Abilities,
    SessionSettings,
    ToolCalled,
    Transcription,
    TurnDetection,
    TurnEnded,
    Usage,
    UserText,
    UserTextFailed,
    Wire,
)
from tests.rig.realtime_order import USER_CHAIN
from tests.rig.realtime_schema import MODELS, OMNI_MODELS
from tests.rig.realtime_watch import Watched, kinds

WIRES: tuple[Wire, ...] = ("webrtc", "websocket")
WRITTEN = "conversation.item.input_audio_transcription"
ASKED = SessionSettings(model="echo", transcription=Transcription("whisper-1"))
WAITS = SessionSettings(model="echo", turn_detection=TurnDetection(idle_timeout_ms=5000))


@pytest.fixture
def call() -> Iterator[Watched]:
    """An open call; at the end the order of everything it said is checked."""
    watched = Watched()
    yield watched
    watched.finish()


# ---- all of them ------------------------------------------------------------------------------

NEVER = {
    "mcp_list_tools.in_progress",
    "mcp_list_tools.completed",
    "mcp_list_tools.failed",
    "response.mcp_call.in_progress",
    "response.mcp_call.completed",
    "response.mcp_call.failed",
    "response.mcp_call_arguments.delta",
    "response.mcp_call_arguments.done",
    "input_audio_buffer.dtmf_event_received",
    "conversation.item.created",
    "conversation.item.input_audio_transcription.segment",
}
"""Named, with the reasons, in the table of `agent.realtime`."""


def eventful(wire: Wire) -> Watched:
    """A call on that wire in which everything happens that can."""
    limits = [RateLimit("requests", 60, 12, 20.0)]
    call = Watched(settings=WAITS, wire=wire, allowance=lambda: limits)
    item_id = call.user_says()
    call.engine(UserText(item_id, "Hello"), UserTextFailed(item_id, "mumbled"))
    call.start(1)
    call.engine(ToolCalled(1, "call_1", "weather", "{}"))
    call.text(1, "One")
    call.sound(1, 1000)
    call.take(call.call.playout_started(1))
    call.sent(1)
    call.end(1)
    call.drained(1)
    message_id = call.last("response.output_item.added")["item"]["id"]
    call.start(2)
    call.text(2, "Only text")
    call.end(2)
    call.speak(3, ("Three", 1000))
    call.take(call.call.playout_cleared(3, 500, "turn_detected"))
    call.take(call.call.idle_timed_out(160_000, 240_000))
    where = {"item_id": message_id, "content_index": 0, "audio_end_ms": 400}
    for kind in ("truncate", "retrieve", "delete"):
        call.send(f"conversation.item.{kind}", **where)
    call.send("session.update", session={})
    call.send("input_audio_buffer.clear")
    call.send("nonsense")
    call.finish()
    return call


def test_every_server_event_is_sent_or_named_as_never_sent() -> None:
    sent = {kind for wire in WIRES for kind in kinds(eventful(wire).events)}
    others = MODELS.keys() - OMNI_MODELS.keys()
    of_openai = {kind for kind in others if not kind.startswith(("voice_agent.", "playback."))}
    assert len(of_openai) == 46
    assert of_openai - sent == NEVER
    text = agent.realtime.__doc__ or ""
    assert all(kind in text or kind.rpartition(".")[0] + ".*" in text for kind in NEVER)


# ---- the conversation -------------------------------------------------------------------------


def test_the_conversation_has_the_id_that_its_responses_name(call: Watched) -> None:
    created = call.last("conversation.created")["conversation"]
    assert created["object"] == "realtime.conversation"
    call.start(1)
    assert call.last("response.created")["response"]["conversation_id"] == created["id"]


# ---- costs ------------------------------------------------------------------------------------


def test_what_a_response_cost_adds_up(call: Watched) -> None:
    call.start(1)
    call.text(1, "Hi")
    usage = Usage(text_in=11, audio_in=200, pictures_in=64, cached_in=30, text_out=7, audio_out=50)
    call.engine(TurnEnded(1, "completed", usage))
    assert call.last("response.done")["response"]["usage"] == {
        "total_tokens": 332,
        "input_tokens": 275,
        "output_tokens": 57,
        "input_token_details": {
            "text_tokens": 11,
            "audio_tokens": 200,
            "image_tokens": 64,
            "cached_tokens": 30,
        },
        "output_token_details": {"text_tokens": 7, "audio_tokens": 50},
    }


def test_a_cancelled_response_cost_what_is_known_of_it(call: Watched) -> None:
    call.speak(1, ("One", 500))
    call.send("response.cancel")
    usage = call.last("response.done")["response"]["usage"]
    assert usage["total_tokens"] == usage["input_token_details"]["audio_tokens"] == 0
    assert usage["input_token_details"]["cached_tokens_details"] == {
        "text_tokens": 0,
        "audio_tokens": 0,
        "image_tokens": 0,
    }
    call.speak(2, ("Two", 500))
    call.engine(TurnEnded(2, "interrupted", Usage(audio_in=25, text_out=2)))
    assert call.last("response.done")["response"]["usage"]["total_tokens"] == 27


def test_limits_are_told_with_each_response_where_there_are_any() -> None:
    limits: list[RateLimit] = []
    call = Watched(allowance=lambda: limits)
    assert "rate_limits.updated" not in kinds(call.start(1))
    call.end(1)
    call.drained(1)
    limits += [RateLimit("requests", 60, 12, 20.12345), RateLimit("tokens", 1000, 0, 1.0)]
    events = call.start(2)
    assert kinds(events)[:2] == ["response.created", "rate_limits.updated"]
    told = events[1]
    assert told["rate_limits"][0] == {
        "name": "requests",
        "limit": 60,
        "remaining": 12,
        "reset_seconds": 20.123,
    }
    assert [limit["name"] for limit in told["rate_limits"]] == ["requests", "tokens"]


# ---- what the user said -----------------------------------------------------------------------


def test_what_the_user_said_comes_in_writing_and_stays(call: Watched) -> None:
    first, second = call.user_says(), call.user_says(64_000, 80_000)
    events = call.engine(UserText(first, "Good day"))
    assert kinds(events) == [f"{WRITTEN}.delta", f"{WRITTEN}.completed"]
    assert (events[0]["item_id"], events[1]["transcript"]) == (first, "Good day")
    assert events[1]["usage"] == {"type": "duration", "seconds": 1.5}
    assert kinds(call.engine(UserText("", ""))) == [f"{WRITTEN}.completed"], "nothing to add"
    words = [call.retrieve(item)["content"][0]["transcript"] for item in (first, second)]
    assert words == ["Good day", ""]


def test_what_could_not_be_written_down_is_told(call: Watched) -> None:
    assert call.engine(UserTextFailed("", "too early")) == []
    item_id = call.user_says()
    (failed,) = call.engine(UserTextFailed(item_id, "The chat beside the call is busy."))
    assert failed["type"] == f"{WRITTEN}.failed"
    assert failed["item_id"] == item_id
    assert failed["error"] == {
        "type": "transcription_error",
        "code": "transcription_failed",
        "message": "The chat beside the call is busy.",
    }
    assert call.retrieve(item_id)["content"][0]["transcript"] is None
    other = call.user_says(64_000, 80_000)
    call.send("conversation.item.delete", item_id=item_id)
    assert call.engine(UserTextFailed(item_id, "late"), UserText(item_id, "late")) == []
    assert call.retrieve(other)["content"][0]["transcript"] is None, "nobody wrote down that"


@pytest.mark.parametrize("wire", ["webrtc", "websocket"])
def test_where_nobody_can_write_each_item_says_so(wire: Wire) -> None:
    call = Watched(settings=ASKED, wire=wire)
    item_id = call.user_says()
    assert kinds(call.events)[2:] == [*USER_CHAIN, f"{WRITTEN}.failed"]
    error = call.last(f"{WRITTEN}.failed")["error"]
    assert error["code"] == "unsupported_by_engine"
    assert "transcription" in error["message"]
    assert call.last(f"{WRITTEN}.failed")["item_id"] == item_id
    call.send("session.update", session={"audio": {"input": {"transcription": None}}})
    told = len(call.events)
    call.user_says(64_000, 80_000)
    assert kinds(call.events[told:]) == USER_CHAIN
    call.finish()


def test_where_somebody_writes_no_item_says_that_nobody_does() -> None:
    call = Watched(settings=ASKED, abilities=Abilities(speech=True, transcription=True))
    call.user_says()
    assert kinds(call.events)[2:] == USER_CHAIN


# ---- silence ----------------------------------------------------------------------------------


def test_a_long_silence_is_told_and_the_agent_goes_on() -> None:
    call = Watched(settings=WAITS)
    events = call.take(call.call.idle_timed_out(160_000, 240_000))
    triggered = "input_audio_buffer.timeout_triggered"
    assert kinds(events) == [triggered, *USER_CHAIN[2:]]
    assert (events[0]["audio_start_ms"], events[0]["audio_end_ms"]) == (10_000, 15_000)
    assert len({event.get("item_id", events[0]["item_id"]) for event in events}) == 1
    assert call.actions == [Respond()]
    call.finish()


def test_nobody_is_called_idle_who_is_not() -> None:
    def timed_out(call: Watched) -> bool:
        return bool(call.take(call.call.idle_timed_out(0, 80_000)))

    assert not timed_out(Watched()), "nobody asked"
    off = Watched(settings=SessionSettings(model="echo", turn_detection=None))
    assert not timed_out(off)
    call = Watched(settings=WAITS)
    call.take(call.call.speech_started(0))
    assert not timed_out(call), "the user speaks"
    call.take(call.call.speech_ended(16_000))
    call.start(1)
    assert not timed_out(call), "the agent speaks"
    call.end(1)
    call.send("voice_agent.listen", on=True)
    assert not timed_out(call), "it may not"
    call.send("voice_agent.listen", on=False)
    call.send("voice_agent.pause")
    assert not timed_out(call), "the call is paused"
    call.send("voice_agent.resume")
    assert call.actions[:2] == [ForceListen(True), ForceListen(False)]
    assert Pause() in call.actions
    assert timed_out(call)


S = 16_000


def listened(call: Watched, *seconds: float) -> list[str]:
    """The microphone goes on, the client's clock half a second behind; what the client is told."""
    told = []
    for at in (int(second * S) for second in seconds):
        told += kinds(call.take(call.call.listened(at, at - S // 2)))
    return told


def test_silence_counts_from_the_agents_last_word() -> None:
    call = Watched(settings=WAITS)
    assert listened(call, 1, 60) == [], "the agent has not spoken yet"
    call.spoken(1, ("Hello", 500))
    assert listened(call, 61, 70) == [], "it still does"
    call.drained(1)
    assert listened(call, 71, 74.9) == []
    assert listened(call, 75) == ["input_audio_buffer.timeout_triggered", *USER_CHAIN[2:]]
    triggered = call.last("input_audio_buffer.timeout_triggered")
    assert (triggered["audio_start_ms"], triggered["audio_end_ms"]) == (69_500, 74_500)
    assert call.actions == [Respond()]
    assert listened(call, 76, 99) == [], "asked once"
    call.spoken(2, ("Still there?", 500))
    listened(call, 100)
    call.drained(2)
    call.take(call.call.speech_started(103 * S))
    assert listened(call, 103, 107) == [], "the user speaks"
    call.take(call.call.speech_ended(107 * S))
    assert listened(call, 111.9) == []
    assert listened(call, 112)[0] == "input_audio_buffer.timeout_triggered"
    call.finish()


def test_silence_does_not_pass_while_the_agent_may_not_speak() -> None:
    call = Watched(settings=WAITS)
    call.spoken(1, ("Hello", 500))
    listened(call, 1)
    call.drained(1)
    call.send("voice_agent.listen", on=True)
    assert listened(call, 9) == []
    call.send("voice_agent.listen", on=False)
    assert listened(call, 10)[0] == "input_audio_buffer.timeout_triggered"
    assert listened(Watched(), 1, 100) == []
