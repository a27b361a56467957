"""Functions decided on beside the conversation: what is asked, what comes of it and what not."""

import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import numpy as np
import pytest

from agent.chat_types import ChatSound, ChatToolCall
from agent.commands import AddText, AddToolResult, Respond, UpdateSettings
from agent.types import SpeechEnded, SpeechStarted
from tests.rig.attended_call import (
    CHATTING,
    MONDAY,
    SIDE,
    AttendedCall,
    calls_begun,
    decided,
    function,
    opening_hours,
    parts,
)
from tests.rig.call_parts import voice

pytestmark = pytest.mark.usefixtures("nothing_left_behind")
Begin = Callable[..., Awaitable[AttendedCall]]


@pytest.fixture
async def begin() -> AsyncIterator[Begin]:
    async with calls_begun(abilities=CHATTING, settings=SIDE) as begun:
        yield begun


# ---- what is asked ----------------------------------------------------------------------------


async def test_what_the_user_said_last_is_shown_as_sound(begin: Begin) -> None:
    call = await begin(opening_hours)
    await call.utter(1000, level=0.1)
    (asked,) = call.chats.asked
    request = asked.request
    assert (request.greedy, request.tool_choice, request.thinking) == (True, "auto", False)
    assert request.max_tokens == 256
    assert [tool.name for tool in request.tools] == ["opening_hours"]
    system, user = request.messages
    assert (system.role, user.role) == ("system", "user")
    (sound,) = user.content
    assert isinstance(sound, ChatSound)
    assert abs(len(sound.samples) - 16_000) <= 160
    assert float(np.abs(sound.samples[160:-160]).min()) > 0.09, "none of the silence around it"
    await asked.say("no")
    assert (decided(call, "none"), call.tool_items()) == (1, [])
    assert call.counted("beside_seconds_count", work="decision") == 1


async def test_what_was_said_before_is_shown_in_its_order(begin: Begin) -> None:
    call = await begin(opening_hours)
    await call.types("I want to come by.")
    await call.speak(1, ("Gladly. When", voice(200)))
    await call.play(100)
    await call.hear(SpeechStarted(0))
    await call.hear(SpeechEnded(1600))
    await call.listen(1000)
    await call.chats.asked[0].say("no")
    await call.utter(1000)
    messages = call.chats.asked[1].request.messages[1:]
    assert [message.role for message in messages] == ["user", "assistant", "user"]
    assert parts(messages[0]) == ["I want to come by."]
    assert len(parts(messages[2])) == 2, "what nobody has written is heard again"


async def test_no_more_sound_than_half_a_minute_is_shown(begin: Begin) -> None:
    call = await begin(opening_hours)
    for seconds in (10, 15, 12):
        await call.utter(seconds * 1000)
        await call.chats.asked[-1].say("no")
    (user,) = call.chats.asked[-1].request.messages[1:]
    shown = [length for length in parts(user) if isinstance(length, int)]
    assert [round(length / 16_000) for length in shown] == [15, 12]


async def test_what_was_called_is_shown_with_what_came_of_it(begin: Begin) -> None:
    call = await begin(opening_hours)
    await call.utter()
    await call.chats.asked[0].answer(MONDAY)
    await call.writes(1, "We open at nine.")
    await call.utter()
    messages = call.chats.asked[1].request.messages[1:]
    assert [message.role for message in messages] == [
        "user",
        "assistant",
        "tool",
        "assistant",
        "user",
    ]
    (made,) = messages[1].calls
    assert (made.name, made.arguments) == ("opening_hours", '{"day": "Monday"}')
    assert parts(messages[2]) == ["from nine on Monday"]
    assert parts(messages[3]) == ["We open at nine."]


async def test_typed_words_are_decided_on_when_an_answer_is_asked_for(begin: Begin) -> None:
    call = await begin(opening_hours)
    await call.types("When do you open on Monday?")
    assert call.chats.asked == []
    await call.client("response.create")
    (asked,) = call.chats.asked
    assert parts(asked.request.messages[-1]) == ["When do you open on Monday?"]
    await asked.answer(MONDAY)
    assert len(call.chats.asked) == 1, "the request to speak of it is no occasion"


async def test_a_recording_that_the_client_sends_is_heard_too(begin: Begin) -> None:
    call = await begin(opening_hours, abilities=replace(CHATTING, recordings=True))
    pcm = base64.b64encode(np.full(24_000, 5000, "<i2").tobytes()).decode()
    item = {
        "type": "message",
        "role": "user",
        "content": [{"type": "input_audio", "audio": pcm}],
    }
    await call.client("conversation.item.create", item=item)
    await call.client("response.create")
    (length,) = parts(call.chats.asked[0].request.messages[-1])
    assert length == pytest.approx(16_000, abs=160)


@pytest.mark.parametrize(
    ("session", "functions", "asks"),
    [
        ({"tools": []}, 0, False),
        ({"tools": [function("mine")]}, 0, True),
        ({"tools": [function("mine")], "tool_choice": "none"}, 1, False),
        ({"voice_agent": {"tools": "side"}}, 1, True),
    ],
)
async def test_nothing_is_asked_where_nothing_may_be_called(
    begin: Begin, session: dict[str, object], functions: int, asks: bool
) -> None:
    call = await begin(*[opening_hours][:functions])
    await call.update(**session)
    await call.utter()
    assert bool(call.chats.asked) == asks


async def test_a_choice_that_the_client_has_made_holds(begin: Begin) -> None:
    call = await begin(opening_hours)
    mine = {"type": "function", "name": "mine"}
    await call.update(tools=[function("mine"), function("other")], tool_choice=mine)
    await call.utter()
    request = call.chats.asked[0].request
    assert ([tool.name for tool in request.tools], request.tool_choice) == (["mine"], "mine")


# ---- what comes of it -------------------------------------------------------------------------


async def test_a_function_of_the_server_s_is_run_and_told_as_a_message(begin: Begin) -> None:
    call = await begin(opening_hours)
    await call.utter()
    await call.chats.asked[0].answer(MONDAY)
    (item,) = call.tool_items()
    assert (item["name"], item["arguments"]) == (MONDAY.name, MONDAY.arguments)
    (note,) = call.events("voice_agent.tool")
    assert (note["call_id"], note["name"]) == (item["call_id"], "opening_hours")
    assert note["decided_ms"] == pytest.approx(1000, abs=50), (
        "the rest of the second was waited for"
    )
    assert call.outputs() == [(item["call_id"], "from nine on Monday")]
    (text,) = call.commands(AddText)
    assert (text.role, text.item_id) == ("system", f"result_{item['call_id']}")
    assert text.text == (
        '[opening_hours {"day": "Monday"} was looked up: from nine on Monday] Tell the user.'
    )
    assert call.commands(AddToolResult) == []
    assert call.engine.told.index(text) < call.engine.told.index(Respond())
    assert decided(call, "called") == 1
    assert call.counted("beside_seconds_count", work="result") == 1


async def test_a_function_of_the_client_s_is_the_client_s_to_answer(begin: Begin) -> None:
    call = await begin()
    await call.update(tools=[function("mine")])
    await call.utter()
    await call.chats.asked[0].answer(ChatToolCall("chat_1", "mine", '{"a": 1}'))
    (item,) = call.tool_items()
    assert (call.outputs(), call.commands(Respond)) == ([], [])
    result = {"type": "function_call_output", "call_id": item["call_id"], "output": "yes"}
    await call.client("conversation.item.create", item=result)
    await call.client("response.create")
    (text,) = call.commands(AddText)
    assert text.text == '[mine {"a": 1} was looked up: yes] Tell the user.'
    assert call.commands(Respond) == [Respond()]
    assert call.events("error") == []


async def test_it_begins_before_the_agent_has_finished_and_is_told_behind(begin: Begin) -> None:
    began = []

    async def notes() -> str:
        began.append(True)
        return "noted"

    call = await begin(notes)
    await call.utter()
    await call.speak(1, ("One moment. ", voice(400)))
    await call.play(100)
    await call.chats.asked[0].answer(ChatToolCall("chat_1", "notes", "{}"))
    assert (began, call.tool_items(), call.outputs()) == ([True], [], [])
    await call.end_turn(1)
    await call.play(600)
    assert len(call.tool_items()) == len(call.outputs()) == 1
    assert len(call.commands(Respond)) == 1


async def test_several_calls_are_made_one_after_the_other(begin: Begin) -> None:
    call = await begin(opening_hours)
    await call.utter()
    tuesday = ChatToolCall("chat_2", "opening_hours", '{"day": "Tuesday"}')
    await call.chats.asked[0].answer(MONDAY, tuesday)
    assert [output for _, output in call.outputs()] == [
        "from nine on Monday",
        "from nine on Tuesday",
    ]


@pytest.mark.parametrize(
    "made",
    [
        ChatToolCall("chat_1", "closing_hours", "{}"),
        ChatToolCall("chat_1", "opening_hours", '{"day": '),
        ChatToolCall("chat_1", "opening_hours", "[]"),
    ],
)
async def test_calls_that_cannot_be_made_are_counted_only(begin: Begin, made: ChatToolCall) -> None:
    call = await begin(opening_hours)
    await call.utter()
    await call.chats.asked[0].answer(made)
    assert (call.tool_items(), call.outputs(), call.events("error")) == ([], [], [])
    assert decided(call, "wrong") == 1


async def test_the_engine_hears_that_somebody_else_looks_things_up(begin: Begin) -> None:
    call = await begin(opening_hours)
    assert call.opened_with.tools == ()
    assert "opening_hours (When the shop is open.)" in call.opened_with.instructions
    await call.update(instructions="Be brief.", tools=[function("mine", "Mine.")])
    told = call.commands(UpdateSettings)[-1].settings
    assert told.tools == ()
    assert told.instructions.startswith("Be brief.\n\n")
    assert "mine (Mine.); opening_hours" in told.instructions
    assert call.events("session.updated")[-1]["session"]["instructions"] == "Be brief."


async def test_what_it_hears_of_them_is_in_its_language_and_bounded(begin: Begin) -> None:
    call = await begin(opening_hours, settings=replace(SIDE, language="zh"))
    assert call.opened_with.instructions.startswith("在你说话的同时，有人替你查询：opening_hours")
    many = [function(f"f{number}", "x" * 100) for number in range(60)]
    await call.update(tools=many)
    assert len(call.commands(UpdateSettings)[-1].settings.instructions) < 2_200
    await call.update(tool_choice="none")
    assert call.commands(UpdateSettings)[-1].settings.instructions == ""
    await call.utter()
    assert call.chats.asked == []


async def test_functions_for_one_response_are_none_of_the_engine_s_either(begin: Begin) -> None:
    call = await begin(opening_hours)
    await call.client("response.create", response={"tools": [function("mine")]})
    assert call.commands(Respond) == [Respond()]
    assert call.events("error") == []
