"""An answer of a half-duplex conversation: its words and calls, and how the words sound.

It comes in chunks of ten tokens, as the model was trained to speak: each goes to the speech LM as
soon as it is known whether the text ends with it. Where functions may be called, words wait that
may yet turn out to belong to a call; nothing is said of one, nor of what follows it.
"""

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

from agent.duplex.answer import Answer, AnswerPiece, Taken
from agent.duplex.answer_speech import (
    CHUNK_TOKENS,
    Chunk,
    SpeechRules,
    WaitingWords,
    newest,
    words_of,
)
from agent.duplex.policy import Spoken
from agent.duplex.random_source import RandomSource
from agent.duplex.sampling import SpeechSampling
from agent.duplex.speech_lm import SPEECH_TOKEN_MS, SpeechCall
from agent.duplex.tool_calls import CallReader, WrittenCall
from agent.duplex.turn_memory import TurnMemory
from agent.duplex.work import SpeakOn, Work


@dataclass(frozen=True, slots=True)
class Speaking:
    """How an answer sounds: `speech_positions` are those of the speech LM's cache."""

    sampling: SpeechSampling
    random: RandomSource
    speech_positions: int
    max_call_tokens: int
    lag_ms: int


class SpokenAnswer:
    """One answer under way. `steps` until a piece says why it is over."""

    def __init__(
        self,
        answer: Answer,
        memory: TurnMemory,
        speaking: Speaking,
        calls: CallReader | None,
        *,
        speaks: bool,
    ) -> None:
        """`calls` finds the functions that are called in its text, where it may call any."""
        self._answer = answer
        self._memory = memory
        self._speaking = speaking
        self._calls = calls
        rules = SpeechRules(speaking.sampling, speaking.max_call_tokens)
        self._words = WaitingWords(rules) if calls is not None else None
        self._chunks: deque[Chunk] = deque()
        self._call: SpeechCall | None = None
        self._speaks = speaks

    @property
    def waits(self) -> bool:
        """Whether words that were told are still to become speech."""
        return self._call is not None or bool(self._chunks)

    def mute(self) -> None:
        """What comes from now on is not spoken."""
        self._speaks = False

    def steps(self) -> Generator[Work, None, AnswerPiece]:
        """The next words, or a second of how those before sound."""
        if self.waits:
            return (yield from self._say_on())
        answer = self._answer
        taken = yield from answer.steps(CHUNK_TOKENS)
        self._memory.settle()
        if answer.finish is not None:
            answer.text.finish()
        if self._speaks:
            self._chunks += [one for one in self._to_say(taken) if self._is_heard(one)]
        self._sound(taken)
        text, reasoning = answer.text.take()
        finish = None if self.waits else answer.finish
        return AnswerPiece(text, reasoning, finish, len(taken.ids), calls=self._called())

    def _called(self) -> tuple[WrittenCall, ...]:
        """A call that the limit cut short is none: what it would do is not known."""
        calls = self._calls.take() if self._calls is not None else []
        return tuple(one for one in calls if one.is_whole)

    def _to_say(self, taken: Taken) -> Sequence[Chunk]:
        """The words that are settled with these tokens; reasoning is not spoken."""
        text_ended, most = self._answer.finish is not None, self._speaking.max_call_tokens
        if self._words is None:
            return [words_of(taken, text_ended=text_ended, most=most)]
        self._words.add(taken)
        settled = self._answer.text.settled_words
        chunks = self._words.chunks(settled, text_ended=text_ended)
        return [replace(one, most=most) for one in chunks]

    def _is_heard(self, chunk: Chunk) -> bool:
        return bool(self._chunks) or not chunk.is_silent(self._memory.speech)

    def _say_on(self) -> Generator[Work, None, AnswerPiece]:
        memory, speaking = self._memory, self._speaking
        call = self._call
        if call is None:
            chunk = self._chunks.popleft()
            call = chunk.call(memory.speech, memory.codes, speaking.speech_positions)
            self._call = call
        known = len(call.tokens)
        yield SpeakOn(call, memory.speech, speaking.sampling, speaking.random)
        codes = tuple(call.tokens[known:])
        *before, last = memory.chunks
        longer = replace(last, length_ms=last.length_ms + len(codes) * SPEECH_TOKEN_MS)
        memory.chunks = (*before, longer)
        if call.ended:
            memory.codes = newest(memory.codes, call.tokens, speaking.sampling)
            self._call = None
        finish = None if self.waits else self._answer.finish
        return AnswerPiece("", "", finish, 0, codes)

    def _sound(self, taken: Taken) -> None:
        """Where the chunk begins to sound within its answer; `_say_on` tells how long it does."""
        chunks = self._memory.chunks
        start_ms = self._speaking.lag_ms
        if chunks:
            start_ms = chunks[-1].start_ms + chunks[-1].length_ms
        self._memory.chunks = (*chunks, Spoken(tuple(taken.ids), start_ms, 0))
