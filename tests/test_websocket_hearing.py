"""The user's sound out of events, from the append to the engine; time is driven."""

import base64
from collections.abc import AsyncIterator

import numpy as np
import pytest

from agent.commands import ClearInput, CommitInput
from agent.media.audio import to_pcm16
from agent.types import (
    MIC_RATE_HZ,
    UNIT_SAMPLES,
    FloatArray,
    SessionSettings,
    SpeechEnded,
    SpeechStarted,
    Unit,
)
from agent.unit_pace import MOST_AHEAD
from tests.rig.call_parts import ToldDetector
from tests.rig.socket_call import SocketCall

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

OWN_TURNS = SessionSettings(model="echo", turn_detection=None)


def sound(ms: int, level: float = 0.25) -> bytes:
    """A steady PCM16 level: where it stands on the line is where the line is not 0."""
    return to_pcm16(np.full(24 * ms, level, np.float32)).tobytes()


def units(call: SocketCall) -> FloatArray:
    """All that the engine heard."""
    told = call.commands(Unit)
    return np.concatenate([unit.audio for unit in told]) if told else np.zeros(0, np.float32)


@pytest.fixture
async def call() -> AsyncIterator[SocketCall]:
    driven = SocketCall(detector=ToldDetector(patience=8000))
    await driven.begin()
    yield driven
    await driven.leave()


@pytest.fixture
async def own_turns() -> AsyncIterator[SocketCall]:
    """A call whose client commits the user's turns itself."""
    driven = SocketCall(settings=OWN_TURNS)
    await driven.begin()
    yield driven
    await driven.leave()


# ---- time -------------------------------------------------------------------------------------


async def test_the_engine_hears_a_second_each_second_whether_somebody_sends_or_not(
    call: SocketCall,
) -> None:
    await call.live(2500)
    assert len(call.commands(Unit)) == 2 and not units(call).any()
    await call.talk(sound(2000))
    await call.live(2500)
    assert len(call.commands(Unit)) in (6, 7)
    loud = np.flatnonzero(units(call) > 0.2)
    assert loud[-1] - loud[0] == pytest.approx(2 * MIC_RATE_HZ, abs=10)
    assert len(loud) == pytest.approx(2 * MIC_RATE_HZ, abs=10), "and no hole inside"


async def test_speech_is_told_by_the_clients_own_clock(call: SocketCall) -> None:
    """It counts what it sent; what silence there was between, it does not know."""
    await call.live(7000)
    for turn in range(3):
        call.detector.voiced = True
        await call.talk(sound(1000))
        call.detector.voiced = False
        await call.live(3000)
        started = call.last("input_audio_buffer.speech_started")["audio_start_ms"]
        stopped = call.last("input_audio_buffer.speech_stopped")["audio_end_ms"]
        assert started == pytest.approx(turn * 1000, abs=320), "prefix padding included"
        assert stopped == pytest.approx((turn + 1) * 1000, abs=64)
    told = [item.at for item in call.engine.told if isinstance(item, SpeechStarted | SpeechEnded)]
    assert told[0] > 6 * MIC_RATE_HZ, "the engine's clock is that of its units"


async def test_too_much_sound_is_refused_by_an_error_and_the_call_goes_on(
    call: SocketCall,
) -> None:
    for _ in range(3):
        await call.append(sound(35_000))
    await call.client(
        "input_audio_buffer.append",
        audio=base64.b64encode(sound(30_000)).decode(),
        event_id="mine_1",
    )
    error = call.last("error")["error"]
    assert error["code"] == "input_audio_buffer_full" and "120 s fit" in error["message"]
    await call.live(500)
    await call.append(sound(100))
    assert len(call.events("error")) == 1


async def test_a_recording_waits_for_an_engine_that_is_slow(call: SocketCall) -> None:
    call.reports_units = False
    await call.append(sound(30_000))
    await call.live(950)
    assert len(call.commands(Unit)) == MOST_AHEAD
    for _ in range(20):
        reported = call.report_units(1)
        await call.live(300)
        assert len(call.commands(Unit)) == reported + MOST_AHEAD
    assert reported == 20
    call.report_units()
    await call.live(2000)


async def test_a_recording_goes_on_at_the_pace_of_speech_where_the_engine_reports_nothing(
    call: SocketCall,
) -> None:
    call.reports_units = False
    await call.append(sound(30_000))
    await call.live(1000)
    before = len(call.commands(Unit))
    await call.live(5000)
    assert len(call.commands(Unit)) - before == pytest.approx(5, abs=1)


async def test_what_waits_is_not_heard_once_it_is_cleared(call: SocketCall) -> None:
    await call.append(sound(20_000, 0.5))
    await call.live(200)
    await call.client("input_audio_buffer.clear")
    await call.append(sound(1000, 0.25))
    await call.live(3000)
    loud = units(call) > 0.4
    assert 1 * MIC_RATE_HZ < np.count_nonzero(loud) < 4 * MIC_RATE_HZ
    after = units(call)[np.flatnonzero(loud)[-1] + 1 :]
    assert np.count_nonzero(after > 0.2) == pytest.approx(MIC_RATE_HZ, abs=50)


# ---- turns of the client's own ----------------------------------------------------------------


async def test_a_commit_tells_the_engine_exactly_what_was_appended(own_turns: SocketCall) -> None:
    call = own_turns
    await call.live(3000)
    for _ in range(2):
        await call.talk(sound(1234))
        await call.client("input_audio_buffer.commit")
        await call.live(1000)
        begin, commit = call.commands(ClearInput)[-1], call.commands(CommitInput)[-1]
        assert commit.at - begin.at == 1234 * 16
        assert commit.item_id == call.last("input_audio_buffer.committed")["item_id"]
        inside = units(call)[begin.at + 10 : commit.at - 10]
        assert (inside > 0.2).all()
        await call.live(4000)
    told = [item for item in call.engine.told if isinstance(item, ClearInput | CommitInput)]
    assert [type(item) for item in told] == [ClearInput, CommitInput] * 2


async def test_the_engine_has_the_whole_turn_as_soon_as_it_is_committed(
    own_turns: SocketCall,
) -> None:
    call = own_turns
    await call.talk(sound(1300))
    await call.client("input_audio_buffer.commit")
    await call.live(20)
    assert len(units(call)) >= call.commands(CommitInput)[-1].at
    assert len(units(call)) % UNIT_SAMPLES == 0


async def test_what_is_cleared_is_not_heard_and_not_committed(own_turns: SocketCall) -> None:
    call = own_turns
    await call.append(sound(20_000, 0.5))
    await call.live(200)
    await call.client("input_audio_buffer.clear")
    assert call.events("input_audio_buffer.cleared")
    await call.append(sound(1000, 0.25))
    await call.client("input_audio_buffer.commit")
    await call.live(2000)
    begin, commit = call.commands(ClearInput)[-1], call.commands(CommitInput)[-1]
    assert commit.at - begin.at == 1000 * 16
    heard = units(call)
    assert np.allclose(heard[begin.at + 50 : commit.at - 50], 0.25, atol=0.01)
    assert np.count_nonzero(heard > 0.4) < 4 * MIC_RATE_HZ


async def test_nothing_appended_is_nothing_to_commit(own_turns: SocketCall) -> None:
    call = own_turns
    await call.live(1000)
    await call.client("input_audio_buffer.commit")
    assert call.last("error")["error"]["code"] == "input_audio_buffer_commit_empty"
    assert call.commands(CommitInput) == []
