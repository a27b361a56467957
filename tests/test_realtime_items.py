"""What a client puts into the conversation: words, sound, pictures, and a history to go on from."""

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from agent.commands import AddAudio, AddPicture, AddText
from agent.media.audio import to_pcm16
from agent.realtime import Limits
from agent.types import MIC_RATE_HZ, Abilities, FloatArray, SessionSettings
from tests.rig.realtime_watch import Watched, kinds

ABLE = Abilities(speech=True, typed_text=True, pictures=True, recordings=True)
RED = "data:image/png;base64,iVBORw0KGgo="


@pytest.fixture
def call() -> Iterator[Watched]:
    """An open call; at the end the order of everything it said is checked."""
    watched = Watched(abilities=ABLE)
    yield watched
    watched.finish()


def tone(ms: int, rate_hz: int = 24_000) -> FloatArray:
    """A tone of 440 Hz."""
    count = ms * rate_hz // 1000
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(count) / rate_hz)).astype(np.float32)


def sound(ms: int = 500, **fields: object) -> dict[str, object]:
    """An audio part that holds a tone in PCM16 at 24 kHz."""
    data = to_pcm16(tone(ms)).tobytes()
    return {"type": "input_audio", "audio": base64.b64encode(data).decode(), **fields}


def text(words: str, kind: str = "input_text") -> dict[str, object]:
    return {"type": kind, "text": words}


def picture(**fields: object) -> dict[str, object]:
    return {"type": "input_image", "image_url": RED, **fields}


def create(call: Watched, *content: object, **fields: object) -> list[dict[str, Any]]:
    """The client puts in a message; what it is told."""
    item = {"type": "message", "role": "user", "content": list(content), **fields}
    return call.send("conversation.item.create", item=item)


# ---- sound ------------------------------------------------------------------------------------


def test_a_recording_reaches_the_engine_at_the_microphones_rate(call: Watched) -> None:
    added, done = create(call, sound(500, transcript="la"), id="mine")
    part = {"type": "input_audio", "transcript": "la"}
    assert added["item"]["content"] == done["item"]["content"] == [part]
    (heard,) = call.actions
    assert isinstance(heard, AddAudio) and heard.item_id == "mine"
    assert len(heard.samples) == MIC_RATE_HZ // 2
    middle = slice(1000, 7000)
    assert np.abs(heard.samples[middle] - tone(500, MIC_RATE_HZ)[middle]).max() < 0.02


def test_a_recording_is_in_the_sessions_format() -> None:
    settings = SessionSettings(model="echo", input_format="audio/pcmu")
    call = Watched(abilities=ABLE, settings=settings)
    silence = base64.b64encode(b"\xff" * 8000).decode()
    create(call, {"type": "input_audio", "audio": silence})
    (heard,) = call.actions
    assert isinstance(heard, AddAudio)
    assert len(heard.samples) == MIC_RATE_HZ and not np.any(heard.samples)


def test_a_recording_without_words_has_no_transcript(call: Watched) -> None:
    added, _ = create(call, sound())
    assert added["item"]["content"] == [{"type": "input_audio", "transcript": None}]
    assert call.retrieve(added["item"]["id"])["content"] == added["item"]["content"]


# ---- order ------------------------------------------------------------------------------------


def test_parts_are_told_back_as_they_stood_and_told_the_engine_pictures_first(
    call: Watched,
) -> None:
    parts = (text("Look"), sound(100), picture(detail="low"), text("and listen"), picture())
    added, _ = create(call, *parts, id="mine")
    assert added["item"]["content"] == [
        text("Look"),
        {"type": "input_audio", "transcript": None},
        {"type": "input_image", "detail": "low"},
        text("and listen"),
        {"type": "input_image"},
    ]
    expected = [AddPicture, AddPicture, AddAudio, AddText]
    assert [type(action) for action in call.actions] == expected
    assert call.actions[-1] == AddText("mine", "user", "Look\nand listen")


# ---- a history --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "told"),
    [
        (text("I said.", "output_text"), text("I said.", "output_text")),
        (
            {"type": "output_audio", "transcript": "I said.", "audio": "AAAA"},
            {"type": "output_audio", "transcript": "I said."},
        ),
        (text("I said.", "text"), text("I said.", "output_text")),
        (
            {"type": "audio", "transcript": "I said."},
            {"type": "output_audio", "transcript": "I said."},
        ),
    ],
)
def test_what_the_assistant_had_said_is_restored_as_words(
    call: Watched, part: dict[str, object], told: dict[str, object]
) -> None:
    added, _ = create(call, part, role="assistant", id="old")
    assert added["item"]["content"] == [told]
    assert added["item"]["role"] == "assistant"
    assert call.actions == [AddText("old", "assistant", "I said.")]


def test_instructions_may_stand_in_the_middle(call: Watched) -> None:
    create(call, text("Be brief."), role="system", id="s")
    assert call.actions == [AddText("s", "system", "Be brief.")]


# ---- what cannot be ---------------------------------------------------------------------------


def refused(call: Watched, *content: object, **fields: object) -> tuple[str, str]:
    """Put in what must be refused, with all else unchanged; code and param of the error."""
    actions, items = list(call.actions), kinds(call.events).count("conversation.item.added")
    (told,) = create(call, *content, **fields)
    assert call.actions == actions
    assert kinds(call.events).count("conversation.item.added") == items
    return told["error"]["code"], told["error"]["param"]


@pytest.mark.parametrize(
    ("part", "role", "code", "field"),
    [
        ({"type": "input_audio"}, "user", "missing_required_parameter", "audio"),
        ({"type": "input_audio", "audio": ""}, "user", "invalid_value", "audio"),
        ({"type": "input_audio", "audio": "A"}, "user", "invalid_value", "audio"),
        ({"type": "input_audio", "audio": "AAAA"}, "user", "invalid_value", "audio"),
        ({"type": "input_audio", "audio": 5}, "user", "invalid_type", "audio"),
        (sound(10, transcript=5), "user", "invalid_type", "transcript"),
        (picture(detail="huge"), "user", "invalid_value", "detail"),
        (sound(10), "assistant", "invalid_value", "type"),
        (picture(), "assistant", "invalid_value", "type"),
        (text("x"), "assistant", "invalid_value", "type"),
        (text("x", "output_text"), "user", "invalid_value", "type"),
        (text("x", "text"), "user", "invalid_value", "type"),
        (sound(10), "system", "invalid_value", "type"),
        ({"type": "output_audio"}, "assistant", "missing_required_parameter", "transcript"),
        ({"type": "smell"}, "user", "invalid_value", "type"),
    ],
)
def test_a_part_that_cannot_be_is_named(
    call: Watched, part: dict[str, object], role: str, code: str, field: str
) -> None:
    assert refused(call, part, role=role) == (code, f"item.content[0].{field}")


@pytest.mark.parametrize(
    ("part", "without"),
    [(sound(10), "recordings"), (picture(), "pictures"), (text("x"), "typed_text")],
)
def test_what_the_engine_cannot_take_is_unsupported(part: dict[str, object], without: str) -> None:
    every = {"typed_text": True, "pictures": True, "recordings": True}
    call = Watched(abilities=Abilities(speech=True, **(every | {without: False})))
    assert refused(call, part) == ("unsupported_by_engine", "item.content[0].type")


def test_an_item_is_bounded_in_words_pictures_and_sound() -> None:
    limits = Limits(max_text_chars=10, max_item_pictures=2, max_item_sound_s=1)
    call = Watched(abilities=ABLE, limits=limits)
    too_large = ("item_too_large", "item.content")
    assert refused(call, text("x" * 6), text("y" * 5)) == too_large
    assert refused(call, *[picture()] * 3) == too_large
    assert refused(call, sound(600), sound(600)) == too_large
    assert refused(call, sound(1200)) == ("item_too_large", "item.content[0].audio")
    assert kinds(create(call, text("x" * 10), picture(), picture(), sound(1000))) == [
        "conversation.item.added",
        "conversation.item.done",
    ]


def test_parts_beyond_what_an_item_may_have_are_not_looked_at() -> None:
    call = Watched(abilities=ABLE, limits=Limits(max_item_parts=3))
    unread: dict[str, object] = {"type": "no such part"}
    assert refused(call, *[unread] * 4) == ("item_too_large", "item.content")
    assert refused(call, *[unread] * 3) == ("invalid_value", "item.content[0].type")


def test_an_id_is_given_once(call: Watched) -> None:
    create(call, text("a"), id="mine")
    assert refused(call, text("b"), id="mine") == ("item_create_duplicate_item_id", "item.id")
    call.send("conversation.item.delete", item_id="mine")
    assert kinds(create(call, text("b"), id="mine"))[0] == "conversation.item.added"


# ---- cutting what was said --------------------------------------------------------------------


def test_any_turn_that_was_said_aloud_can_be_cut(call: Watched) -> None:
    said = []
    for turn in (1, 2, 3):
        call.spoken(turn, ("One ", 500), ("two", 500))
        call.drained(turn)
        said.append(call.last("response.output_item.added")["item"]["id"])
    for item_id, end_ms, cut_ms in zip(said, (600, -3, 9000), (600, 0, 1000), strict=True):
        call.send(
            "conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=end_ms
        )
        assert call.last("conversation.item.truncated")["audio_end_ms"] == cut_ms
    words = [call.retrieve(item_id)["content"][0]["transcript"] for item_id in said]
    assert words == ["One", "", "One two"]


def test_what_was_put_in_as_said_cannot_be_cut(call: Watched) -> None:
    create(call, {"type": "output_audio", "transcript": "I said."}, role="assistant", id="old")
    where = {"item_id": "old", "content_index": 0, "audio_end_ms": 5}
    (told,) = call.send("conversation.item.truncate", **where)
    assert told["error"]["param"] == "item_id"
