"""The far end: a real Chromium whose page records what it plays and stamps it with the time."""

import asyncio
import base64
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aioice.ice
import numpy as np
import numpy.typing as npt
from aiohttp import web
from playwright.async_api import Browser, Page, async_playwright

from agent import resources
from agent.api import replies
from agent.media.audio import from_pcm16, to_pcm16
from agent.types import FloatArray
from tests.rig.lossy_packets import HOST, LossyRelay

RATE_HZ = 48_000
Answer = Callable[[str], Awaitable[str]]
Event = dict[str, Any]

_BLOCK = 128
_PAGE = Path(__file__).with_name("page")
_FLAGS = (
    "--no-sandbox",
    "--autoplay-policy=no-user-gesture-required",
    "--mute-audio",
    "--disable-gpu",
    "--disable-features=WebRtcHideLocalIpsWithMdns",
    "--disable-background-networking",
    "--disable-background-timer-throttling",
    "--disable-renderer-backgrounding",
)
_POLL_S = 0.05


class ChromiumMissing(RuntimeError):
    """There is no Chromium on this machine."""


@dataclass(frozen=True, slots=True)
class Recording:
    """What the page played and what its user said, sample by sample, at 48 kHz."""

    played: FloatArray  # [T]
    said: FloatArray  # [T]
    stamps_ms: npt.NDArray[np.float64]  # [T / 128]

    def wall_s(self, at_s: float) -> float:
        """When the sample at `at_s` of the recording was rendered, on the clock of `time.time`."""
        block = min(int(at_s * RATE_HZ) // _BLOCK, len(self.stamps_ms) - 1)
        return float(self.stamps_ms[block]) / 1000


class MeasuringPage:
    """One call, seen from the page."""

    def __init__(self, page: Page) -> None:
        self._page = page

    async def connect(self, path: str, *, camera: bool) -> None:
        """Dial the server that answers offers at `path`; returns when it is connected."""
        options = {"url": path, "camera": camera}
        await self._page.evaluate("options => meter.connect(options)", options)

    async def load(self, sound: FloatArray) -> None:
        """Hand over what to say next (48 kHz): a megabyte holds the peer up, who lives here."""
        await self._page.evaluate("sound => meter.load(sound)", _packed(sound))

    async def speak(self, *, wait: bool = True) -> None:
        """Speak what was loaded, and wait for its end."""
        await self._page.evaluate("wait => meter.speak(wait)", wait)

    async def open_room(
        self, *, delay_s: float, gain: float, response: FloatArray, noise: FloatArray
    ) -> None:
        """From now on the microphone hears the loudspeaker, and some noise."""
        room = {
            "delay_s": delay_s,
            "gain": gain,
            "response": _packed(response),
            "noise": _packed(noise),
        }
        await self._page.evaluate("room => meter.openRoom(room)", room)

    async def record(self) -> None:
        """Begin a fresh recording."""
        await self._page.evaluate("meter.record()")

    async def recorded(self) -> Recording:
        """What was recorded since."""
        parts = await self._page.evaluate("meter.recorded()")
        played, said = (_unpacked(parts[name]) for name in ("played", "said"))
        stamps = np.frombuffer(base64.b64decode(parts["stamps"]), np.float64)
        return Recording(played, said, stamps)

    async def received_bytes(self) -> int:
        """How much sound has come, encoded; headers of packets are not counted."""
        statistics = await self.statistics()
        return int(statistics["bytesReceived"])

    async def statistics(self) -> dict[str, Any]:
        """What the browser tells of the stream of sound that it receives."""
        facts: dict[str, Any] = await self._page.evaluate("meter.statistics()")
        return facts

    async def send(self, event: Event) -> None:
        """One client event."""
        await self._page.evaluate("event => meter.send(event)", event)

    async def event(self, kind: str, *, after_s: float, timeout_s: float = 5.0) -> Event | None:
        """The first event of type `kind` that came after `after_s` (`time.time`); None if none."""
        due_s = time.monotonic() + timeout_s
        search = (
            "([kind, after]) => meter.events.find("
            "({event, at_ms}) => at_ms >= after && event.type === kind)?.event ?? null"
        )
        while time.monotonic() < due_s:
            found: Event | None = await self._page.evaluate(search, [kind, after_s * 1000])
            if found is not None:
                return found
            await asyncio.sleep(_POLL_S)
        return None

    async def events(self, kind: str) -> list[Event]:
        """All events of type `kind` so far."""
        search = "kind => meter.events.map(({event}) => event).filter(({type}) => type === kind)"
        found: list[Event] = await self._page.evaluate(search, kind)
        return found

    async def close(self) -> None:
        """Hang up and close the page."""
        await self._page.evaluate("meter.close()")
        await self._page.close()


class Rig:
    """A server of the page and the Chromium that opens it. One call at a time."""

    def __init__(self, browser: Browser, url: str, answers: dict[str, Answer]) -> None:
        self._browser = browser
        self._url = url
        self._answers = answers

    @asynccontextmanager
    async def call(
        self, answer: Answer, *, relay: LossyRelay | None = None, camera: bool = False
    ) -> AsyncIterator[MeasuringPage]:
        """A fresh page, connected to whoever answers its offer, over `relay` if there is one."""
        path = f"/calls/{len(self._answers)}"
        self._answers[path] = _through(relay, answer) if relay else answer
        page = await self._browser.new_page()
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        await page.goto(self._url)
        await page.wait_for_function("window.meter")
        measuring = MeasuringPage(page)
        await measuring.connect(path, camera=camera)
        try:
            yield measuring
        finally:
            await measuring.close()
        if faults:
            raise RuntimeError(f"the measuring page failed: {faults}")


@asynccontextmanager
async def measuring_rig() -> AsyncIterator[Rig]:
    """Chromium and the server of its page; `ChromiumMissing` without one."""
    program = shutil.which("chromium")
    if program is None:
        raise ChromiumMissing("no Chromium: apt install chromium")
    addresses = aioice.ice.get_host_addresses
    # The loopback alone: figures must not depend on the machine's network.
    aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: [HOST]
    answers: dict[str, Answer] = {}
    runner = web.AppRunner(_app(answers), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, HOST, 0).start()
    url = f"http://{HOST}:{runner.addresses[0][1]}/measure.html"
    try:
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=program, args=[*_FLAGS])
            yield Rig(browser, url, answers)
            await browser.close()
    finally:
        await runner.cleanup()
        aioice.ice.get_host_addresses = addresses


def _app(answers: dict[str, Answer]) -> web.Application:
    app = web.Application(middlewares=[replies.errors_as_json])

    async def take_offer(request: web.Request) -> web.Response:
        answer = await answers[request.path](await request.text())
        return web.Response(text=answer, content_type="application/sdp")

    async def reports(_: web.Request) -> web.FileResponse:
        return web.FileResponse(resources.web_folder() / "playout.js")

    app.router.add_post("/calls/{number}", take_offer)
    app.router.add_get("/playout.js", reports)
    app.router.add_static("/", _PAGE)
    return app


def _through(relay: LossyRelay, answer: Answer) -> Answer:
    async def over_the_relay(offer: str) -> str:
        return relay.answer(await answer(relay.offer(offer)))

    return over_the_relay


def _packed(sound: FloatArray) -> str:
    return base64.b64encode(to_pcm16(sound).tobytes()).decode()


def _unpacked(text: str) -> FloatArray:
    return from_pcm16(base64.b64decode(text))
