"""The examples of docs/clients.md, taken out of it and run, against the echo engine."""

import asyncio
import json
import os
import re
import time
import wave
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
from playwright.async_api import Route, async_playwright

from agent.keys import new_key, sha256_of
from agent.media.wire_sound import WireEncoder
from tests.conformance.travel import interpreter_of_clients
from tests.rig.programs import require_program
from tests.rig.server import Running, running_server
from tests.rig.socket_caller import RATE_HZ, SocketCaller, pcm16
from tests.rig.voices import say
from tests.test_tools_call import EchoThatChats
from tests.test_tools_call import serving as engine_serving
from tests.web_page.chromium import start_chromium
from tests.web_page.node import require_node_module

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "clients.md").read_text("utf-8")
EXAMPLES = dict(re.findall(r"<!-- (\S+) -->\n```\w+\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE))
PYTHON = "python"
"""That of the third-party clients, which have what `openai[realtime]` installs."""
LOOPBACK = (
    "import aioice.ice, runpy, sys\n"
    "aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: ['127.0.0.1']\n"
    "sys.argv = sys.argv[1:]\n"
    "runpy.run_path(sys.argv[0], run_name='__main__')\n"
)
"""Server and client are on one machine, which may have no other address."""


KEY = new_key()


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    async with running_server([f"auth.keys=client:{sha256_of(KEY)}"]) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path, server: Running) -> Path:
    """All examples, with the address of this server, and a question."""
    for name, text in EXAMPLES.items():
        address = server.url.removeprefix("http://")
        assert "127.0.0.1:8006" in text or name == "shop.html"
        (tmp_path / name).write_text(text.replace("127.0.0.1:8006", address), "utf-8")
    with wave.open(str(tmp_path / "question.wav"), "wb") as file:
        file.setparams((1, 2, RATE_HZ, 0, "NONE", ""))
        file.writeframes(pcm16(question(RATE_HZ)))
    return tmp_path


def question(rate_hz: int) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    spoken = say("What time is it?", rate_hz, level_dbfs=-20)
    return np.concatenate((spoken, np.zeros(rate_hz // 2, np.float32)))


async def started(folder: Path, *line: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    if line[0] == PYTHON:
        line = (str(interpreter_of_clients()), *line[1:])
    given = {**os.environ, "VOICE_AGENT_KEY": KEY}
    return await asyncio.create_subprocess_exec(
        *line, cwd=folder, env=given, stdout=pipe, stderr=pipe
    )


async def run(folder: Path, *line: str) -> str:
    """What it prints; it must end by itself, and well."""
    process = await started(folder, *line)
    try:
        out, errors = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, errors.decode()
    return out.decode()


def loudness(path: Path) -> float:
    """Of the loudest second, 0 to 1."""
    with wave.open(str(path), "rb") as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
    return float(np.sqrt(np.mean(samples**2))) if len(samples) else 0.0


async def test_a_recording_is_answered(folder: Path) -> None:
    said = await run(folder, PYTHON, "ask.py", "question.wav", "answer.wav")
    assert said.strip()
    assert loudness(folder / "answer.wav") > 0.003


async def test_a_function_is_called_and_its_result_spoken_of(folder: Path) -> None:
    assert "It is sunny in Rome." in await run(folder, PYTHON, "functions.py")


async def test_the_model_is_asked_out_of_band(folder: Path) -> None:
    engine = EchoThatChats()
    async with engine_serving(engine) as url:
        address = url.removeprefix("http://")
        example = EXAMPLES["mood.py"].replace("127.0.0.1:8006", address)
        (folder / "mood.py").write_text(example, "utf-8")
        printed = asyncio.ensure_future(run(folder, PYTHON, "mood.py"))
        while not engine.asked and not printed.done():
            await asyncio.sleep(0.01)
        if engine.asked:
            await engine.asked[0].say("Relieved")
        assert await printed == "Relieved\n"


async def test_a_secret_is_minted_for_a_minute_with_its_session(folder: Path) -> None:
    require_program("curl", apt="curl")
    minted = json.loads(await run(folder, "sh", "secret.sh"))
    assert minted["value"].startswith("ek_")
    assert 50 < minted["expires_at"] - time.time() <= 61
    assert minted["session"]["instructions"] == "Be brief."


@pytest.fixture
async def shop(folder: Path) -> AsyncIterator[str]:
    """The address of the example's own server, on a port that is free."""
    text = (folder / "shop.py").read_text("utf-8").replace("8100", "0")
    text = text.replace("ThreadingHTTPServer(", "made = ThreadingHTTPServer(")
    text = text.replace(".serve_forever()", "\nprint(made.server_port, flush=True)\n")
    (folder / "shop.py").write_text(text + "made.serve_forever()\n", "utf-8")
    process = await started(folder, PYTHON, "shop.py")
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(await asyncio.wait_for(process.stdout.readline(), 60))}"
    finally:
        process.kill()
        await process.communicate()


async def test_both_pages_call(folder: Path, shop: str, server: Running) -> None:
    async with async_playwright() as driver:
        browser = await start_chromium(driver)
        page = await browser.new_page()
        await page.goto(shop)
        await page.click("#call")
        await page.wait_for_function("words.textContent.length > 10", timeout=60_000)
        assert server.calls == 1 and await page.evaluate("voice.srcObject.active")
        await page.click("#end")
        await page.wait_for_function("!call.disabled")
        # The document itself has to come over the loopback, or it may not call there.
        parts = require_node_module(BUNDLE)
        for file in parts.parent.glob("*.mjs"):
            script = file.read_text("utf-8")
            await page.route(f"**/{file.name}", serving(script, "text/javascript"))
        places = json.dumps({"imports": {"@openai/agents-realtime": f"/{parts.name}"}})
        await page.add_script_tag(content=places, type="importmap")
        async with page.expect_console_message(lambda told: told.text != "[]") as first:
            await page.add_script_tag(content=(folder / "agents.mjs").read_text(), type="module")
        logged = await first.value
        assert logged.type == "log", logged.text
        items = await logged.args[0].json_value()
        assert items[0]["type"] == "message", "the history"
        await browser.close()


BUNDLE = "@openai/agents-realtime/dist/bundle/openai-realtime-agents.mjs"


def serving(text: str, kind: str) -> Callable[[Route], Awaitable[None]]:
    async def fulfil(route: Route) -> None:
        await route.fulfill(body=text, content_type=kind)

    return fulfil


async def test_a_peer_of_aiortc_is_answered(folder: Path) -> None:
    line = (PYTHON, "-c", LOOPBACK, "peer.py", "question.wav", "answer.wav")
    assert (await run(folder, *line)).strip()
    assert loudness(folder / "answer.wav") > 0.003


async def test_the_sideband_listens_in(folder: Path, server: Running) -> None:
    interpreter_of_clients()  # skips where there is none, and leaves no call behind
    caller = SocketCaller(server.url)
    await caller.dial(headers={"Authorization": f"Bearer {KEY}"})
    call_id = caller.location.rsplit("/", 1)[1]
    side = await started(folder, PYTHON, "sideband.py", call_id)
    await caller.wait_for(
        "session.updated", lambda event: "very brief" in json.dumps(event["session"])
    )
    await caller.hang_up()
    out, errors = await asyncio.wait_for(side.communicate(), 60)
    assert {"session.created", "session.updated"} <= set(out.decode().split()), errors.decode()


async def test_a_telephone_line_is_answered_in_its_own_coding(folder: Path) -> None:
    encoder = WireEncoder("audio/pcmu")
    coded = encoder.push(question(RATE_HZ))
    (folder / "question.ulaw").write_bytes(coded)
    await run(folder, PYTHON, "line.py", "question.ulaw", "answer.ulaw")
    answer = np.frombuffer((folder / "answer.ulaw").read_bytes(), np.uint8)
    assert len(answer) > 4_000 and len(np.unique(answer)) > 30, "µ-law of speech"


def test_no_example_is_left_out() -> None:
    assert set(EXAMPLES) == {
        "agents.mjs",
        "ask.py",
        "functions.py",
        "line.py",
        "mood.py",
        "peer.py",
        "secret.sh",
        "shop.html",
        "shop.py",
        "sideband.py",
    }
