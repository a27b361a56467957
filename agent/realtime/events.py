"""Server events as plain dictionaries, in the shapes of OpenAI Realtime (GA).

A field that has no value is left out, never null: stock clients check their schema strictly and
silently ignore an event that fails. Null stands only where it means something: no turn detection,
nothing before an item, user speech that is not transcribed.
"""

import secrets
from typing import TypeAlias

from agent.types import Usage

Event: TypeAlias = dict[str, object]


def new_id(kind: str) -> str:
    """A fresh id such as ``item_9f…``: unique beyond guessing."""
    return f"{kind}_{secrets.token_hex(12)}"


def server_event(type_: str, **fields: object) -> Event:
    """An event of type `type_` with an id of its own."""
    return {"type": type_, "event_id": new_id("event"), **fields}


def error_event(
    message: str,
    *,
    kind: str = "invalid_request_error",
    code: str | None = None,
    param: str | None = None,
    event_id: str | None = None,
) -> Event:
    """`error`; `event_id` is the client's, of the event that caused it."""
    error: dict[str, object] = {"type": kind, "message": message}
    named = (("code", code), ("param", param), ("event_id", event_id))
    error.update((name, value) for name, value in named if value is not None)
    return server_event("error", error=error)


def expired_event() -> Event:
    """`error`: the last event of a call that is ended for its length, by the code of OpenAI's."""
    text = "The call has lasted for as long as one may; open a new one."
    return error_event(text, code="session_expired")


def usage_object(usage: Usage) -> dict[str, object]:
    """A response's `usage`: nothing is billed here, yet clients add these numbers up."""
    taken_in = usage.text_in + usage.audio_in + usage.pictures_in
    given_out = usage.text_out + usage.audio_out
    known: dict[str, object] = {"cached_tokens": usage.cached_in}
    if not usage.cached_in:
        # Of what was known from before, nobody says of which kind it was.
        known["cached_tokens_details"] = _by_kind(0, 0, 0)
    return {
        "total_tokens": taken_in + given_out,
        "input_tokens": taken_in,
        "output_tokens": given_out,
        "input_token_details": _by_kind(usage.text_in, usage.audio_in, usage.pictures_in) | known,
        "output_token_details": {"text_tokens": usage.text_out, "audio_tokens": usage.audio_out},
    }


def _by_kind(text: int, audio: int, pictures: int) -> dict[str, int]:
    return {"text_tokens": text, "audio_tokens": audio, "image_tokens": pictures}
