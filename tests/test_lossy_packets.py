"""Packets are lost, late and out of order exactly as written, and nothing else is touched."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from tests.rig.caller import Caller
from tests.rig.lossy_packets import (
    HOST,
    Clean,
    LossPattern,
    LossyRelay,
    RandomLoss,
    Way,
    Written,
    burst,
    lossy_relay,
)
from tests.rig.server import running_server

STUN = bytes([0, 1]) + bytes(18)
DTLS = bytes([22, 254, 253]) + bytes(20)
RTCP = bytes([0x80, 200]) + bytes(26)


def rtp(number: int) -> bytes:
    return bytes([0x80, 0x80 | 111]) + number.to_bytes(2, "big") + bytes(8)


def fates(pattern: LossPattern, count: int) -> list[float | None]:
    return [pattern.delay_s(number) for number in range(count)]


def arrivals(way: Way, count: int, step_s: float = 0.02) -> list[float | None]:
    return [way.due_s(number * step_s, rtp(number)) for number in range(count)]


def test_a_written_pattern_loses_what_is_written() -> None:
    pattern = Written(frozenset({1, 3}), {2: 50.0})
    assert fates(pattern, 5) == [0.0, None, 0.05, None, 0.0]
    assert fates(burst(2, 2), 5) == [0.0, 0.0, None, None, 0.0]


def test_random_loss_loses_its_share_and_repeats_itself_with_its_seed() -> None:
    drawn = fates(RandomLoss(0.05, seed=1), 20_000)
    assert drawn.count(None) / 20_000 == pytest.approx(0.05, abs=0.005)
    assert drawn == fates(RandomLoss(0.05, seed=1), 20_000)
    assert drawn != fates(RandomLoss(0.05, seed=2), 20_000)


def test_bursts_keep_the_share_and_come_in_rows() -> None:
    drawn = fates(RandomLoss(0.1, seed=1, burst=5), 20_000)
    assert drawn.count(None) / 20_000 == pytest.approx(0.1, abs=0.02)
    rows = "".join("x" if fate is None else "." for fate in drawn).split(".")
    assert {len(row) % 5 for row in rows if row} == {0}


def test_jitter_stays_within_its_bounds_and_uses_them() -> None:
    drawn = fates(RandomLoss(seed=1, delay_ms=20, jitter_ms=50), 1000)
    late = [fate for fate in drawn if fate is not None]
    assert min(late) == pytest.approx(0.02, abs=0.001)
    assert max(late) == pytest.approx(0.07, abs=0.001)


def test_a_late_packet_holds_those_behind_it_unless_reordering_is_asked_for() -> None:
    way = Way()
    way.follow(Written(late_ms={1: 50.0}))
    assert arrivals(way, 4) == pytest.approx([0.0, 0.07, 0.07, 0.07])
    way = Way()
    way.follow(Written(late_ms={1: 50.0}), reorder=True)
    assert arrivals(way, 4) == pytest.approx([0.0, 0.07, 0.04, 0.06])


def test_only_media_is_counted_and_lost() -> None:
    way = Way()
    way.follow(RandomLoss(1.0, seed=1))
    assert [way.due_s(1.0, packet) for packet in (STUN, DTLS, RTCP)] == [1.0, 1.0, 1.0]
    assert way.due_s(1.0, rtp(0)) is None
    assert (way.passed, way.lost) == (0, 1)


def test_a_new_pattern_counts_from_its_beginning() -> None:
    way = Way()
    arrivals(way, 7)
    way.follow(burst(1, 1))
    assert arrivals(way, 3, step_s=1.0)[1] is None
    assert (way.passed, way.lost) == (2, 1)


class _Inbox(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.packets: asyncio.Queue[tuple[bytes, tuple[str, int]]] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.packets.put_nowait((data, addr))


@dataclass
class _Ends:
    relay: LossyRelay
    client: asyncio.DatagramTransport
    client_inbox: _Inbox
    server: asyncio.DatagramTransport
    server_inbox: _Inbox


@pytest.fixture
async def ends(nothing_left_behind: None) -> AsyncIterator[_Ends]:
    """A client and a server, both bare sockets, with a relay between them."""
    loop = asyncio.get_running_loop()
    client, client_inbox = await loop.create_datagram_endpoint(_Inbox, local_addr=(HOST, 0))
    server, server_inbox = await loop.create_datagram_endpoint(_Inbox, local_addr=(HOST, 0))
    port = server.get_extra_info("sockname")[1]
    async with lossy_relay() as relay:
        answer = f"v=0\r\nm=audio 9\r\na=candidate:x 1 UDP 1 {HOST} {port} typ host\r\n"
        assert f"{HOST} {relay.port} typ host" in relay.answer(answer)
        yield _Ends(relay, client, client_inbox, server, server_inbox)
    client.close()
    server.close()
    await asyncio.sleep(0)


async def test_packets_go_both_ways_but_for_those_lost(ends: _Ends) -> None:
    ends.relay.to_server.follow(burst(1, 2))
    for number in range(5):
        ends.client.sendto(rtp(number), (HOST, ends.relay.port))
    came = [await ends.server_inbox.packets.get() for _ in range(3)]
    assert [packet for packet, _ in came] == [rtp(0), rtp(3), rtp(4)]
    ends.relay.to_client.follow(Written(frozenset({0}), {1: 5.0}))
    for number in range(3):
        ends.server.sendto(rtp(number), came[0][1])
    back = [(await ends.client_inbox.packets.get())[0] for _ in range(2)]
    assert back == [rtp(1), rtp(2)], "late, but in order"


async def test_no_candidate_leads_around_the_relay(ends: _Ends) -> None:
    sdp = "v=0\r\nm=audio 9\r\na=candidate:1 1 udp 1 10.0.0.1 5 typ host\r\na=mid:0\r\n"
    assert ends.relay.offer(sdp) == "v=0\r\nm=audio 9\r\na=mid:0\r\n"
    two = (
        "v=0\r\nm=audio 9\r\na=mid:0\r\na=candidate:1 1 udp 1 10.0.0.1 5 typ host\r\nm=video 9\r\n"
    )
    assert ends.relay.answer(two).count("candidate") == 2
    assert "10.0.0.1" not in ends.relay.answer(two)
    with pytest.raises(ValueError, match="no host candidate"):
        ends.relay.answer("v=0\r\nm=audio 9\r\n")


async def test_a_whole_call_goes_through_the_relay() -> None:
    async with running_server() as server, lossy_relay() as relay:
        caller = Caller(server.url)
        offer, accept = caller.offer, caller.accept
        caller.offer = lambda: _after(offer(), relay.offer)  # type: ignore[method-assign]
        caller.accept = lambda answer: accept(relay.answer(answer))  # type: ignore[method-assign]
        relay.to_client.follow(Clean(delay_ms=5))
        await caller.dial()
        await caller.wait_for("output_audio_buffer.started")
        assert relay.to_client.passed > 0
        assert relay.to_server.passed > 0
        await caller.close()


async def _after(offer, change):  # type: ignore[no-untyped-def]
    return change(await offer)
