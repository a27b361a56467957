"""vLLM-Omni's duplex API: what its clients are told besides, what they may send, and who is not."""

import base64
from collections.abc import Iterator

import pytest

from agent.commands import ClearInput, CommitInput
from agent.realtime import CancelTurn, ClearPlayout, CloseCall, HearAudio
from agent.realtime.omni import SERVER_EVENTS
from agent.types import Listened, SessionSettings, TurnDetection, Wire
from tests.rig.omni_client import CLIENTS_SESSION
from tests.rig.realtime_order import AUDIO_CHAIN, OPENING
from tests.rig.realtime_watch import Watched, kinds

SOUND = "response.output_audio.delta"
DELTA = "response.output_audio_transcript.delta"
KEPT = SessionSettings(model="echo", turn_detection=TurnDetection(interrupt_response=False))


@pytest.fixture
def call() -> Iterator[Watched]:
    """A call by `?duplex=1`; at the end the order of everything it said is checked."""
    watched = Watched(wire="websocket", is_omni=True)
    yield watched
    watched.finish()


def speaking(call: Watched, turn: int = 1) -> None:
    """The agent is heard."""
    call.speak(turn, ("One ", 1000))
    call.sent(turn)


def decided(call: Watched) -> tuple[str, str, str, int]:
    """Policy, action, reason and millisecond of the newest decision."""
    event = call.last("overlap.decision")
    return event["policy"], event["action"], event["reason"], event["metadata"]["at_ms"]


# ---- the session ------------------------------------------------------------------------------


def test_the_session_says_what_the_server_can(call: Watched) -> None:
    session = call.last("session.created")["session"]
    assert session["capabilities"]["chunk_period_ms"] == 1000
    assert session["capabilities"]["implementation_level"] == "model_native_duplex"
    assert session["capabilities"]["supports_barge_in"] is True
    assert session["capabilities"]["supports_session_resume"] is False
    assert session["sample_rate_hz"] == 24_000


def test_its_clients_first_event_is_obeyed_and_leaves_it_to_the_model_when_to_speak(
    call: Watched,
) -> None:
    before = call.call.settings
    (updated,) = call.send("session.update", session=CLIENTS_SESSION)
    assert updated["session"]["sample_rate_hz"] == 16_000
    settings = call.call.settings
    assert settings.instructions == "Be brief."
    assert settings.turn_detection == before.turn_detection is not None
    assert call.send("input_audio_buffer.commit", final=True, response_create=False) == []
    again, *_ = call.send("session.update", session=call.call.session)
    assert again["session"] == updated["session"], "what was told can be sent back"


def test_todays_spelling_still_switches_turn_detection_off(call: Watched) -> None:
    call.send("session.update", session={"audio": {"input": {"turn_detection": None}}})
    assert call.call.settings.turn_detection is None
    call.send("input_audio_buffer.append", audio="AAAA")
    call.send("input.commit")
    assert isinstance(call.actions[-1], CommitInput)
    call.send("input.cancel")
    assert isinstance(call.actions[-1], ClearInput)


def test_pcm_may_be_of_16_khz_by_the_session_or_by_the_append(call: Watched) -> None:
    pcm = base64.b64encode(b"abcd").decode()
    call.send("input_audio_buffer.append", audio=pcm)
    call.send("input_audio_buffer.append", audio=pcm, sample_rate_hz=16_000)
    call.send("session.update", session={"sample_rate_hz": 16_000})
    call.send("input_audio_buffer.append", audio=pcm)
    call.send("session.update", session={"instructions": "Be kind."})
    call.send("input_audio_buffer.append", audio=pcm)
    call.send("session.update", session={"sample_rate_hz": 24_000})
    call.send("input_audio_buffer.append", audio=pcm)
    heard = [action.coding for action in call.actions if isinstance(action, HearAudio)]
    assert heard == ["audio/pcm", *3 * ["audio/pcm;rate=16000"], "audio/pcm"]


@pytest.mark.parametrize("rate_hz", [8_000, 0, "16000", 44_100.5, True])
def test_of_no_other_rate(call: Watched, rate_hz: object) -> None:
    refused = call.refused("input_audio_buffer.append", audio="AAAA", sample_rate_hz=rate_hz)
    assert refused[1] == "sample_rate_hz"
    session = {"audio": {"input": {"sample_rate_hz": rate_hz}}}
    assert call.refused("session.update", session=session)[1] is not None
    assert call.call.session["sample_rate_hz"] == 24_000


def test_g711_has_the_one_rate(call: Watched) -> None:
    call.send("session.update", session=CLIENTS_SESSION | {"input_audio_format": "g711_ulaw"})
    call.send("input_audio_buffer.append", audio="/w==")
    assert call.actions[-1] == HearAudio(b"\xff", "audio/pcmu")


# ---- what is told besides ---------------------------------------------------------------------


def test_a_unit_without_a_word_is_a_decision_to_listen(call: Watched) -> None:
    (listen,) = call.engine(Listened(7))
    session_id = call.last("session.created")["session"]["id"]
    metadata = {"reason": "model_listen", "unit": 7}
    listening = {"object": "realtime.response", "status": "listening", "metadata": metadata}
    fields = {"session_id": session_id, "epoch": 0, "response": listening}
    assert {name: listen[name] for name in fields} == fields


def test_speech_is_a_decision_to_speak_before_its_first_sound(call: Watched) -> None:
    call.start(1)
    call.text(1, "One ")
    told = call.sound(1, 400)
    assert kinds(told) == [*OPENING[3:], "response.speak"]
    assert call.sent(1) == [DELTA, SOUND]
    assert kinds(call.sound(1, 400)) == [], "once"
    where = ("response_id", "item_id", "output_index", "content_index")
    assert [told[-1][name] for name in where] == [call.last(SOUND)[name] for name in where]


def test_text_is_not_spoken(call: Watched) -> None:
    call.start(1)
    call.text(1, "Only text")
    call.end(1)
    assert "response.speak" not in kinds(call.events)


def test_talk_over_the_agent_is_decided_each_time_anew(call: Watched) -> None:
    speaking(call)
    call.take(call.call.ducked(1, 300))
    assert decided(call) == ("barge_in_on_speech", "listen", "overlap_began", 300)
    call.take(call.call.resumed(1, 300))
    assert decided(call) == ("barge_in_on_speech", "listen", "short_overlap", 300)
    told = call.take(call.call.playout_cleared(1, 700, "turn_detected"))
    assert kinds(told) == ["overlap.decision", *AUDIO_CHAIN]
    assert decided(call) == ("barge_in_on_speech", "barge_in", "overlap_speech", 700)
    response_id = call.last("response.done")["response"]["id"]
    assert call.last("overlap.decision")["metadata"]["response_id"] == response_id


def test_an_agent_that_is_not_to_be_interrupted_goes_on() -> None:
    call = Watched(wire="websocket", settings=KEPT, is_omni=True)
    speaking(call)
    call.call.heard(1, 400)
    call.take(call.call.speech_started(16_000))
    assert decided(call) == ("listen_only", "listen", "interruption_off", 400)
    call.finish()


def test_nothing_is_decided_where_nobody_talks_over_anybody(call: Watched) -> None:
    call.user_says()
    speaking(call)
    call.send("response.cancel")
    call.take(call.call.playout_cleared(1, 700, "client_cancelled"))
    call.take(call.call.playout_cleared(1, 700, "turn_detected"))
    assert "overlap.decision" not in kinds(call.events)


def test_what_is_given_up_begins_an_epoch(call: Watched) -> None:
    def epoch() -> int:
        (listen,) = call.engine(Listened(1))
        number: int = listen["epoch"]
        return number

    assert epoch() == 0
    speaking(call)
    call.take(call.call.playout_cleared(1, 700, "turn_detected"))
    assert call.last("overlap.decision")["epoch"] == 0
    assert epoch() == 1
    call.send("input_audio_buffer.clear")
    assert epoch() == 2
    speaking(call, 2)
    assert call.last("response.speak")["metadata"]["epoch"] == 2
    call.end(2)
    call.drained(2)
    assert epoch() == 2, "what ends by itself was not given up"


def test_the_end_for_its_length_is_told_in_both_spellings(call: Watched) -> None:
    told = call.take(call.call.expired())
    assert kinds(told) == ["error", "session.expired"]
    assert told[0]["error"]["code"] == "session_expired"


# ---- what everybody may send ------------------------------------------------------------------


@pytest.mark.parametrize("wire", ["webrtc", "websocket"])
@pytest.mark.parametrize("is_omni", [False, True])
def test_heartbeat_and_close_are_answered(wire: Wire, is_omni: bool) -> None:
    call = Watched(wire=wire, is_omni=is_omni)
    session_id = call.last("session.created")["session"]["id"]
    (beat,) = call.send("session.heartbeat")
    assert call.call.tells(beat)
    assert (beat["type"], beat["session_id"]) == ("session.heartbeat_ack", session_id)
    assert call.send("session.event_ack", server_event_seq=4) == []
    (closed,) = call.send("session.close")
    assert (closed["session_id"], closed["reason"]) == (session_id, "client_close")
    assert closed["event"] == {"type": "session.closed", "reason": "client_close"}
    assert call.actions == [CloseCall("hung_up")]
    call.finish()


@pytest.mark.parametrize(("wire", "way"), [("webrtc", "ICE restart"), ("websocket", "a new one")])
def test_a_call_that_is_to_be_resumed_says_how(wire: Wire, way: str) -> None:
    call = Watched(wire=wire)
    assert call.refused("session.resume", resume_token="rt") == (
        "unsupported_session_resume",
        "type",
    )
    assert way in call.error()["message"]


def test_barge_in_silences_the_agent_on_either_wire() -> None:
    for wire in ("websocket", "webrtc"):
        call = Watched(wire=wire)  # type: ignore[arg-type]
        assert call.send("barge_in") == [], "where it is silent there is nothing to do"
        call.speak(1, ("One ", 1000))
        told = kinds(call.send("barge_in"))
        assert told == (AUDIO_CHAIN if wire == "websocket" else [])
        assert call.actions == [CancelTurn(1), ClearPlayout()]


# ---- and everybody else -----------------------------------------------------------------------


@pytest.mark.parametrize("wire", ["webrtc", "websocket"])
def test_a_stock_client_sees_nothing_of_it(wire: Wire) -> None:
    call = Watched(wire=wire)
    assert call.engine(Listened(1)) == []
    speaking(call) if wire == "websocket" else call.speak(1, ("One ", 1000))
    call.take(call.call.ducked(1, 300))
    call.take(call.call.resumed(1, 300))
    call.take(call.call.playout_cleared(1, 700, "turn_detected"))
    call.take(call.call.expired())
    assert not SERVER_EVENTS & set(kinds(call.events))
    assert {"capabilities", "sample_rate_hz"}.isdisjoint(call.call.session)
    assert call.refused("session.update", session={"sample_rate_hz": 16_000})[1] is not None
    call.finish()


def test_nor_what_a_sideband_is_answered() -> None:
    call = Watched(wire="websocket")
    answered = call.call.receive('{"type": "session.heartbeat"}', is_client=False).events
    assert [call.call.tells(event) for event in answered] == [False]
    call.send("session.heartbeat")
    assert call.call.tells(answered[0]), "it is one of theirs itself"
