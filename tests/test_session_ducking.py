"""One call whose agent is ducked: faded, held, resumed or given up for the user's voice."""

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest

from agent.commands import Interrupt
from agent.media.barge_in import DuckDue, ResumeDue
from agent.types import FloatArray, Unit
from tests.rig.call_parts import MS, voice
from tests.rig.driven_call import DrivenCall, mark

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
