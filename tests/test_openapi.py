"""The document of the HTTP API: held to the router, to the code's events, and shown to people."""

import ast
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from jsonschema_rs import Draft202012Validator, meta
from playwright.async_api import async_playwright

from agent.api.openapi import EVENTS, document
from agent.config import load_config, settings_table
from agent.realtime import obey
from tests.rig.realtime_schema import MODELS
from tests.rig.server import Running, running_server
from tests.web_page.chromium import start_chromium
from tests.web_page.node import require_node_module

ROOT = Path(__file__).resolve().parent.parent
METHODS = {"get", "post", "patch", "delete", "options"}
SERIOUS = """async () => (await axe.run(document, { resultTypes: ['violations'] })).violations
  .filter(({ impact }) => ['serious', 'critical'].includes(impact))
  .map(({ id, nodes }) => `${id}: ${nodes[0].target} ${nodes[0].failureSummary}`)"""


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    return document(load_config(None, {}, ["chat.max_pictures=7", "server.max_body_bytes=2048"]))


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    async with running_server() as running:
        yield running


def operations(told: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in told["paths"].items():
        for method in METHODS & item.keys():
            yield path, method, item[method]


async def test_every_route_is_documented_and_every_documented_one_exists(
    server: Running, told: dict[str, Any]
) -> None:
    routes = {
        (route.resource.canonical, route.method.lower())
        for route in server.app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    # The page's own files.
    routes.remove(("/{name}", "get"))
    assert {(path, method) for path, method, _ in operations(told)} == routes


def test_the_document_is_sound(told: dict[str, Any]) -> None:
    text = json.dumps(told)
    known = told["components"]["schemas"]
    assert set(re.findall(r'"#/components/schemas/(\w+)"', text)) == set(known)
    for schema in known.values():
        meta.validate(schema)
    names = [operation["operationId"] for _, _, operation in operations(told)]
    assert len(set(names)) == len(names)
    tags = {tag["name"] for tag in told["tags"]}
    for path, method, operation in operations(told):
        where = f"{method} {path}"
        assert operation["summary"] and set(operation["tags"]) <= tags, where
        assert operation["responses"], where
        placed = re.findall(r"{(\w+)}", path)
        assert [each["name"] for each in told["paths"][path].get("parameters", ())] == placed, where


def test_settings_that_it_mentions_exist_and_their_numbers_are_theirs(told: dict[str, Any]) -> None:
    text = json.dumps(told)
    rows = {row.key for row in settings_table()}
    sections = {key.partition(".")[0] for key in rows}
    words = set(re.findall(r"`(\w+\.\w+)`", text)) - obey.OBEY.keys()
    mentioned = {word for word in words if word.partition(".")[0] in sections}
    assert mentioned and mentioned <= rows
    assert "7 pictures (`chat.max_pictures`)" in text
    assert "2,048 bytes (`server.max_body_bytes`)" in text


def test_its_events_are_those_of_the_code() -> None:
    sides = EVENTS
    assert set(sides["client"]) == set(obey.OBEY)
    assert set(sides["server"]) <= set(MODELS)
    said = {word for word in words_of_the_code() if word in MODELS}
    assert said - set(obey.OBEY) <= set(sides["server"])


def words_of_the_code() -> Iterator[str]:
    """Every text in the protocol's code, and those that are written in two parts."""
    for path in (ROOT / "agent" / "realtime").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


async def test_it_is_served_and_says_what_the_server_does(server: Running) -> None:
    async with aiohttp.ClientSession(server.url) as http:
        async with http.get("/openapi.json") as response:
            served = await response.json()
        async with http.get("/healthz") as response:
            health = await response.json()
        async with http.get("/v1/models") as response:
            models = await response.json()
    assert served["openapi"] == "3.1.0"
    for name, body in (("Health", health), ("Model", models["data"][0])):
        schema = served["components"]["schemas"][name] | {"components": served["components"]}
        Draft202012Validator(schema).validate(body)


DEAD = """[...document.links].map((link) => link.getAttribute('href'))
  .filter((href) => href.startsWith('#') && !document.getElementById(href.slice(1)))"""


async def test_people_can_read_it_on_a_phone_and_with_any_aid(
    server: Running, told: dict[str, Any]
) -> None:
    async with async_playwright() as driver:
        browser = await start_chromium(driver)
        page = await browser.new_page(viewport={"width": 360, "height": 740})
        refused: list[str] = []
        page.on("console", lambda said: refused.append(said.text))
        await page.goto(f"{server.url}/docs")
        await page.goto(f"{server.url}/docs#event-voice_agent.tool")
        unfolded = await page.inner_text("details[open]")
        assert "decided_ms" in unfolded, "a link unfolds its event"
        await page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
        width = await page.evaluate("document.documentElement.scrollWidth")
        assert width <= 360, "nothing is cut off"
        shown = await page.inner_text("main")
        for path, _, operation in operations(told):
            assert operation["summary"] in shown and path in shown.replace("\u200b", "")
        assert "input_audio_buffer.speech_started" in shown
        assert await page.evaluate(DEAD) == [], "every link within the page leads somewhere"
        for scheme in ("light", "dark"):
            await page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            await page.evaluate(require_node_module("axe-core/axe.min.js").read_text("utf-8"))
            assert await page.evaluate(SERIOUS) == []
        assert refused == [], "nothing foreign, nothing inline"
        await browser.close()
