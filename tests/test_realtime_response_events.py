"""Responses by the client's events: asked for, overridden, cancelled and cleared."""

from collections.abc import Iterator

import pytest

from agent.commands import Respond
from agent.errors import UnsupportedError
from agent.realtime import CancelTurn, ClearPlayout
from agent.types import Abilities, SessionSettings, Tool, TurnStarted
from tests.rig.realtime_order import AUDIO_CHAIN, OPENING, TEXT_CHAIN
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


# ---- responses --------------------------------------------------------------------------------


def test_the_client_asks_for_an_answer(call: Watched) -> None:
    response = {"instructions": "Greet.", "metadata": {"topic": "hello"}, "conversation": "auto"}
    assert call.send("response.create", response=response) == []
    code, _ = call.refused("response.create")
    assert code == "conversation_already_has_active_response", "one is about to begin"
    assert call.actions == [Respond("Greet.")]
    call.speak(1, ("Hi", 100))
    assert call.last("response.created")["response"]["metadata"] == {"topic": "hello"}
    code, _ = call.refused("response.create")
    assert code == "conversation_already_has_active_response"
    call.end(1)
    assert call.send("response.create") == []
    call.start(2)
    assert "metadata" not in call.last("response.created")["response"]


def test_what_was_asked_belongs_to_the_turn_that_answers_it(call: Watched) -> None:
    assert call.send("response.create", response={"metadata": {"topic": "hello"}}) == []
    call.engine(TurnStarted(1, asked=False))
    assert "metadata" not in call.last("response.created")["response"]
    call.end(1)
    call.engine(TurnStarted(2, asked=True))
    assert call.last("response.created")["response"]["metadata"] == {"topic": "hello"}
    call.end(2)
    assert call.send("response.create") == [], "and nothing is asked any more"


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
    told = call.refused("response.create", response=response)
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
    assert call.refused("response.create", response=response)[1] == param


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


def test_a_voice_that_clients_name_by_default_is_passed_over(call: Watched) -> None:
    voice = {"audio": {"output": {"voice": "marin"}}}
    assert call.send("response.create", response=voice) == []
    assert call.actions == [Respond()]


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
    code, _ = call.refused("response.cancel")
    assert code == "response_cancel_not_active"
    call.speak(1, ("One ", 500), ("two", 500))
    assert call.refused("response.cancel", response_id="resp_other")[1] == "response_id"
    assert kinds(call.send("response.cancel")) == AUDIO_CHAIN
    done = call.last("response.done")["response"]
    assert done["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
    assert call.actions == [CancelTurn(1)]
    assert call.text(1, "late") == []
    assert kinds(call.take(call.call.playout_drained(1))) == ["output_audio_buffer.stopped"]


def test_what_a_cancelled_response_has_opened_is_closed(call: Watched) -> None:
    """OpenAI's types say so of each: clients settle a message by the ends of its parts."""
    call.speak(1, ("One ", 500), ("two", 500))
    sound, words, part, output, item, done = call.send("response.cancel")[: len(AUDIO_CHAIN)]
    assert sound["item_id"] == item["item"]["id"]
    assert (words["transcript"], part["part"]["transcript"]) == ("One two", "One two")
    assert output["item"] == item["item"] == done["response"]["output"][0]
    assert item["item"]["status"] == "incomplete"


def test_words_that_nobody_was_told_are_not_told_at_the_end(call: Watched) -> None:
    call.start(1)
    call.text(1, "Never heard.")
    assert kinds(call.send("response.cancel")) == AUDIO_CHAIN[-3:], "there was no part yet"
    call.start(2)
    call.text(2, "Never heard.")
    call.sound(2, 500)
    _, words, part, *_ = call.send("response.cancel")
    assert (words["transcript"], part["part"]["transcript"]) == ("", "")


def test_a_cancelled_text_ends_with_the_words_that_were_told() -> None:
    call = Watched(settings=SessionSettings(model="echo", output_modalities=("text",)))
    assert kinds(call.start(1)) == OPENING[:1]
    call.text(1, "So far")
    cancelled = call.send("response.cancel")
    assert kinds(cancelled) == TEXT_CHAIN
    assert cancelled[0]["text"] == "So far"
    assert cancelled[2]["item"]["content"] == [{"type": "output_text", "text": "So far"}]
    call.finish()


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
    assert kinds(cleared) == [CLEARED, *AUDIO_CHAIN, TRUNCATED]
    details = call.last("response.done")["response"]["status_details"]
    assert details["reason"] == "client_cancelled"


def test_clearing_silence_is_no_error(call: Watched) -> None:
    assert call.send("output_audio_buffer.clear") == []
    call.spoken(1, ("One", 100))
    call.take(call.call.playout_drained(1))
    assert kinds(call.send("output_audio_buffer.clear")) == [CLEARED]
    assert call.actions == []


# ---- cancelled before it begins ---------------------------------------------------------------


def test_a_response_that_was_cancelled_before_it_began_ends_as_it_begins(call: Watched) -> None:
    call.send("response.create", response={"metadata": {"n": "1"}})
    assert call.send("response.cancel") == []
    assert call.refused("response.cancel")[0] == "response_cancel_not_active"
    assert kinds(call.start(1)) == ["response.created", "response.done"]
    done = call.last("response.done")["response"]
    assert (done["status"], done["metadata"]) == ("cancelled", {"n": "1"})
    assert call.actions[-1] == CancelTurn(1)
    assert kinds(call.start(2)) == ["response.created"]
    call.end(2)


def test_a_response_that_is_asked_for_again_is_not_cancelled(call: Watched) -> None:
    for kind in ("create", "cancel", "create"):
        assert call.send(f"response.{kind}") == []
    assert kinds(call.start(1)) == ["response.created"]
    call.end(1)


def test_what_answers_the_user_is_not_cancelled_before(call: Watched) -> None:
    for kind in ("create", "cancel"):
        assert call.send(f"response.{kind}") == []
    call.take(call.call.speech_started(0))
    assert call.refused("response.cancel")[0] == "response_cancel_not_active"
    call.take(call.call.speech_ended(16_000))
    assert kinds(call.start(1)) == ["response.created"]
    call.end(1)
