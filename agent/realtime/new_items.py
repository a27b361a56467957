"""`conversation.item.create`: what a client puts into the conversation, for the engine to know.

The engine is told of a message's pictures first, then of its sounds, then of its words in one
piece. A function call that the client puts in is history: what the function returned is told as a
text, for the engine itself called nothing.
"""

from dataclasses import dataclass

import numpy as np

from agent.commands import AddAudio, AddPicture, AddText, AddToolResult, Command
from agent.errors import RequestError, UnsupportedError
from agent.media.wire_sound import WireDecoder, sample_bytes, wire_rate_hz
from agent.realtime.client_events import MAX_ID_CHARS
from agent.realtime.events import new_id
from agent.realtime.fields import MAX_BASE64_CHARS, Fields, decoded, quoted
from agent.realtime.items import Item, MessageItem, Part, ToolCallItem, ToolResultItem
from agent.realtime.state import CallState
from agent.realtime.tools import calls_functions
from agent.types import MIC_RATE_HZ, Role

ROLES: tuple[Role, ...] = ("user", "system", "assistant")
PART_KINDS: dict[Role, tuple[str, ...]] = {
    "user": ("input_text", "input_audio", "input_image"),
    "system": ("input_text",),
    "assistant": ("output_text", "output_audio"),
}
_OLD_KINDS = {"text": "output_text", "audio": "output_audio"}
"""What OpenAI's beta called the parts of the assistant's messages."""
_DETAILS = ("auto", "low", "high")


@dataclass(slots=True)
class _Told:
    """A part as it is told back, and what of it is for the engine."""

    part: Part
    text: str | None = None
    command: AddPicture | AddAudio | None = None


def parse_item(item: Fields, call: CallState) -> tuple[Item, tuple[Command, ...]]:
    """A new item and the commands that tell the engine of it; ids are the client's or fresh."""
    item_id = item.text("id", "", most=MAX_ID_CHARS) or new_id("item")
    if item_id == "root" or not item_id.isprintable():
        raise RequestError(
            "'item.id' must be printable and not 'root'.",
            param=item.name("id"),
            code="invalid_value",
        )
    kind = item.text("type", most=256)
    match kind:
        case "message":
            return _message(item, item_id, call)
        case "function_call":
            return _past_call(item, item_id, call), ()
        case "function_call_output":
            return _tool_result(item, item_id, call)
    raise UnsupportedError(
        f"Items of type '{kind[:64]}' cannot be created; use 'message', 'function_call' or "
        "'function_call_output'.",
        param=item.name("type"),
    )


# ---- messages ---------------------------------------------------------------------------------


def _message(item: Fields, item_id: str, call: CallState) -> tuple[Item, tuple[Command, ...]]:
    role = item.choice("role", ROLES, "user")
    parts = _parts(item, call)
    told = [_part(one, role, item_id, call) for one in parts]
    _check_sizes(item, told, call)
    media = [one.command for one in told if one.command is not None]
    commands: list[Command] = sorted(media, key=lambda one: isinstance(one, AddAudio))
    texts = [one.text for one in told if one.text is not None]
    if texts:
        commands.append(AddText(item_id, role, "\n".join(texts)))
    return MessageItem(item_id, role, tuple(one.part for one in told)), tuple(commands)


def _parts(item: Fields, call: CallState) -> list[Fields]:
    most = call.limits.max_item_parts
    if len(item.items("content")) > most:
        raise RequestError(
            f"The item has {len(item.items('content'))} parts; at most {most} are taken.",
            param=item.name("content"),
            code="item_too_large",
        )
    parts = item.objects("content")
    if not parts:
        raise RequestError(
            "'item.content' is empty; give it at least one part.",
            param=item.name("content"),
            code="missing_required_parameter",
        )
    return parts


def _check_sizes(item: Fields, told: list[_Told], call: CallState) -> None:
    chars = sum(len(one.text) for one in told if one.text is not None)
    pictures = sum(isinstance(one.command, AddPicture) for one in told)
    samples = sum(len(one.command.samples) for one in told if isinstance(one.command, AddAudio))
    limits = call.limits
    for what, size, most in (
        ("characters", chars, limits.max_text_chars),
        ("pictures", pictures, limits.max_item_pictures),
        ("seconds of sound", -(-samples // MIC_RATE_HZ), limits.max_item_sound_s),
    ):
        if size > most:
            raise RequestError(
                f"The item has {size} {what}; at most {most} are taken.",
                param=item.name("content"),
                code="item_too_large",
            )


def _part(one: Fields, role: Role, item_id: str, call: CallState) -> _Told:
    kind = one.text("type", most=256)
    if role == "assistant":
        kind = _OLD_KINDS.get(kind, kind)
    if kind not in PART_KINDS[role]:
        raise RequestError(
            f"A message by '{role}' holds {' or '.join(map(repr, PART_KINDS[role]))}, not "
            f"'{kind[:64]}'.",
            param=one.name("type"),
            code="invalid_value",
        )
    match kind:
        case "input_image":
            return _picture(one, item_id, call)
        case "input_audio":
            return _sound(one, item_id, call)
        case "output_audio":
            return _words(one, kind, "transcript", call)
    return _words(one, kind, "text", call)


def _words(one: Fields, kind: str, field: str, call: CallState) -> _Told:
    if not call.abilities.typed_text:
        raise UnsupportedError("The engine takes no typed text.", param=one.name("type"))
    text = one.text(field, most=call.limits.max_text_chars)
    return _Told({"type": kind, field: text}, text)


def _picture(one: Fields, item_id: str, call: CallState) -> _Told:
    """The file in a data URL; what it shows is not looked at, `detail` is for others to heed."""
    if not call.abilities.pictures:
        raise UnsupportedError("The engine takes no pictures.", param=one.name("type"))
    param, url = one.name("image_url"), one.text("image_url", most=MAX_BASE64_CHARS)
    head, comma, data = url.partition(",")
    if not (head.startswith("data:image/") and head.endswith(";base64") and comma):
        raise RequestError(
            "A picture is sent as a data URL: 'data:image/jpeg;base64,…'.",
            param=param,
            code="invalid_value",
        )
    part: dict[str, str | None] = {"type": "input_image"}
    if one.has("detail"):
        part["detail"] = one.choice("detail", _DETAILS, "auto")
    return _Told(part, command=AddPicture(item_id, decoded(data, param)))


def _sound(one: Fields, item_id: str, call: CallState) -> _Told:
    """A recording in the session's input format; what the client says is in it is believed."""
    if not call.abilities.recordings:
        raise UnsupportedError("The engine takes no recordings.", param=one.name("type"))
    coding, data = call.settings.input_format, one.base64("audio")
    if len(data) % sample_bytes(coding):
        raise RequestError(
            f"The recording ends within a sample: '{coding}' has {sample_bytes(coding)} bytes for "
            "each.",
            param=one.name("audio"),
            code="invalid_value",
        )
    seconds = len(data) // sample_bytes(coding) / wire_rate_hz(coding)
    if seconds > call.limits.max_item_sound_s:
        raise RequestError(
            f"The recording lasts {seconds:.0f} s; at most {call.limits.max_item_sound_s} s are "
            "taken.",
            param=one.name("audio"),
            code="item_too_large",
        )
    transcript = one.text("transcript", "", most=call.limits.max_text_chars) or None
    decoder = WireDecoder(coding)
    samples = np.concatenate((decoder.push(data), decoder.finish()))
    part: dict[str, str | None] = {"type": "input_audio", "transcript": transcript}
    return _Told(part, command=AddAudio(item_id, samples))


# ---- functions --------------------------------------------------------------------------------


def _past_call(item: Fields, item_id: str, call: CallState) -> ToolCallItem:
    return ToolCallItem(
        item_id,
        item.text("call_id", "", most=256) or new_id("call"),
        item.text("name", most=64),
        item.text("arguments", most=call.limits.max_text_chars),
        status="completed",
        is_history=True,
    )


def _tool_result(item: Fields, item_id: str, call: CallState) -> tuple[Item, tuple[Command, ...]]:
    call_id = item.text("call_id", most=256)
    output = item.text("output", most=call.limits.max_text_chars)
    result = ToolResultItem(item_id, call_id, output)
    past = call.items.tool_call(call_id)
    if past is not None and past.is_history and call.abilities.typed_text:
        text = f"The function {past.name}({past.arguments}) was called and returned: {output}"
        return result, (AddText(item_id, "system", text),)
    if not calls_functions(call.settings, call.abilities):
        raise UnsupportedError("The engine calls no functions.", param=item.name("type"))
    if past is None:
        raise RequestError(
            f"Tool call ID {quoted(call_id)} not found in conversation: name that of a call.",
            param=item.name("call_id"),
            code="invalid_tool_call_id",
        )
    return result, (AddToolResult(call_id, output),)
