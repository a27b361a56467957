"""The short ways of sound: what a packet holds, and what is left to aiortc."""

import asyncio
import struct
from types import SimpleNamespace
from typing import Any

import pylibsrtp
import pytest
from aiortc import RTCPeerConnection
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from aiortc.rtp import (
    RTCP_RTPFB_NACK,
    HeaderExtensionsMap,
    RtcpReceiverInfo,
    RtcpRrPacket,
    RtcpRtpfbPacket,
    RtpPacket,
)

from agent.transport.repair import RedFormat
from agent.transport.short_ways import (
    ShortWayIn,
    ShortWayOut,
    SoundPacket,
    payload_of,
    speak_through,
)
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


# ---- out --------------------------------------------------------------------------------------

OPUS = RTCRtpCodecParameters(mimeType="audio/opus", clockRate=48_000, channels=2, payloadType=111)


class Saying(MediaStreamTrack):
    """Has nothing to say of its own accord."""

    kind = "audio"

    async def recv(self) -> Any:
        raise MediaStreamError

    async def next_payload(self) -> tuple[bytes, int]:
        raise MediaStreamError

    def note_sent(self, timestamp: int) -> None:
        pass


class Line:
    """A sender of aiortc's whose datagrams are kept instead of encrypted."""

    def __init__(self, red: RedFormat | None = None) -> None:
        self.peer = RTCPeerConnection()
        self.voice = Saying()
        self.sender = self.peer.addTrack(self.voice)
        self.datagrams: list[bytes] = []
        self.open = True
        self.sender.transport._send_rtp = self._keep
        self.stream: ShortWayOut = speak_through(self.sender, self.voice, red)
        self.stream.begin(OPUS)

    async def _keep(self, data: bytes) -> None:
        if not self.open:
            raise ConnectionError
        self.datagrams.append(data)

    async def say(self, number: int, word: bytes) -> RtpPacket:
        await self.stream.send(word, 960 * number)
        return RtpPacket.parse(self.datagrams[-1])

    async def hear(self, report: RtcpRrPacket | RtcpRtpfbPacket) -> None:
        """What comes from the listener, by the way that aiortc takes."""
        self.sender.transport._rtp_router.register_sender(self.sender, ssrc=self.sender._ssrc)
        await self.sender.transport._handle_rtcp_data(bytes(report))

    async def miss(self, *numbers: int) -> None:
        """The listener asks for packets by their number."""
        ssrc = self.sender._ssrc
        await self.hear(
            RtcpRtpfbPacket(RTCP_RTPFB_NACK, 9, ssrc, [each & 0xFFFF for each in numbers])
        )

    async def count(self, highest: int, lost: int) -> None:
        """The listener reports how much it has lost so far."""
        info = RtcpReceiverInfo(self.sender._ssrc, 0, lost, highest, 0, 0, 0)
        await self.hear(RtcpRrPacket(9, [info]))


async def test_what_the_listener_misses_is_sent_again_as_it_was() -> None:
    line = Line()
    packets = [await line.say(number, b"word %d" % number) for number in range(4)]
    first = line.datagrams[1]
    await line.miss(packets[1].sequence_number, packets[3].sequence_number + 9)
    assert line.datagrams[4:] == [first]
    line.open = False
    await line.miss(packets[2].sequence_number)
    await line.peer.close()


async def test_packets_are_said_twice_while_some_are_lost() -> None:
    line = Line(RedFormat(63, 111))
    first = await line.say(0, b"zero")
    assert (first.payload_type, first.payload) == (111, b"zero")
    await line.count(first.sequence_number, 0)
    await line.count(first.sequence_number + 100, 5)
    assert line.stream.loss == pytest.approx(5 / 101)
    doubled = await line.say(1, b"one")
    assert doubled.payload_type == 63 and doubled.marker == 1
    assert doubled.payload.endswith(b"\x6fzeroone"), "the copy made before it was needed"
    assert doubled.timestamp - first.timestamp & 0xFFFF_FFFF == 960
    await line.count(first.sequence_number + 400, 5)
    plain = await line.say(2, b"two")
    assert (plain.payload_type, plain.payload) == (111, b"two")
    await line.peer.close()


async def test_what_was_asked_for_counts_as_lost_though_it_came_in_the_end() -> None:
    line = Line(RedFormat(63, 111))
    packets = [await line.say(number, b"word") for number in range(50)]
    await line.miss(packets[10].sequence_number, packets[20].sequence_number)
    await line.count(packets[-1].sequence_number, 0)
    assert line.stream.loss == pytest.approx(0.5 * 2 / 50)
    assert (await line.say(50, b"word")).payload_type == 63
    await line.peer.close()


async def test_without_a_format_for_it_nothing_is_said_twice() -> None:
    line = Line()
    packet = await line.say(0, b"zero")
    await line.count(packet.sequence_number + 100, 50)
    assert line.stream.loss > 0.4
    assert (await line.say(1, b"one")).payload == b"one"
    await line.peer.close()


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
        async with asyncio.timeout(60):
            while len(taken) < 50 or not caller.heard().any():
                await asyncio.sleep(0.05)
        await caller.close()
    numbers = [head.sequence_number for head in taken]
    assert len(set(numbers)) == len(numbers)
