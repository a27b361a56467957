"""Out-of-band responses in a whole call: what the model is shown, what the client gets, what it
costs the call."""

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from agent.attendants import asides
from agent.attendants.staff import StaffRules
from agent.chat_types import (
    ChatDelta,
    ChatMessage,
    ChatPicture,
    ChatSound,
    ChatToolCall,
)
from agent.commands import Respond
from agent.errors import CapacityError, EngineError, QuotaError, RequestError
from agent.types import Failed, SpeechEnded, SpeechStarted, TextDelta, TurnEnded, TurnStarted
from tests.rig.attended_call import (
    CHATTING,
    AttendedCall,
    calls_begun,
    function,
    opening_hours,
    parts,
)
from tests.rig.call_parts import settle

pytestmark = pytest.mark.usefixtures("nothing_left_behind")
Begin = Callable[..., Awaitable[AttendedCall]]
PICTURED = replace(CHATTING, pictures=True, recordings=True)


@pytest.fixture
async def begin() -> AsyncIterator[Begin]:
    async with calls_begun(abilities=PICTURED) as begun:
        yield begun


async def ask(call: AttendedCall, **response: object) -> str:
    """Ask out of band; the id of the response."""
    usual = {"conversation": "none", "output_modalities": ["text"], "instructions": "Judge."}
    await call.client("response.create", response=usual | response)
    created: str = call.events("response.created")[-1]["response"]["id"]
    return created


def done(call: AttendedCall, response_id: str) -> dict[str, Any]:
    """The response as it ended."""
    responses = [event["response"] for event in call.events("response.done")]
    (found,) = [one for one in responses if one["id"] == response_id]
    return found


def words(response: dict[str, Any]) -> list[str]:
    items = [item for item in response["output"] if item["type"] == "message"]
    return [part["text"] for item in items for part in item["content"]]


def shown(call: AttendedCall) -> list[tuple[str, list[object]]]:
    """What the model was shown last: who says what."""
    messages: tuple[ChatMessage, ...] = call.chats.asked[-1].request.messages
    return [(message.role, parts(message)) for message in messages]


def counted(call: AttendedCall, outcome: str) -> float:
    return call.counted("beside_total", work="aside", outcome=outcome)


def reference(item_id: str) -> dict[str, str]:
    return {"type": "item_reference", "id": item_id}


# ---- answered -----------------------------------------------------------------------------------


async def test_the_model_is_asked_and_its_words_come_as_they_are_made(begin: Begin) -> None:
    call = await begin()
    await call.types("I am glad")
    response_id = await ask(call, max_output_tokens=7, metadata={"topic": "mood"})
    (asked,) = call.chats.asked
    assert shown(call) == [("system", ["Judge."]), ("user", ["I am glad"])]
    assert (asked.request.max_tokens, asked.request.tools) == (7, ())
    await asked.answer(ChatDelta("a good "), ChatDelta("mood"))
    assert [event["delta"] for event in call.events("response.output_text.delta")] == [
        "a good ",
        "mood",
    ]
    response = done(call, response_id)
    assert (response["status"], words(response)) == ("completed", ["a good mood"])
    assert response["metadata"] == {"topic": "mood"}
    assert counted(call, "answered") == 1
    assert not call.commands(Respond)


async def test_several_are_answered_beside_each_other_and_beside_the_agent(begin: Begin) -> None:
    call = await begin()
    first, second = await ask(call), await ask(call)
    one, two = call.chats.asked
    call.engine.say(TurnStarted(1), TextDelta(0, 1, "Hello"))
    await settle()
    await two.say("two")
    call.engine.say(TurnEnded(1, "completed"))
    await settle()
    await one.say("one")
    assert words(done(call, second)) == ["two"]
    assert words(done(call, first)) == ["one"]
    spoken = [event["response"] for event in call.events("response.done")]
    assert [response["status"] for response in spoken] == ["completed"] * 3


async def test_no_more_than_so_many_are_answered_at_a_time_and_the_rest_wait(begin: Begin) -> None:
    call = await begin(rules=StaffRules(max_asides=1))
    first, second = await ask(call), await ask(call)
    assert len(call.chats.asked) == 1
    await call.chats.asked[0].say("one")
    await call.chats.asked[1].say("two")
    assert [words(done(call, one)) for one in (first, second)] == [["one"], ["two"]]


async def test_functions_of_this_server_are_not_called_there(begin: Begin) -> None:
    """What one returns would have nowhere to go."""
    call = await begin(opening_hours, abilities=replace(CHATTING, tools=True))
    response_id = await ask(call, tools=[function("opening_hours")])
    (asked,) = call.chats.asked
    assert [tool.name for tool in asked.request.tools] == ["opening_hours"]
    await asked.answer(ChatToolCall("chat_1", "opening_hours", '{"day": "Monday"}'))
    (called,) = done(call, response_id)["output"]
    assert (called["type"], called["arguments"]) == ("function_call", '{"day": "Monday"}')
    assert (call.outputs(), call.counted("beside_total", work="function", outcome="done")) == (
        [],
        0,
    )
    await ask(call)
    assert call.chats.asked[-1].request.tools == (), "nor offered"


# ---- shown --------------------------------------------------------------------------------------


async def test_what_was_said_aloud_is_heard_whether_or_not_anybody_writes(begin: Begin) -> None:
    call = await begin()
    said = await call.utter(700)
    await ask(call, input=[reference(said)])
    (_, (role, (length,))) = shown(call)
    assert (role, isinstance(length, int) and abs(length - 11_200) <= 160) == ("user", True)
    await ask(call)
    assert shown(call)[1] == (role, [length]), "as part of the conversation, too"
    assert call.counted("beside_total", work="decision", outcome="late") == 0


async def test_the_end_of_an_utterance_is_waited_for(begin: Begin) -> None:
    call = await begin()
    await call.listen(200)
    await call.hear(SpeechStarted(3_200))
    await call.listen(400, level=0.1)
    await call.hear(SpeechEnded(9_600))
    item_id = call.events("input_audio_buffer.committed")[-1]["item_id"]
    await ask(call, input=[reference(item_id)])
    assert call.chats.asked == [], "its second has not ended"
    await call.listen(600)
    assert shown(call)[1] == ("user", [6_400])


async def test_ends_that_do_not_come_are_waited_for_once_however_many_are_named(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", asides.__name__)
    monkeypatch.setattr(asides, "SOUND_WAIT_S", 0.001)
    call = await begin()
    for start in range(0, 12_800, 3_200):
        await call.hear(SpeechStarted(start))
        await call.listen(100, level=0.1)
        await call.hear(SpeechEnded(start + 1_600))
        await call.listen(100)
    spoken = [event["item_id"] for event in call.events("input_audio_buffer.committed")]
    await ask(call, input=[reference(item_id) for item_id in spoken])
    while not call.chats.asked:
        await asyncio.sleep(0.001)
    assert len(spoken) == 4 and len(shown(call)) == 1 + 4
    assert [one.message for one in caplog.records] == ["an utterance has no end yet"]


async def test_pictures_and_sound_of_its_own_are_shown(begin: Begin) -> None:
    call = await begin()
    file = io.BytesIO()
    Image.fromarray(np.full((20, 30, 3), 200, np.uint8)).save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    content = [
        {"type": "input_image", "image_url": url},
        {"type": "input_audio", "audio": base64.b64encode(bytes(9_600)).decode()},
    ]
    await ask(call, input=[{"type": "message", "role": "user", "content": content}])
    while not call.chats.asked:
        await asyncio.sleep(0.001)
    _, message = call.chats.asked[0].request.messages
    picture, sound = message.content
    assert isinstance(picture, ChatPicture) and picture.rgb.shape == (20, 30, 3)
    assert isinstance(sound, ChatSound) and len(sound.samples) == 3_200


def pictured() -> list[dict[str, Any]]:
    """A message with nothing but a file of three bytes."""
    content = [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]
    return [{"type": "message", "role": "user", "content": content}]


async def test_no_picture_is_unpacked_for_one_that_waits(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unpacked, it takes a thousand times its file."""
    unpacked: list[bytes] = []

    async def read(_: object, file: bytes) -> ChatPicture:
        unpacked.append(file)
        return ChatPicture(np.zeros((1, 1, 3), np.uint8))

    monkeypatch.setattr(asides.PictureReader, "read", read)
    call = await begin(rules=StaffRules(max_asides=1))
    await ask(call)
    await ask(call, input=pictured())
    assert (len(call.chats.asked), unpacked) == (1, [])
    await call.chats.asked[0].say("one")
    assert (len(call.chats.asked), unpacked) == (2, [bytes(3)])


async def test_what_takes_too_long_to_unpack_is_given_up(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read(_: object, file: bytes) -> ChatPicture:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(asides.PictureReader, "read", read)
    call = await begin(rules=StaffRules(aside_timeout_s=0.01))
    response_id = await ask(call, input=pictured())
    while not counted(call, "timeout"):
        await call.listen(10)
    assert done(call, response_id)["status_details"]["error"]["code"] == "timeout"


async def test_a_picture_that_is_none_fails_that_response_alone(begin: Begin) -> None:
    call = await begin()
    response_id = await ask(call, input=pictured())
    while not call.events("response.done"):
        await asyncio.sleep(0.001)
        await settle()
    error = done(call, response_id)["status_details"]["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_media")
    assert (counted(call, "refused"), call.chats.asked) == (1, [])


async def test_sound_that_is_forgotten_leaves_a_mark(begin: Begin) -> None:
    call = await begin()
    first = await call.utter(20_000)
    second = await call.utter(20_000)
    await ask(call, input=[reference(first), reference(second)])
    (_, (_, (mark,)), (_, (kept,))) = shown(call)
    assert mark == "[something was said that nobody has written down]"
    assert isinstance(kept, int)


# ---- given up, refused, failed ------------------------------------------------------------------


async def test_one_is_cancelled_and_its_chat_given_up_at_once(begin: Begin) -> None:
    call = await begin(rules=StaffRules(max_asides=1))
    kept, running, waiting = await ask(call), await ask(call), await ask(call)
    await call.chats.asked[0].say("one")
    for one in (waiting, running):
        await call.client("response.cancel", response_id=one)
    assert call.chats.asked[1].given_up
    assert [done(call, one)["status"] for one in (kept, running, waiting)] == [
        "completed",
        "cancelled",
        "cancelled",
    ]
    assert (counted(call, "cancelled"), call.events("error")) == (2, [])
    await ask(call)
    await call.chats.asked[-1].say("and on")


async def test_one_that_is_cancelled_before_anybody_could_begin_is_not_begun(begin: Begin) -> None:
    call = await begin()
    asked = {"conversation": "none", "output_modalities": ["text"], "instructions": "Judge."}
    call.session.receive(json.dumps({"type": "response.create", "response": asked}))
    response_id = call.events("response.created")[-1]["response"]["id"]
    call.session.receive(json.dumps({"type": "response.cancel", "response_id": response_id}))
    await settle()
    assert (call.chats.asked, counted(call, "cancelled")) == ([], 1)


@pytest.mark.parametrize(
    ("error", "outcome", "code"),
    [
        (CapacityError("no slot", retry_after_s=1), "full", "no_capacity"),
        (RequestError("too long", code="context_length_exceeded"), "refused",
         "context_length_exceeded"),
        (EngineError("lost"), "failed", "engine_error"),
        (RuntimeError("odd"), "failed", "engine_error"),
    ],
)  # fmt: skip
async def test_what_cannot_be_answered_fails_alone(
    begin: Begin, error: Exception, outcome: str, code: str
) -> None:
    call = await begin()
    call.chats.refuses = error
    response_id = await ask(call)
    response = done(call, response_id)
    assert (response["status"], response["status_details"]["error"]["code"]) == ("failed", code)
    assert (counted(call, outcome), call.events("error"), call.over) == (1, [], False)
    call.chats.refuses = None
    response_id = await ask(call)
    await call.chats.asked[-1].answer(ChatDelta("half"), Failed(error))
    assert (done(call, response_id)["status"], call.over) == ("failed", False)


async def test_one_that_takes_too_long_is_given_up(begin: Begin) -> None:
    call = await begin(rules=StaffRules(aside_timeout_s=0.05))
    response_id = await ask(call)
    while not counted(call, "timeout"):
        await call.listen(10)
    assert call.chats.asked[0].given_up
    assert done(call, response_id)["status_details"]["error"]["code"] == "timeout"


async def test_whoever_may_chat_no_more_is_told_so_in_the_response(begin: Begin) -> None:
    under_way: list[int] = []

    @contextmanager
    def admit() -> Iterator[None]:
        if under_way:
            raise QuotaError("one at a time", retry_after_s=1)
        under_way.append(1)
        try:
            yield
        finally:
            under_way.pop()

    call = await begin(admit=admit)
    first, second = await ask(call), await ask(call)
    error = done(call, second)["status_details"]["error"]
    told = {
        "type": "rate_limit_error",
        "code": "rate_limit_exceeded",
        "message": "one at a time",
    }
    assert (error, len(call.chats.asked)) == (told, 1)
    await call.chats.asked[0].say("one")
    assert (words(done(call, first)), under_way) == (["one"], [])


@pytest.mark.parametrize("rules", [StaffRules(max_asides=0), StaffRules()])
async def test_where_nobody_answers_an_error_says_so(begin: Begin, rules: StaffRules) -> None:
    abilities = CHATTING if not rules.max_asides else replace(CHATTING, chat=False)
    call = await begin(abilities=abilities, rules=rules)
    await call.client("response.create", response={"conversation": "none"})
    (error,) = call.events("error")
    assert error["error"]["code"] == "unsupported_by_engine"
    assert error["error"]["param"] == "response.conversation"


async def test_the_end_of_the_call_gives_all_of_them_up(begin: Begin) -> None:
    call = await begin(rules=StaffRules(max_asides=2))
    for _ in range(4):
        await ask(call)
    await call.leave()
    assert [asked.given_up for asked in call.chats.asked] == [True, True]


async def test_what_attends_the_call_takes_no_notice(begin: Begin) -> None:
    """A result of a function is spoken of as soon as the agent is silent, whatever is asked."""
    call = await begin(opening_hours, abilities=replace(CHATTING, tools=True))
    await ask(call)
    await call.calls(1, ("opening_hours", '{"day": "Monday"}'))
    assert [text for _, text in call.outputs()] == ["from nine on Monday"]
    assert len(call.commands(Respond)) == 1
    await call.chats.asked[0].say("one")
