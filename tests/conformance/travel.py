"""Runs the clients' programs against one server, some at a time, and reads what they tell."""

import asyncio
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.conformance.ground import Ground, ground
from tests.rig.programs import require_all, require_program
from tests.web_page.node import require_node_module

ROOT = Path(__file__).resolve().parents[2]
AT_A_TIME = 3
"""Programs that run at once: they mostly wait, but each has to start."""
LONGEST_S = 150
STOOD_STILL_S = 0.1
"""A machine that lets a program wait for so long cannot hold a conversation: what went wrong
meanwhile says nothing, and is tried again when all others are done."""
MOST_TRIES = 3
AGAIN_WITHIN_S = 200
"""Later nothing is tried again: the gate has other things to do."""
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
    stood_still_s: float = 0.0
    """The longest that the machine let a program wait meanwhile."""
    tries: int = 1
    log: str = ""

    @property
    def may_be_tried_again(self) -> bool:
        """Whether the machine may be to blame for what went wrong.

        The first time other programs talked beside it, each with a core to itself only sometimes.
        """
        disturbed = self.tries == 1 or self.stood_still_s > STOOD_STILL_S
        return disturbed and self.tries < MOST_TRIES

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


def travel(
    clients: Sequence[str], folder: Path, is_right: Callable[[Trip], bool]
) -> dict[str, Trip]:
    """Run `clients` against one server; skips or fails where something is not installed.

    What went wrong by `is_right` is tried again, alone; more than once only if the machine stood
    still meanwhile.
    """
    return asyncio.run(_travel(clients, folder, is_right))


async def _travel(
    clients: Sequence[str], folder: Path, is_right: Callable[[Trip], bool]
) -> dict[str, Trip]:
    interpreter = interpreter_of_clients()
    loop = asyncio.get_running_loop()
    due_s = loop.time() + AGAIN_WITHIN_S
    order = sorted(clients, key=lambda name: name not in LONGEST_FIRST)
    gate = asyncio.Semaphore(AT_A_TIME)
    versions = await _versions(clients, interpreter)
    async with ground(clients, folder) as here:
        tour = Tour(here, folder, interpreter)
        first = await asyncio.gather(*(tour.go(name, gate) for name in order))
        found = {trip.client: trip for trip in first}
        wrong = [client for client in order if not is_right(found[client])]
        while wrong and loop.time() < due_s:
            client = wrong.pop(0)
            if found[client].may_be_tried_again:
                found[client] = await tour.go(client, gate, found[client].tries + 1)
                wrong += [] if is_right(found[client]) else [client]
        left = await here.calls_left()
    for trip in found.values():
        trip.calls_left, trip.version = left, versions[trip.client]
    return {client: found[client] for client in clients}


class Tour:
    """Runs one program after the other against `here`."""

    def __init__(self, here: Ground, folder: Path, interpreter: Path) -> None:
        self._here = here
        self._folder = folder
        self._interpreter = interpreter

    async def go(self, client: str, gate: asyncio.Semaphore, tries: int = 1) -> Trip:
        """Run the client's program to its end and read what it left."""
        out = self._folder / f"{client}_{tries}"
        out.mkdir()
        trip = Trip(client, tries=tries)
        async with gate:
            watch = asyncio.create_task(_watch(trip))
            await self._run(trip, out)
            watch.cancel()
        trip.heard = out / "heard.wav" if (out / "heard.wav").exists() else None
        trip.sessions = [json.loads(one.read_text()) for one in sorted(out.glob("events_*.json"))]
        return trip

    async def _run(self, trip: Trip, out: Path) -> None:
        here = self._here
        command = _command(trip.client, here, self._interpreter)
        environment = {
            **os.environ,
            "NODE_EXTRA_CA_CERTS": str(here.certificate),
            "PIPECAT_LOG_LLM_CONTEXT": "off",
            "PYTHONPATH": str(ROOT) if command[0] == sys.executable else "",
        }
        program = await asyncio.create_subprocess_exec(
            *command,
            *("--key", here.keys[trip.client], "--out", str(out)),
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
            trip.errors["close"] = f"the program did not end within {LONGEST_S} s"
        for line in told.decode().splitlines():
            trip.take(line)
        trip.log = log.decode(errors="replace")


async def _watch(trip: Trip) -> None:
    """See for how long the machine lets a program wait."""
    loop = asyncio.get_running_loop()
    while True:
        due_s = loop.time() + 0.02
        await asyncio.sleep(0.02)
        trip.stood_still_s = max(trip.stood_still_s, loop.time() - due_s)


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


def interpreter_of_clients() -> Path:
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
