"""The link between namespaces: what the relay does to packets, and a real link when root."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.rig.lossy_link import (
    SERVER_ADDRESS,
    Carried,
    Relay,
    Weather,
    can_make_links,
    lossy_link,
)

UDP = bytes([0x45]) + bytes(8) + bytes([17]) + bytes(20)
TCP = bytes([0x45]) + bytes(8) + bytes([6]) + bytes(20)
COUNT = 5000


def through(relay: Relay, packets: list[bytes], step_s: float = 0.02) -> list[bytes]:
    """What arrives within a second after the last packet, in the order of arrival."""
    came: list[bytes] = []
    for number, packet in enumerate(packets):
        relay.take(packet, 7, number * step_s)
        came += [arrived for _, arrived in relay.due(number * step_s)]
    return came + [arrived for _, arrived in relay.due(len(packets) * step_s + 1)]


def numbered(count: int) -> list[bytes]:
    return [UDP + number.to_bytes(2, "big") for number in range(count)]


def test_udp_loses_its_share_and_everything_else_passes() -> None:
    relay = Relay(Weather(loss=5), seed=1)
    came = through(relay, [UDP, TCP] * COUNT)
    assert came.count(TCP) == COUNT
    assert came.count(UDP) / COUNT == pytest.approx(0.95, abs=0.01)
    report = relay.report()
    assert report == Carried(len(came), COUNT, 2 * COUNT - len(came))
    assert relay.report() == Carried(0, 0, 0)


def test_bursts_take_neighbours() -> None:
    lost = sorted(
        {*numbered(COUNT)} - {*through(Relay(Weather(loss=10, burst=5), seed=1), numbered(COUNT))}
    )
    assert len(lost) / COUNT == pytest.approx(0.1, abs=0.03)
    numbers = [int.from_bytes(packet[-2:], "big") for packet in lost]
    rows = [number for number in numbers if number - 1 not in numbers]
    assert all({row + step for step in range(5)} <= {*numbers} for row in rows if row < COUNT - 5)


def test_delay_holds_packets_back() -> None:
    relay = Relay(Weather(delay_ms=30), seed=1)
    relay.take(UDP, 7, 1.0)
    assert list(relay.due(1.029)) == []
    assert relay.next_due_s() == pytest.approx(1.03)
    assert list(relay.due(1.031)) == [(7, UDP)]
    assert relay.next_due_s() is None


def test_jitter_reorders_only_when_asked_to() -> None:
    packets = numbered(500)
    assert through(Relay(Weather(jitter_ms=80), seed=1), packets) == packets
    reordered = through(Relay(Weather(jitter_ms=80, reorder=True), seed=1), packets)
    assert reordered != packets
    assert sorted(reordered) == packets


LISTEN = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 9000))
s.settimeout(5)
print("listening", flush=True)
for _ in range(2):
    data, sender = s.recvfrom(100)
    print(data.decode(), flush=True)
    s.sendto(b"back", sender)
"""
CALL = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout({patience_s})
s.sendto(b"{text}", ("{host}", 9000))
print(s.recvfrom(100)[0].decode())
"""


def _namespaces() -> str:
    return subprocess.run(["ip", "netns"], check=True, capture_output=True, text=True).stdout


def _call(script: Path, text: str, patience_s: float) -> str:
    code = CALL.format(text=text, host=SERVER_ADDRESS, patience_s=patience_s)
    run = subprocess.run([script, "-c", code], check=False, capture_output=True, text=True)
    return run.stdout


@pytest.mark.skipif(not can_make_links(), reason="needs root and /dev/net/tun")
def test_a_real_link_carries_both_ways_obeys_and_leaves_nothing(tmp_path: Path) -> None:
    with lossy_link() as link:
        assert link.client in _namespaces()
        caller = link.wrapper(link.client, sys.executable, tmp_path)
        listener = subprocess.Popen(
            link.command(link.server, sys.executable, "-c", LISTEN),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert listener.stdout is not None
        assert listener.stdout.readline() == "listening\n"
        assert _call(caller, "first", 5) == "back\n"
        link.set(Weather(loss=100))
        assert _call(caller, "lost", 0.2) == ""
        assert link.set(Weather()).lost == 1
        assert _call(caller, "second", 5) == "back\n"
        assert listener.communicate()[0] == "first\nsecond\n"
    assert link.client not in _namespaces()
    assert link.server not in _namespaces()
