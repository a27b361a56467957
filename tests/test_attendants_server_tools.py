"""This server's functions in a call: whose they are, when they run, when they are spoken of."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from agent.attendants import server_tools
from agent.commands import AddToolResult, Respond, UpdateSettings
from agent.errors import CapacityError, RequestError
from agent.tools import ToolContext
from agent.types import Abilities, SessionSettings, SpeechEnded, SpeechStarted, Tool
from tests.rig.attended_call import (
    AttendedCall,
    calls_begun,
    function,
    opening_hours,
    threads_over,
)
from tests.rig.call_parts import settle, voice

pytestmark = pytest.mark.usefixtures("nothing_left_behind")
Begin = Callable[..., Awaitable[AttendedCall]]


@pytest.fixture
async def begin() -> AsyncIterator[Begin]:
    async with calls_begun() as begun:
        yield begun


class Slow:
    """A function that returns when the test says so."""

    def __init__(self) -> None:
        self.begun = 0
        self.cancelled = 0
        self.go = asyncio.Event()

    def function(self) -> Callable[[], Awaitable[str]]:
        async def slow() -> str:
            self.begun += 1
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            return "at last"

        return slow

    async def ends(self) -> None:
        self.go.set()
        await settle()


def told(call: AttendedCall) -> list[object]:
    """Results and requests to speak, in the order in which the engine was told."""
    return [item for item in call.engine.told if isinstance(item, AddToolResult | Respond)]


# ---- the way of a call ------------------------------------------------------------------------


async def test_a_call_is_run_and_answered_and_the_agent_asked_to_speak_of_it(begin: Begin) -> None:
    call = await begin(opening_hours)
    await call.calls(1, ("opening_hours", '{"day": "Monday"}'))
    assert told(call) == [AddToolResult("call_10", "from nine on Monday"), Respond()]
    assert call.outputs() == [("call_10", "from nine on Monday")]
    kinds = call.kinds()
    done = kinds.index("response.done")
    assert kinds[done + 1 :].count("conversation.item.added") == 1
    assert kinds.index("response.output_item.done") < done


async def test_the_model_is_offered_it_beside_the_client_s_own(begin: Begin) -> None:
    call = await begin(opening_hours)
    offered = call.opened_with.tools
    assert [tool.name for tool in offered] == ["opening_hours"]
    assert offered[0].description.startswith("When the shop is open.")
    assert call.events("session.created")[0]["session"]["tools"] == []
    await call.update(tools=[function("mine")])
    assert [tool.name for tool in call.commands(UpdateSettings)[-1].settings.tools] == [
        "mine",
        "opening_hours",
    ]
    await call.update(tools=[], instructions="be brief")
    last = call.commands(UpdateSettings)[-1].settings
    assert ([tool.name for tool in last.tools], last.instructions) == (
        ["opening_hours"],
        "be brief",
    )


async def test_a_function_is_told_which_call_it_is(begin: Begin) -> None:
    def who(context: ToolContext) -> str:
        return f"{context.call_id} by {context.key}"

    call = await begin(who)
    await call.calls(1, ("who", "{}"))
    await threads_over()  # a thread's time is its own
    await settle()
    assert call.outputs() == [("call_10", "rtc_test by a key")]


async def test_an_engine_without_functions_is_offered_none(begin: Begin) -> None:
    call = await begin(opening_hours, abilities=Abilities(duplex=True, speech=True))
    assert call.opened_with.tools == ()
    assert call.staff.attendants == ()


async def test_what_goes_wrong_is_an_answer_too(begin: Begin) -> None:
    call = await begin(opening_hours)
    await call.calls(1, ("opening_hours", '{"week": 3}'))
    ((_, output),) = call.outputs()
    assert output.startswith("Error: opening_hours was called wrongly: day: Field required")
    assert len(call.commands(Respond)) == 1
    assert call.events("error") == []
    assert call.counted("beside_total", work="function", outcome="refused") == 1


# ---- whose function it is ---------------------------------------------------------------------


async def test_a_function_of_the_client_s_by_that_name_is_the_client_s(begin: Begin) -> None:
    call = await begin(opening_hours)
    await call.update(tools=[function("opening_hours", "Mine.")])
    assert [tool.description for tool in call.commands(UpdateSettings)[-1].settings.tools] == [
        "Mine."
    ]
    await call.calls(1, ("opening_hours", '{"day": "Monday"}'))
    assert call.outputs() == []
    assert len(call.tool_items()) == 1


async def test_the_client_s_may_be_there_from_the_opening(begin: Begin) -> None:
    mine = Tool("opening_hours", "Mine.")
    call = await begin(opening_hours, settings=SessionSettings(model="echo", tools=(mine,)))
    assert call.opened_with.tools == (mine,)
    await call.calls(1, ("opening_hours", '{"day": "Monday"}'))
    assert call.outputs() == []


async def test_calls_of_others_are_left_to_them(begin: Begin) -> None:
    call = await begin(opening_hours)
    await call.update(tools=[function("mine")])
    await call.calls(1, ("mine", "{}"))
    assert call.outputs() == []
    assert told(call) == []


async def test_who_answers_a_function_that_is_not_its_own_is_not_heard(begin: Begin) -> None:
    slow = Slow()
    call = await begin(slow.function())
    await call.calls(1, ("slow", "{}"))
    item = {"type": "function_call_output", "call_id": "call_10", "output": "I know no such thing"}
    await call.client("conversation.item.create", item=item)
    assert call.commands(AddToolResult) == []
    await slow.ends()
    await call.client("conversation.item.create", item=item)
    assert call.commands(AddToolResult) == [AddToolResult("call_10", "at last")]
    assert call.outputs()[1] == ("call_10", "at last")
    assert call.events("error") == []


# ---- when -------------------------------------------------------------------------------------


async def test_a_result_waits_for_the_end_of_the_response_that_asked_for_it(begin: Begin) -> None:
    call = await begin(opening_hours)
    samples = voice(200)
    await call.speak(1, ("Let me see. ", samples))
    await call.play(40)
    await call.call_in_turn(1, "opening_hours", '{"day": "Monday"}')
    assert call.outputs() == []
    await call.end_turn(1)
    await call.play(400)
    assert call.outputs() == [("call_10", "from nine on Monday")]
    assert len(call.commands(Respond)) == 1


async def test_nobody_is_talked_over(begin: Begin) -> None:
    slow = Slow()
    call = await begin(slow.function())
    await call.calls(1, ("slow", "{}"))
    await call.hear(SpeechStarted(160))
    await slow.ends()
    assert call.outputs() == [("call_10", "at last")]
    assert call.commands(Respond) == []
    await call.hear(SpeechEnded(320))
    assert len(call.commands(Respond)) == 1


async def test_an_agent_that_has_begun_to_speak_since_is_not_asked_again(begin: Begin) -> None:
    slow = Slow()
    call = await begin(slow.function())
    await call.calls(1, ("slow", "{}"))
    await call.hear(SpeechStarted(160))
    await slow.ends()
    await call.writes(2, "It is done.")
    await call.hear(SpeechEnded(320))
    assert call.commands(Respond) == []


@pytest.mark.parametrize(
    ("off", "on"),
    [
        (("voice_agent.pause", {}), ("voice_agent.resume", {})),
        (("voice_agent.listen", {"on": True}), ("voice_agent.listen", {"on": False})),
    ],
)
async def test_an_agent_that_must_not_speak_is_asked_later(
    begin: Begin, off: tuple[str, dict[str, Any]], on: tuple[str, dict[str, Any]]
) -> None:
    slow = Slow()
    call = await begin(slow.function())
    await call.calls(1, ("slow", "{}"))
    await call.client(off[0], **off[1])
    await slow.ends()
    assert (len(call.outputs()), call.commands(Respond)) == (1, [])
    await call.client(on[0], **on[1])
    assert len(call.commands(Respond)) == 1
    assert call.events("error") == []


async def test_calls_of_one_response_are_spoken_of_together(begin: Begin) -> None:
    slow = Slow()
    call = await begin(slow.function(), opening_hours)
    await call.calls(1, ("slow", "{}"), ("opening_hours", '{"day": "Monday"}'))
    assert call.outputs() == [("call_11", "from nine on Monday")]
    assert call.commands(Respond) == []
    await slow.ends()
    assert [call_id for call_id, _ in call.outputs()] == ["call_11", "call_10"]
    assert len(call.commands(Respond)) == 1


async def test_an_answer_may_call_again(begin: Begin) -> None:
    call = await begin(opening_hours)
    for turn in (1, 2):
        await call.calls(turn, ("opening_hours", '{"day": "Monday"}'))
    await call.writes(3, "From nine.")
    assert [call_id for call_id, _ in call.outputs()] == ["call_10", "call_20"]
    assert len(call.commands(Respond)) == 2


# ---- where the agent may not speak yet --------------------------------------------------------


async def test_behind_an_answer_that_is_still_to_come_the_agent_is_asked_again(
    begin: Begin, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "agent.attendants")
    slow = Slow()
    call = await begin(slow.function())
    await call.calls(1, ("slow", "{}"))
    await call.client("response.create")
    await slow.ends()
    await call.listen(3000)
    assert told(call) == [Respond(), AddToolResult("call_10", "at last")]
    assert call.events("error") == [], "the client asked for nothing that it does not get"
    assert caplog.text.count("A response was asked for already") == 1
    await call.writes(2, "Well.")
    await call.listen(2000)
    assert told(call)[2:] == [Respond()]
    await call.writes(3, "It is done.")
    await call.listen(3000)
    assert len(call.commands(Respond)) == 2


async def test_an_answer_that_was_asked_for_since_speaks_of_it(begin: Begin) -> None:
    slow = Slow()
    call = await begin(slow.function())
    await call.calls(1, ("slow", "{}"))
    await call.hear(SpeechStarted(160))
    await slow.ends()
    await call.client("response.create")
    await call.hear(SpeechEnded(320))
    await call.writes(2, "It is done.")
    await call.listen(3000)
    assert len(call.commands(Respond)) == 1
    assert call.events("error") == []


async def test_an_engine_that_does_not_answer_now_is_asked_again(
    begin: Begin, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "agent.attendants")
    slow = Slow()
    call = await begin(slow.function())
    await call.calls(1, ("slow", "{}"))
    await call.hear(SpeechStarted(160))
    await slow.ends()
    call.engine.refuses = CapacityError("no room now", retry_after_s=1)
    await call.hear(SpeechEnded(320))
    assert call.events("error") == [] and "no room now" in caplog.text
    call.engine.refuses = None
    asked = len(call.commands(Respond))
    await call.listen(3000)
    assert len(call.commands(Respond)) == asked + 1


async def test_what_can_never_be_asked_is_given_up(
    begin: Begin, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_tools, "MOST_ASKED", 3)
    slow = Slow()
    call = await begin(slow.function())
    await call.calls(1, ("slow", "{}"))
    await call.hear(SpeechStarted(160))
    await slow.ends()
    call.engine.refuses = CapacityError("no room now", retry_after_s=1)
    await call.hear(SpeechEnded(320))
    await call.listen(6000)
    assert len(call.commands(Respond)) == 3
    assert "not spoken of" in caplog.text


# ---- bounds -----------------------------------------------------------------------------------


async def test_too_many_at_a_time_are_told_so(begin: Begin) -> None:
    slow = Slow()
    call = await begin(slow.function())
    for turn in range(1, 18):
        await call.calls(turn, ("slow", "{}"))
    assert slow.begun == 16
    assert call.outputs() == [("call_170", "Error: 16 functions run already; try again later")]
    await slow.ends()
    assert len(call.outputs()) == 17


async def test_the_end_of_the_call_ends_its_functions(begin: Begin) -> None:
    slow = Slow()
    call = await begin(slow.function())
    await call.calls(1, ("slow", "{}"))
    await call.leave()
    assert (slow.begun, slow.cancelled) == (1, 1)


async def test_a_result_that_the_engine_refuses_is_told_to_the_client(begin: Begin) -> None:
    call = await begin(opening_hours)
    call.engine.refuses = RequestError("it is too long", code="string_above_max_length")
    await call.calls(1, ("opening_hours", '{"day": "Monday"}'))
    (error, *_) = call.events("error")
    assert error["error"]["code"] == "string_above_max_length"
