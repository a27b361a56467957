"""What an out-of-band response is to answer: items of its own, or the conversation's, bounded."""

import base64
from collections.abc import Iterator

import pytest

from agent.chat_types import ChatSound
from agent.realtime import Limits
from agent.realtime.question import ItemSound, PictureFile
from agent.types import Abilities, SessionSettings, Tool, UserText
from tests.rig.asking_call import ABLE, WRITTEN, Asking
from tests.rig.realtime_watch import Watched, kinds, message

PICTURE = "data:image/png;base64,AAAA"


@pytest.fixture
def call() -> Iterator[Asking]:
    """An open call; at the end the order of everything it said is checked."""
    asking = Asking(abilities=ABLE)
    yield asking
    asking.finish()


@pytest.mark.parametrize(
    ("response", "code", "param"),
    [
        ({"output_modalities": ["audio"]}, "unsupported_by_engine", "response.output_modalities"),
        ({"output_modalities": None}, "unsupported_by_engine", "response.output_modalities"),
        ({"prompt": {"id": "p"}}, "unsupported_by_engine", "response.prompt"),
        ({"tools": [{"type": "mcp"}]}, "unsupported_by_engine", "response.tools[0]"),
        ({"metadata": {"a": 1}}, "invalid_type", "response.metadata.a"),
        ({"max_output_tokens": 0}, "invalid_value", "response.max_output_tokens"),
        ({"instructions": 3}, "invalid_type", "response.instructions"),
        ({"input": {}}, "invalid_type", "response.input"),
        ({"input": ["text"]}, "invalid_type", "response.input[0]"),
        ({"input": []}, "missing_required_parameter", "response.input"),
        ({"input": [{"type": "noise"}]}, "unsupported_by_engine", "response.input[0].type"),
        ({"input": [message("Hi", role="judge")]}, "invalid_value", "response.input[0].role"),
        ({"input": [{"type": "item_reference"}]}, "missing_required_parameter",
         "response.input[0].id"),
        ({"input": [{"type": "item_reference", "id": "item_9"}]}, "item_not_found",
         "response.input[0].id"),
        ({"input": [message("Hi")] * 129}, "item_too_large", "response.input"),
        ({"input": [message("x" * 30_000)] * 2}, "item_too_large", "response.input"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_named_and_nothing_begins(
    call: Asking, response: dict[str, object], code: str, param: str
) -> None:
    asked = {"conversation": "none", "output_modalities": WRITTEN, **response}
    assert call.refused("response.create", response=asked) == (code, param)


def test_pictures_and_sound_are_bounded_all_together(call: Asking) -> None:
    picture = {"type": "input_image", "image_url": PICTURE}
    seen = message("") | {"content": [picture] * 9}
    second = base64.b64encode(bytes(48_000 * 4)).decode()
    heard = message("") | {"content": [{"type": "input_audio", "audio": second}]}
    asked = {"conversation": "none", "output_modalities": WRITTEN}
    for item, count in ((seen, 2), (heard, 8)):
        limits = Limits(max_message_bytes=16_000_000)
        large = Asking(abilities=ABLE, limits=limits)
        refused = large.refused("response.create", response=asked | {"input": [item] * count})
        assert refused == ("item_too_large", "response.input")
        large.send("response.create", response=asked | {"input": [item] * (count - 1)})
        assert kinds(large.events)[-1] == "response.created"


@pytest.mark.parametrize("abilities", [Abilities(), Abilities(chat=True, typed_text=True)])
def test_where_nobody_answers_it_is_refused_by_name(abilities: Abilities) -> None:
    call = Watched(abilities=abilities)
    asked = {"conversation": "none", "output_modalities": WRITTEN}
    told = call.refused("response.create", response=asked)
    assert told == ("unsupported_by_engine", "response.conversation")


@pytest.mark.parametrize("conversation", ["conv_1", "other", ""])
def test_there_is_no_other_conversation(call: Asking, conversation: str) -> None:
    asked = {"conversation": conversation, "output_modalities": WRITTEN}
    told = call.refused("response.create", response=asked)
    assert told == ("unsupported_by_engine", "response.conversation")


def test_items_of_its_own_are_shown_in_their_order(call: Asking) -> None:
    content = [
        {"type": "input_text", "text": "What"},
        {"type": "input_image", "image_url": PICTURE},
        {"type": "input_audio", "audio": base64.b64encode(bytes(4800)).decode()},
        {"type": "input_text", "text": "is it?"},
    ]
    answer = {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "text", "text": "A dog"}],
    }
    call.ask(input=[answer, message("") | {"content": content}], instructions="Be exact.")
    assert call.question.instructions == "Be exact."
    (first, *rest) = call.shown()
    assert first == ("assistant", "A dog")
    (_, picture), (_, sound), (_, words) = rest
    assert picture == PictureFile(b"\0\0\0")
    assert isinstance(sound, ChatSound) and len(sound.samples) == 1600
    assert words == "What\nis it?"


def test_items_of_the_conversation_are_named_or_all_of_them_shown() -> None:
    settings = SessionSettings(model="echo", instructions="Be kind.", tools=(Tool("f"),))
    call = Asking(abilities=ABLE, settings=settings)
    spoken, written = call.user_says(), call.user_says(48_000, 64_000)
    call.engine(UserText(written, "Are you there?"))
    call.send("conversation.item.create", item=message("Hello", id="item_typed"))
    call.spoken(1, ("One ", 500), ("two ", 500))
    call.call.heard(1, 600)
    everything = [
        ("user", ItemSound(spoken)),
        ("user", "Are you there?"),
        ("user", "Hello"),
        ("assistant", "One"),
    ]
    call.ask(instructions=None)
    assert call.shown() == everything, "of what is playing, what was heard by now"
    assert (call.question.instructions, call.question.tools) == ("Be kind.", (Tool("f"),))
    named = [{"type": "item_reference", "id": one} for one in ("item_typed", spoken)]
    call.ask(input=[*named, message("Was that a question?")], instructions="", tools=[])
    assert call.shown() == [everything[2], everything[0], ("user", "Was that a question?")]
    assert (call.question.instructions, call.question.tools) == ("", ())
    call.finish()


def test_the_sound_of_an_item_is_shown_once(call: Asking) -> None:
    named = {"type": "item_reference", "id": call.user_says()}
    call.ask(input=[named])
    assert len(call.shown()) == 1
    twice = {"conversation": "none", "output_modalities": WRITTEN, "input": [named, named]}
    assert call.refused("response.create", response=twice) == ("invalid_value", "response.input")


@pytest.mark.parametrize(
    ("asked", "tokens", "told"), [({}, 200, 200), ({"max_output_tokens": "inf"}, None, "inf")]
)
def test_its_length_is_bounded_as_the_session_s_unless_it_says_otherwise(
    asked: dict[str, object], tokens: int | None, told: object
) -> None:
    call = Asking(abilities=ABLE, settings=SessionSettings(model="echo", max_output_tokens=200))
    call.ask(**asked)
    assert call.question.max_tokens == tokens
    assert call.last("response.created")["response"]["max_output_tokens"] == told


def test_pictures_of_the_conversation_leave_a_mark_and_recordings_are_looked_up(
    call: Asking,
) -> None:
    sound = {"type": "input_audio", "audio": "AAAAAA=="}
    picture = {"type": "input_image", "image_url": PICTURE}
    call.send("conversation.item.create", item=message("", id="one") | {"content": [picture]})
    call.send("conversation.item.create", item=message("", id="two") | {"content": [sound]})
    told = sound | {"transcript": "Hello"}
    call.send("conversation.item.create", item=message("", id="three") | {"content": [told]})
    call.ask()
    assert call.shown() == [("user", "[a picture]"), ("user", ItemSound("two")), ("user", "Hello")]


def test_of_a_long_conversation_the_newest_is_shown_and_no_result_without_its_call() -> None:
    limits = Limits(max_context_items=3, max_context_chars=100)
    call = Asking(abilities=ABLE, limits=limits)
    made = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "c", "output": "4"}
    for item in (message("old"), made, result, message("a"), message("b")):
        call.send("conversation.item.create", item=item)
    call.ask()
    assert call.shown() == [("user", "a"), ("user", "b")]
    call.send("conversation.item.create", item=message("x" * 99))
    call.ask()
    assert call.shown() == [("user", "b"), ("user", "x" * 99)]
    call.send("conversation.item.create", item=message("y" * 200))
    call.ask()
    assert call.shown() == [("user", "y" * 200)], "the last of all, whatever its length"
