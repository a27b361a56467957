"""What a conversation is made of: its items, their parts, and responses with what they cost."""

from agent.api.openapi.shapes import (
    Schema,
    either,
    just,
    listing,
    maybe,
    one_of,
    ref,
    reply,
    text,
    thing,
    whole,
)
from agent.realtime.client_events import MAX_ID_CHARS
from agent.realtime.limits import Limits
from agent.realtime.settings import MAX_OUTPUT_TOKENS, MODALITIES

_LIMITS = Limits()
_STATUSES = ("in_progress", "completed", "incomplete")
_NEW_ID = text("Yours; without, a fresh one.", most=MAX_ID_CHARS)
_CALL_ID = text("Which call of a function.", most=256)
_INFINITE = just("inf")


# ---- from the client --------------------------------------------------------------------------


def _new_item() -> Schema:
    words = text(most=_LIMITS.max_text_chars)
    said = thing({"type": just("input_text"), "text": words}, needs=("type", "text"))
    sound = thing(
        {
            "type": just("input_audio"),
            "audio": text("Base64, in the session's input format, at most 30 s."),
            "transcript": text("What is said in it.", most=_LIMITS.max_text_chars),
        },
        needs=("type", "audio"),
    )
    picture = thing(
        {
            "type": just("input_image"),
            "image_url": text("A data URL: `data:image/jpeg;base64,…`."),
            "detail": one_of("auto", "low", "high", description="Changes nothing."),
        },
        needs=("type", "image_url"),
    )
    answered = thing({"type": just("output_text"), "text": words}, needs=("type", "text"))
    spoken = thing(
        {"type": just("output_audio"), "transcript": words}, needs=("type", "transcript")
    )
    parts = either(said, sound, picture, answered, spoken)
    message = thing(
        {
            "type": just("message"),
            "id": _NEW_ID,
            "role": one_of("user", "system", "assistant", description="Without: user."),
            "content": listing(
                parts,
                least=1,
                most=_LIMITS.max_item_parts,
                about="`input_…` by the user, `input_text` by the system, `output_…` by the "
                "assistant.",
            ),
        },
        needs=("type", "content"),
    )
    return either(message, _past_call(), _result())


def _past_call() -> Schema:
    return thing(
        {
            "type": just("function_call"),
            "id": _NEW_ID,
            "call_id": _CALL_ID,
            "name": text(most=64),
            "arguments": text("JSON.", most=_LIMITS.max_text_chars),
        },
        needs=("type", "name", "arguments"),
        about="History: nothing is called.",
    )


def _result() -> Schema:
    return thing(
        {
            "type": just("function_call_output"),
            "id": _NEW_ID,
            "call_id": _CALL_ID,
            "output": text("What the function returned.", most=_LIMITS.max_text_chars),
        },
        needs=("type", "call_id", "output"),
        about="`response.create` then makes the agent speak of it.",
    )


def _asked() -> Schema:
    return thing(
        {
            "instructions": text("Instead of the session's."),
            "output_modalities": listing(one_of(*MODALITIES), least=1),
            "max_output_tokens": either(whole(1, MAX_OUTPUT_TOKENS), _INFINITE),
            "tools": listing(ref("SessionFunction")),
            "tool_choice": ref("ToolChoice"),
            "metadata": {
                "type": "object",
                "description": "At most 16 texts of 512 characters; they come back with it.",
            },
            "conversation": one_of(
                "auto",
                "none",
                description="none: out of band, beside the conversation and whatever is said in "
                "it, in writing only, where a model chats.",
            ),
            "input": listing(
                either(ref("NewItem"), _reference()),
                most=_LIMITS.max_item_parts,
                about="Out of band only: what is answered instead of the conversation so far; all "
                "of it together may be as large as one item.",
            ),
        },
        about="For this response alone; what is not named is as in the session. Another "
        "conversation, voice or format is refused.",
    )


def _reference() -> Schema:
    return thing(
        {"type": just("item_reference"), "id": text(most=MAX_ID_CHARS)},
        needs=("type", "id"),
        about="An item of the conversation.",
    )


# ---- from the server --------------------------------------------------------------------------


def _item() -> Schema:
    head: dict[str, Schema] = {
        "id": text(),
        "object": just("realtime.item"),
        "status": one_of(*_STATUSES),
    }
    parts = either(
        reply({"type": just("input_text"), "text": text()}),
        reply(
            {
                "type": just("input_audio"),
                "transcript": maybe(text("null: not written down.")),
            },
            about="The sound itself is not kept.",
        ),
        reply({"type": just("input_image"), "detail": text()}, may_lack=("detail",)),
        reply({"type": just("output_text"), "text": text()}),
        reply({"type": just("output_audio"), "transcript": text("The words that were heard.")}),
    )
    message = {
        "type": just("message"),
        "role": one_of("user", "system", "assistant"),
        "content": listing(parts),
    }
    called = {
        "type": just("function_call"),
        "call_id": text("For the `function_call_output`."),
        "name": text(),
        "arguments": text("JSON; empty until it is complete."),
    }
    returned = {"type": just("function_call_output"), "call_id": text(), "output": text()}
    return either(reply(head | message), reply(head | called), reply(head | returned))


def _part() -> Schema:
    return either(
        reply({"type": just("audio"), "transcript": text()}),
        reply({"type": just("text"), "text": text()}),
    )


def _response() -> Schema:
    output = reply({"format": ref("SoundFormat"), "voice": text()}, may_lack=("voice",))
    return reply(
        {
            "id": text(),
            "object": just("realtime.response"),
            "status": one_of("in_progress", "completed", "cancelled", "incomplete", "failed"),
            "status_details": maybe(_details()),
            "output": listing(ref("Item"), about="Its items, once it is done."),
            "conversation_id": maybe(text("null: it is out of band.")),
            "output_modalities": listing(one_of(*MODALITIES)),
            "max_output_tokens": either(whole(1), _INFINITE),
            "audio": reply({"output": output}),
            "metadata": {"type": "object", "description": "As it was asked for."},
            "usage": ref("Usage"),
        },
        may_lack=("metadata", "usage"),
    )


def _details() -> Schema:
    failure = reply({"type": text(), "code": text(), "message": text()})
    return reply(
        {
            "type": one_of("cancelled", "incomplete", "failed"),
            "reason": one_of("turn_detected", "client_cancelled", "max_output_tokens"),
            "error": failure,
        },
        may_lack=("reason", "error"),
        about="Why it was not completed.",
    )


def _usage() -> Schema:
    kinds: dict[str, Schema] = {
        "text_tokens": whole(0),
        "audio_tokens": whole(0),
        "image_tokens": whole(0),
    }
    cached = {"cached_tokens": whole(0), "cached_tokens_details": reply(kinds)}
    spoken = {"text_tokens": whole(0), "audio_tokens": whole(0)}
    return reply(
        {
            "total_tokens": whole(0),
            "input_tokens": whole(0),
            "output_tokens": whole(0),
            "input_token_details": reply(kinds | cached, may_lack=("cached_tokens_details",)),
            "output_token_details": reply(spoken),
        },
        about="In the model's tokens; nothing is billed.",
    )


SCHEMAS: dict[str, Schema] = {
    "NewItem": _new_item(),
    "ResponseAsked": _asked(),
    "Item": _item(),
    "Part": _part(),
    "Response": _response(),
    "Usage": _usage(),
}
