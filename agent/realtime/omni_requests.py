"""What clients of vLLM-Omni's duplex API send beside OpenAI's events; understood from everybody.

| sent | leads to |
|---|---|
| `session.heartbeat` | `session.heartbeat_ack`; pings of the socket ask who is there, not this |
| `session.event_ack` | nothing: no event is ever sent again |
| `session.close` | `session.closed`, and the call is over |
| `session.resume` | an error that says how a call comes back |
| `input.commit`, `input.cancel` | what `input_audio_buffer.commit` and `.clear` do |
| `barge_in` | the agent falls silent |
| `playback.ack` | see `playback` |
"""

from agent.errors import RequestError
from agent.realtime.events import server_event
from agent.realtime.fields import Fields
from agent.realtime.reaction import CloseCall, Reaction
from agent.realtime.state import CallState
from agent.types import Wire


def answer_heartbeat(call: CallState, event: Fields) -> Reaction:
    """`session.heartbeat`."""
    return call.tell([server_event("session.heartbeat_ack", session_id=call.omni.session_id)])


def pass_over(call: CallState, event: Fields) -> Reaction:
    """`session.event_ack`: what the client says it has got is not kept anyway."""
    return Reaction()


def close_session(call: CallState, event: Fields) -> Reaction:
    """`session.close`."""
    return call.tell([call.omni.closed()], CloseCall("hung_up"))


def not_resumed(wire: Wire) -> RequestError:
    """`session.resume`: by the code at which their client gives up coming back."""
    way = {
        "websocket": "A call ends with its WebSocket; open a new one.",
        "webrtc": "Over WebRTC a call comes back by an ICE restart, with no event.",
    }
    return RequestError(way[wire], param="type", code="unsupported_session_resume")
