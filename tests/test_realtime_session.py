"""Each field of OpenAI's session: its type, what it does, what is told back; older spellings."""

from dataclasses import replace
from typing import Any

import pytest

from agent.errors import RequestError, UnsupportedError
from agent.realtime import parse_session, session_object
from agent.types import Abilities, SessionSettings, Transcription, TurnDetection
from tests.rig.realtime_schema import check_event
from tests.rig.realtime_watch import Watched, kinds

ABLE = Abilities(speech=True, tools=True, side_tools=True)
BASE = SessionSettings(model="echo")


def parsed(document: object, base: SessionSettings = BASE) -> SessionSettings:
    """`base` changed by `document`."""
    return parse_session(document, base, ABLE)


def told(settings: SessionSettings) -> dict[str, Any]:
    """The session object, checked to the letter."""
    session = session_object(settings, ABLE, "sess_1")
    event = {"type": "session.updated", "event_id": "event_1", "session": session}
    checked: dict[str, Any] = check_event(event)["session"]
    return checked


def of_input(**fields: object) -> dict[str, object]:
    """A session that sets `audio.input`."""
    return {"audio": {"input": fields}}


def detected(base: SessionSettings = BASE, **fields: object) -> SessionSettings:
    """`base` with another turn detection."""
    return parsed(of_input(turn_detection=fields), base)


def test_what_is_in_force_is_told_and_nothing_else() -> None:
    session = told(BASE)
    assert set(session) == {
        *("id", "object", "type", "model", "instructions", "output_modalities", "audio", "tools"),
        *("tool_choice", "parallel_tool_calls", "max_output_tokens", "truncation", "voice_agent"),
    }
    assert (session["tools"], session["tool_choice"]) == ([], "auto")
    assert (session["max_output_tokens"], session["truncation"]) == ("inf", "auto")
    assert session["audio"]["output"] == {
        "format": {"type": "audio/pcm", "rate": 24_000},
        "speed": 1.0,
    }
    assert "transcription" not in session["audio"]["input"]
    assert session["voice_agent"]["tools"] == "native"


# ---- formats ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["audio/pcm", "audio/pcmu", "audio/pcma"])
def test_each_format_is_taken_and_told(kind: str) -> None:
    rate = {"rate": 24_000} if kind == "audio/pcm" else {}
    audio = {"input": {"format": {"type": kind}}, "output": {"format": {"type": kind}}}
    settings = parsed({"audio": audio})
    assert (settings.input_format, settings.output_format) == (kind, kind)
    session = told(settings)["audio"]
    assert session["input"]["format"] == session["output"]["format"] == {"type": kind} | rate
    assert parsed({"audio": session}) == settings


@pytest.mark.parametrize(
    ("wanted", "param"),
    [
        ({"type": "audio/pcm", "rate": 16_000}, "rate"),
        ({"type": "audio/pcmu", "rate": 24_000}, "rate"),
        ({"type": "audio/opus"}, "type"),
        ({"type": None, "rate": 48_000}, "rate"),
        ("pcm16", ""),
    ],
)
@pytest.mark.parametrize("way", ["input", "output"])
def test_a_format_that_is_not_spoken_is_named(way: str, wanted: object, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        parsed({"audio": {way: {"format": wanted}}})
    assert caught.value.param == f"session.audio.{way}.format.{param}".rstrip(".")
    if param == "rate":
        assert "Hz" in str(caught.value)


# ---- transcription ----------------------------------------------------------------------------


def test_transcription_is_asked_for_changed_and_cleared() -> None:
    on = parsed(of_input(transcription={"model": "whisper-1", "language": "de"}))
    assert on.transcription == Transcription("whisper-1", "de")
    assert told(on)["audio"]["input"]["transcription"] == {"model": "whisper-1", "language": "de"}
    more = parsed(of_input(transcription={"prompt": "names: Ada", "delay": "low"}), on)
    assert more.transcription == Transcription("whisper-1", "de", "names: Ada")
    assert parsed(of_input(), more) == more
    assert parsed(of_input(transcription=None), more).transcription is None
    assert parsed(of_input(transcription={})).transcription == Transcription()


# ---- turn detection ---------------------------------------------------------------------------


def test_an_idle_timeout_is_set_told_kept_and_cleared() -> None:
    waits = detected(type="server_vad", idle_timeout_ms=5000)
    assert waits.turn_detection == TurnDetection(idle_timeout_ms=5000)
    assert told(waits)["audio"]["input"]["turn_detection"]["idle_timeout_ms"] == 5000
    assert detected(waits, threshold=0.4).turn_detection == TurnDetection(
        threshold=0.4, idle_timeout_ms=5000
    )
    assert detected(waits, idle_timeout_ms=None).turn_detection == TurnDetection()
    assert "idle_timeout_ms" not in told(BASE)["audio"]["input"]["turn_detection"]
    semantic = detected(waits, type="semantic_vad").turn_detection
    assert semantic == TurnDetection(kind="semantic_vad"), "it has none"
    with pytest.raises(RequestError, match="idle_timeout_ms"):
        detected(idle_timeout_ms=999)


@pytest.mark.parametrize(("word", "eagerness"), [("low", 0.25), ("medium", 0.5), ("high", 0.75)])
def test_semantic_eagerness_is_the_agents_readiness_to_speak(word: str, eagerness: float) -> None:
    settings = detected(replace(BASE, eagerness=0.1), type="semantic_vad", eagerness=word)
    assert settings.eagerness == eagerness
    session = told(settings)
    assert session["voice_agent"]["eagerness"] == eagerness
    assert session["audio"]["input"]["turn_detection"]["eagerness"] == word
    assert parsed(session) == settings
    assert detected(settings, type="semantic_vad", eagerness="auto").eagerness == 0.5


def test_a_word_is_over_with_the_detection_that_named_it() -> None:
    high = detected(type="semantic_vad", eagerness="high")
    off = parsed(of_input(turn_detection=None), high)
    for after in (off, detected(off, type="semantic_vad"), detected(high, type="server_vad")):
        assert after.eagerness == 0.5


def test_a_number_of_our_own_counts_beside_the_word() -> None:
    asked = of_input(turn_detection={"type": "semantic_vad", "eagerness": "high"})
    settings = parsed(asked | {"voice_agent": {"eagerness": 0.3}})
    assert settings.eagerness == 0.3
    assert settings.turn_detection == TurnDetection(kind="semantic_vad"), "high is not in force"
    later = parsed({"voice_agent": {"eagerness": 0.9}}, parsed(asked))
    assert (later.eagerness, told(later)["audio"]["input"]["turn_detection"]["eagerness"]) == (
        0.9,
        "auto",
    )


def test_no_eagerness_leaves_that_of_the_server() -> None:
    server = replace(BASE, eagerness=0.9)
    for asked in ({"type": "semantic_vad"}, {"type": "semantic_vad", "eagerness": "auto"}):
        assert detected(server, **asked).eagerness == 0.9
    assert detected(server, eagerness="low").turn_detection == TurnDetection(), "server_vad"


# ---- length -----------------------------------------------------------------------------------


def test_the_length_of_answers_is_bounded_and_freed() -> None:
    bounded = parsed({"max_output_tokens": 40})
    assert (bounded.max_output_tokens, told(bounded)["max_output_tokens"]) == (40, 40)
    assert parsed({}, bounded) == bounded
    assert parsed({"max_output_tokens": "inf"}, bounded) == BASE


# ---- what clears ------------------------------------------------------------------------------


def test_empty_values_clear() -> None:
    tool = {"type": "function", "name": "f"}
    document = {"instructions": "Hi.", "tools": [tool]} | of_input(transcription={"model": "m"})
    full = parsed(document)
    assert parsed({"instructions": ""}, full).instructions == ""
    assert parsed({"tools": []}, full).tools == ()
    assert parsed(of_input(turn_detection=None), full).turn_detection is None
    nothing: dict[str, object] = {"tracing": None, "prompt": None, "include": None}
    assert parsed(nothing | {"instructions": None, "tools": None}, full) == full


# ---- what changes nothing ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "document",
    [
        {"tracing": "auto"},
        {"tracing": {"group_id": "g", "workflow_name": "w", "metadata": {"a": 1}}},
        {"truncation": "disabled"},
        {"truncation": {"type": "retention_ratio", "retention_ratio": 0.8}},
        {"truncation": {"retention_ratio": 0.8, "token_limits": {"post_instructions": 500}}},
        {"include": ["item.input_audio_transcription.logprobs"]},
        {"reasoning": {"effort": "high"}},
        {"parallel_tool_calls": False},
        {"audio": {"output": {"speed": 1.2}}},
        of_input(noise_reduction={"type": "far_field", "strength": 0.5}),
        of_input(noise_reduction=None),
        {"model": "gpt-realtime-2.1", "expires_at": 5, "client_secret": {"value": "x"}},
        {"metadata": {"a": "b"}, "temperature": 0.8},
    ],
)
def test_a_hint_for_a_hosted_service_is_taken_lightly(document: object) -> None:
    assert parsed(document) == BASE


@pytest.mark.parametrize(
    ("document", "param"),
    [
        ({"tracing": "loud"}, "tracing"),
        ({"tracing": 5}, "tracing"),
        ({"tracing": {"workflow_name": 5}}, "tracing.workflow_name"),
        ({"tracing": {"metadata": "x"}}, "tracing.metadata"),
        ({"truncation": "sometimes"}, "truncation"),
        ({"truncation": {"type": "other"}}, "truncation.type"),
        ({"truncation": {"retention_ratio": 2}}, "truncation.retention_ratio"),
        ({"include": "everything"}, "include"),
        ({"include": ["a", 5]}, "include[1]"),
        ({"reasoning": {"effort": 1}}, "reasoning.effort"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"max_output_tokens": "lots"}, "max_output_tokens"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 2.5}, "max_output_tokens"),
        ({"temperature": "warm"}, "temperature"),
        ({"prompt": {}}, "prompt.id"),
        (of_input(noise_reduction={"type": "outer_space"}), "audio.input.noise_reduction.type"),
        (of_input(transcription="whisper-1"), "audio.input.transcription"),
        (of_input(transcription={"language": 5}), "audio.input.transcription.language"),
        ({"audio": {"output": {"speed": 9}}}, "audio.output.speed"),
        ({"voice_agent": {"tools": "beside"}}, "voice_agent.tools"),
    ],
)
def test_a_field_of_the_wrong_type_is_named(document: object, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        parsed(document)
    assert caught.value.param == f"session.{param}"


def test_a_stored_prompt_is_not_passed_over() -> None:
    with pytest.raises(UnsupportedError, match="instructions") as caught:
        parsed({"prompt": {"id": "pmpt_1", "version": "2"}})
    assert caught.value.param == "session.prompt"


# ---- older spellings --------------------------------------------------------------------------

BETA = {
    "modalities": ["text"],
    "voice": "anna",
    "input_audio_format": "g711_ulaw",
    "output_audio_format": "g711_alaw",
    "input_audio_transcription": {"model": "whisper-1"},
    "input_audio_noise_reduction": {"type": "near_field"},
    "turn_detection": {"type": "server_vad", "threshold": 0.3},
    "max_response_output_tokens": 99,
    "temperature": 0.8,
    "speed": 1.0,
}


def test_the_spelling_of_the_beta_is_understood() -> None:
    assert parsed(BETA) == replace(
        BASE,
        output_modalities=("text",),
        voice="anna",
        input_format="audio/pcmu",
        output_format="audio/pcma",
        transcription=Transcription("whisper-1"),
        turn_detection=TurnDetection(threshold=0.3),
        max_output_tokens=99,
    )
    off = parsed({"turn_detection": None, "input_audio_transcription": None}, parsed(BETA))
    assert (off.turn_detection, off.transcription) == (None, None)


def test_todays_spelling_counts_beside_an_older_one() -> None:
    audio = {"input": {"format": {"type": "audio/pcm"}, "turn_detection": None}}
    settings = parsed(BETA | {"output_modalities": ["audio"], "audio": audio})
    assert (settings.input_format, settings.turn_detection) == ("audio/pcm", None)
    assert settings.output_modalities == ("audio",)
    assert settings.output_format == "audio/pcma"


@pytest.mark.parametrize(
    "rate",
    [
        {"sample_rate_hz": 16_000},
        {"audio": {"input": {"sample_rate_hz": 16_000}}},
        {"audio": {"output": {"sample_rate_hz": 16_000}}},
        {"input_audio_format": "pcm16", "sample_rate_hz": 16_000},
    ],
)
def test_a_rate_in_another_spelling_is_not_taken_for_ours(rate: dict[str, object]) -> None:
    with pytest.raises(RequestError, match="24000 Hz") as caught:
        parsed(rate)
    assert str(caught.value.param).endswith("format.rate")
    assert parsed({"sample_rate_hz": 24_000}) == BASE


@pytest.mark.parametrize(
    ("document", "param"),
    [
        ({"input_audio_format": "mp3"}, "audio.input.format.type"),
        ({"input_audio_format": 5}, "audio.input.format"),
        ({"modalities": "audio"}, "output_modalities"),
        ({"voice": 5}, "audio.output.voice"),
        ({"turn_detection": {"type": "psychic"}}, "audio.input.turn_detection.type"),
        ({"max_response_output_tokens": -1}, "max_output_tokens"),
        ({"voice": "x", "audio": 5}, "audio"),
        ({"voice": "x", "audio": {"output": []}}, "audio.output"),
    ],
)
def test_an_error_in_an_older_spelling_names_todays_field(document: object, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        parsed(document)
    assert caught.value.param == f"session.{param}"


def test_the_fields_may_come_without_a_session_around_them() -> None:
    call = Watched()
    (updated,) = call.send("session.update", event_id="mine", instructions="Hi.", voice="anna")
    assert updated["session"]["instructions"] == "Hi."
    assert call.call.settings.voice == "anna"


def test_a_response_is_asked_for_in_the_spelling_of_the_beta() -> None:
    call = Watched()
    response = {"modalities": ["text"], "max_output_tokens": 5, "temperature": 0.6}
    assert kinds(call.send("response.create", response=response)) == []
    call.start(1)
    asked = call.last("response.created")["response"]
    assert (asked["output_modalities"], asked["max_output_tokens"]) == (["text"], 5)
