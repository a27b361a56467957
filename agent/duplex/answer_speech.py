"""What an answer says becomes sound: chunks of its words to speech tokens, and these to a voice.

All is work for whoever runs it, a second of speech at a time: the sound of an answer begins long
before its text is complete, and others' work goes between. Used wherever an answer is spoken turn
by turn; half-duplex calls keep the vocoder's stream themselves.
"""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from torch import Tensor

from agent.duplex.answer import Taken
from agent.duplex.kv_cache import KvStream
from agent.duplex.lanes import Runner
from agent.duplex.model import DuplexModel
from agent.duplex.random_source import RandomSource
from agent.duplex.sampling import SpeechSampling
from agent.duplex.slots import Slots
from agent.duplex.speech_lm import SpeechCall
from agent.duplex.work import NO_SOUND, LaneName, SpeakOn, Voice, Work, voice_failure
from agent.errors import VocoderError
from agent.interfaces import VocoderStream
from agent.types import FloatArray

CHUNK_TOKENS = 10
"""Tokens that go to the speech LM at once: so it was trained."""
_WORD_SPEECH_TOKENS = 50  # 2 s: no token takes longer to say
_LONG_SHARE = 0.6  # of the cache; speech that takes more starts anew behind the next sentence
_ENDS = (".", "!", "?")
_HAN_ENDS = ("。", "！", "？")
_CLOSING = "\"'”’」』"


# ---- chunks, for the speech LM ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Chunk:
    """Words that go to the speech LM at once, each with the LLM's state [W] where it was read."""

    said: Sequence[int]
    states: Sequence[Tensor]
    text_ended: bool
    """No words follow."""
    most: int
    """Speech tokens that it may take; a chunk that finds no end by itself ends there."""
    goes_on: bool = False
    """The answer does, whatever the speech LM is told: its speech starts anew behind this."""

    def is_silent(self, stream: KvStream) -> bool:
        """Whether there is nothing to say: no words, and no speech that is to be ended."""
        return not self.said and not (self.text_ended and stream.length)

    def call(self, stream: KvStream, before: Sequence[int], positions: int) -> SpeechCall:
        """The call that says it behind what `stream` holds, of at most `positions`.

        `before` are the newest speech tokens of the answer. Speech that has no room left for the
        chunk starts anew.
        """
        length = len(self.said) + 2
        most = min(self.most, positions - length)
        if stream.length + length + min(most, positions // 4) > positions:
            stream.length = 0  # only a very long answer comes here: its voice starts anew
        return SpeechCall(
            self.said,
            self.states,
            text_ended=self.text_ended,
            before=before,
            most=min(most, positions - stream.length - length),
        )


def words_of(taken: Taken, *, text_ended: bool, most: int) -> Chunk:
    """The words among an answer's tokens; reasoning is not spoken, nor what was never read."""
    words = [at for at in range(len(taken.states)) if taken.are_words[at]]
    said = [taken.ids[at] for at in words]
    return Chunk(said, [taken.states[at] for at in words], text_ended, most)


class WaitingWords:
    """Words of an answer that are not said yet, since they may belong to a stop string.

    While the answer goes on they leave ten at a time, or, where fewer are settled, all of these;
    so less than ten wait beside those that are not settled.
    """

    def __init__(self, rules: "SpeechRules") -> None:
        self._rules = rules
        self._words: deque[tuple[int, Tensor]] = deque()
        self._gone = 0

    def add(self, taken: Taken) -> None:
        """What was taken into the answer."""
        words = words_of(taken, text_ended=False, most=0)
        self._words += zip(words.said, words.states, strict=True)

    def chunks(self, settled: int, *, text_ended: bool) -> list[Chunk]:
        """What is to be said now, as `settled` words of the answer may be; at its end at least one.

        Those that are not settled at the end are never said.
        """
        count = min(settled - self._gone, len(self._words))
        if count > CHUNK_TOKENS and not text_ended:
            count -= count % CHUNK_TOKENS
        self._gone += count
        words = [self._words.popleft() for _ in range(count)]
        parts = [words[at : at + CHUNK_TOKENS] for at in range(0, count, CHUNK_TOKENS)]
        if text_ended:
            self._words.clear()
            parts = parts or [[]]
        return [
            Chunk(
                [one for one, _ in part],
                [state for _, state in part],
                text_ended=text_ended and number == len(parts),
                most=self._rules.most(len(part)),
            )
            for number, part in enumerate(parts, 1)
        ]


def parted(chunk: Chunk, decode: Callable[[Sequence[int]], str]) -> tuple[Chunk, ...]:
    """The chunk, cut in two behind the last sentence that ends inside of it, where one does.

    The end of the chunk is no place to cut: whether a point ends a sentence, what follows tells.
    """
    texts = [decode([one]).rstrip(_CLOSING) for one in chunk.said]
    ends = [
        at
        for at, (text, then) in enumerate(pairwise([*texts, ""]), 1)
        if at < len(texts)
        and (text.endswith(_HAN_ENDS) or (text.endswith(_ENDS) and then[:1].isspace()))
    ]
    if not ends:
        return (chunk,)
    at = ends[-1]
    return (
        replace(
            chunk, said=chunk.said[:at], states=chunk.states[:at], text_ended=True, goes_on=True
        ),
        replace(chunk, said=chunk.said[at:], states=chunk.states[at:]),
    )


def newest(before: Sequence[int], said: Sequence[int], sampling: SpeechSampling) -> tuple[int, ...]:
    """The speech tokens that count for the next call's repetition penalty."""
    return (*before, *said)[-max(1, sampling.repetition_window) :]


# ---- whole answers ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SpeechRules:
    """How answers outside of calls are spoken: the reference's own numbers."""

    sampling: SpeechSampling = field(default_factory=lambda: SpeechSampling(top_p=0.85, top_k=25))
    max_call_tokens: int = 500
    """Speech tokens of a chunk, 20 s; less for one of few words, which then lost its way."""

    def most(self, words: int) -> int:
        """Speech tokens that a chunk of so many words may take."""
        return min(self.max_call_tokens, _WORD_SPEECH_TOKENS * (words + 1))


@dataclass(frozen=True, slots=True)
class Speaker:
    """Whose voice an answer has: as the model hears it, and as sound.

    `vectors` [n, W] stand in the prompt; None: there is nothing to hear. `open` begins an
    utterance; `VocoderError`.
    """

    vectors: Tensor | None
    open: Callable[[], VocoderStream]
    rules: SpeechRules = field(default_factory=SpeechRules)


@dataclass(slots=True)
class OpenVoice:
    """Begin an utterance of the vocoder → its stream, or what went wrong, as `Voice` keeps it."""

    open: Callable[[], VocoderStream]
    stream: VocoderStream | None = None
    error: VocoderError | None = None
    stage = "voice"
    lane: LaneName = "voice"

    def run(self, model: DuplexModel, slots: Slots) -> None:
        """Do it."""
        try:
            self.stream = self.open()
        except (VocoderError, RuntimeError) as error:
            self.error = voice_failure(error)


@dataclass(frozen=True, slots=True)
class Voiced:
    """Speech tokens, and the sound [T] at 24 kHz that they completed."""

    tokens: tuple[int, ...]
    samples: FloatArray


class AnswerVoice:
    """The voice of one answer: `add` a chunk, then `steps` while it `waits`; so to the end."""

    def __init__(
        self, runner: Runner, speaker: Speaker, stream: KvStream, random: RandomSource
    ) -> None:
        """`stream` is the answer's place in the speech LM's cache, empty."""
        self._positions = runner.slots.speech.positions
        self._end = runner.model.speech.config.audio_eos
        self._speaker = speaker
        self._stream = stream
        self._random = random
        self._codes: tuple[int, ...] = ()
        self._call: SpeechCall | None = None
        self._sound: VocoderStream | None = None
        self._chunks: deque[Chunk] = deque()
        self._goes_on = self._finishes = self._is_heard = False

    @property
    def waits(self) -> bool:
        """Whether something is still to be said of what was added."""
        return self._call is not None or self._finishes

    @property
    def is_long(self) -> bool:
        """Whether its speech had better start anew, since its cache is full before long."""
        return self._stream.length > _LONG_SHARE * self._positions

    def open_steps(self) -> Generator[Work, None, None]:
        """Have the voice ready before its first word; not needed. `VocoderError`."""
        yield from self._opened()

    def add(self, *chunks: Chunk) -> None:
        """The next words, once nothing waits."""
        self._chunks += chunks
        self._begin_next()

    def steps(self) -> Generator[Work, None, Voiced]:
        """The next second of what waits. `VocoderError`."""
        call = self._call
        if call is None:
            self._finishes = False
            return Voiced((), (yield from self._finished()))
        known = len(call.tokens)
        yield SpeakOn(call, self._stream, self._speaker.rules.sampling, self._random)
        tokens = tuple(one for one in call.tokens[known:] if 0 <= one < self._end)
        samples = NO_SOUND
        if tokens:
            self._is_heard = True
            samples = yield from self._voiced(Voice((yield from self._opened()), tokens))
        if call.ended:
            self._close(call)
        return Voiced(tokens, samples)

    def give_up(self) -> None:
        """Let go of the vocoder's stream: nothing more is asked of this voice."""
        self._sound = None

    def _close(self, call: SpeechCall) -> None:
        """A call is over; its chunk may have been the last."""
        self._codes = newest(self._codes, call.tokens, self._speaker.rules.sampling)
        self._call = None
        if self._goes_on:
            self._stream.length = 0
        else:
            self._finishes = call.text_ended and self._is_heard
        self._begin_next()

    def _begin_next(self) -> None:
        while self._call is None and self._chunks:
            chunk = self._chunks.popleft()
            self._goes_on = chunk.goes_on
            if not chunk.is_silent(self._stream):
                self._call = chunk.call(self._stream, self._codes, self._positions)
            elif chunk.text_ended and not chunk.goes_on:
                self._finishes = self._is_heard

    def _opened(self) -> Generator[Work, None, VocoderStream]:
        """The utterance's stream, which is begun where there is none."""
        if self._sound is None:
            opening = OpenVoice(self._speaker.open)
            yield opening
            if opening.error is not None:
                raise opening.error
            self._sound = opening.stream
        assert self._sound is not None, "it was opened"
        return self._sound

    def _voiced(self, asked: Voice) -> Generator[Work, None, FloatArray]:
        yield asked
        if asked.error is not None:
            raise asked.error
        return asked.samples

    def _finished(self) -> Generator[Work, None, FloatArray]:
        sound, self._sound = self._sound, None
        if sound is None:
            return NO_SOUND
        return (yield from self._voiced(Voice(sound, last=True)))
