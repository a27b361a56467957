"""The places of aiortc that are taken over."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import aioice.ice
import pytest
from aiortc import RTCPeerConnection, RTCRtpReceiver, RTCRtpSender
from aiortc.codecs.vpx import Vp8Decoder
from aiortc.rtp import RtpPacket

from agent.errors import ConfigError
from agent.transport import aiortc_inside, peer_bounds, short_ways, video_inside


async def test_the_installed_aiortc_fits() -> None:
    await aiortc_inside.check_fit()


async def test_a_receiver_without_the_place_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(aiortc_inside, "_JITTER_BUFFER", "_RTCRtpReceiver__elsewhere")
    with pytest.raises(ConfigError, match=r"aiortc [\d.]+ does not fit: .*jitter buffer"):
        await aiortc_inside.check_fit()


async def test_a_receiver_that_goes_another_way_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def elsewhere(self: RTCRtpReceiver, packet: object, arrival_time_ms: int) -> None:
        pass

    monkeypatch.setattr(RTCRtpReceiver, "_handle_rtp_packet", elsewhere)
    with pytest.raises(ConfigError, match="packets do not come"):
        await aiortc_inside.check_fit()


async def test_a_sender_that_runs_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(RTCRtpSender, "_run_rtp")
    with pytest.raises(ConfigError, match="does not run as it did"):
        await aiortc_inside.check_fit()


@pytest.mark.parametrize("name", ["STARTED", "EXITED", "EXTENSIONS", "MID"])
async def test_a_sender_that_hides_what_packets_are_made_of_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(short_ways, name, "_RTCRtpSender__elsewhere")
    with pytest.raises(ConfigError, match=r"aiortc [\d.]+ does not fit: .*__elsewhere"):
        await aiortc_inside.check_fit()


async def test_datagrams_that_are_handed_over_elsewhere_are_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(short_ways, "RECEIVED", "data_came")
    monkeypatch.setattr(aioice.Connection, "data_came", lambda *_: None, raising=False)
    with pytest.raises(ConfigError, match="datagrams do not come"):
        await aiortc_inside.check_fit()


async def test_a_sender_that_hides_its_timestamp_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(aiortc_inside, "_RTP_TIMESTAMP", "_RTCRtpSender__gone")
    with pytest.raises(ConfigError, match="does not fit"):
        await aiortc_inside.check_fit()


@pytest.mark.parametrize(
    "name", ["_CODECS", "_DECODER_QUEUE", "_DECODER_THREAD", "_MISSING", "_TIMESTAMPS"]
)
async def test_a_receiver_whose_decoder_is_elsewhere_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(video_inside, name, "_RTCRtpReceiver__elsewhere")
    with pytest.raises(ConfigError, match=r"aiortc [\d.]+ does not fit: .*__elsewhere"):
        await aiortc_inside.check_fit()


async def test_a_receiver_that_shows_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Vp8Decoder, "decode", lambda self, encoded: [])
    with pytest.raises(ConfigError, match="pictures do not come"):
        await aiortc_inside.check_fit()


async def test_an_aiortc_that_reads_sections_otherwise_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(aiortc_inside, "find_common_codecs", lambda local, remote: [])
    with pytest.raises(ConfigError, match="does not find VP8"):
        await aiortc_inside.check_fit()
    monkeypatch.setattr(aiortc_inside, "find_common_codecs", lambda local, remote: remote)
    with pytest.raises(ConfigError, match="does not exist"):
        await aiortc_inside.check_fit()


def without(attribute: str) -> Callable[..., None]:
    """A maker of connections that lack `attribute`, as another version's may."""
    made = aioice.ice.Connection.__init__

    def make(self: Any, *given: Any, **named: Any) -> None:
        made(self, *given, **named)
        delattr(self, attribute)

    return make


@pytest.mark.parametrize("name", ["remote_password", "_nominated"])
async def test_a_connection_that_cannot_be_asked_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    whole = aioice.ice.Connection
    monkeypatch.setattr(whole, "__init__", without(name))

    async def closed(self: Any) -> None:
        pass

    monkeypatch.setattr(whole, "close", closed)
    with pytest.raises(ConfigError, match=rf"aioice [\d.]+ does not fit: .*{name}"):
        await aiortc_inside.check_fit()


async def test_a_check_that_cannot_be_built_or_sent_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as changed:
        changed.delattr(aioice.ice.Connection, "build_request")
        with pytest.raises(ConfigError, match=r"aioice [\d.]+ does not fit: .*build_request"):
            await aiortc_inside.check_fit()

    async def request(self: Any, message: Any) -> None:
        pass

    monkeypatch.setattr(aioice.ice.StunProtocol, "request", request)
    with pytest.raises(ConfigError, match=r"aioice [\d.]+ does not fit"):
        await aiortc_inside.check_fit()


async def test_a_transport_that_hides_its_connection_is_refused_by_name() -> None:
    empty = SimpleNamespace(transport=SimpleNamespace(transport=SimpleNamespace()))
    peer: Any = SimpleNamespace(getTransceivers=lambda: [SimpleNamespace(receiver=empty)])
    with pytest.raises(AttributeError, match="_connection"):
        await aiortc_inside._check_asking(peer)


async def test_an_aioice_that_finds_its_addresses_elsewhere_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as changed:
        changed.delattr(aioice.ice, "get_host_addresses")
        with pytest.raises(ConfigError, match=r"aioice [\d.]+ does not fit: .*get_host_addresses"):
            await aiortc_inside.check_fit()
    present = aioice.ice.get_host_addresses

    async def elsewhere(self: Any) -> None:
        pass

    monkeypatch.setattr(aioice.ice.Connection, "gather_candidates", elsewhere)
    with pytest.raises(ConfigError, match="does not ask get_host_addresses"):
        await aiortc_inside.check_fit()
    assert aioice.ice.get_host_addresses is present


# ---- what goes wrong in a tap -----------------------------------------------------------------


class Breaking:
    """Breaks at each packet, as something to call and as an order."""

    def __call__(self, packet: object) -> None:
        raise ZeroDivisionError(str(packet))

    def add(self, packet: object) -> tuple[bool, list[Any]]:
        raise ZeroDivisionError(str(packet))


@pytest.mark.parametrize("kind", ["audio", "video"])
async def test_what_a_tap_raises_is_told_and_goes_no_further(kind: str) -> None:
    peer = RTCPeerConnection()
    receiver = peer.addTransceiver(kind).receiver
    take: Any = aiortc_inside.take_audio if kind == "audio" else video_inside.take_video
    told: list[Exception] = []
    take(receiver, Breaking(), told.append)
    tap = getattr(receiver, aiortc_inside._JITTER_BUFFER)
    packet: Any = RtpPacket(sequence_number=7)
    assert tap.add(packet) == (False, None)
    assert tap.add(packet) == (False, None)
    assert [type(error) for error in told] == [ZeroDivisionError] * 2
    take(receiver, Breaking())
    with pytest.raises(ZeroDivisionError):
        getattr(receiver, aiortc_inside._JITTER_BUFFER).add(packet)
    await peer.close()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("get_event", "get_event"),
        ("data_received", "does not arrive|datagrams do not come"),
        ("get_component_candidates", "get_component_candidates"),
    ],
)
async def test_a_second_connection_that_is_made_otherwise_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, says: str
) -> None:
    if name == "data_received":
        monkeypatch.setattr(aioice.Connection, name, lambda *_: None)
    else:
        monkeypatch.delattr(aioice.Connection, name)
    with pytest.raises(ConfigError, match=rf"ai\w+ [\d.]+ does not fit: .*({says})"):
        await aiortc_inside.check_fit()


@pytest.mark.parametrize("name", ["_QUEUE", "_CHECK", "_ADDRESSES", "_DECRYPTS", "_WINDOW"])
async def test_what_is_bounded_elsewhere_is_missed(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(peer_bounds, name, "_elsewhere")
    with pytest.raises(ConfigError, match=r"ai\w+ [\d.]+ does not fit: .*_elsewhere"):
        await aiortc_inside.check_fit()
