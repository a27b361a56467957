"""A turn whose first sound is held back, in a whole call: the user who speaks then is heard."""

from collections.abc import AsyncIterator

import numpy as np
import pytest

from agent.commands import Interrupt
from agent.media.barge_in import BargeInDue, DuckDue, ResumeDue
from agent.types import SessionSettings, SpeechAudio, TextDelta, TurnStarted, Unit
from tests.rig.call_parts import MS, FloatArray, settle, voice
from tests.rig.driven_call import DrivenCall

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

STARTED = "output_audio_buffer.started"
CLEARED = "output_audio_buffer.cleared"
TRUNCATED = "conversation.item.truncated"
DUCKED = "voice_agent.ducked"
RESUMED = "voice_agent.resumed"


@pytest.fixture
async def call() -> AsyncIterator[DrivenCall]:
    """A call under way; at its end the order of everything the client got is checked."""
    driven = DrivenCall()
    await driven.begin()
    await pass_time(driven, 2000)
    yield driven
    await driven.leave()


async def pass_time(call: DrivenCall, ms: int, *, speaks: bool = False) -> FloatArray:
    """So much time passes for both sides, in which the user is silent or not; what was sent."""
    call.detector.voiced = speaks
    frames = []
    for _ in range(ms // 20):
        await call.listen(20, level=0.2 if speaks else 0.0)
        frames.append(call.peer.pull())
    await settle()
    return np.concatenate(frames)


async def begin_late(call: DrivenCall, turn: int, sound: FloatArray, hold_ms: int = 500) -> None:
    """The engine begins a turn whose first sound waits."""
    audio = SpeechAudio(turn, 0, 0, sound, hold_ms=hold_ms)
    call.engine.say(TurnStarted(turn), TextDelta(0, turn, "Hello"), audio)
    await settle()


# ---- who speaks is not talked over --------------------------------------------------------------


@pytest.mark.parametrize("before_ms", [20, 200, 1000])
async def test_a_user_who_speaks_on_is_never_talked_over(call: DrivenCall, before_ms: int) -> None:
    await pass_time(call, before_ms, speaks=True)
    await begin_late(call, 1, voice(3000))
    assert not (await pass_time(call, 3000, speaks=True)).any()
    assert call.commands(Interrupt) == [Interrupt(1, 0)]
    assert [event["audio_end_ms"] for event in call.events(TRUNCATED)] == [0]
    assert not {STARTED, DUCKED, RESUMED} & set(call.kinds())
    assert call.counted("barge_ins_total") == 1


async def test_nor_one_who_begins_late_in_the_hold(call: DrivenCall) -> None:
    await begin_late(call, 1, voice(3000))
    await pass_time(call, 380)
    assert not (await pass_time(call, 2000, speaks=True)).any()
    assert call.commands(Interrupt) == [Interrupt(1, 0)]
    assert STARTED not in call.kinds()


async def test_the_next_turn_is_heard(call: DrivenCall) -> None:
    await begin_late(call, 1, voice(3000))
    await pass_time(call, 1500, speaks=True)
    await call.go_on(1, ("late", voice(1000, 1)))
    await call.end_turn(1, "interrupted")
    await pass_time(call, 1000)
    answer = voice(400, 2)
    await begin_late(call, 2, answer, hold_ms=200)
    sent = await pass_time(call, 620)
    np.testing.assert_array_equal(sent[200 * MS : 600 * MS], answer)
    assert call.commands(Interrupt) == [Interrupt(1, 0)]
    assert [event["type"] for event in call.events(STARTED)] == [STARTED]


async def test_a_held_turn_behind_one_that_was_talked_over_goes_with_it(call: DrivenCall) -> None:
    await call.speak(1, ("One", voice(9000)))
    await pass_time(call, 3000)
    await call.end_turn(1)
    await begin_late(call, 2, voice(3000, 1))
    await pass_time(call, 1500, speaks=True)
    first, second = call.commands(Interrupt)
    assert first.turn == 1 and 3000 <= first.heard_ms <= 3100
    assert second == Interrupt(2, 0)


# ---- what is no interruption costs nothing ------------------------------------------------------


async def test_a_cough_within_the_hold_changes_nothing(call: DrivenCall) -> None:
    sound = voice(1000)
    await begin_late(call, 1, sound)
    await pass_time(call, 100)
    await pass_time(call, 160, speaks=True)
    assert call.playout.ducked, "it was heard"
    sent = await pass_time(call, 1260)
    np.testing.assert_array_equal(np.flatnonzero(sent), np.arange(240 * MS, 1240 * MS))
    assert {DUCKED, RESUMED, CLEARED}.isdisjoint(call.kinds())
    assert call.kinds().count(STARTED) == 1
    assert call.commands(Interrupt) == []
    assert call.counted("ducks_total", verdict="resumed") == 0


async def test_a_cough_at_the_end_of_the_hold_delays_and_loses_nothing(call: DrivenCall) -> None:
    sound = voice(1000)
    await begin_late(call, 1, sound)
    await pass_time(call, 400)
    assert not (await pass_time(call, 300, speaks=True)).any()
    assert STARTED not in call.kinds()
    sent = await pass_time(call, 1300)
    begin = int(np.flatnonzero(sent)[0])
    assert 100 * MS <= begin <= 200 * MS
    np.testing.assert_array_equal(sent[begin : begin + 1000 * MS], sound)
    assert call.commands(Interrupt) == []


async def test_once_it_sounds_it_ducks_where_it_is_and_says_so(call: DrivenCall) -> None:
    await begin_late(call, 1, voice(9000))
    await pass_time(call, 3500)
    await pass_time(call, 200, speaks=True)
    (ducked,) = call.events(DUCKED)
    assert ducked["turn"] == 1 and 3000 <= ducked["at_ms"] <= 3100
    await pass_time(call, 500)
    assert len(call.events(RESUMED)) == 1


async def test_a_client_that_forbids_to_interrupt_hears_it_on_time(call: DrivenCall) -> None:
    detection = {"type": "server_vad", "interrupt_response": False}
    audio = {"input": {"turn_detection": detection}}
    await call.client("session.update", session={"type": "realtime", "audio": audio})
    await begin_late(call, 1, voice(1000))
    sent = await pass_time(call, 1600, speaks=True)
    np.testing.assert_array_equal(np.flatnonzero(sent), np.arange(500 * MS, 1500 * MS))


async def test_in_half_duplex_the_engine_hears_who_speaks_until_it_sounds(
    call: DrivenCall,
) -> None:
    call.front_end.update(SessionSettings(model="echo", mode="half_duplex"))
    await begin_late(call, 1, voice(9000), hold_ms=500)
    await pass_time(call, 200, speaks=True)
    await pass_time(call, 400)
    await pass_time(call, 400, speaks=True)
    heard = call.commands(Unit)[-1].audio
    assert heard[:3200].all()
    assert not heard[3200:].any()


# ---- what is told -------------------------------------------------------------------------------


async def test_a_duck_of_a_held_turn_is_told_to_nobody_and_counted_nowhere(
    call: DrivenCall,
) -> None:
    await begin_late(call, 1, voice(1000))
    await call.hear(DuckDue(0))
    assert call.playout.ducked
    await call.hear(ResumeDue(0))
    assert not call.playout.ducked
    await call.hear(DuckDue(0), BargeInDue(0))
    assert not {DUCKED, RESUMED, STARTED} & set(call.kinds())
    assert CLEARED in call.kinds()
    assert call.counted("ducks_total", verdict="resumed") == 0
    assert call.counted("ducks_total", verdict="flushed") == 0


async def test_who_falls_silent_during_the_hold_waits_for_its_first_sound(call: DrivenCall) -> None:
    await pass_time(call, 1000, speaks=True)
    await begin_late(call, 1, voice(1000))
    await pass_time(call, 200, speaks=True)
    sent = await pass_time(call, 1000)
    (latency,) = call.events("voice_agent.latency")
    silent_ms = np.flatnonzero(sent)[0] / MS
    assert latency["first_sound_ms"] == pytest.approx(silent_ms, abs=60)
