"""`python -m bench.api`: what it counts is there, and what is left behind would be seen."""

import asyncio
import io
import json
from dataclasses import replace

import aiohttp

from bench.api import report_sessions, served
from bench.report import Report


async def test_what_sessions_leave_behind_is_reported() -> None:
    out = io.StringIO()
    await report_sessions(Report(as_json=True, out=out), 20)
    _, *rows = [json.loads(line) for line in out.getvalue().splitlines()]
    found = {row["name"]: row for row in rows}
    left = [f"websocket_left_{what}" for what in ("memory_mb", "tasks", "threads", "files")]
    assert [*found] == ["websocket_created_p95_ms", *left]
    assert all(found[name]["target"] is not None for name in left)
    assert all(found[name]["value"] is not None for name in left)


async def test_a_session_that_stays_is_seen() -> None:
    async with served("full") as server, aiohttp.ClientSession() as http:
        before = await server.holds()
        async with http.ws_connect(f"{server.url}/v1/realtime?model=echo") as socket:
            await socket.receive_json(timeout=60)
            during = await server.holds()
        assert during.tasks > before.tasks and during.files > before.files
        async with asyncio.timeout(60):
            while replace(await server.holds(), memory_mb=before.memory_mb) != before:
                await asyncio.sleep(0.05)
