"""A chat: one request with its whole conversation, answered once, token by token.

The prompt is the reference's; its answer is drawn without beams. What the reference does else and
this does not: sounds of a message are encoded one by one (`content`), and no letters are eaten off
the answer's end. What users write cannot become a control token, `<|listen|>` among them.

An answer that is spoken comes as a half-duplex one does, in chunks of ten tokens, each heard before
the next is drawn; the reference speaks when all of it is there. Its system message is what
`chat_prompt` says. A voice that fails is left out, and the answer goes on in text.
"""

import logging
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from agent.chat_types import ChatRequest
from agent.duplex.answer import (
    Answer,
    AnswerPiece,
    AnswerRules,
    Taken,
    TokenSource,
    read_in_pieces,
)
from agent.duplex.answer_speech import (
    CHUNK_TOKENS,
    AnswerVoice,
    Speaker,
    Voiced,
    WaitingWords,
    parted,
)
from agent.duplex.answer_text import AnswerText
from agent.duplex.audio_encoder import BLOCK_FRAMES
from agent.duplex.chat_prompt import answer_tokens, check_characters, lay_out_chat
from agent.duplex.chat_sampling import (
    AnswerSampler,
    banned_in_answers,
    requested_sampling,
)
from agent.duplex.content import Senses, fill, perceive
from agent.duplex.kv_cache import KvStream
from agent.duplex.lanes import Runner
from agent.duplex.prompt import ChatLayout, SoundSpan
from agent.duplex.random_source import RandomSource
from agent.duplex.sampling import Drawing, History
from agent.duplex.tokens import Token
from agent.duplex.tool_calls import MAX_CALLS, CallReader
from agent.duplex.tool_prompt import forced_opening
from agent.duplex.work import NO_SOUND, Work
from agent.errors import EngineError, RequestError, VocoderError

log = logging.getLogger(__name__)

ENDS = frozenset({int(Token.IM_END), int(Token.END_OF_TEXT)})
"""What ends an answer."""
SPOKEN_ENDS = ENDS | {int(Token.TTS_EOS)}
"""What ends one that is spoken."""
PIECE_TOKENS = 8
"""Tokens of a step: few enough that others get their turn."""
MAX_STOPS = 64
"""Stop strings, and as many stop tokens."""


class Chat:
    """One request. Not for two threads at once."""

    def __init__(
        self,
        runner: Runner,
        request: ChatRequest,
        layout: ChatLayout | None = None,
        script: Iterator[int] | None = None,
        speaker: Speaker | None = None,
    ) -> None:
        """Check the request, lay its prompt out and take a slot.

        RequestError for what cannot be answered, CapacityError when no slot is free. `speaker` is
        whose voice an answer has that is spoken. `layout` in place of the one that the request
        makes, and `script`, which gives every token that would be drawn, are for tests.
        """
        if request.speaks != (speaker is not None):
            raise ValueError("an answer that is spoken, and no other, needs a speaker")
        model = runner.model
        self._runner = runner
        self._vectors = speaker.vectors if speaker is not None else None
        check_characters(request, runner.slots.llm.positions)
        self._senses = Senses(request.max_slices)
        span = SoundSpan(len(self._vectors)) if self._vectors is not None else None
        self._laid = lay_out_chat(model.vocabulary, request, self._senses, layout, span)
        most = answer_tokens(request, len(self._laid.ids), runner.slots.llm.positions)
        ends = SPOKEN_ENDS if request.speaks else ENDS
        rules = AnswerRules(ends | set(_stop_tokens(request)), most, looks_ahead=request.speaks)
        opening = forced_opening(request.tools, request.tool_choice)
        self._calls = _call_reader(request)
        text = AnswerText(
            model.vocabulary.text,
            thinking=request.thinking and not opening,
            stop=_stop_strings(request),
            calls=self._calls,
        )
        text.open_with(opening)
        source = _source(runner, request, ends, most, script)
        self._stream = KvStream(runner.slots.take())
        self._answer = Answer(self._stream, source, rules, text)
        self._speech = _Speech(runner, request, speaker, self._stream.slot) if speaker else None
        self._begun = self._closed = False

    @property
    def prompt_tokens(self) -> int:
        """Positions of the prompt, the vectors of pictures and sounds counted."""
        return len(self._laid.ids)

    @property
    def slot(self) -> int:
        """Its place in the caches."""
        return self._stream.slot

    @property
    def is_voiced(self) -> bool:
        """Whether no voice has failed so far."""
        return self._speech is None or not self._speech.has_failed

    def begin(self) -> Generator[Work, None, None]:
        """Look, listen and read the prompt; once, and to the end, before `advance`."""
        self._check_open()
        if self._begun:
            raise EngineError("the chat was begun before")
        self._begun = True
        if self._speech is not None:
            yield from self._speech.open_steps()
        embeddings = yield from self._perceived()
        self._senses = Senses()
        state = yield from read_in_pieces(embeddings, self._stream)
        yield from self._answer.begin(state)

    def advance(self, count: int = PIECE_TOKENS) -> Generator[Work, None, AnswerPiece]:
        """Up to `count` tokens more; behind the piece with a `finish` only empty ones come.

        Of an answer that is spoken: ten tokens, and then piece by piece their sound.
        """
        self._check_open()
        if not self._begun:
            raise EngineError("the chat has not begun")
        speech = self._speech
        if speech is not None and speech.waits:
            voiced = yield from speech.steps()
            finish = None if speech.waits else self._answer.finish
            return AnswerPiece("", "", finish, 0, voiced.tokens, voiced.samples)
        is_spoken = speech is not None and not speech.has_failed
        taken = yield from self._answer.steps(CHUNK_TOKENS if is_spoken else count)
        finish, text = self._answer.finish, self._answer.text
        if finish is not None:
            text.finish()
        shown, reasoning = text.take()
        calls = tuple(self._calls.take()) if self._calls is not None else ()
        if speech is not None and is_spoken:
            speech.add(taken, text.settled_words, text_ended=finish is not None)
            finish = None if speech.waits else finish
        return AnswerPiece(shown, reasoning, finish, len(taken.ids), calls=calls)

    def close(self) -> None:
        """Give the slot back, whatever was under way. Idempotent."""
        if not self._closed:
            self._runner.slots.give_back(self._stream.slot)
        self._closed = True

    def _perceived(self) -> Generator[Work, None, Tensor]:
        """The prompt's vectors; the voice is the first sound in it, and was heard before."""
        heard = [] if self._vectors is None else [self._vectors]
        bounds = self._laid.sound_bounds
        asked = replace(self._laid, sound_bounds=bounds[len(heard) :])
        model = self._runner.model
        embeddings = yield from perceive(model, asked, self._senses, BLOCK_FRAMES)
        fill(embeddings, bounds[: len(heard)], heard)
        return embeddings

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("the chat is closed")


def _call_reader(request: ChatRequest) -> CallReader | None:
    """What finds the calls in the answer, where it may hold any."""
    if not request.tools or request.tool_choice == "none":
        return None
    names = [one.name for one in request.tools]
    is_one = request.one_call or request.tool_choice in names
    return CallReader(names, most=1 if is_one else MAX_CALLS)


def _source(
    runner: Runner,
    request: ChatRequest,
    ends: frozenset[int],
    most: int,
    script: Iterator[int] | None,
) -> TokenSource:
    """How the answer's tokens are drawn; one that is spoken says nothing that nobody can read."""
    device, sampling = runner.model.target.device, requested_sampling(request)
    bans_calls = bool(request.tools) and request.tool_choice == "none"
    banned = banned_in_answers(runner.model, mute=request.speaks, bans_calls=bans_calls)
    sampler = AnswerSampler(sampling, ends, device, banned)
    silent = AnswerSampler(sampling, ends, device) if request.speaks else None
    drawing = Drawing(History(most), RandomSource.of(request.seed))
    return TokenSource(sampler, drawing, script, silent)


# ---- the voice ----------------------------------------------------------------------------------


class _Speech:
    """The answer's voice as long as it does not fail, and the words that it is to say."""

    def __init__(self, runner: Runner, request: ChatRequest, speaker: Speaker, slot: int) -> None:
        # Chance of its own: the words are the same whether or not they are heard.
        random = RandomSource.of(request.seed).aside()
        self._voice = AnswerVoice(runner, speaker, KvStream(slot), random)
        self._words = WaitingWords(speaker.rules)
        self._decode = runner.model.vocabulary.text
        self.has_failed = False

    @property
    def waits(self) -> bool:
        """Whether something is still to be said."""
        return self._voice.waits and not self.has_failed

    def open_steps(self) -> Generator[Work, None, None]:
        """Have the voice ready."""
        try:
            yield from self._voice.open_steps()
        except VocoderError as error:
            self._fail(error)

    def add(self, taken: Taken, settled_words: int, *, text_ended: bool) -> None:
        """The next tokens; so many of the answer's words, from its first on, may be said."""
        self._words.add(taken)
        for chunk in self._words.chunks(settled_words, text_ended=text_ended):
            is_long = self._voice.is_long
            self._voice.add(*(parted(chunk, self._decode) if is_long else (chunk,)))

    def steps(self) -> Generator[Work, None, Voiced]:
        """The next second."""
        try:
            return (yield from self._voice.steps())
        except VocoderError as error:
            self._fail(error)
            return Voiced((), NO_SOUND)

    def _fail(self, error: VocoderError) -> None:
        log.warning("an answer goes on in text: %s", error)
        self._voice.give_up()
        self.has_failed = True


# ---- limits ------------------------------------------------------------------------------------


def _stop_strings(request: ChatRequest) -> Sequence[str]:
    if len(request.stop) > MAX_STOPS or not all(request.stop):
        raise RequestError(f"at most {MAX_STOPS} stop strings, none of them empty", param="stop")
    return request.stop


def _stop_tokens(request: ChatRequest) -> Sequence[int]:
    if len(request.stop_token_ids) > MAX_STOPS:
        raise RequestError(f"at most {MAX_STOPS} stop tokens", param="stop_token_ids")
    return request.stop_token_ids
