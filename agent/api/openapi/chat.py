"""Turn-based chat, in OpenAI's shape."""

from agent.api.chat_request import (
    DETAILS,
    MOST_STOP_IDS,
    MOST_STOPS,
    MOST_TOKENS,
    ROLES,
    SEEDS,
    SOUND_FORMATS,
)
from agent.api.chat_tools import MAX_CALLS
from agent.api.openapi.refusals import ACCESS, BODY, refusals
from agent.api.openapi.shapes import (
    JSON,
    Schema,
    answer,
    body,
    either,
    events,
    flag,
    listing,
    maybe,
    number,
    one_of,
    ref,
    reply,
    text,
    thing,
    whole,
)
from agent.realtime.tools import MAX_TOOLS
from agent.settings import Config

STREAM = "text/event-stream"


def paths(config: Config) -> dict[str, Schema]:
    """By path and method."""
    chat = config.chat
    operation = {
        "operationId": "createChatCompletion",
        "tags": ["Chat"],
        "summary": "Answer a conversation",
        "description": "Pictures, sound and film may be attached, as `data:` URLs or by address. "
        f"At most {chat.max_pictures} pictures (`chat.max_pictures`), {chat.max_sounds} recordings "
        f"(`chat.max_sounds`) and {chat.max_videos} films (`chat.max_videos`); the whole body at "
        f"most {chat.max_body_bytes:,} bytes (`chat.max_body_bytes`). With `stream`, server-sent "
        "events, ended by `[DONE]`.",
        "requestBody": body({JSON: ref("ChatRequest")}),
        "responses": {
            "200": answer(
                "The answer.", {JSON: ref("ChatCompletion"), STREAM: events("Chunks of it.")}
            ),
            **refusals(*BODY, *ACCESS, 500, 503),
        },
    }
    return {"/v1/chat/completions": {"post": operation}}


def _parts() -> Schema:
    linked = either(text(), thing({"url": text()}, needs=("url",)))
    picture = thing({"url": text(), "detail": one_of(*DETAILS)}, needs=("url",))
    kinds: dict[str, Schema] = {
        "text": text(),
        "refusal": text(),
        "image_url": either(text(), picture),
        "input_audio": thing({"data": text("Base64."), "format": text(most=64)}, needs=("data",)),
        "audio_url": linked,
        "video_url": linked,
    }
    parts = [
        thing({"type": {"type": "string", "const": kind}, kind: inside}, needs=("type", kind))
        for kind, inside in kinds.items()
    ]
    return either(*parts)


def _message() -> Schema:
    content = either(text(), listing(ref("ChatPart")))
    call = thing(
        {
            "id": text(most=256),
            "type": {"type": "string", "const": "function"},
            "function": thing(
                {"name": text(most=256), "arguments": text(most=1_000_000)},
                needs=("name", "arguments"),
            ),
        },
        needs=("id", "function"),
    )
    said = thing({"role": one_of(*_others()), "content": content}, needs=("role", "content"))
    answered = thing(
        {
            "role": {"type": "string", "const": "assistant"},
            "content": content,
            "tool_calls": listing(call, most=MAX_CALLS),
        },
        needs=("role",),
        about="`content` may be left out where there are calls.",
    )
    returned = thing(
        {
            "role": {"type": "string", "const": "tool"},
            "content": content,
            "tool_call_id": text(most=256),
        },
        needs=("role", "content", "tool_call_id"),
    )
    return either(said, answered, returned)


def _others() -> list[str]:
    return [name for name in ROLES if name not in ("assistant", "tool")]


def _request() -> Schema:
    function = thing(
        {"type": {"type": "string", "const": "function"}, "function": ref("SessionFunction")},
        needs=("function",),
    )
    named = thing(
        {
            "type": {"type": "string", "const": "function"},
            "function": thing({"name": text(most=256)}, needs=("name",)),
        },
        needs=("function",),
    )
    stop = text(least=1, most=1000)
    return thing(
        {
            "model": text("Any: the server has one.", most=256),
            "messages": listing(ref("ChatMessage"), least=1),
            "stream": flag(),
            "stream_options": thing({"include_usage": flag()}),
            "max_completion_tokens": whole(1, MOST_TOKENS),
            "max_tokens": whole(1, MOST_TOKENS),
            "temperature": number(0, 2),
            "top_p": number(0, 1),
            "top_k": whole(-1, MOST_TOKENS),
            "repetition_penalty": number(0.01, 10),
            "seed": whole(-SEEDS, SEEDS - 1),
            "stop": either(stop, listing(stop, most=MOST_STOPS)),
            "stop_token_ids": listing(whole(0, 2**31 - 1), most=MOST_STOP_IDS),
            "n": whole(1, 1),
            "modalities": listing(one_of("text", "audio")),
            "audio": thing(
                {
                    "voice": either(text(most=256), thing({"id": text(most=256)}, needs=("id",))),
                    "format": one_of(*SOUND_FORMATS),
                }
            ),
            "tools": listing(function, most=MAX_TOOLS),
            "tool_choice": either(one_of("auto", "none", "required"), named),
            "parallel_tool_calls": flag(),
            "enable_thinking": flag(),
            "max_slices": whole(1, 9),
        },
        needs=("messages",),
    )


def _completion() -> Schema:
    function = reply({"name": text(), "arguments": text()})
    call = reply(
        {"id": text(), "type": {"type": "string", "const": "function"}, "function": function}
    )
    audio = reply(
        {"id": text(), "data": text("Base64."), "expires_at": whole(0), "transcript": text()}
    )
    message = reply(
        {
            "role": {"type": "string", "const": "assistant"},
            "content": maybe(text()),
            "refusal": {"type": "null"},
            "reasoning_content": text(),
            "tool_calls": listing(call),
            "audio": maybe(audio),
            "voice_agent": reply({"voiced": flag("Whether all words have a sound.")}),
        },
        may_lack=("reasoning_content", "tool_calls", "audio", "voice_agent"),
    )
    choice = reply(
        {
            "index": whole(0, 0),
            "message": message,
            "logprobs": {"type": "null"},
            "finish_reason": one_of("stop", "length", "tool_calls"),
        }
    )
    details = reply({"text_tokens": whole(0), "audio_tokens": whole(0)})
    usage = reply(
        {
            "prompt_tokens": whole(0),
            "completion_tokens": whole(0),
            "total_tokens": whole(0),
            "completion_tokens_details": details,
        },
        may_lack=("completion_tokens_details",),
    )
    return reply(
        {
            "id": text(),
            "object": {"type": "string", "const": "chat.completion"},
            "created": whole(0),
            "model": text(),
            "system_fingerprint": {"type": "null"},
            "choices": listing(choice, least=1, most=1),
            "usage": usage,
        }
    )


SCHEMAS: dict[str, Schema] = {
    "ChatPart": _parts(),
    "ChatMessage": _message(),
    "ChatRequest": _request(),
    "ChatCompletion": _completion(),
}
