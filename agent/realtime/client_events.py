"""Reading what a client sent: all of it checked before any of it takes effect."""

import base64
import json
import math
from typing import NoReturn, cast

from agent.errors import RequestError, UnsupportedError
from agent.realtime.events import new_id
from agent.realtime.fields import Fields, wrong_type
from agent.realtime.items import Item, TextItem, ToolResultItem
from agent.realtime.limits import Limits
from agent.realtime.settings import parse_session, voice_name
from agent.types import (
    Abilities,
    AddPicture,
    AddText,
    AddToolResult,
    Command,
    Respond,
    Role,
    SessionSettings,
)

MAX_ID_CHARS = 64
MAX_EVENT_ID_CHARS = 512
MAX_PICTURE_CHARS = 32 * 1024 * 1024
"""Far above what a data channel takes in one message; the transports' own limits come first."""
EXACT_INTEGER = 2**53
"""Beyond it a JSON number is not the same in every language."""

PART_KINDS: dict[Role, str] = {
    "user": "input_text",
    "system": "input_text",
    "assistant": "output_text",
}


# ---- the message itself -----------------------------------------------------------------------


def read_message(message: str | bytes, limits: Limits) -> dict[str, object]:
    """One client event as an object; `RequestError` for anything that is not one."""
    if not isinstance(message, str):
        raise _malformed("Binary messages are not understood; send each event as JSON text.")
    if len(message) > limits.max_message_bytes or (
        len(message.encode("utf-8", "replace")) > limits.max_message_bytes
    ):
        raise RequestError(
            f"The event is larger than {limits.max_message_bytes} bytes; send it in parts.",
            code="message_too_large",
        )
    try:
        document = json.loads(message, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise _malformed("The message is not valid JSON; send one event as an object.") from error
    if not isinstance(document, dict):
        raise _malformed("The message is not a JSON object; send one event as an object.")
    return cast(dict[str, object], document)


def parse_opening(
    document: object, base: SessionSettings, abilities: Abilities, limits: Limits
) -> SessionSettings:
    """The session object that came with the offer: settings for `RealtimeCall`.

    It is held to exactly what `session.update` is held to; `RequestError` for anything else.
    """
    check_values(document, limits)
    return parse_session(document, base, abilities)


def client_event_id(document: dict[str, object]) -> str | None:
    """The client's own id of its event, to be named in an error; None without a usable one."""
    event_id = document.get("event_id")
    if isinstance(event_id, str) and len(event_id) <= MAX_EVENT_ID_CHARS and _sound_text(event_id):
        return event_id
    return None


def check_values(document: object, limits: Limits) -> None:
    """Refuse what JSON allows but no field can mean: deep nests, huge numbers, half characters."""
    level = [document]
    for _ in range(limits.max_depth):
        below: list[object] = []
        for value in level:
            _check_scalar(value)
            if isinstance(value, dict):
                below.extend(value)
                below.extend(value.values())
            elif isinstance(value, list):
                below.extend(value)
        if not below:
            return
        level = below
    raise _malformed(f"The event is nested deeper than {limits.max_depth} levels.")


def _check_scalar(value: object) -> None:
    if isinstance(value, str) and not _sound_text(value):
        raise _malformed("The event holds half of a surrogate pair; send valid Unicode.")
    if isinstance(value, int) and abs(value) > EXACT_INTEGER:
        raise _malformed("The event holds a number too large to be exact.")
    if isinstance(value, float) and not math.isfinite(value):
        raise _malformed("The event holds a number too large to be finite.")


def _sound_text(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _malformed(message: str) -> RequestError:
    return RequestError(message, code="invalid_json")


# ---- conversation.item.* ----------------------------------------------------------------------


def item_id_of(event: Fields) -> str:
    """The required `item_id`."""
    return event.text("item_id", most=MAX_ID_CHARS)


def parse_item(
    item: Fields, abilities: Abilities, limits: Limits
) -> tuple[Item, tuple[Command, ...]]:
    """A new item and the commands that tell the engine of it; ids are the client's or fresh."""
    item_id = item.text("id", "", most=MAX_ID_CHARS) or new_id("item")
    if item_id == "root" or not item_id.isprintable():
        raise RequestError(
            "'item.id' must be printable and not 'root'.",
            param=item.name("id"),
            code="invalid_value",
        )
    kind = item.text("type", most=256)
    if kind == "message":
        return _parse_message_item(item, item_id, abilities, limits)
    if kind == "function_call_output":
        return _parse_tool_result(item, item_id, abilities, limits)
    raise UnsupportedError(
        f"Items of type '{kind[:64]}' cannot be created; use 'message'.",
        param=item.name("type"),
    )


def _parse_message_item(
    item: Fields, item_id: str, abilities: Abilities, limits: Limits
) -> tuple[Item, tuple[Command, ...]]:
    """A message's pictures come before its words, as the engine sees and reads them."""
    role = item.choice("role", tuple(PART_KINDS), "user")
    parts = item.objects("content")
    if not parts:
        raise RequestError(
            "'item.content' is empty; give it at least one part.",
            param=item.name("content"),
            code="missing_required_parameter",
        )
    pictures = [one for one in parts if one.text("type", most=256) == "input_image"]
    files = [_part_picture(one, role, abilities) for one in pictures]
    texts = [_part_text(one, role, abilities, limits) for one in parts if one not in pictures]
    text = "\n".join(texts)
    if len(text) > limits.max_text_chars:
        raise RequestError(
            f"The item has {len(text)} characters; shorten it to {limits.max_text_chars}.",
            param=item.name("content"),
            code="string_above_max_length",
        )
    commands: list[Command] = [AddPicture(item_id, file) for file in files]
    if texts:
        commands.append(AddText(item_id, role, text))
    return TextItem(item_id, role, text, pictures=len(files)), tuple(commands)


def _part_picture(part: Fields, role: Role, abilities: Abilities) -> bytes:
    """The file in an `input_image` part, a data URL in base64; what it shows is not looked at."""
    if role != "user" or not abilities.pictures:
        raise UnsupportedError("The engine takes no 'input_image' here.", param=part.name("type"))
    url = part.text("image_url", most=MAX_PICTURE_CHARS)
    head, comma, data = url.partition(",")
    if not (head.startswith("data:image/") and head.endswith(";base64") and comma):
        raise RequestError(
            "A picture is sent as a data URL: 'data:image/jpeg;base64,…'.",
            param=part.name("image_url"),
            code="invalid_value",
        )
    try:
        return base64.b64decode(data, validate=True)
    except ValueError as error:
        raise RequestError(
            "The picture's base64 is damaged.",
            param=part.name("image_url"),
            code="invalid_value",
        ) from error


def _part_text(part: Fields, role: Role, abilities: Abilities, limits: Limits) -> str:
    kind = part.text("type", most=256)
    if kind in ("input_audio", "output_audio"):
        raise UnsupportedError(f"The engine takes no '{kind}' in an item.", param=part.name("type"))
    if kind != PART_KINDS[role]:
        raise RequestError(
            f"A message by '{role}' holds '{PART_KINDS[role]}', not '{kind[:64]}'.",
            param=part.name("type"),
            code="invalid_value",
        )
    if not abilities.typed_text:
        raise UnsupportedError("The engine takes no typed text.", param=part.name("type"))
    return part.text("text", most=limits.max_text_chars)


def _parse_tool_result(
    item: Fields, item_id: str, abilities: Abilities, limits: Limits
) -> tuple[Item, tuple[Command, ...]]:
    if not abilities.tools:
        raise UnsupportedError("The engine calls no functions.", param=item.name("type"))
    call_id = item.text("call_id", most=256)
    output = item.text("output", most=limits.max_text_chars)
    return ToolResultItem(item_id, call_id, output), (AddToolResult(call_id, output),)


def parse_truncation(event: Fields) -> tuple[str, int]:
    """`item_id` and `audio_end_ms` of `conversation.item.truncate`, the latter not yet clamped."""
    item_id = item_id_of(event)
    event.integer("content_index", 0, least=0, most=0)
    end_ms = event.number("audio_end_ms", least=-math.inf, most=math.inf)
    return item_id, int(end_ms)


# ---- response.create --------------------------------------------------------------------------


def parse_response(
    response: Fields, settings: SessionSettings, abilities: Abilities
) -> tuple[Respond, dict[str, str]]:
    """What to answer by, and the metadata to hand back with the response.

    An override that cannot be served raises `UnsupportedError` naming ``response.<field>``.
    """
    instructions = response.text("instructions", "")
    metadata = _metadata(response)
    _refuse_overrides(response, settings, abilities)
    if not abilities.tools:
        _refuse_tools(response)
    return Respond(instructions or None), metadata


def _metadata(response: Fields) -> dict[str, str]:
    section = response.section("metadata")
    raw = response.raw("metadata")
    names = list(raw) if isinstance(raw, dict) else []
    if len(names) > 16:
        raise wrong_type(section.path, "at most 16 entries", raw)
    return {name[:64]: section.text(name, "", most=512) for name in names}


def _refuse_overrides(response: Fields, settings: SessionSettings, abilities: Abilities) -> None:
    if response.text("conversation", "auto", most=256) != "auto":
        raise _no_override(response, "conversation")
    for field in ("input", "prompt"):
        if response.has(field):
            raise _no_override(response, field)
    if response.raw("max_output_tokens") not in (None, "inf"):
        raise _no_override(response, "max_output_tokens")
    asked = response.items("output_modalities")
    # Stock clients ask for sound by default; an engine without a voice answers in text, as the
    # session says.
    if abilities.speech and asked and list(asked) != list(settings.output_modalities):
        raise _no_override(response, "output_modalities")
    output = response.section("audio").section("output")
    if voice_name(output) not in (None, settings.voice):
        raise _no_override(output, "voice")


def _refuse_tools(response: Fields) -> None:
    if response.items("tools"):
        raise _no_override(response, "tools")
    if response.raw("tool_choice") not in (None, "auto", "none"):
        raise _no_override(response, "tool_choice")


def _no_override(fields: Fields, field: str) -> UnsupportedError:
    return UnsupportedError(
        f"The engine cannot change '{fields.name(field)}' for one response.",
        param=fields.name(field),
    )
