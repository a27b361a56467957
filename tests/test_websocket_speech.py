"""The agent's sound inside of events: its pace, what stops it, and what was heard of it."""

from collections.abc import AsyncIterator

import numpy as np
import pytest

from agent.commands import Interrupt
from agent.media.barge_in import BargeInDue, DuckDue, ResumeDue
from agent.media.wire_sound import WireEncoder
from agent.types import SessionSettings, SoundFormat, SpeechStarted
from tests.rig.call_parts import MS, voice
from tests.rig.socket_call import DELTA, SocketCall, exact

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

DONE = "response.done"
AUDIO_DONE = "response.output_audio.done"
TRUNCATED = "conversation.item.truncated"


@pytest.fixture
async def call() -> AsyncIterator[SocketCall]:
    """A call under way; at its end the order of everything the client got is checked."""
    driven = SocketCall()
    await driven.begin()
    yield driven
    await driven.leave()


# ---- pace -------------------------------------------------------------------------------------


async def test_a_turn_arrives_sample_for_sample_at_the_pace_of_speech_and_a_little_ahead(
    call: SocketCall,
) -> None:
    sound = voice(3000)
    await call.speak(1, ("Hello you", sound))
    await call.end_turn(1)
    await call.live(20)
    assert len(call.heard) >= 60 * MS, "the first of it at once"
    await call.live(980)
    assert 1000 * MS < len(call.heard) <= 1400 * MS
    await call.live(2500)
    assert np.array_equal(call.heard, exact(sound))
    assert 100 < call.ahead_ms() <= 400
    sizes_ms = [len(data) / 48 for data in call.deltas]
    assert all(40 <= size <= 100 for size in sizes_ms[:-1])
    kinds = call.kinds()
    assert kinds.index(AUDIO_DONE) > max(at for at, kind in enumerate(kinds) if kind == DELTA)
    assert call.last(DONE)["response"]["status"] == "completed"
    assert call.counted("underruns_total") == 0


async def test_an_engine_that_is_just_quick_enough_is_passed_on_without_holes(
    call: SocketCall,
) -> None:
    sound = voice(2000)
    await call.speak(1, ("Hello", sound[: 200 * MS]))
    for begin in range(200, 2000, 200):
        await call.live(200)
        await call.go_on(1, ("", sound[begin * MS : (begin + 200) * MS]))
    await call.end_turn(1)
    await call.live(600)
    assert np.array_equal(call.heard, exact(sound))
    assert call.counted("underruns_total") == 0


async def test_a_hole_in_the_engines_speech_is_counted_and_loses_nothing(call: SocketCall) -> None:
    sound = voice(600)
    await call.speak(1, ("Hello", sound[: 300 * MS]))
    await call.live(800)
    assert np.array_equal(call.heard, exact(sound[: 300 * MS])), "what there is goes out"
    await call.go_on(1, (" you", sound[300 * MS :]))
    await call.end_turn(1)
    await call.live(800)
    assert np.array_equal(call.heard, exact(sound))
    assert call.counted("underruns_total") == 1


async def test_turns_in_a_row_are_each_their_own_response(call: SocketCall) -> None:
    sounds = {turn: voice(333 + turn, turn) for turn in (1, 2, 3)}
    for turn, sound in sounds.items():
        await call.speak(turn, (f"Turn {turn}", sound))
        await call.end_turn(turn)
    await call.live(2000)
    assert np.array_equal(call.heard, exact(np.concatenate(list(sounds.values()))))
    assert call.kinds().count(DONE) == 3
    assert len({event["response_id"] for event in call.events(DELTA)}) == 3
    assert not [kind for kind in call.kinds() if kind.startswith("output_audio_buffer.")]


@pytest.mark.parametrize("coding", ["audio/pcmu", "audio/pcma"])
async def test_a_telephone_gets_the_turn_as_one_stream(coding: SoundFormat) -> None:
    call = SocketCall(settings=SessionSettings(model="echo", output_format=coding))
    await call.begin()
    sounds = [voice(777, turn) for turn in (1, 2)]
    for turn, sound in enumerate(sounds, 1):
        await call.speak(turn, ("Hello", sound))
        await call.end_turn(turn)
    await call.live(2000)
    expected = []
    for sound in sounds:
        encoder = WireEncoder(coding)
        expected.append(encoder.push(sound) + encoder.finish())
    assert b"".join(call.deltas) == b"".join(expected)
    assert [len(data) for data in expected] == [777 * 8] * 2
    await call.leave()


# ---- ducking ----------------------------------------------------------------------------------


async def test_while_ducked_nothing_is_sent_and_afterwards_nothing_is_lost_or_repeated(
    call: SocketCall,
) -> None:
    await call.client("voice_agent.listen", on=False)  # whoever knows these is told of ducks
    sound = voice(2000)
    await call.speak(1, ("Hello", sound))
    await call.end_turn(1)
    for _ in range(3):
        await call.live(300)
        await call.hear(DuckDue(0))
        before = len(call.deltas)
        await call.live(400)
        assert len(call.deltas) == before
        await call.hear(ResumeDue(0))
    await call.live(2500)
    assert np.array_equal(call.heard, exact(sound))
    assert len(call.events("voice_agent.ducked")) == len(call.events("voice_agent.resumed")) == 3
    assert call.last("voice_agent.ducked")["at_ms"] > 500


# ---- barge-in ---------------------------------------------------------------------------------


async def test_a_barge_in_stops_the_sound_at_once_and_claims_what_was_sent(
    call: SocketCall,
) -> None:
    sound = voice(5000)
    await call.speak(1, ("Hello you", sound))
    await call.live(1000)
    await call.hear(SpeechStarted(0), BargeInDue(0))
    sent = len(call.heard)
    await call.live(1000)
    assert len(call.heard) == sent
    assert np.array_equal(call.heard, exact(sound[:sent]))
    assert call.commands(Interrupt) == [Interrupt(1, sent // MS)]
    done = call.last(DONE)["response"]
    assert done["status"] == "cancelled" and done["status_details"]["reason"] == "turn_detected"
    assert TRUNCATED not in call.kinds(), "only the client knows what it played"


async def test_the_clients_truncation_is_the_truth_about_what_was_heard(call: SocketCall) -> None:
    await call.speak(1, ("one two ", voice(1000)), ("three four", voice(4000, 1)))
    await call.live(1500)
    await call.hear(SpeechStarted(0), BargeInDue(0))
    item_id = call.last("response.output_item.added")["item"]["id"]
    await call.client(
        "conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=640
    )
    assert call.last(TRUNCATED)["audio_end_ms"] == 640
    assert call.commands(Interrupt)[-1] == Interrupt(1, 640)
    await call.client("conversation.item.retrieve", item_id=item_id)
    (part,) = call.last("conversation.item.retrieved")["item"]["content"]
    assert part["transcript"] == "one"


async def test_the_next_turn_begins_at_once_behind_one_that_was_cut_off(call: SocketCall) -> None:
    await call.speak(1, ("Hello you", voice(5000)))
    await call.live(500)
    await call.hear(BargeInDue(0))
    before = len(call.heard)
    answer = voice(200, 2)
    await call.speak(2, ("Yes", answer))
    await call.end_turn(2)
    await call.live(80)
    assert len(call.heard) > before
    await call.live(500)
    assert np.array_equal(call.heard[before:], exact(answer))


async def test_behind_a_cancelled_response_comes_none_of_its_sound(call: SocketCall) -> None:
    await call.speak(1, ("Hello you", voice(5000)))
    await call.live(500)
    await call.client("response.cancel")
    assert call.last(DONE)["response"]["status_details"]["reason"] == "client_cancelled"
    sent = len(call.heard)
    await call.live(1000)
    assert len(call.heard) == sent
    assert call.commands(Interrupt)[-1] == Interrupt(1, sent // MS)


# ---- what the client says that it played ------------------------------------------------------


async def test_a_client_that_says_what_it_played_is_believed(call: SocketCall) -> None:
    await call.speak(1, ("one two ", voice(1000)), ("three four", voice(4000, 1)))
    await call.live(1000)
    item_id = call.last("response.output_item.added")["item"]["id"]
    await call.client("playback.ack", item_id=item_id, played_ms=500)
    assert call.last("playback.acknowledged")["event"]["committed_ms"] == 500
    await call.live(200)
    await call.hear(BargeInDue(0))
    assert call.commands(Interrupt) == [Interrupt(1, 700)], "it played on since"


async def test_late_and_repeated_reports_change_nothing(call: SocketCall) -> None:
    await call.speak(1, ("one two ", voice(5000)))
    await call.live(1000)
    for played_ms in (600, 600, 200, 0):
        await call.client("playback.ack", played_ms=played_ms)
    await call.hear(BargeInDue(0))
    assert call.commands(Interrupt) == [Interrupt(1, 600)]


async def test_nobody_is_believed_to_have_played_what_was_not_sent(call: SocketCall) -> None:
    await call.speak(1, ("one two ", voice(5000)))
    await call.live(500)
    await call.client("playback.ack", played_ms=4900)
    await call.hear(BargeInDue(0))
    assert call.commands(Interrupt) == [Interrupt(1, len(call.heard) // MS)]


async def test_reports_that_cease_let_no_more_than_a_second_be_claimed(call: SocketCall) -> None:
    await call.speak(1, ("one two ", voice(9000)))
    await call.live(500)
    await call.client("playback.ack", played_ms=300)
    await call.live(4000)
    await call.hear(BargeInDue(0))
    assert call.commands(Interrupt) == [Interrupt(1, 1300)]
