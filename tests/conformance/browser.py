"""Opens one of the clients' pages in a Chromium and lets it tell what happened, as the programs do.

The page comes from another origin than the server, so that what browsers ask of a server holds.
"""

import argparse
import asyncio
import base64
import json
import sys
import wave
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from playwright.async_api import Page, async_playwright

from tests.web_page.chromium import start_chromium

RATE_HZ = 24_000
LONGEST_S = 200
_WAIT_S = 20


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("--page", "--base", "--key"):
        parser.add_argument(name, required=True)
    for name in ("--clients", "--out", "--speech", "--picture"):
        parser.add_argument(name, type=Path, required=True)
    return parser.parse_args()


class Host:
    """What the page asks of whoever opened it."""

    def __init__(self, given: argparse.Namespace, http: aiohttp.ClientSession) -> None:
        self.given = given
        self.over = asyncio.Event()
        self._http = http
        self._followed: list[dict[str, Any]] = []
        self._following: asyncio.Task[None] | None = None

    async def expose(self, page: Page) -> None:
        """Put it all into the window."""
        asked = (self.told, self.kept, self.secret, self.follow, self.followed, self.gone)
        for each in asked:
            await page.expose_function(each.__name__, each)
        await page.expose_function("done", self.over.set)

    def told(self, line: str) -> None:
        """A line for the test."""
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def kept(self, name: str, text: str) -> None:
        """A file for the test: JSON, or sound in base64."""
        if name.endswith(".json"):
            (self.given.out / name).write_text(text)
            return
        with wave.open(str(self.given.out / name), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE_HZ)
            file.writeframes(base64.b64decode(text))

    async def secret(self) -> str:
        """An ephemeral key, as the page's own server would fetch it."""
        url = f"{self.given.base}/v1/realtime/client_secrets"
        body = {"session": {"type": "realtime"}}
        async with self._http.post(url, json=body, headers=self._headers()) as reply:
            return str((await reply.json())["value"])

    async def gone(self, call_id: str) -> bool:
        """Whether the server holds the call no more."""
        url = f"{self.given.base}/v1/realtime/calls/{call_id}"
        async with self._http.get(url, headers=self._headers()) as reply:
            return reply.status == 404

    async def follow(self, call_id: str) -> None:
        """Listen to the call's events by a sideband."""
        self._following = asyncio.create_task(self._follow(call_id))

    async def followed(self, feature: str, stopped_ms: int) -> dict[str, Any]:
        """What the sideband says of the first answer (`interrupt`) or of the second."""
        found: dict[str, Any] | None = None
        for _ in range(_WAIT_S * 10):
            over = [event for event in self._followed if event["type"] == "response.done"]
            cut = [e for e in self._followed if e["type"] == "conversation.item.truncated"]
            if feature == "interrupt" and over and cut:
                found = self._facts(over[0], stopped_ms, cut[0]["audio_end_ms"])
            elif feature == "answered" and len(over) > 1:
                found = self._facts(over[1], stopped_ms, -1)
            if found is not None:
                return found
            await asyncio.sleep(0.1)
        raise TimeoutError(f"the sideband says nothing of {feature}: {self._followed}")

    def _facts(self, done: dict[str, Any], stopped_ms: int, cut_ms: int) -> dict[str, Any]:
        response = done["response"]
        parts = [part for item in response["output"] for part in item.get("content", [])]
        return {
            "text": "".join(part.get("transcript") or "" for part in parts),
            "received_ms": 0,
            "stopped_ms": stopped_ms,
            "asked_ms": -1,
            "cut_ms": cut_ms,
            "status": response["status"],
            "user_turns": sum(
                event["type"] == "input_audio_buffer.committed" for event in self._followed
            ),
        }

    async def _follow(self, call_id: str) -> None:
        url = f"{self.given.base}/v1/realtime?call_id={call_id}"
        async with self._http.ws_connect(url, headers=self._headers()) as side:
            async for message in side:
                self._followed.append(json.loads(message.data))

    async def end(self) -> None:
        if self._following is not None:
            self._following.cancel()
            with suppress(asyncio.CancelledError):
                await self._following

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.given.key}"}


async def _serve(folder: Path) -> tuple[web.AppRunner, str]:
    app = web.Application()
    app.router.add_static("/", folder, follow_symlinks=True)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


def _given(given: argparse.Namespace) -> str:
    """What the page is told: `window.given`."""
    with wave.open(str(given.speech), "rb") as file:
        speech = file.readframes(file.getnframes())
    picture = base64.b64encode(given.picture.read_bytes()).decode()
    told = {
        "base": given.base,
        "key": given.key,
        "speech": base64.b64encode(speech).decode(),
        "picture": f"data:image/png;base64,{picture}",
    }
    return f"window.given = {json.dumps(told)};"


async def _visit(given: argparse.Namespace, host: Host) -> None:
    runner, origin = await _serve(given.clients)
    microphone = f"--use-file-for-fake-audio-capture={given.speech}"
    async with async_playwright() as playwright:
        browser = await start_chromium(playwright, microphone)
        page = await browser.new_page()
        for kind in ("console", "pageerror"):
            page.on(kind, lambda said: sys.stderr.write(f"{said}\n"))
        await host.expose(page)
        await page.add_init_script(_given(given))
        await page.goto(f"{origin}/{given.page}")
        await asyncio.wait_for(host.over.wait(), LONGEST_S)
        await browser.close()
    await runner.cleanup()


async def _main() -> None:
    given = _arguments()
    async with aiohttp.ClientSession() as http:
        host = Host(given, http)
        try:
            await _visit(given, host)
        finally:
            await host.end()


if __name__ == "__main__":
    asyncio.run(_main())
