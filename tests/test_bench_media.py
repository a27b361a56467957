"""What `bench.media` reads from recordings is true, and its parts run."""

import asyncio
import time

import numpy as np
import pytest

from agent.types import SPEECH_RATE_HZ, FloatArray, VideoFrame
from tests.rig.caller import Caller
from tests.rig.coded_speech import SLOT_S, WORD_S, decode, encode
from tests.rig.lossy_packets import Written, lossy_relay
from tests.rig.programs import require_program

pytest.importorskip("scipy", reason="needs the extra bench")
pytest.importorskip("pesq", reason="needs the extra bench")

from bench import media, media_engine, media_loop, media_marks, media_quality
from bench import media_transport as transport
from bench.media_page import RATE_HZ, Recording, measuring_rig

ROWS = {
    "uplink_p50_ms",
    "uplink_p95_ms",
    "uplink_recovery_s",
    "slots_kept_loss1",
    "slots_kept_loss5",
    "slots_kept_loss10",
    "downlink_p95_ms",
    "downlink_jitter_p95_ms",
    "flush_p95_ms",
    "pesq_loss5",
    "pesq_loss10",
    "pesq_loss5_far",
    "heard_error_p50_ms",
    "heard_error_p95_ms",
    "barge_in_8db_p50_ms",
    "barge_in_8db_p95_ms",
    "barge_in_2db_p50_ms",
    "picture_age_p95_ms",
}


def recording(played: FloatArray, said: FloatArray, began_s: float = 1000.0) -> Recording:
    """As if rendered in real time from `began_s` on."""
    blocks = np.arange(max(len(played), len(said)) // 128)
    return Recording(played, said, (began_s + blocks * 128 / RATE_HZ) * 1000)


def silence(seconds: float, rate_hz: int = RATE_HZ) -> FloatArray:
    return np.zeros(round(seconds * rate_hz), np.float32)


def tone(seconds: float, level: float = 0.2) -> FloatArray:
    cycles = 440 * np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    return (level * np.sin(2 * np.pi * cycles)).astype(np.float32)


def passage(said_s: float, latency_ms: float) -> media_marks.Passage:
    return media_marks.Passage(0, said_s, said_s + latency_ms / 1000, said_s, said_s)


def test_every_row_of_the_media_plane_is_measured_by_one_part() -> None:
    named = [name for part in media.PARTS for name in part.names]
    assert set(named) >= ROWS
    assert len(named) == len(set(named))


def test_the_way_of_each_word_is_timed_on_the_clock_that_both_ends_share() -> None:
    said = media_marks.at_page_rate(encode([5, 6, 7]))
    log = media_marks.MicrophoneLog()
    came = media_marks.at_mic_rate(said)
    for number in range(len(came) // 160):
        frame = came[number * 160 : (number + 1) * 160]
        log.add(media_marks.AudioFrame(frame, 16_000, number * 160), 1000.04 + (number + 1) * 0.01)
    passages = media_marks.uplink_passages(recording(said, said), log)
    assert [passage.index for passage in passages] == [5, 6, 7]
    for passing in passages:
        assert passing.latency_ms == pytest.approx(46, abs=6), "40 ms, and up to 10 more"
        assert passing.came_at_s == pytest.approx(passing.said_at_s, abs=0.003)


def test_recovery_ends_with_the_last_late_word() -> None:
    on_time = [passage(at * 0.25, 30) for at in range(12)]
    assert transport.recovery_s(on_time, 1.0, 3.0) == 0.0
    late = [*on_time[:4], passage(1.0, 90), passage(1.25, 51), *on_time[6:]]
    assert transport.recovery_s(late, 0.99, 3.0) == pytest.approx(0.51)
    assert transport.recovery_s([*on_time[:8], passage(2, 90), *on_time[9:]], 0.99, 3.0) == 0.0
    latched = [*on_time[:4], *(passage(1 + at * 0.25, 280) for at in range(8))]
    assert transport.recovery_s(latched, 1.0, 3.0) == 3.0
    assert transport.recovery_s([], 1.0, 3.0) == 3.0


def test_what_is_40_db_below_the_agent_is_silence() -> None:
    sound = np.concatenate((tone(0.5), tone(0.3, 0.0012), silence(0.2)))
    level_db = media_marks.active_level_db(tone(0.5))
    end_s = media_marks.last_sound_s(sound, RATE_HZ, reference_db=level_db)
    assert end_s == pytest.approx(0.5, abs=0.003)
    assert media_marks.last_sound_s(silence(1), RATE_HZ, reference_db=level_db) == 0.0


def test_barge_in_counts_from_the_first_audible_sample_to_the_first_and_the_last_silence() -> None:
    user = np.concatenate((silence(1.0), tone(0.6, 0.1), silence(0.4)))
    agent = np.concatenate((tone(1.23), silence(0.77)))
    db = media_marks.active_level_db(tone(1.0))
    silenced = media_loop.silenced_after_ms(recording(agent, user), db)
    assert silenced == pytest.approx((230, 230), abs=4)
    ducked = np.concatenate((tone(1.1), silence(0.2), tone(0.4), silence(0.3)))
    silenced = media_loop.silenced_after_ms(recording(ducked, user), db)
    assert silenced == pytest.approx((100, 700), abs=4)
    pausing = np.concatenate((tone(1.1), silence(0.05), tone(0.4), silence(0.45)))
    silenced = media_loop.silenced_after_ms(recording(pausing, user), db)
    assert silenced == pytest.approx((550, 550), abs=4)
    before = np.concatenate((tone(0.4), silence(1.6)))
    silenced = media_loop.silenced_after_ms(recording(before, user), db)
    assert silenced == pytest.approx((-600, -600), abs=4)
    never = media_loop.silenced_after_ms(recording(tone(2.0), user), db)
    assert never == pytest.approx((1000, 1000), abs=4)
    assert media_loop.silenced_after_ms(recording(silence(2.0), user), db)[0] < -900


def test_heard_is_what_was_rendered_to_the_word_and_the_piece_of_it() -> None:
    said = list(range(20))
    speech = encode(said)
    cut = speech[: round((8 * SLOT_S + 0.1) * SPEECH_RATE_HZ)]
    rendered = media_marks.rendered_ms(decode(cut, SPEECH_RATE_HZ), said)
    assert rendered == pytest.approx((2100, 2100), abs=10)
    assert media_loop.error_ms(2160, rendered) == pytest.approx(60, abs=10)
    in_the_pause = speech[: round((8 * SLOT_S + WORD_S + 0.02) * SPEECH_RATE_HZ)]
    rendered = media_marks.rendered_ms(decode(in_the_pause, SPEECH_RATE_HZ), said)
    assert rendered == pytest.approx((2200, 2250), abs=10)
    assert media_loop.error_ms(2230, rendered) == 0.0
    assert media_marks.rendered_ms([], said) == (0.0, 0.0)


def test_a_picture_tells_its_own_age() -> None:
    drawn_ms = 123_456
    bits = (drawn_ms >> np.arange(24)) & 1
    fields = np.kron(bits.reshape(4, 6), np.ones((60, 53)))
    rgb = np.repeat(fields[:, :, None] * 200 + 20, 3, axis=2).astype(np.uint8)
    age_ms = transport.picture_age_ms(VideoFrame(rgb, 0), (drawn_ms + 70) / 1000)
    assert age_ms == pytest.approx(70, abs=1)


def test_pesq_falls_with_what_is_lost_and_not_with_delay() -> None:
    speech = media.talk(13, SPEECH_RATE_HZ)
    played = media_marks.at_page_rate(speech)
    late = np.concatenate((silence(0.8), played))
    assert min(media_quality.pesq_pieces(speech, late)) > 4.3
    broken = late.copy()
    for at in range(0, len(broken) - 960, 19_200):
        broken[at : at + 960] = 0
    assert len(media_quality.pesq_pieces(speech, broken)) == 2
    assert max(media_quality.pesq_pieces(speech, broken)) < 3.5


async def test_the_reciting_engine_speaks_when_asked_and_stops_when_interrupted() -> None:
    engine = media_engine.RecitingEngine(encode(range(8)))
    conversation = await engine.open(media_loop.load_config(None, {}, []).session_settings("echo"))
    events = conversation.events()
    await conversation.control(media_engine.Respond())
    assert await anext(events) == media_engine.TurnStarted(1)
    assert isinstance(await anext(events), media_engine.TextDelta)
    first = await anext(events)
    assert isinstance(first, media_engine.SpeechAudio) and first.start == 0
    await conversation.control(media_engine.Interrupt(1, 100))
    assert await anext(events) == media_engine.TurnEnded(1, "interrupted")
    await conversation.finish()
    assert [event async for event in events] == []


async def test_the_stock_peer_talks_to_a_stock_client() -> None:
    peer, caller = transport.stock_peer(), Caller("")
    speech = transport._Speech()
    peer.play(speech)
    async with lossy_relay() as relay:
        await caller.peer.setLocalDescription(await caller.peer.createOffer())
        offer = caller.peer.localDescription.sdp
        await caller.accept(relay.answer(await peer.answer(relay.offer(offer))))
        await peer.connected()
        speech.push(1, encode([1, 2, 3]))
        caller.microphone.say(media_marks.at_page_rate(encode([4, 5, 6])))
        log = media_marks.MicrophoneLog()
        async for frame in peer.microphone():
            log.add(frame, time.time())
            if log.ends[-1] > 1.5 * log.rate_hz:
                break
        await peer.close()
        await caller.close()
    assert [word.index for word in decode(log.sound(), log.rate_hz)] == [4, 5, 6]
    assert [word.index for word in decode(caller.heard(), 48_000)] == [1, 2, 3]


@pytest.mark.browser
async def test_a_browser_takes_what_was_said_twice_and_asks_for_the_rest() -> None:
    require_program("chromium", apt="chromium")
    words = list(range(24))
    # Two in a row, which no copy in the next packet brings back; from then on some single ones.
    lost = Written(frozenset({20, 21, *range(30, 400, 15)}))
    async with measuring_rig() as rig, lossy_relay() as relay:
        async with transport.line(rig, transport.own_peer, relay=relay) as call:
            relay.to_client.follow(lost)
            await call.page.record()
            call.speech.push(1, encode(words))
            await asyncio.sleep(len(words) * SLOT_S + 1.0)
            heard = decode((await call.page.recorded()).played, RATE_HZ)
            facts = await call.page.statistics()
        assert relay.to_client.lost >= 10
    assert facts["nackCount"] >= 10 and facts["packetsLost"] < 5, "asked for, and sent again"
    assert facts["packetsDiscarded"] >= 50, "copies that were not needed"
    # A busy machine makes the jitter buffer stretch or squeeze a word or two.
    assert len({word.index for word in heard} & set(words)) >= len(words) - 3


@pytest.mark.browser
async def test_sound_goes_both_ways_through_a_page_over_a_lossy_relay() -> None:
    require_program("chromium", apt="chromium")
    async with measuring_rig() as rig, lossy_relay() as relay:
        relay.to_server.follow(Written(frozenset({40})))
        result = await asyncio.wait_for(transport.latencies(rig, transport.own_peer, 4, relay), 60)
        assert relay.to_server.lost == 1
    assert len(result.downlink_ms) == 4 and min(result.downlink_ms) > 0
    assert len(result.uplink_ms) >= 3 and min(result.uplink_ms) > 0
