"""A hub on this machine: what huggingface_hub asks of one, over real HTTP, with faults to order.

    with hub_server() as hub:
        hub.models["owner/name"] = {"config.json": b"{}", "model.safetensors": b"..."}
        Hub(hub.url, offline=False)

Files that end in .safetensors are announced as large files with their SHA-256, others by git's id.
"""

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c0ffee" + 34 * "0"
_API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class HubServer:
    """What it has, what is wrong with it, and what it was asked."""

    url: str = ""
    models: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Model → status and X-Error-Code of every answer about it."""
    corrupt: set[str] = field(default_factory=set)
    """Paths whose first byte is another than announced."""
    cuts: dict[str, list[int]] = field(default_factory=dict)
    """Path → after how many bytes the next answers break off; the connection is closed."""
    holds: dict[str, int] = field(default_factory=dict)
    """Path → after how many bytes an answer halts until the server ends."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Path → the size that is announced instead of its own."""
    ranges: list[tuple[str, int]] = field(default_factory=list)
    """(path, first byte) of every file that was asked for."""
    tokens: set[str | None] = field(default_factory=set)
    held: threading.Event = field(default_factory=threading.Event)
    """Set when an answer is halted."""
    ended: threading.Event = field(default_factory=threading.Event)

    def listing(self, model: str) -> dict[str, object]:
        siblings = [self._sibling(path, content) for path, content in self.models[model].items()]
        return {"id": model, "modelId": model, "sha": COMMIT, "siblings": siblings}

    def _sibling(self, path: str, content: bytes) -> dict[str, object]:
        size = self.sizes.get(path, len(content))
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        sibling: dict[str, object] = {"rfilename": path, "size": size, "blobId": git}
        if path.endswith(".safetensors"):
            digest = hashlib.sha256(content).hexdigest()
            sibling["lfs"] = {"sha256": digest, "size": size, "pointerSize": 130}
        return sibling

    def paths(self) -> list[str]:
        """What was asked for, each as often as it was."""
        return [path for path, _ in self.ranges]


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """A hub on a free port of loopback, until the end of the block."""
    state = HubServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("_Bound", (_Answers,), {"hub": state}))
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        state.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Answers(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.tokens.add(self.headers.get("Authorization"))
        if found := _API.fullmatch(path):
            self._model(found[1], found[2] or "main")
        elif found := _FILE.fullmatch(path):
            self._file(found[1], found[3])
        else:
            self._fault(404, "")

    def _model(self, model: str, revision: str) -> None:
        if model in self.hub.refusals:
            self._fault(*self.hub.refusals[model])
        elif model not in self.hub.models:
            self._fault(404, "RepoNotFound")
        elif revision not in ("main", COMMIT):
            self._fault(404, "RevisionNotFound")
        else:
            self._answer(200, json.dumps(self.hub.listing(model)).encode())

    def _file(self, model: str, path: str) -> None:
        content = self.hub.models[model][path]
        if path in self.hub.corrupt:
            content = bytes([content[0] ^ 1]) + content[1:]
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        self.hub.ranges.append((path, start))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # a client that was killed
            self._body(path, content[start:])

    def _body(self, path: str, content: bytes) -> None:
        if self.hub.cuts.get(path):
            self.wfile.write(content[: self.hub.cuts[path].pop(0)])
            self.close_connection = True
        elif path in self.hub.holds:
            self.wfile.write(content[: self.hub.holds[path]])
            self.wfile.flush()
            self.hub.held.set()
            self.hub.ended.wait()
            self.close_connection = True
        else:
            self.wfile.write(content)

    def _fault(self, status: int, code: str) -> None:
        self._answer(status, b"{}", code)

    def _answer(self, status: int, body: bytes, code: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: tests look at what was asked instead."""
