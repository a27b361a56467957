"""The places of aiortc that are taken over."""

import pytest
from aiortc import RTCRtpReceiver, RTCRtpSender

from agent.errors import ConfigError
from agent.transport import aiortc_inside


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


async def test_a_sender_that_encodes_anew_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(self: RTCRtpSender, codec: object) -> None:
        return None

    monkeypatch.setattr(RTCRtpSender, "_next_encoded_frame", nothing)
    with pytest.raises(ConfigError, match="does not pass encoded packets on"):
        await aiortc_inside.check_fit()


async def test_a_sender_that_hides_its_timestamp_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(aiortc_inside, "_RTP_TIMESTAMP", "_RTCRtpSender__gone")
    with pytest.raises(ConfigError, match="does not fit"):
        await aiortc_inside.check_fit()
