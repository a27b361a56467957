"""`/v1/chat/completions` as the `openai` client sees it: answers, streams, settings, errors."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest

from agent.errors import CapacityError, ContextOverflow, RequestError
from tests.rig.chat_server import PATH, ChatServer, chat_server
from tests.rig.reading_engine import ReadingEngine
from tests.rig.server import running_server

USER = [{"role": "user", "content": "hello"}]

CHOSEN: list[tuple[dict[str, object], str, object]] = [
    ({"temperature": 0.3}, "temperature", 0.3),
    ({"temperature": 0}, "greedy", True),
    ({"top_p": 0.7}, "top_p", 0.7),
    ({"top_p": 0}, "greedy", True),
    ({"top_k": 12}, "top_k", 12),
    ({"top_k": -1}, "top_k", 0),
    ({"repetition_penalty": 1.05}, "repetition_penalty", 1.05),
    ({"seed": 2**63 - 1}, "seed", 2**63 - 1),
    ({"stop": "END"}, "stop", ("END",)),
    ({"stop": ["a", "b", "c", "d"]}, "stop", ("a", "b", "c", "d")),
    ({"stop_token_ids": [1, 151645]}, "stop_token_ids", (1, 151645)),
    ({"max_slices": 4}, "max_slices", 4),
    ({"max_tokens": None}, "max_tokens", None),
]
"""A setting as it is sent, and what the engine gets."""
REFUSED: list[tuple[dict[str, object], str, str]] = [
    ({"tools": [{"function": {"name": "a"}}]}, "tools", "unsupported"),
    ({"functions": [{}]}, "functions", "unsupported"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "unsupported"),
    ({"logprobs": True}, "logprobs", "unsupported"),
    ({"top_logprobs": 3}, "logprobs", "unsupported"),
    ({"n": 2}, "n", "unsupported"),
    ({"logit_bias": {"50": 1}}, "logit_bias", "unsupported"),
    ({"presence_penalty": 0.5}, "presence_penalty", "unsupported"),
    ({"modalities": ["text", "audio"]}, "modalities", "unsupported"),
    ({"temperature": 3}, "temperature", "invalid_value"),
    ({"temperature": "warm"}, "temperature", "invalid_type"),
    ({"top_p": -0.1}, "top_p", "invalid_value"),
    ({"top_k": 1.5}, "top_k", "invalid_type"),
    ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": True}, "max_tokens", "invalid_type"),
    ({"seed": 2**63}, "seed", "invalid_value"),
    ({"seed": 1.5}, "seed", "invalid_type"),
    ({"stop": list("abcde")}, "stop", "array_above_max_length"),
    ({"stop": [""]}, "stop", "invalid_value"),
    ({"stop": [1]}, "stop", "invalid_type"),
    ({"stop_token_ids": [-1]}, "stop_token_ids", "invalid_type"),
    ({"stream": "yes"}, "stream", "invalid_type"),
    ({"enable_thinking": 1}, "enable_thinking", "invalid_type"),
    ({"stop": ["a", "\ud800"]}, "stop", "invalid_value"),
    (
        {"messages": [{"role": "user", "content": "a\udc00"}]},
        "messages[0].content",
        "invalid_value",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "\ud83d"}]}]},
        "messages[0].content[0].text",
        "invalid_value",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "\ud83d"}]}]},
        "messages[0].content[0].image_url",
        "invalid_value",
    ),
    ({"messages": []}, "messages", "missing_required_parameter"),
    ({"messages": None}, "messages", "missing_required_parameter"),
    ({"messages": "hello"}, "messages", "invalid_type"),
    ({"messages": ["hello"]}, "messages[0]", "invalid_type"),
    ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
    (
        {"messages": [{"role": "tool", "content": "x"}]},
        "messages[0].tool_call_id",
        "missing_required_parameter",
    ),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type"),
    (
        {"messages": [*USER, {"role": "assistant", "content": "", "tool_calls": [{}]}]},
        "messages[1].tool_calls[0].id",
        "missing_required_parameter",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]},
        "messages[0].content[0].type",
        "invalid_value",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0].image_url.url",
        "missing_required_parameter",
    ),
]
"""What is sent, and the `param` and `code` of the error."""


@pytest.fixture
async def server() -> AsyncIterator[ChatServer]:
    async with chat_server() as running:
        yield running


async def events_of(response: aiohttp.ClientResponse) -> list[str]:
    """What each event and comment of a stream holds."""
    text = await response.text()
    assert text.endswith("\n\n")
    return [event.removeprefix("data: ") for event in text.strip().split("\n\n")]


# ---- answers ----------------------------------------------------------------------------------


async def test_an_answer_in_openai_s_shape(server: ChatServer) -> None:
    answer = await server.ask("how are you")
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    assert answer.model == "reading" and answer.created > 1_700_000_000
    [choice] = answer.choices
    assert choice.index == 0 and choice.finish_reason == "stop"
    assert choice.message.role == "assistant" and choice.message.content == "user: how are you"
    assert not hasattr(choice.message, "reasoning_content")
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (1, 4, 5)


async def test_every_role_and_both_shapes_of_text(server: ChatServer) -> None:
    messages: Any = [
        {"role": "developer", "content": "be brief"},
        {"role": "system", "content": [{"type": "text", "text": "be kind"}]},
        {"role": "user", "content": "hi", "name": "Ann"},
        {"role": "assistant", "content": "hello", "refusal": None},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    text = await server.answer(messages=messages)
    assert text.split("\n") == [
        "system: be brief",
        "system: be kind",
        "user: hi",
        "assistant: hello",
        "user: a + b",
    ]


async def test_reasoning_stands_apart(server: ChatServer) -> None:
    for extra in (
        {"enable_thinking": True},
        {"chat_template_kwargs": {"enable_thinking": True}},
        {"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False}},
    ):
        message = (await server.ask(extra_body=extra)).choices[0].message
        assert message.reasoning_content == "Let me see."
        assert message.content == "user: hello\nthinking=True"
    extra = {"enable_thinking": False, "chat_template_kwargs": {"enable_thinking": True}}
    assert "thinking" not in await server.answer(extra_body=extra)


async def test_the_length_is_kept_and_said(server: ChatServer) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        choice = (await server.ask("a b c d e", **{name: 3})).choices[0]
        assert choice.finish_reason == "length" and choice.message.content == "user: a b"
    await server.ask(max_tokens=5, max_completion_tokens=2)
    assert server.engine.requests[-1].max_tokens == 2


async def test_settings_reach_the_engine(server: ChatServer) -> None:
    for body, field, value in CHOSEN:
        async with server.http.post(PATH, json={"messages": USER, **body}) as response:
            assert response.status == 200, body
        assert getattr(server.engine.requests[-1], field) == value, body


async def test_what_asks_for_nothing_special_is_let_through(server: ChatServer) -> None:
    body = {
        "model": None,
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "logprobs": False,
        "n": 1,
        "logit_bias": {},
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "modalities": ["text"],
        "user": "someone",
        "something_new": {"deep": [1]},
    }
    async with server.http.post(PATH, json={"messages": USER, **body}) as response:
        assert response.status == 200
    assert server.engine.requests[-1].temperature is None


# ---- streams ----------------------------------------------------------------------------------


async def test_a_stream_says_the_same_in_pieces(server: ChatServer) -> None:
    whole = await server.answer("how are you")
    stream = await server.ask("how are you", stream=True, extra_body={"enable_thinking": True})
    text, reasoning, reasons, roles = "", "", [], []
    async for chunk in stream:
        assert chunk.object == "chat.completion.chunk" and chunk.usage is None
        [choice] = chunk.choices
        text += choice.delta.content or ""
        reasoning += getattr(choice.delta, "reasoning_content", "")
        reasons.append(choice.finish_reason)
        roles.append(choice.delta.role)
    assert text == f"{whole}\nthinking=True" and reasoning == "Let me see."
    assert reasons == [None] * (len(reasons) - 1) + ["stop"]
    assert roles == ["assistant"] + [None] * (len(roles) - 1)


async def test_a_stream_on_the_wire(server: ChatServer) -> None:
    body = {"messages": USER, "stream": True, "stream_options": {"include_usage": True}}
    headers = {"Origin": "http://localhost:5173"}
    async with server.http.post(PATH, json=body, headers=headers) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert response.headers["Access-Control-Allow-Origin"] == headers["Origin"]
        events = await events_of(response)
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


async def test_a_stream_shows_that_it_lives_while_the_model_thinks() -> None:
    async with chat_server("chat.keep_alive_s=0.1") as server:
        server.engine.go.clear()
        async with server.http.post(PATH, json={"messages": USER, "stream": True}) as response:
            for _ in range(2):
                await response.content.readuntil(b": still at it\n\n")
            server.engine.go.set()
            events = await events_of(response)
    assert events[-1] == "[DONE]"
    assert "still at it" not in "".join(json.dumps(event) for event in events[-3:])


async def test_an_error_before_the_first_piece_has_its_own_status() -> None:
    full = CapacityError("no slot", retry_after_s=3.2)
    async with chat_server(engine=ReadingEngine(before=full)) as server:
        server.chats.slot_wait_s = 0
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError) as caught:
                await server.ask(stream=stream)
            assert caught.value.status_code == 503
            assert caught.value.response.headers["Retry-After"] == "4"
    long = RequestError("the prompt has 9000 tokens", code="context_length_exceeded")
    async with chat_server(engine=ReadingEngine(before=long)) as server:
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match="9000 tokens") as refused:
                await server.ask(stream=stream)
            assert refused.value.code == "context_length_exceeded"


async def test_an_error_after_it_ends_the_stream_in_words() -> None:
    error = ContextOverflow("the conversation does not fit")
    async with chat_server(engine=ReadingEngine(failing=error)) as server:
        stream = await server.ask("a b c d", stream=True)
        text = ""
        error_text = ""
        try:
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
        except openai.APIError as raised:
            error_text = str(raised)
        assert "does not fit" in error_text and text == "user: a"
        with pytest.raises(openai.InternalServerError, match="does not fit"):
            await server.ask("a b c d")
    async with chat_server(engine=ReadingEngine(failing=ValueError("secret"))) as server:
        with pytest.raises(openai.InternalServerError) as hidden:
            await server.ask("a b c d")
        assert "secret" not in str(hidden.value)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_gives_its_answer_up(stream: bool) -> None:
    async with chat_server("chat.keep_alive_s=0.1") as server:
        server.engine.go.clear()
        asking = asyncio.ensure_future(server.ask(stream=stream))
        if stream:  # the answer has begun, the model has not
            await asyncio.wait((asking,), timeout=5)
        while not server.engine.requests:
            await asyncio.sleep(0.01)
        asking.cancel()
        if stream:
            await (asking.result()).close()
        while not server.engine.given_up:
            await asyncio.sleep(0.01)
        assert server.engine.running == 0
        server.engine.go.set()
        assert await server.answer("again") == "user: again"


# ---- refusals ---------------------------------------------------------------------------------


async def test_what_cannot_be_served_is_named(server: ChatServer) -> None:
    for body, param, code in REFUSED:
        error = await server.refusal(400, **body)
        assert (error["param"], error["code"]) == (param, code), body
        assert error["type"] == "invalid_request_error" and error["message"]
    assert server.engine.requests == []


async def test_bodies_that_are_no_request(server: ChatServer) -> None:
    json_type = {"Content-Type": "application/json"}
    for data in (b"", b"{", b"[1]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a": 1' + b"0" * 5000):
        async with server.http.post(PATH, data=data, headers=json_type) as response:
            assert response.status == 400
            assert (await response.json())["error"]["message"]
    async with server.http.post(PATH, data=b"messages=1") as response:
        assert response.status == 415
        assert (await response.json())["error"]["code"] == "unsupported_media_type"
    async with server.http.get(PATH) as response:
        assert response.status in (404, 405)


async def test_an_engine_without_chat_says_so() -> None:
    async with running_server() as running:
        async with openai.AsyncOpenAI(
            base_url=f"{running.url}/v1", api_key="x", max_retries=0
        ) as client:
            with pytest.raises(openai.BadRequestError) as caught:
                await client.chat.completions.create(model="echo", messages=USER)
    assert caught.value.code == "unsupported_by_engine"
