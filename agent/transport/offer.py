"""An SDP offer, checked for what an SDP parser would only trip over half-way through."""

from agent.errors import RequestError

_MAX_SECTIONS = {"audio": 1, "video": 2, "application": 1}
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
    return "\r\n".join(kept) + "\r\n"


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
