"""The HTTP API as an OpenAPI 3.1 document, written by hand; a test holds it to the router.

`document` makes it for one server, whose limits it names.
"""

from agent import __version__
from agent.api.openapi import calls, chat, items, refusals, server, session, speech
from agent.api.openapi.events import EVENTS
from agent.api.openapi.shapes import Schema
from agent.config import Config

__all__ = ["EVENTS", "document"]

_ABOUT = """A real-time voice and video agent. It speaks OpenAI's Realtime API over WebRTC and
WebSocket, so that their SDKs work with nothing changed but the base URL; chats, speech and voices
are as theirs, too. Fields that are not known are passed over, and `null` counts as absent, unless
it is said otherwise. What is refused comes with an `Error`."""
_TAGS = {
    "Calls": "Talk with the agent.",
    "Keys": "Keys for browsers.",
    "Chat": "Turn by turn, in words.",
    "Speech": "Texts read aloud, and voices.",
    "Server": "The server itself.",
}


def document(config: Config) -> Schema:
    """The document, ready for JSON; it is made anew each time."""
    parts = (refusals, session, items, calls, chat, speech, server)
    schemas: Schema = {}
    for part in parts:
        schemas |= part.SCHEMAS
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "voice-agent",
            "version": __version__,
            "description": " ".join(_ABOUT.split())
            + f" Bodies hold at most {config.server.max_body_bytes:,} bytes "
            "(`server.max_body_bytes`) where nothing else is said.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "./"}],
        "security": [{"key": []}, {}],
        "tags": [{"name": name, "description": about} for name, about in _TAGS.items()],
        "paths": {
            **calls.paths(),
            **chat.paths(config),
            **speech.paths(config),
            **server.paths(),
        },
        "components": {
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key, or a client secret `ek_…` for calls. Servers that "
                    "have no keys ask for none.",
                }
            },
            "schemas": schemas,
        },
        "x-realtime-events": EVENTS,
    }
