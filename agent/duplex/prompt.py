"""Prompt layouts: what is written around a conversation's pictures, sounds and words.

Duplex prompts are raw text around the reference voice. Turn-based prompts (chat, half duplex, role
play, voice clone) are messages in the chat template; `chat_segments` gives their text with places
for pictures and sounds in between, and `lay_out` the ids with the positions of their vectors.
Texts are the public demo's, in Chinese and English; other languages take the English one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from agent.chat_types import ChatRole
from agent.duplex.tokens import WRITTEN, Token, Vocabulary
from agent.duplex.tool_prompt import result_marks, with_tools
from agent.errors import RequestError

MAX_PROMPT_TOKENS = 8192
PICTURE_VECTORS = 64
"""Vectors of one thumbnail or cell."""

# ---- duplex -------------------------------------------------------------------------------------

_OMNI = "Streaming Omni Conversation."
_AUDIO_EN = (
    "Replicate the tone and style from the input audio. Your task is to be a helpful assistant "
    "using this voice pattern. Please answer the user's questions seriously and in a high quality. "
    "Please chat with the user in a high naturalness style. You are in duplex mode, where you can "
    "listen and speak at the same time."
)
_AUDIO_ZH = (
    "扮演一个具有以上声音特征的助手。请认真、高质量地回复用户的问题。请用高自然度的方式和用户聊天。"
    "你处于双工模式，可以一边听、一边说。你是由面壁智能开发的人工智能助手：面壁小钢炮。"
)


@dataclass(frozen=True, slots=True)
class DuplexPrompt:
    """Ids before and behind the reference voice's vectors. No newline follows the last of them."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]


def duplex_system(language: str, *, camera: bool) -> str:
    """What a duplex call's system prompt says unless it is given."""
    if camera:
        return _OMNI
    return _AUDIO_ZH if _is_chinese(language) else _AUDIO_EN


def duplex_prompt(vocabulary: Vocabulary, system: str, tools: str = "") -> DuplexPrompt:
    """The prompt of a duplex call; `system` as it is, but that it can write no control token.

    `tools` is what stands of functions behind it (`tool_prompt.tool_block`).
    """
    system = with_tools(vocabulary.defused(system), tools)
    prefix = f"<|im_start|>system\n{system}\n<|audio_start|>"
    return DuplexPrompt(
        tuple(vocabulary.encode(prefix)), tuple(vocabulary.encode("<|audio_end|><|im_end|>"))
    )


def caption_prompt(vocabulary: Vocabulary, title: str) -> DuplexPrompt:
    """The prompt of captions to a stream of pictures: no voice, and a title."""
    prefix = f"<|im_start|>system\nStreaming Vision Caption.\nTitle: {vocabulary.defused(title)}"
    return DuplexPrompt(tuple(vocabulary.encode(prefix)), (Token.IM_END,))


def _is_chinese(language: str) -> bool:
    return language.lower().replace("_", "-").split("-")[0] in {"zh", "yue", "cmn"}


# ---- system messages of turn-based conversations ------------------------------------------------

Manner: TypeAlias = Literal["omni", "assistant", "roleplay", "clone", "default"]
"""omni: sees and hears. assistant and roleplay: speak as somebody. clone: only reads aloud."""

_ASSISTANT_ZH = (
    "你的任务是用这种声音模式来当一个助手。请认真、高质量地回复用户的问题。"
    "请用高自然度的方式和用户聊天。你是由面壁智能开发的人工智能助手：面壁小钢炮。"
)
_ROLEPLAY_EN = "Try to role-play the character based on the audio prompt above."
_CLONE_EN = "Clone the voice in the provided audio prompt."
_CLONE_ZH = "模仿输入音频中的声音特征。"
_AROUND_VOICE: dict[tuple[Manner, bool], tuple[str, str]] = {
    ("omni", True): (
        "模仿音频样本的音色并生成新的内容。",
        "请用这种声音风格来为用户提供帮助。 请认真、高质量地回复用户的问题。 "
        "请用高自然度的方式和用户聊天。",
    ),
    ("omni", False): (_CLONE_EN, "As an assistant, you will speak using this voice style."),
    ("assistant", True): ("模仿音频样本的音色并生成新的内容。", _ASSISTANT_ZH),
    ("assistant", False): (
        "Use the voice in the audio prompt to synthesize new content.",
        "You are a helpful assistant with the above voice style.",
    ),
    ("roleplay", True): (_CLONE_ZH, "假装你是上述音频中的人物，与我进行对话。"),
    ("roleplay", False): (_CLONE_EN, _ROLEPLAY_EN),
    ("clone", True): (_CLONE_ZH, ""),
    ("clone", False): (_CLONE_EN, ""),
}
_NO_VOICE = "Use the <reserved_53> voice."
"""Stands for the voice where none is given, in Chinese too; no token, though it looks like one."""
_DEFAULT = (
    "You are a helpful assistant. You can accept audio and text input and output voice and text."
)
READ_ALOUD_ZH = "请朗读以下内容。"
"""Before the text that a cloned voice is to read, and a space."""


# ---- content ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PictureSpan:
    """A picture's place: its thumbnail, then `rows` × `columns` cells where it is cut up."""

    rows: int = 0
    columns: int = 0


@dataclass(frozen=True, slots=True)
class SoundSpan:
    """A sound's place. `second_vectors`: in pieces of at most so many, each by itself; 0: whole."""

    vectors: int
    second_vectors: int = 0


Content: TypeAlias = str | PictureSpan | SoundSpan


@dataclass(frozen=True, slots=True)
class Message:
    """One message; its content in order, and the calls behind it as they are written."""

    role: ChatRole
    content: tuple[Content, ...]
    calls: str = ""


@dataclass(frozen=True, slots=True)
class ChatLayout:
    """How messages are written. `joined`: content without newlines between, as for video."""

    joined: bool = False
    thinking: bool = False
    spoken: bool = False
    """The answer begins with `<|tts_bos|>`: it is to be spoken."""
    answer: bool = True
    """The assistant's header follows the last message."""
    picture_ids: bool = False
    picture_vectors: int = PICTURE_VECTORS
    max_tokens: int = MAX_PROMPT_TOKENS
    """A longer prompt is cut at its end."""
    tools: str = ""
    """What stands of functions at the end of the system message (`tool_prompt.tool_block`)."""
    opening: str = ""
    """How the answer begins, whatever the model would say."""


def system_content(
    manner: Manner, language: str, voice: SoundSpan | None, persona: str = ""
) -> tuple[Content, ...]:
    """The system message of a turn-based conversation in some manner.

    `persona` follows the last text. Without a voice, assistant and roleplay name a reserved one,
    omni says nothing, and clone cannot be: RequestError. The default manner has no voice.
    """
    if manner == "default":
        return (_DEFAULT + persona,)
    before, behind = _AROUND_VOICE[manner, _is_chinese(language)]
    if voice is None:
        if manner == "clone":
            raise RequestError("a voice is cloned from a recording; none was given", param="voice")
        return (persona,) if manner == "omni" else (_NO_VOICE, behind + persona)
    texts: tuple[Content, ...] = (behind + persona,) if behind or persona else ()
    return (before, voice, *texts)


# ---- the chat template --------------------------------------------------------------------------


def chat_segments(messages: Sequence[Message], layout: ChatLayout) -> list[Content]:
    """A whole conversation as text, with its pictures and sounds in their places."""
    last_query = max(
        (index for index, message in enumerate(messages) if message.role == "user"),
        default=len(messages) - 1,
    )
    segments: list[Content] = []
    if layout.tools and (not messages or messages[0].role != "system"):
        segments.append(system_message(layout.tools))
    for index, message in enumerate(messages):
        if message.role == "tool":
            segments += _returned(messages, index, layout)
            continue
        content = joined_content(message.content, layout)
        if message.role == "assistant":
            is_last = index == len(messages) - 1
            content = _answered(message, content, recent=index > last_query, is_last=is_last)
        elif message.role == "system" and index == 0:
            content = _with_tools(content, layout)
        segments += [f"<|im_start|>{message.role}\n", *content, "<|im_end|>\n"]
    if layout.answer:
        segments.append(answer_header(layout))
    return segments


def _with_tools(content: list[Content], layout: ChatLayout) -> list[Content]:
    return [*content, f"\n\n{layout.tools}"] if layout.tools else content


def _returned(messages: Sequence[Message], index: int, layout: ChatLayout) -> list[Content]:
    """What a function returned; results that follow each other are one message of the user."""
    before, behind = result_marks()
    segments: list[Content] = [f"\n{before}"]
    segments += [*joined_content(messages[index].content, layout), behind]
    if index == 0 or messages[index - 1].role != "tool":
        segments.insert(0, "<|im_start|>user")
    if index + 1 == len(messages) or messages[index + 1].role != "tool":
        segments.append("<|im_end|>\n")
    return segments


def opening_segments(message: Message, layout: ChatLayout) -> list[Content]:
    """A system's or assistant's message that opens a conversation fed message by message."""
    content = joined_content(message.content, layout)
    if message.role == "assistant":
        content = _answered(message, content, recent=False, is_last=False)
    elif message.role == "system":
        content = _with_tools(content, layout)
    return [f"<|im_start|>{message.role}\n", *content, "<|im_end|>\n"]


def system_message(text: str) -> str:
    """A system message between others; control tokens in its text are meant."""
    return f"<|im_start|>system\n{text}<|im_end|>\n"


def answer_header(layout: ChatLayout, *, after_user: bool = False, notice: str = "") -> str:
    """What an answer begins with; `after_user` first closes the user's message that is open.

    `notice` is a system message's text that comes before it.
    """
    closing = "<|im_end|>\n" if after_user else ""
    closing += system_message(notice) if notice else ""
    thinking = "" if layout.thinking else "<think>\n\n</think>\n\n"
    spoken = WRITTEN[Token.TTS_BOS] if layout.spoken else ""
    return f"{closing}<|im_start|>assistant\n{thinking}{spoken}{layout.opening}"


def user_header(*, after_answer: bool) -> str:
    """What a user's message begins with that is fed piece by piece.

    An answer's own terminator is never fed, so the next message closes it.
    """
    closing = "<|tts_eos|><|im_end|>\n" if after_answer else ""
    return f"{closing}<|im_start|>user\n"


def joined_content(content: Iterable[Content], layout: ChatLayout) -> list[Content]:
    """Content with what is written between its parts."""
    segments: list[Content] = []
    for index, part in enumerate(content):
        if index and not layout.joined:
            segments.append("\n")
        segments.append(part)
    return segments


def _answered(
    message: Message, content: list[Content], *, recent: bool, is_last: bool
) -> list[Content]:
    """An answer as it is remembered: its reasoning only while it is an answer to the last query."""
    text = "".join(part for part in content if isinstance(part, str))
    reasoning = ""
    if "</think>" in text:
        reasoning = text.split("</think>")[0].rstrip("\n").split("<think>")[-1].strip("\n")
        text = text.rsplit("</think>", 1)[-1].lstrip("\n")
    calls = f"\n{message.calls}" if text and message.calls else message.calls
    if recent and (is_last or reasoning):
        text = text.lstrip("\n")
        return [f"<think>\n{reasoning}\n</think>\n\n{text}{calls}"]
    return [text + calls]


# ---- ids and the places of vectors --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LaidOut:
    """A prompt's ids; vectors take the places of `<unk>` in the half-open bounds, in order."""

    ids: tuple[int, ...]
    picture_bounds: tuple[tuple[int, int], ...]
    sound_bounds: tuple[tuple[int, int], ...]


def lay_out(
    vocabulary: Vocabulary,
    segments: Iterable[Content],
    layout: ChatLayout,
    first_picture_id: int = 0,
) -> LaidOut:
    """Ids of `segments`; control tokens stand in the text as they are written.

    A `<|listen|>` in it is left out. Bounds that a cut at `max_tokens` leaves without all of their
    places are left out too.
    """
    writer = _Writer(vocabulary, layout, first_picture_id)
    for segment in segments:
        writer.add(segment)
    return writer.finish()


class _Writer:
    """Collects text until a span comes; texts that touch are tokenised as one."""

    def __init__(self, vocabulary: Vocabulary, layout: ChatLayout, picture_id: int) -> None:
        self._vocabulary = vocabulary
        self._layout = layout
        self._picture_id = picture_id
        self._text = ""
        self._ids: list[int] = []
        self._pictures: list[tuple[int, int]] = []
        self._sounds: list[tuple[int, int]] = []

    def add(self, segment: Content) -> None:
        match segment:
            case str():
                self._text += segment
            case PictureSpan():
                self._add_picture(segment)
            case SoundSpan():
                self._add_sound(segment)

    def finish(self) -> LaidOut:
        self._flush()
        most = self._layout.max_tokens
        return LaidOut(
            tuple(self._ids[:most]),
            tuple(bound for bound in self._pictures if bound[1] <= most),
            tuple(bound for bound in self._sounds if bound[1] <= most),
        )

    def _add_picture(self, span: PictureSpan) -> None:
        if self._layout.picture_ids:
            self._text += f"<image_id>{self._picture_id}</image_id>"
        self._picture_id += 1
        count = self._layout.picture_vectors
        self._vectors(Token.IMAGE, Token.END_IMAGE, count, self._pictures)
        for row in range(span.rows):
            for _ in range(span.columns):
                self._vectors(Token.SLICE, Token.END_SLICE, count, self._pictures)
            if row < span.rows - 1:
                self._text += "\n"

    def _add_sound(self, span: SoundSpan) -> None:
        left, most = span.vectors, span.second_vectors or span.vectors
        while left > 0:
            count = min(left, most)
            self._vectors(Token.AUDIO_START, Token.AUDIO_END, count, self._sounds)
            left -= count

    def _vectors(self, begin: Token, end: Token, count: int, bounds: list[tuple[int, int]]) -> None:
        self._flush()
        self._ids.append(begin)
        bounds.append((len(self._ids), len(self._ids) + count))
        self._ids += [Token.UNKNOWN] * count
        self._ids.append(end)

    def _flush(self) -> None:
        text, self._text = self._text, ""
        if text:
            self._ids += [one for one in self._vocabulary.encode(text) if one != Token.LISTEN]
