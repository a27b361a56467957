"""What is read from SDP and written into it."""

import pytest
from aiortc import RTCPeerConnection, RTCSessionDescription

from agent.errors import RequestError
from agent.transport.offer import asking_for_redundancy, audio_codec, checked_offer

HEAD = "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n"
ICE = (
    "c=IN IP4 0.0.0.0\r\na=ice-ufrag:abcd\r\na=ice-pwd:abcdefghijklmnopqrstuv\r\n"
    "a=fingerprint:sha-256 00\r\na=setup:actpass\r\na=mid:0\r\na=rtcp-mux\r\n"
)
BROWSER_AUDIO = (
    "m=audio 9 UDP/TLS/RTP/SAVPF 63 111 9 0 8 13 110\r\n" + ICE + "a=rtpmap:63 red/48000/2\r\n"
    "a=fmtp:63 111/111\r\na=rtpmap:111 opus/48000/2\r\na=rtcp-fb:111 transport-cc\r\n"
    "a=fmtp:111 minptime=10;useinbandfec=1\r\na=rtpmap:9 G722/8000\r\na=rtpmap:0 PCMU/8000\r\n"
    "a=rtpmap:13 CN/8000\r\na=rtpmap:110 telephone-event/48000\r\na=sendrecv\r\n"
)


def test_of_many_codecs_opus_is_kept_with_what_belongs_to_it() -> None:
    lines = checked_offer(HEAD + BROWSER_AUDIO).split("\r\n")
    assert "m=audio 9 UDP/TLS/RTP/SAVPF 111" in lines
    assert "a=fmtp:111 minptime=10;useinbandfec=1" in lines
    assert "a=rtcp-fb:111 transport-cc" in lines
    assert "a=sendrecv" in lines and "a=mid:0" in lines
    assert not [line for line in lines if "red/" in line or "CN/" in line or "PCMU" in line]


@pytest.mark.parametrize(
    ("payloads", "maps", "kept"),
    [
        ("0 8", "", "0"),
        ("13 8 0", "a=rtpmap:13 CN/8000\r\n", "0"),
        ("9 8", "", "9"),
        ("8", "a=rtpmap:8 PCMA/8000\r\n", "8"),
        ("96", "a=rtpmap:96 speex/16000\r\n", "96"),
        ("98 0", "a=rtpmap:98 OPUS/48000/2\r\n", "98"),
    ],
)
def test_without_opus_the_best_that_is_known_is_kept(payloads: str, maps: str, kept: str) -> None:
    offer = f"{HEAD}m=audio 9 UDP/TLS/RTP/SAVPF {payloads}\r\n{ICE}{maps}"
    reduced = checked_offer(offer)
    assert f"m=audio 9 UDP/TLS/RTP/SAVPF {kept}\r\n" in reduced


@pytest.mark.parametrize(
    ("payloads", "maps", "codec"),
    [
        ("111", "a=rtpmap:111 opus/48000/2\r\n", "opus"),
        ("0", "", "pcmu"),
        ("9", "a=rtpmap:9 G722/8000\r\n", "g722"),
        ("96", "", ""),
    ],
)
def test_the_codec_is_read(payloads: str, maps: str, codec: str) -> None:
    assert audio_codec(f"{HEAD}m=audio 9 UDP/TLS/RTP/SAVPF {payloads}\r\n{maps}") == codec


def test_other_sections_stay_as_they_are() -> None:
    video = (
        "m=video 9 UDP/TLS/RTP/SAVPF 96 97\r\na=mid:1\r\na=rtpmap:96 VP8/90000\r\n"
        "a=rtpmap:97 rtx/90000\r\na=fmtp:97 apt=96\r\n"
    )
    assert checked_offer(HEAD + BROWSER_AUDIO + video).endswith(video)


async def test_a_real_answer_asks_for_redundancy_once() -> None:
    caller, called = RTCPeerConnection(), RTCPeerConnection()
    caller.addTransceiver("audio")
    offer = await caller.createOffer()
    reduced = checked_offer(_with_ice(offer.sdp))
    await called.setRemoteDescription(RTCSessionDescription(reduced, "offer"))
    answer = asking_for_redundancy((await called.createAnswer()).sdp)
    assert answer.count("useinbandfec=1") == 1
    assert asking_for_redundancy(answer) == answer
    assert audio_codec(answer) == "opus"
    await caller.close()
    await called.close()


def _with_ice(sdp: str) -> str:
    """aiortc writes the keys of the connection only once it gathers."""
    return sdp if "a=ice-ufrag" in sdp else sdp.replace("a=mid:0\r\n", ICE)


def test_a_text_that_is_no_offer_is_refused() -> None:
    with pytest.raises(RequestError, match="v=0"):
        checked_offer("hello")
