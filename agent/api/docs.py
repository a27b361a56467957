"""`/openapi.json` and `/docs`: the HTTP API and its events, for programs and for people.

The page is made here, of the document alone: nothing of it comes from elsewhere, nothing of it is
a script.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from html import escape
from typing import Any

from aiohttp import web

from agent.api.openapi import document
from agent.api.openapi.shapes import Schema
from agent.config import Config

_IN_ALL = ("type", "event_id")
"""Fields of every event."""
_METHODS = ("get", "post", "patch", "delete", "options")
_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>voice-agent: the API</title>
<link rel="icon" href="icon.svg">
<link rel="stylesheet" href="docs.css">
</head>
<body>
<a class="skip" href="#main">Skip to the API</a>
"""


def add_to(app: web.Application, config: Config) -> None:
    """Add this file's endpoints; what they say is made once, when it is first asked for."""
    told = cache(partial(document, config))
    text = cache(lambda: json.dumps(told(), ensure_ascii=False))
    page = cache(lambda: docs_page(told()))

    async def as_document(_: web.Request) -> web.Response:
        return web.Response(text=text(), content_type="application/json")

    async def as_page(_: web.Request) -> web.Response:
        return web.Response(text=page(), content_type="text/html")

    app.router.add_get("/openapi.json", as_document)
    app.router.add_get("/docs", as_page)


def docs_page(told: Mapping[str, Any]) -> str:
    """The document as one HTML page."""
    return "".join([_HEAD, *_body(told), "</body>\n</html>\n"])


def _body(told: Mapping[str, Any]) -> Iterator[str]:
    info, tags = told["info"], told["tags"]
    yield f"<header><h1>{_text(info['title'])} <small>{_text(info['version'])}</small></h1>"
    yield f"<p>{_text(info['description'])}</p>"
    yield '<p>For programs: <a href="openapi.json">openapi.json</a>.</p></header>'
    names = [*(tag["name"] for tag in tags), "Events", "Schemas"]
    yield '<nav aria-label="Sections"><ul>'
    yield from (f'<li><a href="#{_id(name)}">{_text(name)}</a></li>' for name in names)
    yield '</ul></nav>\n<main id="main">'
    for tag in tags:
        yield f'<section id="{_id(tag["name"])}"><h2>{_text(tag["name"])}</h2>'
        yield f"<p>{_text(tag['description'])}</p>"
        yield from _operations(told["paths"], tag["name"])
        yield "</section>"
    yield from _events(told["x-realtime-events"])
    yield from _schemas(told["components"]["schemas"])
    yield "</main>"


# ---- operations -------------------------------------------------------------------------------


def _operations(paths: Mapping[str, Any], tag: str) -> Iterator[str]:
    for path, item in paths.items():
        for method in _METHODS:
            if tag in item.get(method, {}).get("tags", ()):
                yield from _operation(path, method, item[method], item.get("parameters", ()))


def _operation(
    path: str, method: str, operation: Mapping[str, Any], shared: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    yield f'<article id="{_id(operation["operationId"])}">'
    yield f'<h3><span class="method {method}">{method.upper()}</span> <code>{_path(path)}</code>'
    yield f"</h3><p><strong>{_text(operation['summary'])}.</strong> "
    yield f"{_text(operation.get('description', ''))}</p>"
    if operation.get("security") == []:
        yield "<p>Asks for no key.</p>"
    if parameters := [*shared, *operation.get("parameters", ())]:
        yield "<h4>Parameters</h4><dl>"
        for each in parameters:
            needed = " (needed)" if each["required"] else ""
            yield f"<dt><code>{_text(each['name'])}</code> in the {each['in']}{needed}</dt>"
            yield f"<dd>{_text(each['description']) or '—'}</dd>"
        yield "</dl>"
    if sent := operation.get("requestBody"):
        yield "<h4>Body</h4>"
        yield from _contents(sent["content"])
    yield from _answers(operation["responses"])
    yield "</article>"


def _answers(answers: Mapping[str, Any]) -> Iterator[str]:
    yield "<h4>Answers</h4><dl>"
    refused = [status for status in answers if status >= "400" and _is_error(answers[status])]
    for status in [each for each in answers if each not in refused]:
        answer = answers[status]
        yield f"<dt><code>{status}</code> {_text(answer['description'])}</dt><dd>"
        yield from _headers(answer.get("headers", {}))
        yield from _contents(answer.get("content", {}))
        yield "</dd>"
    yield "</dl>"
    if refused:
        yield '<h4>Refusals, each an <a href="#schema-error">Error</a></h4><dl>'
        for status in refused:
            yield f"<dt><code>{status}</code> {_text(answers[status]['description'])}</dt>"
            yield "<dd>"
            yield from _headers(answers[status].get("headers", {}))
            yield "</dd>"
        yield "</dl>"


def _is_error(answer: Mapping[str, Any]) -> bool:
    schemas = [content["schema"].get("$ref", "") for content in answer["content"].values()]
    return all(schema.endswith("/Error") for schema in schemas)


def _headers(headers: Mapping[str, Any]) -> Iterator[str]:
    for name, header in headers.items():
        yield f"<p><code>{_text(name)}</code>: {_text(header['description'])}</p>"


def _contents(contents: Mapping[str, Any]) -> Iterator[str]:
    for kind, content in contents.items():
        yield f'<div class="content"><code>{_text(kind)}</code>: '
        yield from _schema(content["schema"])
        yield "</div>"


# ---- events and schemas -----------------------------------------------------------------------


def _events(events: Mapping[str, Mapping[str, Schema]]) -> Iterator[str]:
    yield '<section id="events"><h2>Events</h2><p>Of a call, over its data channel '
    yield "<code>oai-events</code> or its WebSocket: one JSON object each, as OpenAI's Realtime "
    yield "API has them; those of <code>voice_agent</code> are ours. Each has a "
    yield "<code>type</code>, the server's have an <code>event_id</code>, too, and yours may "
    yield "have one: an <code>error</code> then names it.</p>"
    for side, heading in (("client", "From the client"), ("server", "From the server")):
        yield f"<h3>{heading}</h3>"
        for name, schema in events[side].items():
            yield from _event(name, schema)
    yield "</section>"


def _event(name: str, schema: Schema) -> Iterator[str]:
    """Folded, so that all of them can be looked over; a link to it unfolds it."""
    fields = {each: told for each, told in schema["properties"].items() if each not in _IN_ALL}
    yield f"<details><summary><code>{_path(name)}</code> {_text(schema['description'])}</summary>"
    yield f'<div id="{_id(f"event-{name}")}">'
    if fields:
        yield from _fields(schema | {"properties": fields})
    else:
        yield "<p>No other fields.</p>"
    for example in schema.get("examples", ()):
        yield f"<pre>{_text(json.dumps(example, ensure_ascii=False))}</pre>"
    yield "</div></details>"


def _schemas(schemas: Mapping[str, Any]) -> Iterator[str]:
    yield '<section id="schemas"><h2>Schemas</h2>'
    for name, schema in schemas.items():
        yield f'<article id="{_id(f"schema-{name}")}"><h3>{_text(name)}</h3>'
        yield from _schema(schema)
        yield "</article>"
    yield "</section>"


def _schema(schema: Mapping[str, Any]) -> Iterator[str]:
    """What fits it: in words, and its fields in a list."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        yield f'<a href="#{_id(f"schema-{name}")}">{_text(name)}</a>'
        return
    kinds = [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]
    if len(kinds) == 1:
        yield from _schema(kinds[0])
    elif kinds:
        yield "one of<ul>"
        for each in kinds:
            yield "<li>"
            yield from _schema(each)
            yield "</li>"
        yield "</ul>"
    else:
        yield _text(_kind(schema))
    if "items" in schema:
        yield " of "
        yield from _schema(schema["items"])
    if about := schema.get("description"):
        yield f" — {_text(about)}"
    if "properties" in schema:
        yield from _fields(schema)


def _fields(schema: Mapping[str, Any]) -> Iterator[str]:
    """Of what is sent to the server those that it needs are marked, of what it sends the others."""
    is_told = schema.get("additionalProperties") is False
    word = "may be absent" if is_told else "needed"
    yield '<dl class="fields">'
    for name, each in schema["properties"].items():
        mark = f" <em>{word}</em>" if is_told != (name in schema.get("required", ())) else ""
        yield f"<dt><code>{_text(name)}</code>{mark}</dt><dd>"
        yield from _schema(each)
        yield "</dd>"
    yield "</dl>"


def _kind(schema: Mapping[str, Any]) -> str:
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return " or ".join(json.dumps(each) for each in schema["enum"] if each is not None)
    kinds = schema.get("type", "anything")
    words = [kinds] if isinstance(kinds, str) else [kind for kind in kinds if kind != "null"]
    return " or ".join(words) + _bounds(schema)


def _bounds(schema: Mapping[str, Any]) -> str:
    pairs = (("minimum", "maximum"), ("minLength", "maxLength"), ("minItems", "maxItems"))
    for least, most in pairs:
        low, high = schema.get(least), schema.get(most)
        if low is not None and high is not None:
            return f", {low:,} to {high:,}"
        if high is not None:
            return f", at most {high:,}"
        if low:
            return f", at least {low:,}"
    return ""


# ---- text -------------------------------------------------------------------------------------


def _text(text: str) -> str:
    """For HTML; what stands between backquotes is code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if at % 2 else part for at, part in enumerate(parts))


def _path(text: str) -> str:
    """With places where it may be broken on narrow screens."""
    return escape(text).replace("/", "/<wbr>").replace(".", ".<wbr>").replace("_", "_<wbr>")


def _id(name: str) -> str:
    return escape(name.lower())
