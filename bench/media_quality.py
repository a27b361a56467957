"""How speech sounds after a lossy way: PESQ of what the page played against what was said."""

from collections.abc import Iterator

import numpy as np
from pesq import NoUtterancesError, pesq
from scipy.signal import correlate, resample_poly

from agent.types import MIC_RATE_HZ, FloatArray
from bench.media_marks import at_mic_rate

PIECE_S = 4.0
_SEARCH_S = 3.0


def pesq_pieces(said: FloatArray, played: FloatArray) -> list[float]:
    """Wide-band PESQ of each 4 s of `said` (24 kHz) as found in `played` (48 kHz).

    The first piece is left out: in it, sender and jitter buffer still learn what the way is like.
    """
    reference = np.asarray(resample_poly(said, 2, 3), np.float32)
    heard = at_mic_rate(played)
    scores = []
    for piece, rendered in _matched(reference, heard):
        try:
            scores.append(float(pesq(MIC_RATE_HZ, piece, rendered, "wb")))
        except NoUtterancesError:
            scores.append(1.0)  # nothing of it came through
    return scores[1:]


def _matched(reference: FloatArray, heard: FloatArray) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Each piece with the stretch of `heard` that is most like it."""
    length, search = int(PIECE_S * MIC_RATE_HZ), int(_SEARCH_S * MIC_RATE_HZ)
    shift = 0
    for at in range(0, len(reference) - length + 1, length):
        piece = reference[at : at + length]
        # Delays change by fractions of a second at the most once the first piece is found.
        begin = max(0, at + shift - (search if at == 0 else MIC_RATE_HZ // 2))
        window = heard[begin : begin + length + search]
        if len(window) < length:
            return
        found = int(np.argmax(correlate(window, piece, mode="valid", method="fft")))
        shift = begin + found - at
        yield piece, window[found : found + length]
