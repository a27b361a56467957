"""What the protocol takes back when the engine refuses a command, and what it leaves alone."""

from collections.abc import Iterator
from typing import Any

import pytest

from agent.commands import AddPicture, AddText, AddToolResult, Command, Respond, UpdateSettings
from agent.errors import CapacityError, RequestError, UnsupportedError
from agent.realtime import CloseCall, Limits, RestoreSettings
from agent.types import Abilities, Paused, ToolCalled
from tests.rig.realtime_watch import Watched, kinds

ABLE = Abilities(duplex=True, speech=True, typed_text=True, pictures=True, tools=True)
TOO_LONG = RequestError("The prompt does not fit.", param="session.instructions", code="too_long")
RED = "data:image/png;base64,AAAA"


@pytest.fixture
def call() -> Iterator[Watched]:
    """An open call; at the end the order of everything it said is checked."""
    watched = Watched(abilities=ABLE)
    yield watched
    watched.finish()


def update(call: Watched, event_id: str, **session: object) -> UpdateSettings:
    """The client changes the session; the command that this gives."""
    call.send("session.update", event_id=event_id, session=session)
    command = call.actions[-1]
    assert isinstance(command, UpdateSettings)
    return command


def refuse(call: Watched, command: Command, error: Any = TOO_LONG) -> list[dict[str, Any]]:
    """The engine refuses `command`; what the client is told."""
    return call.take(call.call.failed(error, command))


def listening(threshold: float | None = None, silence_ms: int | None = None) -> dict[str, object]:
    """The section of a session that changes how speech is found."""
    asked = {"threshold": threshold, "silence_duration_ms": silence_ms}
    return {"input": {"turn_detection": {name: value for name, value in asked.items() if value}}}


# ---- session.update ---------------------------------------------------------------------------


def test_a_refused_update_is_told_and_taken_back(call: Watched) -> None:
    before = call.call.settings
    told = refuse(call, update(call, "mine_1", instructions="x" * 99, tools=[{"name": "a"}]))
    assert kinds(told) == ["error", "session.updated"]
    assert told[0]["error"]["event_id"] == "mine_1"
    assert told[0]["error"]["param"] == "session.instructions"
    assert told[1]["session"]["instructions"] == "" and told[1]["session"]["tools"] == []
    assert call.call.settings == before
    assert call.actions[-1] == RestoreSettings(before), "the front end goes back, too"


def test_the_next_update_does_not_carry_what_was_refused(call: Watched) -> None:
    refuse(call, update(call, "mine_1", instructions="x" * 99))
    later = update(call, "mine_2", voice_agent={"mode": "half_duplex"})
    assert later.settings.instructions == "" and later.settings.mode == "half_duplex"
    assert call.call.due(later) == later


def test_of_several_under_way_only_what_the_refused_one_changed_goes_back(call: Watched) -> None:
    first = update(call, "a", instructions="One.", audio=listening(threshold=0.9))
    second = update(call, "b", voice_agent={"eagerness": 0.9}, audio=listening(silence_ms=900))
    third = update(call, "c", instructions="Three.")
    assert call.call.due(first) == first
    told = refuse(call, first)
    assert told[0]["error"]["event_id"] == "a"
    session = told[1]["session"]
    assert session["instructions"] == "Three." and session["voice_agent"]["eagerness"] == 0.9
    detection = session["audio"]["input"]["turn_detection"]
    assert (detection["threshold"], detection["silence_duration_ms"]) == (0.5, 900)
    for_engine = [call.call.due(command) for command in (second, third)]
    assert [each.settings.instructions for each in for_engine] == ["", "Three."]  # type: ignore[union-attr]
    assert for_engine[1] == UpdateSettings(call.call.settings)
    assert kinds(refuse(call, third)) == ["error", "session.updated"]
    assert call.call.settings.instructions == "", "not the refused one of the first"
    assert call.call.settings.eagerness == 0.9


def test_a_change_back_to_the_same_value_is_a_change_of_its_own(call: Watched) -> None:
    update(call, "a", instructions="One.")
    refused = update(call, "b", instructions="Two.")
    update(call, "c", instructions="Three.")
    update(call, "d", instructions="Two.")
    refuse(call, refused)
    assert call.call.settings.instructions == "Two."


def test_tools_that_changed_since_stay(call: Watched) -> None:
    refused = update(call, "a", instructions="One.", tools=[{"name": "old"}])
    call.send("session.update", session={"tools": [{"name": "new"}]})
    call.send("session.update", session={"tools": [{"name": "newest"}]})
    (tool,) = refuse(call, refused)[1]["session"]["tools"]
    assert tool == {"type": "function", "name": "newest", "parameters": {}}


def test_a_refusal_that_turns_detection_off_again_ends_the_speech(call: Watched) -> None:
    call.send("session.update", session={"audio": {"input": {"turn_detection": None}}})
    refused = update(call, "a", audio=listening(threshold=0.9))
    call.take(call.call.speech_started(16_000))
    told = refuse(call, refused)
    expected = ["error", "input_audio_buffer.speech_stopped", "session.updated"]
    assert kinds(told) == expected


def test_an_update_that_is_forgotten_stays_in_force() -> None:
    call = Watched(limits=Limits(max_commands=2))
    first, *_ = [update(call, str(number), instructions=f"{number}.") for number in range(3)]
    assert call.call.due(first) is first
    assert refuse(call, first)[1]["session"]["instructions"] == "2."


# ---- items ------------------------------------------------------------------------------------


def item(*parts: dict[str, str], **fields: str) -> dict[str, object]:
    return {"type": "message", "role": "user", "content": list(parts), **fields}


@pytest.mark.parametrize("at", [0, 1])
def test_an_item_that_is_refused_is_taken_out_again(call: Watched, at: int) -> None:
    parts = {"type": "input_image", "image_url": RED}, {"type": "input_text", "text": "See?"}
    call.send("conversation.item.create", event_id="mine", item=item(*parts, id="shown"))
    told = refuse(call, call.actions[at], UnsupportedError("no picture"))  # type: ignore[arg-type]
    assert [type(action) for action in call.actions] == [AddPicture, AddText]
    assert kinds(told) == ["error", "conversation.item.deleted"]
    assert told[0]["error"]["event_id"] == "mine"
    assert told[1]["item_id"] == "shown"
    retrieved = call.send("conversation.item.retrieve", item_id="shown")
    assert kinds(retrieved) == ["error"]


def test_a_recording_that_is_refused_is_taken_out_again() -> None:
    call = Watched(abilities=Abilities(speech=True, recordings=True))
    call.send("conversation.item.create", item=item({"type": "input_audio", "audio": "AAA="}))
    assert kinds(refuse(call, call.actions[0])) == ["error", "conversation.item.deleted"]  # type: ignore[arg-type]


def test_a_refused_tool_result_is_taken_out_and_one_deleted_meanwhile_is_not_twice(
    call: Watched,
) -> None:
    result = {"type": "function_call_output", "id": "r", "call_id": "c", "output": "4"}
    call.engine(ToolCalled(0, "c", "count", "{}"))
    call.send("conversation.item.create", item=result)
    (command,) = call.actions
    assert isinstance(command, AddToolResult)
    assert refuse(call, command)[1]["item_id"] == "r"
    assert kinds(refuse(call, command)) == ["error"]


# ---- no room ----------------------------------------------------------------------------------


def test_a_command_for_which_there_is_no_room_is_an_error_and_the_call_goes_on(
    call: Watched,
) -> None:
    full = CapacityError("every slot is taken", retry_after_s=2.0)
    told = refuse(call, update(call, "mine", voice_agent={"mode": "half_duplex"}), full)
    assert told[0]["error"] == {
        "type": "server_error",
        "message": "every slot is taken",
        "code": "no_capacity",
        "event_id": "mine",
    }
    assert call.call.settings.mode == "duplex"
    assert not any(isinstance(action, CloseCall) for action in call.actions)


# ---- an answer that could not come ------------------------------------------------------------


def asks(call: Watched) -> str | None:
    """The code by which `response.create` is refused; None when the engine is asked."""
    asked = len(call.actions)
    told = call.send("response.create", event_id="mine")
    assert (told == []) == (call.actions[asked:] == [Respond()])
    return told[0]["error"]["code"] if told else None


def test_no_answer_is_asked_of_an_agent_that_may_only_listen(call: Watched) -> None:
    call.send("voice_agent.listen", on=True)
    assert asks(call) == "listening_forced"
    call.send("voice_agent.listen", on=False)
    assert asks(call) is None


def test_no_answer_is_asked_of_an_agent_that_is_paused_or_about_to_be(call: Watched) -> None:
    call.send("voice_agent.pause")
    assert asks(call) == "paused"
    call.engine(Paused("asked by the client"))
    assert asks(call) == "paused"
    call.send("voice_agent.resume")
    assert asks(call) is None
    call.engine(Paused("out of memory"))
    assert asks(call) == "paused"


@pytest.mark.parametrize(
    ("kind", "fields"), [("voice_agent.pause", {}), ("voice_agent.listen", {"on": True})]
)
def test_an_engine_that_cannot_be_silenced_is_asked(
    call: Watched, kind: str, fields: dict[str, object]
) -> None:
    call.send(kind, **fields)
    refuse(call, call.actions[-1], UnsupportedError("cannot do that"))  # type: ignore[arg-type]
    assert asks(call) is None
