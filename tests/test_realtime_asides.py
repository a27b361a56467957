"""Out-of-band responses as the protocol sees them: what is told, and what stays as it was."""

from collections.abc import Iterator

import pytest

from agent.chat_types import (
    ChatDelta,
    ChatDone,
    ChatToolCall,
)
from agent.commands import Respond
from agent.errors import CapacityError, EngineError, QuotaError, RequestError
from agent.realtime import AnswerAside, CancelTurn, Limits, RateLimit
from agent.types import Failed, Tool, Wire
from tests.rig.asking_call import ABLE, WRITTEN, Asking
from tests.rig.realtime_watch import kinds, message

MESSAGE_TOLD = [
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
]
MESSAGE_CLOSED = [
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.done",
]


@pytest.fixture
def call() -> Iterator[Asking]:
    """An open call; at the end the order of everything it said is checked."""
    asking = Asking(abilities=ABLE)
    yield asking
    asking.finish()


# ---- told ---------------------------------------------------------------------------------------


def test_it_is_told_like_any_response_but_joins_no_conversation(call: Asking) -> None:
    response_id = call.ask(metadata={"topic": "mood"}, max_output_tokens=50, input=[message("Hi")])
    created = call.last("response.created")["response"]
    assert (created["conversation_id"], created["metadata"]) == (None, {"topic": "mood"})
    assert (created["output_modalities"], created["max_output_tokens"]) == (["text"], 50)
    assert kinds(call.said(response_id, ChatDelta("Good "))) == MESSAGE_TOLD
    assert kinds(call.said(response_id, ChatDelta("mood"))) == MESSAGE_TOLD[-1:]
    assert kinds(call.said(response_id, ChatDone("stop", 9, 3))) == MESSAGE_CLOSED
    response = call.last("response.done")["response"]
    assert (response["status"], response["metadata"]) == ("completed", {"topic": "mood"})
    assert response["usage"]["total_tokens"] == 12
    (item,) = response["output"]
    assert item["content"] == [{"type": "output_text", "text": "Good mood"}]
    assert call.refused("conversation.item.retrieve", item_id=item["id"])[0]
    assert not [kind for kind in kinds(call.events) if kind.startswith("conversation.item")]
    assert call.said(response_id, ChatDelta("too late")) == []


def test_functions_are_items_of_it_and_so_is_what_was_said_first(call: Asking) -> None:
    tool = {"type": "function", "name": "note", "parameters": {}}
    response_id = call.ask(tools=[tool], tool_choice="required", input=[message("Note it")])
    assert (call.question.tools, call.question.tool_choice) == ((Tool("note"),), "required")
    call.said(response_id, ChatDelta("Well."), ChatToolCall("chat_1", "note", '{"a": 1}'))
    response = call.done(response_id, "tool_calls")
    said, called = response["output"]
    assert (said["type"], called["type"], response["status"]) == (
        "message",
        "function_call",
        "completed",
    )
    assert (called["name"], called["arguments"]) == ("note", '{"a": 1}')
    made = call.last("response.output_item.done")
    assert made["item"]["type"] == "message", "the message ends behind the call"
    call_id = called["call_id"]
    result = {"type": "function_call_output", "call_id": call_id, "output": "4"}
    assert call.refused("conversation.item.create", item=result)[0], "nobody asked in the call"
    call.done(call.ask(input=[message("Note it"), called | {"id": "mine"}, result]))
    assert call.shown() == [("user", "Note it"), ("tool", "4"), ("assistant", "note")]


def test_an_answer_that_was_cut_short_is_incomplete_and_one_of_nothing_is_complete(
    call: Asking,
) -> None:
    response_id = call.ask()
    call.said(response_id, ChatDelta("thinks", reasoning=True), ChatDelta(""), ChatDelta("One"))
    details = call.done(response_id, "length")["status_details"]
    assert details == {"type": "incomplete", "reason": "max_output_tokens"}
    assert call.done(call.ask())["output"] == []


@pytest.mark.parametrize(
    ("error", "kind", "code", "words"),
    [
        (RequestError("too long", code="context_length_exceeded"), "invalid_request_error",
         "context_length_exceeded", "too long"),
        (QuotaError("enough", retry_after_s=1), "rate_limit_error", "rate_limit_exceeded",
         "enough"),
        (CapacityError("no slot", retry_after_s=1), "server_error", "no_capacity", "no slot"),
        (TimeoutError("inside"), "server_error", "timeout", "It was not answered in time."),
        (EngineError("inside"), "server_error", "engine_error", "The engine failed to answer."),
        (KeyError("inside"), "server_error", "engine_error", "The engine failed to answer."),
    ],
)  # fmt: skip
def test_what_fails_says_why_and_the_call_goes_on(
    call: Asking, error: Exception, kind: str, code: str, words: str
) -> None:
    response_id = call.ask()
    call.said(response_id, ChatDelta("So "), Failed(error))
    response = call.last("response.done")["response"]
    assert response["status"] == "failed"
    told = {"type": kind, "code": code, "message": words}
    assert response["status_details"] == {"type": "failed", "error": told}
    assert response["output"][0]["status"] == "incomplete"
    assert not [one for one in call.actions if not isinstance(one, AnswerAside)]
    assert "error" not in kinds(call.events)


# ---- beside all else ----------------------------------------------------------------------------


@pytest.mark.parametrize("wire", ["webrtc", "websocket"])
def test_the_agent_and_several_of_them_speak_at_the_same_time(wire: Wire) -> None:
    call = Asking(abilities=ABLE, wire=wire)
    call.send("voice_agent.listen", on=False)
    call.speak(1, ("One ", 500))
    state = call.last("voice_agent.state")
    first, second = call.ask(), call.ask()
    call.said(first, ChatDelta("a"))
    call.text(1, "two")
    call.said(second, ChatDelta("b"))
    call.sound(1, 500)
    assert call.refused("response.create")[0] == "conversation_already_has_active_response"
    assert call.done(second)["output"][0]["content"][0]["text"] == "b"
    assert call.last("voice_agent.state") == state
    call.end(1)
    call.drained(1)
    assert call.done(first)["output"][0]["content"][0]["text"] == "a"
    call.finish()


def test_it_neither_waits_for_an_answer_that_is_asked_for_nor_takes_its_place(call: Asking) -> None:
    assert call.send("response.create", response={"metadata": {"of": "the agent"}}) == []
    response_id = call.ask(metadata={"of": "the model"})
    call.start(1)
    assert call.last("response.created")["response"]["metadata"] == {"of": "the agent"}
    assert call.done(response_id)["metadata"] == {"of": "the model"}
    assert [one for one in call.actions if not isinstance(one, AnswerAside)] == [Respond()]
    call.end(1)


def test_it_is_answered_while_the_agent_is_paused_and_while_the_user_speaks(call: Asking) -> None:
    call.send("voice_agent.pause")
    call.take(call.call.speech_started(16_000))
    call.done(call.ask())
    call.take(call.call.speech_ended(32_000))
    assert call.call.settings.turn_detection is not None


def test_talking_over_the_agent_leaves_it_alone(call: Asking) -> None:
    response_id = call.ask()
    call.said(response_id, ChatDelta("a"))
    call.speak(1, ("One ", 1000))
    call.take(call.call.playout_cleared(1, 300, "turn_detected"))
    done = call.last("response.done")["response"]
    assert (done["status"], done["conversation_id"] is None) == ("cancelled", False)
    assert call.done(response_id)["status"] == "completed"


def test_each_is_cancelled_by_its_name_and_by_no_other(call: Asking) -> None:
    kept, dropped = call.ask(), call.ask()
    call.said(dropped, ChatDelta("a"))
    assert call.refused("response.cancel")[0] == "response_cancel_not_active"
    told = call.send("response.cancel", response_id=dropped)
    assert kinds(told) == MESSAGE_CLOSED
    details = told[-1]["response"]["status_details"]
    assert details == {"type": "cancelled", "reason": "client_cancelled"}
    assert call.actions[-1] == AnswerAside(dropped, None)
    assert call.refused("response.cancel", response_id=dropped)[0] == "response_cancel_not_active"
    call.start(1)
    call.text(1, "One")
    call.send("response.cancel")
    assert call.last("response.done")["response"]["conversation_id"] is not None
    assert call.actions[-1] == CancelTurn(1)
    assert call.done(kept)["status"] == "completed"


def test_there_are_so_many_at_a_time() -> None:
    call = Asking(abilities=ABLE, limits=Limits(max_asides=2))
    first, _ = call.ask(), call.ask()
    asked = {"conversation": "none", "output_modalities": WRITTEN, "instructions": "Judge."}
    code, _ = call.refused("response.create", response=asked)
    assert code == "too_many_out_of_band_responses"
    call.done(first)
    call.ask()
    call.finish()


def test_an_engine_that_fails_ends_those_under_way(call: Asking) -> None:
    response_id = call.ask()
    call.said(response_id, ChatDelta("a"))
    call.engine(Failed(EngineError("gone")))
    assert call.last("response.done")["response"]["status"] == "failed"
    assert call.said(response_id, ChatDelta("b")) == []


def test_whoever_has_a_limit_is_told_what_is_left() -> None:
    limits = [RateLimit("requests", 60, 12, 20.0)]
    call = Asking(abilities=ABLE, allowance=lambda: limits)
    call.ask()
    assert kinds(call.events)[-2:] == ["response.created", "rate_limits.updated"]
