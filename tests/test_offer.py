"""What is read from SDP and written into it."""

import asyncio

import pytest
from aiortc import RTCPeerConnection, RTCSessionDescription

from agent.errors import RequestError
from agent.transport.offer import (
    asking_for_repair,
    audio_codec,
    checked_offer,
    has_channel,
    red_format,
    with_refused,
)
from agent.transport.repair import RedFormat

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
        ("98 0", "a=rtpmap:98 opus/16000/1\r\na=rtpmap:0 PCMU/8000/1\r\n", "0"),
        ("98 99", "a=rtpmap:98 opus/48000\r\na=rtpmap:99 opus/48000/2\r\n", "99"),
        ("97 8", "a=rtpmap:97 PCMU/16000\r\n", "8"),
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


async def test_a_real_answer_asks_for_redundancy_and_for_what_is_lost_once() -> None:
    caller, called = RTCPeerConnection(), RTCPeerConnection()
    caller.addTransceiver("audio")
    offer = await caller.createOffer()
    reduced = checked_offer(_with_ice(offer.sdp))
    await called.setRemoteDescription(RTCSessionDescription(reduced, "offer"))
    answer = asking_for_repair((await called.createAnswer()).sdp)
    assert answer.count("useinbandfec=1") == 1
    assert answer.count(" nack\r\n") == 1
    assert asking_for_repair(answer) == answer
    assert audio_codec(answer) == "opus"
    await caller.close()
    await called.close()


async def test_what_a_browser_offers_for_redundancy_is_accepted_behind_opus() -> None:
    offer = HEAD + BROWSER_AUDIO
    red = red_format(offer)
    assert red == RedFormat(payload_type=63, inner_type=111)
    called = RTCPeerConnection()
    await called.setRemoteDescription(RTCSessionDescription(checked_offer(offer), "offer"))
    answer = asking_for_repair((await called.createAnswer()).sdp, red).split("\r\n")
    assert [line.split()[3:] for line in answer if line.startswith("m=")] == [["111", "63"]]
    assert "a=rtpmap:63 red/48000/2" in answer and "a=fmtp:63 111/111" in answer
    assert asking_for_repair("\r\n".join(answer), red).count(" 63") == 1
    await called.close()


@pytest.mark.parametrize(
    ("payloads", "maps"),
    [
        ("63 111", "a=rtpmap:111 opus/48000/2\r\na=rtpmap:63 red/48000/2\r\n"),
        ("63 111", "a=rtpmap:111 opus/48000/2\r\na=fmtp:63 111/111\r\n"),
        ("111", "a=rtpmap:111 opus/48000/2\r\na=rtpmap:63 red/48000/2\r\na=fmtp:63 111/111\r\n"),
        ("63 0", "a=rtpmap:63 red/8000\r\na=fmtp:63 0/0\r\n"),
        ("63 0", "a=rtpmap:63 red/48000/2\r\na=fmtp:63 0/0\r\n"),
        (
            "63 98 111",
            "a=rtpmap:98 opus/48000/2\r\na=rtpmap:111 opus/48000/2\r\n"
            "a=rtpmap:63 red/48000/2\r\na=fmtp:63 111/111\r\n",
        ),
    ],
    ids=["of what", "no such format", "not offered", "other rate", "not Opus", "another Opus"],
)
def test_other_redundancy_is_left_alone(payloads: str, maps: str) -> None:
    assert red_format(f"{HEAD}m=audio 9 UDP/TLS/RTP/SAVPF {payloads}\r\n{ICE}{maps}") is None


def _with_ice(sdp: str) -> str:
    """aiortc writes the keys of the connection only once it gathers."""
    return sdp if "a=ice-ufrag" in sdp else sdp.replace("a=mid:0\r\n", ICE)


@pytest.mark.parametrize("text", ["hello", "v=0", "", "v=0\r\na=x\r\n", "v=0\r\nm=audio"])
def test_a_text_that_is_no_offer_is_refused(text: str) -> None:
    with pytest.raises(RequestError):
        checked_offer(text)


# ---- sections that are refused ----------------------------------------------------------------

SECTIONS = {
    "voice": BROWSER_AUDIO,
    "camera": f"m=video 9 UDP/TLS/RTP/SAVPF 96\r\n{ICE}a=rtpmap:96 VP8/90000\r\na=sendonly\r\n",
    "vp9": (
        f"m=video 9 UDP/TLS/RTP/SAVPF 98 45\r\n{ICE}a=rtpmap:98 VP9/90000\r\n"
        "a=fmtp:98 profile-id=0\r\na=rtpmap:45 AV1/90000\r\na=sendonly\r\n"
    ),
    "h264 of another mode": (
        f"m=video 9 UDP/TLS/RTP/SAVPF 98\r\n{ICE}a=rtpmap:98 H264/90000\r\n"
        "a=fmtp:98 profile-level-id=42001f;packetization-mode=0\r\na=sendonly\r\n"
    ),
    "h264": (
        f"m=video 9 UDP/TLS/RTP/SAVPF 98\r\n{ICE}a=rtpmap:98 H264/90000\r\n"
        "a=fmtp:98 profile-level-id=42e01f;packetization-mode=1\r\na=sendonly\r\n"
    ),
    "events": f"m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n{ICE}a=sctp-port:5000\r\n",
    "events in a bundle": (
        f"m=application 0 UDP/DTLS/SCTP webrtc-datachannel\r\n{ICE}a=bundle-only\r\n"
        "a=sctp-port:5000\r\n"
    ),
    "no voice": "m=audio 0 UDP/TLS/RTP/SAVPF 111\r\na=mid:0\r\na=inactive\r\n",
    "no camera": "m=video 0 UDP/TLS/RTP/SAVPF 96\r\na=mid:0\r\na=inactive\r\n",
    "no events": "m=application 0 UDP/DTLS/SCTP webrtc-datachannel\r\na=mid:0\r\n",
    "text": f"m=text 9 UDP/TLS/RTP/SAVPF 100\r\n{ICE}a=rtpmap:100 t140/1000\r\n",
}
REFUSED = {"vp9", "h264 of another mode", "no voice", "no camera", "no events", "text"}


def offered(*names: str) -> str:
    """Sections numbered 0, 1, ... and all in one bundle."""
    sections = "".join(
        SECTIONS[name].replace("a=mid:0", f"a=mid:{at}") for at, name in enumerate(names)
    )
    return f"{HEAD}a=group:BUNDLE {' '.join(map(str, range(len(names))))}\r\n{sections}"


@pytest.mark.parametrize(
    "names",
    [
        ("voice",),
        ("voice", "camera", "events"),
        ("voice", "vp9", "events"),
        ("vp9", "voice", "h264", "events"),
        ("h264 of another mode", "events", "voice"),
        ("no voice", "voice", "no camera", "no events"),
        ("no events", "voice", "text", "events in a bundle"),
    ],
)
async def test_what_no_call_can_use_is_refused_at_its_place_and_the_rest_answered(
    names: tuple[str, ...],
) -> None:
    offer = offered(*names)
    peer = RTCPeerConnection()
    await peer.setRemoteDescription(RTCSessionDescription(checked_offer(offer), "offer"))
    answer = with_refused((await peer.createAnswer()).sdp, offer)
    await peer.close()
    lines = answer.split("\r\n")
    heads = [line.split() for line in lines if line.startswith("m=")]
    assert [head[0] for head in heads] == [SECTIONS[name].split()[0] for name in names]
    assert [head[1] == "0" for head in heads] == [name in REFUSED for name in names]
    assert [line for line in lines if line.startswith("a=mid:")] == [
        f"a=mid:{at}" for at in range(len(names))
    ]
    kept = [str(at) for at, name in enumerate(names) if name not in REFUSED]
    assert "a=group:BUNDLE " + " ".join(kept) in lines


def test_an_offer_without_a_voice_that_lives_is_refused() -> None:
    with pytest.raises(RequestError, match="m=audio"):
        checked_offer(offered("no voice", "camera", "events"))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("voice", "events"), True),
        (("voice", "events in a bundle"), True),
        (("voice", "no events"), False),
        (("voice", "camera"), False),
    ],
)
def test_only_a_channel_that_lives_is_waited_for(names: tuple[str, ...], expected: bool) -> None:
    assert has_channel(offered(*names)) is expected
    assert has_channel(checked_offer(offered(*names))) is expected


async def test_parameters_of_a_format_that_is_not_there_are_dropped() -> None:
    offer = offered("voice", "camera") + "a=fmtp:77 apt=76\r\n"
    reduced = checked_offer(offer)
    assert "a=fmtp:77" not in reduced and "a=fmtp:111 " in reduced
    peer = RTCPeerConnection()
    await peer.setRemoteDescription(RTCSessionDescription(reduced, "offer"))
    await peer.close()


async def test_a_caller_takes_the_answer_with_a_refused_camera_and_connects() -> None:
    caller, called = RTCPeerConnection(), RTCPeerConnection()
    caller.addTransceiver("audio")
    heard = asyncio.Event()
    channel = caller.createDataChannel("oai-events")
    channel.on("open", heard.set)
    await caller.setLocalDescription(await caller.createOffer())
    vp9 = SECTIONS["vp9"].replace("a=mid:0", "a=mid:camera")
    own = caller.localDescription.sdp
    offer = own.replace("m=application", vp9 + "m=application").replace(" 0 1", " 0 camera 1")
    await called.setRemoteDescription(RTCSessionDescription(checked_offer(offer), "offer"))
    await called.setLocalDescription(await called.createAnswer())
    answer = with_refused(called.localDescription.sdp, offer)
    refused = "m=video 0 UDP/TLS/RTP/SAVPF 98 45\r\nc=IN IP4 0.0.0.0\r\na=inactive\r\n"
    refused += "a=mid:camera\r\n"
    assert refused in answer
    # aiortc itself never offered the camera, so it is shown the rest.
    seen = answer.replace(refused, "")
    await caller.setRemoteDescription(RTCSessionDescription(seen, "answer"))
    async with asyncio.timeout(60):
        await heard.wait()
    await caller.close()
    await called.close()


@pytest.mark.parametrize(
    ("line", "most"),
    [
        ("a=x", 1_000),
        ("a=rtpmap:96 VP8/90000", 256),
        ("a=rtcp-fb:96 nack", 384),
        ("a=rtcp-fb:* nack", 16),
        ("a=ssrc:1 cname:x", 256),
    ],
)
def test_offers_that_take_long_to_read_are_refused_by_their_lines(line: str, most: int) -> None:
    offer = HEAD + BROWSER_AUDIO
    start = "a=rtcp-fb:*" if "*" in line else line.partition(":")[0] if ":" in line else ""
    has = sum(each.startswith(start) for each in offer.strip().split("\r\n"))
    checked_offer(offer + f"{line}\r\n" * (most - has))
    with pytest.raises(RequestError, match=f"more than {most} lines"):
        checked_offer(offer + f"{line}\r\n" * (most - has + 1))
