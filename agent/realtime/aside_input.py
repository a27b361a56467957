"""`response.create` with `conversation: "none"`: what an out-of-band response is to answer.

Its `input` names items of the conversation or brings its own; without one, the conversation as it
stands is shown, its newest items first of all. Of pictures in the conversation nothing is kept, so
only a mark stands for them.
"""

from collections.abc import Iterable
from dataclasses import replace

from agent.chat_types import ChatSound, ChatText, ChatToolCall
from agent.commands import AddAudio, AddPicture, AddText, Command
from agent.errors import RequestError, UnsupportedError
from agent.realtime.asked_response import check_asked, metadata_of, overridden
from agent.realtime.client_events import MAX_ID_CHARS
from agent.realtime.fields import Fields, quoted
from agent.realtime.items import (
    Item,
    MessageItem,
    SpokenItem,
    ToolCallItem,
    ToolResultItem,
    UserSpeechItem,
)
from agent.realtime.limits import Limits
from agent.realtime.new_items import parse_item
from agent.realtime.question import ItemSound, PictureFile, Question, Said, SaidPart
from agent.realtime.response import Response
from agent.realtime.settings import parse_token_limit
from agent.realtime.spelling import current_spelling
from agent.realtime.state import CallState
from agent.realtime.tools import parse_tools
from agent.types import MIC_RATE_HZ, Role

_PICTURE = "[a picture]"


def parse_aside(document: object, call: CallState) -> tuple[Response, Question]:
    """The response that is asked for, not yet begun, and what it is to answer.

    `RequestError` or `UnsupportedError` naming ``response.<field>``.
    """
    asked = Fields(current_spelling(document), "response")
    if not call.abilities.out_of_band:
        raise UnsupportedError(
            "This server answers nothing out of band: its engine cannot chat, or "
            "'chat.max_out_of_band' is 0.",
            param=asked.name("conversation"),
        )
    check_asked(asked, call.settings, call.abilities)
    base = replace(
        overridden(asked, call.settings, call.abilities),
        # A chat knows "inf", and calls functions, whatever the conversation does.
        max_output_tokens=parse_token_limit(asked, call.settings.max_output_tokens),
        tool_channel="native",
    )
    holds = parse_tools(asked, base, replace(call.abilities, tools=True))
    if holds.output_modalities != ("text",):
        raise UnsupportedError(
            "An out-of-band response is written, not spoken; send 'output_modalities': ['text'] "
            "with it.",
            param=asked.name("output_modalities"),
        )
    metadata = metadata_of(asked)
    question = Question(
        asked.text("instructions", call.settings.instructions),
        _given(asked, call) if asked.has("input") else so_far(call.items, call.limits),
        holds.tools,
        holds.tool_choice,
        holds.max_output_tokens,
    )
    _require_anything(asked, question)
    return call.asides.new(holds, metadata), question


def _require_anything(asked: Fields, question: Question) -> None:
    if not question.said and not question.instructions:
        raise RequestError(
            "There is nothing to answer; send 'instructions', or items in 'input'.",
            param=asked.name("input"),
            code="missing_required_parameter",
        )


# ---- the conversation ---------------------------------------------------------------------------


def so_far(items: Iterable[Item], limits: Limits) -> tuple[Said, ...]:
    """What was said in these items, as far as there is room: the newest of it."""
    kept: list[Said] = []
    room = limits.max_context_chars
    for item in reversed(list(items)):
        if (said := said_in(item)) is None:
            continue
        room -= _chars(said)
        if kept and (room < 0 or len(kept) >= limits.max_context_items):
            break
        kept.insert(0, said)
    while kept and kept[0].role == "tool":
        del kept[0]  # what was asked for is no longer in sight
    return tuple(kept)


def said_in(item: Item) -> Said | None:
    """What an item says; None where that is nothing, or not yet."""
    match item:
        case ToolCallItem(call_id=call_id, name=name, arguments=arguments, status="completed"):
            return Said("assistant", calls=(ChatToolCall(call_id, name, arguments),))
        case ToolResultItem(output=output):
            return Said("tool", (ChatText(output),))
        case UserSpeechItem(id=item_id, transcript=None):
            return Said("user", (ItemSound(item_id),))
        case UserSpeechItem(transcript=str(words)):
            return _in_words("user", words)
        case SpokenItem():
            return _in_words("assistant", item.heard_so_far())
        case MessageItem():
            return _message(item)
    return None


def _in_words(role: Role, words: str) -> Said | None:
    return Said(role, (ChatText(words),)) if words else None


def _message(item: MessageItem) -> Said | None:
    words = [part.get("text") or part.get("transcript") for part in item.parts]
    kinds = [part["type"] for part in item.parts]
    words += [_PICTURE for kind in kinds if kind == "input_image"]
    unwritten = any(
        kind == "input_audio" and not said for kind, said in zip(kinds, words, strict=False)
    )
    text = "\n".join(filter(None, words))
    parts: list[SaidPart] = [ItemSound(item.id)] if unwritten else []
    if text:
        parts.append(ChatText(text))
    return Said(item.role, tuple(parts)) if parts else None


# ---- items of its own ---------------------------------------------------------------------------


def _given(asked: Fields, call: CallState) -> tuple[Said, ...]:
    """All of them together may be as large as one item of the conversation."""
    most = call.limits.max_item_parts
    if len(asked.items("input")) > most:
        raise _too_large(asked, f"{len(asked.items('input'))} items", most)
    read = (_item(one, call) for one in asked.objects("input"))
    said = tuple(one for one in read if one is not None)
    _check_sizes(asked, said, call.limits)
    return said


def _item(one: Fields, call: CallState) -> Said | None:
    kind = one.text("type", most=256)
    if kind == "item_reference":
        return said_in(_named(one, call))
    if kind == "function_call_output":
        output = one.text("output", most=call.limits.max_text_chars)
        return Said("tool", (ChatText(output),))
    item, commands = parse_item(one, call)
    if isinstance(item, MessageItem):
        return Said(item.role, tuple(map(_part, commands)))
    return said_in(item)


def _named(one: Fields, call: CallState) -> Item:
    item_id = one.text("id", most=MAX_ID_CHARS)
    if item_id not in call.items:
        raise RequestError(
            f"There is no item {quoted(item_id)} in this conversation.",
            param=one.name("id"),
            code="item_not_found",
        )
    return call.items.get(item_id)


def _part(command: Command) -> SaidPart:
    match command:
        case AddPicture(file=file):
            return PictureFile(file)
        case AddAudio(samples=samples):
            return ChatSound(samples)
        case AddText(text=text):
            return ChatText(text)
    raise TypeError(f"{type(command).__name__} is no part of a message")


def _check_sizes(asked: Fields, said: tuple[Said, ...], limits: Limits) -> None:
    parts = [part for one in said for part in one.parts]
    # What is known of the sounds of all items together is bounded: each once is, too.
    named = [part.item_id for part in parts if isinstance(part, ItemSound)]
    if len(set(named)) < len(named):
        raise RequestError(
            f"'{asked.name('input')}' refers to the sound of an item more than once; refer to it "
            "once.",
            param=asked.name("input"),
            code="invalid_value",
        )
    pictures = sum(isinstance(part, PictureFile) for part in parts)
    samples = sum(len(part.samples) for part in parts if isinstance(part, ChatSound))
    for what, size, most in (
        ("characters", sum(map(_chars, said)), limits.max_text_chars),
        ("pictures", pictures, limits.max_item_pictures),
        ("seconds of sound", -(-samples // MIC_RATE_HZ), limits.max_item_sound_s),
    ):
        if size > most:
            raise _too_large(asked, f"{size} {what}", most)


def _too_large(asked: Fields, found: str, most: int) -> RequestError:
    return RequestError(
        f"'{asked.name('input')}' has {found}; at most {most} are taken.",
        param=asked.name("input"),
        code="item_too_large",
    )


def _chars(said: Said) -> int:
    texts = sum(len(part.text) for part in said.parts if isinstance(part, ChatText))
    return texts + sum(len(call.name) + len(call.arguments) for call in said.calls)
