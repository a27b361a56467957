"""Turns, barge-in and playout, as the client is told of them."""

from collections.abc import Iterator

import pytest

from agent.commands import AddText
from agent.errors import CapacityError, EngineError, UnsupportedError
from agent.realtime import CloseCall, Limits, RealtimeCall
from agent.types import (
    Abilities,
    Failed,
    Listened,
    Paused,
    SessionSettings,
    ToolCalled,
    TurnStarted,
    UnitReport,
    UserText,
)
from tests.rig.realtime_order import AUDIO_CHAIN, OPENING, TEXT_CHAIN, USER_CHAIN
from tests.rig.realtime_watch import Watched, kinds

STARTED = "output_audio_buffer.started"
STOPPED = "output_audio_buffer.stopped"
CLEARED = "output_audio_buffer.cleared"
TRUNCATED = "conversation.item.truncated"
DELTA = "response.output_audio_transcript.delta"


@pytest.fixture
def call() -> Iterator[Watched]:
    """An open call; at the end the order of everything it said is checked."""
    watched = Watched()
    yield watched
    watched.finish()


def item_of(call: Watched) -> dict[str, object]:
    """The agent's newest item, as a client retrieves it."""
    item_id = call.last("response.output_item.added")["item"]["id"]
    (retrieved,) = call.send("conversation.item.retrieve", item_id=item_id)
    item: dict[str, object] = retrieved["item"]
    return item


def test_a_call_opens_once_with_its_session() -> None:
    call = Watched()
    opening = ["session.created", "conversation.created", "voice_agent.state"]
    assert [event["type"] for event in call.events] == opening
    assert call.events[0]["session"]["model"] == "echo"
    assert call.take(call.call.open()) == []


def test_a_greeting_is_told_in_the_documented_order(call: Watched) -> None:
    call.spoken(1, ("Good ", 400), ("day.", 400))
    call.take(call.call.playout_drained(1))
    assert kinds(call.events)[2:] == [*OPENING, STARTED, DELTA, DELTA, *AUDIO_CHAIN, STOPPED]
    done = call.last("response.done")["response"]
    assert done["status"] == "completed"
    assert done["output"][0]["content"] == [{"type": "output_audio", "transcript": "Good day."}]
    assert done["usage"]["input_token_details"]["audio_tokens"] == 0


def test_words_wait_for_the_first_sample(call: Watched) -> None:
    call.start(1)
    assert kinds(call.text(1, "Hel")) == OPENING[1:3]
    call.sound(1, 100)
    assert call.text(1, "lo") == []
    started = call.take(call.call.playout_started(1))
    assert kinds(started) == [STARTED, DELTA, DELTA]
    assert [event["delta"] for event in started if "delta" in event] == ["Hel", "lo"]
    assert kinds(call.text(1, "!")) == [DELTA]


def test_a_turn_generated_before_it_is_heard_waits_with_its_end(call: Watched) -> None:
    call.start(1)
    call.text(1, "Hello")
    call.sound(1, 500)
    assert call.end(1) == []
    started = call.take(call.call.playout_started(1))
    assert kinds(started) == [STARTED, DELTA, *AUDIO_CHAIN]


def test_the_next_turn_waits_behind_one_that_is_not_heard_yet(call: Watched) -> None:
    for turn in (1, 2):
        call.start(turn)
        call.text(turn, f"turn {turn}")
        call.sound(turn, 500)
        call.end(turn)
    assert kinds(call.events).count("response.created") == 1
    started = call.take(call.call.playout_started(1))
    assert kinds(started) == [STARTED, DELTA, *AUDIO_CHAIN, *OPENING]
    again = call.take(call.call.playout_started(2))
    assert kinds(again) == [STOPPED, STARTED, DELTA, *AUDIO_CHAIN]
    assert call.heard() == "turn 2"


def test_a_turn_that_is_never_heard_does_not_hold_up_the_next(call: Watched) -> None:
    for turn in (1, 2):
        call.start(turn)
        call.sound(turn, 100)
        call.end(turn)
    events = call.take(call.call.playout_started(2))
    dropped = [CLEARED, *AUDIO_CHAIN, TRUNCATED]
    assert kinds(events) == [*dropped, *OPENING, STARTED, *AUDIO_CHAIN]
    assert call.last(STARTED)["response_id"] == call.last("response.created")["response"]["id"]


def test_held_events_are_bounded() -> None:
    call = Watched(limits=Limits(max_waiting=8))
    call.start(1)
    call.sound(1, 100)
    call.end(1)
    call.start(2)
    for _ in range(8):
        call.text(2, "x")
    assert kinds(call.events)[2:] == [*OPENING, STARTED, *AUDIO_CHAIN, *OPENING[:3]]
    assert call.take(call.call.playout_started(1)) == [], "it was told already"
    call.sound(2, 100)
    started = call.take(call.call.playout_started(2))
    assert "".join(event.get("delta", "") for event in started) == "x" * 8
    call.finish()


def test_a_turn_without_sound_is_text_and_ends_at_once(call: Watched) -> None:
    call.start(1)
    call.text(1, "Only ")
    call.text(1, "text")
    ended = call.end(1)
    text = "response.output_text.delta"
    assert kinds(ended) == [OPENING[3], text, text, *TEXT_CHAIN]
    assert ended[0]["part"]["type"] == "text"
    assert item_of(call)["content"] == [{"type": "output_text", "text": "Only text"}]


def test_no_sound_at_all_is_no_sound(call: Watched) -> None:
    call.start(1)
    call.text(1, "Only text")
    assert call.sound(1, 0) == []
    assert kinds(call.end(1))[-len(TEXT_CHAIN) :] == TEXT_CHAIN


def test_text_goes_out_at_once_where_only_text_is_wanted() -> None:
    settings = SessionSettings(model="echo", output_modalities=("text",))
    call = Watched(settings=settings)
    assert kinds(call.start(1)) == OPENING[:1]
    assert kinds(call.text(1, "Hi")) == [*OPENING[1:], "response.output_text.delta"]
    assert kinds(call.text(1, "!")) == ["response.output_text.delta"]
    assert kinds(call.end(1)) == TEXT_CHAIN
    call.finish()


def test_a_turn_that_says_nothing_has_no_message(call: Watched) -> None:
    call.start(1)
    assert kinds(call.end(1)) == ["response.done"]
    assert call.last("response.done")["response"]["output"] == []
    assert "conversation.item.added" not in kinds(call.events)


def test_running_out_of_tokens_leaves_the_response_incomplete(call: Watched) -> None:
    call.speak(1, ("long", 500))
    call.end(1, "max_tokens")
    done = call.last("response.done")["response"]
    assert done["status"] == "incomplete"
    assert done["status_details"] == {"type": "incomplete", "reason": "max_output_tokens"}
    assert done["output"][0]["status"] == "incomplete"


# ---- the user ---------------------------------------------------------------------------------


def test_the_users_turn_becomes_an_item(call: Watched) -> None:
    events = call.take(call.call.speech_started(16_000))
    events += call.take(call.call.speech_ended(40_000))
    assert kinds(events) == USER_CHAIN
    assert (events[0]["audio_start_ms"], events[1]["audio_end_ms"]) == (1000, 2500)
    item_id = events[0]["item_id"]
    assert [event.get("item_id", item_id) for event in events] == [item_id] * 5
    assert events[2]["previous_item_id"] is None
    assert events[3]["item"]["content"] == [{"type": "input_audio", "transcript": None}]


def test_each_item_names_the_one_before(call: Watched) -> None:
    call.take(call.call.speech_started(0))
    call.take(call.call.speech_ended(8000))
    user_id = call.last("conversation.item.added")["item"]["id"]
    call.speak(1, ("Yes.", 300))
    assert call.last("conversation.item.added")["previous_item_id"] == user_id


def test_speech_that_is_open_is_not_opened_again(call: Watched) -> None:
    assert call.take(call.call.speech_ended(5)) == []
    call.take(call.call.speech_started(100))
    assert call.take(call.call.speech_started(200)) == []
    ended = call.take(call.call.speech_ended(50))
    assert ended[0]["audio_end_ms"] == call.last(USER_CHAIN[0])["audio_start_ms"]


def detect(call: Watched, detection: object) -> list[str]:
    """Set turn detection; what the client is told."""
    audio = {"input": {"turn_detection": detection}}
    return kinds(call.send("session.update", session={"type": "realtime", "audio": audio}))


def test_speech_ends_without_an_item_when_detection_is_switched_off(call: Watched) -> None:
    (first,) = call.take(call.call.speech_started(16_000))
    assert detect(call, None) == [USER_CHAIN[1], "session.updated"]
    stopped = call.last(USER_CHAIN[1])
    assert (stopped["item_id"], stopped["audio_end_ms"]) == (first["item_id"], 1000)
    assert call.take(call.call.speech_ended(32_000)) == []
    assert detect(call, None) == ["session.updated"]
    assert detect(call, {"type": "server_vad"}) == ["session.updated"]
    (second,) = call.take(call.call.speech_started(48_000))
    assert second["item_id"] != first["item_id"]
    ended = call.take(call.call.speech_ended(64_000))
    assert kinds(ended) == USER_CHAIN[1:]
    assert {event["item_id"] for event in ended[:2]} == {second["item_id"]}


def test_speech_goes_on_through_other_settings_of_detection(call: Watched) -> None:
    call.take(call.call.speech_started(16_000))
    assert detect(call, {"threshold": 0.7}) == ["session.updated"]
    assert kinds(call.take(call.call.speech_ended(32_000))) == USER_CHAIN[1:]


def test_what_the_user_said_is_written_down(call: Watched) -> None:
    assert call.engine(UserText("", "too early")) == []
    call.take(call.call.speech_started(0))
    call.take(call.call.speech_ended(24_000))
    delta, completed = call.engine(UserText("", "Good morning"))
    assert delta["delta"] == completed["transcript"]
    assert completed["usage"] == {"type": "duration", "seconds": 1.5}
    (retrieved,) = call.send("conversation.item.retrieve", item_id=completed["item_id"])
    assert retrieved["item"]["content"][0]["transcript"] == "Good morning"


# ---- our extension ----------------------------------------------------------------------------


def test_the_state_is_told_when_it_changes(call: Watched) -> None:
    call.spoken(1, ("One", 300))
    call.take(call.call.playout_drained(1))
    call.spoken(2, ("Two", 300))
    call.take(call.call.playout_started(2))
    call.take(call.call.playout_cleared(2, 10, "turn_detected"))
    call.engine(Paused("by the client"))
    call.send("voice_agent.resume")
    told = [(e["state"], e["turn"]) for e in call.events if e["type"] == "voice_agent.state"]
    expected = [("listening", 0), ("speaking", 1), ("listening", 1), ("speaking", 2)]
    assert told == [*expected, ("listening", 2), ("paused", 2), ("listening", 2)]


def test_an_agent_that_only_writes_has_the_floor_while_it_does() -> None:
    settings = SessionSettings(model="echo", output_modalities=("text",))
    call = Watched(abilities=Abilities(duplex=True), settings=settings)
    call.start(1)
    call.text(1, "Hel")
    assert call.last("voice_agent.state")["state"] == "speaking"
    call.engine(Paused("by the engine"))
    assert call.last("voice_agent.state")["state"] == "paused", "whatever it is writing"
    call.send("voice_agent.resume")
    call.text(1, "lo")
    call.end(1)
    told = [(e["state"], e["turn"]) for e in call.events if e["type"] == "voice_agent.state"]
    expected = [("listening", 0), ("speaking", 1), ("paused", 1), ("speaking", 1)]
    assert told == [*expected, ("listening", 1)]


def test_measurements_are_told(call: Watched) -> None:
    (unit,) = call.engine(UnitReport(7, (("prefill", 12.34567),), 900), Listened(7))
    assert unit["stage_ms"] == {"prefill": 12.346}
    assert (unit["unit"], unit["context_tokens"]) == (7, 900)
    (echo,) = call.take(call.call.echo(31.2, 120.04))
    assert (echo["erle_db"], echo["delay_ms"]) == (31.2, 120.0)
    assert call.take(call.call.latency(1, 480))[0]["first_sound_ms"] == 480
    assert call.take(call.call.ducked(1, 800))[0]["at_ms"] == 800
    assert call.take(call.call.resumed(1, 900))[0]["turn"] == 1
    assert call.take(call.call.echo(float("inf"), 0.0)) == []
    assert call.take(call.call.echo(31.2, float("nan"))) == []
    assert call.take(call.call.latency(1, float("nan"))) == []


# ---- tools and failures -----------------------------------------------------------------------


def test_a_function_call_carries_its_arguments_where_clients_look() -> None:
    call = Watched(abilities=Abilities(speech=True, tools=True))
    call.speak(1, ("Let me see.", 400))
    events = call.engine(ToolCalled(1, "call_1", "weather", '{"city":"Bonn"}'))
    added, done = events[0], events[4]
    assert added["item"]["status"] == "in_progress"
    assert done["type"] == "response.output_item.done"
    assert done["item"]["status"] == "completed"
    assert done["item"]["arguments"] == '{"city":"Bonn"}'
    assert done["output_index"] == added["output_index"] == 1
    call.end(1)
    output = call.last("response.done")["response"]["output"]
    assert [item["type"] for item in output] == ["message", "function_call"]
    assert call.engine(ToolCalled(1, "call_2", "weather", "{}")) == []
    call.finish()


def test_a_failed_engine_ends_the_call(call: Watched) -> None:
    call.speak(1, ("One", 300))
    call.engine(Failed(EngineError("the worker died")))
    assert call.last("response.done")["response"]["status"] == "failed"
    assert call.error() == {
        "type": "server_error",
        "message": "the worker died",
        "code": "engine_error",
    }
    assert call.actions == [CloseCall("engine_error")]


def test_a_foreign_exception_tells_the_client_nothing(call: Watched) -> None:
    call.engine(Failed(KeyError("secret path")))
    assert "secret" not in call.error()["message"]
    call.take(call.call.failed(CapacityError("full", retry_after_s=1)))
    assert call.error()["code"] == "no_capacity"


def test_a_refused_command_names_the_clients_event(call: Watched) -> None:
    content = [{"type": "input_text", "text": "Hi"}]
    item = {"type": "message", "role": "user", "content": content}
    call.send("conversation.item.create", item=item, event_id="mine_1")
    (command,) = call.actions
    assert isinstance(command, AddText)
    call.take(call.call.failed(UnsupportedError("No text.", param="item"), command))
    assert call.error()["event_id"] == "mine_1"
    assert call.error()["code"] == "unsupported_by_engine"
    assert call.actions == [command]


def test_old_responses_and_items_are_forgotten() -> None:
    call = Watched(limits=Limits(max_items=3, max_responses=2))
    for turn in range(1, 7):
        call.spoken(turn, ("word", 100))
        call.take(call.call.playout_drained(turn))
    first = next(e for e in call.events if e["type"] == "response.output_item.added")
    call.send("conversation.item.retrieve", item_id=first["item"]["id"])
    assert call.error()["code"] == "item_retrieve_invalid_item_id"
    assert call.heard() == "word"
    assert call.take(call.call.playout_started(1)) == []


def test_a_long_turn_keeps_all_its_words() -> None:
    call = Watched(limits=Limits(max_pieces=4))
    call.start(1)
    call.sound(1, 10)
    for number in range(9):
        call.text(1, str(number))
    call.take(call.call.playout_started(1))
    call.end(1)
    assert call.last("response.output_audio_transcript.done")["transcript"] == "012345678"
    call.finish()


def test_two_calls_share_nothing() -> None:
    calls = [RealtimeCall("rtc", SessionSettings(model="m"), Abilities()) for _ in range(2)]
    calls[0].engine(TurnStarted(1))
    session_ids = {str(call.session["id"]) for call in calls}
    assert len(session_ids) == 2
    assert len(calls[1].engine(TurnStarted(1)).events) == 1
