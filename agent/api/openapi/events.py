"""The events of the Realtime protocol, each with its fields: what no path can say."""

from agent.api.openapi.client_events import CLIENT
from agent.api.openapi.server_events import SERVER
from agent.api.openapi.shapes import Schema

EVENTS: dict[str, dict[str, Schema]] = {"client": CLIENT, "server": SERVER}
"""By who sends them: a schema for each type."""
