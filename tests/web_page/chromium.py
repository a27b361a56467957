"""Chromium, started by playwright's driver: by itself it may answer before it can be used."""

from playwright.async_api import Browser, Playwright

from tests.rig.programs import require_program

_MISSED = (
    "WebRtcHideLocalIpsWithMdns",
    # What hangs at the address bar is a page with a process of its own, in every window: half of
    # the time that a test's page takes would go into it.
    "WebUIOmniboxPopup",
    "WebUIOmniboxAimPopup",
    "WebUIOmniboxFullPopup",
)
_FLAGS = (
    "--no-sandbox",
    # Made-up microphone and camera; the screen that is shared is really the page's own tab.
    "--use-fake-device-for-media-stream=display-media-type=browser",
    "--use-fake-ui-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
    f"--disable-features={','.join(_MISSED)}",
    "--disable-background-networking",
)


async def start_chromium(driver: Playwright, *flags: str) -> Browser:
    """A Chromium without a window; it ends with `driver` at the latest."""
    program = require_program("chromium", apt="chromium")
    return await driver.chromium.launch(executable_path=program, args=[*_FLAGS, *flags])
