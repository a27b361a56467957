"""What the middle of the page says of a call: its state, who ended it, and what it has room for."""

import pytest

from tests.web_page.browser import open_page
from tests.web_page.server import able_models

pytestmark = pytest.mark.browser


async def test_the_headline_says_that_a_writing_agent_was_paused_or_hung_up() -> None:
    writing = [
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
