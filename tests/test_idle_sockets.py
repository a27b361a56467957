"""Whoever holds a connection and asks for nothing: it is taken from them."""

import asyncio
import logging
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from agent.api import server
from agent.api.server import MOST_SOCKETS, allow_sockets, build_app, make_runner
from agent.config import load_config

WHOLE = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@asynccontextmanager
async def impatient(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    """The port of a server that waits for a fifth of a second, not for a minute and more."""
    assert 60 < server.IDLE_S < 120
    monkeypatch.setattr(server, "IDLE_S", 0.2)
    runner = make_runner(build_app(load_config(None, {}, ["engine.name=echo"])))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


@pytest.mark.parametrize(
    ("said", "answers"),
    [
        (b"", 0),
        (b"GET /healthz HTTP/1.1\r\nHost: local", 0),
        (WHOLE, 1),
        (WHOLE + b"GET /heal", 1),
    ],
)
async def test_a_connection_that_brings_no_whole_request_is_closed(
    monkeypatch: pytest.MonkeyPatch, said: bytes, answers: int
) -> None:
    async with impatient(monkeypatch) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(said)
        told = await asyncio.wait_for(reader.read(), 60)
        assert told.count(b"HTTP/1.1 200 OK") == answers
        writer.close()


async def test_a_head_that_comes_letter_by_letter_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with impatient(monkeypatch) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        ended = asyncio.ensure_future(reader.read())
        writer.write(b"GET / HTTP/1.1\r\nX-Slow: ")
        async with asyncio.timeout(60):
            while not ended.done():
                writer.write(b"w")
                await asyncio.sleep(0.01)
        assert isinstance(ended.exception(), ConnectionError) or ended.result() == b""
        writer.close()


def test_more_sockets_are_allowed_than_systems_begin_with() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (900, before[1]))
        allow_sockets()
        now = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = MOST_SOCKETS if before[1] == resource.RLIM_INFINITY else min(MOST_SOCKETS, before[1])
        assert now == (most, before[1])
        allow_sockets()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == now, "there is nothing left to do"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer va_told\x01\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization : Bearer va_told\r\n\r\n",
        b"va_told\r\n\r\n",
        b"GET /?key=va_told" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_answered_and_not_written_down(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, request_: bytes
) -> None:
    caplog.set_level(logging.DEBUG)
    async with impatient(monkeypatch) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_)
        told = await asyncio.wait_for(reader.read(), 60)
        assert b" 400 " in told.split(b"\r\n")[0]
        writer.close()
    assert "va_told" not in caplog.text and "Error handling" not in caplog.text
