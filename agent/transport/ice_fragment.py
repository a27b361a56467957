"""What SDP says of ICE: in offers, and in pieces of their own (RFC 8840)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from agent.errors import RequestError
from agent.transport.sdp_text import sdp_head, sdp_lines, sdp_names, sdp_sections, sdp_text

_USERNAME = re.compile(r"[a-zA-Z0-9+/]{4,256}")
_PASSWORD = re.compile(r"[a-zA-Z0-9+/]{22,256}")
_LINE = re.compile(r"[a-z]=.{0,1000}")
_UFRAG, _PWD, _MID, _CANDIDATE = "a=ice-ufrag:", "a=ice-pwd:", "a=mid:", "a=candidate:"
_END = "a=end-of-candidates"
_ICE_LINES = (_UFRAG, _PWD, _CANDIDATE, _END)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What one side's connectivity checks are signed with."""

    username: str
    password: str


@dataclass(frozen=True, slots=True)
class IceSection:
    """What is said of one section; `mid` is "" where it has no name.

    `credentials` are None where neither the section nor the whole names any; `candidates` stand as
    in SDP behind "a=candidate:".
    """

    mid: str = ""
    credentials: Credentials | None = None
    candidates: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fragment:
    """What one side tells of its ICE: at least one section."""

    sections: tuple[IceSection, ...]

    def of(self, mid: str) -> IceSection:
        """The section of that name, else the first one: those of a bundle share a way."""
        return next((each for each in self.sections if each.mid == mid), self.sections[0])


def read_fragment(text: str) -> Fragment:
    """The sections of an `application/trickle-ice-sdpfrag`. `RequestError`."""
    lines = sdp_lines(text)
    if odd := next((line for line in lines if line and not _LINE.fullmatch(line)), None):
        raise bad_fragment(f"{odd[:80]!r} is no line of it")
    try:
        return _read(lines)
    except ValueError as error:
        raise bad_fragment(str(error)) from error


def read_offer(offer: str) -> Fragment:
    """What an offer says of ICE. ValueError."""
    return _read(sdp_lines(offer))


def written(sections: Sequence[tuple[str, IceSection]]) -> str:
    """Sections as text, each behind the `m=` line that it has in the answer; all candidates."""
    lines = []
    if len(sections) > 1:
        lines.append(f"a=group:BUNDLE {' '.join(section.mid for _, section in sections)}")
    for media_line, section in sections:
        lines += [media_line, *([_MID + section.mid] if section.mid else []), *ice_lines(section)]
    return sdp_text(lines)


def media_lines(answer: str, local: Fragment) -> list[str]:
    """The `m=` line in `answer` of each section of `local`."""
    sections = sdp_sections(sdp_lines(answer))
    named = {mid: section[0] for section in sections for mid in (*sdp_names(section), "")}
    return [named[each.mid] for each in local.sections]


def ice_lines(section: IceSection) -> list[str]:
    """What SDP says of one side whose candidates are all known."""
    lines = [_CANDIDATE + each for each in section.candidates]
    if section.credentials is not None:
        lines += [_UFRAG + section.credentials.username, _PWD + section.credentials.password]
    return [*lines, _END]


def without_ice(lines: Sequence[str]) -> list[str]:
    """The lines that `ice_lines` has not written."""
    return [line for line in lines if not line.startswith(_ICE_LINES)]


def without_candidates(lines: Sequence[str]) -> list[str]:
    """The lines that name no candidate, nor say that there are no more."""
    return [line for line in lines if not line.startswith((_CANDIDATE, _END))]


def bad_fragment(why: str) -> RequestError:
    """What is answered to a fragment that cannot be used."""
    return RequestError(f"the ICE fragment cannot be used: {why}"[:500], code="invalid_fragment")


def _read(lines: list[str]) -> Fragment:
    """ValueError for credentials that are none."""
    whole = _section(sdp_head(lines))
    parts = [_section(section) for section in sdp_sections(lines)]
    common = whole.credentials
    sections = tuple(replace(each, credentials=each.credentials or common) for each in parts)
    return Fragment(sections or (whole,))


def _section(lines: list[str]) -> IceSection:
    credentials = _credentials(_value(lines, _UFRAG), _value(lines, _PWD))
    mid = next(iter(sdp_names(lines)), "")
    return IceSection(mid, credentials, tuple(_values(lines, _CANDIDATE)))


def _credentials(username: str, password: str) -> Credentials | None:
    if not username and not password:
        return None
    if not _USERNAME.fullmatch(username):
        raise ValueError("a=ice-ufrag must be 4 to 256 letters, digits, + or /")
    if not _PASSWORD.fullmatch(password):
        raise ValueError("a=ice-pwd must be 22 to 256 letters, digits, + or /")
    return Credentials(username, password)


def _values(lines: Sequence[str], name: str) -> list[str]:
    return [line[len(name) :].strip() for line in lines if line.startswith(name)]


def _value(lines: Sequence[str], name: str) -> str:
    return next(iter(_values(lines, name)), "")
