"""OpenAI Realtime (GA) without sockets: client events in, server events and actions out.

`RealtimeCall` is one call. The HTTP layer reads the session that came with an offer by
`parse_opening`, and hands the settings in it to the call.

All 11 client events are obeyed where they apply: `input_audio_buffer.append` over a WebSocket,
`output_audio_buffer.clear` over WebRTC, each refused with the reason on the other wire. Of the 46
server events these are never sent, for there is nothing to tell by them:

| never sent | because |
|---|---|
| `mcp_list_tools.*`, `response.mcp_call.*`, `response.mcp_call_arguments.*` | tools of type `mcp` are refused: `unsupported_by_engine` |
| `input_audio_buffer.dtmf_event_received` | there is no telephone line (SIP) |
| `conversation.item.created` | the beta's name of `.added`; sent too, clients would add it twice |
| `conversation.item.input_audio_transcription.segment` | nobody here tells speakers apart |
"""  # noqa: E501

from agent.realtime.call import RealtimeCall
from agent.realtime.client_events import parse_opening
from agent.realtime.limits import Allowance, Limits, RateLimit
from agent.realtime.reaction import (
    Action,
    AnswerAside,
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
    "Allowance",
    "AnswerAside",
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
