"""Calls over a WebSocket to a server in this process: one made and checked, and none left."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.rig.realtime_schema import check_events, check_order
from tests.rig.server import Running
from tests.rig.socket_caller import SocketCaller


@asynccontextmanager
async def calling(
    server: Running, *, quiet: bool = True, query: str = "model=gpt-realtime"
) -> AsyncIterator[SocketCaller]:
    """A client in a call; in the end all that it got is checked. `quiet`: stopped the greeting."""
    caller = SocketCaller(server.url, query)
    await caller.dial()
    try:
        if quiet:
            await caller.wait_for("response.created")
            await caller.send("response.cancel")
            await caller.wait_for("response.done")
        yield caller
        check_order(check_events(caller.events, is_omni="duplex=1" in query), "websocket")
    finally:
        await caller.hang_up()


async def gone(server: Running) -> None:
    """Until no call is left."""
    async with asyncio.timeout(60):
        while server.calls:
            await asyncio.sleep(0.02)
