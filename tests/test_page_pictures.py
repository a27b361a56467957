"""What the page shows the agent: the camera or the screen, rarely and sharply, one at a time."""

import pytest

from tests.web_page.browser import IN_ONE_LOOP, Look, OpenPage, open_page

pytestmark = [pytest.mark.browser, IN_ONE_LOOP]

WIDTH = """window.farEnd.pc.getStats().then((all) => [...all.values()]
  .find((each) => each.type === 'inbound-rtp' && each.kind === 'video')?.frameWidth)"""
SENT = """window.farEnd.near.getStats().then((all) => [...all.values()]
  .find((each) => each.type === 'outbound-rtp' && each.kind === 'video'))"""
TRACK = "window.farEnd.near.getSenders()[1].track"
CAMERA = "window.farEnd.streams.at(-1).getVideoTracks()[0]"
SCREEN = "window.farEnd.screens.at(-1).getVideoTracks()[0]"
SELF_VIEW = "document.getElementById('self-view')"


def _pick(answer: str) -> str:
    """JavaScript that makes the browser's picker answer `answer` instead of asking."""
    return f"""
    const share = navigator.mediaDevices.getDisplayMedia;
    navigator.mediaDevices.getDisplayMedia = (wanted) => window.allowed ? share(wanted) : {answer};
    """


async def _press(opened: OpenPage, button: str, pressed: str) -> None:
    await opened.page.click(f"#{button}")
    await opened.shows(f'#{button}[aria-pressed="{pressed}"]')


async def test_the_camera_sends_two_sharp_pictures_a_second() -> None:
    async with open_page() as opened:
        await opened.call()
        await _press(opened, "camera", "true")
        await opened.until(f"{SENT}.then((sent) => sent.framesSent > 2)")
        before = await opened.page.evaluate(SENT)
        await opened.until(f"{SENT}.then((sent) => sent.framesSent >= {before['framesSent'] + 5})")
        sent = await opened.page.evaluate(SENT)
        seconds = (sent["timestamp"] - before["timestamp"]) / 1000
        # A busy machine takes fewer.
        assert 0.3 < (sent["framesSent"] - before["framesSent"]) / seconds < 3
        assert (sent["frameWidth"], sent["frameHeight"]) == (640, 480)
        assert await opened.page.evaluate(f"{TRACK}.contentHint") == "detail"


async def test_the_screen_takes_the_cameras_place_and_back_without_another_offer() -> None:
    async with open_page() as opened:
        page = opened.page
        await opened.call()
        await _press(opened, "camera", "true")
        await opened.until(f"{WIDTH}.then((width) => width === 640)")
        await _press(opened, "screen", "true")
        await opened.until(f"{WIDTH}.then((width) => width === 1440)")
        assert await page.get_attribute("#camera", "aria-pressed") == "false"
        assert await page.evaluate(f"{CAMERA}.readyState") == "ended", "its light goes out"
        assert await page.evaluate(f"{TRACK} === {SCREEN} && {SCREEN}.contentHint") == "detail"
        await opened.shows('#self-view[data-source="screen"][aria-label^="Your screen"]')
        assert await page.evaluate(f"{SELF_VIEW}.srcObject === window.farEnd.screens[0]")
        row = '[data-check="picture"][data-verdict="ok"] .value'
        await opened.shows(row)
        assert "screen 1440" in await page.inner_text(row)
        await _press(opened, "camera", "true")
        await opened.until(f"{WIDTH}.then((width) => width === 640)")
        assert await page.get_attribute("#screen", "aria-pressed") == "false"
        assert await page.evaluate(f"{SCREEN}.readyState") == "ended"
        await opened.shows('#self-view[data-source="camera"][aria-label^="Your camera"]')
        assert len(await page.evaluate("window.farEnd.offers")) == 1


@pytest.mark.parametrize("width", [390, 1440])
async def test_sharing_ends_by_the_button_and_by_the_browsers_own(width: int) -> None:
    async with open_page(Look(width)) as opened:
        page = opened.page
        await opened.call()
        below = "document.getElementById('mic-meter').getBoundingClientRect().top"
        before = await page.evaluate(below)
        await _press(opened, "screen", "true")
        assert await page.evaluate(below) == before, "nothing moves under the user's pointer"
        assert await page.inner_text("#screen .label") == "Sharing"
        await _press(opened, "screen", "false")
        assert await page.inner_text("#screen .label") == "Share screen"
        assert await page.evaluate(f"{SCREEN}.readyState") == "ended"
        assert await page.evaluate(TRACK) is None
        await _press(opened, "screen", "true")
        await page.evaluate(f"{SCREEN}.dispatchEvent(new Event('ended'))")
        await opened.shows('#screen[aria-pressed="false"]')
        assert not await page.is_visible("#self-view")
        await _press(opened, "screen", "true")
        await page.click("#call-button")
        await opened.state("ended")
        assert await page.evaluate(f"{SCREEN}.readyState") == "ended"
        assert not await page.is_visible("#self-view")
        assert not await page.is_visible("#screen")


async def test_thinking_better_of_it_changes_nothing_and_needs_no_words() -> None:
    closed = _pick("Promise.reject(new DOMException('Permission denied', 'NotAllowedError'))")
    async with open_page(Look(preamble=closed)) as opened:
        page = opened.page
        await opened.call()
        await _press(opened, "camera", "true")
        await page.click("#screen")
        await page.evaluate("window.allowed = true")
        assert not await page.is_visible("#problem")
        assert await page.get_attribute("#camera", "aria-pressed") == "true"
        assert await page.evaluate(f"{CAMERA}.readyState") == "live"
        await _press(opened, "screen", "true")


async def test_a_screen_that_cannot_be_had_is_said() -> None:
    refusals = [
        ("NotAllowedError", "Permission denied by system", "screen-denied"),
        ("NotReadableError", "Could not start", "screen-missing"),
        ("NotFoundError", "", "screen-missing"),
    ]
    refusal = _pick("Promise.reject(new DOMException(...window.refusal))")
    async with open_page(Look(preamble=refusal)) as opened:
        await opened.call()
        for name, message, code in refusals:
            await opened.page.evaluate("(given) => (window.refusal = given)", [message, name])
            await opened.page.click("#screen")
            assert "goes on without" in await opened.problem(code)
            assert await opened.page.get_attribute("#state", "data-state") == "listening"
            await opened.page.click("#problem-action")
        await opened.page.evaluate("window.allowed = true")
        await _press(opened, "screen", "true")


async def test_a_screen_chosen_after_the_call_ended_is_let_go() -> None:
    choose = "new Promise((done) => (window.choose = () => share(wanted).then(done)))"
    picker = _pick(f"(window.pickers = (window.pickers ?? 0) + 1, {choose})")
    async with open_page(Look(preamble=picker)) as opened:
        page = opened.page
        await opened.call()
        await page.click("#screen")
        await page.click("#screen")
        assert await page.evaluate("window.pickers") == 1, "one picker at a time"
        await page.click("#call-button")
        await opened.state("ended")
        await page.evaluate("window.choose()")
        await opened.until(f"{SCREEN}.readyState === 'ended'")
        assert not await page.is_visible("#self-view")


NO_SCREENS = """
delete MediaDevices.prototype.getDisplayMedia;
delete navigator.mediaDevices.getDisplayMedia;
"""


@pytest.mark.parametrize(
    "look", [Look(preamble=NO_SCREENS), Look(390, 844, phone=True)], ids=["no function", "phone"]
)
async def test_where_screens_cannot_be_shared_no_button_offers_it(look: Look) -> None:
    async with open_page(look) as opened:
        await opened.call()
        assert await opened.page.is_visible("#camera")
        assert not await opened.page.is_visible("#screen")
        await opened.page.keyboard.press("s")
        await _press(opened, "camera", "true")
        assert not await opened.page.is_visible("#problem")
