"""What strangers and peers without manners can do to a call, and what they cannot."""

import asyncio
import logging
import os
import re
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import aioice
import aioice.stun
import pytest
from aiortc import RTCPeerConnection
from aiortc.rtcsctptransport import DataChunk
from aiortc.rtp import RtcpByePacket, RtpPacket

from agent.api.realtime import CALLS
from agent.transport import peer_bounds
from agent.transport.peer_bounds import (
    MOST_ADDRESSES,
    MOST_CHANNELS,
    MOST_DATAGRAMS,
    MOST_PIECES,
    MOST_SOURCES,
    bound_addresses,
    bound_messages,
)
from tests.rig.caller import Caller
from tests.rig.server import Running, running_server

FIRST, LAST = 2, 1
WINDOW = 1 << 20


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    async with running_server() as running:
        yield running


@pytest.fixture
async def caller(server: Running) -> AsyncIterator[Caller]:
    dialled = Caller(server.url)
    await dialled.dial()
    yield dialled
    await dialled.close()


def served(server: Running) -> RTCPeerConnection:
    """The server's side of its one call."""
    (live,) = server.app[CALLS]._live.values()
    peer: RTCPeerConnection = live.transport._peer  # type: ignore[attr-defined]
    return peer


async def still_talks(caller: Caller) -> None:
    """What is asked for is done."""
    part = {"type": "input_text", "text": "still there?"}
    item = {"type": "message", "role": "user", "content": [part]}
    before = len(caller.events)
    caller.send({"type": "conversation.item.create", "item": item})
    await caller.wait_for("conversation.item.done", after=before)


# ---- strangers --------------------------------------------------------------------------------


def odd_check(name: int, value: bytes) -> bytes:
    """A STUN message with an attribute of a length that it cannot have."""
    attribute = struct.pack("!HH", name, len(value)) + value + bytes(-len(value) % 4)
    return struct.pack("!HHI", 1, len(attribute), 0x2112A442) + os.urandom(12) + attribute


async def test_a_stranger_s_datagrams_end_no_call_and_write_nothing_down(
    server: Running, caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    found = re.search(r"a=candidate:\S+ 1 udp \d+ (127\.0\.0\.1) (\d+)", caller.answer)
    assert found is not None
    odd = [odd_check(0x24, b"ab"), odd_check(0x802A, b""), odd_check(0x25, b"x" * 3)]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for data in (b"", b"\x80", b"\x16", b"\x16" * 40, b"\x80" * 12, bytes(30), *odd):
            stranger.sendto(data, (found[1], int(found[2])))
            await still_talks(caller)
    assert server.calls == 1
    assert caplog.messages == []


async def test_datagrams_that_nobody_looks_at_do_not_pile_up(server: Running) -> None:
    early = Caller(server.url)
    offer = await early.offer()
    answered = await server.app[CALLS].open(offer)
    connection = served(server).getTransceivers()[0].receiver.transport.transport._connection
    for _ in range(2 * MOST_DATAGRAMS):
        aioice.Connection.data_received(connection, b"x", 1)
    assert connection._queue.qsize() == MOST_DATAGRAMS
    await server.app[CALLS].hang_up(answered.call_id)
    await early.close()


# ---- a peer of many addresses -----------------------------------------------------------------


async def ask(connection: aioice.Connection, address: tuple[str, int], port: int) -> int:
    """Check `connection` from another socket, as its peer → the port that it was sent from."""
    message = aioice.stun.Message(aioice.stun.Method.BINDING, aioice.stun.Class.REQUEST)
    message.attributes["USERNAME"] = f"{connection.local_username}:{connection.remote_username}"
    message.attributes["PRIORITY"] = 1
    message.attributes["ICE-CONTROLLING"] = 1
    message.add_message_integrity(connection.local_password.encode())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.setblocking(False)
        peer.bind(("127.0.0.1", port))
        await asyncio.get_running_loop().sock_sendto(peer, bytes(message), address)
        async with asyncio.timeout(60):
            await asyncio.get_running_loop().sock_recv(peer, 1500)
        return int(peer.getsockname()[1])


async def test_a_peer_has_so_many_addresses_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_bounds, "MOST_ADDRESSES", 8)
    assert MOST_ADDRESSES > 100, "what is changed here is meant for real peers"
    connection = aioice.Connection(ice_controlling=False, use_ipv6=False)
    bound_addresses(connection)
    await connection.gather_candidates()
    own = connection.local_candidates[0]
    connection.remote_username, connection.remote_password = "peer", "p" * 22
    connecting = asyncio.ensure_future(connection.connect())
    await asyncio.sleep(0)
    address = (own.host, own.port)
    ports = [await ask(connection, address, 0) for _ in range(12)]
    assert len(connection.remote_candidates) == 8
    known = [each.port for each in connection.remote_candidates]
    await ask(connection, address, known[0])
    assert [each.port for each in connection.remote_candidates] == known
    assert set(known) < set(ports)
    await connection.close()
    await asyncio.wait((connecting,))
    connecting.exception()


# ---- a peer of many sources -------------------------------------------------------------------


async def test_a_call_has_so_many_sources_and_no_more(server: Running, caller: Caller) -> None:
    sender, receiver = (
        peer.getTransceivers()[0].sender
        if peer is caller.peer
        else peer.getTransceivers()[0].receiver
        for peer in (caller.peer, served(server))
    )
    codec = caller.peer.getTransceivers()[0]._codecs[0].payloadType
    sources = receiver._RTCRtpReceiver__remote_streams
    for _ in range(500):
        if sender._ssrc in sources:
            break
        await asyncio.sleep(0.02)
    assert sender._ssrc in sources, "its microphone is heard"
    for source in range(1, 3 * MOST_SOURCES):
        packet = RtpPacket(codec, 0, 1, 0, source, b"\xf8\xff\xfe")
        await sender.transport._send_rtp(packet.serialize())
        await sender.transport._send_rtp(bytes(RtcpByePacket(sources=[1000 + source])))
    await still_talks(caller)
    assert MOST_SOURCES // 2 <= len(sources) <= MOST_SOURCES
    assert len(receiver.transport._rtp_router.ssrc_table) <= MOST_SOURCES
    assert sender._ssrc in sources, "the first is still heard"


# ---- a peer of endless messages ---------------------------------------------------------------


def piece(tsn: int, *, stream: int = 0, flags: int = FIRST, data: bytes = b"x") -> DataChunk:
    made = DataChunk(flags=flags)
    made.tsn, made.stream_id, made.user_data = tsn, stream, data
    return made


@pytest.fixture
async def sctp() -> AsyncIterator[Any]:
    """One that has received all before number 1."""
    peer = RTCPeerConnection()
    peer.createDataChannel("any")
    assert peer.sctp is not None
    peer.sctp._last_received_tsn = 0
    bound_messages(peer.sctp)
    yield peer.sctp
    await peer.close()


async def test_a_message_without_end_fills_no_more_than_the_window(sctp: Any) -> None:
    for tsn in range(1, 1500):
        await sctp._receive_data_chunk(piece(tsn, data=bytes(1200)))
    kept = sum(len(each.user_data) for each in sctp._inbound_streams[0].reassembly)
    assert WINDOW - 1200 < kept <= WINDOW


async def test_a_message_of_countless_pieces_is_not_kept(sctp: Any) -> None:
    for tsn in range(1, 2 * MOST_PIECES):
        await sctp._receive_data_chunk(piece(tsn))
    assert len(sctp._inbound_streams[0].reassembly) == MOST_PIECES


async def test_a_peer_has_so_many_channels(sctp: Any) -> None:
    for tsn in range(1, 3 * MOST_CHANNELS):
        await sctp._receive_data_chunk(piece(tsn, stream=tsn))
    assert len(sctp._inbound_streams) == MOST_CHANNELS


async def test_what_fills_a_gap_is_taken_however_much_waits_behind_it(sctp: Any) -> None:
    for tsn in range(2, 3 * MOST_PIECES):
        await sctp._receive_data_chunk(piece(tsn, flags=FIRST | LAST | 4))
    assert len(sctp._sack_misordered) == MOST_PIECES
    await sctp._receive_data_chunk(piece(1, flags=FIRST | LAST | 4))
    assert sctp._sack_misordered == set() and sctp._last_received_tsn == MOST_PIECES + 1


async def test_what_a_peer_sends_without_end_it_sends_in_vain(
    server: Running, caller: Caller
) -> None:
    sending, receiving = caller.peer.sctp, served(server).sctp
    assert sending is not None and receiving is not None
    more = 100
    async with asyncio.timeout(60):
        while more:
            more -= receiving._advertised_rwnd < 1100
            sending._local_tsn = (sending._local_tsn + 1) % (1 << 32)
            await sending._send_chunk(piece(sending._local_tsn, stream=5, data=bytes(1100)))
            await asyncio.sleep(0)
    assert receiving._advertised_rwnd >= 0
    assert server.calls == 1
