"""What the `echo` engine's answers sound like, and how long they are."""

import re

import numpy as np

from agent.media.audio import Resampler
from agent.types import MIC_RATE_HZ, SPEECH_RATE_HZ, FloatArray

_WORD_SAMPLES = SPEECH_RATE_HZ * 2 // 5
"""How long a word takes that was typed."""
_FADE_SAMPLES = SPEECH_RATE_HZ // 50
_MOST_PIECES = 32
_LEAST_PIECE_SAMPLES = SPEECH_RATE_HZ // 10
"""Words that take less are said together with the next."""


def to_speech_rate(sound: FloatArray) -> FloatArray:
    """Sound [T] at 16 kHz as it is said: at 24 kHz."""
    resampler = Resampler(MIC_RATE_HZ, SPEECH_RATE_HZ)
    return np.concatenate((resampler.push(sound), resampler.finish()))


def typed_sound(voice: FloatArray, text: str) -> FloatArray:
    """`text` as somebody says it who cannot read: some of his `voice` [T] for as long."""
    return _cut(voice, max(1, len(text.split())) * _WORD_SAMPLES)


def cut_to_words(text: str, samples: FloatArray, most: int) -> tuple[str, FloatArray]:
    """The first `most` words, and as much of the sound [T] as they are of all words."""
    words = text.split()
    return " ".join(words[:most]), _cut(samples, samples.size * most // max(1, len(words)))


def pieces_of(text: str) -> list[str]:
    """`text` in several pieces, as a model would say it: words, or several where it is long."""
    words = _words_of(text)
    size = -(-len(words) // _MOST_PIECES)
    return ["".join(words[at : at + size]) for at in range(0, len(words), max(1, size))]


def timed_pieces(text: str, samples: int) -> list[tuple[int, str]]:
    """`text` in pieces, each with the sample at which it begins where all takes so many: every
    word takes as long as any other."""
    words = _words_of(text)
    size = max(1, -(-_LEAST_PIECE_SAMPLES * len(words) // max(1, samples)))
    return [
        (samples * at // len(words), "".join(words[at : at + size]))
        for at in range(0, len(words), size)
    ]


def _words_of(text: str) -> list[str]:
    """Each with the space before it, as models say them; the last with what is behind it, too."""
    return re.findall(r"\s*\S+(?:\s+\Z)?", text)


def _cut(samples: FloatArray, length: int) -> FloatArray:
    """The beginning of `samples` [T], faded out where it ends early."""
    if length >= samples.size:
        return samples
    cut = samples[:length].copy()
    fade = min(_FADE_SAMPLES, length)
    cut[length - fade :] *= np.linspace(1, 0, fade, dtype=np.float32)
    return cut
