"""What the speech lane's kernels read of each conversation, and what it is given back.

A row is a conversation for the length of a batch. Its settings, the keys of its draws and the
tokens that its penalty remembers go to the device at once; its tokens come back at once. Where
they end is found here, as `speak` and `speak_on` say.
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch

from agent.duplex.cuda.device_lane import Returned, Sent
from agent.duplex.sampling import IntArray, SpeechSampling
from agent.duplex.speech_lm import UNIT_SPEECH_TOKENS
from agent.duplex.work import Speak, SpeakOn

SpeechWork: TypeAlias = Speak | SpeakOn

MOST_REMEMBERED = 16
"""Tokens that a penalty looks back on at most."""

# Places in a row: whole numbers, the bits of an f32 each, the keys of the draws, and tokens: those
# known before, then those of this unit.
SLOT, START, BANNED, KNOWN, WINDOW, TOP_K = range(6)
TEMPERATURE, PENALTY, TOP_P = range(6, 9)
KEYS = 16
LINE = KEYS + UNIT_SPEECH_TOKENS
ROW = LINE + MOST_REMEMBERED + UNIT_SPEECH_TOKENS

_NOWHERE = -1


class SpeechRows:
    """The rows of a batch, on the host and on the device."""

    def __init__(self, rows: int, audio_eos: int, device: torch.device) -> None:
        self._audio_eos = audio_eos
        self.sent = Sent(torch.zeros(rows, ROW, dtype=torch.int32, device=device))
        shape = (rows, UNIT_SPEECH_TOKENS)
        self.tokens = Returned(torch.zeros(shape, dtype=torch.int32, device=device))
        self._host: IntArray = self.sent.host
        self._keys = self._host.view(np.uint32)
        self._settings = self._host.view(np.float32)

    @staticmethod
    def takes(sampling: SpeechSampling) -> bool:
        """Whether the kernels can draw like this."""
        return 1 <= sampling.repetition_window <= MOST_REMEMBERED

    def fill(self, works: Sequence[SpeechWork], conditions: Sequence[int], count: int) -> None:
        """The first `count` rows: those of `works`, whose conditions have so many positions, and
        rows of nobody. A unit's keys are drawn."""
        for row, (work, before) in enumerate(zip(works, conditions, strict=True)):
            self._fill(row, work, before)
        idle = slice(len(works), count)
        self._host[idle] = 0
        self._host[idle, SLOT] = _NOWHERE
        self._settings[idle, TEMPERATURE] = 1

    def _fill(self, row: int, work: SpeechWork, before: int) -> None:
        sampling, known = work.sampling, _known(work)
        host, settings = self._host[row], self._settings[row]
        host[SLOT] = work.stream.slot
        host[START] = work.stream.length + before
        ends = not isinstance(work, Speak) or work.may_end
        host[BANNED] = _NOWHERE if ends else self._audio_eos
        host[KNOWN] = len(known)
        host[WINDOW] = sampling.repetition_window
        host[TOP_K] = sampling.top_k
        settings[TEMPERATURE] = sampling.temperature
        settings[PENALTY] = math.log2(sampling.repetition_penalty)
        settings[TOP_P] = sampling.top_p
        self._keys[row, KEYS:LINE] = work.random.keys(UNIT_SPEECH_TOKENS)
        host[LINE : LINE + len(known)] = known

    def take(self, works: Sequence[SpeechWork], conditions: Sequence[int]) -> None:
        """Give each work its tokens, once they are fetched: up to where its speech ended."""
        spoken: list[list[int]] = self.tokens.host[: len(works)].tolist()
        for work, before, tokens in zip(works, conditions, spoken, strict=True):
            work.stream.length += before
            if isinstance(work, Speak):
                self._end_unit(work, tokens)
            else:
                self._end_second(work, tokens)

    def _end_unit(self, work: Speak, tokens: list[int]) -> None:
        ended = tokens.index(self._audio_eos) if self._audio_eos in tokens else len(tokens)
        work.tokens = tokens[:ended]
        work.stream.length += ended

    def _end_second(self, work: SpeakOn, tokens: list[int]) -> None:
        """Draws that were made behind the end do not count."""
        call = work.call
        drawn = 0
        for token in tokens:
            drawn += 1
            if token == self._audio_eos:
                call.ended = True
                break
            call.tokens.append(token)
            work.stream.length += 1
            if len(call.tokens) >= call.most:
                call.ended = True
                break
        work.random.drawn -= len(tokens) - drawn


def _known(work: SpeechWork) -> list[int]:
    if isinstance(work, Speak):
        return []
    line = [*work.call.before, *work.call.tokens]
    return line[-work.sampling.repetition_window :]
