"""The model, health, figures, and what the server's own page is made with."""

from agent.api.openapi.refusals import ACCESS, refusals
from agent.api.openapi.shapes import (
    JSON,
    Schema,
    answer,
    flag,
    listing,
    one_of,
    parameter,
    ref,
    reply,
    text,
    whole,
)
from agent.types import Abilities

_PLAIN, _HTML = "text/plain", "text/html"
_SAME_HOST = (403, 421)


def paths() -> dict[str, Schema]:
    """By path and method."""
    listed = reply(
        {"object": {"type": "string", "const": "list"}, "data": listing(ref("Model"), least=1)}
    )
    secret = reply({"value": text(), "expires_at": whole(0), "seconds": whole(1)})
    made = answer("A secret for this server's own page.", {JSON: secret})
    return {
        "/v1/models": {
            "get": _get("listModels", "The engine that answers", {JSON: listed}, ACCESS)
        },
        "/v1/models/{id}": {
            "parameters": [parameter("path", "id", text("Of the engine.", least=1))],
            "get": _get("showModel", "One engine", {JSON: ref("Model")}, (404, *ACCESS)),
        },
        "/healthz": {
            "get": {
                "operationId": "showHealth",
                "tags": ["Server"],
                "summary": "Whether the server serves",
                "security": [],
                "responses": {
                    "200": answer("It does.", {JSON: ref("Health")}),
                    "503": answer("Its engine is down.", {JSON: ref("Health")}),
                },
            }
        },
        "/metrics": {
            "get": _get("showMetrics", "Figures for Prometheus", {_PLAIN: text()}, ACCESS)
        },
        "/page/secret": {
            "post": {
                "operationId": "makePageSecret",
                "tags": ["Server"],
                "summary": "What the server's own page uses the API with",
                "security": [],
                "responses": {
                    "200": made,
                    "204": answer("No key is needed."),
                    **refusals(403, 421, 429, 503),
                },
            }
        },
        "/openapi.json": {
            "get": _public("showDocument", "This document", {JSON: {"type": "object"}})
        },
        "/docs": {"get": _public("showDocs", "This document, for people", {_HTML: text()})},
        "/": {"get": _public("showPage", "The page from which one calls", {_HTML: text()})},
        "/README.md": {"get": _public("showReadme", "How to use it all", {_PLAIN: text()})},
    }


def _get(name: str, summary: str, kinds: dict[str, Schema], met: tuple[int, ...]) -> Schema:
    return {
        "operationId": name,
        "tags": ["Server"],
        "summary": summary,
        "responses": {"200": answer("Here it is.", kinds), **refusals(*met)},
    }


def _public(name: str, summary: str, kinds: dict[str, Schema]) -> Schema:
    return _get(name, summary, kinds, _SAME_HOST) | {"security": []}


def _abilities() -> Schema:
    lists = ("voices", "languages")
    names = [each for each in Abilities.__slots__ if each != "default_instructions"]
    return reply({name: listing(text()) if name in lists else flag() for name in names})


SCHEMAS: dict[str, Schema] = {
    "Model": reply(
        {
            "id": text(),
            "object": {"type": "string", "const": "model"},
            "created": whole(0),
            "owned_by": text(),
            "voice_agent": reply(
                {
                    "abilities": _abilities(),
                    "default": flag(),
                    "reason": text("Why this one answers."),
                    "status": one_of("ok", "starting", "degraded"),
                    "default_instructions": {
                        "type": "object",
                        "additionalProperties": {"type": "string"},
                    },
                    "may": reply(
                        {"chat": flag(), "change_voices": flag(), "make_secrets": flag()},
                        about="What your key is good for.",
                    ),
                }
            ),
        }
    ),
    "Health": reply(
        {
            "status": one_of("ok", "starting", "degraded"),
            "version": text(),
            "engine": text(),
            "calls": whole(0),
            "slots_free": whole(0),
        }
    ),
}
