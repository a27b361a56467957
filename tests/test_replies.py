"""What becomes of a request whose client is gone before it is answered."""

import asyncio
import logging

import pytest
from aiohttp import web

from agent.api.replies import errors_as_json


async def _ask(app: web.Application, done: asyncio.Event, *, leaves: bool) -> bytes:
    """What a client reads of the answer, which is `done` by then; it may leave before."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        reader, writer = await asyncio.open_connection(*runner.addresses[0])
        writer.write(b"GET /%0AERROR HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        if leaves:
            await writer.drain()
            writer.transport.abort()
        read = b"" if leaves else await reader.read()
        await asyncio.wait_for(done.wait(), 60)
        writer.close()
        return read
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("leaves", [True, False])
async def test_who_leaves_before_the_answer_is_no_failure_of_the_server(
    leaves: bool, caplog: pytest.LogCaptureFixture
) -> None:
    done = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        transport = request.transport
        while leaves and transport is not None and not transport.is_closing():
            await asyncio.sleep(0.01)
        done.set()
        raise ConnectionResetError("another connection broke, or this one")

    app = web.Application(middlewares=[errors_as_json])
    app.router.add_get("/{any}", answer)
    with caplog.at_level(logging.INFO):
        read = await _ask(app, done, leaves=leaves)
    failures = [one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR]
    assert failures == ([] if leaves else ["GET /%0AERROR failed"])
    assert read.startswith(b"" if leaves else b"HTTP/1.1 500 ")
