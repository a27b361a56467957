"""What is attached to a chat, from the client to the engine; and the limits of all that."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import numpy as np
import pytest
from PIL import Image

from agent.api.chat import Chats
from tests.rig.attached import BLUE, GREEN, RED, data_url, film, picture, saved, tone, wav
from tests.rig.chat_server import PATH, ChatServer, chat_server
from tests.rig.server import Footprint, settle

RED_URL = data_url(picture(RED))
TONE = base64.b64encode(wav(tone(0.5))).decode()


@pytest.fixture
async def server() -> AsyncIterator[ChatServer]:
    async with chat_server() as running:
        yield running


def image(url: str, **more: object) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def linked(kind: str, url: str) -> dict[str, object]:
    return {"type": kind, kind: {"url": url}}


def said(text: str) -> dict[str, object]:
    return {"type": "text", "text": text}


def recording(data: str, form: str = "wav") -> dict[str, object]:
    return {"type": "input_audio", "input_audio": {"data": data, "format": form}}


async def refused(server: ChatServer, *content: object, status: int = 400) -> dict[str, Any]:
    """The error for these parts, which come in the second message."""
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": content}]
    return await server.refusal(status, messages=messages)


# ---- what arrives -----------------------------------------------------------------------------


async def test_every_kind_of_part_in_its_order(server: ChatServer) -> None:
    clip = film([RED, GREEN], tone(2.0))
    text = await server.answer(
        [
            said("first"),
            image(RED_URL),
            recording(TONE),
            linked("audio_url", data_url(wav(tone(1.0, pitch_hz=880)), "audio/wav")),
            linked("video_url", data_url(clip, "video/mp4")),
            image(data_url(picture(BLUE, (8, 6), "JPEG"), "image/jpeg")),
            said("last"),
        ]
    )
    assert text == (
        "user: first + [red 40x30] + [sound 0.5s 440Hz] + [sound 1.0s 880Hz] + "
        "[video red,green with 2s] + [blue 8x6] + last"
    )


async def test_pictures_of_several_messages(server: ChatServer) -> None:
    messages = [
        {"role": "user", "content": [image(RED_URL), image(data_url(picture(GREEN)))]},
        {"role": "assistant", "content": [said("seen")]},
        {"role": "user", "content": [image(data_url(picture(BLUE))), said("and this")]},
    ]
    assert (await server.answer(messages=messages)).split("\n") == [
        "user: [red 40x30] + [green 40x30]",
        "assistant: seen",
        "user: [blue 40x30] + and this",
    ]


async def test_other_ways_to_write_the_same(server: ChatServer) -> None:
    raw = base64.b64encode(picture(RED)).decode()
    lines = "\n".join(raw[at : at + 60] for at in range(0, len(raw), 60))
    escaped = "".join(f"%{byte:02x}" for byte in picture(RED))
    for url in (
        f"data:;base64,{raw}",
        f"DATA:image/png;charset=x;BASE64,{raw}",
        f"data:text/plain;base64,{lines}",
        f"data:image/png;base64,{raw.rstrip('=')}",
        f"data:image/png,{escaped}",
    ):
        assert await server.answer([image(url)]) == "user: [red 40x30]", url[:40]
        assert await server.answer([{"type": "image_url", "image_url": url}]) == "user: [red 40x30]"
    for form in ("mp3", "anything"):
        assert "[sound 0.5s 440Hz]" in await server.answer([recording(TONE, form)])
    sound = recording(f"data:audio/wav;base64,{TONE}")
    assert "[sound 0.5s 440Hz]" in await server.answer([sound])


async def test_detail_decides_about_slices(server: ChatServer) -> None:
    large = data_url(picture(RED, (1000, 1000)))
    for details, slices, sizes in (
        (("low",), 1, ["1000x1000"]),
        (("low", "low"), 1, ["1000x1000", "1000x1000"]),
        (("high",), None, ["1000x1000"]),
        (("auto",), None, ["1000x1000"]),
        (("low", "high"), None, ["448x448", "1000x1000"]),
    ):
        text = await server.answer([image(large, detail=detail) for detail in details])
        assert server.engine.requests[-1].max_slices == slices
        assert text.split("\n")[0] == "user: " + " + ".join(f"[red {size}]" for size in sizes)
    await server.answer([image(large, detail="low")], extra_body={"max_slices": 3})
    assert server.engine.requests[-1].max_slices == 3
    await server.answer([recording(TONE)])
    assert server.engine.requests[-1].max_slices is None
    error = await refused(server, image(large, detail="best"))
    assert error["param"] == "messages[1].content[0].image_url.detail"


# ---- what is refused --------------------------------------------------------------------------


async def test_parts_that_are_not_what_they_should_be(server: ChatServer) -> None:
    text = data_url(b"hello world")
    half = data_url(picture(RED, (400, 300), "JPEG")[:900])
    silly = wav(np.full(100, np.nan, np.float32))
    cases = [
        (image(text), "image_url", "unsupported_media", "this is text"),
        (image(half), "image_url", "invalid_media", "damaged or incomplete"),
        (image(data_url(b"")), "image_url", "invalid_media", "empty"),
        (image("data:image/png;base64,@@@@"), "image_url", "invalid_base64", "not base64"),
        (image("data:image/png"), "image_url", "invalid_url", "no comma"),
        (image(data_url(wav(tone(0.1)))), "image_url", "invalid_media", "a sound, not a picture"),
        (recording(TONE[:-9] + "!" * 9), "input_audio", "invalid_base64", "not base64"),
        (recording(RED_URL), "input_audio", "invalid_media", "a picture, not a sound"),
        (linked("audio_url", data_url(silly)), "audio_url", "invalid_media", "no finite numbers"),
        (linked("video_url", RED_URL), "video_url", "invalid_media", "a picture, not a video"),
        (image("ftp://example.org/a.png"), "image_url", "url_not_fetched", "neither http"),
        (image("file:///etc/passwd"), "image_url", "url_not_fetched", "neither http"),
        (image("/etc/passwd"), "image_url", "url_not_fetched", "neither http"),
        (image("http://"), "image_url", "url_not_fetched", "no host"),
        (image("http://[::1"), "image_url", "url_not_fetched", "malformed"),
        (image("http://127.0.0.1/a.png"), "image_url", "private_url", "allow_private_urls"),
    ]
    for part, field, code, words in cases:
        error = await refused(server, said("look"), part)
        assert error["param"] == f"messages[1].content[1].{field}", part
        assert error["code"] == code and words in error["message"], error
    assert server.engine.requests == []


async def test_a_bomb_is_refused(server: ChatServer) -> None:
    header = bytearray(picture(RED, (1, 1), "BMP"))
    header[18:26] = (20_000).to_bytes(4, "little") * 2
    error = await refused(server, image(data_url(bytes(header))))
    assert error["code"] == "picture_too_large" and "50,000,000" in error["message"]


async def test_the_numbers_of_parts_are_limited() -> None:
    limits = ("chat.max_pictures=2", "chat.max_sounds=1", "chat.max_videos=0")
    clip = linked("video_url", data_url(film([RED])))
    async with chat_server(*limits) as server:
        for parts, field in (
            ([image(RED_URL)] * 3, "[2].image_url"),
            ([recording(TONE), linked("audio_url", "http://a.test/")], "[1].audio_url"),
            ([clip], "[0].video_url"),
        ):
            error = await refused(server, *parts)
            assert error["code"] == "too_many_attachments" and "chat.max_" in error["message"]
            assert error["param"] == f"messages[1].content{field}"
        assert await server.answer([image(RED_URL)] * 2 + [recording(TONE)])


async def test_lengths_are_limited_alone_and_together() -> None:
    second = recording(base64.b64encode(wav(tone(1.0))).decode())
    clip = linked("video_url", data_url(film([RED] * 2)))
    async with chat_server("chat.max_sound_s=2.5", "chat.max_video_s=3.0") as server:
        assert await server.answer([second, second])
        error = await refused(server, second, second, second)
        assert error["code"] == "media_too_long"
        assert error["param"] == "messages[1].content[2].input_audio"
        assert "3.0 s; at most 2.5 s" in error["message"]
        long = recording(base64.b64encode(wav(tone(2.6))).decode())
        assert "longer than the 2.5 s" in (await refused(server, long))["message"]
        assert await server.answer([clip])
        assert (await refused(server, clip, clip))["code"] == "media_too_long"
        long = linked("video_url", data_url(film([RED] * 4)))
        assert "longer than the 3 s" in (await refused(server, long))["message"]


async def test_sizes_are_limited() -> None:
    noise = np.random.default_rng(1).integers(0, 255, (100, 100, 3), np.uint8)
    large = data_url(saved(Image.fromarray(noise), "PNG"))  # 30 kB
    limits = (
        "chat.max_item_bytes=20000",
        "chat.max_body_bytes=200000",
        "chat.max_picture_pixels=4000",
        "server.max_body_bytes=1024",
    )
    async with chat_server(*limits) as server:
        assert (await refused(server, image(large)))["code"] == "file_too_large"
        error = await refused(server, image(data_url(picture(RED, (100, 50)))))
        assert error["code"] == "picture_too_large" and "100 × 50" in error["message"]
        # Larger than what other routes take, and yet taken.
        assert await server.answer("x" * 100_000)
        error = await server.refusal(413, padding="x" * 200_000)
        assert error["code"] == "request_too_large" and "200,000" in error["message"]


async def test_a_body_without_a_length_is_limited_too() -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b" " * 10_000

    async with chat_server("chat.max_body_bytes=100000") as server:
        headers = {"Content-Type": "application/json"}
        try:
            async with server.http.post(PATH, data=endless(), headers=headers) as response:
                assert response.status == 413
        except aiohttp.ClientConnectionError:
            pass  # the server hung up while we were still sending, which is as good
        assert await server.answer("still there")


# ---- how many at a time -----------------------------------------------------------------------


async def waiting(chats: Chats, inside: int) -> None:
    while chats._inside != inside:
        await asyncio.sleep(0.01)


async def test_chats_wait_in_a_line_that_ends() -> None:
    limits = ("chat.max_chats=2", "chat.max_waiting=1", "chat.retry_after_s=7")
    async with chat_server(*limits) as server:
        server.engine.go.clear()
        asked = [asyncio.ensure_future(server.answer(f"question {n}")) for n in range(3)]
        await waiting(server.chats, 3)
        async with server.http.post(PATH, json={"messages": []}) as response:
            assert response.status == 503 and response.headers["Retry-After"] == "7"
            assert (await response.json())["error"]["code"] == "no_capacity"
        assert server.engine.running == 2
        server.engine.go.set()
        assert await asyncio.gather(*asked) == [f"user: question {n}" for n in range(3)]
        assert server.engine.most_running == 2
        assert await server.answer("after") == "user: after"


async def test_who_leaves_the_line_leaves_a_place() -> None:
    async with chat_server("chat.max_chats=1", "chat.max_waiting=1") as server:
        server.engine.go.clear()
        first = asyncio.ensure_future(server.answer("first"))
        await waiting(server.chats, 1)
        second = asyncio.ensure_future(server.answer("second"))
        await waiting(server.chats, 2)
        second.cancel()
        await waiting(server.chats, 1)
        third = asyncio.ensure_future(server.answer("third"))
        await waiting(server.chats, 2)
        server.engine.go.set()
        assert await asyncio.gather(first, third) == ["user: first", "user: third"]
        assert len(server.engine.requests) == 2


async def test_nothing_is_left_of_many_chats(server: ChatServer) -> None:
    await server.answer("warm up")
    await refused(server, image("data:,x"))
    before = Footprint.now()
    for _ in range(10):
        await server.answer([image(RED_URL), recording(TONE)])
        await refused(server, image("http://127.0.0.1:1/x"), image("data:,x"))
    after = await settle(before)
    assert (after.tasks, after.sockets) == (before.tasks, before.sockets)
    assert server.chats._inside == 0


async def test_a_long_body_means_the_same(server: ChatServer) -> None:
    """Long bodies are read elsewhere than short ones."""
    large = data_url(picture(GREEN, (300, 300), "BMP"))  # 360 kB of text
    text = 'quotes " and \\ and \u00fc and \\u0000 ' * 4000
    body = {"messages": [{"role": "user", "content": [image(large), said(text)]}]}
    for ascii_only in (True, False):
        data = json.dumps(body, ensure_ascii=ascii_only).encode()
        headers = {"Content-Type": "application/json"}
        async with server.http.post(PATH, data=data, headers=headers) as response:
            answer = (await response.json())["choices"][0]["message"]["content"]
        assert answer.startswith("user: [green 300x300] + quotes")
        assert server.engine.requests[-1].messages[0].content[1].text == text
