"""Whole calls between the real server and a plain aiortc client over the loopback."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import pytest

from agent import resources
from agent.engines.greeting import load_greeting
from agent.types import FloatArray
from tests.rig.caller import RATE_HZ, Caller
from tests.rig.realtime_schema import check_events, check_order
from tests.rig.server import Running, running_server
from tests.rig.sound import alike, loud_s
from tests.rig.voices import say

SENTENCE = "The quick brown fox jumps over the lazy dog."
STOPPED = "output_audio_buffer.stopped"

GREETING = resources.assets_folder() / "ref_audio" / "echo_greeting.wav"
PATIENCE_S = 60


@pytest.fixture
def brief_greeting(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what comes after it."""
    whole = load_greeting(GREETING)
    brief = replace(whole, samples=whole.samples[:12_000])
    monkeypatch.setattr("agent.engines.load_greeting", lambda path: brief)


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    async with running_server() as running:
        yield running


@pytest.fixture
async def caller(server: Running) -> AsyncIterator[Caller]:
    client = Caller(server.url)
    await client.dial()
    yield client
    await client.close()


def spoken(text: str = SENTENCE) -> FloatArray:
    return say(text, RATE_HZ, level_dbfs=-20)


async def greeted(caller: Caller) -> int:
    """Wait for the end of the greeting; returns how much sound had come by then."""
    await caller.wait_for(STOPPED)
    return len(caller.heard())


async def test_greets_sees_then_says_the_sentence_back_with_every_event_valid_and_in_order(
    server: Running,
) -> None:
    caller = Caller(server.url, camera=True)
    await caller.dial()
    after_greeting = await greeted(caller)
    assert alike(caller.heard(), np.repeat(load_greeting(GREETING).samples, 2)) > 0.9
    events = len(caller.events)
    sentence = spoken()
    caller.microphone.say(sentence)
    done = await caller.wait_for("response.output_audio_transcript.done", after=events)
    assert "I saw 640×480 pixels, brightness" in str(done["transcript"])
    await caller.wait_for(STOPPED, after=events)
    await asyncio.sleep(0.3)  # what is still in the jitter buffer of the client
    assert alike(caller.heard(since_samples=after_greeting), sentence) > 0.8
    seconds = float(str(done["transcript"]).split("for ")[1].split(" s")[0])
    assert abs(seconds - len(sentence) / RATE_HZ) < 0.7
    assert caller.types()[0] == "session.created"
    latency = await caller.wait_for("voice_agent.latency")
    assert 0 < float(str(latency["first_sound_ms"])) < 5000
    check_events(caller.events)
    check_order(caller.events)
    await caller.close()


@pytest.mark.usefixtures("brief_greeting")
async def test_peers_without_opus_are_heard_and_answered(server: Running) -> None:
    codecs = ("audio/PCMU", "audio/PCMA", "audio/G722")
    callers = [Caller(server.url, codec=codec) for codec in codecs]
    alikeness = await asyncio.gather(*map(_said_back, callers))
    assert min(alikeness) > 0.5, dict(zip(codecs, alikeness, strict=True))


async def _said_back(caller: Caller) -> float:
    """How much the answer to a sentence is like the sentence."""
    await caller.dial()
    after_greeting = await greeted(caller)
    events = len(caller.events)
    sentence = spoken()
    caller.microphone.say(sentence)
    await caller.wait_for(STOPPED, after=events)
    await asyncio.sleep(0.3)  # what is still in the jitter buffer of the client
    heard = caller.heard(since_samples=after_greeting)
    await caller.close()
    return alike(heard, sentence)


async def test_talking_over_the_answer_silences_it(caller: Caller, server: Running) -> None:
    await greeted(caller)
    caller.microphone.say(spoken(f"{SENTENCE} {SENTENCE}"))
    events = len(caller.events)
    answer = await caller.wait_for("output_audio_buffer.started", after=events)
    caller.microphone.say(spoken("Stop it please, stop it now."))
    cleared = await caller.wait_for("output_audio_buffer.cleared", after=events)
    assert cleared["response_id"] == answer["response_id"]
    truncated = await caller.wait_for("conversation.item.truncated", after=events)
    at_clear = len(caller.heard())
    types = caller.types()
    assert types[types.index("output_audio_buffer.cleared") - 1] != STOPPED
    done = await caller.wait_for(
        "response.done",
        lambda event: event["response"]["id"] == answer["response_id"],  # type: ignore[index]
    )
    details = done["response"]["status_details"]  # type: ignore[index]
    assert done["response"]["status"] == "cancelled"  # type: ignore[index]
    assert details["reason"] == "turn_detected"
    assert 0 < int(str(truncated["audio_end_ms"])) < 5000
    await asyncio.sleep(0.7)
    assert loud_s(caller.heard(since_samples=at_clear), RATE_HZ) < 0.35, (
        "the rest of the answer is silent"
    )
    again = await caller.wait_for("output_audio_buffer.started", after=_at(caller))
    assert again["response_id"] != answer["response_id"], "the interruption itself is answered"
    assert server.metric("voice_agent_barge_ins_total") == 1
    check_events(caller.events)
    check_order(caller.events)


def _at(caller: Caller) -> int:
    return caller.types(extensions=True).index("output_audio_buffer.cleared")


async def test_its_own_voice_in_the_microphone_opens_no_turn(server: Running) -> None:
    for _ in range(4):
        caller, latest_s = await _beside_a_loudspeaker(server.url)
        assert loud_s(caller.heard(), RATE_HZ) > 4, "there was something to hear"
        if "input_audio_buffer.speech_started" not in caller.types():
            return
        # A machine that stands still tears holes into the echo: no room does.
        assert latest_s > ROOM_S / 2, "its own voice was taken for the user's"
    pytest.fail("the machine is too busy for a call")


ROOM_S = 0.2
"""The constant delay of a room, in hand so that a busy machine tears no holes."""


async def _beside_a_loudspeaker(url: str) -> tuple[Caller, float]:
    """A call whose microphone hears what the agent says; and how late the loudspeaker was."""
    caller = Caller(url)
    await caller.dial()
    stop = asyncio.Event()

    async def loudspeaker() -> float:
        caller.microphone.say(np.zeros(int(ROOM_S * RATE_HZ), np.float32))
        played, latest_s, loop = 0, 0.0, asyncio.get_running_loop()
        while not stop.is_set():
            fresh = caller.heard(since_samples=played)
            played += len(fresh)
            caller.microphone.say(fresh * 0.5)
            due_s = loop.time() + 0.02
            await asyncio.sleep(0.02)
            latest_s = max(latest_s, loop.time() - due_s)
        return latest_s

    playing = asyncio.create_task(loudspeaker())
    await caller.wait_for(STOPPED)
    events = len(caller.events)
    caller.send({"type": "response.create"})
    await caller.wait_for(STOPPED, after=events)
    stop.set()
    latest_s = await playing
    await caller.close()
    return caller, latest_s


async def test_a_client_that_sends_at_once_still_gets_session_created_first(
    server: Running,
) -> None:
    caller = Caller(server.url)
    caller.channel.on("open", lambda: caller.send({"type": "session.update", "session": {}}))
    await caller.dial()
    await caller.wait_for("session.updated")
    assert caller.types()[0] == "session.created"
    await caller.close()


async def test_nonsense_on_the_channel_is_answered_and_the_call_goes_on(caller: Caller) -> None:
    for text in ("", "nope", "[]", "null", '{"type": 7}', '{"type": "no.such.event"}', "{" * 5000):
        caller.send(text)
    caller.channel.send(b"\x00\xff")
    caller.send({"type": "session.update", "event_id": "e1", "session": {"instructions": 5}})
    await caller.wait_for("error", lambda event: event["error"].get("event_id") == "e1")  # type: ignore[attr-defined]
    assert caller.types().count("error") == 9
    caller.send({"type": "session.update", "session": {"instructions": "Be kind."}})
    updated = await caller.wait_for("session.updated")
    assert updated["session"]["instructions"] == "Be kind."  # type: ignore[index]
    check_events(caller.events)


async def test_cancel_stops_the_engine_and_lets_what_is_queued_play_out(caller: Caller) -> None:
    await caller.wait_for("output_audio_buffer.started")
    caller.send({"type": "response.cancel"})
    done = await caller.wait_for("response.done")
    assert done["response"]["status_details"]["reason"] == "client_cancelled"  # type: ignore[index]
    await caller.wait_for(STOPPED)
    assert "output_audio_buffer.cleared" not in caller.types()
    check_events(caller.events)


@pytest.mark.usefixtures("brief_greeting")
async def test_clear_alone_silences_the_agent(caller: Caller) -> None:
    await caller.wait_for("output_audio_buffer.started")
    caller.send({"type": "output_audio_buffer.clear"})
    await caller.wait_for("output_audio_buffer.cleared")
    caller.send({"type": "response.create"})
    await caller.wait_for(STOPPED)
    check_events(caller.events)
    check_order(caller.events)


async def test_cancel_and_clear_silence_the_agent(caller: Caller) -> None:
    await caller.wait_for("output_audio_buffer.started")
    caller.send({"type": "response.cancel"})
    caller.send({"type": "output_audio_buffer.clear"})
    await caller.wait_for("output_audio_buffer.cleared")
    done = await caller.wait_for("response.done")
    assert done["response"]["status_details"]["reason"] == "client_cancelled"  # type: ignore[index]
    check_events(caller.events)
    check_order(caller.events)


async def test_what_is_typed_is_answered_aloud_and_what_cannot_be_seen_is_refused(
    caller: Caller,
) -> None:
    await caller.wait_for(STOPPED)
    typed = {"type": "input_text", "text": "hello"}
    damaged = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
    for event_id, content in (("e1", damaged), ("e2", typed)):
        item = {"type": "message", "role": "user", "content": [content]}
        caller.send({"type": "conversation.item.create", "event_id": event_id, "item": item})
    error = await caller.wait_for("error")
    assert error["error"]["event_id"] == "e1"  # type: ignore[index]
    after = len(caller.events)
    caller.send({"type": "response.create"})
    said = await caller.wait_for("response.output_audio_transcript.done", after=after)
    assert said["transcript"] == "You wrote: hello"
    caller.send({"type": "conversation.item.retrieve", "item_id": said["item_id"]})
    retrieved = await caller.wait_for("conversation.item.retrieved")
    assert retrieved["item"]["id"] == said["item_id"]  # type: ignore[index]
    check_events(caller.events)


async def test_an_engine_ahead_of_playout_waits_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agent.engines.echo_memory._LEAD_S", 1000.0)
    async with running_server(["playout.max_queued_s=1"]) as server:
        caller = Caller(server.url)
        await caller.dial()
        await caller.wait_for(STOPPED)
        assert alike(caller.heard(), np.repeat(load_greeting(GREETING).samples, 2)) > 0.9
        caller.send({"type": "response.create"})
        await caller.wait_for("response.created", after=len(caller.events))
        await caller.close()
        async with asyncio.timeout(PATIENCE_S):
            while server.calls:
                await asyncio.sleep(0.05)
