"""What a client may send in a call: each event with its fields and an example that is obeyed.

Needed is what the server refuses to do without; a test drops each field of each example.
"""

from collections.abc import Mapping
from typing import Any

from agent.api.openapi.shapes import Schema, flag, just, ref, text, thing, whole
from agent.realtime.client_events import EXACT_INTEGER, MAX_EVENT_ID_CHARS, MAX_ID_CHARS

_ITEM_ID = text(most=MAX_ID_CHARS)
_ANY_NUMBER: Schema = {"type": "number"}


def _event(
    kind: str, about: str, needed: Mapping[str, Schema], may: Mapping[str, Schema], **example: Any
) -> tuple[str, Schema]:
    head: dict[str, Schema] = {
        "type": just(kind),
        "event_id": text("Yours; an `error` names it.", most=MAX_EVENT_ID_CHARS),
    }
    schema = thing({**head, **needed, **may}, needs=("type", *needed), about=about)
    return kind, schema | {"examples": [{"type": kind, **example}]}


_HELLO = {
    "type": "message",
    "role": "user",
    "content": [{"type": "input_text", "text": "Hello"}],
}

_OMNI = (
    _event("session.heartbeat", "The client is there (vLLM-Omni).", {}, {}),
    _event("session.event_ack", "Changes nothing: no event is sent twice (vLLM-Omni).", {}, {}),
    _event("session.close", "Hang up (vLLM-Omni).", {}, {}),
    _event("input.commit", "As `input_audio_buffer.commit` (vLLM-Omni).", {}, {}),
    _event("input.cancel", "As `input_audio_buffer.clear` (vLLM-Omni).", {}, {}),
    _event("barge_in", "Be silent now (vLLM-Omni).", {}, {}),
)

CLIENT: dict[str, Schema] = dict(
    (
        _event(
            "session.update",
            "Change the session; what is not named stays.",
            {"session": ref("Session")},
            {},
            session={"instructions": "Be brief.", "voice_agent": {"eagerness": 0.7}},
        ),
        _event(
            "input_audio_buffer.append",
            "More of the user's sound (WebSocket only).",
            {"audio": text("Base64, in the session's input format.")},
            {
                "sample_rate_hz": {
                    "type": "number",
                    "enum": [16_000, 24_000],
                    "description": "Of PCM (vLLM-Omni); without, that of the session.",
                }
            },
            audio="AAAAAA==",
        ),
        _event(
            "input_audio_buffer.commit",
            "The user's turn is over (without turn detection).",
            {},
            {},
        ),
        _event(
            "input_audio_buffer.clear", "Forget what the user said since the last commit.", {}, {}
        ),
        _event("output_audio_buffer.clear", "Be silent now (WebRTC).", {}, {}),
        _event(
            "conversation.item.create",
            "Add text, a picture, a recording or what a function returned.",
            {"item": ref("NewItem")},
            {
                "previous_item_id": text(
                    "Behind which item; `root`: in front. Without, at the end.", most=MAX_ID_CHARS
                )
            },
            item=_HELLO,
        ),
        _event(
            "conversation.item.retrieve",
            "Ask for an item as it stands: speech with the words heard.",
            {"item_id": _ITEM_ID},
            {},
            item_id="item_1",
        ),
        _event(
            "conversation.item.truncate",
            "So much of a spoken item was heard, and no more.",
            {
                "item_id": _ITEM_ID,
                "audio_end_ms": _ANY_NUMBER
                | {"description": "Clamped to what there is; what was cut does not grow back."},
            },
            {"content_index": {"type": "integer", "minimum": 0, "maximum": 0}},
            item_id="item_1",
            content_index=0,
            audio_end_ms=1200,
        ),
        _event(
            "conversation.item.delete",
            "Forget an item.",
            {"item_id": _ITEM_ID},
            {},
            item_id="item_1",
        ),
        _event(
            "response.create",
            "Answer now; or beside all that is said, with `conversation: none`.",
            {},
            {"response": ref("ResponseAsked")},
            response={"instructions": "Say good day."},
        ),
        _event(
            "response.cancel",
            "Stop answering; what was made already is played (over a WebSocket: not sent).",
            {},
            {
                "response_id": text(
                    "Without, the one under way; those out of band are named.", most=256
                )
            },
        ),
        _event(
            "playback.ack",
            "So much of a response was played (also: vLLM-Omni's clients).",
            {"played_ms": whole(0, EXACT_INTEGER, "Of its sound.")},
            {
                "item_id": text("Or `response_id`; without both, the newest.", most=MAX_ID_CHARS),
                "response_id": text(most=MAX_ID_CHARS),
                "committed_ms": whole(
                    0, EXACT_INTEGER, "What counts as heard; without, `played_ms`."
                ),
                "truncate": flag("No more of it will sound."),
            },
            item_id="item_1",
            played_ms=1200,
        ),
        *_OMNI,
        _event("voice_agent.pause", "Take in nothing, and say nothing, until resumed.", {}, {}),
        _event("voice_agent.resume", "Go on.", {}, {}),
        _event(
            "voice_agent.listen",
            "While `on`, the agent only listens.",
            {"on": flag()},
            {},
            on=True,
        ),
        _event(
            "voice_agent.playout",
            "Which packet of the agent's voice leaves the loudspeaker, and when; some ten times a "
            "second. Unless both fields hold sensible numbers it is passed over, without an error.",
            {},
            {
                "rtp_timestamp": _ANY_NUMBER | {"description": "Of the packet, modulo 2³²."},
                "at_ms": _ANY_NUMBER | {"description": "On a clock of your own, always the same."},
            },
            rtp_timestamp=960,
            at_ms=1234.5,
        ),
    )
)
