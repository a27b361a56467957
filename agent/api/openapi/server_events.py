"""What the server sends in a call: each event with its fields, and nothing else is in it."""

from agent.api.openapi.shapes import (
    Schema,
    flag,
    just,
    listing,
    maybe,
    number,
    one_of,
    ref,
    reply,
    text,
    whole,
)

_ITEM_ID = {"item_id": text()}
_CONTENT_INDEX: dict[str, Schema] = {"content_index": {"type": "integer", "const": 0}}
_PREVIOUS = {"previous_item_id": maybe(text("null: it is the first."))}
_ITEM = {"item": ref("Item")}
_RESPONSE = {"response": ref("Response")}
_SESSION = {"session": ref("SessionInForce")}
_RESPONSE_ID = {"response_id": text()}
_PLACE = _RESPONSE_ID | {"output_index": whole(0, description="In the response's `output`.")}
_CONTENT = _PLACE | _ITEM_ID | _CONTENT_INDEX
_CALL = _PLACE | _ITEM_ID | {"call_id": text()}
_START_MS = {"audio_start_ms": whole(0, description="Since the call began.")}
_END_MS = {"audio_end_ms": whole(0, description="Since the call began.")}
_FAILURE = {"type": text(), "code": text("For programs."), "message": text("For people.")}
_ERROR = reply(
    _FAILURE
    | {
        "param": text("The field at fault, by its dotted path."),
        "event_id": text("Of your event, if it had one."),
    },
    may_lack=("code", "param", "event_id"),
)
_RATE = reply(
    {
        "name": one_of("requests", "tokens"),
        "limit": whole(0),
        "remaining": whole(0),
        "reset_seconds": number(0, 1e9),
    }
)
_MS: Schema = {"type": "number", "description": "Milliseconds."}
_TURN = {"turn": whole(0, description="Of the agent, counted from the beginning of the call.")}
_AT_TURN = _TURN | {"at_ms": whole(0, description="Of the turn's sound.")}
_ACKNOWLEDGED = reply(
    {
        "item_id": text(),
        "response_id": text(),
        "played_ms": whole(0, description="As it was said."),
        "committed_ms": whole(0, description="What counts: no more than was made."),
        "truncate": {"type": "boolean"},
    }
)
_SESSION_ID = {"session_id": text("That of the session object.")}
_EPOCH = _SESSION_ID | {
    "epoch": whole(0, description="How often an answer or a buffer was given up so far.")
}
_WHY = text("For programs.")


def _event(kind: str, about: str, *fields: dict[str, Schema]) -> tuple[str, Schema]:
    told: dict[str, Schema] = {"type": just(kind), "event_id": text("The server's.")}
    for some in fields:
        told |= some
    return kind, reply(told, about=about)


_WRITTEN = "conversation.item.input_audio_transcription"
_ARGUMENTS = "response.function_call_arguments"

_CONVERSATION = (
    _event("session.created", "First of all: the session in force.", _SESSION),
    _event("session.updated", "The session after `session.update`.", _SESSION),
    _event(
        "error",
        "What could not be done, and why; the call goes on unless it says otherwise.",
        {"error": _ERROR},
    ),
    _event(
        "rate_limits.updated",
        "Behind each `response.created`, where the client's key has a limit: how many requests it "
        "may still make, HTTP's and new calls, before one gets a 429.",
        {"rate_limits": listing(_RATE)},
    ),
    _event(
        "conversation.created",
        "The conversation has begun.",
        {"conversation": reply({"id": text(), "object": just("realtime.conversation")})},
    ),
    _event("conversation.item.added", "An item stands in the conversation.", _PREVIOUS, _ITEM),
    _event("conversation.item.done", "It is complete.", _PREVIOUS, _ITEM),
    _event("conversation.item.retrieved", "An item as it stands.", _ITEM),
    _event(
        "conversation.item.truncated",
        "What was not heard of an item is forgotten.",
        _ITEM_ID,
        _CONTENT_INDEX,
        {"audio_end_ms": whole(0, description="So much of the item was heard.")},
    ),
    _event("conversation.item.deleted", "An item is forgotten.", _ITEM_ID),
    _event(
        f"{_WRITTEN}.delta",
        "Some of what the user said.",
        _ITEM_ID,
        _CONTENT_INDEX,
        {"delta": text()},
    ),
    _event(
        f"{_WRITTEN}.completed",
        "What the user said.",
        _ITEM_ID,
        _CONTENT_INDEX,
        {
            "transcript": text(),
            "usage": reply({"type": just("duration"), "seconds": number(0, 1e9)}),
        },
    ),
    _event(
        f"{_WRITTEN}.failed",
        "It could not be written down.",
        _ITEM_ID,
        _CONTENT_INDEX,
        {"error": reply(_FAILURE)},
    ),
)
_BUFFERS = (
    _event("input_audio_buffer.speech_started", "The user speaks.", _START_MS, _ITEM_ID),
    _event("input_audio_buffer.speech_stopped", "The user fell silent.", _END_MS, _ITEM_ID),
    _event(
        "input_audio_buffer.committed",
        "What the user said is an item now.",
        _PREVIOUS,
        _ITEM_ID,
    ),
    _event("input_audio_buffer.cleared", "It is forgotten."),
    _event(
        "input_audio_buffer.timeout_triggered",
        "The user has said nothing for long (`idle_timeout_ms`).",
        _START_MS,
        _END_MS,
        _ITEM_ID,
    ),
    _event("output_audio_buffer.started", "The agent is heard (WebRTC).", _RESPONSE_ID),
    _event("output_audio_buffer.stopped", "All that it said was sent (WebRTC).", _RESPONSE_ID),
    _event(
        "output_audio_buffer.cleared",
        "The rest of it will not be heard (WebRTC).",
        _RESPONSE_ID,
    ),
)
_RESPONSES = (
    _event(
        "response.created",
        "The agent begins to answer, or the model to do so out of band.",
        _RESPONSE,
    ),
    _event("response.done", "The answer is over, and how; with usage.", _RESPONSE),
    _event("response.output_item.added", "The answer has one more item.", _PLACE, _ITEM),
    _event(
        "response.output_item.done",
        "The item is complete: a message, or a function to call.",
        _PLACE,
        _ITEM,
    ),
    _event(
        "response.content_part.added",
        "The message has one more part.",
        _CONTENT,
        {"part": ref("Part")},
    ),
    _event("response.content_part.done", "The part is complete.", _CONTENT, {"part": ref("Part")}),
    _event("response.output_text.delta", "Words of a written answer.", _CONTENT, {"delta": text()}),
    _event("response.output_text.done", "All words of it.", _CONTENT, {"text": text()}),
    _event(
        "response.output_audio_transcript.delta",
        "Words of a spoken answer.",
        _CONTENT,
        {"delta": text()},
    ),
    _event(
        "response.output_audio_transcript.done",
        "All words of it.",
        _CONTENT,
        {"transcript": text()},
    ),
    _event(
        "response.output_audio.delta",
        "Sound of it (WebSocket only).",
        _CONTENT,
        {"delta": text("Base64, in the session's output format.")},
    ),
    _event("response.output_audio.done", "That was all of its sound.", _CONTENT),
    _event(
        f"{_ARGUMENTS}.delta",
        "Arguments of a function to call.",
        _CALL,
        {"delta": text("A piece of JSON.")},
    ),
    _event(
        f"{_ARGUMENTS}.done",
        "All arguments of it.",
        _CALL,
        {"name": text("Of the function."), "arguments": text("JSON.")},
    ),
)
_OURS = (
    _event(
        "playback.acknowledged", "How much of a `playback.ack` counts.", {"event": _ACKNOWLEDGED}
    ),
    _event(
        "voice_agent.state",
        "What the agent does now; sent when it changes.",
        {"state": one_of("listening", "speaking", "paused")},
        {"turn": whole(-1, description="The newest of the agent's turns.")},
    ),
    _event(
        "voice_agent.unit",
        "What a second of the engine took.",
        {
            "unit": whole(0, description="Which second of the call."),
            "stage_ms": {
                "type": "object",
                "additionalProperties": {"type": "number"},
                "description": "Milliseconds of each stage; which there are is the engine's.",
            },
            "context_tokens": whole(0, description="How full the model's window is."),
        },
    ),
    _event(
        "voice_agent.echo",
        "How much echo is taken out.",
        {
            "erle_db": {"type": "number", "description": "By how many dB it is weaker."},
            "delay_ms": _MS | {"description": "How late it comes; 0 while nobody knows."},
        },
    ),
    _event(
        "voice_agent.latency",
        "How long the user waited for the first sound of a turn.",
        _TURN,
        {"first_sound_ms": _MS},
    ),
    _event(
        "voice_agent.ducked",
        "The agent holds its breath: perhaps the user begins to speak.",
        _AT_TURN,
    ),
    _event("voice_agent.resumed", "It was nothing: the agent goes on.", _AT_TURN),
    _event(
        "voice_agent.tool",
        "A chat beside the call (`tools: side`) decided that a function is called.",
        {"call_id": text(), "name": text("Of the function."), "decided_ms": _MS},
    ),
)
_LISTENING = reply(
    {
        "object": just("realtime.response"),
        "status": just("listening"),
        "metadata": reply(
            {"reason": _WHY, "unit": whole(0, description="Which second of the call.")}
        ),
    }
)
_OMNI = (
    _event(
        "response.listen",
        "The model took in a second and goes on listening (`?duplex=1`).",
        _EPOCH,
        {"response": _LISTENING},
    ),
    _event(
        "response.speak",
        "The model begins to speak; before the first sound of an answer (`?duplex=1`).",
        _CONTENT,
        {"metadata": reply({**_EPOCH, "model_speak": flag()})},
    ),
    _event(
        "overlap.decision",
        "Somebody talks over the agent: it goes on (`listen`), ducked or not, as `reason` says, "
        "or falls silent (`barge_in`) (`?duplex=1`).",
        _EPOCH,
        {
            "policy": one_of("barge_in_on_speech", "listen_only"),
            "action": one_of("listen", "barge_in"),
            "reason": one_of(
                "overlap_began", "short_overlap", "overlap_speech", "interruption_off"
            ),
            "metadata": reply(_AT_TURN | _RESPONSE_ID),
        },
    ),
    _event("session.heartbeat_ack", "Behind each `session.heartbeat`.", _SESSION_ID),
    _event(
        "session.closed",
        "Behind `session.close`: the call is over.",
        _SESSION_ID,
        {"reason": _WHY, "event": reply({"type": just("session.closed"), "reason": _WHY})},
    ),
    _event(
        "session.expired",
        "The call has lasted for as long as one may; behind the `error` of that (`?duplex=1`).",
        _SESSION_ID,
        {"reason": _WHY},
    ),
)

SERVER: dict[str, Schema] = dict((*_CONVERSATION, *_BUFFERS, *_RESPONSES, *_OURS, *_OMNI))
