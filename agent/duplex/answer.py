"""An answer, token by token: what a chat and a half-duplex conversation share.

The token to come is always drawn already when a piece is handed on, so it is known whether the
answer ends there; it is fed, and shown, only with the next piece.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from agent.chat_types import FinishReason
from agent.duplex.answer_text import AnswerText
from agent.duplex.kv_cache import KvStream
from agent.duplex.sampling import Drawing
from agent.duplex.tool_calls import WrittenCall
from agent.duplex.work import Choice, Choose, Read, TokenSampler, Work
from agent.types import FloatArray

PIECE_POSITIONS = 512
"""A longer prompt is read in pieces of so many positions, so that a call's unit can go between."""


@dataclass(frozen=True, slots=True)
class AnswerPiece:
    """What came of one step of an answer.

    `tokens` are those of this piece, of the reasoning too, but no terminator. `finish` is None
    until the end; behind it nothing more comes. `calls` are those that were complete by then.
    """

    text: str
    reasoning: str
    finish: FinishReason | None
    tokens: int
    speech_tokens: tuple[int, ...] = ()
    samples: FloatArray = field(default_factory=lambda: np.zeros(0, np.float32), compare=False)
    """Sound [T] at 24 kHz, where whoever answers has a voice of its own."""
    calls: tuple[WrittenCall, ...] = ()


@dataclass(frozen=True, slots=True)
class AnswerRules:
    """When an answer is over.

    At `max_tokens` the last token is shown. `looks_ahead`: it is fed too, and the token after it
    drawn, so that an answer which ends just there is told from one that was cut off. `looks_back`
    tokens of earlier pieces count for the repetition penalty, with all of the piece at hand; 0:
    all do.
    """

    ends: frozenset[int]
    max_tokens: int
    looks_ahead: bool = False
    looks_back: int = 0


@dataclass(frozen=True, slots=True)
class TokenSource:
    """Where tokens come from: the model and chance, or the `script` of a test.

    `silent` draws those of function calls, which nobody says: what cannot be read aloud, JSON is
    full of. None: as all others.
    """

    sampler: TokenSampler
    drawing: Drawing
    script: Iterator[int] | None = None
    silent: TokenSampler | None = None

    def choice(self, *, is_calling: bool = False) -> Choice | None:
        """What a token is to be read with, so that the one after it is drawn at once."""
        return None if self.script is not None else self._choice(is_calling=is_calling)

    def _choice(self, *, is_calling: bool) -> Choice:
        return Choice((self.silent if is_calling else None) or self.sampler, self.drawing)

    def token(self, reading: Read) -> int:
        """The token after one that was read with that."""
        return reading.token if self.script is None else next(self.script)

    def draw(self, state: Tensor, *, is_calling: bool = False) -> Generator[Work, None, int]:
        """The token after `state` [W]."""
        if self.script is not None:
            return next(self.script)
        choosing = Choose(state, self._choice(is_calling=is_calling))
        yield choosing
        return choosing.token


@dataclass(slots=True)
class Taken:
    """Tokens that became part of the answer, and the state at each that was fed."""

    ids: list[int] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    are_words: list[bool] = field(default_factory=list)
    """Which of them are words of the answer, not of the reasoning before it."""


class Answer:
    """One answer on its way. `begin`, then `steps` until `finish` says why it is over."""

    def __init__(
        self,
        stream: KvStream,
        source: TokenSource,
        rules: AnswerRules,
        text: AnswerText,
    ) -> None:
        self._stream = stream
        self._source = source
        self._rules = rules
        self._next = -1
        self._tokens = 0
        self.text = text
        self.finish: FinishReason | None = None

    def begin(self, state: Tensor) -> Generator[Work, None, None]:
        """Draw the first token after the prompt, whose last state [W] this is."""
        yield from self._look(state)

    def steps(self, count: int) -> Generator[Work, None, Taken]:
        """Take up to `count` tokens into the answer, fewer only at its end."""
        taken = Taken()
        while self.finish is None and len(taken.ids) < count:
            self._take(taken)
            if self.finish is None:
                choice = self._source.choice(is_calling=self.text.is_calling)
                reading = Read(self._stream, taken.ids[-1:], choice=choice)
                yield reading
                taken.states.append(reading.state)
                self._see(self._source.token(reading))
        return taken

    def _take(self, taken: Taken) -> None:
        """The token that was drawn is part of the answer, and may be its last."""
        rules, history = self._rules, self._source.drawing.history
        taken.ids.append(self._next)
        history.append(self._next, 1)
        if rules.looks_back and self._tokens and len(taken.ids) == 1:
            history.keep_newest(rules.looks_back)
        self._tokens += 1
        taken.are_words.append(self.text.push(self._next))
        if self.text.stopped:
            self.finish = "stop"
        elif self._tokens >= rules.max_tokens and not rules.looks_ahead:
            self.finish = "length"

    def _look(self, state: Tensor) -> Generator[Work, None, None]:
        self._see((yield from self._source.draw(state, is_calling=self.text.is_calling)))

    def _see(self, token: int) -> None:
        self._next = token
        if self._next in self._rules.ends:
            self.finish = "stop"
        elif self._tokens >= self._rules.max_tokens:
            self.finish = "length"


def read_in_pieces(
    embeddings: Tensor, stream: KvStream, most: int = PIECE_POSITIONS
) -> Generator[Work, None, Tensor]:
    """Read [T, W] piece by piece → the state [W] at the last position."""
    state = embeddings[-1]
    for piece in torch.split(embeddings, most):
        reading = Read(stream, vectors=piece)
        yield reading
        state = reading.state
    return state
