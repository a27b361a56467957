"""One call from the microphone to the client's events; time is driven, the far sides are played."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from agent import session as session_module
from agent.commands import AddText, ForceListen, Interrupt, Pause
from agent.engine_line import MAX_WAITING
from agent.errors import EngineError, PeerTimeout, SessionError, TransportClosed, UnsupportedError
from agent.media.barge_in import BargeInDue, DuckDue, ResumeDue
from agent.media.ledger import Ledger
from agent.types import Failed, FloatArray, SpeechEnded, SpeechStarted, Unit
from tests.rig.call_parts import MS, ScriptedConversation, settle, voice
from tests.rig.driven_call import DrivenCall
from tests.rig.realtime_order import AUDIO_CHAIN

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

STARTED = "output_audio_buffer.started"
CLEARED = "output_audio_buffer.cleared"
STOPPED = "output_audio_buffer.stopped"
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


def mark(call: DrivenCall, kind: str) -> tuple[int, int]:
    """Turn and millisecond of the newest duck or resume."""
    event = call.events(kind)[-1]
    return event["turn"], event["at_ms"]


# ---- ducking ----------------------------------------------------------------------------------


async def test_a_duck_fades_the_next_pull_and_a_resume_goes_on_without_losing_a_sample(
    call: DrivenCall,
) -> None:
    sound = voice(1000)
    await call.speak(1, ("Hello", sound))
    before = await call.play(400)
    await call.hear(DuckDue(0))
    assert mark(call, DUCKED) == (1, 400)
    falling, held = await call.play(20), await call.play(500)
    assert np.all(np.diff(falling[: 10 * MS] / sound[400 * MS : 410 * MS]) <= 1e-6)
    assert not falling[10 * MS :].any() and not held.any()
    await call.hear(ResumeDue(0))
    assert mark(call, RESUMED) == (1, 400)
    after = await call.play(600)
    after[: 10 * MS] += falling[: 10 * MS]
    assert np.allclose(np.concatenate((before, after)), sound, atol=1e-6)
    kinds = call.kinds()
    assert kinds.index(STARTED) < kinds.index(DUCKED) < kinds.index(RESUMED)


@pytest.mark.parametrize("pull_first", [False, True])
async def test_a_duck_in_the_moment_of_the_first_pull_is_told_after_the_beginning(
    call: DrivenCall, pull_first: bool
) -> None:
    """Whoever wakes first: the one who follows the playout or the microphone."""
    await call.speak(1, ("Hello", voice(1000)))
    if pull_first:
        call.peer.pull()
        await call.hear(DuckDue(0))
    else:
        hearing = asyncio.ensure_future(call.hear(DuckDue(0)))
        await asyncio.sleep(0)  # the frame is there, the session has not seen it
        call.peer.pull()
        await hearing
    kinds = call.kinds()
    assert kinds.count(STARTED) == kinds.count(DUCKED) == 1
    assert kinds.index(STARTED) < kinds.index(DUCKED)
    assert mark(call, DUCKED) == (1, 20)


async def test_a_duck_with_nothing_to_duck_is_not_told(call: DrivenCall) -> None:
    await call.speak(1, ("Hello", voice(1000)))
    await call.hear(DuckDue(0), ResumeDue(0))
    assert not {DUCKED, RESUMED} & set(call.kinds())
    assert call.counted("ducks_total", verdict="resumed") == 0
    assert (await call.play(20)).all()


async def test_sound_that_comes_while_ducked_follows_after_the_resume(call: DrivenCall) -> None:
    first, second = voice(200), voice(300, 1)
    await call.speak(1, ("Hello ", first))
    sent = [await call.play(100)]
    await call.hear(DuckDue(0))
    falling = await call.play(200)
    await call.go_on(1, ("you", second))
    await call.end_turn(1)
    await call.hear(ResumeDue(0))
    sent.append(await call.play(400))
    sent[1][: 10 * MS] += falling[: 10 * MS]
    assert np.allclose(np.concatenate(sent), np.concatenate((first, second)), atol=1e-6)
    await call.play(20)
    assert call.kinds().count(STOPPED) == 1


async def test_a_turn_held_at_its_end_stops_after_the_resume_only(call: DrivenCall) -> None:
    await call.speak(1, ("Hello", voice(100)))
    await call.end_turn(1)
    await call.play(80)
    await call.hear(DuckDue(0))
    await call.play(1000)
    assert STOPPED not in call.kinds()
    await call.hear(ResumeDue(0))
    await call.play(40)
    assert call.kinds().index(RESUMED) < call.kinds().index(STOPPED)


# ---- barge-in ---------------------------------------------------------------------------------


async def test_a_barge_in_silences_the_agent_and_everyone_is_told_the_same_mark(
    call: DrivenCall,
) -> None:
    await call.speak(1, ("Hello you", voice(3000)))
    await call.play(500)
    ledger_says_ms = 500
    await call.hear(SpeechStarted(0), BargeInDue(0))
    assert [event["audio_end_ms"] for event in call.events(TRUNCATED)] == [ledger_says_ms]
    assert call.commands(Interrupt) == [Interrupt(1, ledger_says_ms)]
    kinds = call.kinds()
    at = kinds.index(CLEARED)
    assert kinds[at : at + 8] == [CLEARED, *AUDIO_CHAIN, TRUNCATED]
    rest = await call.play(200)
    assert not rest[10 * MS :].any()
    assert call.counted("barge_ins_total") == 1
    assert call.counted("ducks_total", verdict="flushed") == 0


async def test_sound_of_a_turn_that_was_interrupted_is_dropped_and_the_next_one_plays(
    call: DrivenCall,
) -> None:
    await call.speak(1, ("Hello ", voice(1000)))
    await call.play(200)
    await call.hear(BargeInDue(0))
    await call.play(20)
    await call.go_on(1, ("you", voice(1000, 1)))
    await call.end_turn(1, "interrupted")
    assert not (await call.play(200)).any()
    answer = voice(100, 2)
    await call.speak(2, ("Yes", answer))
    assert np.array_equal(await call.play(100), answer)
    assert call.kinds().count(CLEARED) == 1


async def test_a_barge_in_while_ducked_claims_what_was_heard_before_the_duck(
    call: DrivenCall,
) -> None:
    await call.speak(1, ("Hello", voice(3000)))
    await call.play(300)
    await call.hear(DuckDue(0))
    await call.play(400)
    await call.hear(BargeInDue(0))
    assert call.events(TRUNCATED)[0]["audio_end_ms"] == 300
    assert call.commands(Interrupt) == [Interrupt(1, 300)]
    assert not (await call.play(200)).any()
    assert RESUMED not in call.kinds()
    assert call.counted("ducks_total", verdict="flushed") == 1


async def test_every_turn_behind_the_interrupted_one_is_given_up_unheard(call: DrivenCall) -> None:
    await call.speak(1, ("One", voice(1000)))
    await call.end_turn(1)
    await call.play(100)
    await call.speak(2, ("Two", voice(1000, 1)))
    await call.hear(BargeInDue(0))
    assert call.commands(Interrupt) == [Interrupt(1, 100), Interrupt(2, 0)]
    assert [event["audio_end_ms"] for event in call.events(TRUNCATED)] == [100, 0]


async def test_a_barge_in_over_silence_gives_nothing_up(call: DrivenCall) -> None:
    await call.hear(BargeInDue(0))
    assert CLEARED not in call.kinds()
    assert call.commands(Interrupt) == []


# ---- what the client says that it plays -------------------------------------------------------


async def played_with_reports(call: DrivenCall, stands_still: bool) -> tuple[int, Ledger]:
    """Two seconds of a turn, reported 100 ms late, the second one perhaps not heard at all.

    What was sent, and a ledger of the test's own that was told the same.
    """
    ledger = Ledger(call.clock)
    call.playout.tap_spans(ledger.sent)
    await call.speak(1, ("Hello you", voice(9000)))
    for tenth in range(20):
        await call.play(100)
        position_ms = min(call.peer.pulled_ms - 100, 900 if stands_still else 10**6)
        await call.report(position_ms)
        ledger.rendered(position_ms * MS, call.clock.now_s())
        assert call.events("error") == [], f"report {tenth}"
    return call.playout.played_ms(1), ledger


async def test_reports_that_advance_let_an_interruption_claim_all_that_was_sent(
    call: DrivenCall,
) -> None:
    sent_ms, ledger = await played_with_reports(call, stands_still=False)
    await call.hear(BargeInDue(0))
    assert call.events(TRUNCATED)[0]["audio_end_ms"] == sent_ms == 2000
    assert ledger.final_ms(1, call.clock.now_s()) == sent_ms
    assert call.commands(Interrupt) == [Interrupt(1, sent_ms)]


async def test_reports_that_stand_still_make_the_claim_smaller_than_what_was_sent(
    call: DrivenCall,
) -> None:
    sent_ms, ledger = await played_with_reports(call, stands_still=True)
    claimed_ms = ledger.final_ms(1, call.clock.now_s())
    assert claimed_ms == pytest.approx(900, abs=30) and claimed_ms < sent_ms == 2000
    await call.hear(BargeInDue(0))
    assert call.events(TRUNCATED)[0]["audio_end_ms"] == claimed_ms
    assert call.commands(Interrupt) == [Interrupt(1, claimed_ms)]


async def transcript(call: DrivenCall) -> str:
    """What the agent's newest item says when a client asks for it."""
    item_id = call.events("response.output_item.added")[-1]["item"]["id"]
    await call.client("conversation.item.retrieve", item_id=item_id)
    (part,) = call.events("conversation.item.retrieved")[-1]["item"]["content"]
    return str(part["transcript"])


async def test_an_item_asked_for_while_it_plays_holds_the_words_heard_so_far(
    call: DrivenCall,
) -> None:
    await call.speak(1, ("one two ", voice(1000)), ("three four", voice(1000, 1)))
    await call.end_turn(1)
    await call.play(20)
    assert await transcript(call) == ""
    await call.play(780)
    assert await transcript(call) == "one"
    await call.play(480)
    assert await transcript(call) == "one two"
    await call.play(420)
    assert await transcript(call) == "one two three"
    await call.play(400)
    assert STOPPED in call.kinds()
    assert await transcript(call) == "one two three four"


async def test_the_clients_reports_decide_which_words_those_are(call: DrivenCall) -> None:
    await call.speak(1, ("one two ", voice(1000)), ("three four", voice(1000, 1)))
    for _ in range(13):
        await call.play(100)
        await call.report(max(0, call.peer.pulled_ms - 600))
    assert await transcript(call) == "one"


async def test_a_turn_that_was_cut_off_keeps_the_words_before_the_cut(call: DrivenCall) -> None:
    await call.speak(1, ("one two ", voice(1000)), ("three four", voice(1000, 1)))
    await call.play(1200)
    await call.hear(BargeInDue(0))
    assert await transcript(call) == "one two"


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


# ---- the client silences it -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "fields", "command"),
    [
        ("voice_agent.pause", {}, Pause()),
        ("voice_agent.listen", {"on": True}, ForceListen(True)),
    ],
)
async def test_the_clients_wish_for_silence_is_granted_though_the_engine_says_nothing(
    call: DrivenCall, kind: str, fields: dict[str, Any], command: object
) -> None:
    await call.speak(1, ("Hello", voice(3000)))
    await call.end_turn(1)
    await call.play(200)
    await call.client(kind, **fields)
    assert call.events(TRUNCATED)[0]["audio_end_ms"] == 200
    assert CLEARED in call.kinds()
    assert call.engine.told == [Interrupt(1, 200), command], "what was heard comes first"
    assert not (await call.play(100))[10 * MS :].any()


async def test_no_longer_having_to_listen_clears_nothing(call: DrivenCall) -> None:
    sound = voice(300)
    await call.speak(1, ("Hello", sound))
    await call.play(100)
    await call.client("voice_agent.listen", on=False)
    assert CLEARED not in call.kinds()
    assert np.array_equal(await call.play(200), sound[100 * MS :])


async def test_clear_cancels_what_is_generated_and_drops_what_is_queued(call: DrivenCall) -> None:
    await call.speak(1, ("Hello", voice(3000)))
    await call.play(200)
    await call.client("output_audio_buffer.clear")
    assert call.events(TRUNCATED)[0]["audio_end_ms"] == 200
    assert call.commands(Interrupt)[-1] == Interrupt(1, 200)
    assert not (await call.play(100))[10 * MS :].any()


async def test_cancel_lets_what_is_queued_play_out_and_the_engine_is_told_so(
    call: DrivenCall,
) -> None:
    sound = voice(500)
    await call.speak(1, ("Hello", sound))
    await call.play(100)
    await call.client("response.cancel")
    await call.end_turn(1, "interrupted")
    assert np.array_equal(await call.play(400), sound[100 * MS :])
    await call.play(20)
    assert CLEARED not in call.kinds() and STOPPED in call.kinds()
    assert call.commands(Interrupt) == [Interrupt(1, 500)]


async def test_of_a_cancelled_turn_no_more_is_heard_than_the_engine_was_told(
    call: DrivenCall,
) -> None:
    await call.speak(1, ("Hello ", voice(500)))
    await call.play(100)
    await call.client("response.cancel")
    assert call.commands(Interrupt) == [Interrupt(1, 500)]
    await call.go_on(1, ("you", voice(500, 1)))  # it was on its way
    await call.end_turn(1, "interrupted")
    await call.play(400)
    assert not (await call.play(500)).any()


async def test_an_engine_that_gives_its_turn_up_silences_it(call: DrivenCall) -> None:
    await call.speak(1, ("Hello", voice(3000)))
    await call.play(200)
    await call.end_turn(1, "interrupted")
    assert CLEARED in call.kinds()
    assert not (await call.play(100))[10 * MS :].any()


# ---- settings while ducked --------------------------------------------------------------------


async def ducked_by_a_voice(call: DrivenCall) -> FloatArray:
    """The real policy ducks the agent for a voice that has just begun; what follows of the turn."""
    sound = voice(9000)
    await call.speak(1, ("Hello", sound))
    await call.play(100)
    await call.listen(2500)
    call.detector.voiced = True
    for _ in range(30):
        await call.listen(10, level=0.2)
        if call.playout.ducked:
            break
    assert mark(call, DUCKED) == (1, 100)
    return sound[100 * MS :]


def detection(value: object) -> dict[str, object]:
    return {"type": "realtime", "audio": {"input": {"turn_detection": value}}}


@pytest.mark.parametrize(
    "forbidden", [None, {"type": "server_vad", "interrupt_response": False}], ids=["off", "no"]
)
async def test_settings_that_forbid_to_interrupt_end_a_duck_in_a_resume(
    call: DrivenCall, forbidden: object
) -> None:
    rest = await ducked_by_a_voice(call)
    await call.client("session.update", session=detection(forbidden))
    await call.listen(10, level=0.2)
    assert mark(call, RESUMED) == (1, 100)
    assert not call.playout.ducked
    assert np.array_equal(await call.play(100), rest[: 100 * MS])
    await call.listen(3000, level=0.2)
    assert CLEARED not in call.kinds()
    assert call.counted("ducks_total", verdict="resumed") == 1


async def test_a_voice_that_goes_on_ends_the_duck_in_a_barge_in(call: DrivenCall) -> None:
    await ducked_by_a_voice(call)
    await call.listen(1500, level=0.2)
    assert call.events(TRUNCATED)[0]["audio_end_ms"] == 100
    assert RESUMED not in call.kinds()
    assert call.counted("barge_ins_total") == 1
    assert call.counted("ducks_total", verdict="flushed") == 1
    units = call.commands(Unit)
    assert [unit.index for unit in units] == [0, 1, 2, 3]


async def test_who_stopped_the_agent_and_speaks_on_also_stops_a_turn_that_begins_at_once(
    call: DrivenCall,
) -> None:
    """It begins between two frames of the microphone, which has never heard the agent silent."""
    await ducked_by_a_voice(call)
    for _ in range(150):
        if call.counted("barge_ins_total"):
            break
        await call.listen(10, level=0.2)
    await call.speak(2, ("And", voice(3000, 2)))
    await call.play(40)
    await call.listen(1000, level=0.2)
    assert call.counted("barge_ins_total") == 2
    assert [interrupt.turn for interrupt in call.commands(Interrupt)] == [1, 2]


async def test_a_client_that_clears_while_ducked_is_not_told_of_a_resume(call: DrivenCall) -> None:
    await ducked_by_a_voice(call)
    await call.client("output_audio_buffer.clear")
    call.detector.voiced = False
    await call.listen(3000)
    assert RESUMED not in call.kinds()
    assert call.counted("ducks_total", verdict="flushed") == 1
    assert call.counted("ducks_total", verdict="resumed") == 0


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
