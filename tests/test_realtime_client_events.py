"""What a client may send, and what it is told when it may not."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from agent.errors import UnsupportedError
from agent.realtime import CancelTurn, ClearPlayout, Limits, PlayoutReport
from agent.types import (
    Abilities,
    AddPicture,
    AddText,
    AddToolResult,
    ClearInput,
    CommitInput,
    DeleteItem,
    ForceListen,
    Interrupt,
    Pause,
    Respond,
    Resume,
    SessionSettings,
    Tool,
    UpdateSettings,
)
from tests.rig.realtime_watch import Watched, kinds

CLEARED = "output_audio_buffer.cleared"
TRUNCATED = "conversation.item.truncated"
CUTS = ("clear", "commit")
ABLE_TO_ALL = Abilities(speech=True, typed_text=True, pictures=True, tools=True, transcription=True)


@pytest.fixture
def call() -> Iterator[Watched]:
    """An open call; at the end the order of everything it said is checked."""
    watched = Watched()
    yield watched
    watched.finish()


def message(text: str, **fields: object) -> dict[str, object]:
    """A typed message by the user."""
    content = [{"type": "input_text", "text": text}]
    return {"type": "message", "role": "user", "content": content, **fields}


def refused(call: Watched, kind: str, **fields: object) -> tuple[str | None, str | None]:
    """Send what must be refused, with all else unchanged; returns code and param."""
    settings, items, actions = call.call.settings, len(call.events), list(call.actions)
    (told,) = call.send(kind, event_id="client_7", **fields)
    assert told["type"] == "error"
    assert told["error"]["type"] == "invalid_request_error"
    assert told["error"]["event_id"] == "client_7"
    assert (call.call.settings, len(call.events), call.actions) == (settings, items + 1, actions)
    return told["error"].get("code"), told["error"].get("param")


# ---- session.update ---------------------------------------------------------------------------


def test_the_session_is_updated_and_told_back(call: Watched) -> None:
    audio = {"input": {"turn_detection": {"type": "server_vad", "silence_duration_ms": 800}}}
    session = {"type": "realtime", "instructions": "Be brief.", "audio": audio}
    (updated,) = call.send("session.update", session=session)
    assert updated["session"]["instructions"] == "Be brief."
    assert updated["session"]["audio"]["input"]["turn_detection"]["silence_duration_ms"] == 800
    assert updated["session"]["id"] == call.events[0]["session"]["id"]
    assert call.actions == [UpdateSettings(call.call.settings)]
    assert call.call.settings.instructions == "Be brief."


def test_an_update_that_changes_nothing_is_confirmed_without_an_action(call: Watched) -> None:
    tracing = {"type": "realtime", "tracing": "auto", "from_the_future": 1}
    assert kinds(call.send("session.update", session=tracing)) == ["session.updated"]
    assert call.actions == []


def test_a_bad_field_changes_nothing_at_all(call: Watched) -> None:
    audio = {"input": {"turn_detection": {"threshold": 2}}}
    session = {"instructions": "Half of it", "audio": audio}
    told = refused(call, "session.update", session=session)
    assert told == ("invalid_value", "session.audio.input.turn_detection.threshold")
    assert refused(call, "session.update") == ("missing_required_parameter", "session")
    assert refused(call, "session.update", session=[1]) == ("invalid_type", "session")


def test_the_voice_stays_once_the_agent_has_spoken() -> None:
    call = Watched(settings=SessionSettings(model="echo", voice="anna"))
    call.send("session.update", session={"audio": {"output": {"voice": {"id": "bert"}}}})
    assert call.call.settings.voice == "bert"
    call.speak(1, ("Hi", 100))
    session = {"instructions": "x", "audio": {"output": {"voice": "carl"}}}
    told = refused(call, "session.update", session=session)
    assert told == ("cannot_update_voice", "session.audio.output.voice")
    session["audio"] = {"output": {"voice": "bert"}}
    assert kinds(call.send("session.update", session=session)) == ["session.updated"]


# ---- the input buffer -------------------------------------------------------------------------


def test_audio_by_message_is_refused(call: Watched) -> None:
    told = refused(call, "input_audio_buffer.append", audio="AAAA")
    assert told == ("unsupported_over_webrtc", "type")


def test_the_client_commits_where_no_detector_does(call: Watched) -> None:
    code, _ = refused(call, "input_audio_buffer.commit")
    assert code == "input_audio_buffer_commit_empty"
    call.send("session.update", session={"audio": {"input": {"turn_detection": None}}})
    events = call.send("input_audio_buffer.commit")
    expected = ["input_audio_buffer.committed", "conversation.item.added"]
    assert kinds(events) == [*expected, "conversation.item.done"]
    assert call.actions[-1] == CommitInput(events[0]["item_id"])
    assert call.take(call.call.speech_started(16_000)) == []


def test_what_is_committed_or_cleared_ends_where_the_microphone_stood(call: Watched) -> None:
    assert kinds(call.send("input_audio_buffer.clear")) == ["input_audio_buffer.cleared"]
    assert call.actions == [], "a detector commits what there is"
    call.send("session.update", session={"audio": {"input": {"turn_detection": None}}})
    clear, commit = (json.dumps({"type": f"input_audio_buffer.{what}"}) for what in CUTS)
    assert kinds(call.take(call.call.receive(clear, 17_440))) == ["input_audio_buffer.cleared"]
    assert call.actions[-1] == ClearInput(17_440)
    committed, *_ = call.take(call.call.receive(commit, 20_000))
    assert call.actions[-1] == CommitInput(committed["item_id"], 20_000)


# ---- items ------------------------------------------------------------------------------------


def test_typed_text_joins_the_conversation(call: Watched) -> None:
    added, done = call.send("conversation.item.create", item=message("Hello"))
    assert added["type"] == "conversation.item.added"
    assert done["type"] == "conversation.item.done"
    assert added["item"]["content"] == [{"type": "input_text", "text": "Hello"}]
    assert call.actions == [AddText(added["item"]["id"], "user", "Hello")]


def test_items_stand_where_the_client_puts_them(call: Watched) -> None:
    placed = []
    for item_id, after in (("a", None), ("b", None), ("c", "a"), ("d", "root")):
        item = message(item_id, id=item_id)
        added, done = call.send("conversation.item.create", item=item, previous_item_id=after)
        assert added["previous_item_id"] == done["previous_item_id"]
        placed.append((added["item"]["id"], added["previous_item_id"]))
    assert placed == [("a", None), ("b", "a"), ("c", "a"), ("d", None)]
    later = call.send("conversation.item.create", item=message("e"))
    assert later[0]["previous_item_id"] == "b"


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({}, "missing_required_parameter", "item.type"),
        ({"item": 3}, "invalid_type", "item"),
        ({"item": message("x", id="root")}, "invalid_value", "item.id"),
        ({"item": message("x", id="taken")}, "duplicate_item_id", "item.id"),
        ({"item": message("x", id="i" * 65)}, "string_above_max_length", "item.id"),
        ({"item": message("x", role="pirate")}, "invalid_value", "item.role"),
        ({"item": message("x", content=[])}, "missing_required_parameter", "item.content"),
        ({"item": message("x", content=["x"])}, "invalid_type", "item.content[0]"),
        ({"item": message("x" * 40_000)}, "string_above_max_length", "item.content[0].text"),
        (
            {"item": message("x"), "previous_item_id": "nobody"},
            "item_not_found",
            "previous_item_id",
        ),
        ({"item": {"type": "mcp_approval_response"}}, "unsupported_by_engine", "item.type"),
        (
            {"item": {"type": "function_call_output", "call_id": "c", "output": "o"}},
            "unsupported_by_engine",
            "item.type",
        ),
        (
            {"item": message("", content=[{"type": "input_audio", "audio": "AA"}])},
            "unsupported_by_engine",
            "item.content[0].type",
        ),
        (
            {"item": message("", content=[{"type": "input_image", "image_url": "data:,"}])},
            "unsupported_by_engine",
            "item.content[0].type",
        ),
        (
            {"item": message("", content=[{"type": "output_text", "text": "I am you"}])},
            "invalid_value",
            "item.content[0].type",
        ),
    ],
)
def test_an_item_that_cannot_be_is_refused(
    call: Watched, fields: dict[str, Any], code: str, param: str
) -> None:
    call.send("conversation.item.create", item=message("first", id="taken"))
    assert refused(call, "conversation.item.create", **fields) == (code, param)


def test_an_engine_without_typed_text_says_so() -> None:
    call = Watched(abilities=Abilities(speech=True))
    told = refused(call, "conversation.item.create", item=message("Hi"))
    assert told == ("unsupported_by_engine", "item.content[0].type")


def picture(url: str = "data:image/png;base64,iVBORw0KGgo=") -> dict[str, object]:
    return {"type": "input_image", "image_url": url}


def test_pictures_go_to_the_engine_before_the_words_that_came_with_them() -> None:
    call = Watched(abilities=ABLE_TO_ALL)
    words = {"type": "input_text", "text": "What is this?"}
    item = {"type": "message", "id": "mine", "role": "user", "content": [words, picture()]}
    added, _ = call.send("conversation.item.create", item=item)
    assert added["item"]["content"] == [words, {"type": "input_image"}]
    file = AddPicture("mine", b"\x89PNG\r\n\x1a\n")
    assert call.actions == [file, AddText("mine", "user", "What is this?")]
    call.send("conversation.item.create", item={**item, "id": "next", "content": [picture()]})
    assert call.actions[2:] == [replace(file, item_id="next")]


@pytest.mark.parametrize(
    ("part", "role", "told"),
    [
        (picture("https://example.org/a.png"), "user", ("invalid_value", "image_url")),
        (picture("data:image/png;base64,not base64"), "user", ("invalid_value", "image_url")),
        (picture("data:image/png,raw"), "user", ("invalid_value", "image_url")),
        (picture("data:text/plain;base64,aGk="), "user", ("invalid_value", "image_url")),
        ({"type": "input_image"}, "user", ("missing_required_parameter", "image_url")),
        (picture("data:image/png;base64,"), "user", ("invalid_value", "image_url")),
        (picture(), "system", ("invalid_value", "type")),
        (picture() | {"detail": "huge"}, "user", ("invalid_value", "detail")),
    ],
)
def test_a_picture_that_is_none_is_refused(
    part: dict[str, object], role: str, told: tuple[str, str]
) -> None:
    call = Watched(abilities=ABLE_TO_ALL)
    item = {"type": "message", "role": role, "content": [part]}
    code, param = refused(call, "conversation.item.create", item=item)
    assert (code, param) == (told[0], f"item.content[0].{told[1]}")
    assert call.actions == []


def test_a_functions_result_goes_to_the_engine() -> None:
    call = Watched(abilities=ABLE_TO_ALL)
    item = {"type": "function_call_output", "call_id": "call_1", "output": "22 degrees"}
    added, _ = call.send("conversation.item.create", item=item)
    assert added["item"]["output"] == "22 degrees"
    assert call.actions == [AddToolResult("call_1", "22 degrees")]


def test_items_are_deleted_once(call: Watched) -> None:
    call.send("conversation.item.create", item=message("Hi", id="mine"))
    assert kinds(call.send("conversation.item.delete", item_id="mine")) == [
        "conversation.item.deleted"
    ]
    assert call.actions[-1] == DeleteItem("mine")
    for kind in ("conversation.item.delete", "conversation.item.retrieve"):
        assert refused(call, kind, item_id="mine") == ("item_not_found", "item_id")
        assert refused(call, kind) == ("missing_required_parameter", "item_id")


@pytest.mark.parametrize(
    ("asked", "answered", "words"),
    [
        (0, 0, ""),
        (-5, 0, ""),
        (400, 400, "One"),
        (600.7, 600, "One"),
        (999, 999, "One"),
        (10**9, 1000, "One two"),
    ],
)
def test_truncation_is_clamped_never_refused(
    call: Watched, asked: float, answered: int, words: str
) -> None:
    call.spoken(1, ("One ", 500), ("two", 500))
    item_id = call.last("response.output_item.added")["item"]["id"]
    truncate = {"item_id": item_id, "content_index": 0, "audio_end_ms": asked}
    (truncated,) = call.send(TRUNCATED.removesuffix("d"), **truncate)
    assert (truncated["type"], truncated["audio_end_ms"]) == (TRUNCATED, answered)
    (retrieved,) = call.send("conversation.item.retrieve", item_id=item_id)
    assert retrieved["item"]["content"] == [{"type": "output_audio", "transcript": words}]
    (again,) = call.send(TRUNCATED.removesuffix("d"), **(truncate | {"audio_end_ms": 5000}))
    assert again["audio_end_ms"] == answered


def truncate(call: Watched, end_ms: float, item_id: str | None = None) -> list[object]:
    """The client cuts the agent's newest item; what is then to be done."""
    call.actions.clear()
    item_id = item_id or call.last("response.output_item.added")["item"]["id"]
    where = {"item_id": item_id, "content_index": 0, "audio_end_ms": end_ms}
    call.send("conversation.item.truncate", **where)
    return [*call.actions]


def test_what_a_client_truncates_the_engine_forgets(call: Watched) -> None:
    call.spoken(1, ("One ", 500), ("two", 500))
    assert truncate(call, 10**9) == [], "all of it was heard: nothing is taken away"
    assert truncate(call, 700) == [Interrupt(1, 700)]
    assert truncate(call, 300.9) == [Interrupt(1, 300)]
    assert truncate(call, 300) == truncate(call, 900) == [], "it never grows back"
    assert truncate(call, -20) == [Interrupt(1, 0)]


def test_truncating_a_turn_that_still_grows_stops_it(call: Watched) -> None:
    call.speak(1, ("One ", 500), ("two", 500))
    assert truncate(call, 10**9) == [Interrupt(1, 1000)]
    assert kinds(call.end(1, "interrupted")) == ["response.done"]


def test_a_client_corrects_our_own_cut_downwards_only(call: Watched) -> None:
    call.spoken(1, ("One ", 500), ("two", 500))
    call.take(call.call.playout_cleared(1, 600, "turn_detected"))
    assert truncate(call, 800) == []
    assert call.last(TRUNCATED)["audio_end_ms"] == 600
    assert truncate(call, 450) == [Interrupt(1, 450)]


def test_of_a_turn_that_was_answered_only_the_transcript_is_cut(call: Watched) -> None:
    call.spoken(1, ("One ", 500), ("two", 500))
    first = call.last("response.output_item.added")["item"]["id"]
    call.take(call.call.playout_drained(1))
    call.spoken(2, ("Three", 500))
    assert truncate(call, 500, first) == []
    (retrieved,) = call.send("conversation.item.retrieve", item_id=first)
    assert retrieved["item"]["content"][0]["transcript"] == "One"


def test_only_what_was_said_aloud_can_be_truncated(call: Watched) -> None:
    call.send("conversation.item.create", item=message("Hi", id="mine"))
    kind = "conversation.item.truncate"
    where = {"item_id": "mine", "content_index": 0, "audio_end_ms": 5}
    assert refused(call, kind, **where) == ("invalid_value", "item_id")
    assert refused(call, kind, **(where | {"item_id": "x"})) == ("item_not_found", "item_id")
    assert refused(call, kind, **(where | {"content_index": 1}))[1] == "content_index"
    assert refused(call, kind, **(where | {"audio_end_ms": "5"}))[1] == "audio_end_ms"
    assert refused(call, kind, **(where | {"audio_end_ms": True}))[1] == "audio_end_ms"


# ---- responses --------------------------------------------------------------------------------


def test_the_client_asks_for_an_answer(call: Watched) -> None:
    assert call.send("response.create") == []
    response = {"instructions": "Greet.", "metadata": {"topic": "hello"}, "conversation": "auto"}
    assert call.send("response.create", response=response) == []
    assert call.actions == [Respond(None), Respond("Greet.")]
    call.speak(1, ("Hi", 100))
    assert call.last("response.created")["response"]["metadata"] == {"topic": "hello"}
    code, _ = refused(call, "response.create")
    assert code == "conversation_already_has_active_response"
    call.end(1)
    assert call.send("response.create") == []
    call.start(2)
    assert "metadata" not in call.last("response.created")["response"]


@pytest.mark.parametrize(
    ("response", "param"),
    [
        ({"conversation": "none"}, "response.conversation"),
        ({"input": []}, "response.input"),
        ({"prompt": {"id": "p"}}, "response.prompt"),
        ({"tools": [{"type": "function", "name": "f"}]}, "response.tools"),
        ({"tools": [{"type": "mcp", "server_label": "x"}]}, "response.tools[0]"),
        ({"tool_choice": "required"}, "response.tool_choice"),
        ({"audio": {"output": {"voice": "other"}}}, "response.audio.output.voice"),
        ({"audio": {"output": {"format": {"type": "audio/pcmu"}}}}, "response.audio.output.format"),
    ],
)
def test_an_override_that_cannot_be_served_is_named(
    call: Watched, response: dict[str, object], param: str
) -> None:
    told = refused(call, "response.create", response=response)
    assert told == ("unsupported_by_engine", param)


@pytest.mark.parametrize(
    ("response", "param"),
    [
        ([], "response"),
        ({"metadata": {"a" * 65: "x"}}, "response.metadata"),
        ({"metadata": {"a": 1}}, "response.metadata.a"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "response.metadata"),
        ({"max_output_tokens": 0}, "response.max_output_tokens"),
        ({"output_modalities": []}, "response.output_modalities"),
        ({"parallel_tool_calls": "yes"}, "response.parallel_tool_calls"),
        ({"reasoning": {"effort": 3}}, "response.reasoning.effort"),
    ],
)
def test_an_override_that_makes_no_sense_is_named(
    call: Watched, response: object, param: str
) -> None:
    assert refused(call, "response.create", response=response)[1] == param


def test_a_response_is_as_it_was_asked_for_and_the_next_as_the_session_says() -> None:
    call = Watched(abilities=ABLE_TO_ALL)
    tool = {"type": "function", "name": "f", "description": "Does it.", "parameters": {"a": 1}}
    response = {
        "instructions": "Write.",
        "output_modalities": ["text"],
        "max_output_tokens": 20,
        "tools": [tool],
        "tool_choice": {"type": "function", "name": "f"},
    }
    call.send("response.create", response=response)
    tools = (Tool("f", "Does it.", '{"a":1}'),)
    assert call.actions == [Respond("Write.", ("text",), 20, tools, "f")]
    call.start(1)
    told = call.last("response.created")["response"]
    assert (told["output_modalities"], told["max_output_tokens"]) == (["text"], 20)
    call.text(1, "Done")
    call.end(1, "max_tokens")
    details = call.last("response.done")["response"]["status_details"]
    assert details == {"type": "incomplete", "reason": "max_output_tokens"}
    call.start(2)
    told = call.last("response.created")["response"]
    assert (told["output_modalities"], told["max_output_tokens"]) == (["audio"], "inf")


def test_a_response_may_be_longer_than_the_session_allows() -> None:
    call = Watched(settings=SessionSettings(model="echo", max_output_tokens=5))
    call.send("response.create", response={"max_output_tokens": "inf"})
    assert call.actions == [Respond(max_output_tokens=65_536)]


def test_what_was_asked_of_a_refused_response_is_not_told_of_the_next(call: Watched) -> None:
    call.send("response.create", response={"metadata": {"a": "b"}, "max_output_tokens": 9})
    (command,) = call.actions
    call.take(call.call.failed(UnsupportedError("no"), command))  # type: ignore[arg-type]
    call.start(1)
    told = call.last("response.created")["response"]
    assert "metadata" not in told and told["max_output_tokens"] == "inf"


def test_an_engine_without_a_voice_answers_in_text_whatever_a_response_asks_for() -> None:
    settings = SessionSettings(model="echo", output_modalities=("text",))
    call = Watched(abilities=Abilities(typed_text=True), settings=settings)
    call.send("response.create", response={"output_modalities": ["audio"]})
    assert call.actions == [Respond(None)]


def test_cancelling_ends_the_response_at_once(call: Watched) -> None:
    code, _ = refused(call, "response.cancel")
    assert code == "response_cancel_not_active"
    call.speak(1, ("One ", 500), ("two", 500))
    assert refused(call, "response.cancel", response_id="resp_other")[1] == "response_id"
    assert kinds(call.send("response.cancel")) == ["response.done"]
    done = call.last("response.done")["response"]
    assert done["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
    assert call.actions == [CancelTurn(1)]
    assert call.text(1, "late") == []
    assert kinds(call.take(call.call.playout_drained(1))) == ["output_audio_buffer.stopped"]


def test_interrupting_as_stock_clients_do(call: Watched) -> None:
    """`interrupt()` of the agents SDK: cancel, then clear."""
    call.speak(1, ("One ", 500), ("two", 500))
    call.send("response.cancel", response_id=call.last("response.created")["response"]["id"])
    assert call.send("output_audio_buffer.clear") == []
    assert call.actions == [CancelTurn(1), ClearPlayout()]
    cleared = call.take(call.call.playout_cleared(1, 450, "client_cancelled"))
    assert kinds(cleared) == [CLEARED, TRUNCATED]
    item_id = call.last(TRUNCATED)["item_id"]
    (retrieved,) = call.send("conversation.item.retrieve", item_id=item_id)
    assert retrieved["item"]["content"][0]["transcript"] == "One"


def test_clearing_alone_stops_the_response_too(call: Watched) -> None:
    call.speak(1, ("One ", 500))
    assert call.send("output_audio_buffer.clear") == []
    assert call.actions == [CancelTurn(1), ClearPlayout()]
    cleared = call.take(call.call.playout_cleared(1, 300, "client_cancelled"))
    assert kinds(cleared) == [CLEARED, "response.done", TRUNCATED]
    details = call.last("response.done")["response"]["status_details"]
    assert details["reason"] == "client_cancelled"


def test_clearing_silence_is_no_error(call: Watched) -> None:
    assert call.send("output_audio_buffer.clear") == []
    call.spoken(1, ("One", 100))
    call.take(call.call.playout_drained(1))
    assert kinds(call.send("output_audio_buffer.clear")) == [CLEARED]
    assert call.actions == []


# ---- our extension ----------------------------------------------------------------------------


def test_our_own_page_pauses_and_hushes(call: Watched) -> None:
    call.send("voice_agent.pause")
    call.send("voice_agent.resume")
    call.send("voice_agent.listen", on=True)
    assert call.actions == [Pause(), Resume(), ForceListen(True)]
    assert refused(call, "voice_agent.listen", on="yes") == ("invalid_type", "on")


def test_the_page_tells_what_it_plays(call: Watched) -> None:
    assert call.send("voice_agent.playout", rtp_timestamp=123456, at_ms=10.5) == []
    assert call.actions == [PlayoutReport(123456, 10.5)]


def test_playout_reports_do_not_make_a_refused_command_nameless(call: Watched) -> None:
    call.send("voice_agent.listen", on=True, event_id="mine")
    (command,) = call.actions
    for number in range(100):
        call.send("voice_agent.playout", rtp_timestamp=number, at_ms=number, event_id="other")
    refusal = call.call.failed(UnsupportedError("not here"), command)  # type: ignore[arg-type]
    assert call.take(refusal)[0]["error"]["event_id"] == "mine"


@pytest.mark.parametrize(
    ("rtp_timestamp", "at_ms", "read"),
    [
        ("4294967295", "0", PlayoutReport(2**32 - 1, 0.0)),
        ("4294967297.9", "-5", PlayoutReport(1, -5.0)),
        ("-1", "1e15", PlayoutReport(2**32 - 1, 1e15)),
        ("1e300", "1", None),
        ("1", "-1e300", None),
        ("1e999", "1", None),
        ("1", "9" * 400, None),
        ("9" * 400, "1", None),
    ],
)
def test_playout_in_wild_numbers_is_passed_over(
    call: Watched, rtp_timestamp: str, at_ms: str, read: PlayoutReport | None
) -> None:
    fields = f'"rtp_timestamp":{rtp_timestamp},"at_ms":{at_ms},"n":[1e999]'
    assert call.take(call.call.receive(f'{{"type":"voice_agent.playout",{fields}}}')) == []
    assert call.actions == ([] if read is None else [read])


@pytest.mark.parametrize("field", ["rtp_timestamp", "at_ms"])
@pytest.mark.parametrize("wrong", ["1", True, [], {}, None, "\ud800"])
def test_playout_that_is_no_number_is_passed_over(call: Watched, field: str, wrong: object) -> None:
    fields = {"rtp_timestamp": 1, "at_ms": 1} | {field: wrong}
    assert call.send("voice_agent.playout", **fields) == []
    assert call.actions == []


@pytest.mark.parametrize("fields", [{}, {"at_ms": 1}, {"rtp_timestamp": 1}])
def test_playout_with_nothing_in_it_is_passed_over(call: Watched, fields: dict[str, int]) -> None:
    assert call.send("voice_agent.playout", **fields) == []
    assert call.actions == []


# ---- messages that are none -------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        b"\x00\x01",
        b'{"type":"session.update"}',
        "",
        "hello",
        "[]",
        "null",
        '{"type":"session.update","session":{"temperature":NaN}}',
        '{"type":"session.update","session":{"temperature":1e999}}',
        '{"type":"session.update","session":{"n":' + "9" * 30 + "}}",
        '{"type":"session.update","session":{"n":' + "9" * 9999 + "}}",
        '{"type":"session.update","session":{"instructions":"\\ud800"}}',
        '{"type":"session.update","session":{"\\udfff":1}}',
        '{"type":"session.update","session":' + '{"a":' * 90 + "1" + "}" * 90 + "}",
        "[" * 100_000,
        '{"a":' * 50_000,
    ],
)
def test_what_is_no_event_is_answered_and_survived(call: Watched, text: str | bytes) -> None:
    (told,) = call.take(call.call.receive(text))
    assert told["error"]["code"] == "invalid_json"
    assert call.actions == []
    assert kinds(call.send("session.update", session={})) == ["session.updated"]


def test_an_event_too_large_is_not_read() -> None:
    call = Watched(limits=Limits(max_message_bytes=100))
    call.send("session.update", session={"instructions": "é" * 200})
    assert call.error()["code"] == "message_too_large"
    exact = json.dumps({"type": "voice_agent.pause", "pad": ""})
    padded = exact.replace('""', '"' + "é" * ((100 - len(exact)) // 2) + '"')
    assert call.take(call.call.receive(padded)) == []
    assert call.actions == [Pause()]


@pytest.mark.parametrize(
    ("fields", "param"), [({}, "type"), ({"type": 3}, "type"), ({"type": "response.sing"}, "type")]
)
def test_an_unknown_event_is_named(call: Watched, fields: dict[str, object], param: str) -> None:
    (told,) = call.take(call.call.receive(json.dumps(fields | {"event_id": "e1"})))
    assert told["error"]["param"] == param
    assert told["error"]["event_id"] == "e1"


@pytest.mark.parametrize("event_id", [5, None, "x" * 600, "\ud800", ["e"]])
def test_only_a_usable_event_id_is_repeated(call: Watched, event_id: object) -> None:
    (told,) = call.take(call.call.receive(json.dumps({"type": "nope", "event_id": event_id})))
    assert "event_id" not in told["error"]
