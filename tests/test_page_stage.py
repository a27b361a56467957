"""What the middle of the page says of a call: its state, who ended it, and what it has room for."""

from typing import Any

import pytest

from tests.web_page.browser import IN_ONE_LOOP, Look, OpenPage, open_page
from tests.web_page.node import ROOT
from tests.web_page.server import able_models

pytestmark = [pytest.mark.browser, IN_ONE_LOOP]


async def test_the_headline_says_that_a_writing_agent_was_paused_or_hung_up() -> None:
    writing: list[dict[str, Any]] = [
        {"type": "response.content_part.added", "part": {"type": "output_text"}},
        {"type": "voice_agent.state", "state": "speaking", "turn": 1},
    ]
    async with open_page(models=able_models(speech=False)) as opened:
        page = opened.page
        await opened.call()
        await opened.server_says(*writing)
        await opened.shows("text=Agent is writing")
        await opened.server_says({"type": "voice_agent.state", "state": "paused", "turn": 1})
        await opened.state("paused")
        assert await page.inner_text("#state .said") == "Paused"
        await page.click("#call-button")
        await opened.state("ended")
        await opened.call()
        await opened.server_says(*writing)
        await opened.shows("text=Agent is writing")
        await page.click("#call-button")
        await opened.state("ended")
        assert await page.inner_text("#state .said") == "Call ended"


async def test_listening_that_stays_on_says_so_and_how_it_ends() -> None:
    async with open_page(Look(width=390, height=844)) as opened:
        page = opened.page
        await opened.call()
        parts = [page.locator(part) for part in ("#listen", "#listen svg", "#pause")]
        before = [await part.bounding_box() for part in parts]
        await page.click("#listen")
        assert await page.inner_text("#listen") == "Only listening: press to end"
        assert await page.inner_text("#state .said") == "Only listening"
        assert [await part.bounding_box() for part in parts] == before, "nothing moves"
        await page.click("#listen")
        assert await page.inner_text("#listen") == "Hold: just listen"
        assert await page.inner_text("#state .said") == "Listening"
        await page.focus("#listen")
        await page.keyboard.press("Enter")
        assert await page.inner_text("#listen") == "Only listening: press to end"
        await page.click("#call-button")
        await opened.state("ended")
        assert await page.inner_text("#state .said") == "Call ended"


async def test_listening_that_is_held_does_not_ask_for_a_press() -> None:
    async with open_page() as opened:
        page = opened.page
        await opened.call()
        await page.focus("body")
        await page.keyboard.down(" ")
        assert await page.inner_text("#state .said") == "Only listening"
        assert await page.inner_text("#listen") == "Hold: just listen"
        await page.keyboard.up(" ")
        assert await page.inner_text("#state .said") == "Listening"


async def test_a_muted_user_is_not_told_that_the_agent_listens() -> None:
    async with open_page() as opened:
        page = opened.page
        await opened.call()
        await page.click("#mute")
        assert await page.inner_text("#state .said") == "Muted"
        await opened.server_says({"type": "output_audio_buffer.started", "response_id": "r"})
        await opened.shows("text=Agent is speaking")
        await opened.server_says({"type": "output_audio_buffer.stopped", "response_id": "r"})
        await opened.state("listening")
        assert await page.inner_text("#state .said") == "Muted"
        await page.click("#mute")
        assert await page.inner_text("#state .said") == "Listening"
        await page.click("#mute")
        await page.click("#call-button")
        await opened.state("ended")
        assert await page.inner_text("#state .said") == "Call ended"
        await opened.call()
        assert await page.inner_text("#state .said") == "Listening"


async def test_how_to_get_the_model_is_said_on_the_page_in_the_words_of_the_readme() -> None:
    async with open_page() as opened:
        notice = opened.page.locator("#echo-notice")
        assert await notice.locator("a").count() == 0, "nobody is sent to a raw file"
        readme = (ROOT / "README.md").read_text()
        commands = await notice.locator("code").all_inner_texts()
        assert len(commands) == 2
        assert all(command in readme for command in commands)
        said = await notice.inner_text()
        for figure in ("19 GB", "21.9 GB", "27.7 GB"):
            assert figure in said and figure in readme


async def _bottom(opened: OpenPage, selector: str) -> float:
    box = await opened.page.locator(selector).bounding_box()
    assert box is not None
    return box["y"] + box["height"]


@pytest.mark.parametrize("height", [844, 740])
async def test_an_answer_in_captions_and_the_field_are_on_a_phones_first_screen(
    height: int,
) -> None:
    phone = Look(width=390, height=height)
    async with open_page(phone, models=able_models(speech=False)) as opened:
        await opened.call()
        delta = {"item_id": "a", "delta": "Hello, I answer in captions. " * 4}
        await opened.server_says({"type": "response.output_text.delta", **delta})
        await opened.shows(".line")
        assert await _bottom(opened, ".line") < height
        assert await _bottom(opened, "#typing textarea") < height
    async with open_page(phone, models=able_models()) as opened:
        await opened.call()
        assert await _bottom(opened, "#typing textarea") > height, "a voice has the large orb"


async def _wide(opened: OpenPage) -> int:
    wide: int = await opened.page.evaluate("document.documentElement.scrollWidth")
    return wide


@pytest.mark.parametrize("width", [342, 320])
async def test_narrow_phones_need_not_scroll_sideways(width: int) -> None:
    async with open_page(Look(width, 568), models=able_models()) as opened:
        await opened.call()
        assert await _wide(opened) == width
        field = opened.page.locator("#typing textarea")
        # More than one line of a placeholder would be cut off.
        assert await field.evaluate("(field) => field.scrollHeight <= field.clientHeight")


async def test_a_phone_held_sideways_has_the_buttons_on_its_first_screen() -> None:
    async with open_page(Look(844, 390), models=able_models()) as opened:
        page = opened.page
        assert await _bottom(opened, "#call-button") < 390
        await opened.call()
        for part in ("#call-button", "#pause", "#listen", "#mic-meter", "#typing textarea"):
            assert await _bottom(opened, part) < 390, part
        assert await _wide(opened) == 844
        state = page.locator("#state")
        before = await page.locator("#orb").bounding_box()
        await page.click("#camera")
        await opened.shows("#self-view")
        await opened.server_says({"type": "output_audio_buffer.started", "response_id": "r"})
        await opened.shows("text=Agent is speaking")
        assert await page.locator("#orb").bounding_box() == before, "nothing moves"
        assert await state.evaluate("(state) => state.scrollWidth <= state.clientWidth")
        await page.click("#tab-chat")
        assert await _bottom(opened, "#chat-form textarea") < 390
