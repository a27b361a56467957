"""SDP as lines and sections; knows no more of it than that."""


def sdp_lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def sdp_text(lines: list[str]) -> str:
    return "\r\n".join(lines) + "\r\n"


def sdp_head(lines: list[str]) -> list[str]:
    return lines[: next((at for at, line in enumerate(lines) if line.startswith("m=")), None)]


def sdp_kind(section: list[str]) -> str:
    return section[0].split()[0].removeprefix("m=")


def sdp_sections(lines: list[str]) -> list[list[str]]:
    starts = [index for index, line in enumerate(lines) if line.startswith("m=")]
    ends = [*starts[1:], len(lines)]
    return [lines[a:b] for a, b in zip(starts, ends, strict=False)]


def sdp_names(section: list[str]) -> list[str]:
    return [line[len("a=mid:") :].strip() for line in section if line.startswith("a=mid:")]
