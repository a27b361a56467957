"""A whole offer in the middle of a call: an ICE restart as browsers say it, and nothing more.

The media stay as they were agreed on first; an offer that changes them is refused.
"""

from agent.errors import RequestError
from agent.transport.ice_fragment import Fragment, ice_lines, without_ice
from agent.transport.sdp_text import (
    sdp_head,
    sdp_kind,
    sdp_lines,
    sdp_names,
    sdp_sections,
    sdp_text,
)

_DIRECTIONS = ("inactive", "sendonly", "recvonly", "sendrecv")
"""By their number: bit 0 sends, bit 1 receives."""


class NewMedia(RequestError):
    """The offer changes more of the call than its way through the network."""

    status = 422
    code = "new_media"


def check_same_media(offer: str, first: str) -> None:
    """`NewMedia` unless `offer` has the sections and the certificate of the `first` one."""
    if _shape(offer) != _shape(first):
        raise NewMedia(
            "the offer has other sections than the call; only its ICE can be restarted: "
            "open a new call for other media",
            param="sdp",
        )
    if _fingerprints(offer) != _fingerprints(first):
        raise NewMedia("the offer has another certificate than the call", param="sdp")


def answer_again(answer: str, offer: str, local: Fragment) -> str:
    """The `answer` that was given first, as one to `offer`, with this side's new ICE."""
    lines = sdp_lines(answer)
    whole = [_next_version(line) for line in sdp_head(lines)]
    offered = sdp_sections(sdp_lines(offer))
    for section, theirs in zip(sdp_sections(lines), offered, strict=True):
        if section[0].split()[1:2] == ["0"]:
            whole += section
            continue
        said = local.of(next(iter(sdp_names(section)), ""))
        direction = _answered(_direction(section), _direction(theirs))
        kept = [line for line in without_ice(section) if line[2:] not in _DIRECTIONS]
        whole += [*kept, f"a={direction}", *ice_lines(said)]
    return sdp_text(whole)


def _shape(offer: str) -> list[tuple[str, list[str]]]:
    return [(sdp_kind(each), sdp_names(each)) for each in sdp_sections(sdp_lines(offer))]


def _fingerprints(offer: str) -> set[str]:
    return {line.lower() for line in sdp_lines(offer) if line.startswith("a=fingerprint:")}


def _direction(section: list[str]) -> str:
    return next((line[2:] for line in section if line[2:] in _DIRECTIONS), "sendrecv")


def _answered(agreed: str, offered: str) -> str:
    """What was agreed on, less what the other side does not do now."""
    does = _DIRECTIONS.index(offered)
    turned = (does & 1) << 1 | does >> 1
    return _DIRECTIONS[_DIRECTIONS.index(agreed) & turned]


def _next_version(line: str) -> str:
    words = line.split()
    if not line.startswith("o=") or len(words) < 3 or not words[2].isdecimal():
        return line
    return " ".join([*words[:2], str(int(words[2]) + 1), *words[3:]])
