"""What each client event does: one function for each type, found by `OBEY`.

Each of them checks first and changes second; a `RequestError` leaves everything as it was.
"""

from collections.abc import Callable
from typing import TypeAlias

from agent.commands import (
    ClearInput,
    CommitInput,
    DeleteItem,
    ForceListen,
    Pause,
    Resume,
    UpdateSettings,
)
from agent.errors import RequestError
from agent.media.wire_sound import sample_bytes, wire_rate_hz
from agent.realtime.aside_input import parse_aside
from agent.realtime.asked_response import is_aside, parse_response
from agent.realtime.client_events import (
    EXACT_INTEGER,
    MAX_ID_CHARS,
    item_id_of,
    parse_truncation,
)
from agent.realtime.events import new_id, server_event
from agent.realtime.fields import Fields, quoted
from agent.realtime.items import SpokenItem, UserSpeechItem, added, done
from agent.realtime.new_items import parse_item
from agent.realtime.omni_requests import (
    answer_heartbeat,
    close_session,
    not_resumed,
    pass_over,
)
from agent.realtime.playback import acknowledge
from agent.realtime.reaction import (
    Action,
    AnswerAside,
    CancelTurn,
    ClearPlayout,
    HearAudio,
    PlayoutReport,
    Reaction,
)
from agent.realtime.response import Response
from agent.realtime.settings import parse_session
from agent.realtime.state import CallState

Obey: TypeAlias = Callable[[CallState, Fields], Reaction]

_RTP_TIMESTAMPS = 2**32


def obey(call: CallState, event: Fields) -> Reaction:
    """Carry out a client event; `RequestError` says why not."""
    kind = event.text("type", most=256)
    if kind == "session.resume":
        raise not_resumed(call.wire)
    act = OBEY.get(kind)
    if act is None:
        raise RequestError(
            f"Unknown event type {quoted(kind)}; supported are: {', '.join(OBEY)}.",
            param="type",
            code="invalid_value",
        )
    return act(call, event)


# ---- session ----------------------------------------------------------------------------------


def update_session(call: CallState, event: Fields) -> Reaction:
    """`session.update`: all of it or nothing; taken back should the engine refuse it later.

    Switching turn detection off while the user speaks ends that speech: `speech_stopped` comes
    first, and nothing is committed. Clients of vLLM send the fields without `session` around them.
    """
    flat = event.without("type", "event_id", "session")
    document = event.raw("session") if event.has("session") else flat
    if not flat and not event.has("session"):
        raise RequestError(
            "Missing required parameter: 'session'.",
            param="session",
            code="missing_required_parameter",
        )
    before = call.settings
    document, rate_hz = call.omni.read(document)
    settings = parse_session(document, before, call.abilities, voice_locked=call.spoke)
    call.omni.rate_hz = rate_hz
    actions: list[Action] = []
    if settings != before:
        command = UpdateSettings(settings)
        call.settings = settings
        call.updates.add(command, before)
        actions.append(command)
    stopped = call.give_up_speech() if settings.turn_detection is None else []
    updated = server_event("session.updated", session=call.session())
    return call.tell([*stopped, updated], *actions)


# ---- audio buffers ----------------------------------------------------------------------------


def append_input(call: CallState, event: Fields) -> Reaction:
    """`input_audio_buffer.append`: the microphone where sound comes inside of events."""
    if call.wire != "websocket":
        raise RequestError(
            "Over WebRTC the microphone comes by its media track; do not send "
            "'input_audio_buffer.append'.",
            param="type",
            code="unsupported_over_webrtc",
        )
    coding = call.omni.coding(event, call.settings.input_format)
    data = event.base64("audio")
    call.appended_s += len(data) / sample_bytes(coding) / wire_rate_hz(coding)
    return Reaction(actions=(HearAudio(data, coding),))


def commit_input(call: CallState, event: Fields) -> Reaction:
    """`input_audio_buffer.commit`: only where nothing else ends the user's turn.

    The code is the one that stock clients know and take lightly: the detector has already
    committed what there was. In vLLM-Omni's API a commit leaves it to the model whether it answers.
    """
    if call.settings.turn_detection is not None:
        if call.omni.is_asked:
            return Reaction()
        raise RequestError(
            "Turn detection commits the user's audio by itself; set "
            "'session.audio.input.turn_detection' to null to commit it yourself.",
            code="input_audio_buffer_commit_empty",
        )
    if call.wire == "websocket" and not call.appended_s:
        raise RequestError(
            "There is no sound to commit; send some by 'input_audio_buffer.append' first.",
            code="input_audio_buffer_commit_empty",
        )
    item = UserSpeechItem(new_id("item"), call.take_input_s())
    return call.tell(call.commit(item), CommitInput(item.id, call.microphone_at))


def clear_input(call: CallState, event: Fields) -> Reaction:
    """`input_audio_buffer.clear`: of a track nothing waits where a detector commits; of what was
    appended there may still be sound that nobody has heard."""
    cleared = server_event("input_audio_buffer.cleared")
    call.take_input_s()
    if call.settings.turn_detection is not None and call.wire == "webrtc":
        return call.tell([cleared])
    return call.tell([cleared], ClearInput(call.microphone_at))


def clear_output(call: CallState, event: Fields) -> Reaction:
    """`output_audio_buffer.clear`: `playout_cleared` reports it once the queue is dropped."""
    if call.wire == "websocket":
        raise RequestError(
            "Here the output buffer is the client's own: stop playing, then send "
            "'response.cancel' and 'conversation.item.truncate'.",
            param="type",
            code="unsupported_over_websocket",
        )
    active, last = call.turns.active, call.turns.last()
    if call.turns.pending_sound():
        actions: list[Action] = [CancelTurn(active.turn)] if active is not None else []
        return call.tell([], *actions, ClearPlayout())
    return call.tell(last.buffered("cleared") if last is not None else [])


# ---- conversation items -----------------------------------------------------------------------


def create_item(call: CallState, event: Fields) -> Reaction:
    """`conversation.item.create`."""
    item, commands = parse_item(event.section("item"), call)
    if item.id in call.items:
        raise RequestError(
            f"There is an item {quoted(item.id)} already; choose another id.",
            param="item.id",
            code="item_create_duplicate_item_id",
        )
    after = event.text("previous_item_id", "", most=MAX_ID_CHARS) or None
    previous_id = call.items.add(item, after)
    return call.tell([added(item, previous_id), done(item, previous_id)], *commands)


def retrieve_item(call: CallState, event: Fields) -> Reaction:
    """`conversation.item.retrieve`: of the agent's speech, the words that were heard so far.

    The code for an unknown item is one of the few that some clients survive.
    """
    item = call.items.get(item_id_of(event), unknown="item_retrieve_invalid_item_id")
    content = item.content_so_far() if isinstance(item, SpokenItem) else item.content()
    return call.tell([server_event("conversation.item.retrieved", item=content)])


def truncate_item(call: CallState, event: Fields) -> Reaction:
    """`conversation.item.truncate`: clients ask for more than there is; they get what there is.

    A client that truncates knows what it played: of the last turn the engine is told, too.
    """
    item_id, end_ms = parse_truncation(event)
    item = call.items.get(item_id)
    if not isinstance(item, SpokenItem) or item.shape == "text":
        raise RequestError(
            "Only what the agent said aloud can be truncated.",
            param="item_id",
            code="invalid_value",
        )
    actions = call.truncate(item, end_ms)
    truncated = server_event(
        "conversation.item.truncated",
        item_id=item_id,
        content_index=0,
        audio_end_ms=item.cut_ms,
    )
    return call.tell([truncated], *actions)


def delete_item(call: CallState, event: Fields) -> Reaction:
    """`conversation.item.delete`."""
    item_id = item_id_of(event)
    call.items.remove(item_id)
    deleted = server_event("conversation.item.deleted", item_id=item_id)
    return call.tell([deleted], DeleteItem(item_id))


# ---- responses --------------------------------------------------------------------------------


def create_response(call: CallState, event: Fields) -> Reaction:
    """`response.create`: `response.created` follows when the agent begins to speak.

    Refused while it may not: the answer would come when nobody waits for it any more.
    """
    if is_aside(event.raw("response")):
        return _create_aside(call, event)
    asked = parse_response(event.raw("response"), call.settings, call.abilities)
    active = call.turns.active
    if active is not None:
        raise RequestError(
            f"Conversation already has an active response in progress: {active.id}. "
            "Wait for its 'response.done', or cancel it, before 'response.create'.",
            code="conversation_already_has_active_response",
        )
    _require_floor(call)
    if call.turns.request == "open":
        raise RequestError(
            "A response was asked for already and is about to begin. Wait for its "
            "'response.done', or cancel it, before 'response.create'.",
            code="conversation_already_has_active_response",
        )
    call.turns.asked, call.turns.request = asked, "open"
    return call.tell([], asked.respond)


def _create_aside(call: CallState, event: Fields) -> Reaction:
    """An out-of-band response begins at once, whatever the agent does."""
    response, question = parse_aside(event.raw("response"), call)
    action = AnswerAside(response.id, question)
    return call.tell_aside(call.asides.begin(response), action)


def _require_floor(call: CallState) -> None:
    if call.paused or call.pausing:
        raise RequestError(
            "The agent is paused; send 'voice_agent.resume' before 'response.create'.",
            code="paused",
        )
    if call.listens_only:
        raise RequestError(
            "The agent only listens now; send 'voice_agent.listen' with 'on': false before "
            "'response.create'.",
            code="listening_forced",
        )


def cancel_response(call: CallState, event: Fields) -> Reaction:
    """`response.cancel`: done at once; what is queued plays out unless it is cleared too.

    One that was asked for and has not begun is done as soon as it begins.
    """
    response_id = event.text("response_id", "", most=256) or None
    if response_id is not None and response_id in call.asides:
        ended = call.asides.cancel(response_id)
        return call.tell_aside(ended, AnswerAside(response_id, None))
    if response_id is None and call.turns.active is None and call.turns.request == "open":
        call.turns.request = "withdrawn"
        return Reaction()
    return cancel(call, call.turns.to_cancel(response_id))


def cancel(call: CallState, response: Response) -> Reaction:
    """No more of `response`, which is the active one."""
    actions: list[Action] = [CancelTurn(response.turn)]
    if call.wire == "websocket":
        # What is queued here would come after `response.done`.
        actions.append(ClearPlayout())
    return call.tell(call.responses.cancel(response), *actions)


def barge_in(call: CallState, event: Fields) -> Reaction:
    """`barge_in` (vLLM-Omni): no more of what is said now; nothing where the agent is silent."""
    if call.wire == "webrtc":
        return clear_output(call, event)
    active = call.turns.active
    return cancel(call, active) if active is not None else Reaction()


# ---- our extension ----------------------------------------------------------------------------


def pause(call: CallState, event: Fields) -> Reaction:
    """`voice_agent.pause`: the state changes when the engine says so."""
    call.pausing = True
    call.turns.drop_request()
    return call.tell([], Pause())


def resume(call: CallState, event: Fields) -> Reaction:
    """`voice_agent.resume`."""
    call.paused = call.pausing = False
    return call.tell([], Resume())


def listen(call: CallState, event: Fields) -> Reaction:
    """`voice_agent.listen {on}`."""
    call.listens_only = event.flag("on")
    if call.listens_only:
        call.turns.drop_request()
    return call.tell([], ForceListen(call.listens_only))


def note_playout(call: CallState, event: Fields) -> Reaction:
    """`voice_agent.playout {rtp_timestamp, at_ms}`: ten a second, so those without meaning are
    passed over in silence, be a field missing, no number or a wild one."""
    rtp_timestamp, at_ms = event.any_number("rtp_timestamp"), event.any_number("at_ms")
    if not (abs(rtp_timestamp) <= EXACT_INTEGER and abs(at_ms) <= EXACT_INTEGER):
        return Reaction()
    report = PlayoutReport(int(rtp_timestamp) % _RTP_TIMESTAMPS, float(at_ms))
    return Reaction(actions=(report,))


OBEY: dict[str, Obey] = {
    "session.update": update_session,
    "input_audio_buffer.append": append_input,
    "input_audio_buffer.commit": commit_input,
    "input_audio_buffer.clear": clear_input,
    "output_audio_buffer.clear": clear_output,
    "conversation.item.create": create_item,
    "conversation.item.retrieve": retrieve_item,
    "conversation.item.truncate": truncate_item,
    "conversation.item.delete": delete_item,
    "response.create": create_response,
    "response.cancel": cancel_response,
    "playback.ack": acknowledge,
    "session.heartbeat": answer_heartbeat,
    "session.event_ack": pass_over,
    "session.close": close_session,
    "input.commit": commit_input,
    "input.cancel": clear_input,
    "barge_in": barge_in,
    "voice_agent.pause": pause,
    "voice_agent.resume": resume,
    "voice_agent.listen": listen,
    "voice_agent.playout": note_playout,
}
