"""Reading what a client sent: all of it checked before any of it takes effect."""

import json
import math
from collections.abc import Mapping
from typing import NoReturn, cast

from agent.errors import RequestError
from agent.realtime.fields import Fields
from agent.realtime.limits import Limits
from agent.realtime.settings import parse_session
from agent.types import Abilities, SessionSettings

MAX_ID_CHARS = 64
MAX_EVENT_ID_CHARS = 512
EXTENSION = "voice_agent."
"""How the types of the events of our extension begin."""
EXACT_INTEGER = 2**53
"""Beyond it a JSON number is not the same in every language."""


# ---- the message itself -----------------------------------------------------------------------


def read_message(
    message: str | bytes, limits: Limits, *, is_client: bool = True
) -> dict[str, object]:
    """One event of the call's own client, or of somebody else in the call, as an object.

    `RequestError` for anything that is not one.
    """
    if not isinstance(message, str):
        raise _malformed("Binary messages are not understood; send each event as JSON text.")
    most = limits.max_message_bytes if is_client else limits.max_sideband_bytes
    if len(message) > most or len(message.encode("utf-8", "replace")) > most:
        raise RequestError(
            f"The event is larger than {most} bytes; send it in parts.",
            code="message_too_large",
        )
    if sum(map(message.count, ",[{")) > limits.max_values:
        raise RequestError(
            f"The event holds more than {limits.max_values} values; send it in parts.",
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


def uses_extension(document: Mapping[str, object]) -> bool:
    """Whether the client that sent this knows our extension."""
    kind, session = document.get("type"), document.get("session")
    named = isinstance(kind, str) and kind.startswith(EXTENSION)
    return named or (isinstance(session, dict) and session.get("voice_agent") is not None)


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


def parse_truncation(event: Fields) -> tuple[str, int]:
    """`item_id` and `audio_end_ms` of `conversation.item.truncate`, the latter not yet clamped."""
    item_id = item_id_of(event)
    event.integer("content_index", 0, least=0, most=0)
    end_ms = event.number("audio_end_ms", least=-math.inf, most=math.inf)
    return item_id, int(end_ms)
