"""A text read aloud, word by word: what an answer would be that says it, given to the model.

    system   the voice that is to be cloned, as the model hears it
    user     please read this aloud: the text
    answer   <|tts_bos|> the text

The answer's tokens are not drawn but fed; with the states at them they go to the speech LM in
chunks of ten, as an answer that is spoken while it comes. A long text is cut into segments of half
a minute at most, each an answer of its own behind the same system message, with its own speech and
its own utterance of the vocoder: the sounds follow each other.
"""

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor

from agent.chat_types import FinishReason, SpeechRequest
from agent.duplex.answer import PIECE_POSITIONS, AnswerPiece, read_in_pieces
from agent.duplex.answer_speech import (
    CHUNK_TOKENS,
    AnswerVoice,
    Chunk,
    Speaker,
    Voiced,
)
from agent.duplex.chat_sampling import unreadable_ids
from agent.duplex.content import fill
from agent.duplex.kv_cache import KvStream
from agent.duplex.lanes import Runner
from agent.duplex.model import DuplexModel
from agent.duplex.prompt import (
    READ_ALOUD_ZH,
    ChatLayout,
    LaidOut,
    Message,
    SoundSpan,
    chat_segments,
    lay_out,
    system_content,
)
from agent.duplex.random_source import RandomSource
from agent.duplex.reading_text import cut, estimated_s, is_chinese, readable
from agent.duplex.slots import Slots
from agent.duplex.tokens import Vocabulary
from agent.duplex.work import NO_SOUND, LaneName, Work
from agent.errors import EngineError, RequestError

MAX_CHARACTERS = 4096
"""Of a text; longer ones are refused."""
SEGMENT_S = 30.0
"""So much speech is said in one go, by estimate: it fits into the speech LM's cache many times."""
READ_ALOUD_EN = "Please read the following text aloud."
"""Before the text, and a space."""
_CHINESE = ("zh", "yue", "cmn")
_LEAST_ROOM = 64  # for the words of a segment, which are there twice
_LAYOUT = ChatLayout(spoken=True, max_tokens=1 << 40)


@dataclass(slots=True)
class ReadAll:
    """The LLM's next positions [T, W] → the states [T, W] at all of them."""

    embeddings: Tensor
    stream: KvStream
    states: Tensor = field(default_factory=lambda: torch.empty(0))
    stage = "prefill"
    lane: LaneName = "llm"

    @property
    def count(self) -> int:
        """How many positions."""
        return len(self.embeddings)

    def run(self, model: DuplexModel, slots: Slots) -> None:
        """Do it."""
        self.states = model.llm.read(self.embeddings[None], [self.stream], slots.llm)[0]


@dataclass(frozen=True, slots=True)
class Segment:
    """Ids of the user's message with the answer's header, and of the words that are the answer."""

    asked: tuple[int, ...]
    said: tuple[int, ...]

    @property
    def positions(self) -> int:
        """Of the LLM that it takes."""
        return len(self.asked) + len(self.said)


class Reading:
    """One text. Not for two threads at once. Asked for like a `Chat`: `begin`, then `advance`."""

    def __init__(self, runner: Runner, request: SpeechRequest, speaker: Speaker) -> None:
        """Check the text, lay everything out and take a slot.

        RequestError for a text that cannot be read, CapacityError when no slot is free.
        """
        self._runner = runner
        self._speaker = speaker
        vocabulary, positions = runner.model.vocabulary, runner.slots.llm.positions
        text = checked_text(vocabulary, request.text)
        chinese = is_chinese(text) or request.language.lower().startswith(_CHINESE)
        self._opening = _opening(vocabulary, speaker, "zh" if chinese else "en")
        wording = READ_ALOUD_ZH if chinese else READ_ALOUD_EN
        room = positions - len(self._opening.ids)
        self._segments = deque(Segments(vocabulary, wording, room).of(text))
        self._chunks: deque[Chunk] = deque()
        self._prompt_tokens = len(self._opening.ids)
        self._random = RandomSource.of(request.seed)
        self._stream = KvStream(runner.slots.take())
        self._voice = self._next_voice()
        self._begun = self._closed = False

    @property
    def prompt_tokens(self) -> int:
        """Positions that were read before the words, the voice's vectors counted; so far."""
        return self._prompt_tokens

    @property
    def is_voiced(self) -> bool:
        """Always: a reading without its voice fails."""
        return True

    def begin(self) -> Generator[Work, None, None]:
        """Read the system message and open the voice; once, and to the end, before `advance`."""
        self._check_open()
        if self._begun:
            raise EngineError("the reading was begun before")
        self._begun = True
        embeddings = self._runner.model.llm.embed(self._opening.ids).detach()
        vectors = self._speaker.vectors
        fill(embeddings, self._opening.sound_bounds, [] if vectors is None else [vectors])
        yield from self._voice.open_steps()
        yield from read_in_pieces(embeddings, self._stream)

    def advance(self) -> Generator[Work, None, AnswerPiece]:
        """The next second of it; behind the piece with a `finish` only empty ones come.

        VocoderError when it cannot go on in its voice.
        """
        self._check_open()
        if not self._begun:
            raise EngineError("the reading has not begun")
        words = yield from self._say_on()
        voice = self._voice
        voiced = (yield from voice.steps()) if voice.waits else Voiced((), NO_SOUND)
        finish: FinishReason | None = None if self._has_more else "stop"
        return AnswerPiece("", "", finish, words, voiced.tokens, voiced.samples)

    def close(self) -> None:
        """Give the slot back, whatever was under way. Idempotent."""
        if not self._closed:
            self._runner.slots.give_back(self._stream.slot)
        self._closed = True

    @property
    def _has_more(self) -> bool:
        return self._voice.waits or bool(self._chunks or self._segments)

    def _say_on(self) -> Generator[Work, None, int]:
        """Give the next words to the voice, once it waits for some → how many."""
        if self._voice.waits:
            return 0
        if not self._chunks and self._segments:
            yield from self._read(self._segments.popleft())
        if not self._chunks:
            return 0
        chunk = self._chunks.popleft()
        self._voice.add(chunk)
        return len(chunk.said)

    def _next_voice(self) -> AnswerVoice:
        speech = KvStream(self._stream.slot)
        return AnswerVoice(self._runner, self._speaker, speech, self._random)

    def _read(self, segment: Segment) -> Generator[Work, None, None]:
        """A segment behind the system message, in place of the one before it; its chunks wait."""
        if self._stream.length > len(self._opening.ids):
            self._voice = self._next_voice()
            self._stream.length = len(self._opening.ids)
        embed = self._runner.model.llm.embed
        self._prompt_tokens += len(segment.asked)
        states: list[Tensor] = []
        for piece in torch.split(embed([*segment.asked, *segment.said]), PIECE_POSITIONS):
            reading = ReadAll(piece, self._stream)
            yield reading
            states += reading.states
        self._chunks += self._in_chunks(segment.said, states[len(segment.asked) :])

    def _in_chunks(self, said: Sequence[int], states: Sequence[Tensor]) -> Iterable[Chunk]:
        for start in range(0, len(said), CHUNK_TOKENS):
            stop = start + CHUNK_TOKENS
            words = said[start:stop]
            most = self._speaker.rules.most(len(words))
            yield Chunk(words, states[start:stop], text_ended=stop >= len(said), most=most)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("the reading is closed")


# ---- the text -----------------------------------------------------------------------------------


def checked_text(vocabulary: Vocabulary, text: str) -> str:
    """What is read of `text`, without control tokens; RequestError when that is nothing."""
    if len(text) > MAX_CHARACTERS:
        raise RequestError(
            f"the text has {len(text):,} characters and may have {MAX_CHARACTERS:,}; send it in "
            "parts",
            param="input",
            code="string_above_max_length",
        )
    # Once more at the end: what was taken out of the middle of one may have made another.
    said = readable(vocabulary.defused(text), chinese=is_chinese(text))
    said = vocabulary.defused(said)
    if not any(map(str.isalnum, said)):
        raise RequestError("the text holds nothing that can be read aloud", param="input")
    return said


class Segments:
    """Cuts a text into what is said in one go."""

    def __init__(self, vocabulary: Vocabulary, wording: str, room: int) -> None:
        """`room` positions are left behind the system message; RequestError when too few."""
        self._vocabulary = vocabulary
        self._wording = wording
        self._room = room
        self._marks = _marks(vocabulary)
        if self._segment("").positions + _LEAST_ROOM > room:
            raise RequestError(
                f"{room} positions are left beside the voice; use a shorter recording of it",
                param="voice",
                code="context_length_exceeded",
            )

    def of(self, text: str, most_s: float = SEGMENT_S) -> list[Segment]:
        """The segments of a text that was checked; those that do not fit are cut finer."""
        segments: list[Segment] = []
        for piece in cut(text, most_s):
            segment = self._segment(piece)
            if segment.positions > self._room and len(piece) > 1:
                segments += self.of(piece, estimated_s(piece) / 2)
            elif segment.said:
                segments.append(segment)
        return segments

    def _segment(self, text: str) -> Segment:
        message = Message("user", (f"{self._wording} {text}",))
        asked = lay_out(self._vocabulary, chat_segments([message], _LAYOUT), _LAYOUT).ids
        said = (one for one in self._vocabulary.encode(text) if one not in self._marks)
        return Segment(asked, tuple(said))


def _opening(vocabulary: Vocabulary, speaker: Speaker, language: str) -> LaidOut:
    """The system message: of a voice that is cloned, or that is not heard at all."""
    if speaker.vectors is None:
        content = system_content("assistant", language, None)
    else:
        content = system_content("clone", language, SoundSpan(len(speaker.vectors)))
    layout = replace(_LAYOUT, answer=False)
    return lay_out(vocabulary, chat_segments([Message("system", content)], layout), layout)


@lru_cache(maxsize=2)
def _marks(vocabulary: Vocabulary) -> frozenset[int]:
    """The tokens that nobody can say and that are no part of a word."""
    unreadable = unreadable_ids(vocabulary, torch.device("cpu")).tolist()
    return frozenset(one for one in unreadable if _is_mark(vocabulary.text([one])))


def _is_mark(text: str) -> bool:
    """Whether a token is no part of a word; a letter may be made of several tokens."""
    return "\ufffd" not in text and not any(map(str.isalnum, text))
