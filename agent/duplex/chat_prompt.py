"""A chat's prompt: how its messages are written, whose voice its answer has, and what fits."""

from dataclasses import replace

from agent.chat_types import (
    ChatMessage,
    ChatPicture,
    ChatRequest,
    ChatSound,
    ChatText,
    ChatVideo,
)
from agent.duplex.content import Senses, defused_answer
from agent.duplex.prompt import (
    MAX_PROMPT_TOKENS,
    ChatLayout,
    Content,
    LaidOut,
    Message,
    SoundSpan,
    chat_segments,
    lay_out,
    system_content,
)
from agent.duplex.reading_text import is_chinese
from agent.duplex.tokens import Vocabulary
from agent.duplex.tool_prompt import forced_opening, tool_block, written_calls
from agent.errors import RequestError

USUAL_TOKENS = 4096
"""The longest answer where the request names no limit, if there is room for it."""
TOKEN_CHARACTERS = 16
"""More a token than any prose has; text that is longer by that cannot fit, and need not be read."""
_UNCUT = 1 << 40


def lay_out_chat(
    vocabulary: Vocabulary,
    request: ChatRequest,
    senses: Senses,
    layout: ChatLayout | None = None,
    voice: SoundSpan | None = None,
) -> LaidOut:
    """A request's ids and places; `senses` gets what goes there. RequestError.

    The place of `voice`, of an answer that is spoken, is the first of a sound; `senses` gets
    nothing for it.
    """
    if not request.messages:
        raise RequestError("there is no message to answer", param="messages")
    messages = [
        Message(
            one.role,
            _content(vocabulary, one, senses, f"messages[{index}]"),
            written_calls(vocabulary, one.calls),
        )
        for index, one in enumerate(request.messages)
    ]
    if request.speaks:
        messages = _with_voice(messages, request, voice)
    layout = layout or replace(chat_layout(request), max_tokens=_UNCUT)
    if request.tools:
        opening = forced_opening(request.tools, request.tool_choice)
        layout = replace(
            layout,
            tools=tool_block(vocabulary, request.tools),
            opening=opening,
            thinking=layout.thinking and not opening,
        )
    return lay_out(vocabulary, chat_segments(messages, layout), layout)


def _with_voice(
    messages: list[Message], request: ChatRequest, voice: SoundSpan | None
) -> list[Message]:
    """The messages behind a system message that says whose voice the answer has.

    The user's own follows the voice as what is said of the person it belongs to, as the reference
    appends it; where there is no voice to hear, it stands alone. Without one the system message is
    that of an assistant, who sees where there are pictures, in the language of what is asked.
    """
    parts = [part for message in request.messages for part in message.content]
    language = asked_language(request)
    if messages[0].role == "system":
        own = messages[0].content
        before = system_content("clone", language, voice) if voice is not None else ()
        return [Message("system", (*before, *own)), *messages[1:]]
    sees = voice is not None and any(isinstance(part, ChatPicture | ChatVideo) for part in parts)
    content = system_content("omni" if sees else "assistant", language, voice)
    return [Message("system", content), *messages]


def asked_language(request: ChatRequest) -> str:
    """`zh` or `en`, by what is asked."""
    parts = [part for message in request.messages for part in message.content]
    texts = [part.text for part in parts if isinstance(part, ChatText)]
    return "zh" if is_chinese(" ".join(texts)) else "en"


def chat_layout(request: ChatRequest) -> ChatLayout:
    """How a request is written: as the reference's `chat` does, and in its omni mode, without
    newlines and picture ids, where there is a film.

    The reference has sounds answered as if aloud; functions it knows not, but by the template,
    where a call stands behind the header alone: an answer that nobody hears and that may be one
    begins so, whatever is heard before it.
    """
    parts = [part for message in request.messages for part in message.content]
    films = [part for part in parts if isinstance(part, ChatVideo)]
    sounds = any(isinstance(part, ChatSound) for part in parts)
    sounds = sounds or any(len(film.samples) for film in films)
    may_call = bool(request.tools) and request.tool_choice != "none"
    return ChatLayout(
        joined=bool(films),
        thinking=request.thinking,
        spoken=request.speaks or (sounds and not may_call),
        picture_ids=not films,
    )


def _content(
    vocabulary: Vocabulary, message: ChatMessage, senses: Senses, name: str
) -> tuple[Content, ...]:
    texts = [part.text for part in message.content if isinstance(part, ChatText)]
    is_text = len(texts) == len(message.content)
    says_nothing = is_text and not any(texts) and not message.calls
    if says_nothing and message.role in ("user", "assistant"):
        raise RequestError("the message is empty; leave it out", param=name)
    if message.role in ("assistant", "tool") and not is_text:
        raise RequestError("pictures and sounds belong into the user's messages", param=name)
    if message.role == "assistant":
        return tuple(defused_answer(vocabulary, text) for text in texts)
    return tuple(span for part in message.content for span in senses.add(part, vocabulary))


# ---- limits -------------------------------------------------------------------------------------


def check_characters(request: ChatRequest, positions: int) -> None:
    """RequestError for text that is too long for its tokens to be worth counting.

    They are counted on the thread that does all work, at a minute for what a request can hold.
    """
    most = _prompt_room(positions) * TOKEN_CHARACTERS
    parts = [part for message in request.messages for part in message.content]
    characters = sum(len(part.text) for part in parts if isinstance(part, ChatText))
    characters += sum(len(one.description) + len(one.parameters) for one in request.tools)
    calls = [one for message in request.messages for one in message.calls]
    characters += sum(len(one.arguments) for one in calls)
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


def answer_tokens(request: ChatRequest, prompt_tokens: int, positions: int) -> int:
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


def shows(request: ChatRequest) -> bool:
    """Whether there is anything to be seen in it."""
    parts = (part for message in request.messages for part in message.content)
    return any(isinstance(part, ChatPicture | ChatVideo) for part in parts)
