"""What a client asks of the engine by way of the session, and what becomes of a refusal."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from agent.commands import (
    AddPicture,
    AddText,
    ClearInput,
    Command,
    CommitInput,
    DeleteItem,
    UpdateSettings,
)
from agent.errors import CapacityError, RequestError
from agent.types import Abilities
from tests.rig.call_parts import ScriptedConversation, settle
from tests.rig.driven_call import DrivenCall

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


@pytest.fixture
async def call() -> AsyncIterator[DrivenCall]:
    """A call under way; at its end the order of everything the client got is checked."""
    driven = DrivenCall()
    await driven.begin()
    yield driven
    await driven.leave()


async def test_a_commit_and_a_clear_say_where_the_microphone_stood(call: DrivenCall) -> None:
    by_hand = {"audio": {"input": {"turn_detection": None}}}
    await call.client("session.update", session=by_hand)
    await call.listen(1270)
    await call.client("input_audio_buffer.clear")
    await call.listen(500)
    await call.client("input_audio_buffer.commit")
    assert call.commands(ClearInput) == [ClearInput(1270 * 16)]
    assert [commit.at for commit in call.commands(CommitInput)] == [1770 * 16]


class Choosy(ScriptedConversation):
    """Refuses long prompts and, having carried out `pictures` of them, pictures."""

    def __init__(self, pictures: int = 0) -> None:
        super().__init__()
        self.pictures = pictures
        self.holds = asyncio.Event()
        self.holds.set()

    async def control(self, command: Command) -> None:
        await super().control(command)
        await self.holds.wait()
        if isinstance(command, UpdateSettings) and len(command.settings.instructions) > 9:
            raise RequestError("The prompt is too long.")
        if isinstance(command, UpdateSettings) and command.settings.mode == "half_duplex":
            raise CapacityError("no slot for that", retry_after_s=2.0)
        if isinstance(command, AddPicture):
            self.pictures -= 1
            if self.pictures < 0:
                raise RequestError("That is no picture.")


@pytest.fixture
async def choosy() -> AsyncIterator[DrivenCall]:
    """A call with an engine that refuses some things."""
    abilities = Abilities(duplex=True, speech=True, typed_text=True, pictures=True)
    driven = DrivenCall(Choosy(), abilities=abilities)
    await driven.begin()
    yield driven
    await driven.leave()


def prompts(call: DrivenCall) -> list[str]:
    return [update.settings.instructions for update in call.commands(UpdateSettings)]


async def test_settings_that_the_engine_refuses_are_in_force_nowhere(choosy: DrivenCall) -> None:
    by_hand = {"audio": {"input": {"turn_detection": None}}, "instructions": "x" * 10}
    await choosy.client("session.update", session=by_hand, event_id="mine")
    assert choosy.kinds()[-3:] == ["session.updated", "error", "session.updated"]
    assert choosy.events("error")[0]["error"]["event_id"] == "mine"
    choosy.detector.voiced = True
    await choosy.listen(1000, level=0.2)
    assert "input_audio_buffer.speech_started" in choosy.kinds(), "the detector is back"
    await choosy.client("session.update", session={"instructions": "short"})
    assert prompts(choosy) == ["x" * 10, "short"]
    assert choosy.events("session.updated")[-1]["session"]["instructions"] == "short"
    assert len(choosy.events("error")) == 1


async def test_updates_that_wait_behind_a_refused_one_are_told_without_it(
    choosy: DrivenCall,
) -> None:
    engine = choosy.engine
    assert isinstance(engine, Choosy)
    engine.holds.clear()
    await choosy.client("session.update", session={"instructions": "x" * 10}, event_id="long")
    eager = {"voice_agent": {"eagerness": 0.9}}
    await choosy.client("session.update", session=eager, event_id="eager")
    engine.holds.set()
    await settle()
    assert prompts(choosy) == ["x" * 10, ""]
    assert [event["error"]["event_id"] for event in choosy.events("error")] == ["long"]
    session = choosy.events("session.updated")[-1]["session"]
    assert session["instructions"] == "" and session["voice_agent"]["eagerness"] == 0.9


async def test_of_what_others_asked_they_alone_are_told_that_it_is_refused(
    choosy: DrivenCall,
) -> None:
    told: list[dict[str, object]] = []
    session = {"type": "realtime", "instructions": "x" * 10}
    choosy.session.receive(json.dumps({"type": "session.update", "session": session}), told.append)
    await settle()
    assert [event["type"] for event in told] == ["error"]
    assert choosy.kinds()[-2:] == ["session.updated", "session.updated"]
    assert choosy.events("error") == []
    assert choosy.events("session.updated")[-1]["session"]["instructions"] == ""


async def test_a_command_without_room_is_told_and_the_call_goes_on(choosy: DrivenCall) -> None:
    both = {"voice_agent": {"mode": "half_duplex"}}
    await choosy.client("session.update", session=both, event_id="mine")
    (error,) = choosy.events("error")
    assert (error["error"]["code"], error["error"]["event_id"]) == ("no_capacity", "mine")
    assert not choosy.over
    held = choosy.events("session.updated")[-1]["session"]["voice_agent"]
    assert held["mode"] == "duplex"


@pytest.mark.parametrize("taken", [0, 1])
async def test_of_an_item_with_a_bad_picture_the_engine_keeps_nothing(
    choosy: DrivenCall, taken: int
) -> None:
    engine = choosy.engine
    assert isinstance(engine, Choosy)
    engine.pictures = taken
    picture = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
    words = {"type": "input_text", "text": "What is this?"}
    shown = {"type": "message", "id": "shown", "content": [picture, picture, words]}
    await choosy.client("conversation.item.create", item=shown, event_id="mine")
    assert choosy.commands(AddText) == []
    assert choosy.commands(DeleteItem) == [DeleteItem("shown")] * taken
    assert [event["error"]["event_id"] for event in choosy.events("error")] == ["mine"]
    assert [event["item_id"] for event in choosy.events("conversation.item.deleted")] == ["shown"]
    plain = {"type": "message", "id": "shown", "content": [words]}
    await choosy.client("conversation.item.create", item=plain)
    assert choosy.commands(AddText) == [AddText("shown", "user", "What is this?")]
