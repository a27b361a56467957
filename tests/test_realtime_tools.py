"""Functions: offered by the client, called by the model, answered."""

from typing import Any

import pytest

from agent.commands import AddText, AddToolResult, UpdateSettings
from agent.errors import RequestError, UnsupportedError
from agent.realtime import Limits, parse_session, session_object
from agent.types import Abilities, SessionSettings, Tool, ToolCalled
from tests.rig.realtime_order import AUDIO_CHAIN, TOOL_CHAIN
from tests.rig.realtime_watch import Watched, kinds

ABLE = Abilities(speech=True, tools=True, typed_text=True)
BASE = SessionSettings(model="echo")
WEATHER: dict[str, object] = {
    "type": "function",
    "name": "weather",
    "description": "Tells the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
SCHEMA = '{"type":"object","properties":{"city":{"type":"string"}}}'
ASIDE = ["response.created", *TOOL_CHAIN, "response.done"]


def parsed(document: object, abilities: Abilities = ABLE) -> SessionSettings:
    """The settings after `document`."""
    return parse_session(document, BASE, abilities)


def offered(*tools: object, choice: object = None) -> dict[str, object]:
    """A session that offers them."""
    return {"tools": list(tools), "tool_choice": choice}


def result(call_id: str, **fields: object) -> dict[str, object]:
    """The item that a client puts in when its function has returned."""
    return {"type": "function_call_output", "call_id": call_id, "output": "rain"} | fields


# ---- offering ---------------------------------------------------------------------------------


def test_functions_are_offered_and_told_back_as_they_came() -> None:
    settings = parsed(offered(WEATHER, {"name": "stop"}))
    assert settings.tools == (Tool("weather", "Tells the weather.", SCHEMA), Tool("stop"))
    told = session_object(settings, ABLE, "sess_1")
    assert told["tools"] == [WEATHER, {"type": "function", "name": "stop", "parameters": {}}]
    assert parse_session(told, settings, ABLE) == settings


@pytest.mark.parametrize(
    ("choice", "kept"),
    [
        ("auto", "auto"),
        ("none", "none"),
        ("required", "required"),
        ({"type": "function", "name": "weather"}, "weather"),
    ],
)
def test_who_chooses_is_kept_and_told(choice: object, kept: str) -> None:
    settings = parsed(offered(WEATHER, choice=choice))
    assert settings.tool_choice == kept
    assert session_object(settings, ABLE, "sess_1")["tool_choice"] == choice


def test_a_choice_goes_with_its_function() -> None:
    named = parsed(offered(WEATHER, choice={"type": "function", "name": "weather"}))
    assert parse_session({"tools": [{"name": "f"}]}, named, ABLE).tool_choice == "auto"
    call = Watched(abilities=ABLE)
    call.send("session.update", session={"tools": [WEATHER]})
    choice = {"type": "function", "name": "weather"}
    call.send("session.update", session={"tool_choice": choice})
    first = call.actions[0]
    assert isinstance(first, UpdateSettings)
    call.take(call.call.failed(UnsupportedError("no such function"), first))
    assert (call.call.settings.tools, call.call.settings.tool_choice) == ((), "auto")


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ([{"type": "function"}], "tools[0].name"),
        ([{"name": ""}], "tools[0].name"),
        ([{"name": "two words"}], "tools[0].name"),
        ([{"name": "x" * 65}], "tools[0].name"),
        ([{"name": "auto"}], "tools[0].name"),
        ([WEATHER, {"name": "f"}, WEATHER], "tools[2].name"),
        ([{"name": "f", "description": 5}], "tools[0].description"),
        ([{"name": "f", "parameters": "{}"}], "tools[0].parameters"),
        ([{"name": "f", "parameters": [1]}], "tools[0].parameters"),
        ([{"name": "f", "parameters": {"x": "y" * 40_000}}], "tools[0].parameters"),
        ([{"name": f"f{n}", "description": "x" * 30_000} for n in range(5)], "tools"),
        ([{"name": f"f{n}"} for n in range(129)], "tools"),
        (["weather"], "tools[0]"),
        ({}, "tools"),
    ],
)
def test_a_function_that_cannot_be_one_is_named(tools: object, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        parsed({"tools": tools})
    assert caught.value.param == f"session.{param}"


@pytest.mark.parametrize(
    ("document", "param"),
    [
        (offered({"type": "mcp", "server_label": "docs"}), "tools[0]"),
        (offered(WEATHER, {"type": "mcp"}), "tools[1]"),
        (offered({"type": "web_search"}), "tools[0].type"),
        (offered(choice={"type": "mcp", "server_label": "docs"}), "tool_choice.type"),
    ],
)
def test_other_kinds_of_tools_are_told_to_be_unsupported(document: object, param: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        parsed(document)
    assert caught.value.param == f"session.{param}"
    assert caught.value.code == "unsupported_by_engine"


@pytest.mark.parametrize(
    ("choice", "param"),
    [
        ("always", "tool_choice"),
        (5, "tool_choice"),
        ({"type": "function"}, "tool_choice.name"),
        ({"type": "function", "name": "nobody"}, "tool_choice.name"),
    ],
)
def test_a_choice_that_cannot_be_is_named(choice: object, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        parsed(offered(WEATHER, choice=choice))
    assert caught.value.param == f"session.{param}"


def test_an_engine_that_calls_nothing_takes_no_functions() -> None:
    mute = Abilities(speech=True)
    assert parsed(offered(), mute) == parsed({"tool_choice": "auto"}, mute) == BASE
    assert "tools" not in session_object(BASE, mute, "sess_1")["voice_agent"]  # type: ignore[operator]
    for document, param in (
        (offered(WEATHER), "session.tools"),
        ({"tool_choice": "required"}, "session.tool_choice"),
    ):
        with pytest.raises(UnsupportedError) as caught:
            parsed(document, mute)
        assert caught.value.param == param


def test_functions_may_be_called_beside_the_conversation_where_somebody_can() -> None:
    beside = Abilities(speech=True, side_tools=True)
    side = {"voice_agent": {"tools": "side"}}
    settings = parsed(offered(WEATHER) | side, beside)
    assert (settings.tool_channel, len(settings.tools)) == ("side", 1)
    with pytest.raises(UnsupportedError) as caught:
        parsed(offered(WEATHER), beside)
    assert caught.value.param == "session.tools"
    with pytest.raises(UnsupportedError) as caught:
        parsed(side, ABLE)
    assert caught.value.param == "session.voice_agent.tools"


# ---- calling ----------------------------------------------------------------------------------


def output_of(call: Watched) -> list[dict[str, Any]]:
    """The items of the newest response that is done."""
    output: list[dict[str, Any]] = call.last("response.done")["response"]["output"]
    return output


def test_a_turn_may_call_before_it_speaks() -> None:
    call = Watched(abilities=ABLE)
    call.start(1)
    events = call.engine(ToolCalled(1, "call_1", "weather", "{}"))
    assert {event["output_index"] for event in events if "output_index" in event} == {0}
    call.text(1, "It rains.")
    call.sound(1, 500)
    assert call.last("response.content_part.added")["output_index"] == 1
    call.take(call.call.playout_started(1))
    assert kinds(call.end(1)) == AUDIO_CHAIN
    assert [item["type"] for item in output_of(call)] == ["function_call", "message"]
    call.finish()


def test_a_turn_may_call_several_functions() -> None:
    call = Watched(abilities=ABLE)
    call.start(1)
    for number in range(3):
        call.engine(ToolCalled(1, f"call_{number}", "weather", "{}"))
    call.end(1)
    assert [item["call_id"] for item in output_of(call)] == ["call_0", "call_1", "call_2"]
    call.finish()


def test_calls_beside_all_turns_are_bounded() -> None:
    call = Watched(abilities=ABLE, limits=Limits(max_waiting_calls=2))
    call.speak(1, ("Hm.", 400))
    for number in range(2):
        assert call.engine(ToolCalled(0, f"call_{number}", "weather", "{}")) == []
    (told,) = call.engine(ToolCalled(0, "call_2", "weather", "{}"))
    assert told["error"]["code"] == "too_many_function_calls"
    assert kinds(call.end(1)) == [*AUDIO_CHAIN, *ASIDE, *ASIDE]
    call.finish()


def test_a_call_beside_all_turns_waits_for_a_turn_that_waits() -> None:
    call = Watched(abilities=ABLE)
    call.start(1)
    call.sound(1, 300)
    call.end(1)
    call.start(2)
    assert call.engine(ToolCalled(0, "call_1", "weather", "{}")) == []
    started = kinds(call.take(call.call.playout_started(1)))
    assert "response.function_call_arguments.done" not in started, "turn 2 has begun"
    assert kinds(call.end(2)) == ["response.done", *ASIDE]
    call.finish()


# ---- answering --------------------------------------------------------------------------------


def test_what_a_function_returned_goes_to_the_engine() -> None:
    call = Watched(abilities=ABLE)
    call.engine(ToolCalled(0, "call_1", "weather", "{}"))
    added, _ = call.send("conversation.item.create", item=result("call_1"))
    assert added["item"]["output"] == "rain"
    assert call.actions == [AddToolResult("call_1", "rain")]


def test_a_call_of_the_past_is_told_the_engine_in_words() -> None:
    call = Watched(abilities=Abilities(speech=True, typed_text=True))
    past = {"type": "function_call", "call_id": "old", "name": "weather", "arguments": "{}"}
    added, done = call.send("conversation.item.create", item=past)
    assert added["item"] == done["item"]
    assert done["item"]["status"] == "completed"
    assert call.actions == [], "nobody is to call it again"
    added, _ = call.send("conversation.item.create", item=result("old", id="r"))
    text = "The function weather({}) was called and returned: rain"
    assert call.actions == [AddText("r", "system", text)]
    call.finish()


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"type": "function_call", "arguments": "{}"}, "item.name"),
        ({"type": "function_call", "name": "f"}, "item.arguments"),
        ({"type": "function_call", "name": "f", "arguments": {}}, "item.arguments"),
        ({"type": "function_call_output", "output": "x"}, "item.call_id"),
        ({"type": "function_call_output", "call_id": "c", "output": {}}, "item.output"),
    ],
)
def test_an_item_of_a_function_that_is_not_whole_is_refused(
    item: dict[str, object], param: str
) -> None:
    call = Watched(abilities=ABLE)
    (told,) = call.send("conversation.item.create", item=item)
    assert told["error"]["param"] == param
    assert call.actions == []
