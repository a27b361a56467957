"""What is read from SDP and written into it beyond what aiortc does.

An offer is checked for what a parser would only trip over half-way through, and brought down to
one audio codec and the sections that a call can use; the answer refuses the others at their place
and asks for redundancy.
"""

import re

from agent.errors import RequestError
from agent.transport import aiortc_inside
from agent.transport.ice_fragment import without_candidates
from agent.transport.repair import RedFormat
from agent.transport.sdp_text import (
    sdp_head,
    sdp_kind,
    sdp_lines,
    sdp_names,
    sdp_sections,
    sdp_text,
)

_MAX_SECTIONS = {"audio": 1, "video": 2, "application": 1}
_MOST_LINES = {"": 1_000, "a=rtpmap:": 256, "a=rtcp-fb:": 384, "a=rtcp-fb:*": 16, "a=ssrc": 256}
"""In all, and of those that aiortc compares each with all others, while all calls wait. Browsers
send some 500, with two cameras."""
_AUDIO_CODECS = {
    "opus/48000/2": "opus",
    "g722/8000": "g722",
    "pcmu/8000": "pcmu",
    "pcma/8000": "pcma",
}
"""Best first: rate and channels belong to it, aiortc refuses a stream that has others."""
_FIXED_PAYLOADS = {"0": "pcmu", "8": "pcma", "9": "g722"}
_NEEDED = ("m=audio ", "a=ice-ufrag:", "a=ice-pwd:", "a=fingerprint:")
_BUNDLE = "a=group:BUNDLE"


def checked_offer(offer: str) -> str:
    """`offer` with clean line ends, without useless sections and without candidates.

    What becomes of those see `with_refused` and `PeerIce`. `RequestError` when it is no offer,
    lacks what a connection needs, is longer than offers are, has more sections than a call has, or
    bundles sections that are not there.
    """
    lines = sdp_lines(offer)
    if lines[0] != "v=0":
        raise _refused("the body is not an SDP offer: it must begin with v=0")
    _check_length(lines)
    _check_bundle(lines)
    lines = _useful(lines)
    for needed in _NEEDED:
        if not any(line.startswith(needed) for line in lines):
            raise _refused(f"the SDP offer has no line {needed.strip()!r} in a section to be used")
    for kind, most in _MAX_SECTIONS.items():
        if sum(line.startswith(f"m={kind} ") for line in lines) > most:
            raise _refused(f"the SDP offer has more than {most} {kind} section(s)")
    return sdp_text(_with_one_audio_codec(without_candidates(lines)))


def has_channel(offer: str) -> bool:
    """Whether `offer` has a data channel that is not refused already."""
    sections = sdp_sections(sdp_lines(offer))
    return any(sdp_kind(section) == "application" and _is_useful(section) for section in sections)


def with_refused(answer: str, offer: str) -> str:
    """`answer` to `checked_offer(offer)` as an answer to `offer`: one section for each of its.

    Those that no call can use are refused by the port 0: refused by the offer itself, of a kind
    that is not known, or a camera in formats that cannot be decoded. What was not bundled is not
    bundled by the answer.
    """
    lines, asked = sdp_lines(answer), sdp_lines(offer)
    answered = sdp_sections(lines)
    bundles = any(line.startswith(_BUNDLE) for line in asked)
    whole = [line for line in sdp_head(lines) if bundles or not line.startswith(_BUNDLE)]
    for section in sdp_sections(asked):
        if not _is_useful(section):
            whole += _refusal(section)
        elif answered:
            whole += answered.pop(0)
    return sdp_text(whole)


def audio_codec(answer: str) -> str:
    """The name of the audio codec of an answer, in lower case, as "opus"; "" without audio."""
    for section in sdp_sections(sdp_lines(answer)):
        if sdp_kind(section) == "audio":
            names = _codec_names(section)
            known = (names[each] for each in _payloads(section[0]) if each in names)
            return next(known, "")
    return ""


def red_format(offer: str) -> RedFormat | None:
    """The format in which an offer would take Opus together with a copy of the packet before.

    None when it offers none, or one that holds something else.
    """
    for section in sdp_sections(sdp_lines(offer)):
        if sdp_kind(section) == "audio":
            return _red_format(section)
    return None


def _red_format(section: list[str]) -> RedFormat | None:
    offered, names = _payloads(section[0]), _codec_names(section)
    opus = next((payload for payload in offered if names.get(payload) == "opus"), None)
    lines = {line.lower() for line in section}
    for outer in offered:
        is_red = f"a=rtpmap:{outer} red/48000/2" in lines
        if opus and is_red and f"a=fmtp:{outer} {opus}/{opus}" in lines:
            return RedFormat(int(outer), int(opus))
    return None


def asking_for_repair(answer: str, red: RedFormat | None = None) -> str:
    """`answer` in which Opus carries redundancy, and what is lost may be asked for again.

    Without the first browsers send none, without the second they do not ask. With `red`, which
    the offer must have, packets may come in that format, too; Opus stays the first choice.
    """
    lines = sdp_lines(answer)
    told = set(lines) | {line.split()[0] for line in lines if line.startswith("a=fmtp:")}
    asking: list[str] = []
    for line in lines:
        asking.append(line)
        if match := re.fullmatch(r"a=rtpmap:(\d+) opus/48000/2", line, re.IGNORECASE):
            parameters, again = f"a=fmtp:{match[1]}", f"a=rtcp-fb:{match[1]} nack"
            if parameters not in told:
                asking.append(f"{parameters} minptime=10;useinbandfec=1")
            if again not in told:
                asking.append(again)
    return sdp_text(_with_red(asking, red) if red else asking)


def _with_red(lines: list[str], red: RedFormat) -> list[str]:
    outer, inner = red.payload_type, red.inner_type
    taking: list[str] = []
    for line in lines:
        taking.append(line)
        if line.startswith("m=audio ") and str(outer) not in _payloads(line):
            taking[-1] += f" {outer}"
        elif line.lower() == f"a=rtpmap:{inner} opus/48000/2":
            taking += [f"a=rtpmap:{outer} red/48000/2", f"a=fmtp:{outer} {inner}/{inner}"]
    return taking


# ---- sections ---------------------------------------------------------------------------------


def _useful(lines: list[str]) -> list[str]:
    """Without the sections that are refused, of which a bundle must not speak either."""
    sections = sdp_sections(lines)
    useful = [section for section in sections if _is_useful(section)]
    gone = {name for each in sections if each not in useful for name in sdp_names(each)}
    kept: list[str] = []
    for line in sdp_head(lines):
        if not line.startswith(_BUNDLE):
            kept.append(line)
        elif names := [name for name in line.split()[1:] if name not in gone]:
            kept.append(" ".join([_BUNDLE, *names]))
    return kept + [line for section in useful for line in _without_orphans(section)]


def _without_orphans(section: list[str]) -> list[str]:
    """Parameters of a format that is not there trip aiortc's parser."""
    there = {match[1] for line in section if (match := re.match(r"a=rtpmap:(\d+) ", line))}
    return [
        line
        for line in section
        if not (match := re.match(r"a=fmtp:(\d+) ", line)) or match[1] in there
    ]


def _is_useful(section: list[str]) -> bool:
    kind = sdp_kind(section)
    if kind not in _MAX_SECTIONS:
        return False
    # A browser that bundles all offers the port 0 for what goes through another section's.
    if section[0].split()[1:2] == ["0"] and "a=bundle-only" not in section:
        return False
    return kind != "video" or aiortc_inside.can_decode(section)


def _refusal(section: list[str]) -> list[str]:
    words = section[0].split()
    mids = [f"a=mid:{name}" for name in sdp_names(section)]
    head = " ".join([words[0], "0", *words[2:]])
    return [head, "c=IN IP4 0.0.0.0", "a=inactive", *mids]


def _with_one_audio_codec(lines: list[str]) -> list[str]:
    """Only Opus where it is offered, else the first that is known.

    One stream, one clock: comfort noise, tones and redundancy in packets of their own would have
    to be told apart for each packet.
    """
    kept = sdp_head(lines)
    for section in sdp_sections(lines):
        kept += _reduced(section) if sdp_kind(section) == "audio" else section
    return kept


def _reduced(section: list[str]) -> list[str]:
    names = _codec_names(section)
    offered = _payloads(section[0])
    for wanted in _AUDIO_CODECS.values():
        chosen = next((payload for payload in offered if names.get(payload) == wanted), None)
        if chosen is not None:
            head = " ".join([*section[0].split()[:3], chosen])
            dropped = tuple(
                f"a={kind}:{payload} "
                for kind in ("rtpmap", "fmtp", "rtcp-fb")
                for payload in offered
                if payload != chosen
            )
            kept = [line for line in section[1:] if not line.startswith(dropped)]
            return [head, *kept, *_untold_form(section, chosen)]
    return section


def _untold_form(section: list[str], payload: str) -> list[str]:
    """What the standard says of a fixed payload type, where the offer does not: aiortc asks."""
    told = any(line.startswith(f"a=rtpmap:{payload} ") for line in section)
    return [] if told else [f"a=rtpmap:{payload} {_FIXED_PAYLOADS[payload].upper()}/8000"]


def _payloads(media_line: str) -> list[str]:
    return media_line.split()[3:]


def _codec_names(section: list[str]) -> dict[str, str]:
    """Payload type to codec, those with a fixed number included, where aiortc has it."""
    names = dict(_FIXED_PAYLOADS)
    for line in section:
        if match := re.match(r"a=rtpmap:(\d+) (\S+)", line):
            form = match[2].lower()
            # One channel need not be told.
            names[match[1]] = _AUDIO_CODECS.get(form.removesuffix("/1"), "")
    return names


def _check_length(lines: list[str]) -> None:
    for start, most in _MOST_LINES.items():
        if sum(line.startswith(start) for line in lines) > most:
            kind = f" that begin with '{start}'" if start else ""
            raise _refused(f"the SDP offer has more than {most} lines{kind}")


def _check_bundle(lines: list[str]) -> None:
    bundled = {name for line in lines if line.startswith(_BUNDLE) for name in line.split()[1:]}
    named = [sdp_names(section) for section in sdp_sections(lines)]
    if bundled and any(len(names) != 1 for names in named):
        raise _refused("each section of a bundled SDP offer needs one line 'a=mid:'")
    if missing := bundled - {name for names in named for name in names}:
        raise _refused(f"the SDP offer bundles sections that it does not have: {sorted(missing)}")


def _refused(message: str) -> RequestError:
    return RequestError(message[:500], param="sdp", code="invalid_offer")
