"""The session object: read strictly, told back truthfully."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args

import pytest
from annotated_types import Ge, Le, MaxLen, MinLen
from pydantic.fields import FieldInfo

from agent.config import Config
from agent.errors import RequestError, UnsupportedError
from agent.realtime import Limits, RealtimeCall, parse_opening, parse_session, session_object
from agent.types import Abilities, SessionSettings, Tool, Transcription, TurnDetection
from tests.rig.realtime_schema import check_event

BASE = SessionSettings(model="echo", instructions="Be kind.", voice="anna")
VOICES = Abilities(speech=True, voices=("anna", "bert"), languages=("en", "de"))


def parsed(document: object, abilities: Abilities = VOICES) -> SessionSettings:
    """`BASE` changed by `document`."""
    return parse_session(document, BASE, abilities)


def told(settings: SessionSettings, abilities: Abilities = VOICES) -> dict[str, Any]:
    """The session object, checked to the letter."""
    session = session_object(settings, abilities, "sess_1")
    event = {"type": "session.updated", "event_id": "event_1", "session": session}
    checked: dict[str, Any] = check_event(event)["session"]
    return checked


def test_an_empty_session_changes_nothing() -> None:
    assert parsed({}) == BASE
    assert parsed({"type": "realtime", "audio": None, "instructions": None}) == BASE


def test_the_first_update_of_the_agents_sdk_is_served() -> None:
    audio_format = {"type": "audio/pcm", "rate": 24000}
    session = {
        "type": "realtime",
        "instructions": "You are a guide.",
        "model": "gpt-realtime-2.1",
        "output_modalities": ["audio"],
        "audio": {
            "input": {
                "format": audio_format,
                "noise_reduction": None,
                "transcription": {"model": "gpt-4o-mini-transcribe"},
                "turn_detection": {"type": "semantic_vad"},
            },
            "output": {"format": audio_format, "speed": 1, "voice": "marin"},
        },
        "tools": [],
        "tool_choice": "auto",
    }
    settings = parsed(session)
    assert settings.turn_detection == TurnDetection(kind="semantic_vad")
    expected = replace(
        BASE,
        instructions="You are a guide.",
        turn_detection=settings.turn_detection,
        transcription=Transcription("gpt-4o-mini-transcribe"),
    )
    assert settings == expected
    echoed = told(settings)
    assert (echoed["model"], echoed["tools"]) == ("echo", [])
    assert echoed["audio"]["output"]["voice"] == "anna"
    assert echoed["audio"]["input"]["transcription"] == {"model": "gpt-4o-mini-transcribe"}


def test_what_is_told_back_can_be_sent_again() -> None:
    wanted = {
        "instructions": "",
        "output_modalities": ["text"],
        "audio": {
            "input": {"turn_detection": {"type": "server_vad", "threshold": 0.25}},
            "output": {"voice": {"id": "bert"}},
        },
        "voice_agent": {
            "language": "de",
            "prompt_voice": "anna",
            "eagerness": 1,
            "mode": "half_duplex",
            "max_slices": 9,
            "pictures_per_unit": 8,
        },
    }
    settings = parsed(wanted)
    assert settings.turn_detection == TurnDetection(threshold=0.25)
    assert (settings.instructions, settings.output_modalities) == ("", ("text",))
    assert (settings.voice, settings.language, settings.mode) == ("bert", "de", "half_duplex")
    assert (settings.eagerness, settings.max_slices, settings.pictures_per_unit) == (1.0, 9, 8)
    assert settings.prompt_voice == "anna"
    assert parse_session(told(settings), BASE, VOICES) == settings


def test_the_model_takes_its_manner_only_from_a_voice_that_there_is() -> None:
    wanted = {"voice_agent": {"prompt_voice": "carl"}}
    with pytest.raises(RequestError, match="anna, bert") as told_so:
        parsed(wanted)
    assert told_so.value.param == "session.voice_agent.prompt_voice"
    with pytest.raises(UnsupportedError, match="no voices"):
        parse_session(wanted, BASE, Abilities())
    assert parsed({"voice_agent": {"prompt_voice": ""}}).prompt_voice == ""


def test_an_engine_without_a_voice_answers_in_text_whatever_is_asked() -> None:
    mute = Abilities()
    base = replace(BASE, output_modalities=("text",))
    for asked in ({}, {"output_modalities": ["audio"]}, {"output_modalities": ["audio", "text"]}):
        settings = parse_session(asked, base, mute)
        assert settings.output_modalities == ("text",)
        assert told(settings, mute)["output_modalities"] == ["text"]
    for wrong in (["noise"], []):
        with pytest.raises(RequestError, match="output_modalities"):
            parse_session({"output_modalities": wrong}, base, mute)


def test_turn_detection_is_off_when_null_and_kept_when_absent() -> None:
    off = parsed({"audio": {"input": {"turn_detection": None}}})
    assert off.turn_detection is None
    assert told(off)["audio"]["input"]["turn_detection"] is None
    assert parse_session({}, off, VOICES).turn_detection is None
    one_field = {"audio": {"input": {"turn_detection": {"silence_duration_ms": 900}}}}
    tuned = parse_session(one_field, off, VOICES).turn_detection
    assert tuned == TurnDetection(silence_duration_ms=900)
    quick = replace(BASE, turn_detection=TurnDetection(threshold=0.9))
    merged = parse_session(one_field, quick, VOICES).turn_detection
    assert merged == TurnDetection(threshold=0.9, silence_duration_ms=900)


def test_a_session_without_a_voice_names_none() -> None:
    assert "voice" not in told(replace(BASE, voice=""))["audio"]["output"]


def test_an_engine_that_lists_no_voices_takes_any() -> None:
    document = {"audio": {"output": {"voice": "zoe"}}}
    assert parsed(document, Abilities()).voice == "zoe"


def detection(**fields: object) -> dict[str, object]:
    """A session that sets turn detection."""
    return {"audio": {"input": {"turn_detection": fields}}}


@pytest.mark.parametrize(
    ("document", "param", "code"),
    [
        (None, "session", "invalid_type"),
        ("realtime", "session", "invalid_type"),
        ({"type": "transcription"}, "session.type", "invalid_value"),
        ({"type": 1}, "session.type", "invalid_type"),
        ({"model": 1}, "session.model", "invalid_type"),
        ({"instructions": ["x"]}, "session.instructions", "invalid_type"),
        ({"instructions": "x" * 100_001}, "session.instructions", "string_above_max_length"),
        ({"output_modalities": []}, "session.output_modalities", "invalid_value"),
        ({"output_modalities": "audio"}, "session.output_modalities", "invalid_type"),
        ({"output_modalities": ["smell"]}, "session.output_modalities", "invalid_type"),
        ({"output_modalities": [[]]}, "session.output_modalities", "invalid_type"),
        ({"audio": 1}, "session.audio", "invalid_type"),
        ({"audio": {"input": []}}, "session.audio.input", "invalid_type"),
        (detection(type="psychic"), "session.audio.input.turn_detection.type", "invalid_value"),
        (detection(threshold=-0.1), "session.audio.input.turn_detection.threshold", None),
        (detection(threshold=True), "session.audio.input.turn_detection.threshold", None),
        (detection(prefix_padding_ms=5001), "session.audio.input.turn_detection.*", None),
        (detection(silence_duration_ms=99), "session.audio.input.turn_detection.*", None),
        (detection(silence_duration_ms=500.5), "session.audio.input.turn_detection.*", None),
        (detection(idle_timeout_ms="5"), "session.audio.input.turn_detection.*", None),
        (detection(create_response=1), "session.audio.input.turn_detection.*", None),
        (detection(type="semantic_vad", eagerness="wild"), "session.audio.input.*", None),
        ({"audio": {"output": {"voice": 3}}}, "session.audio.output.voice", "invalid_type"),
        ({"audio": {"output": {"voice": {}}}}, "session.audio.output.voice.id", None),
        ({"audio": {"output": {"voice": "zoe"}}}, "session.audio.output.voice", "invalid_value"),
        ({"audio": {"output": {"speed": "fast"}}}, "session.audio.output.speed", None),
        ({"tools": {}}, "session.tools", "invalid_type"),
        ({"tools": [1]}, "session.tools[0]", "invalid_type"),
        ({"tool_choice": 5}, "session.tool_choice", "invalid_type"),
        ({"voice_agent": []}, "session.voice_agent", "invalid_type"),
        ({"voice_agent": {"eagerness": 1.5}}, "session.voice_agent.eagerness", None),
        ({"voice_agent": {"mode": "triplex"}}, "session.voice_agent.mode", "invalid_value"),
        ({"voice_agent": {"max_slices": 0}}, "session.voice_agent.max_slices", None),
        ({"voice_agent": {"max_slices": 10}}, "session.voice_agent.max_slices", None),
        ({"voice_agent": {"pictures_per_unit": -1}}, "session.voice_agent.pictures_per_unit", None),
        ({"voice_agent": {"pictures_per_unit": 9}}, "session.voice_agent.pictures_per_unit", None),
        ({"voice_agent": {"language": 1}}, "session.voice_agent.language", "invalid_type"),
    ],
)
def test_a_bad_field_is_named(document: object, param: str, code: str | None) -> None:
    with pytest.raises(RequestError) as caught:
        parsed(document)
    named = caught.value.param or ""
    assert named.startswith(param[:-1]) if param.endswith("*") else named == param
    assert code is None or caught.value.code == code


def test_a_language_the_engine_does_not_speak_is_unsupported() -> None:
    with pytest.raises(UnsupportedError) as caught:
        parsed({"voice_agent": {"language": "tlh"}})
    assert caught.value.param == "session.voice_agent.language"
    assert parsed({"voice_agent": {"language": "tlh"}}, Abilities()).language == "tlh"


def test_the_voice_is_locked_only_against_change() -> None:
    document = {"audio": {"output": {"voice": "bert"}}}
    with pytest.raises(RequestError) as caught:
        parse_session(document, BASE, VOICES, voice_locked=True)
    assert caught.value.code == "cannot_update_voice"
    same = {"audio": {"output": {"voice": "anna"}}}
    assert parse_session(same, BASE, VOICES, voice_locked=True) == BASE
    for abilities in (VOICES, Abilities()):
        default = {"audio": {"output": {"voice": "marin"}}}
        assert parse_session(default, BASE, abilities, voice_locked=True) == BASE


# ---- what the server may be configured to, a client may send back ------------------------------

SHARED = [("session", name) for name in type(Config().session).model_fields] + [
    ("turns", name) for name in type(Config().turns).model_fields if name != "guard_s"
]
"""The settings that a call starts with and that its session object tells."""


def extremes(field: FieldInfo) -> Iterator[object]:
    """The values at both ends of what the server's configuration allows; fails on open ends."""
    if choices := get_args(field.annotation):
        yield from choices
    elif field.annotation is bool:
        yield from (False, True)
    elif field.annotation is str:
        least = next((note.min_length for note in field.metadata if isinstance(note, MinLen)), 0)
        (most,) = (note.max_length for note in field.metadata if isinstance(note, MaxLen))
        # The last is the longest there is in JSON: two escapes for each character.
        yield from (least * "x", most * "x", most * "\N{GRINNING FACE}")
    else:
        (low,) = (note.ge for note in field.metadata if isinstance(note, Ge))
        (high,) = (note.le for note in field.metadata if isinstance(note, Le))
        plain = field.annotation
        yield from (low, high) if plain is int else (float(low), float(high))


def configurations() -> Iterator[dict[str, dict[str, object]]]:
    """Each setting at each of its ends, then all at their first and all at their last."""
    ends = {
        (section, name): list(extremes(type(getattr(Config(), section)).model_fields[name]))
        for section, name in SHARED
    }
    for (section, name), values in ends.items():
        for value in values:
            yield {section: {name: value}}
    for which in (0, -1):
        tree: dict[str, dict[str, object]] = {"session": {}, "turns": {}}
        for (section, name), values in ends.items():
            tree[section][name] = values[which]
        yield tree


@pytest.mark.parametrize("abilities", [VOICES, Abilities()])
def test_a_client_may_send_back_the_session_it_was_given(abilities: Abilities) -> None:
    tried = 0
    for tree in configurations():
        settings = Config.model_validate(tree).session_settings("echo")
        if not abilities.speech:
            settings = replace(settings, output_modalities=("text",))
        call = RealtimeCall("rtc_1", settings, abilities)
        (created, *_) = call.open().events
        given = json.loads(json.dumps(created["session"]))
        answer = call.receive(json.dumps({"type": "session.update", "session": given}))
        told = [event["type"] for event in answer.events]
        assert told == ["session.updated"], (str(tree)[:200], answer.events)
        assert call.settings == settings
        assert answer.events[0]["session"] == given
        tried += 1
    assert tried > 2 * len(SHARED)


# ---- the session that comes with the offer -----------------------------------------------------

TOOL = {"type": "function", "name": "f", "parameters": {}}


def test_tools_of_the_offer_are_those_of_an_update() -> None:
    abilities = Abilities(tools=True)
    document = {"type": "realtime", "instructions": "Hi.", "tools": [TOOL]}
    settings = parse_opening(document, BASE, abilities, Limits())
    opened = RealtimeCall("rtc_1", settings, abilities, Limits())
    updated = RealtimeCall("rtc_2", BASE, abilities)
    updated.receive(json.dumps({"type": "session.update", "session": document}))
    assert opened.session["tools"] == updated.session["tools"] == [TOOL]
    assert opened.settings == updated.settings
    assert opened.settings == replace(BASE, instructions="Hi.", tools=(Tool("f"),))
    assert parse_opening({}, BASE, abilities, Limits()) == BASE


@pytest.mark.parametrize(
    "document",
    [{"tools": [1]}, {"tools": [{"x": float("nan")}]}, {"tools": {}}, {"instructions": "\ud800"}],
)
def test_an_offer_is_held_to_what_an_update_is_held_to(document: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        parse_opening(document, BASE, VOICES, Limits())
    call = RealtimeCall("rtc_1", BASE, VOICES)
    answer = call.receive(json.dumps({"type": "session.update", "session": document}))
    assert [event["type"] for event in answer.events] == ["error"]
