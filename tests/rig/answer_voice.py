"""Voices for answers outside of calls, and a vocoder that remembers what it was given."""

from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agent.duplex.answer import AnswerPiece
from agent.duplex.answer_speech import Speaker, SpeechRules
from agent.duplex.chat import Chat
from agent.duplex.lanes import Runner
from agent.duplex.reading import Reading
from agent.duplex.speech_lm import SpeechCall
from agent.duplex.work import SpeakOn, Work
from agent.errors import RequestError, VocoderError
from agent.types import FloatArray

TOKEN_SAMPLES = 960
TAIL_SAMPLES = 480
RULES = SpeechRules(max_call_tokens=30)
"""The tiny model finds no end by itself."""
BRIEF = SpeechRules(max_call_tokens=3)
"""Where only the words matter: a second of speech is two thirds of what an answer costs."""
VECTORS = torch.linspace(-1, 1, 3 * 256).view(3, 256)


class Choir:
    """A vocoder: a token is 960 samples of its thousandth, and the end 480 of the voice's number.

    `fails_at`: the stream's push or finish of that number, from 0, fails; −1: it cannot be opened.
    `error` says with what.
    """

    lag_ms = 0

    def __init__(self, fails_at: int | None = None, error: Exception | None = None) -> None:
        self.fails_at = fails_at
        self.error = error or VocoderError("not finite")
        self.streams: list[Singer] = []

    def prepare(self, voice: str) -> None:
        pass

    def open(self, voice: str) -> "Singer":
        if self.fails_at == -1:
            raise self.error
        self.streams.append(Singer(voice, self.fails_at, self.error))
        return self.streams[-1]

    @property
    def tokens(self) -> list[int]:
        """All that were pushed."""
        return [token for one in self.streams for push in one.pushes for token in push]


class Singer:
    """One stream."""

    def __init__(self, voice: str, fails_at: int | None, error: Exception) -> None:
        self.voice = voice
        self.pushes: list[list[int]] = []
        self.finished = False
        self._left = fails_at
        self._error = error

    def push(self, tokens: Sequence[int]) -> FloatArray:
        self._count()
        self.pushes.append(list(tokens))
        return sung(tokens)

    def finish(self) -> FloatArray:
        self._count()
        self.finished = True
        return np.full(TAIL_SAMPLES, len(self.voice), np.float32)

    def _count(self) -> None:
        if self._left == 0:
            raise self._error
        self._left = None if self._left is None else self._left - 1


def sung(tokens: Sequence[int]) -> FloatArray:
    return np.repeat(np.asarray(tokens, np.float32) / 1000, TOKEN_SAMPLES)


class TwoVoices:
    """anna and ben, of whom the model hears different things."""

    def ids(self) -> tuple[str, ...]:
        return ("anna", "ben")

    def resolve(self, voice_id: str, language: str = "") -> str:
        if voice_id not in ("", *self.ids()):
            raise RequestError(f"there is no voice {voice_id}", param="voice")
        return f"the key of {voice_id or 'anna'}"

    def duplex(self, key: str) -> Tensor | None:
        return VECTORS if key.endswith("anna") else -VECTORS[:2]

    def turns(self, key: str) -> Tensor | None:
        raise AssertionError("a chat hears voices in blocks")


def speaker(
    choir: Choir | None = None, vectors: Tensor | None = VECTORS, rules: SpeechRules = RULES
) -> Speaker:
    choir = choir or Choir()
    return Speaker(vectors, lambda: choir.open("the key of anna"), rules)


def run(
    used: Runner,
    steps: Generator[Work, None, Any],
    seen: Callable[[Work], object] = lambda work: None,
) -> Any:
    """Do it; `seen` is shown every work that is done."""
    while True:
        try:
            work = next(steps)
        except StopIteration as stop:
            return stop.value
        work.run(used.model, used.slots)
        seen(work)


def pieces_of(
    asked: Chat | Reading, used: Runner, seen: Callable[[Work], object] = lambda work: None
) -> list[AnswerPiece]:
    """All of an answer; it is closed then."""
    run(used, asked.begin(), seen)
    pieces: list[AnswerPiece] = []
    while not pieces or pieces[-1].finish is None:
        pieces.append(run(used, asked.advance(), seen))
    asked.close()
    return pieces


def calls_of(works: Sequence[Work]) -> list[SpeechCall]:
    """What was given to the speech LM, in order."""
    calls = {id(work.call): work.call for work in works if isinstance(work, SpeakOn)}
    return list(calls.values())


def sound_of(pieces: Sequence[AnswerPiece]) -> FloatArray:
    return np.concatenate([np.zeros(0, np.float32), *(one.samples for one in pieces)])


def tokens_of(pieces: Sequence[AnswerPiece]) -> list[int]:
    return [token for one in pieces for token in one.speech_tokens]


def close(ours: Tensor, theirs: Tensor) -> bool:
    assert ours.shape == theirs.shape
    return bool((ours - theirs).abs().max() <= 1e-4 * theirs.abs().max())
