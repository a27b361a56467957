"""Which words of an utterance sounded before it was cut.

Engines hand out text in pieces, and say of each only how much sound there was before it. So a
piece is taken to sound evenly from there to where the next one begins; text that came ahead of its
sound is not heard before that sound has begun.
"""

import unicodedata
from bisect import bisect
from collections.abc import Sequence
from itertools import groupby, pairwise
from operator import itemgetter

_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x312F),  # radicals, CJK punctuation, kana, bopomofo
    (0x31A0, 0x9FFF),  # more of them, ideographs
    (0xF900, 0xFAFF),
    (0xFF00, 0xFFEF),  # full width
    (0x20000, 0x3FFFF),  # ideographs
)
"""Scripts that put no spaces between words: cut at characters."""
_STARTS = [first for first, _ in _UNSPACED]
_JOINERS = ("\u200d", "\u200c")


def words_before(pieces: Sequence[tuple[int, str]], generated_ms: int, cut_ms: int) -> str:
    """The text of `pieces` (start_ms, text) up to the last word that sounded in full by `cut_ms`.

    `generated_ms` is where the sound of the last piece ends. Without the space behind that word,
    unless all of the text was heard.
    """
    text = "".join(piece for _, piece in pieces)
    sounded = _sounded_chars(pieces, generated_ms, cut_ms)
    if sounded >= len(text):
        return text
    end = next((at for at in range(sounded, 0, -1) if _ends_word(text, at)), 0)
    return text[:end].rstrip()


def _sounded_chars(pieces: Sequence[tuple[int, str]], generated_ms: int, cut_ms: int) -> int:
    """How many characters sounded in full. Pieces that begin together share their sound."""
    spans = [
        (start_ms, sum(len(text) for _, text in together))
        for start_ms, together in groupby(pieces, key=itemgetter(0))
    ]
    spans.append((generated_ms, 0))
    sounded = 0
    for (start_ms, chars), (end_ms, _) in pairwise(spans):
        if cut_ms <= start_ms:
            break
        length_ms = max(1, end_ms - start_ms)
        sounded += chars * min(cut_ms - start_ms, length_ms) // length_ms
    return sounded


def _ends_word(text: str, at: int) -> bool:
    """Whether a word may end between the characters `at - 1` and `at`."""
    before, after = text[at - 1], text[at]
    if before.isspace() or after.isspace():
        return True
    if unicodedata.category(after).startswith("M") or before in _JOINERS or after in _JOINERS:
        return False
    return _unspaced(before) or _unspaced(after)


def _unspaced(letter: str) -> bool:
    index = bisect(_STARTS, ord(letter)) - 1
    return index >= 0 and ord(letter) <= _UNSPACED[index][1]
