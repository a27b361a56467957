"""A text as it is read aloud: without what nobody can say, and in pieces of a breath or two.

The words stay as they are. Marks of Markdown and HTML, emoji and control characters go; brackets
become pauses, a few signs become words; a line without an end gets one.
"""

import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

CHINESE_SHARE = 0.3
"""A text is Chinese when so many of its letters are; names and numbers in it often are not."""
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_HAN_LETTER = re.compile(f"[{_HAN}]")
_KANA = re.compile("[\u3040-\u30ff\uac00-\ud7af]")

# ---- what can be read ---------------------------------------------------------------------------

_MARKUP = (
    (re.compile(r"^[ \t]*(?:```|~~~)[^\n]*$", re.M), ""),
    (re.compile(r"!?\[([^\[\]\n]*)\]\([^()\n]*\)"), r"\1"),
    (re.compile(r"https?://(?:www\.)?([^\s/?#，。；、）)】]+)[^\s，。；、）)】]*"), r"\1"),
    (re.compile(r"</?[a-zA-Z][^<>\n]{0,200}>"), " "),
    (re.compile(r"^[ \t]*(?:#{1,6}[ \t]+|>[ \t]?|[-*+•][ \t]+)+", re.M), ""),
    (re.compile(r"^[ \t\-=_*|:+]+$", re.M), ""),
    (re.compile(r"^[ \t]*\|[ \t]*|[ \t]*\|[ \t]*$", re.M), ""),
    (re.compile(r"~~|[*`]"), ""),
    (re.compile(r"(?<!\w)_+|_+(?!\w)"), ""),
)
_SIGNS = {
    False: (
        (re.compile(r"\$[ ]?(\d+(?:[.,]\d+)*)"), r"\1 dollars"),
        (re.compile(r"[ ]*&[ ]*"), " and "),
        (re.compile(r"[ ]*@[ ]*"), " at "),
    ),
    True: (
        (re.compile(r"\$[ ]?(\d+(?:[.,]\d+)*)"), r"\1美元"),
        (re.compile(r"[ ]*&[ ]*"), "和"),
        (re.compile(r"[ ]*@[ ]*"), " at "),
    ),
}
_BETWEEN_DIGITS = re.compile(r"(?<=\d)[:/](?=\d)")
_PAUSES = re.compile(r"[ \t]*[()\[\]{}（）【】〔〕［］｛｝|]+[ \t]*|[:：]+(?=\s|$)|：")
_SPACES = re.compile(r"[/\\#_$:^]")
_KEPT = frozenset("°℃℉№™©®`^")  # the last two are marks that go later
_LEFT_OUT = frozenset({"Cc", "Cf", "Co", "Cn", "Cs", "So", "Sk", "Me"})
_ENDS = ".!?。！？…;；"
_CLOSING = "\"'”’」』》"


def readable(text: str, *, chinese: bool) -> str:
    """`text` as it is said, in one line; empty where there is nothing that can be."""
    text = "".join(map(_letter, unicodedata.normalize("NFC", text)))
    text = re.sub(" {2,}", " ", text)
    for pattern, said in (*_MARKUP, *_SIGNS[chinese]):
        text = pattern.sub(said, text)
    text = _BETWEEN_DIGITS.sub(" ", text)
    text = _PAUSES.sub("，" if chinese else ", ", text)
    text = _SPACES.sub(" ", text)
    lines = [_ended(_tidied(line), chinese=chinese) for line in text.split("\n")]
    return ("" if chinese else " ").join(line for line in lines if line)


def is_chinese(text: str) -> bool:
    """Whether `text` is Chinese for the most part."""
    letters = sum(map(str.isalpha, text))
    han = len(_HAN_LETTER.findall(text))
    return not _KANA.search(text) and han > CHINESE_SHARE * letters


def _letter(letter: str) -> str:
    """What is left of one character."""
    if letter in "\n\u2028\u2029":
        return "\n"
    if letter in "\t\r\v\f" or unicodedata.category(letter) == "Zs":
        return " "
    is_picture = "\ufe00" <= letter <= "\ufe0f" or unicodedata.category(letter) in _LEFT_OUT
    return "" if is_picture and letter not in _KEPT else letter


def _tidied(line: str) -> str:
    """A line without doubled blanks and pauses, and none at its beginning."""
    line = re.sub(r"\s+", " ", line).strip()
    line = re.sub(rf"\s+(?=[,，、{_ENDS}])", "", line)
    line = re.sub(r"([,，])[,，\s]*(?=[,，])", "", line)
    line = re.sub(rf"[,，]+(?=[{_ENDS}、])", "", line)
    line = re.sub(rf"(?<=[{_ENDS}、])[,，]+", "", line)
    return re.sub(rf"^[\s,，、{_ENDS}]+|[\s,，、]+$", "", line)


def _ended(line: str, *, chinese: bool) -> str:
    """A line as a sentence; nothing where it holds neither letter nor digit."""
    if not any(map(str.isalnum, line)):
        return ""
    if line.rstrip(_CLOSING)[-1:] in _ENDS:
        return line
    return line + ("。" if chinese else ".")


# ---- in pieces ----------------------------------------------------------------------------------

_CUTS = (
    re.compile(rf"(?:[.!?;]+[{_CLOSING}]*(?=\s|$)|[。！？；…]+[{_CLOSING}]*)\s*"),
    re.compile(r"(?:[,:–—-]+(?=\s)|[，、：—]+)\s*"),
    re.compile(r"\s+"),
)
"""Where a text is cut: behind sentences, else clauses, else words."""
_HAN_S, _DIGIT_S, _LETTER_S = 0.25, 0.3, 0.075
"""How long it takes to say one; rather too much."""


def estimated_s(text: str) -> float:
    """About how long it takes to say `text`, and hardly longer."""
    han = len(_HAN_LETTER.findall(text)) + len(_KANA.findall(text))
    digits = sum(map(str.isdigit, text))
    return han * _HAN_S + digits * _DIGIT_S + (len(text) - han - digits) * _LETTER_S


def cut(text: str, most_s: float) -> list[str]:
    """`text` in pieces of at most `most_s` by estimate, each as long as that allows.

    Only between letters where there is nothing better; a single letter is a piece.
    """
    return [one for piece in _packed(text, most_s, _CUTS) if (one := piece.strip())]


def _packed(text: str, most_s: float, cuts: Sequence[re.Pattern[str]]) -> list[str]:
    if estimated_s(text) <= most_s or len(text) < 2:
        return [text]
    if cuts:
        parts = [part for one in _split(text, cuts[0]) for part in _packed(one, most_s, cuts[1:])]
    else:
        parts = list(text)
    packed = [parts[0]]
    for part in parts[1:]:
        if estimated_s(packed[-1] + part) <= most_s:
            packed[-1] += part
        else:
            packed.append(part)
    return packed


def _split(text: str, behind: re.Pattern[str]) -> list[str]:
    """`text` cut behind every match; all of it is in the parts."""
    ends = [found.end() for found in behind.finditer(text)]
    bounds = [0, *(end for end in ends if end < len(text)), len(text)]
    return [text[start:stop] for start, stop in pairwise(bounds)]
