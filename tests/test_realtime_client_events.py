"""What a client may send, and what it is told when it may not."""

import json
from collections.abc import Iterator

import pytest

from agent.commands import ClearInput, CommitInput, ForceListen, Pause, Resume, UpdateSettings
from agent.errors import UnsupportedError
from agent.realtime import Limits, PlayoutReport
from agent.types import Abilities, SessionSettings
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


# ---- session.update ---------------------------------------------------------------------------


def test_the_session_is_updated_and_told_back(call: Watched) -> None:
    audio = {"input": {"turn_detection": {"type": "server_vad", "silence_duration_ms": 800}}}
    session = {"type": "realtime", "instructions": "Be brief.", "audio": audio}
    (updated,) = call.send("session.update", session=session)
    assert updated["session"]["instructions"] == "Be brief."
    assert updated["session"]["audio"]["input"]["turn_detection"]["silence_duration_ms"] == 800
    assert updated["session"]["id"] == call.events[0]["session"]["id"]
    assert call.actions == [UpdateSettings(call.call.settings)]
    assert call.call.settings.instructions == "Be brief."


def test_an_update_that_changes_nothing_is_confirmed_without_an_action(call: Watched) -> None:
    tracing = {"type": "realtime", "tracing": "auto", "from_the_future": 1}
    assert kinds(call.send("session.update", session=tracing)) == ["session.updated"]
    assert call.actions == []


def test_a_bad_field_changes_nothing_at_all(call: Watched) -> None:
    audio = {"input": {"turn_detection": {"threshold": 2}}}
    session = {"instructions": "Half of it", "audio": audio}
    told = call.refused("session.update", session=session)
    assert told == ("invalid_value", "session.audio.input.turn_detection.threshold")
    assert call.refused("session.update") == ("missing_required_parameter", "session")
    assert call.refused("session.update", session=[1]) == ("invalid_type", "session")


def test_the_voice_stays_once_the_agent_has_spoken() -> None:
    call = Watched(settings=SessionSettings(model="echo", voice="anna"))
    call.send("session.update", session={"audio": {"output": {"voice": {"id": "bert"}}}})
    assert call.call.settings.voice == "bert"
    call.speak(1, ("Hi", 100))
    session = {"instructions": "x", "audio": {"output": {"voice": "carl"}}}
    told = call.refused("session.update", session=session)
    assert told == ("cannot_update_voice", "session.audio.output.voice")
    session["audio"] = {"output": {"voice": "bert"}}
    assert kinds(call.send("session.update", session=session)) == ["session.updated"]


# ---- the input buffer -------------------------------------------------------------------------


def test_audio_by_message_is_refused(call: Watched) -> None:
    told = call.refused("input_audio_buffer.append", audio="AAAA")
    assert told == ("unsupported_over_webrtc", "type")


def test_the_client_commits_where_no_detector_does(call: Watched) -> None:
    code, _ = call.refused("input_audio_buffer.commit")
    assert code == "input_audio_buffer_commit_empty"
    call.send("session.update", session={"audio": {"input": {"turn_detection": None}}})
    events = call.send("input_audio_buffer.commit")
    expected = ["input_audio_buffer.committed", "conversation.item.added"]
    assert kinds(events) == [*expected, "conversation.item.done"]
    assert call.actions[-1] == CommitInput(events[0]["item_id"])
    assert call.take(call.call.speech_started(16_000)) == []


def test_what_is_committed_or_cleared_ends_where_the_microphone_stood(call: Watched) -> None:
    assert kinds(call.send("input_audio_buffer.clear")) == ["input_audio_buffer.cleared"]
    assert call.actions == [], "a detector commits what there is"
    call.send("session.update", session={"audio": {"input": {"turn_detection": None}}})
    clear, commit = (json.dumps({"type": f"input_audio_buffer.{what}"}) for what in CUTS)
    assert kinds(call.take(call.call.receive(clear, 17_440))) == ["input_audio_buffer.cleared"]
    assert call.actions[-1] == ClearInput(17_440)
    committed, *_ = call.take(call.call.receive(commit, 20_000))
    assert call.actions[-1] == CommitInput(committed["item_id"], 20_000)


# ---- our extension ----------------------------------------------------------------------------


def test_our_own_page_pauses_and_hushes(call: Watched) -> None:
    call.send("voice_agent.pause")
    call.send("voice_agent.resume")
    call.send("voice_agent.listen", on=True)
    assert call.actions == [Pause(), Resume(), ForceListen(True)]
    assert call.refused("voice_agent.listen", on="yes") == ("invalid_type", "on")


def test_the_page_tells_what_it_plays(call: Watched) -> None:
    assert call.send("voice_agent.playout", rtp_timestamp=123456, at_ms=10.5) == []
    assert call.actions == [PlayoutReport(123456, 10.5)]


def test_playout_reports_do_not_make_a_refused_command_nameless(call: Watched) -> None:
    call.send("voice_agent.listen", on=True, event_id="mine")
    (command,) = call.actions
    for number in range(100):
        call.send("voice_agent.playout", rtp_timestamp=number, at_ms=number, event_id="other")
    refusal = call.call.failed(UnsupportedError("not here"), command)  # type: ignore[arg-type]
    assert call.take(refusal)[0]["error"]["event_id"] == "mine"


@pytest.mark.parametrize(
    ("rtp_timestamp", "at_ms", "read"),
    [
        ("4294967295", "0", PlayoutReport(2**32 - 1, 0.0)),
        ("4294967297.9", "-5", PlayoutReport(1, -5.0)),
        ("-1", "1e15", PlayoutReport(2**32 - 1, 1e15)),
        ("1e300", "1", None),
        ("1", "-1e300", None),
        ("1e999", "1", None),
        ("1", "9" * 400, None),
        ("9" * 400, "1", None),
    ],
)
def test_playout_in_wild_numbers_is_passed_over(
    call: Watched, rtp_timestamp: str, at_ms: str, read: PlayoutReport | None
) -> None:
    fields = f'"rtp_timestamp":{rtp_timestamp},"at_ms":{at_ms},"n":[1e999]'
    assert call.take(call.call.receive(f'{{"type":"voice_agent.playout",{fields}}}')) == []
    assert call.actions == ([] if read is None else [read])


@pytest.mark.parametrize("field", ["rtp_timestamp", "at_ms"])
@pytest.mark.parametrize("wrong", ["1", True, [], {}, None, "\ud800"])
def test_playout_that_is_no_number_is_passed_over(call: Watched, field: str, wrong: object) -> None:
    fields = {"rtp_timestamp": 1, "at_ms": 1} | {field: wrong}
    assert call.send("voice_agent.playout", **fields) == []
    assert call.actions == []


@pytest.mark.parametrize("fields", [{}, {"at_ms": 1}, {"rtp_timestamp": 1}])
def test_playout_with_nothing_in_it_is_passed_over(call: Watched, fields: dict[str, int]) -> None:
    assert call.send("voice_agent.playout", **fields) == []
    assert call.actions == []


# ---- messages that are none -------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        b"\x00\x01",
        b'{"type":"session.update"}',
        "",
        "hello",
        "[]",
        "null",
        '{"type":"session.update","session":{"temperature":NaN}}',
        '{"type":"session.update","session":{"temperature":1e999}}',
        '{"type":"session.update","session":{"n":' + "9" * 30 + "}}",
        '{"type":"session.update","session":{"n":' + "9" * 9999 + "}}",
        '{"type":"session.update","session":{"instructions":"\\ud800"}}',
        '{"type":"session.update","session":{"\\udfff":1}}',
        '{"type":"session.update","session":' + '{"a":' * 90 + "1" + "}" * 90 + "}",
        "[" * 50_000,
        '{"a":' * 50_000,
    ],
)
def test_what_is_no_event_is_answered_and_survived(call: Watched, text: str | bytes) -> None:
    (told,) = call.take(call.call.receive(text))
    assert told["error"]["code"] == "invalid_json"
    assert call.actions == []
    assert kinds(call.send("session.update", session={})) == ["session.updated"]


def test_an_event_too_large_is_not_read() -> None:
    call = Watched(limits=Limits(max_message_bytes=100))
    call.send("session.update", session={"instructions": "é" * 200})
    assert call.error()["code"] == "message_too_large"
    exact = json.dumps({"type": "voice_agent.pause", "pad": ""})
    padded = exact.replace('""', '"' + "é" * ((100 - len(exact)) // 2) + '"')
    assert call.take(call.call.receive(padded)) == []
    assert call.actions == [Pause()]


def test_what_others_in_the_call_send_has_a_limit_of_its_own() -> None:
    call = Watched(limits=Limits(max_message_bytes=100, max_sideband_bytes=200))
    for size, codes in ((150, []), (201, ["message_too_large"])):
        text = json.dumps({"type": "voice_agent.pause", "pad": ""}).ljust(size)
        assert call.take(call.call.receive(text))[0]["error"]["code"] == "message_too_large"
        told = call.take(call.call.receive(text, is_client=False))
        assert [one["error"]["code"] for one in told if one["type"] == "error"] == codes
    assert call.actions == [Pause()]


@pytest.mark.parametrize("values", ["1,2,3", "[],{}", '{"a":1,"b":2}'])
def test_an_event_of_too_many_values_is_not_read(values: str) -> None:
    call = Watched(limits=Limits(max_values=4))
    call.take(call.call.receive('{"type":"voice_agent.pause","pad":[' + values + "]}"))
    assert call.error()["code"] == "message_too_large"
    assert call.actions == []
    call.take(call.call.receive('{"type":"voice_agent.pause","pad":[1,2]}'))
    assert call.actions == [Pause()]


@pytest.mark.parametrize(
    ("fields", "param"), [({}, "type"), ({"type": 3}, "type"), ({"type": "response.sing"}, "type")]
)
def test_an_unknown_event_is_named(call: Watched, fields: dict[str, object], param: str) -> None:
    (told,) = call.take(call.call.receive(json.dumps(fields | {"event_id": "e1"})))
    assert told["error"]["param"] == param
    assert told["error"]["event_id"] == "e1"


@pytest.mark.parametrize("event_id", [5, None, "x" * 600, "\ud800", ["e"]])
def test_only_a_usable_event_id_is_repeated(call: Watched, event_id: object) -> None:
    (told,) = call.take(call.call.receive(json.dumps({"type": "nope", "event_id": event_id})))
    assert "event_id" not in told["error"]
