"""Decisions beside the conversation that come to nothing: given up, too late, or not possible."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from agent.attendants.staff import StaffRules
from agent.chat_types import ChatDelta
from agent.errors import CapacityError, EngineError
from agent.types import (
    Failed,
    SpeechEnded,
    SpeechStarted,
    Transcription,
)
from tests.rig.attended_call import (
    CHATTING,
    MONDAY,
    SIDE,
    AttendedCall,
    calls_begun,
    decided,
    opening_hours,
    parts,
)

pytestmark = pytest.mark.usefixtures("nothing_left_behind")
Begin = Callable[..., Awaitable[AttendedCall]]


@pytest.fixture
async def begin() -> AsyncIterator[Begin]:
    async with calls_begun(abilities=CHATTING, settings=SIDE) as begun:
        yield begun


async def test_who_speaks_on_is_decided_on_anew(begin: Begin) -> None:
    call = await begin(opening_hours)
    await call.utter()
    await call.hear(SpeechStarted(0))
    assert call.chats.asked[0].given_up
    assert decided(call, "late") == 1
    await call.hear(SpeechEnded(1600))
    await call.listen(1000)
    assert len(call.chats.asked) == 2
    assert len(parts(call.chats.asked[1].request.messages[-1])) == 2


async def test_the_newest_occasion_takes_the_place_of_the_one_before(begin: Begin) -> None:
    call = await begin(opening_hours)
    for text in ("When do you open?", "I mean on Monday."):
        await call.client("response.cancel")
        await call.types(text)
        await call.client("response.create")
    first, second = call.chats.asked
    assert (first.given_up, second.given_up) == (True, False)
    assert decided(call, "superseded") == 1


async def test_how_the_agent_has_begun_to_answer_is_not_shown(begin: Begin) -> None:
    call = await begin(opening_hours)
    await call.listen(900)
    await call.hear(SpeechStarted(0))
    await call.hear(SpeechEnded(14_700))
    await call.writes(1, "We open at")
    await call.listen(200)
    (asked,) = call.chats.asked
    assert [message.role for message in asked.request.messages] == ["system", "user"]


async def test_chats_for_all_purposes_share_their_places(begin: Begin) -> None:
    writes = replace(SIDE, transcription=Transcription())
    call = await begin(opening_hours, settings=writes, rules=StaffRules(max_side_chats=1))
    await call.utter()
    assert len(call.chats.asked) == 1
    await call.chats.asked[0].say("no")
    assert len(call.chats.asked) == 2


async def test_who_speaks_on_at_once_is_not_decided_on_before(begin: Begin) -> None:
    call = await begin(opening_hours)
    await call.listen(100)
    await call.hear(SpeechStarted(0))
    await call.hear(SpeechEnded(1600))
    await call.hear(SpeechStarted(1800))
    await call.listen(1000)
    assert (call.chats.asked, decided(call, "late")) == ([], 1)


async def test_a_decision_after_two_more_turns_is_too_late(begin: Begin) -> None:
    call = await begin(opening_hours)
    await call.utter()
    for turn in (1, 2):
        await call.writes(turn, "Well.")
    await call.chats.asked[0].answer(MONDAY)
    assert (call.tool_items(), decided(call, "late")) == ([], 1)


async def test_one_more_turn_is_not_too_late(begin: Begin) -> None:
    call = await begin(opening_hours)
    await call.utter()
    await call.writes(1, "Well.")
    await call.chats.asked[0].answer(MONDAY)
    assert len(call.outputs()) == 1


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (CapacityError("no slot", retry_after_s=1), "full"),
        (EngineError("lost"), "failed"),
        (RuntimeError("odd"), "failed"),
    ],
)
async def test_an_engine_that_cannot_chat_now_is_no_error_of_the_call(
    begin: Begin, error: Exception, outcome: str
) -> None:
    call = await begin(opening_hours)
    call.chats.refuses = error
    await call.utter()
    assert (decided(call, outcome), call.events("error")) == (1, [])
    call.chats.refuses = None
    await call.utter()
    await call.chats.asked[0].answer(ChatDelta("no"), Failed(error))
    assert decided(call, "failed") == (2 if outcome == "failed" else 1)
    assert not call.over


async def test_a_decision_that_takes_too_long_is_given_up(begin: Begin) -> None:
    call = await begin(opening_hours, rules=StaffRules(side_timeout_s=0.05))
    await call.utter()
    while not decided(call, "timeout"):
        await call.listen(10)
    assert call.chats.asked[0].given_up
    assert call.events("error") == []


async def test_only_so_many_chats_at_a_time(begin: Begin) -> None:
    call = await begin(opening_hours, rules=StaffRules(max_side_chats=0, max_asides=0))
    assert call.staff.attendants == ()
    await call.update(voice_agent={"tools": "side"})
    assert call.events("error") == []
    await call.utter()
    assert call.chats.asked == []


async def test_the_end_of_the_call_gives_a_decision_up(begin: Begin) -> None:
    call = await begin(opening_hours)
    await call.utter()
    await call.leave()
    assert call.chats.asked[0].given_up


async def test_all_that_the_client_is_told_is_json(begin: Begin) -> None:
    call = await begin(opening_hours)
    await call.utter()
    await call.chats.asked[0].answer(MONDAY)
    assert json.loads(json.dumps(call.peer.events, allow_nan=False))
