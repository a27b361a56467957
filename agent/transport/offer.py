"""What is read from SDP and written into it beyond what aiortc does.

An offer is checked for what a parser would only trip over half-way through, and brought down to
one audio codec; the answer asks for redundancy.
"""

import re

from agent.errors import RequestError

_MAX_SECTIONS = {"audio": 1, "video": 2, "application": 1}
_AUDIO_CODECS = ("opus", "g722", "pcmu", "pcma")
_FIXED_PAYLOADS = {"0": "pcmu", "8": "pcma", "9": "g722"}
_NEEDED = ("m=audio ", "a=ice-ufrag:", "a=ice-pwd:", "a=fingerprint:")


def checked_offer(offer: str) -> str:
    """`offer` with clean line ends and open to candidates that come late.

    `RequestError` when it is no offer, lacks what a connection needs, has more sections than a
    call has, or bundles sections that are not there.
    """
    lines = offer.replace("\r\n", "\n").strip().split("\n")
    if lines[0].strip() != "v=0":
        raise _refused("the body is not an SDP offer: it must begin with v=0")
    for needed in _NEEDED:
        if not any(line.startswith(needed) for line in lines):
            raise _refused(f"the SDP offer has no line {needed.strip()!r}")
    _check_sections(lines)
    # "No more candidates" would make an offer without any fail at once.
    kept = [line for line in lines if line.strip() != "a=end-of-candidates"]
    return "\r\n".join(_with_one_audio_codec(kept)) + "\r\n"


def audio_codec(answer: str) -> str:
    """The name of the audio codec of an answer, in lower case, as "opus"; "" without audio."""
    for section in _sections(answer.replace("\r\n", "\n").split("\n")):
        if section[0].startswith("m=audio "):
            names = _codec_names(section)
            known = (names[each] for each in _payloads(section[0]) if each in names)
            return next(known, "")
    return ""


def asking_for_redundancy(answer: str) -> str:
    """`answer` in which Opus carries redundancy: without that line browsers send none."""
    lines = answer.replace("\r\n", "\n").strip().split("\n")
    told = {line.split()[0] for line in lines if line.startswith("a=fmtp:")}
    asking: list[str] = []
    for line in lines:
        asking.append(line)
        if match := re.fullmatch(r"a=rtpmap:(\d+) opus/48000/2", line.strip(), re.IGNORECASE):
            parameters = f"a=fmtp:{match[1]}"
            if parameters not in told:
                asking.append(f"{parameters} minptime=10;useinbandfec=1")
    return "\r\n".join(asking) + "\r\n"


def _with_one_audio_codec(lines: list[str]) -> list[str]:
    """Only Opus where it is offered, else the first that is known.

    One stream, one clock: comfort noise, tones and redundancy in packets of their own would have
    to be told apart for each packet.
    """
    starts = [index for index, line in enumerate(lines) if line.startswith("m=")]
    kept = lines[: starts[0]]
    for section in _sections(lines):
        kept += _reduced(section) if section[0].startswith("m=audio ") else section
    return kept


def _reduced(section: list[str]) -> list[str]:
    names = _codec_names(section)
    offered = _payloads(section[0])
    for wanted in _AUDIO_CODECS:
        chosen = next((payload for payload in offered if names.get(payload) == wanted), None)
        if chosen is not None:
            head = " ".join([*section[0].split()[:3], chosen])
            dropped = tuple(
                f"a={kind}:{payload} "
                for kind in ("rtpmap", "fmtp", "rtcp-fb")
                for payload in offered
                if payload != chosen
            )
            return [head, *(line for line in section[1:] if not line.startswith(dropped))]
    return section


def _payloads(media_line: str) -> list[str]:
    return media_line.split()[3:]


def _codec_names(section: list[str]) -> dict[str, str]:
    """Payload type to codec, those with a fixed number included."""
    names = dict(_FIXED_PAYLOADS)
    for line in section:
        if match := re.match(r"a=rtpmap:(\d+) ([^/\s]+)/", line):
            names[match[1]] = match[2].lower()
    return names


def _check_sections(lines: list[str]) -> None:
    for kind, most in _MAX_SECTIONS.items():
        if sum(line.startswith(f"m={kind} ") for line in lines) > most:
            raise _refused(f"the SDP offer has more than {most} {kind} section(s)")
    bundled = {
        name for line in lines if line.startswith("a=group:BUNDLE") for name in line.split()[1:]
    }
    named = [_names(section) for section in _sections(lines)]
    if bundled and any(len(names) != 1 for names in named):
        raise _refused("each section of a bundled SDP offer needs one line 'a=mid:'")
    if missing := bundled - {name for names in named for name in names}:
        raise _refused(f"the SDP offer bundles sections that it does not have: {sorted(missing)}")


def _sections(lines: list[str]) -> list[list[str]]:
    starts = [index for index, line in enumerate(lines) if line.startswith("m=")]
    return [lines[a:b] for a, b in zip(starts, [*starts[1:], len(lines)], strict=True)]


def _names(section: list[str]) -> list[str]:
    return [line[len("a=mid:") :].strip() for line in section if line.startswith("a=mid:")]


def _refused(message: str) -> RequestError:
    return RequestError(message[:500], param="sdp", code="invalid_offer")
