"""Pictures that cost a decoder more than pictures do: they are not decoded."""

import logging
import struct
from fractions import Fraction
from typing import Any

import aiortc.rtcrtpreceiver
import av
import pytest
from aiortc import RTCPeerConnection
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from aiortc.rtcrtpreceiver import NackGenerator
from aiortc.rtp import RtpPacket

from agent.api.realtime import CALLS
from agent.transport import video_inside
from agent.transport.pictures import (
    ASK_EVERY_S,
    MOST_UNDECODED,
    DecodablePictures,
    PictureOrder,
    is_too_large,
)
from agent.transport.video_inside import take_video
from tests.rig.caller import Caller
from tests.rig.server import running_server
from tests.test_pictures import VP8_LATER, Packet, StoppedClock


def key_picture(width: int, height: int, scaled: int = 0) -> bytes:
    """Of VP8: what it claims to be, and nothing behind it."""
    sides = struct.pack("<HH", width | scaled << 14, height | scaled << 14)
    return b"\x10\x02\x00\x9d\x01\x2a" + sides + bytes(64)


@pytest.mark.parametrize(
    ("picture", "too_large"),
    [
        (key_picture(7680, 2160), False),
        (key_picture(4096, 4096, scaled=3), False),
        (key_picture(4097, 4096), True),
        (key_picture(16_383, 16_383), True),
        (key_picture(16_383, 2_000), True),
        (b"\x11" + key_picture(16_383, 16_383)[1:], False),
        (b"\x00\x00\x00\x01\x67", False),
        (b"", False),
    ],
)
def test_what_key_pictures_claim_is_read(picture: bytes, too_large: bool) -> None:
    assert is_too_large(picture) is too_large


def shown(order: DecodablePictures, number: int, data: bytes) -> list[bytes]:
    return [each.data for each in order.add(Packet(number, number * 3000, 1, data))[1]]


def test_a_picture_that_is_too_large_is_lost_and_a_smaller_one_asked_for() -> None:
    clock = StoppedClock()
    order = DecodablePictures(PictureOrder(clock))
    small, large = key_picture(640, 480), key_picture(16_383, 16_383)
    assert shown(order, 1, small) == [small]
    assert shown(order, 2, large) == []
    clock.now += 2 * ASK_EVERY_S
    assert order.add(Packet(3, 9000, 1, VP8_LATER)) == (True, [])
    assert shown(order, 4, small) == [small]
    assert shown(order, 5, VP8_LATER) == [VP8_LATER]


def test_pictures_that_the_decoder_cannot_keep_up_with_are_lost_up_to_a_key_picture() -> None:
    order, small = DecodablePictures(PictureOrder(StoppedClock())), key_picture(640, 480)
    waiting = MOST_UNDECODED - 1
    order.undecoded = lambda: waiting
    assert shown(order, 1, small) == [small]
    waiting = MOST_UNDECODED
    assert shown(order, 2, VP8_LATER) == []
    waiting = 0
    assert shown(order, 3, VP8_LATER) == []
    assert shown(order, 4, small) == [small]


async def test_at_a_call_s_end_what_waits_for_the_decoder_is_not_waited_for() -> None:
    peer = RTCPeerConnection()
    receiver = peer.addTransceiver("video").receiver
    waiting = take_video(receiver, PictureOrder(StoppedClock()))
    inside = getattr(receiver, video_inside._DECODER_QUEUE)
    for picture in range(5):
        inside.put(picture)
    assert waiting() == 5
    inside.put(None)
    assert waiting() == 1 and inside.get() is None
    await peer.close()


class Counted(set[int]):
    """What is missing, and how often something was added to it."""

    added = 0

    def add(self, element: int) -> None:
        self.added += 1
        super().add(element)


@pytest.mark.parametrize("ahead", [1, 2, 100, 128, 129, 130, 5000, 32_767, 32_768, 65_535])
def test_of_a_leap_only_what_can_be_asked_for_is_counted(ahead: int) -> None:
    ours, theirs = video_inside._Missing(), NackGenerator()
    ours.missing = Counted()
    for number in (65_000, 65_003, (65_003 + ahead) % 65_536):
        packet = RtpPacket(sequence_number=number)
        assert ours.add(packet) == theirs.add(packet)
        assert ours.missing == theirs.missing and ours.max_seq == theirs.max_seq
    assert ours.missing.added <= 2 + 128


def h264_picture(width: int, height: int) -> bytes:
    encoder: Any = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.time_base, encoder.options = Fraction(1, 30), {"preset": "ultrafast"}
    packets = [*encoder.encode(av.VideoFrame(width, height, "yuv420p")), *encoder.encode(None)]
    return b"".join(bytes(each) for each in packets)


def test_h264_s_decoder_refuses_what_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_inside, "MOST_PIXELS", 640 * 480)
    codec = RTCRtpCodecParameters(mimeType="video/H264", clockRate=90_000, payloadType=99)
    for width, refused in ((640, False), (1280, True)):
        decoder = aiortc.rtcrtpreceiver.get_decoder(codec).codec  # type: ignore[attr-defined]
        picture = av.Packet(h264_picture(width, 480))
        if refused:
            with pytest.raises(av.error.InvalidDataError):
                decoder.decode(picture)
        else:
            frames = [*decoder.decode(picture), *decoder.decode(None)]
            assert [frame.width for frame in frames] == [width]


async def test_a_call_goes_on_when_its_camera_claims_to_be_huge(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    async with running_server() as server:
        caller = Caller(server.url, camera=True)
        await caller.dial()
        camera = caller.peer.getTransceivers()[1]
        payload = b"\x10" + key_picture(16_383, 16_383)
        for number in range(20):
            packet = RtpPacket(camera._codecs[0].payloadType, 1, number, 3000 * number, 77, payload)
            await camera.sender.transport._send_rtp(packet.serialize())
        before = len(caller.events)
        caller.send({"type": "session.update", "session": {"type": "realtime"}})
        await caller.wait_for("session.updated", after=before)
        assert server.app[CALLS].count == 1
        await caller.close()
        await server.end_calls()
    assert [message for message in caplog.messages if "decode" in message] == []
