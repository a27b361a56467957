"""`/v1/audio/speech` as the `openai` client sees it: formats, streams, voices, errors."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np
import openai
import pytest
from aiohttp import web

from agent.api import chat, replies, speech
from agent.api.calls import Services
from agent.api.chat import CHATS, Chats
from agent.api.origins import Origins
from agent.chat_types import ChatAudio, ChatDone, ChatEvent
from agent.config import load_config
from agent.errors import CapacityError, VocoderError
from agent.media.audio import to_pcm16
from agent.media.files import read_media
from agent.media.speech_file import CONTENT_TYPES, SPEECH_FORMATS, SpeechFile, SpeechFormat
from agent.media.vad import SileroModel
from agent.telemetry import Telemetry
from tests.rig.reading_engine import ReadingEngine
from tests.rig.server import running_server
from tests.rig.speaking_engine import WORD_SAMPLES, WORD_TOKENS, SpeakingEngine, sound_of

PATH = "/v1/audio/speech"
TEXT = "one two three"
SPOKEN = sound_of("one", "two", "three")
REFUSED: list[tuple[dict[str, object], str, str]] = [
    ({"input": None}, "input", "missing_required_parameter"),
    ({"input": 5}, "input", "invalid_type"),
    ({"input": " \n"}, "input", "invalid_value"),
    ({"input": "x" * 4097}, "input", "string_above_max_length"),
    ({"input": "a\udc00"}, "input", "invalid_value"),
    ({"voice": "carla"}, "voice", "voice_not_found"),
    ({"voice": 5}, "voice", "invalid_type"),
    ({"voice": {}}, "voice.id", "missing_required_parameter"),
    ({"response_format": "ogg"}, "response_format", "invalid_value"),
    ({"stream_format": "lines"}, "stream_format", "invalid_value"),
    ({"speed": 1.25}, "speed", "unsupported"),
    ({"speed": 9}, "speed", "invalid_value"),
    ({"instructions": 5}, "instructions", "invalid_type"),
    ({"language": "fr"}, "language", "invalid_value"),
    ({"seed": 1.5}, "seed", "invalid_type"),
]
"""What is sent, and the `param` and `code` of the error."""


@dataclass(frozen=True)
class SpeechServer:
    """A server that speaks."""

    engine: SpeakingEngine
    chats: Chats
    client: openai.AsyncOpenAI
    http: aiohttp.ClientSession

    async def read(self, text: str = TEXT, **options: Any) -> bytes:
        """The whole file, by the client."""
        wanted = {"model": "anything", "voice": "anna", **options}
        return (await self.client.audio.speech.create(input=text, **wanted)).content

    async def post(self, **body: object) -> tuple[int, dict[str, Any]]:
        """Status and document that a raw body gets."""
        async with self.http.post(PATH, json={"input": TEXT, **body}) as response:
            return response.status, await response.json()

    async def events(self, **body: object) -> list[dict[str, Any]]:
        """All events of a stream of them."""
        asked = {"input": TEXT, "stream_format": "sse", **body}
        async with self.http.post(PATH, json=asked) as response:
            assert response.headers["Content-Type"].startswith("text/event-stream")
            text = await response.text()
        lines = [line for line in text.strip().split("\n\n") if not line.startswith(":")]
        return [json.loads(line.removeprefix("data: ")) for line in lines]


@asynccontextmanager
async def speech_server(
    *overrides: str, engine: ReadingEngine | None = None, voices: Any = None
) -> AsyncIterator[SpeechServer]:
    config = load_config(None, {}, overrides)
    speaking: Any = engine or SpeakingEngine()
    services = Services(config, speaking, Telemetry(), SileroModel(), voices)
    origins = Origins(config, lambda: True)
    app = web.Application(middlewares=[replies.cors(origins), replies.errors_as_json])
    app.on_response_prepare.append(replies.tell_pages(origins))
    chat.add_to(app, services)
    speech.add_to(app, services)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with (
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client,
            aiohttp.ClientSession(url) as http,
        ):
            yield SpeechServer(speaking, app[CHATS], client, http)
    finally:
        await runner.cleanup()


@pytest.fixture
async def server() -> AsyncIterator[SpeechServer]:
    async with speech_server() as running:
        yield running


async def until(is_so: Callable[[], object]) -> None:
    """Wait for what happens by itself."""
    async with asyncio.timeout(60):
        while not is_so():
            await asyncio.sleep(0.01)


def in_one_go(form: SpeechFormat, text: str = TEXT) -> bytes:
    file = SpeechFile(form)
    return file.push(sound_of(*text.split())) + file.finish()


# ---- sound ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", SPEECH_FORMATS)
async def test_a_text_is_read_in_every_format(server: SpeechServer, form: SpeechFormat) -> None:
    file = await server.read(response_format=form)
    assert file == in_one_go(form)
    if form == "pcm":
        assert file == to_pcm16(SPOKEN).tobytes()
    else:  # what this server itself takes as a recording
        heard = read_media(file).samples  # type: ignore[union-attr]
        assert len(heard) / 16_000 == pytest.approx(len(SPOKEN) / 24_000, abs=0.09)
        assert np.abs(heard).max() > 0.2


async def test_what_stands_above_it(server: SpeechServer) -> None:
    for form in SPEECH_FORMATS:
        body = {"input": TEXT, "response_format": form}
        async with server.http.post(PATH, json=body, headers={"Origin": "https://a.b"}) as reply:
            assert reply.headers["Content-Type"] == CONTENT_TYPES[form]
            assert reply.headers["Access-Control-Allow-Origin"] == "https://a.b"
            assert reply.headers["Transfer-Encoding"] == "chunked"
    async with server.http.post(PATH, json={"input": TEXT}) as reply:
        assert await reply.read() == in_one_go("mp3"), "OpenAI's usual"


@pytest.mark.parametrize("form", SPEECH_FORMATS)
async def test_the_first_sound_is_sent_before_the_rest_is_made(
    server: SpeechServer, form: SpeechFormat
) -> None:
    server.engine.held_after = 1
    wanted: Any = {"model": "tts-1", "voice": "alloy", "response_format": form}
    async with server.client.audio.speech.with_streaming_response.create(
        input=TEXT, **wanted
    ) as reply:
        pieces = reply.iter_bytes()
        first = await anext(pieces)
        assert not server.engine.go_on.is_set() and len(first) > 0
        server.engine.go_on.set()
        rest = b"".join([piece async for piece in pieces])
    assert first + rest == in_one_go(form)


async def test_the_same_as_events(server: SpeechServer) -> None:
    events = await server.events(response_format="opus")
    assert {event["type"] for event in events[:-1]} == {"speech.audio.delta"}
    sound = [base64.b64decode(event["audio"]) for event in events[:-1]]
    assert len(sound) >= 3 and b"".join(sound) == in_one_go("opus")
    tokens = 3 * WORD_TOKENS
    usage = {"input_tokens": 3, "output_tokens": tokens, "total_tokens": 3 + tokens}
    assert events[-1] == {"type": "speech.audio.done", "usage": usage}
    raw = await server.client.audio.speech.create(
        input=TEXT, model="gpt-4o-mini-tts", voice="marin", stream_format="sse"
    )
    assert raw.content.count(b"speech.audio.delta") >= 2


async def test_events_show_that_it_lives() -> None:
    async with speech_server("chat.keep_alive_s=0.1") as server:
        server.engine.held_after = 1
        body = {"input": TEXT, "stream_format": "sse", "response_format": "pcm"}
        async with server.http.post(PATH, json=body) as response:
            assert response.status == 200
            for _ in range(2):
                await response.content.readuntil(b": still at it\n\n")
            server.engine.go_on.set()
            assert b"speech.audio.done" in await response.read()


# ---- what is asked ----------------------------------------------------------------------------


async def test_voices(server: SpeechServer) -> None:
    # Names that stock clients send, and none at all, are the first voice there is.
    for asked, given in (
        ("ben", "ben"),
        ({"id": "ben"}, "ben"),
        ("alloy", ""),
        ({"id": "coral"}, ""),
        (None, ""),
    ):
        await server.read(voice=asked)
        assert server.engine.spoken[-1].voice == given, asked
    with pytest.raises(openai.BadRequestError) as caught:
        await server.read(voice="carla")
    assert caught.value.code == "voice_not_found" and caught.value.param == "voice"


class Added:
    """The voices that there are by now, one of them called as stock clients call theirs."""

    def ready_ids(self) -> tuple[str, ...]:
        return ("anna", "nova")


async def test_a_voice_that_was_added_later_wins_over_a_stock_name() -> None:
    async with speech_server(voices=Added()) as server:
        assert "nova" not in server.engine.abilities.voices
        status, document = await server.post(voice="nova")
        assert (status, document["error"]["code"]) == (400, "voice_not_found"), "asked for as it is"
        assert await server.read(voice="alloy", response_format="pcm") == in_one_go("pcm")


async def test_language_and_seed(server: SpeechServer) -> None:
    await server.read()
    assert server.engine.spoken[-1].language == "en"
    await server.read(extra_body={"language": "zh"})
    assert server.engine.spoken[-1].language == "zh"
    await server.read(extra_body={"seed": 2**63 - 1})
    assert server.engine.spoken[-1].seed == 2**63 - 1
    assert server.engine.spoken[-2].seed is None and server.engine.spoken[-1].text == TEXT


async def test_what_changes_nothing_is_taken(server: SpeechServer) -> None:
    whole = in_one_go("pcm")
    assert whole == await server.read(
        response_format="pcm", speed=1.0, instructions="cheerfully", extra_body={"new": {"a": 1}}
    )
    assert len(await server.read("x" * 4096, response_format="pcm")) == 2 * WORD_SAMPLES


async def test_what_cannot_be_served_is_named(server: SpeechServer) -> None:
    for body, param, code in REFUSED:
        for stream_format in ("audio", "sse"):
            status, document = await server.post(**{"stream_format": stream_format, **body})
            error = document["error"]
            assert (status, error["param"], error["code"]) == (400, param, code), body
            assert error["type"] == "invalid_request_error" and error["message"]
    assert server.engine.spoken == [] and server.chats._inside == 0


async def test_bodies_that_are_no_request(server: SpeechServer) -> None:
    json_type = {"Content-Type": "application/json"}
    large = b'{"input": "' + b"x" * 262_144 + b'"}'
    for data, status in ((b"", 400), (b"[1]", 400), (b"\xff", 400), (large, 413)):
        async with server.http.post(PATH, data=data, headers=json_type) as response:
            assert response.status == status and (await response.json())["error"]["message"]
    async with server.http.post(PATH, data=b"input=1") as response:
        assert response.status == 415
    longest = json.dumps({"input": "\U0001f600" * 4096}).encode()
    async with server.http.post(PATH, data=longest, headers=json_type) as response:
        assert response.status == 200, "escapes make it twelve times as long"


async def test_an_engine_without_a_voice_says_so() -> None:
    async with speech_server(engine=ReadingEngine()) as server:
        with pytest.raises(openai.InternalServerError) as caught:
            await server.read()
    assert caught.value.status_code == 501 and caught.value.code == "unsupported_by_engine"
    assert "the reading engine has no voice" in str(caught.value)


async def test_the_real_server_has_it() -> None:
    async with running_server() as running, aiohttp.ClientSession(running.url) as http:
        async with http.post(PATH, json={"input": TEXT}) as response:
            document = await response.json()
            assert (response.status, document["error"]["type"]) == (501, "server_error")


# ---- what goes wrong --------------------------------------------------------------------------


@pytest.mark.parametrize("form", SPEECH_FORMATS)
async def test_a_cut_file_cannot_be_taken_for_a_whole_one(form: SpeechFormat) -> None:
    async with speech_server(engine=SpeakingEngine(failing=VocoderError("not a number"))) as server:
        body = {"input": TEXT, "response_format": form}
        async with server.http.post(PATH, json=body) as response:
            assert response.status == 200
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()
        with pytest.raises(openai.APIError):
            await server.read(response_format=form)
        assert server.chats._inside == 0 and server.engine.running == 0


@pytest.mark.parametrize("words", [1, 0])
async def test_a_voice_that_fails_on_the_way_is_an_error(server: SpeechServer, words: int) -> None:
    server.engine.fails_after = words
    if words:
        async with server.http.post(PATH, json={"input": TEXT}) as response:
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()
    else:
        status, document = await server.post()
        assert status == 500 and document["error"]["code"] == "vocoder_failed"


async def test_a_reading_without_a_sound_or_without_its_end_is_an_error() -> None:
    class Ending(SpeakingEngine):
        words = 0

        async def _say(self, request: Any) -> AsyncIterator[ChatEvent]:
            for _ in range(self.words):
                yield ChatAudio(sound_of("one"))
            yield ChatDone("length" if self.words else "stop", 1, 1)

    async with speech_server(engine=Ending()) as server:
        status, document = await server.post(response_format="wav")
        assert status == 500 and document["error"]["code"] == "vocoder_failed"
        Ending.words = 2
        events = await server.events()
        assert "longer than is read in one go" in events[-1]["error"]["message"]


async def test_events_end_with_the_error(server: SpeechServer) -> None:
    server.engine.failing = VocoderError("not a number")
    events = await server.events(response_format="pcm")
    assert [event.get("type") for event in events] == ["speech.audio.delta"] * 2 + [None]
    assert events[-1]["error"]["message"] == "not a number"
    assert events[-1]["error"]["code"] == "vocoder_failed"


async def test_an_error_before_the_first_sound_has_its_own_status() -> None:
    full = CapacityError("no slot", retry_after_s=3.2)
    async with speech_server(engine=SpeakingEngine(before=full)) as server:
        server.chats.slot_wait_s = 0
        for stream_format in ("audio", "sse"):
            with pytest.raises(openai.InternalServerError) as caught:
                await server.read(stream_format=stream_format)
            assert caught.value.status_code == 503
            assert caught.value.response.headers["Retry-After"] == "4"


async def test_texts_and_chats_share_their_places() -> None:
    async with speech_server("chat.max_chats=1", "chat.max_waiting=1") as server:
        server.engine.go.clear()
        question: Any = [{"role": "user", "content": "hello"}]
        chatting = asyncio.ensure_future(
            server.client.chat.completions.create(model="x", messages=question)
        )
        await until(lambda: server.engine.running)
        reading = asyncio.ensure_future(server.read(response_format="pcm"))
        await until(lambda: server.chats._inside == 2)
        with pytest.raises(openai.InternalServerError, match="too many chats are waiting"):
            await server.read()
        server.engine.go.set()
        assert await reading == in_one_go("pcm")
        assert (await chatting).choices[0].message.content == "user: hello"
        assert server.engine.most_running == 1


@pytest.mark.parametrize("stream_format", ["audio", "sse"])
async def test_who_goes_away_is_not_read_to(server: SpeechServer, stream_format: str) -> None:
    server.engine.held_after = 1
    body = {"input": TEXT, "response_format": "pcm", "stream_format": stream_format}
    response = await server.http.post(PATH, json=body)
    assert await response.content.read(16)
    assert server.engine.running == 1
    response.close()
    await until(lambda: server.engine.given_up)
    await until(lambda: not server.chats._inside)
    server.engine.go_on.set()
    assert await server.read(response_format="pcm") == in_one_go("pcm")
