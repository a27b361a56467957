"""Texts read aloud and answers spoken by the tiny checkpoint and a tiny vocoder, over HTTP."""

import base64
import io
import wave
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from agent.api.chat import CHATS
from agent.engines import VoiceSettings
from agent.media.audio import from_pcm16
from tests.rig.stored_voices import store_voice
from tests.rig.tiny_checkpoint import shared_checkpoint
from tests.rig.tiny_vocoder import write_token2wav
from tests.test_browser_model import serving

QUESTION: Any = [{"role": "user", "content": "Who are you?"}]


@pytest.fixture
async def client(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> AsyncIterator[openai.AsyncOpenAI]:
    (tmp_path / "ref_audio").mkdir()
    for name in ("anna", "bert"):
        store_voice(tmp_path / "voices", name)
    voice = VoiceSettings("token2wav", write_token2wav(tmp_path / "voc"), tmp_path / "voices")
    checkpoint = shared_checkpoint(tmp_path_factory)
    async with (
        serving(checkpoint, voice) as server,
        openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as asking,
    ):
        yield asking
        assert server.app[CHATS]._inside == 0


async def read(client: openai.AsyncOpenAI, voice: str) -> bytes:
    reply = await client.audio.speech.create(
        model="minicpm-o", input="Hi", voice=voice, response_format="pcm"
    )
    return reply.content


async def test_a_model_reads_and_answers_aloud(client: openai.AsyncOpenAI) -> None:
    assert np.abs(from_pcm16(await read(client, "anna"))).max() > 0.01
    with pytest.raises(openai.BadRequestError) as caught:
        await read(client, "carla")
    assert (caught.value.code, caught.value.param) == ("voice_not_found", "voice")

    asked: Any = {"modalities": ["text", "audio"], "max_tokens": 2, "seed": 3}
    sound = {"voice": "bert", "format": "wav"}
    whole = await client.chat.completions.create(
        model="minicpm-o", messages=QUESTION, audio=sound, **asked
    )
    audio, usage = whole.choices[0].message.audio, whole.usage
    assert audio is not None and usage is not None and usage.completion_tokens_details is not None
    with wave.open(io.BytesIO(base64.b64decode(audio.data))) as file:
        heard = file.readframes(file.getnframes())
    tokens = usage.completion_tokens_details.audio_tokens
    assert tokens and len(heard) / 2 == pytest.approx(tokens * 960, abs=2 * 960)

    words, pieces = "", b""
    async for chunk in await client.chat.completions.create(
        model="minicpm-o",
        messages=QUESTION,
        audio={**sound, "format": "pcm16"},
        stream=True,
        **asked,
    ):
        delta: Any = chunk.choices[0].delta
        words += delta.content or ""
        said = getattr(delta, "audio", None)
        pieces += base64.b64decode((said.data if said else None) or "")
    assert words == audio.transcript and pieces == heard
