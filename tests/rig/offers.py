"""Offers of many kinds of clients, as text: to be sent as they are, and to be damaged."""

_CREDENTIALS = (
    "a=ice-ufrag:f083\r\na=ice-pwd:228da4eadbce7100bab52a0308b94f09\r\n"
    f"a=fingerprint:sha-256 {':'.join(['AB'] * 32)}\r\n"
)


def section(kind: str, mid: str, *lines: str, port: int = 9, setup: str = "actpass") -> str:
    """One section of an offer, with all that a way through the network needs."""
    protocol = "UDP/DTLS/SCTP" if kind.startswith("application") else "UDP/TLS/RTP/SAVPF"
    name, _, formats = kind.partition(" ")
    head = f"m={name} {port} {protocol} {formats}\r\nc=IN IP4 0.0.0.0\r\n{_CREDENTIALS}"
    return head + f"a=setup:{setup}\r\na=mid:{mid}\r\n" + "".join(f"{line}\r\n" for line in lines)


def offer(*sections: str, bundle: str = "") -> str:
    """A whole offer; `bundle` are the names of the sections that share a way."""
    head = "v=0\r\no=- 4489045141692799359 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n"
    return head + (f"a=group:BUNDLE {bundle}\r\n" if bundle else "") + "".join(sections)


OPUS = ("a=rtcp-mux", "a=rtpmap:111 opus/48000/2", "a=fmtp:111 minptime=10;useinbandfec=1")
H264 = (
    "a=rtcp-mux",
    "a=rtpmap:106 H264/90000",
    "a=fmtp:106 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f",
    "a=rtcp-fb:106 nack pli",
)
VP8 = ("a=rtcp-mux", "a=rtpmap:96 VP8/90000", "a=rtcp-fb:96 nack pli")
CHANNEL = section("application webrtc-datachannel", "2", "a=sctp-port:5000")

OFFERS = {
    "openai": offer(
        section("audio 111", "0", "a=sendrecv", *OPUS),
        section("application webrtc-datachannel", "1", "a=sctp-port:5000"),
        bundle="0 1",
    ),
    "obs": offer(
        section("audio 111", "0", "a=sendonly", *OPUS, "a=ssrc:11 cname:obs"),
        section("video 106", "1", "a=sendonly", *H264, "a=ssrc:12 cname:obs"),
        bundle="0 1",
    ),
    "gstreamer": offer(
        section("video 96", "video0", "a=sendonly", *VP8),
        section("audio 111", "audio1", "a=sendonly", *OPUS),
        bundle="video0 audio1",
    ),
    "ffmpeg": offer(
        section("audio 111", "0", "a=sendonly", *OPUS, setup="passive"),
        section("video 106", "1", "a=sendonly", *H264, setup="passive"),
        bundle="0 1",
    ),
    "bundle_only": offer(
        section("audio 111", "0", "a=sendrecv", *OPUS),
        section("video 96", "1", "a=sendonly", "a=bundle-only", *VP8, port=0),
        CHANNEL.replace("m=application 9", "m=application 0") + "a=bundle-only\r\n",
        bundle="0 1 2",
    ),
    "listener": offer(section("audio 111", "0", "a=recvonly", *OPUS), bundle="0"),
    "unbundled": offer(section("audio 111", "0", "a=sendrecv", *OPUS)),
    "many": offer(
        section("video 96", "0", "a=sendonly", *VP8),
        section("video 96", "1", "a=inactive", *VP8),
        CHANNEL,
        section("audio 111 9 0 8 13", "3", "a=sendrecv", *OPUS),
        section("message 98", "4", "a=rtpmap:98 none/90000"),
        bundle="0 1 2 3",
    ),
    "hidden": offer(
        section(
            "audio 111",
            "0",
            "a=sendrecv",
            *OPUS,
            "a=candidate:1 1 udp 2113937151 1e0c8d6f-1f0c-4d5b-9d3e-2c1f0a9b8c7d.local 50000 "
            "typ host generation 0",
            "a=candidate:2 1 udp 1677729535 192.0.2.7 50000 typ srflx raddr 0.0.0.0 rport 0",
            "a=candidate:3 1 tcp 1518280447 192.0.2.7 9 typ host tcptype active",
            "a=end-of-candidates",
        ),
        bundle="0",
    ),
}
"""By the client that sends such a one, or what is odd about it."""
