"""Reading `POST /v1/chat/completions`: what is asked, with what is wrong named by its path."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from agent.api.chat_tools import Returned, read_calls, read_choice, read_tools
from agent.chat_types import ChatRequest, ChatRole, ChatText, ChatToolCall
from agent.errors import RequestError
from agent.media.files import MediaKind
from agent.media.speech_file import SpeechFormat
from agent.model_settings import ChatSettings
from agent.realtime.fields import Fields, out_of_range, wrong_type
from agent.realtime.settings import OPENAI_VOICES, voice_name
from agent.types import Abilities

MOST_TOKENS = 1_000_000
MOST_STOPS = 4
MOST_STOP_IDS = 64
SEEDS = 1 << 63
_MOST_CHARACTERS = 10_000_000
"""The engine counts tokens; the size of the body is bounded before."""
_MOST_CODED = 1 << 31
ROLES: dict[str, ChatRole] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
DETAILS = ("auto", "low", "high", "original")
_MEDIA: dict[str, MediaKind] = {
    "image_url": "picture",
    "input_audio": "sound",
    "audio_url": "sound",
    "video_url": "video",
}
SOUND_FORMATS: dict[str, SpeechFormat] = {
    "wav": "wav",
    "mp3": "mp3",
    "flac": "flac",
    "opus": "opus",
    "aac": "aac",
    "pcm16": "pcm",
}
_STREAMED = "pcm16"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A picture, sound or video that is still to be fetched or decoded.

    Either `url` (data:, http: or https:) or `coded` (base64) says where it is. `param` names it
    in errors; `low` asks for little detail.
    """

    kind: MediaKind
    param: str
    url: str = ""
    coded: str = ""
    low: bool = False


@dataclass(frozen=True, slots=True)
class AskedMessage:
    """A message as it came; `calls` are those of an earlier answer."""

    role: ChatRole
    content: tuple[ChatText | Wanted, ...]
    calls: tuple[ChatToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """A whole request: `order` lacks nothing but its messages.

    `sound` is the format in which the answer is to be heard, too; None: it is words alone.
    """

    order: ChatRequest
    messages: tuple[AskedMessage, ...]
    stream: bool = False
    include_usage: bool = False
    sound: SpeechFormat | None = None

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        """All that is attached, in order."""
        parts = (part for message in self.messages for part in message.content)
        return tuple(part for part in parts if isinstance(part, Wanted))


def parse_chat(document: object, limits: ChatSettings, abilities: Abilities) -> Asked:
    """Read a request's parsed JSON. `RequestError` with the `param` that cannot be served."""
    if not isinstance(document, Mapping):
        raise wrong_type("body", "an object", document)
    fields = Fields(document)
    fields.text("model", "", most=256)
    _refuse_unsupported(fields)
    messages = _messages(fields)
    if not messages:
        raise RequestError(
            "'messages' must hold at least one message.",
            param="messages",
            code="missing_required_parameter",
        )
    stream = fields.flag("stream", False)
    sound = _sound(fields, abilities, stream)
    order = _with_tools(_order(fields), fields, abilities)
    if sound is not None:
        voice = picked_voice(fields.section("audio"), abilities)
        order = replace(order, speaks=True, voice=voice)
    include_usage = fields.section("stream_options").flag("include_usage", False)
    asked = Asked(order, messages, stream, include_usage, sound)
    _check_counts(asked, limits)
    return asked


# ---- what nobody here can do ------------------------------------------------------------------


def _refuse_unsupported(fields: Fields) -> None:
    if fields.items("functions"):
        raise unsupported("functions", "send 'tools'")
    kind = fields.section("response_format").text("type", "text", most=256)
    if kind != "text":
        raise unsupported("response_format", f"answers are text, not {kind!r}")
    if fields.flag("logprobs", False) or fields.integer("top_logprobs", 0, least=0, most=20):
        raise unsupported("logprobs", "probabilities of tokens are not handed out")
    if fields.integer("n", 1, least=1, most=128) != 1:
        raise unsupported("n", "there is one answer to a request")
    if fields.raw("logit_bias"):
        raise unsupported("logit_bias", "the odds of single tokens cannot be changed")
    for name in ("presence_penalty", "frequency_penalty"):
        if fields.number(name, 0.0, least=-2, most=2):
            raise unsupported(name, "use repetition_penalty")
    if any(mode not in ("text", "audio") for mode in fields.items("modalities")):
        raise unsupported("modalities", "answers are text, and audio where the engine has a voice")


def unsupported(param: str, why: str) -> RequestError:
    """The field `param` asks for what is not done here, for the reason `why` (no full stop)."""
    return RequestError(f"'{param}' is not supported: {why}.", param=param, code="unsupported")


# ---- the voice --------------------------------------------------------------------------------


def picked_voice(fields: Fields, abilities: Abilities) -> str:
    """The id in `voice`, a name or `{id}`; "", the first voice, where none is picked.

    Stock clients have to name one of OpenAI's: those which the engine has not got pick nothing.
    Whether there is such a voice is for the engine to say.
    """
    name = voice_name(fields) or ""
    return "" if name in OPENAI_VOICES and name not in abilities.voices else name


def _sound(fields: Fields, abilities: Abilities, stream: bool) -> SpeechFormat | None:
    if "audio" not in fields.items("modalities"):
        return None
    if not abilities.text_to_speech:
        raise unsupported("modalities", "the engine has no voice for chats; ask for text alone")
    audio = fields.section("audio")
    name = audio.choice("format", tuple(SOUND_FORMATS), _STREAMED if stream else "wav")
    if stream and name != _STREAMED:
        raise unsupported(audio.name("format"), f"a stream's sound is {_STREAMED}, not {name}")
    return SOUND_FORMATS[name]


# ---- messages ---------------------------------------------------------------------------------


def _messages(fields: Fields) -> tuple[AskedMessage, ...]:
    returned, messages = Returned(), list[AskedMessage]()
    for at, each in enumerate(fields.objects("messages")):
        message = _message(each)
        returned.see(message.role, message.calls, each, at)
        messages.append(message)
    return returned.ordered(messages)


def _message(fields: Fields) -> AskedMessage:
    name = fields.text("role", most=64)
    if name not in ROLES:
        raise RequestError(
            f"Invalid value {name!r} for '{fields.name('role')}'; use one of: {', '.join(ROLES)}.",
            param=fields.name("role"),
            code="invalid_value",
        )
    calls = read_calls(fields) if name == "assistant" else ()
    for call in calls:
        whole_text(call.name + call.arguments, fields.name("tool_calls"))
    if calls and not fields.has("content"):
        return AskedMessage("assistant", (), calls)
    return AskedMessage(ROLES[name], _content(fields), calls)


def _content(fields: Fields) -> tuple[ChatText | Wanted, ...]:
    content = fields.raw("content")
    if content is None and fields.has("audio"):
        why = "the sound of earlier answers is not kept; send its transcript as 'content'"
        raise unsupported(fields.name("audio"), why)
    if isinstance(content, str):
        return (ChatText(whole_text(content, fields.name("content"))),)
    if content is None:
        raise RequestError(
            f"Missing required parameter: '{fields.name('content')}'.",
            param=fields.name("content"),
            code="missing_required_parameter",
        )
    if not isinstance(content, list):
        raise wrong_type(fields.name("content"), "a string or an array of parts", content)
    return tuple(_part(each) for each in fields.objects("content"))


def _part(fields: Fields) -> ChatText | Wanted:
    kind = fields.text("type", most=64)
    if kind in ("text", "refusal"):
        return ChatText(whole_text(fields.text(kind, most=_MOST_CHARACTERS), fields.name(kind)))
    if kind not in _MEDIA:
        raise RequestError(
            f"Invalid value {kind!r} for '{fields.name('type')}'; use one of: text, "
            f"{', '.join(_MEDIA)}.",
            param=fields.name("type"),
            code="invalid_value",
        )
    return _sound_data(fields) if kind == "input_audio" else _linked(fields, kind)


def _sound_data(fields: Fields) -> Wanted:
    body = fields.section("input_audio")
    data = whole_text(body.text("data", most=_MOST_CODED), body.name("data"))
    # What it is shows in its first bytes; the field is only read for its type.
    body.text("format", "", most=64)
    param = fields.name("input_audio")
    if data.startswith("data:"):
        return Wanted("sound", param, url=data)
    return Wanted("sound", param, coded=data)


def _linked(fields: Fields, kind: str) -> Wanted:
    """`{"url": …}`, or the bare address that some clients send."""
    if isinstance(fields.raw(kind), str):
        bare = whole_text(fields.text(kind, most=_MOST_CODED), fields.name(kind))
        return Wanted(_MEDIA[kind], fields.name(kind), url=bare)
    body = fields.section(kind)
    url = whole_text(body.text("url", most=_MOST_CODED), body.name("url"))
    low = body.choice("detail", DETAILS, "auto") == "low" if kind == "image_url" else False
    return Wanted(_MEDIA[kind], fields.name(kind), url=url, low=low)


def whole_text(text: str, param: str) -> str:
    """`text` if it can be written as UTF-8: JSON's escapes can hold half of a letter."""
    try:
        # Most of what is long is base64, which need not be copied to be sure.
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"Invalid text in '{param}': U+{ord(text[error.start]):04X} at character "
            f"{error.start} is half of a surrogate pair.",
            param=param,
            code="invalid_value",
        ) from error
    return text


def _check_counts(asked: Asked, limits: ChatSettings) -> None:
    most = {
        "picture": limits.max_pictures,
        "sound": limits.max_sounds,
        "video": limits.max_videos,
    }
    for kind, allowed in most.items():
        found = [wanted for wanted in asked.wanted if wanted.kind == kind]
        if len(found) > allowed:
            raise RequestError(
                f"The request holds {len(found)} {kind}s; at most {allowed} are allowed "
                f"(chat.max_{kind}s).",
                param=found[allowed].param,
                code="too_many_attachments",
            )


# ---- how to answer ----------------------------------------------------------------------------


def _order(fields: Fields) -> ChatRequest:
    temperature = _optional(fields, "temperature", 0, 2)
    top_p = _optional(fields, "top_p", 0, 1)
    return ChatRequest(
        messages=(),
        max_tokens=_max_tokens(fields),
        # Neither leaves a choice.
        greedy=temperature == 0 or top_p == 0,
        temperature=temperature or None,
        top_p=top_p or None,
        top_k=_top_k(fields),
        repetition_penalty=_optional(fields, "repetition_penalty", 0.01, 10),
        seed=seed_of(fields),
        stop=_stop(fields),
        stop_token_ids=_stop_ids(fields),
        thinking=_thinking(fields),
        max_slices=_max_slices(fields),
    )


def _with_tools(order: ChatRequest, fields: Fields, abilities: Abilities) -> ChatRequest:
    tools = read_tools(fields)
    if tools and not abilities.tools:
        raise unsupported("tools", "the engine calls no functions")
    for index, tool in enumerate(tools):
        whole_text(tool.description + tool.parameters, f"tools[{index}].function")
    one_call = not fields.flag("parallel_tool_calls", True)
    choice = read_choice(fields, tools)
    return replace(order, tools=tools, tool_choice=choice, one_call=one_call)


def _optional(fields: Fields, name: str, least: float, most: float) -> float | None:
    return fields.number(name, least=least, most=most) if fields.has(name) else None


def _max_tokens(fields: Fields) -> int | None:
    # The newer name wins where a client sends both.
    name = "max_completion_tokens" if fields.has("max_completion_tokens") else "max_tokens"
    return fields.integer(name, least=1, most=MOST_TOKENS) if fields.has(name) else None


def _top_k(fields: Fields) -> int | None:
    """None: the engine's own; 0: all tokens, which other servers also write as -1."""
    if not fields.has("top_k"):
        return None
    return max(0, fields.integer("top_k", least=-1, most=MOST_TOKENS))


def seed_of(fields: Fields) -> int | None:
    """The `seed`, exactly; None leaves it to the engine."""
    # Not through a float, as numbers are read elsewhere: large seeds would become neighbours.
    value = fields.raw("seed")
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise wrong_type("seed", "a whole number", value)
    if not -SEEDS <= value < SEEDS:
        raise out_of_range("seed", f"{-SEEDS} to {SEEDS - 1}", value)
    return value


def _stop(fields: Fields) -> tuple[str, ...]:
    if isinstance(fields.raw("stop"), str):
        return _checked_stops([fields.text("stop", most=1000)])
    return _checked_stops(fields.items("stop"))


def _checked_stops(values: Sequence[object]) -> tuple[str, ...]:
    if len(values) > MOST_STOPS:
        raise RequestError(
            f"'stop' holds {len(values)} texts; use at most {MOST_STOPS}.",
            param="stop",
            code="array_above_max_length",
        )
    for value in values:
        if not isinstance(value, str):
            raise wrong_type("stop", "a string or an array of strings", value)
        if not value or len(value) > 1000:
            raise RequestError(
                "'stop' must not be empty, nor longer than 1000 characters.",
                param="stop",
                code="invalid_value",
            )
    return tuple(whole_text(str(value), "stop") for value in values)


def _stop_ids(fields: Fields) -> tuple[int, ...]:
    values = fields.items("stop_token_ids")
    if len(values) > MOST_STOP_IDS:
        raise RequestError(
            f"'stop_token_ids' holds {len(values)} numbers; use at most {MOST_STOP_IDS}.",
            param="stop_token_ids",
            code="array_above_max_length",
        )
    ids = []
    for value in values:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
            raise wrong_type("stop_token_ids", "an array of token numbers", value)
        ids.append(value)
    return tuple(ids)


def _thinking(fields: Fields) -> bool:
    """`enable_thinking`, bare or where vLLM's clients put it."""
    inside = fields.section("chat_template_kwargs").flag("enable_thinking", False)
    return fields.flag("enable_thinking", inside)


def _max_slices(fields: Fields) -> int | None:
    if not fields.has("max_slices"):
        return None
    return fields.integer("max_slices", least=1, most=9)
