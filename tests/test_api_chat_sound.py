"""Chat answers with sound, as the `openai` client sees them: whole, streamed, refused."""

import base64
import io
import json
import wave
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import openai
import pytest

from agent.api import chat_replies
from agent.errors import VocoderError
from agent.media.audio import from_pcm16, to_pcm16
from agent.media.files import read_media
from agent.media.speech_file import SpeechFile, settled
from tests.rig.chat_server import PATH, ChatServer, chat_server
from tests.rig.reading_engine import ReadingEngine
from tests.rig.speaking_engine import WORD_SAMPLES, WORD_TOKENS, SpeakingEngine, sound_of

BOTH = ["text", "audio"]
TEXT = "user: hello\nspeaks=True\nvoice='anna'"
"""What the engine answers; of its two words the second holds the lines."""
WORDS = ("user:", "hello\nspeaks=True\nvoice='anna'")
SPOKEN = sound_of(*WORDS)
USER = [{"role": "user", "content": "hello"}]


@pytest.fixture
async def server() -> AsyncIterator[ChatServer]:
    async with chat_server(engine=SpeakingEngine()) as running:
        yield running


def asking(form: str, **more: object) -> dict[str, Any]:
    return {"modalities": BOTH, "audio": {"voice": "anna", "format": form}, **more}


def engine_of(server: ChatServer) -> SpeakingEngine:
    assert isinstance(server.engine, SpeakingEngine)
    return server.engine


# ---- one object -------------------------------------------------------------------------------


async def test_a_whole_answer_with_its_sound(server: ChatServer) -> None:
    answer = await server.ask(**asking("wav"))
    [choice] = answer.choices
    message, audio = choice.message, choice.message.audio
    assert message.content is None and message.role == "assistant"
    assert audio.transcript == TEXT and audio.id.startswith("audio_")
    assert audio.expires_at == answer.created, "it is not kept"
    with wave.open(io.BytesIO(base64.b64decode(audio.data, validate=True))) as read:
        assert read.getframerate() == 24_000 and read.getnframes() == len(SPOKEN)
        assert read.readframes(read.getnframes()) == to_pcm16(SPOKEN).tobytes()
    assert not hasattr(message, "voice_agent") and choice.finish_reason == "stop"
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (1, 2 + 2 * WORD_TOKENS)
    assert usage.total_tokens == 1 + usage.completion_tokens
    details = usage.completion_tokens_details
    assert (details.text_tokens, details.audio_tokens) == (2, 2 * WORD_TOKENS)


@pytest.mark.parametrize(
    ("form", "file_form"),
    [("mp3", "mp3"), ("flac", "flac"), ("opus", "opus"), ("aac", "aac"), ("pcm16", "pcm")],
)
async def test_in_every_format(server: ChatServer, form: str, file_form: Any) -> None:
    audio = (await server.ask(**asking(form))).choices[0].message.audio
    file, data = SpeechFile(file_form), base64.b64decode(audio.data, validate=True)
    assert data == settled(file_form, file.push(SPOKEN) + file.finish(), file.samples)
    if form != "pcm16":
        heard = read_media(data).samples  # type: ignore[union-attr]
        assert abs(len(heard) / 16_000 - 0.4) < 0.1


async def test_what_is_not_said_has_its_usual(server: ChatServer) -> None:
    audio = (await server.ask(modalities=["audio"])).choices[0].message.audio
    assert base64.b64decode(audio.data).startswith(b"RIFF")
    assert audio.transcript == "user: hello\nspeaks=True"
    await server.ask(modalities=BOTH, audio={"voice": {"id": "ben"}, "format": "mp3"})
    assert server.engine.requests[-1].voice == "ben"
    await server.ask(modalities=BOTH, audio={"voice": "alloy", "format": "mp3"})
    assert server.engine.requests[-1].voice == ""
    for mute in ({}, {"modalities": ["text"]}, {"audio": {"voice": "anna", "format": "wav"}}):
        message = (await server.ask(**mute)).choices[0].message
        assert message.content == "user: hello" and message.audio is None


async def test_reasoning_is_not_spoken(server: ChatServer) -> None:
    message = (await server.ask(**asking("wav"), extra_body={"enable_thinking": True})).choices[0]
    assert message.message.reasoning_content == "Let me see."
    assert "Let me" not in message.message.audio.transcript


async def test_a_voice_that_fails_leaves_the_words(server: ChatServer) -> None:
    engine_of(server).fails_after = 1
    message = (await server.ask(**asking("pcm16"))).choices[0].message
    assert message.voice_agent == {"voiced": False} and message.content is None
    assert message.audio.transcript == TEXT
    assert base64.b64decode(message.audio.data) == to_pcm16(sound_of(WORDS[0])).tobytes()
    engine_of(server).fails_after = 0
    message = (await server.ask(**asking("wav"))).choices[0].message
    assert message.voice_agent == {"voiced": False}
    assert message.audio is None and message.content == TEXT


async def test_the_sound_of_an_answer_has_an_end(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_replies, "_MOST_SAMPLES", WORD_SAMPLES + 7)
    message = (await server.ask(**asking("pcm16"))).choices[0].message
    assert base64.b64decode(message.audio.data) == to_pcm16(SPOKEN[: WORD_SAMPLES + 7]).tobytes()
    assert message.voice_agent == {"voiced": False} and message.audio.transcript == TEXT


async def test_long_sound_is_put_together_again(server: ChatServer) -> None:
    """Base64 made in pieces is that of the whole: none of the pieces may be filled up."""
    words = " ".join(f"w{number}" for number in range(97))
    audio = (await server.ask(words, **asking("wav"))).choices[0].message.audio
    file = base64.b64decode(audio.data, validate=True)
    assert len(file) == 44 + 2 * WORD_SAMPLES * 98 > 4 * chat_replies._PIECE_BYTES
    told = [*audio.transcript.split(" ")]
    assert np.array_equal(from_pcm16(file[44:]), from_pcm16(to_pcm16(sound_of(*told))))


# ---- streams ----------------------------------------------------------------------------------


async def test_a_stream_of_words_and_sound(server: ChatServer) -> None:
    chunks = [chunk async for chunk in await server.ask(**asking("pcm16", stream=True))]
    deltas = [chunk.choices[0].delta for chunk in chunks]
    audios = [delta.audio for delta in deltas if getattr(delta, "audio", None)]
    assert len({audio.id for audio in audios}) == 1
    assert "".join(delta.content or "" for delta in deltas) == TEXT
    assert "".join(audio.transcript or "" for audio in audios) == TEXT
    order = ["word" if a.transcript else "sound" if a.data else "end" for a in audios]
    assert order == ["word", "sound", "word", "sound", "end"]
    sound = b"".join(base64.b64decode(audio.data or "", validate=True) for audio in audios)
    assert sound == to_pcm16(SPOKEN).tobytes()
    assert audios[-1].expires_at == chunks[0].created
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "stop"]


async def test_sound_is_sent_while_the_rest_is_made(server: ChatServer) -> None:
    engine, held = engine_of(server), []
    engine.held_after = 1
    async for chunk in await server.ask(**asking("pcm16", stream=True)):
        audio = getattr(chunk.choices[0].delta, "audio", None)
        if audio is not None and audio.data:
            held.append(not engine.go_on.is_set())
            engine.go_on.set()
    assert held == [True, False]


async def test_a_stream_s_usage_and_its_lost_voice(server: ChatServer) -> None:
    engine_of(server).fails_after = 1
    body = asking("pcm16", stream=True, stream_options={"include_usage": True}, messages=USER)
    async with server.http.post(PATH, json=body) as response:
        events = (await response.text()).strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert chunks[-1]["usage"] == {
        "prompt_tokens": 1,
        "completion_tokens": 2 + WORD_TOKENS,
        "total_tokens": 3 + WORD_TOKENS,
        "completion_tokens_details": {"text_tokens": 2, "audio_tokens": WORD_TOKENS},
    }
    [last] = chunks[-2]["choices"]
    assert last["delta"] == {"voice_agent": {"voiced": False}} and last["finish_reason"] == "stop"


async def test_who_asks_for_words_gets_no_sound(server: ChatServer) -> None:
    async for chunk in await server.ask(stream=True):
        assert getattr(chunk.choices[0].delta, "audio", None) is None


async def test_an_error_on_the_way_ends_the_stream_in_words(server: ChatServer) -> None:
    server.engine.failing = VocoderError("not a number")
    with pytest.raises(openai.APIError, match="not a number"):
        async for _ in await server.ask("a b c", **asking("pcm16", stream=True)):
            pass


# ---- refusals ---------------------------------------------------------------------------------


async def test_what_cannot_be_spoken_is_named(server: ChatServer) -> None:
    earlier = {"role": "assistant", "content": None, "audio": {"id": "audio_1"}}
    for body, param, code in (
        (asking("mp3", stream=True), "audio.format", "unsupported"),
        (asking("ogg"), "audio.format", "invalid_value"),
        ({"modalities": ["text", "video"]}, "modalities", "unsupported"),
        ({"modalities": BOTH, "audio": []}, "audio", "invalid_type"),
        ({"modalities": BOTH, "audio": {"voice": 7}}, "audio.voice", "invalid_type"),
        ({"modalities": BOTH, "audio": {"voice": "carla"}}, "voice", "voice_not_found"),
        ({"messages": [*USER, earlier, *USER]}, "messages[1].audio", "unsupported"),
    ):
        error = await server.refusal(400, **body)
        assert (error["param"], error["code"]) == (param, code), body
    assert server.engine.requests == []


async def test_an_engine_without_a_voice_refuses_sound() -> None:
    async with chat_server(engine=ReadingEngine()) as server:
        error = await server.refusal(400, **asking("wav"))
        assert (error["param"], error["code"]) == ("modalities", "unsupported")
        assert "no voice" in error["message"]


async def test_earlier_answers_come_back_by_their_words(server: ChatServer) -> None:
    earlier = {"role": "assistant", "content": "hi", "audio": {"id": "audio_1"}}
    await server.ask(messages=[*USER, earlier, *USER])
    assert [len(message.content) for message in server.engine.requests[-1].messages] == [1, 1, 1]
