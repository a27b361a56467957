"""Runs the clients' programs against one server, some at a time, and reads what they tell."""

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.conformance.ground import Ground, ground
from tests.rig.programs import require_all, require_program
from tests.web_page.node import require_node_module

ROOT = Path(__file__).resolve().parents[2]
AT_A_TIME = 4
"""Programs that run at once: they mostly wait, but each has to start."""
LONGEST_S = 240
INSTALL = "tests/conformance/install"


@dataclass(frozen=True, slots=True)
class Traveller:
    """A client and the program that uses it; `packages` are what it is made of, the client first.

    `how` says how it is used, `wire` how it reaches the server.
    """

    how: str
    program: str
    packages: tuple[str, ...]
    wire: Literal["websocket", "webrtc"]


TRAVELLERS = {
    "openai_python": Traveller(
        "Python, WebSocket", "with_openai_python.py", ("openai",), "websocket"
    ),
    "openai_python_calls": Traveller(
        "Python, HTTP and sideband", "with_openai_python_calls.py", ("openai", "aiortc"), "webrtc"
    ),
    "openai_node": Traveller("Node, WebSocket", "with_openai_node.mjs", ("openai",), "websocket"),
    "agents_webrtc": Traveller(
        "Chromium, WebRTC", "agents_webrtc.html", ("@openai/agents-realtime",), "webrtc"
    ),
    "agents_ws": Traveller(
        "Node, WebSocket", "with_agents_ws.mjs", ("@openai/agents-realtime",), "websocket"
    ),
    "agents_python": Traveller(
        "Python, WebSocket", "with_agents_python.py", ("openai-agents",), "websocket"
    ),
    "livekit": Traveller(
        "Python, `AgentSession`", "with_livekit.py", ("livekit-plugins-openai",), "websocket"
    ),
    "pipecat": Traveller(
        "Python, `OpenAIRealtimeLLMService`", "with_pipecat.py", ("pipecat-ai",), "websocket"
    ),
    "whip": Traveller("Chromium, WHIP", "whip.html", ("@binbat/whip-whep",), "webrtc"),
}
LONGEST_FIRST = ("agents_webrtc", "whip", "livekit", "agents_python", "openai_python_calls")


@dataclass(slots=True)
class Trip:
    """What one client went through."""

    client: str
    version: str = ""
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    heard: Path | None = None
    """WAV of what it heard."""
    sessions: list[list[dict[str, Any]]] = field(default_factory=list)
    """What the server said in each of its sessions, where the client shows it."""
    calls_left: int = 0
    """Calls that the server still held when all clients had left."""
    log: str = ""

    def take(self, line: str) -> None:
        """One line of what the program told."""
        try:
            told = json.loads(line)
            feature = told["feature"]
        except (ValueError, TypeError, KeyError):
            return  # a banner
        if "error" in told:
            self.errors[feature] = told["error"]
        else:
            self.facts[feature] = told["facts"]


def travel(clients: Sequence[str], folder: Path) -> dict[str, Trip]:
    """Run `clients` against one server; skips or fails where something is not installed."""
    return asyncio.run(_travel(clients, folder, _interpreter()))


async def _travel(clients: Sequence[str], folder: Path, interpreter: Path) -> dict[str, Trip]:
    order = sorted(clients, key=lambda name: name not in LONGEST_FIRST)
    gate = asyncio.Semaphore(AT_A_TIME)
    versions = await _versions(clients, interpreter)
    async with ground(clients, folder) as here:
        trips = [_one(name, here, folder, (gate, interpreter)) for name in order]
        ended = await asyncio.gather(*trips)
        left = await here.calls_left()
    for trip in ended:
        trip.calls_left, trip.version = left, versions[trip.client]
    found = {trip.client: trip for trip in ended}
    return {client: found[client] for client in clients}


async def _one(
    client: str, here: Ground, folder: Path, means: tuple[asyncio.Semaphore, Path]
) -> Trip:
    gate, interpreter = means
    out = folder / client
    out.mkdir()
    trip = Trip(client)
    async with gate:
        command = _command(client, here, interpreter)
        environment = {
            **os.environ,
            "NODE_EXTRA_CA_CERTS": str(here.certificate),
            "PIPECAT_LOG_LLM_CONTEXT": "off",
            "PYTHONPATH": str(ROOT) if command[0] == sys.executable else "",
        }
        program = await asyncio.create_subprocess_exec(
            *command,
            *("--key", here.keys[client], "--out", str(out)),
            *("--speech", str(here.speech), "--picture", str(here.picture)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
        )
        try:
            told, log = await asyncio.wait_for(program.communicate(), LONGEST_S)
        except TimeoutError:
            program.kill()
            told, log = await program.communicate()
            trip.errors["close"] = f"{TRAVELLERS[client].program} did not end in {LONGEST_S} s"
    for line in told.decode().splitlines():
        trip.take(line)
    trip.log = log.decode(errors="replace")
    trip.heard = out / "heard.wav" if (out / "heard.wav").exists() else None
    trip.sessions = [json.loads(one.read_text()) for one in sorted(out.glob("events_*.json"))]
    return trip


def _command(client: str, here: Ground, interpreter: Path) -> list[str]:
    program = TRAVELLERS[client].program
    path = str(here.clients / program)
    if program.endswith(".html"):
        module = ["-m", "tests.conformance.browser", "--page", program]
        return [sys.executable, *module, "--clients", str(here.clients), "--base", here.base]
    if program.endswith(".mjs"):
        base = here.tls_base if client == "openai_node" else here.base
        return [require_program("node", apt="nodejs"), path, "--base", base]
    return [str(interpreter), path, "--base", here.base]


def _interpreter() -> Path:
    """Where the third-party clients for Python are installed."""
    named = os.environ.get("VOICE_AGENT_CONFORMANCE")
    found = sorted((ROOT / ".ci" / "cache").glob("conformance-*/complete"))
    if named:
        return Path(named)
    if not found:
        require_all(f"needs third-party clients: {INSTALL}")
    return found[0].with_name("bin") / "python"


async def _versions(clients: Sequence[str], interpreter: Path) -> dict[str, str]:
    """What each client is, with its version."""
    script = (
        "import importlib.metadata as m, json, sys;"
        "print(json.dumps({d.name: d.version for d in m.distributions()}))"
    )
    asked = await asyncio.create_subprocess_exec(
        str(interpreter), "-c", script, stdout=asyncio.subprocess.PIPE
    )
    installed: dict[str, str] = json.loads((await asked.communicate())[0])
    told = {}
    for client in clients:
        traveller = TRAVELLERS[client]
        is_python = traveller.program.endswith(".py")
        told[client] = ", ".join(
            f"{name} {installed[name] if is_python else _npm_version(name)}"
            for name in traveller.packages
        )
    return told


def _npm_version(package: str) -> str:
    described = json.loads(require_node_module(f"{package}/package.json").read_text())
    return str(described["version"])
