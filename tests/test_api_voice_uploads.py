"""Uploads of voices that are odd, slow, broken off or given up; and what the disk refuses."""

import asyncio
import fcntl
import io
import logging
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.api.voice_form import parse_form
from agent.errors import RequestError
from agent.voices_bench import Examine
from tests.rig.voice_bench import CONSENT, Benches, HeldBench, spoken
from tests.test_api_voices import PATH, VoiceServer, voice_server

FORM = {"Content-Type": "multipart/form-data; boundary=X"}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[VoiceServer]:
    async with voice_server(tmp_path) as running:
        yield running


def body_of(**parts: bytes) -> bytes:
    pieces = (
        b'--X\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), data)
        for name, data in parts.items()
    )
    return b"".join(pieces) + b"--X--\r\n"


WHOLE = body_of(name=b"Given up", consent=CONSENT.encode(), audio_sample=spoken())


async def sending(
    server: VoiceServer, body: bytes, length: int | None = None
) -> asyncio.StreamWriter:
    """A client that has sent so much of a body."""
    port = int(server.url.rsplit(":", 1)[1])
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {FORM['Content-Type']}\r\n"
    head += f"Content-Length: {length or len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()
    return writer


async def until(holds: object) -> None:
    async with asyncio.timeout(60):
        while not holds():  # type: ignore[operator]
            await asyncio.sleep(0.005)


# ---- what a body may be -------------------------------------------------------------------------


@pytest.mark.parametrize("before", [b"\n" * (1 << 20), b"preamble\r\n", b"--x\r\n", b"\r\n"])
async def test_a_body_begins_with_its_boundary(server: VoiceServer, before: bytes) -> None:
    """Line ends before it, looked at one by one, held the loop up for a second a megabyte."""
    spent_s = time.thread_time()
    async with server.http.post(PATH, data=io.BytesIO(before + WHOLE), headers=FORM) as response:
        document = await response.json()
    assert response.status == 400 and "boundary" in document["error"]["message"]
    assert time.thread_time() - spent_s < 0.3, "processor time of this thread, whoever else runs"
    assert await server.listed() == {}


async def test_coded_bodies_are_refused_unread(server: VoiceServer) -> None:
    headers = FORM | {"Content-Encoding": "gzip"}
    async with server.http.post(PATH, data=b"x", headers=headers) as response:
        document = await response.json()
    assert response.status == 415 and document["error"]["param"] == "Content-Encoding"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--X",
        b"--X\r\n",
        b"--X\r\n\r\n",
        b"--X \r\n\r\nx\r\n--X--",
        b'--X\r\nContent-Disposition: form-data; name="name"\r\n--X--',
        b"--X\r\n" + b"a: b\r\n" * 1000 + b"\r\nx\r\n--X--",
        b"--X\r\n\r\nx" * 3,
        WHOLE[:-9],
        b"--X\r\n\r\nx\r\n" * 17 + b"--X--",
    ],
)
def test_what_is_no_form(body: bytes) -> None:
    with pytest.raises(RequestError) as raised:
        parse_form(body, b"--X", 1 << 20)
    assert raised.value.code == "invalid_body"


def test_a_form_is_taken_apart() -> None:
    sample = b"RIFF\r\n--\r\n--Y\r\n\r\n\r\n"
    form = parse_form(body_of(audio_sample=sample, name=b"", consent="安".encode()), b"--X", 100)
    assert form.sample == sample and form.texts == {"name": "", "consent": "安"}
    form = parse_form(b"--X\r\n\r\n\r\n--X\r\n\r\n--X--", b"--X", 100)
    assert form.sample is None and form.texts == {}
    quoted = (
        b'--X\r\ncontent-disposition: form-data; filename="a;b\\"c"; name=name\r\n\r\nA\r\n--X--'
    )
    assert parse_form(quoted, b"--X", 100).texts == {"name": "A"}


# ---- who comes slowly ---------------------------------------------------------------------------


async def test_who_sends_nothing_takes_nobody_s_place(server: VoiceServer) -> None:
    idle = [await sending(server, b"--X\r\n", 100_000) for _ in range(8)]
    assert (await server.add())["id"] == "anna"
    for writer in idle:
        writer.close()


async def test_who_drips_is_not_waited_for(server: VoiceServer) -> None:
    server.uploads.stalled_s, server.uploads.least_bytes_s = 0.2, 1e6
    gone = False

    async def drops() -> AsyncIterator[bytes]:
        yield b"--X\r\n"
        while not gone:
            await asyncio.sleep(0.01)
            yield b"a"

    async with asyncio.timeout(60):
        async with server.http.post(PATH, data=drops(), headers=FORM) as response:
            document = await response.json()
            gone = True
    assert response.status == 408 and document["error"]["code"] == "request_timeout"


# ---- who leaves ---------------------------------------------------------------------------------


async def test_an_upload_broken_off_is_no_error(
    server: VoiceServer, caplog: pytest.LogCaptureFixture
) -> None:
    for sent in (WHOLE[:1000], WHOLE[:150_000]):
        writer = await sending(server, sent, len(WHOLE))
        await asyncio.sleep(0.05)
        writer.close()
        await writer.wait_closed()
    assert (await server.post("/check", spoken()))[0] == 200
    await until(lambda: server.uploads.inside == 0)
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


async def test_a_voice_that_was_given_up_while_it_was_examined_is_not_kept(tmp_path: Path) -> None:
    held = HeldBench(Examine)
    async with voice_server(tmp_path, benches=Benches(held)) as server:
        writer = await sending(server, WHOLE)
        await asyncio.to_thread(held.reached.wait, 10)
        writer.close()
        await writer.wait_closed()
        assert server.uploads.inside == 1
        await server.listed()  # The server has seen by then that somebody left.
        held.go.set()
        await until(lambda: server.uploads.inside == 0)
        assert await server.listed() == {}
        assert [path.name for path in server.store.own.glob("*")] in ([], [".lock"])


# ---- the folder ---------------------------------------------------------------------------------


async def test_where_voices_lie_is_not_told(
    server: VoiceServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.store.own.write_text("in the way")
    error = await server.refusal(500, data=spoken(), name="Anna", consent=CONSENT)
    assert str(server.store.own) not in error["message"] and "its log" in error["message"]
    assert str(server.store.own) in caplog.text


async def test_a_lock_held_elsewhere_is_said_and_starves_nobody(server: VoiceServer) -> None:
    await server.add()
    server.voices._shelf._lock_s = 0.1
    descriptor = os.open(server.store.own / ".lock", os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        async with server.http.delete(f"{PATH}/anna") as response:
            document = await response.json()
        assert response.status == 503 and document["error"]["code"] == "no_capacity"
        assert int(response.headers["Retry-After"]) > 0
    finally:
        os.close(descriptor)
    assert set(await server.listed()) == {"anna"}
