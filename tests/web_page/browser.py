"""A Chromium with a made-up microphone and camera, looking at the page."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.async_api import (
    Browser,
    BrowserContext,
    Page,
    ViewportSize,
    async_playwright,
)

from tests.web_page.chromium import start_chromium
from tests.web_page.server import ScriptedServer, Site, serve_page

FAR_END = Path(__file__).with_name("far_end.js")
PATIENCE_MS = 40_000
"""How long anything on the page may take; the machine may be busy."""
POLL_MS = 50
FORGET = """if (location.protocol === 'http:' && !sessionStorage.getItem('opened')) {
  localStorage.clear();
  sessionStorage.setItem('opened', 'yes');
}"""
"""Before a tab's first page: what pages in other tabs kept. What a page keeps outlasts a reload."""
IN_ONE_LOOP = pytest.mark.asyncio(loop_scope="session")
"""For tests that open pages: one driver serves them all, as to start one takes long."""


@dataclass(frozen=True, slots=True)
class Look:
    """What the user's screen is like; `preamble` is JavaScript that runs before the page's.

    `phone`: it is touched, and there is no mouse. It asks for little motion unless a test looks at
    that: to paint the orb's breath takes an eighth of what the tests of the page take.
    With `clock`, `page.clock` can be wound forward.
    """

    width: int = 1440
    height: int = 900
    scheme: Literal["light", "dark"] = "light"
    reduced_motion: bool = True
    preamble: str = ""
    clock: bool = False
    phone: bool = False


@dataclass(slots=True)
class OpenPage:
    """The page, the scripted server behind it, and what went wrong in the page meanwhile."""

    page: Page
    server: ScriptedServer
    faults: list[str] = field(default_factory=list)

    async def state(self, state: str) -> None:
        """Wait until the page is in `state`."""
        await self.page.wait_for_selector(f'#state[data-state="{state}"]', timeout=PATIENCE_MS)

    async def shows(self, selector: str) -> None:
        """Wait until something matches `selector` and can be seen."""
        await self.page.wait_for_selector(selector, timeout=PATIENCE_MS)

    async def problem(self, code: str) -> str:
        """Wait for problem `code` to be shown; its text."""
        selector = f'#problem[data-problem="{code}"]'
        await self.page.wait_for_selector(selector, timeout=PATIENCE_MS)
        return await self.page.inner_text(selector)

    async def until(self, condition: str) -> None:
        """Wait until the JavaScript expression `condition`, or what it promises, is true.

        Asked from outside: the page's policy forbids the evaluation that
        `Page.wait_for_function` does inside.
        """
        for _ in range(PATIENCE_MS // POLL_MS):
            if await self.page.evaluate(condition):
                return
            await asyncio.sleep(POLL_MS / 1000)
        pytest.fail(f"never came true: {condition}")

    async def call(self) -> None:
        """Start a call and wait until the far end can send events."""
        await self.page.click("#call-button")
        await self.state("listening")
        await self.until("window.farEnd.events?.readyState === 'open'")

    async def requested(self) -> list[tuple[str, str]]:
        """What reached the server, once anything did: the page does not wait for answers."""
        for _ in range(PATIENCE_MS // POLL_MS):
            if self.server.requests:
                break
            await asyncio.sleep(POLL_MS / 1000)
        return self.server.requests

    async def server_says(self, *events: dict[str, Any]) -> None:
        """Send events over the data channel, in this order."""
        await self.page.evaluate("events => events.forEach(window.farEnd.send)", list(events))


@asynccontextmanager
async def open_page(look: Look | None = None, **server: Any) -> AsyncIterator[OpenPage]:
    """The page in a tab of its own, with nothing kept; `server` sets fields of `ScriptedServer`.

    On leaving, nothing may have gone wrong in the page that a test did not look at.
    """
    look = look or Look()
    driven = await _driven()
    with driven.site.script() as (url, script):
        for name, value in server.items():
            setattr(script, name, value)
        async with _tab(driven, look) as page:
            opened = await _load(page, look, url, script)
            yield opened
            assert opened.faults == []


@dataclass(slots=True)
class _Driven:
    """What all tests of a process share, as their loop is the same.

    A browser that has loaded and compiled the page before, in a window like that which a test
    wants, does it in a quarter less.
    """

    browser: Browser
    site: Site
    ends: AsyncExitStack
    windows: dict[Look, BrowserContext] = field(default_factory=dict)


_shared: list[_Driven] = []


async def _driven() -> _Driven:
    """A fresh one if the browser ended."""
    if _shared and not _shared[0].browser.is_connected():
        await stop_driving()
    if not _shared:
        async with AsyncExitStack() as ends:
            site = await ends.enter_async_context(serve_page())
            driver = await ends.enter_async_context(async_playwright())
            browser = await ends.enter_async_context(await start_chromium(driver))
            _shared.append(_Driven(browser, site, ends.pop_all()))
    return _shared[0]


async def stop_driving() -> None:
    """To be called at the end of that loop."""
    while _shared:
        await _shared.pop().ends.aclose()


@asynccontextmanager
async def _tab(driven: _Driven, look: Look) -> AsyncIterator[Page]:
    """A new one, in a window that others have used unless its clock is a made-up one."""
    if look.clock:
        async with await _window(driven.browser, look) as window:
            page = await window.new_page()
            await page.clock.install()
            yield page
        return
    alike = replace(look, preamble="")
    if alike not in driven.windows:
        driven.windows[alike] = await _window(driven.browser, alike)
    async with await driven.windows[alike].new_page() as page:
        yield page


async def _window(browser: Browser, look: Look) -> BrowserContext:
    return await browser.new_context(
        viewport=ViewportSize(width=look.width, height=look.height),
        color_scheme=look.scheme,
        reduced_motion="reduce" if look.reduced_motion else "no-preference",
        has_touch=look.phone,
        is_mobile=look.phone,
    )


async def _load(page: Page, look: Look, url: str, script: ScriptedServer) -> OpenPage:
    opened = OpenPage(page, script)
    page.on("pageerror", lambda error: opened.faults.append(str(error)))
    page.on("console", lambda said: _note_violation(opened, said.text))
    await page.add_init_script(FORGET)
    await page.add_init_script(path=FAR_END)
    if look.preamble:
        await page.add_init_script(look.preamble)
    await page.goto(url)
    await page.wait_for_selector('#engine:not([data-engine=""])')
    return opened


def _note_violation(opened: OpenPage, text: str) -> None:
    if "Content Security Policy" in text:
        opened.faults.append(text)
