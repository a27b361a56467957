"""A chat: one request with its whole conversation, answered once, token by token.

The prompt is the reference's; its answer is drawn without beams. What the reference does else and
this does not: sounds of a message are encoded one by one (`content`), and no letters are eaten off
the answer's end. What users write cannot become a control token, `<|listen|>` among them.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace

from agent.chat_types import ChatMessage, ChatRequest, ChatSound, ChatText, ChatVideo
from agent.duplex.answer import (
    Answer,
    AnswerPiece,
    AnswerRules,
    TokenSource,
    read_in_pieces,
)
from agent.duplex.answer_text import AnswerText
from agent.duplex.audio_encoder import BLOCK_FRAMES
from agent.duplex.chat_sampling import AnswerSampler, random_source, requested_sampling
from agent.duplex.content import Senses, defused_answer, perceive
from agent.duplex.kv_cache import KvStream
from agent.duplex.prompt import (
    MAX_PROMPT_TOKENS,
    ChatLayout,
    Content,
    LaidOut,
    Message,
    chat_segments,
    lay_out,
)
from agent.duplex.sampling import Drawing, History
from agent.duplex.tokens import Token, Vocabulary
from agent.duplex.work import Runner, Work
from agent.errors import EngineError, RequestError

ENDS = frozenset({int(Token.IM_END), int(Token.END_OF_TEXT)})
"""What ends an answer."""
PIECE_TOKENS = 8
"""Tokens of a step: few enough that others get their turn."""
USUAL_TOKENS = 4096
"""The longest answer where the request names no limit, if there is room for it."""
MAX_STOPS = 64
"""Stop strings, and as many stop tokens."""
TOKEN_CHARACTERS = 16
"""More a token than any prose has; text that is longer by that cannot fit, and need not be read."""
_UNCUT = 1 << 40


class Chat:
    """One request. Not for two threads at once."""

    def __init__(
        self,
        runner: Runner,
        request: ChatRequest,
        layout: ChatLayout | None = None,
        script: Iterator[int] | None = None,
    ) -> None:
        """Check the request, lay its prompt out and take a slot.

        RequestError for what cannot be answered, CapacityError when no slot is free. `layout` in
        place of the one that the request makes, and `script`, which gives every token that would
        be drawn, are for tests.
        """
        model = runner.model
        self._runner = runner
        _check_characters(request, runner.slots.llm.positions)
        self._senses = Senses(request.max_slices)
        self._laid = lay_out_chat(model.vocabulary, request, self._senses, layout)
        most = _answer_tokens(request, len(self._laid.ids), runner.slots.llm.positions)
        ends = ENDS | set(_stop_tokens(request))
        device = model.target.device
        sampler = AnswerSampler(requested_sampling(request), ENDS, device)
        drawing = Drawing(History(most), random_source(request.seed, device))
        text = AnswerText(
            model.vocabulary.text, thinking=request.thinking, stop=_stop_strings(request)
        )
        self._stream = KvStream(runner.slots.take())
        self._answer = Answer(
            model.llm.embed,
            self._stream,
            TokenSource(sampler, drawing, script),
            AnswerRules(ends, most),
            text,
        )
        self._begun = self._closed = False

    @property
    def prompt_tokens(self) -> int:
        """Positions of the prompt, the vectors of pictures and sounds counted."""
        return len(self._laid.ids)

    @property
    def slot(self) -> int:
        """Its place in the caches."""
        return self._stream.slot

    def begin(self) -> Generator[Work, None, None]:
        """Look, listen and read the prompt; once, and to the end, before `advance`."""
        self._check_open()
        if self._begun:
            raise EngineError("the chat was begun before")
        self._begun = True
        embeddings = yield from perceive(self._runner.model, self._laid, self._senses, BLOCK_FRAMES)
        self._senses = Senses()
        state = yield from read_in_pieces(embeddings, self._stream)
        yield from self._answer.begin(state)

    def advance(self, count: int = PIECE_TOKENS) -> Generator[Work, None, AnswerPiece]:
        """Up to `count` tokens more; behind the piece with a `finish` only empty ones come."""
        self._check_open()
        if not self._begun:
            raise EngineError("the chat has not begun")
        taken = yield from self._answer.steps(count)
        text = self._answer.text
        if self._answer.finish is not None:
            text.finish()
        shown, reasoning = text.take()
        return AnswerPiece(shown, reasoning, self._answer.finish, len(taken.ids))

    def close(self) -> None:
        """Give the slot back, whatever was under way. Idempotent."""
        if not self._closed:
            self._runner.slots.give_back(self._stream.slot)
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("the chat is closed")


# ---- the prompt ---------------------------------------------------------------------------------


def lay_out_chat(
    vocabulary: Vocabulary, request: ChatRequest, senses: Senses, layout: ChatLayout | None = None
) -> LaidOut:
    """A request's ids and places; `senses` gets what goes there. RequestError."""
    if not request.messages:
        raise RequestError("there is no message to answer", param="messages")
    messages = [
        Message(one.role, _content(vocabulary, one, senses, f"messages[{index}]"))
        for index, one in enumerate(request.messages)
    ]
    layout = layout or replace(chat_layout(request), max_tokens=_UNCUT)
    return lay_out(vocabulary, chat_segments(messages, layout), layout)


def chat_layout(request: ChatRequest) -> ChatLayout:
    """How a request is written: as the reference's `chat` does, and in its omni mode, without
    newlines and picture ids, where there is a film."""
    parts = [part for message in request.messages for part in message.content]
    films = [part for part in parts if isinstance(part, ChatVideo)]
    sounds = any(isinstance(part, ChatSound) for part in parts)
    return ChatLayout(
        joined=bool(films),
        thinking=request.thinking,
        spoken=sounds or any(len(film.samples) for film in films),
        picture_ids=not films,
    )


def _content(
    vocabulary: Vocabulary, message: ChatMessage, senses: Senses, name: str
) -> tuple[Content, ...]:
    texts = [part.text for part in message.content if isinstance(part, ChatText)]
    is_text = len(texts) == len(message.content)
    if is_text and not any(texts) and message.role != "system":
        raise RequestError("the message is empty; leave it out", param=name)
    if message.role == "assistant":
        if not is_text:
            raise RequestError("pictures and sounds belong into the user's messages", param=name)
        return tuple(defused_answer(vocabulary, text) for text in texts)
    return tuple(span for part in message.content for span in senses.add(part, vocabulary))


# ---- limits -------------------------------------------------------------------------------------


def _check_characters(request: ChatRequest, positions: int) -> None:
    """RequestError for text that is too long for its tokens to be worth counting.

    They are counted on the thread that does all work, at a minute for what a request can hold.
    """
    most = _prompt_room(positions) * TOKEN_CHARACTERS
    parts = [part for message in request.messages for part in message.content]
    characters = sum(len(part.text) for part in parts if isinstance(part, ChatText))
    if characters > most:
        raise RequestError(
            f"the messages hold {characters:,} characters of text, and more than {most:,} never "
            f"fit into the {_prompt_room(positions):,} tokens that a prompt may take; leave "
            "messages out or shorten them",
            param="messages",
            code="context_length_exceeded",
        )


def _prompt_room(positions: int) -> int:
    return min(MAX_PROMPT_TOKENS, positions - 1)


def _answer_tokens(request: ChatRequest, prompt_tokens: int, positions: int) -> int:
    """How long the answer may be; RequestError when prompt and answer do not fit."""
    most = _prompt_room(positions)
    asked = request.max_tokens
    max_tokens = min(USUAL_TOKENS, max(1, positions - prompt_tokens)) if asked is None else asked
    if max_tokens < 1:
        raise RequestError(f"max_tokens must be at least 1, not {max_tokens}", param="max_tokens")
    if prompt_tokens > most:
        raise RequestError(
            f"the prompt takes {prompt_tokens} tokens and may take {most}; leave messages out, "
            "shorten sounds (10 tokens a second) or send fewer or smaller pictures "
            "(66 tokens a tile)",
            param="messages",
            code="context_length_exceeded",
        )
    if prompt_tokens + max_tokens > positions:
        raise RequestError(
            f"the prompt takes {prompt_tokens} of {positions} tokens and {max_tokens} more are "
            f"asked for; send a max_tokens of at most {positions - prompt_tokens}",
            param="max_tokens",
            code="context_length_exceeded",
        )
    return max_tokens


def _stop_strings(request: ChatRequest) -> Sequence[str]:
    if len(request.stop) > MAX_STOPS or not all(request.stop):
        raise RequestError(f"at most {MAX_STOPS} stop strings, none of them empty", param="stop")
    return request.stop


def _stop_tokens(request: ChatRequest) -> Sequence[int]:
    if len(request.stop_token_ids) > MAX_STOPS:
        raise RequestError(f"at most {MAX_STOPS} stop tokens", param="stop_token_ids")
    return request.stop_token_ids
