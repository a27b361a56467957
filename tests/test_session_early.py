"""Units that a call tries early: what the engine is told, what the user hears, what the client."""

from collections.abc import AsyncIterator

import numpy as np
import pytest

from agent.commands import ForceListen, Interrupt, Retract
from agent.errors import RequestError
from agent.types import (
    SpeechAudio,
    SpeechEnded,
    SpeechStarted,
    TurnEnded,
    TurnStarted,
    Unit,
    VideoFrame,
)
from tests.rig.call_parts import settle, voice
from tests.rig.early_call import EarlyCall, until_tried

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

STARTED = "output_audio_buffer.started"
SILENCE_MS = 192
UNIT_MS = 1000


async def begun(call: EarlyCall, silent_ms: int = 2 * UNIT_MS) -> EarlyCall:
    await call.begin()
    await call.live(silent_ms)
    return call


@pytest.fixture
async def call() -> AsyncIterator[EarlyCall]:
    driven = await begun(EarlyCall())
    yield driven
    await driven.leave()


# ---- what the engine is told --------------------------------------------------------------------


async def test_the_engine_hears_of_the_silence_before_the_second_is_over(call: EarlyCall) -> None:
    tried = await until_tried(call)
    assert (tried.index, tried.start) == (2, 2 * 16_000)
    assert SILENCE_MS <= tried.samples_valid / 16 - 400 <= SILENCE_MS + 60
    assert not tried.audio[tried.samples_valid :].any(), "the room was silent"


async def test_if_silence_follows_the_next_unit_begins_where_that_one_was_cut(
    call: EarlyCall,
) -> None:
    tried = await until_tried(call)
    await call.live(2 * UNIT_MS)
    *_, after, last = call.units
    assert call.commands(Retract) == []
    assert [(unit.index, unit.speculative) for unit in (after, last)] == [(3, False), (4, False)]
    assert (after.start, last.start) == (tried.end, tried.end + 16_000)


async def test_if_he_goes_on_all_is_as_if_it_had_never_been_tried(call: EarlyCall) -> None:
    other = await begun(EarlyCall(early_units=False))
    for one in (call, other):
        await one.live(400, speaks=True)
        await one.live(300)
        await one.live(1300, speaks=True)
        await one.live(100)
    assert call.commands(Retract) == [Retract(2)]
    told = [item for item in call.engine.told if isinstance(item, Unit | Retract)]
    assert [type(item) for item in told[2:5]] == [Unit, Retract, Unit]
    ours = [unit for unit in call.units if not unit.speculative]
    assert len(other.units) == len(ours) == 4 and other.tried == []
    for mine, theirs in zip(ours, other.units, strict=True):
        assert (mine.index, mine.start) == (theirs.index, theirs.start)
        np.testing.assert_array_equal(mine.audio, theirs.audio)
    await other.leave()


async def test_a_pause_is_tried_once_and_the_next_one_again(call: EarlyCall) -> None:
    await until_tried(call)
    await call.live(3 * UNIT_MS)
    assert len(call.tried) == 1
    await until_tried(call)
    assert len(call.tried) == 2


async def test_a_unit_that_is_tried_brings_the_newest_picture(call: EarlyCall) -> None:
    seen = VideoFrame(np.zeros((2, 2, 3), np.uint8), 7)

    async def latest_picture(now_at: int) -> VideoFrame:
        return seen

    call.peer.latest_picture = latest_picture  # type: ignore[method-assign]
    tried = await until_tried(call)
    assert tried.pictures == (seen,)
    await call.live(UNIT_MS)
    assert call.units[-1].pictures == (seen,)


# ---- when nothing is tried ----------------------------------------------------------------------


async def spoke(call: EarlyCall) -> None:
    """The user said something and is silent, but not until the second is over."""
    await call.live(400, speaks=True)
    await call.live(400)


async def test_nothing_is_tried_where_the_setting_is_off() -> None:
    call = await begun(EarlyCall(early_units=False))
    await spoke(call)
    assert call.tried == []
    await call.leave()


async def test_a_session_may_switch_it_off_and_on(call: EarlyCall) -> None:
    for on in (True, False):
        extension = {"early_units": on}
        await call.client("session.update", session={"type": "realtime", "voice_agent": extension})
        assert call.events("session.updated")[-1]["session"]["voice_agent"]["early_units"] is on
        before = len(call.tried)
        await spoke(call)
        assert (len(call.tried) > before) is on
        await call.live(200)


async def test_nothing_is_tried_on_an_engine_that_is_slow() -> None:
    for lag_ms, is_tried in ((240, True), (340, False)):
        call = await begun(EarlyCall(lag_ms), silent_ms=2300)
        await call.live(200, speaks=True)
        await call.live(300)
        assert bool(call.tried) is is_tried
        await call.leave()


async def test_nothing_is_tried_before_the_engine_is_done_with_the_last_unit() -> None:
    call = await begun(EarlyCall())
    call.lag_ms = 10_000
    await call.live(UNIT_MS)
    await spoke(call)
    assert call.tried == []
    await call.leave()


async def test_nothing_is_tried_in_the_first_second_of_a_call() -> None:
    call = EarlyCall()
    await call.begin()
    await spoke(call)
    assert call.tried == []
    await call.leave()


async def test_nothing_is_tried_while_the_agent_speaks_or_is_about_to(call: EarlyCall) -> None:
    call.engine.say(TurnStarted(1))
    await settle()
    await spoke(call)
    assert call.tried == []
    await call.live(200)
    await call.answer(2, 3, 3000, hold_ms=5000)
    await call.end_turn(2)
    await call.live(100, speaks=True)
    await call.live(400)
    assert call.tried == []


async def test_nothing_is_tried_while_it_is_only_to_listen(call: EarlyCall) -> None:
    await call.client("voice_agent.listen", on=True)
    assert call.commands(ForceListen) == [ForceListen(True)]
    await spoke(call)
    assert call.tried == []


# ---- what the user hears ------------------------------------------------------------------------


async def test_the_answer_sounds_before_the_second_is_over(call: EarlyCall) -> None:
    tried = await until_tried(call, spoken_ms=200)
    await call.answer(1, tried.index, 900)
    sent = await call.live(400)
    assert sent.any() and len(call.units) == 3
    (latency,) = call.events("voice_agent.latency")
    assert SILENCE_MS + 180 <= latency["first_sound_ms"] <= SILENCE_MS + 280


async def test_if_he_goes_on_the_answer_is_dropped_and_nothing_of_it_was_heard(
    call: EarlyCall,
) -> None:
    tried = await until_tried(call, spoken_ms=200)
    await call.answer(1, tried.index, 900)
    assert not (await call.live(100)).any()
    assert not (await call.live(1000, speaks=True)).any()
    assert call.commands(Retract) == [Retract(tried.index)]
    assert call.commands(Interrupt) == [], "the engine knows"
    (done,) = call.events("response.done")
    assert done["response"]["status"] == "cancelled"
    assert STARTED not in call.kinds()
    # What is late of it is not heard either, and the next turn is.
    call.engine.say(SpeechAudio(1, tried.index, 900 * 24, voice(500)), TurnEnded(1, "interrupted"))
    assert not (await call.live(1000)).any()
    await call.answer(2, 4, 500)
    assert (await call.live(500)).any()


async def test_an_answer_of_which_only_the_beginning_was_told_is_dropped_too(
    call: EarlyCall,
) -> None:
    tried = await until_tried(call, spoken_ms=200)
    call.engine.say(TurnStarted(1))
    await call.live(60)
    await call.live(100, speaks=True)
    assert call.commands(Retract) == [Retract(tried.index)]
    call.engine.say(SpeechAudio(1, tried.index, 0, voice(500)), TurnEnded(1, "interrupted"))
    assert not (await call.live(800)).any()
    assert call.commands(Interrupt) == []


async def test_once_the_answer_may_have_been_heard_he_interrupts_it(call: EarlyCall) -> None:
    tried = await until_tried(call, spoken_ms=200)
    await call.answer(1, tried.index, 3000, hold_ms=0)
    assert (await call.live(200)).any()
    await call.live(1500, speaks=True)
    assert call.commands(Retract) == []
    (interrupt,) = call.commands(Interrupt)
    assert interrupt.turn == 1 and interrupt.heard_ms >= 200
    assert call.units[3].start == tried.end


async def test_in_its_first_moment_he_takes_it_back(call: EarlyCall) -> None:
    tried = await until_tried(call, spoken_ms=200)
    await call.answer(1, tried.index, 3000, hold_ms=0)
    assert (await call.live(80)).any()
    sent = await call.live(400, speaks=True)
    assert call.commands(Retract) == [Retract(tried.index)]
    assert not sent[200 * 24 :].any()
    assert call.commands(Interrupt) == []


# ---- what the client is told --------------------------------------------------------------------


async def test_what_the_user_said_is_told_before_the_answer_to_it(call: EarlyCall) -> None:
    tried = await until_tried(call, spoken_ms=200)
    assert "input_audio_buffer.committed" not in call.kinds()
    await call.answer(1, tried.index, 900)
    kinds = call.kinds()
    assert kinds.index("input_audio_buffer.committed") < kinds.index("response.created")
    assert len(call.commands(SpeechEnded)) == 1
    await call.live(100)
    await call.live(600, speaks=True)
    assert call.kinds().count("input_audio_buffer.speech_started") == 2
    first, second = call.commands(SpeechStarted)
    assert second.at >= call.commands(SpeechEnded)[0].at > first.at


async def test_without_an_answer_his_speech_ends_when_it_would_have(call: EarlyCall) -> None:
    await until_tried(call, spoken_ms=200)
    await call.live(100)
    assert call.commands(SpeechEnded) == []
    await call.live(400)
    assert len(call.commands(SpeechEnded)) == 1


async def test_an_engine_that_cannot_take_units_back_is_no_matter_of_the_clients(
    call: EarlyCall,
) -> None:
    await until_tried(call)
    call.engine.refuses = RequestError("what is that?")
    await call.live(100, speaks=True)
    assert call.commands(Retract)
    assert call.events("error") == []
