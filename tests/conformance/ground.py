"""Where the clients meet the server: the server itself, keys, TLS, and what they say and show."""

import asyncio
import os
import shutil
import ssl
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
from PIL import Image

from agent.keys import new_key, sha256_of
from agent.tls import CertificateNames, keep_certificate
from tests.rig.sound import write_wav
from tests.rig.voices import say
from tests.web_page.node import require_node_module

CLIENTS = Path(__file__).with_name("clients")
SENTENCE = "Could you tell me when the next train leaves?"
SPEECH_RATE_HZ = 24_000
PICTURE_SIZE = (64, 48)
_START_S = 60
_IDLE_S = 20


@dataclass(frozen=True)
class Ground:
    """A server that listens, and what the clients need to talk to it."""

    base: str
    tls_base: str
    """The same server behind TLS: some clients speak to nothing else."""
    certificate: Path
    keys: dict[str, str]
    """An API key for each client."""
    clients: Path
    """The programs, where Node finds its modules."""
    speech: Path
    picture: Path

    async def calls(self) -> int:
        """Calls in progress."""
        async with aiohttp.ClientSession() as http, http.get(f"{self.base}/healthz") as reply:
            return int((await reply.json())["calls"])

    async def calls_left(self) -> int:
        """Calls in progress once the server had time to see that their clients are gone."""
        loop = asyncio.get_running_loop()
        due_s = loop.time() + _IDLE_S
        while (left := await self.calls()) and loop.time() < due_s:
            await asyncio.sleep(0.1)
        return left


@asynccontextmanager
async def ground(names: Sequence[str], folder: Path) -> AsyncIterator[Ground]:
    """Serve the clients `names` by the echo engine, in a process of its own."""
    keys = {name: new_key() for name in names}
    names_here = CertificateNames(frozenset({"localhost"}), frozenset({"127.0.0.1"}))
    certificate = keep_certificate(folder / "tls" / "relay.pem", names_here, datetime.now(UTC))
    async with _serving(keys, folder) as base, _relay(base, certificate) as tls_base:
        yield Ground(
            base,
            tls_base,
            certificate,
            keys,
            _stage(folder),
            _speech(folder),
            _picture(folder),
        )


@asynccontextmanager
async def _serving(keys: dict[str, str], folder: Path) -> AsyncIterator[str]:
    config = folder / "server.toml"
    hashes = ", ".join(f'"{name}:{sha256_of(key)}"' for name, key in keys.items())
    config.write_text(
        f'[server]\nport = 0\n[engine]\nname = "echo"\n[rtc]\naddresses = ["127.0.0.1"]\n'
        f"[auth]\nkeys = [{hashes}]\n"
    )
    command = [sys.executable, "-m", "agent", "serve", "--config", str(config)]
    with (folder / "server.log").open("wb") as log:
        server = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=log
        )
    assert server.stdout is not None
    try:
        line = (await asyncio.wait_for(server.stdout.readline(), _START_S)).decode()
        assert "open " in line, (folder / "server.log").read_text()
        yield line.split("open ")[1].strip().rstrip("/")
    finally:
        if server.returncode is None:
            server.terminate()
        await server.communicate()


@asynccontextmanager
async def _relay(base: str, certificate: Path) -> AsyncIterator[str]:
    """TLS in front of the server, as a proxy does it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    port = int(base.rsplit(":", 1)[1])

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        ways = (_pump(reader, inner_writer), _pump(inner_reader, writer))
        await asyncio.gather(*ways)

    server = await asyncio.start_server(relay, "127.0.0.1", 0, ssl=context)
    async with server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One way, until it ends; what is cut off ends, too."""
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    except (ConnectionError, ssl.SSLError):
        pass
    finally:
        writer.close()


def _stage(folder: Path) -> Path:
    """A copy of the programs beside `node_modules`: Node looks for packages nowhere else."""
    staged = folder / "clients"
    shutil.copytree(CLIENTS, staged, ignore=shutil.ignore_patterns("__pycache__"))
    modules = require_node_module("@openai/agents-realtime").parents[1]
    os.symlink(modules, staged / "node_modules")
    return staged


def _speech(folder: Path) -> Path:
    path = folder / "speech.wav"
    write_wav(path, say(SENTENCE, SPEECH_RATE_HZ, level_dbfs=-20), SPEECH_RATE_HZ)
    return path


def _picture(folder: Path) -> Path:
    path = folder / "picture.png"
    Image.new("RGB", PICTURE_SIZE, (10, 90, 20)).save(path)
    return path
