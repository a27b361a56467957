"""OpenAI Realtime (GA) without sockets: client events in, server events and actions out.

`RealtimeCall` is one call. The HTTP layer reads the session that came with an offer by
`parse_opening`, and hands the settings in it to the call.
"""

from agent.realtime.call import RealtimeCall
from agent.realtime.client_events import parse_opening
from agent.realtime.limits import Limits, RateLimit
from agent.realtime.reaction import (
    Action,
    CancelTurn,
    ClearPlayout,
    CloseCall,
    HearAudio,
    HeardReport,
    PlayoutReport,
    Reaction,
    RestoreSettings,
)
from agent.realtime.settings import parse_session, session_object

__all__ = [
    "Action",
    "CancelTurn",
    "ClearPlayout",
    "CloseCall",
    "HearAudio",
    "HeardReport",
    "Limits",
    "PlayoutReport",
    "RateLimit",
    "Reaction",
    "RealtimeCall",
    "RestoreSettings",
    "parse_opening",
    "parse_session",
    "session_object",
]
