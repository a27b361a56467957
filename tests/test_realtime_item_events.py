"""Items by the client's events: put in, placed, deleted, cut, and refused."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from agent.commands import AddPicture, AddText, AddToolResult, DeleteItem, Interrupt
from agent.types import Abilities, ToolCalled
from tests.rig.realtime_order import AUDIO_CHAIN
from tests.rig.realtime_watch import Watched, kinds, message

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
        ({"item": message("x", id="taken")}, "item_create_duplicate_item_id", "item.id"),
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
    assert call.refused("conversation.item.create", **fields) == (code, param)


def test_an_engine_without_typed_text_says_so() -> None:
    call = Watched(abilities=Abilities(speech=True))
    told = call.refused("conversation.item.create", item=message("Hi"))
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
    code, param = call.refused("conversation.item.create", item=item)
    assert (code, param) == (told[0], f"item.content[0].{told[1]}")
    assert call.actions == []


def test_a_functions_result_goes_to_the_engine() -> None:
    call = Watched(abilities=ABLE_TO_ALL)
    item = {"type": "function_call_output", "call_id": "call_1", "output": "22 degrees"}
    told = call.refused("conversation.item.create", item=item)
    assert told == ("invalid_tool_call_id", "item.call_id"), "nobody has called"
    assert call.actions == []
    call.engine(ToolCalled(0, "call_1", "weather", "{}"))
    added, _ = call.send("conversation.item.create", item=item)
    assert added["item"]["output"] == "22 degrees"
    assert call.actions == [AddToolResult("call_1", "22 degrees")]


def test_items_are_deleted_once(call: Watched) -> None:
    call.send("conversation.item.create", item=message("Hi", id="mine"))
    assert kinds(call.send("conversation.item.delete", item_id="mine")) == [
        "conversation.item.deleted"
    ]
    assert call.actions[-1] == DeleteItem("mine")
    for kind, code in (
        ("conversation.item.delete", "item_not_found"),
        # Pipecat ends at every error but for those of a few codes, of which this is one.
        ("conversation.item.retrieve", "item_retrieve_invalid_item_id"),
    ):
        assert call.refused(kind, item_id="mine") == (code, "item_id")
        assert call.refused(kind) == ("missing_required_parameter", "item_id")


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
    assert kinds(call.end(1, "interrupted")) == AUDIO_CHAIN
    details = call.last("response.done")["response"]["status_details"]
    assert details["reason"] == "client_cancelled", "the user has said nothing"


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
    assert call.refused(kind, **where) == ("invalid_value", "item_id")
    assert call.refused(kind, **(where | {"item_id": "x"})) == ("item_not_found", "item_id")
    assert call.refused(kind, **(where | {"content_index": 1}))[1] == "content_index"
    assert call.refused(kind, **(where | {"audio_end_ms": "5"}))[1] == "audio_end_ms"
    assert call.refused(kind, **(where | {"audio_end_ms": True}))[1] == "audio_end_ms"
