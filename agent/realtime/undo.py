"""What the engine refused is taken back: the client is told so, and nothing else is undone."""

from agent.commands import (
    AddAudio,
    AddPicture,
    AddText,
    AddToolResult,
    Command,
    ForceListen,
    Pause,
    Respond,
    UpdateSettings,
)
from agent.realtime.events import Event, server_event
from agent.realtime.reaction import RestoreSettings
from agent.realtime.state import CallState
from agent.realtime.tools import with_known_choice


def undo(call: CallState, command: Command) -> tuple[list[Event], tuple[RestoreSettings, ...]]:
    """Events that follow the `error` about `command`, and what the session has to do."""
    match command:
        case UpdateSettings():
            return _restore(call, command)
        case AddText(item_id=item_id) | AddPicture(item_id=item_id) | AddAudio(item_id=item_id):
            return _take_out(call, item_id), ()
        case AddToolResult(call_id=call_id):
            return _take_out(call, call.items.tool_result_id(call_id)), ()
        case Respond():
            call.turns.drop_request()
        case Pause():
            call.pausing = False
        case ForceListen():
            # An engine that cannot be silenced answers.
            call.listens_only = False
    return [], ()


def _restore(
    call: CallState, command: UpdateSettings
) -> tuple[list[Event], tuple[RestoreSettings, ...]]:
    """The settings before it, but for what later updates changed; the client hears them all."""
    held = call.settings = with_known_choice(call.updates.refused(command, call.settings))
    stopped = call.give_up_speech() if held.turn_detection is None else []
    updated = server_event("session.updated", session=call.session())
    return [*stopped, updated], (RestoreSettings(held),)


def _take_out(call: CallState, item_id: str) -> list[Event]:
    """The item that the engine does not have, unless the client has deleted it already."""
    if item_id not in call.items:
        return []
    call.items.remove(item_id)
    return [server_event("conversation.item.deleted", item_id=item_id)]
