"""What the user said, in writing: `conversation.item.input_audio_transcription.*`."""

from agent.realtime.events import Event, server_event
from agent.realtime.items import Items, UserSpeechItem
from agent.types import UserText, UserTextFailed

_PREFIX = "conversation.item.input_audio_transcription"
_NOBODY_WRITES = (
    "Neither the engine nor this server writes down what the user says; what the agent says is in "
    "'response.output_audio_transcript.*'. Set 'session.audio.input.transcription' to null to be "
    "told no more of it."
)


def completed(items: Items, told: UserText) -> list[Event]:
    """It was written down; silent when there is no such speech."""
    item = _speech(items, told.item_id)
    if item is None:
        return []
    item.transcript = told.text
    usage = {"type": "duration", "seconds": round(item.duration_s, 3)}
    fields: dict[str, object] = {"transcript": told.text, "usage": usage}
    pieces = [_event("delta", item, delta=told.text)] if told.text else []
    return [*pieces, _event("completed", item, **fields)]


def failed(items: Items, told: UserTextFailed) -> list[Event]:
    """It could not be written down; silent when there is no such speech."""
    item = _speech(items, told.item_id)
    return [_failed(item, "transcription_failed", told.reason)] if item is not None else []


def impossible(item: UserSpeechItem) -> Event:
    """Nobody here can, though the client asked for it."""
    return _failed(item, "unsupported_by_engine", _NOBODY_WRITES)


def _speech(items: Items, item_id: str) -> UserSpeechItem | None:
    """Who does not know the item's id means what was said last; an item may be gone by now."""
    if not item_id:
        return items.last_speech()
    item = items.get(item_id) if item_id in items else None
    return item if isinstance(item, UserSpeechItem) else None


def _failed(item: UserSpeechItem, code: str, message: str) -> Event:
    error = {"type": "transcription_error", "code": code, "message": message}
    return _event("failed", item, error=error)


def _event(what: str, item: UserSpeechItem, **fields: object) -> Event:
    return server_event(f"{_PREFIX}.{what}", item_id=item.id, content_index=0, **fields)
