"""Pages of tests that share a browser's windows know nothing of each other."""

import pytest

from tests.web_page.browser import IN_ONE_LOOP, Look, open_page

pytestmark = [pytest.mark.browser, IN_ONE_LOOP]

KEPT = "[localStorage.length, sessionStorage.getItem('mine')]"


async def test_what_a_page_keeps_outlasts_a_reload_and_not_its_test() -> None:
    async with open_page() as opened:
        await opened.page.evaluate("localStorage.mine = sessionStorage.mine = 'yes'")
        await opened.page.reload()
        assert await opened.page.evaluate(KEPT) == [1, "yes"]
    async with open_page() as opened:
        assert await opened.page.evaluate(KEPT) == [0, None]


async def test_the_preamble_and_the_look_of_one_are_not_those_of_the_next() -> None:
    dark = Look(390, 844, scheme="dark", preamble="window.mine = true")
    seen = "[innerWidth, matchMedia('(prefers-color-scheme: dark)').matches, 'mine' in window]"
    for _ in range(2):
        async with open_page(dark) as opened:
            assert await opened.page.evaluate(seen) == [390, True, True]
        async with open_page() as opened:
            assert await opened.page.evaluate(seen) == [1440, False, False]


async def test_a_late_request_does_not_reach_the_server_of_another_page() -> None:
    asks = "fetch('/v1/models').then((answer) => answer.status)"
    async with open_page() as left, open_page() as opened:
        await left.page.evaluate("fetch('/v1/realtime/calls/late/hangup', { method: 'POST' })")
        assert await left.requested() == [("POST", "/v1/realtime/calls/late/hangup")]
        assert opened.server.requests == []
        await opened.page.evaluate("history.replaceState(null, '', '/?0')")
        assert await opened.page.evaluate(asks) == 404
