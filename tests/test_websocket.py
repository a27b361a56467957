"""`WS /v1/realtime` between the real server and a plain aiohttp client over the loopback."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import aiohttp
import numpy as np
import pytest

from agent import resources
from agent.api import sockets
from agent.engines.greeting import load_greeting
from agent.media.audio import from_pcm16
from agent.media.wire_sound import WireDecoder, WireEncoder, wire_rate_hz
from agent.transport import websocket_line, websocket_microphone
from agent.transport.websocket import LEAST_EVENT_BYTES
from agent.transport.websocket_line import MAX_WAITING_S
from agent.transport.websocket_pace import SocketPace
from agent.types import FloatArray, SoundFormat
from tests.rig.server import Running, running_server
from tests.rig.socket_caller import RATE_HZ, SocketCaller, pcm16
from tests.rig.socket_visits import calling, gone
from tests.rig.sound import alike
from tests.rig.voices import say

SENTENCE = "The quick brown fox jumps over the lazy dog."
STARTED = "input_audio_buffer.speech_started"
DONE = "response.done"


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    async with running_server() as running:
        yield running


def own_turns(coding: SoundFormat = "audio/pcm") -> dict[str, object]:
    """A session whose client commits its turns itself."""
    named = {"type": coding, "rate": 24_000} if coding == "audio/pcm" else {"type": coding}
    sides = {"input": {"format": named, "turn_detection": None}, "output": {"format": named}}
    return {"type": "realtime", "audio": sides}


async def refused(
    server: Running, status: int, query: str = "model=x", **options: object
) -> tuple[dict[str, object], aiohttp.ClientResponse]:
    """The error object of a request for a socket that gets none."""
    headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    headers["Sec-WebSocket-Key"] = "dGhlIHNhbXBsZSBub25jZQ=="
    headers |= options.get("headers", {})  # type: ignore[arg-type]
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"{server.url}/v1/realtime?{query}", headers=headers) as response,
    ):
        assert response.status == status, await response.text()
        error = (await response.json())["error"]
        assert set(error) == {"message", "type", "code", "param"}
        return error, response


# ---- a conversation ---------------------------------------------------------------------------


async def test_the_greeting_arrives_sample_for_sample_although_somebody_coughs(
    server: Running,
) -> None:
    greeting = load_greeting(resources.assets_folder() / "ref_audio" / "echo_greeting.wav")
    async with calling(server, quiet=False) as caller:
        assert caller.types()[0] == "session.created"
        await caller.send("voice_agent.resume")  # whoever knows our events is told of ducks
        delta = await caller.wait_for("response.output_audio.delta")
        cough = say("mhm", RATE_HZ, level_dbfs=-20)[: RATE_HZ * 4 // 10]
        for _ in range(2):  # a machine that stands still may tear the first one apart
            await caller.say_live(bytes(57_600) + pcm16(cough), 20)
            if "voice_agent.ducked" in caller.types(extensions=True):
                break
        await caller.wait_for(DONE)
        kinds = caller.types(extensions=True)
        assert kinds.count("voice_agent.ducked") == kinds.count("voice_agent.resumed") >= 1
        assert np.array_equal(from_pcm16(caller.sound(str(delta["response_id"]))), greeting.samples)
        kinds = caller.types()
        assert kinds.index("response.output_audio.done") > kinds.index(
            "response.output_audio.delta"
        )
        first_s, last_s = caller.arrived_s[0], caller.arrived_s[len(caller.events) - 1]
        assert last_s - first_s > len(greeting.samples) / RATE_HZ - 1.0, "at the pace of speech"


async def test_a_recording_sent_at_once_is_heard_and_said_back(server: Running) -> None:
    async with calling(server) as caller:
        events = len(caller.events)
        sentence = say(SENTENCE, RATE_HZ, level_dbfs=-20)
        await caller.say(pcm16(sentence))  # and no silence behind it
        started = await caller.wait_for(STARTED, after=events)
        assert int(str(started["audio_start_ms"])) < 500
        done = await caller.wait_for(DONE, after=events)
        stopped = (await caller.wait_for("input_audio_buffer.speech_stopped"))["audio_end_ms"]
        assert int(str(stopped)) == pytest.approx(len(sentence) / 24, abs=500)
        response_id = done["response"]["id"]  # type: ignore[index]
        assert alike(from_pcm16(caller.sound(response_id)), sentence) > 0.8


async def test_live_speech_over_the_agent_stops_it(server: Running) -> None:
    async with calling(server, quiet=False) as caller:
        await caller.wait_for("response.output_audio.delta")
        sentence = say(SENTENCE, RATE_HZ, level_dbfs=-20)
        talking = asyncio.ensure_future(caller.say_live(pcm16(sentence), 100))
        done = await caller.wait_for(DONE)
        response = done["response"]
        assert response["status_details"]["reason"] == "turn_detected"  # type: ignore[index]
        await talking
        behind = caller.types()[caller.events.index(done) :]
        assert "conversation.item.truncated" not in behind, "the client says what it played"
        later = [one for one in caller.of("response.output_audio.delta")
                 if caller.events.index(one) > caller.events.index(done)]  # fmt: skip
        assert not [one for one in later if one["response_id"] == response["id"]]  # type: ignore[index]


@pytest.mark.parametrize("coding", ["audio/pcm", "audio/pcmu", "audio/pcma"])
async def test_a_held_button_is_answered_with_exactly_what_was_appended(
    server: Running, coding: SoundFormat
) -> None:
    async with calling(server) as caller:
        await caller.send("session.update", session=own_turns(coding))
        updated = await caller.wait_for("session.updated")
        formats = updated["session"]["audio"]  # type: ignore[index]
        assert formats["input"]["format"]["type"] == formats["output"]["format"]["type"] == coding
        events = len(caller.events)
        sentence = say("Push to talk.", RATE_HZ, level_dbfs=-20)
        encoder = WireEncoder(coding)
        data = encoder.push(sentence) + encoder.finish()
        for begin in range(0, len(data), 1001):
            await caller.say(data[begin : begin + 1001])
        await caller.send("input_audio_buffer.commit")
        await caller.send("response.create")
        done = await caller.wait_for(DONE, after=events)
        sound = caller.sound(done["response"]["id"])  # type: ignore[index]
        seconds = len(sound) / wire_rate_hz(coding) / (2 if coding == "audio/pcm" else 1)
        assert seconds == pytest.approx(len(sentence) / RATE_HZ, abs=0.06)
        assert alike(heard(sound, coding), heard(data, coding)) > 0.9
        assert STARTED not in caller.types()


def heard(data: bytes, coding: SoundFormat) -> FloatArray:
    """At 16 kHz."""
    decoder = WireDecoder(coding)
    return np.concatenate((decoder.push(data), decoder.finish()))


async def test_an_event_that_holds_too_much_is_refused_and_the_call_goes_on(
    server: Running,
) -> None:
    async with calling(server) as caller:
        ulaw = {"input": {"format": {"type": "audio/pcmu"}, "turn_detection": None}}
        await caller.send("session.update", session={"type": "realtime", "audio": ulaw})
        await caller.say(bytes(8_000 * (MAX_WAITING_S + 5)))
        error = (await caller.wait_for("error"))["error"]
        assert error["code"] == "input_audio_buffer_full"  # type: ignore[index]
        await caller.say(bytes(8_000))
        await caller.send("input_audio_buffer.commit")
        await caller.wait_for("input_audio_buffer.committed")


async def test_who_sends_a_long_recording_at_once_is_made_to_wait_and_loses_nothing(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket_microphone, "_PLENTY_S", 2.0)
    monkeypatch.setattr(websocket_line, "MAX_WAITING_S", 6)
    async with calling(server) as caller:
        await caller.send("session.update", session=own_turns())
        for _ in range(6):
            await caller.say(bytes(48_000 * 3))
        await caller.send("input_audio_buffer.commit")
        await caller.wait_for("input_audio_buffer.committed")
        assert caller.of("error") == []


# ---- the door ---------------------------------------------------------------------------------


async def test_any_model_is_welcome_and_browsers_are_answered_their_subprotocol(
    server: Running,
) -> None:
    for query in ("model=gpt-realtime-2.1", "model=echo", "model=anything%20at%20all", ""):
        caller = SocketCaller(server.url, query)
        await caller.dial(protocols=("realtime", "openai-insecure-api-key.sk-123"))
        assert caller.socket.protocol == "realtime"
        await caller.hang_up()


async def test_plain_http_is_told_what_to_do(server: Running) -> None:
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"{server.url}/v1/realtime?model=x") as response,
    ):
        assert response.status == 426
        assert (await response.json())["error"]["code"] == "websocket_required"


async def test_without_a_free_line_the_answer_is_503_before_there_is_a_socket() -> None:
    async with running_server(["calls.max_calls=1"]) as server:
        async with calling(server):
            error, response = await refused(server, 503)
            assert error["code"] == "no_capacity"
            assert int(response.headers["Retry-After"]) >= 1
        await gone(server)
        async with calling(server):
            pass


@pytest.mark.parametrize("message", [b"\x00\x01", "no json", "[]", '{"type": "nonsense"}'])
async def test_nonsense_is_an_error_event_and_the_call_goes_on(
    server: Running, message: bytes | str
) -> None:
    async with calling(server) as caller:
        if isinstance(message, bytes):
            await caller.socket.send_bytes(message)
        else:
            await caller.socket.send_str(message)
        assert (await caller.wait_for("error"))["error"]
        await caller.send("input_audio_buffer.clear")
        await caller.wait_for("input_audio_buffer.cleared")


async def test_an_event_too_long_is_refused_and_one_twice_as_long_closes(server: Running) -> None:
    async with calling(server) as caller:
        await caller.socket.send_str(json.dumps({"type": "x" * (LEAST_EVENT_BYTES + 1)}))
        error = (await caller.wait_for("error"))["error"]
        assert error["code"] == "message_too_large"  # type: ignore[index]
        await caller.send("input_audio_buffer.clear")
        await caller.wait_for("input_audio_buffer.cleared")
        with contextlib.suppress(ConnectionError):  # it may be closed before all is sent
            await caller.socket.send_str("x" * (2 * LEAST_EVENT_BYTES + 1))
        code = await caller.wait_until_closed()
        # A client that still sends may miss why.
        assert code in (None, 1006, aiohttp.WSCloseCode.MESSAGE_TOO_BIG)
    await gone(server)


async def test_who_sends_too_many_events_is_made_to_wait_and_loses_none(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "PACE", SocketPace(events_s=50, events_at_once=10))
    async with calling(server) as caller:
        for _ in range(60):
            await caller.send("input_audio_buffer.clear")
        await caller.send("session.update", session=own_turns())
        await caller.wait_for("session.updated")
        assert len(caller.of("input_audio_buffer.cleared")) == 60
        assert caller.of("error") == []
