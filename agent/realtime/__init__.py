"""OpenAI Realtime (GA) without sockets: client events in, server events and actions out.

`RealtimeCall` is one call; `parse_session` and `session_object` serve the HTTP layer too.
"""

from agent.realtime.call import RealtimeCall
from agent.realtime.limits import Limits
from agent.realtime.reaction import Action, CancelTurn, ClearPlayout, CloseCall, Reaction
from agent.realtime.settings import parse_session, session_object

__all__ = [
    "Action",
    "CancelTurn",
    "ClearPlayout",
    "CloseCall",
    "Limits",
    "Reaction",
    "RealtimeCall",
    "parse_session",
    "session_object",
]
