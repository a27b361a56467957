"""A lossy network between two namespaces, for kernels without sch_netem; needs root.

Two network namespaces are joined by TUN devices whose packets are relayed by this file, run as a
program of its own: `python -m tests.rig.lossy_link --loss 5 --delay-ms 10 --jitter-ms 50`. UDP is
delayed, lost and reordered, everything else only delayed. `lossy_link()` starts and stops it and
cleans up behind it; what runs in a namespace is started by `Link.command`, a Chromium by the script
that `Link.wrapper` writes.

One line of JSON on standard input changes the weather ({"loss": 1, "jitter_ms": 0}); each is
answered by a line of what was carried and lost since the last.
"""

import argparse
import ctypes
import fcntl
import heapq
import json
import os
import random
import selectors
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import IO

CLIENT_ADDRESS = "10.77.0.2"
SERVER_ADDRESS = "10.77.0.1"

_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x1001
_CLONE_NEWNET = 0x40000000
_MTU = 1400
_MAX_UNDERWAY = 16_384
_UDP = 17
_START_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Weather:
    """How the link is: `loss` in percent of UDP packets, lost `burst` in a row."""

    loss: float = 0.0
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    burst: int = 1
    reorder: bool = False


@dataclass(frozen=True, slots=True)
class Carried:
    """Packets since the last report."""

    forwarded: int
    udp: int
    lost: int


# ---- for whoever uses the link ------------------------------------------------------------------


class Link:
    """A running link. Namespaces `client` and `server`; addresses as at the top of the file."""

    def __init__(self, program: "subprocess.Popen[str]", client: str, server: str) -> None:
        self._program = program
        self.client = client
        self.server = server

    def set(self, weather: Weather) -> Carried:
        """Change the weather; what was carried under the old."""
        pipe_in, pipe_out = _pipes(self._program)
        pipe_in.write(json.dumps(asdict(weather)) + "\n")
        pipe_in.flush()
        return Carried(**json.loads(pipe_out.readline()))

    def command(self, namespace: str, *command: str) -> list[str]:
        """The command line that runs `command` inside `namespace`."""
        return ["ip", "netns", "exec", namespace, *command]

    def wrapper(self, namespace: str, program: str, folder: Path) -> Path:
        """An executable script that runs `program` inside `namespace` with any arguments."""
        script = folder / f"{Path(program).name}-{namespace}"
        script.write_text(f'#!/bin/sh\nexec ip netns exec {namespace} {program} "$@"\n')
        script.chmod(0o755)
        return script


def can_make_links() -> bool:
    """Whether this process may create namespaces and TUN devices."""
    return os.geteuid() == 0 and os.access("/dev/net/tun", os.R_OK | os.W_OK)


@contextmanager
def lossy_link(weather: Weather | None = None, *, seed: int = 1) -> Iterator[Link]:
    """A link between two new namespaces, gone when the context is left."""
    client, server = (f"{end}{os.getpid()}" for end in ("vac", "vas"))
    command = [sys.executable, "-m", __name__, f"--client={client}", f"--server={server}"]
    pipe = subprocess.PIPE
    root = Path(__file__).resolve().parents[2]
    program = subprocess.Popen(
        [*command, f"--seed={seed}"], stdin=pipe, stdout=pipe, text=True, cwd=root
    )
    try:
        if _pipes(program)[1].readline() != "ready\n":
            raise OSError("the link did not come up; it needs root and /dev/net/tun")
        link = Link(program, client, server)
        link.set(weather or Weather())
        yield link
    finally:
        for end in _pipes(program):
            end.close()
        try:
            program.wait(_START_PATIENCE_S)
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait()
        _remove_namespaces(client, server)


def _pipes(program: "subprocess.Popen[str]") -> tuple[IO[str], IO[str]]:
    assert program.stdin is not None and program.stdout is not None
    return program.stdin, program.stdout


# ---- the relay itself ---------------------------------------------------------------------------


class Relay:
    """Carries packets between two TUN devices under the weather of the moment."""

    def __init__(self, weather: Weather, seed: int) -> None:
        self.weather = weather
        self._random = random.Random(seed)
        self._underway: list[tuple[float, int, int, bytes]] = []
        self._entered = 0
        self._last_due_s: dict[int, float] = {}
        self._left_of_burst: dict[int, int] = {}
        self._carried = Carried(0, 0, 0)

    def take(self, packet: bytes, to: int, now_s: float) -> None:
        """A packet came in for device `to`: it is lost, or gets its time of arrival."""
        is_udp = len(packet) > 9 and packet[0] >> 4 == 4 and packet[9] == _UDP
        due_s = now_s + self.weather.delay_ms / 1000
        if is_udp:
            self._carried = replace(self._carried, udp=self._carried.udp + 1)
            if self._is_lost(to):
                self._carried = replace(self._carried, lost=self._carried.lost + 1)
                return
            due_s = self._jittered(due_s, to)
        if len(self._underway) < _MAX_UNDERWAY:
            self._entered += 1
            heapq.heappush(self._underway, (due_s, self._entered, to, packet))

    def due(self, now_s: float) -> Iterator[tuple[int, bytes]]:
        """The packets whose time has come, each with the device to write it to."""
        while self._underway and self._underway[0][0] <= now_s:
            _, _, to, packet = heapq.heappop(self._underway)
            self._carried = replace(self._carried, forwarded=self._carried.forwarded + 1)
            yield to, packet

    def next_due_s(self) -> float | None:
        """When the next packet is due."""
        return self._underway[0][0] if self._underway else None

    def report(self) -> Carried:
        """What was carried since the last report."""
        carried, self._carried = self._carried, Carried(0, 0, 0)
        return carried

    def _is_lost(self, to: int) -> bool:
        if self._left_of_burst.get(to, 0):
            self._left_of_burst[to] -= 1
            return True
        weather = self.weather
        if self._random.random() * 100 >= weather.loss / weather.burst:
            return False
        self._left_of_burst[to] = weather.burst - 1
        return True

    def _jittered(self, due_s: float, to: int) -> float:
        due_s += self._random.random() * self.weather.jitter_ms / 1000
        if self.weather.reorder:
            return due_s
        self._last_due_s[to] = max(due_s, self._last_due_s.get(to, 0.0))
        return self._last_due_s[to]


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the namespaces, carry packets until standard input is closed, remove them."""
    options = _parser().parse_args(arguments)
    weather = Weather(**{field.name: getattr(options, field.name) for field in fields(Weather)})
    try:
        for namespace in (options.client, options.server):
            subprocess.run(["ip", "netns", "add", namespace], check=True)
        client = _open_tun(options.client, "tun-client", CLIENT_ADDRESS)
        server = _open_tun(options.server, "tun-server", SERVER_ADDRESS)
        with suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(5))
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        _carry(Relay(weather, options.seed), client, server)
    finally:
        _remove_namespaces(options.client, options.server)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--client", default="vaclient", help="name of the client's namespace")
    parser.add_argument("--server", default="vaserver", help="name of the server's namespace")
    parser.add_argument("--loss", type=float, default=0.0, help="percent of UDP packets")
    parser.add_argument("--delay-ms", type=float, default=0.0)
    parser.add_argument("--jitter-ms", type=float, default=0.0)
    parser.add_argument("--burst", type=int, default=1, help="so many are lost in a row")
    parser.add_argument("--reorder", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    return parser


def _remove_namespaces(*namespaces: str) -> None:
    for namespace in namespaces:
        subprocess.run(["ip", "netns", "delete", namespace], check=False, stderr=subprocess.DEVNULL)


def _open_tun(namespace: str, device: str, address: str) -> int:
    """A TUN device inside `namespace`, opened from outside: a device stays where it was made."""
    here = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    _enter(there)
    try:
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _IFF_TUN_NO_PI))
        for setting in (
            f"addr add {address}/24 dev {device}",
            f"link set {device} mtu {_MTU} txqueuelen 1000 up",
            "link set lo up",
            f"route add default dev {device}",
        ):
            subprocess.run(["ip", *setting.split()], check=True)
    finally:
        _enter(here)
        os.close(here)
        os.close(there)
    return tun


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _carry(relay: Relay, client: int, server: int) -> None:
    selector = selectors.DefaultSelector()
    selector.register(client, selectors.EVENT_READ, server)
    selector.register(server, selectors.EVENT_READ, client)
    selector.register(0, selectors.EVENT_READ, None)
    os.set_blocking(0, False)
    while True:
        for to, packet in relay.due(time.monotonic()):
            with suppress(OSError):  # a full device loses packets, as networks do
                os.write(to, packet)
        due_s = relay.next_due_s()
        patience_s = 0.5 if due_s is None else max(0.0, due_s - time.monotonic())
        for key, _ in selector.select(patience_s):
            if key.data is not None:
                _read_all(relay, key.fd, key.data)
            elif not _obey(relay):
                return


def _read_all(relay: Relay, device: int, to: int) -> None:
    with suppress(BlockingIOError):
        while True:
            relay.take(os.read(device, 2048), to, time.monotonic())


def _obey(relay: Relay) -> bool:
    """Read new weather; False at the end of standard input."""
    lines = os.read(0, 4096).splitlines()
    for line in lines:
        relay.weather = replace(relay.weather, **json.loads(line))
        sys.stdout.write(json.dumps(asdict(relay.report())) + "\n")
        sys.stdout.flush()
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
