"""One call among far sides that are played: a slow engine, what is counted, and how it ends."""

import json
from collections.abc import AsyncIterator

import numpy as np
import pytest

from agent import session as session_module
from agent.commands import AddText
from agent.engine_line import MAX_WAITING
from agent.errors import EngineError, PeerTimeout, SessionError, TransportClosed, UnsupportedError
from agent.media.barge_in import BargeInDue, DuckDue, ResumeDue
from agent.types import Failed, SpeechEnded, SpeechStarted, Unit
from tests.rig.call_parts import MS, ScriptedConversation, settle, voice
from tests.rig.driven_call import DrivenCall, mark

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

TRUNCATED = "conversation.item.truncated"
DUCKED = "voice_agent.ducked"
RESUMED = "voice_agent.resumed"


@pytest.fixture
async def call() -> AsyncIterator[DrivenCall]:
    """A call under way; at its end the order of everything the client got is checked."""
    driven = DrivenCall()
    await driven.begin()
    yield driven
    await driven.leave()


async def with_engine(engine: ScriptedConversation) -> DrivenCall:
    driven = DrivenCall(engine)
    await driven.begin()
    return driven


# ---- an engine that takes its time ------------------------------------------------------------


async def test_an_engine_that_never_returns_delays_neither_duck_nor_flush_nor_events() -> None:
    call = await with_engine(ScriptedConversation(stuck=True))
    await call.hear(SpeechStarted(0), SpeechEnded(160), SpeechStarted(160))
    assert call.events("input_audio_buffer.speech_stopped")
    await call.client("session.update", session={"type": "realtime", "instructions": "Be brief."})
    assert call.events("session.updated")
    await call.speak(1, ("Hello", voice(3000)))
    await call.play(100)
    await call.hear(DuckDue(0))
    assert mark(call, DUCKED) == (1, 100)
    assert not (await call.play(60))[10 * MS :].any()
    await call.hear(ResumeDue(0))
    assert mark(call, RESUMED) == (1, 100)
    assert (await call.play(40)).any()
    await call.hear(BargeInDue(0))
    assert [event["audio_end_ms"] for event in call.events(TRUNCATED)] == [140]
    assert not (await call.play(100))[10 * MS :].any()
    assert call.engine.told == []
    await call.leave()


async def test_a_call_whose_engine_is_hopelessly_behind_fails_and_is_released() -> None:
    call = await with_engine(ScriptedConversation(stuck=True))
    silence = np.zeros(16_000, np.float32)
    for index in range(1 + MAX_WAITING):  # the engine holds the first
        await call.hear(Unit(index, silence, 16_000))
    assert not call.over
    await call.hear(Unit(1 + MAX_WAITING, silence, 16_000))
    assert await call.outcome() == "failed"
    assert call.peer.closed and call.engine.finished
    assert call.counted("calls_total", outcome="failed") == 1
    assert call.counted("calls_active") == 0


async def test_a_burst_of_client_events_does_not_end_a_call_whose_engine_is_well(
    call: DrivenCall,
) -> None:
    """A client that restores a conversation sends all its items at once."""
    texts = [f"message {index}" for index in range(2 * MAX_WAITING)]
    for text in texts:
        content = [{"type": "input_text", "text": text}]
        item = {"type": "message", "role": "user", "content": content}
        call.peer.say(json.dumps({"type": "conversation.item.create", "item": item}))
    await settle()
    assert not call.over
    assert [command.text for command in call.commands(AddText)] == texts
    assert len(call.events("conversation.item.done")) == len(texts)


async def test_a_command_that_the_engine_refuses_is_an_error_that_names_the_clients_event(
    call: DrivenCall,
) -> None:
    call.engine.refuses = UnsupportedError("This engine cannot pause.")
    await call.client("voice_agent.pause", event_id="mine_1")
    await call.client("voice_agent.listen", on=False, event_id="mine_2")
    errors = [event["error"] for event in call.events("error")]
    assert [error["event_id"] for error in errors] == ["mine_1", "mine_2"]
    assert {error["code"] for error in errors} == {"unsupported_by_engine"}
    assert errors[0]["message"] == "This engine cannot pause."
    call.engine.refuses = None
    await call.client("voice_agent.resume", event_id="mine_3")
    assert len(call.events("error")) == 2


# ---- what is counted --------------------------------------------------------------------------


async def test_ducks_are_counted_by_their_verdict_and_barge_ins_each(call: DrivenCall) -> None:
    for turn in (1, 2, 3):
        await call.speak(turn, ("Hello", voice(1000)))
        await call.play(100)
        for _ in range(turn):
            await call.hear(DuckDue(0))
            await call.play(20)
            await call.hear(ResumeDue(0))
        await call.hear(DuckDue(0))
        await call.hear(BargeInDue(0))
    assert call.counted("ducks_total", verdict="resumed") == 6
    assert call.counted("ducks_total", verdict="flushed") == 3
    assert call.counted("barge_ins_total") == 3


async def test_the_first_sound_is_timed_from_the_users_last(call: DrivenCall) -> None:
    await call.hear(SpeechStarted(0))
    await call.listen(1000)
    await call.hear(SpeechEnded(call.front_end.position - 480 * 16))
    call.clock.advance(0.7)
    await call.speak(1, ("Hello", voice(100)))
    await call.play(20)
    (latency,) = call.events("voice_agent.latency")
    assert latency["turn"] == 1
    # The frame that brought the news is 10 ms of these.
    assert latency["first_sound_ms"] == pytest.approx(480 + 10 + 700, abs=0.01)
    assert call.counted("first_sound_seconds_sum") == pytest.approx(1.19)
    await call.end_turn(1)
    await call.speak(2, ("And", voice(100)))
    await call.play(200)
    assert call.counted("first_sound_seconds_count") == 1, "the second turn answers nothing"


@pytest.mark.parametrize(("waited_s", "counted"), [(9.9, 1), (10.2, 0), (3600.0, 0)])
async def test_what_comes_more_than_ten_seconds_later_answers_nothing(
    call: DrivenCall, waited_s: float, counted: int
) -> None:
    await call.hear(SpeechStarted(0))
    await call.hear(SpeechEnded(call.front_end.position))
    call.clock.advance(waited_s)
    await call.speak(1, ("Hello", voice(100)))
    await call.play(20)
    assert call.counted("first_sound_seconds_count") == counted
    assert len(call.events("voice_agent.latency")) == counted


@pytest.mark.parametrize("over_agent", [False, True])
async def test_speech_that_ends_while_the_agent_speaks_waits_for_no_answer(
    call: DrivenCall, over_agent: bool
) -> None:
    await call.speak(1, ("Hello", voice(100)))
    await call.end_turn(1)
    await call.play(20 if over_agent else 200)
    await call.hear(SpeechStarted(0))
    await call.hear(SpeechEnded(160))
    await call.play(200)
    await call.speak(2, ("And", voice(100)))
    await call.play(20)
    assert call.counted("first_sound_seconds_count") == (0 if over_agent else 1)


async def test_a_gap_in_the_middle_of_a_turn_is_an_underrun(call: DrivenCall) -> None:
    await call.speak(1, ("Hello ", voice(100)))
    await call.play(200)
    await call.go_on(1, ("you", voice(100, 1)))
    await call.end_turn(1)
    await call.play(200)
    assert call.counted("underruns_total") == 1
    await call.speak(2, ("and", voice(100, 2)))
    await call.end_turn(2)
    await call.play(200)
    assert call.counted("underruns_total") == 1, "counted once"


async def test_echo_and_link_are_told_once_a_second_while_the_agent_sounds(
    call: DrivenCall,
) -> None:
    await call.play(3000)
    assert call.events("voice_agent.echo") == []
    await call.speak(1, ("Hello", voice(2500)))
    await call.end_turn(1)
    await call.play(6000)
    assert len(call.events("voice_agent.echo")) in (2, 3)


# ---- the end ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        (None, "hung_up"),
        (TransportClosed("the connection broke"), "connection_lost"),
        (PeerTimeout("nothing heard"), "peer_gone"),
    ],
)
async def test_a_call_ends_as_its_peer_went(
    reason: SessionError | None, outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    call = DrivenCall()
    await call.begin()
    assert call.counted("calls_active") == 1
    call.peer.end(reason)
    assert await call.outcome() == outcome
    assert call.peer.closed and call.engine.finished
    assert call.counted("calls_active") == 0
    assert call.counted("calls_total", outcome=outcome) == 1
    assert caplog.messages[-1].endswith(f"ended: {outcome}")


async def test_a_call_ends_though_the_downlink_waits_for_room() -> None:
    call = DrivenCall(max_queued_ms=100)
    await call.begin()
    await call.speak(1, ("One ", voice(100)), ("two", voice(100, 1)))
    call.peer.end()
    assert await call.outcome() == "hung_up"


async def test_an_engine_that_fails_tells_the_client_and_hangs_up(call: DrivenCall) -> None:
    await call.speak(1, ("Hello", voice(1000)))
    await call.play(100)
    call.engine.say(Failed(EngineError("out of memory")))
    assert await call.outcome() == "engine_error"
    assert call.events("error")[0]["error"]["message"] == "out of memory"
    assert call.peer.closed and call.engine.finished


async def test_a_call_that_is_cancelled_releases_both_sides() -> None:
    call = DrivenCall()
    await call.begin()
    await call.speak(1, ("Hello", voice(1000)))
    await call.cancel()
    assert call.over
    assert call.peer.closed and call.engine.finished
    assert call.counted("calls_active") == 0


async def test_a_call_cancelled_while_it_ends_is_over_and_leaves_nothing_running() -> None:
    """A server that shuts down waits for so long, then ends calls by force."""
    call = await with_engine(ScriptedConversation(hangs=True))
    call.session.hang_up()
    await settle()
    await call.cancel()
    assert call.over
    assert call.peer.closed
    assert call.counted("calls_active") == 0


async def test_an_engine_that_does_not_end_keeps_no_connection_open() -> None:
    call = await with_engine(ScriptedConversation(hangs=True))
    call.session.hang_up()
    await settle()
    assert call.peer.closed
    assert not call.over
    call.engine.let_go.set()
    assert await call.outcome() == "hung_up"
    assert call.engine.finished


async def test_an_engine_that_never_ends_does_not_keep_its_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_module, "_LEAVE_S", 0)
    call = await with_engine(ScriptedConversation(hangs=True))
    call.session.hang_up()
    assert await call.outcome() == "failed"
    assert call.peer.closed
    assert call.counted("calls_active") == 0


async def test_a_connection_that_does_not_close_keeps_no_place_in_the_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call = DrivenCall()

    async def broken() -> None:
        raise OSError("the socket is gone already")

    monkeypatch.setattr(call.peer, "close", broken)
    await call.begin()
    call.session.hang_up()
    assert await call.outcome() == "failed"
    assert call.engine.finished
