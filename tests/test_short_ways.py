"""The short ways of sound: what a packet holds, and what is left to aiortc."""

import asyncio
import struct
from types import SimpleNamespace
from typing import Any

import pylibsrtp
import pytest
from aiortc.rtp import HeaderExtensionsMap, RtpPacket

from agent.transport.short_ways import ShortWayIn, SoundPacket, payload_of
from tests.rig.caller import Caller
from tests.rig.server import running_server


class Locked:
    """Decryption that refuses what begins its payload with a cross."""

    def unprotect(self, data: bytes) -> bytes:
        if b"x" in data[12:]:
            raise pylibsrtp.Error("authentication failure")
        return data


class Counting:
    def __init__(self) -> None:
        self.count = 0

    def add(self, packet: SoundPacket) -> None:
        self.count += 1


class Way:
    """A short way with what lies at both its ends."""

    def __init__(self) -> None:
        self.long: list[bytes] = []
        self.taken: list[Any] = []
        self.statistics = Counting()
        connection = SimpleNamespace(data_received=lambda data, _: self.long.append(data))
        dtls = SimpleNamespace(transport=SimpleNamespace(_connection=connection), _rx_srtp=Locked())
        receiver: Any = SimpleNamespace(
            transport=dtls, _RTCRtpReceiver__remote_streams={5: self.statistics}
        )
        self.way = ShortWayIn(receiver, self.taken.append)
        self.came = connection.data_received


def packet(number: int, payload: bytes = b"sound", ssrc: int = 5, kind: int = 111) -> RtpPacket:
    return RtpPacket(kind, 0, number, number * 960, ssrc, payload)


def test_until_a_source_is_known_all_goes_the_long_way() -> None:
    way = Way()
    way.came(packet(1).serialize(), 1)
    assert len(way.long) == 1 and way.taken == []


def test_a_known_source_goes_the_short_way_and_is_counted_for_the_reports() -> None:
    way = Way()
    way.way.learn(packet(1))
    way.came(packet(2, b"more sound").serialize(), 1)
    assert way.taken == [SoundPacket(2, 1920, b"more sound")]
    assert way.long == [] and way.statistics.count == 1


@pytest.mark.parametrize(
    "data",
    [
        packet(2, ssrc=6).serialize(),
        packet(2, kind=96).serialize(),
        struct.pack("!BBHLL", 0x80, 200, 6, 0, 5) + bytes(16),
        b"\x16\xfe\xfd" + bytes(40),
        b"\x00\x01",
        b"",
    ],
    ids=["another source", "another kind", "a report", "DTLS", "too short", "nothing"],
)
def test_what_is_not_its_sound_stays_with_aiortc(data: bytes) -> None:
    way = Way()
    way.way.learn(packet(1))
    way.came(data, 1)
    assert way.long == [data] and way.taken == []


def test_what_cannot_be_decrypted_is_dropped() -> None:
    way = Way()
    way.way.learn(packet(1))
    way.came(packet(2, b"x").serialize(), 1)
    assert way.taken == [] and way.long == [] and way.statistics.count == 0


def test_the_payload_is_found_behind_sources_extensions_and_before_padding() -> None:
    rich = packet(3, b"the sound")
    rich.csrc = [7, 8]
    rich.extensions.mid = "0"
    rich.padding_size = 6
    extensions = HeaderExtensionsMap()
    extensions.configure(
        SimpleNamespace(
            headerExtensions=[SimpleNamespace(id=1, uri="urn:ietf:params:rtp-hdrext:sdes:mid")]
        )
    )
    assert payload_of(rich.serialize(extensions)) == b"the sound"


@pytest.mark.parametrize(
    "data",
    [
        bytes([0xB0]) + bytes(11),
        bytes([0x90]) + bytes(11) + b"\xbe\xde\xff\xff",
        bytes([0xA0]) + bytes(11) + b"\xff",
        bytes([0x8F]) + bytes(11),
    ],
)
def test_a_header_that_says_more_than_there_is_holds_nothing(data: bytes) -> None:
    assert payload_of(data) == b""


async def test_a_real_call_takes_both_short_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[SoundPacket] = []
    take = ShortWayIn._take

    def noting(self: ShortWayIn, data: bytes, head: SoundPacket) -> None:
        taken.append(head)
        take(self, data, head)

    monkeypatch.setattr(ShortWayIn, "_take", noting)
    async with running_server() as server:
        caller = Caller(server.url)
        await caller.dial()
        await caller.wait_for("output_audio_buffer.started")
        async with asyncio.timeout(10):
            while len(taken) < 50 or not caller.heard().any():
                await asyncio.sleep(0.05)
        await caller.close()
    numbers = [head.sequence_number for head in taken]
    assert len(set(numbers)) == len(numbers)
