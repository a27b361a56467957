"""Functions in chats: what the model writes, and `/v1/chat/completions` as `openai` sees it."""

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from agent.chat_types import (
    ChatDelta,
    ChatDone,
    ChatEvent,
    ChatMessage,
    ChatRequest,
    ChatText,
    ChatToolCall,
)
from agent.duplex.chat import Chat
from agent.duplex.engine import DuplexEngine
from agent.duplex.tokens import Token
from agent.duplex.work import Choose, Read
from agent.engines.minicpm_o import ABILITIES
from agent.errors import RequestError
from agent.types import Abilities, Tool
from tests.rig.chat_server import ChatServer, chat_server
from tests.rig.reading_engine import ReadingEngine
from tests.rig.scripted_call import parts
from tests.rig.tiny_mind import LetterCodec, Script, runner
from tests.rig.told_chat import Told
from tests.rig.told_chat import asked as asked_aloud

TOOLS = (Tool("weather"), Tool("ping"))
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn"}}\n</tool_call>'
PING = '<tool_call>\n{"name": "ping", "arguments": {}}\n</tool_call>'
SOLD = [{"type": "function", "function": {"name": one.name}} for one in TOOLS]


def tokens(text: str) -> list[int]:
    return LetterCodec().encode(text)


def asked(**options: Any) -> ChatRequest:
    usual = {"max_tokens": 200, "tools": TOOLS, "greedy": True}
    messages = (ChatMessage("user", (ChatText("Hi"),)),)
    return ChatRequest(messages, **(usual | options))


def events_of(request: ChatRequest, text: str, end: int = Token.IM_END) -> list[ChatEvent]:
    """What the engine tells of an answer that is written beforehand, whole words joined."""
    engine = DuplexEngine(parts(Script()), ABILITIES)
    engine._asked = lambda one: Chat(  # type: ignore[method-assign]
        engine._parts.runner, one, script=Script([*tokens(text), int(end)])
    )
    engine.chat(1, request)
    said: list[ChatEvent] = []
    while not said or not isinstance(said[-1], ChatDone):
        said += [event for _, event in engine.work()]  # type: ignore[misc]
    return said


def told(events: list[ChatEvent]) -> tuple[str, list[tuple[str, str]], str]:
    text = "".join(one.text for one in events if isinstance(one, ChatDelta) and not one.reasoning)
    calls = [(one.name, one.arguments) for one in events if isinstance(one, ChatToolCall)]
    assert isinstance(events[-1], ChatDone)
    return text, calls, events[-1].reason


WEATHER = ("weather", '{"city": "Bonn"}')

# ---- the model ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello.", ("Hello.", [], "stop")),
        (CALL, ("", [WEATHER], "tool_calls")),
        (f"One moment.\n{CALL}\n{PING}", ("One moment.", [WEATHER, ("ping", "{}")], "tool_calls")),
        ("<tool_call>x</tool_call>", ("<tool_call>x</tool_call>", [], "stop")),
    ],
)
def test_an_answer_tells_its_words_and_its_calls_apart(text: str, expected: object) -> None:
    assert told(events_of(asked(), text)) == expected


def test_without_functions_the_tags_are_words() -> None:
    assert told(events_of(asked(tools=()), CALL)) == (CALL, [], "stop")
    assert told(events_of(asked(tool_choice="none"), CALL)) == (CALL, [], "stop")


def test_a_call_that_the_limit_cuts_short_is_told_as_far_as_it_came() -> None:
    text, calls, reason = told(events_of(asked(max_tokens=48), CALL))
    assert (text, reason) == ("", "length")
    assert calls == [("weather", '{"city": "Bon')]
    assert told(events_of(asked(max_tokens=12), CALL))[1] == []


def test_reasoning_comes_before_a_call() -> None:
    think, end = chr(Token.THINK), chr(Token.END_THINK)
    events = events_of(asked(thinking=True), f"{think}Hm.{end}\n\n{CALL}")
    reasoning = "".join(e.text for e in events if isinstance(e, ChatDelta) and e.reasoning)
    assert reasoning == "Hm." and told(events)[1] == [WEATHER]


def test_one_call_may_be_all_there_is() -> None:
    for request in (asked(one_call=True), asked(tool_choice="weather")):
        text = CALL + PING
        if request.tool_choice != "auto":
            text = text.split('"arguments":', 1)[1]
        assert told(events_of(request, text)) == ("", [WEATHER], "tool_calls")


def test_a_demanded_call_goes_on_where_the_prompt_left_it() -> None:
    events = events_of(asked(tool_choice="required"), 'ping", "arguments": {}}\n</tool_call>')
    assert told(events) == ("", [("ping", "{}")], "tool_calls")
    with pytest.raises(RequestError, match="tool_choice"):
        events_of(asked(tool_choice="other"), "")


def test_where_none_may_be_called_the_model_cannot_begin_to() -> None:
    used = runner()
    chat = Chat(used, asked(tool_choice="none"))
    used.run(chat.begin())
    (work,) = [one for one in chat.advance(1) if isinstance(one, Choose | Read)][:1]
    logits = used.model.llm.logits(used.model.llm.embed([5])[:1])[0]
    assert work.choice is not None
    penalised = work.choice.sampler.penalised(logits, work.choice.drawing)
    assert penalised[Token.TOOL_CALL] == float("-inf") and penalised[Token.THINK] > float("-inf")
    chat.close()


# ---- aloud --------------------------------------------------------------------------------------


def test_a_call_is_never_said_aloud_nor_is_what_follows_it() -> None:
    words = "One moment, please."
    told_ = Told(*f"{words}\n{CALL}\nDone.".split("\0"), request=asked_aloud("Hi"))
    assert CALL[1:11] in "".join(told_.said)
    request = asked_aloud("Hi", tools=TOOLS, max_tokens=200)
    told_ = Told(*[words, "\n", *tokens(CALL), "\nDone."], request=request)
    assert "".join(told_.said) == words and told_.text == f"{words}Done."
    assert [one.name for piece in told_.pieces for one in piece.calls] == ["weather"]
    assert told_.choir.streams[-1].finished


def test_an_answer_of_nothing_but_a_call_has_no_sound() -> None:
    request = asked_aloud("Hi", tools=TOOLS, max_tokens=200)
    told_ = Told(*tokens(CALL), request=request)
    assert told_.said == [] and not told_.choir.tokens
    assert told_.pieces[-1].finish == "stop"


def test_within_a_call_may_stand_what_cannot_be_said() -> None:
    used = runner()
    request = asked_aloud("Hi", tools=TOOLS, max_tokens=200)
    told_ = Told(*"Yes", *tokens(CALL), request=request, used=used)
    source = told_.chat._answer._source
    banned = [
        sampler is not None and sampler._banned is not None
        for sampler in (source.sampler, source.silent)
    ]
    assert banned == [True, False]
    source = type(source)(source.sampler, source.drawing, None, source.silent)
    said, called = source.choice(), source.choice(is_calling=True)
    assert said is not None and said.sampler is source.sampler
    assert called is not None and called.sampler is source.silent


# ---- the endpoint -------------------------------------------------------------------------------


class CallingEngine(ReadingEngine):
    """Calls what it is offered, after two words; with its results it reads them back."""

    abilities = Abilities(chat=True, tools=True)

    async def _say(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
        if not request.tools or request.messages[-1].role == "tool":
            async for event in super()._say(request):
                yield event
            return
        yield ChatDelta("One moment.")
        for number, tool in enumerate(request.tools):
            yield ChatToolCall(f"call_{number}", tool.name, f'{{"n": {number}}}')
        yield ChatDone("tool_calls", 1, 9)


@pytest.fixture
async def server() -> AsyncIterator[ChatServer]:
    async with chat_server(engine=CallingEngine()) as running:
        yield running


CALLED = [("call_0", "function", "weather", '{"n": 0}'), ("call_1", "function", "ping", '{"n": 1}')]


async def test_calls_come_with_an_answer(server: ChatServer) -> None:
    (choice,) = (await server.ask(tools=SOLD)).choices
    calls = [
        (c.id, c.type, c.function.name, c.function.arguments) for c in choice.message.tool_calls
    ]
    assert calls == CALLED
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "One moment.")
    assert server.engine.requests[-1].tools == TOOLS


async def test_calls_come_in_a_stream(server: ChatServer) -> None:
    state = openai.lib.streaming.chat.ChatCompletionStreamState()  # type: ignore[attr-defined]
    reasons, indices = [], []
    async for chunk in await server.ask(tools=SOLD, stream=True):
        state.handle_chunk(chunk)
        reasons.append(chunk.choices[0].finish_reason)
        indices += [one.index for one in chunk.choices[0].delta.tool_calls or ()]
    message = state.get_final_completion().choices[0].message
    calls = [(c.id, c.type, c.function.name, c.function.arguments) for c in message.tool_calls]
    assert calls == CALLED and indices == [0, 1]
    assert message.content == "One moment." and [r for r in reasons if r] == ["tool_calls"]


async def test_a_whole_round_with_results_in_any_order(server: ChatServer) -> None:
    first = (await server.ask(tools=SOLD)).choices[0].message
    messages: list[Any] = [{"role": "user", "content": "hello"}, first.model_dump()]
    messages += [
        {"role": "tool", "tool_call_id": call.id, "content": f"of {call.function.name}"}
        for call in reversed(first.tool_calls)
    ]
    answer = (await server.ask(messages=messages, tools=SOLD)).choices[0]
    lines = str(answer.message.content).split("\n")
    assert lines[1:4] == ["assistant: One moment.", "tool: of weather", "tool: of ping"]
    assert answer.finish_reason == "stop" and answer.message.tool_calls is None
    earlier = server.engine.requests[-1].messages[1]
    assert [(one.call_id, one.name) for one in earlier.calls] == [
        ("call_0", "weather"),
        ("call_1", "ping"),
    ]


async def test_an_earlier_answer_may_be_of_calls_alone(server: ChatServer) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "ping", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "pong"}]},
    ]
    await server.ask(messages=messages)
    earlier, result = server.engine.requests[-1].messages[1:]
    assert earlier == ChatMessage("assistant", (), (ChatToolCall("c", "ping", "{}"),))
    assert result == ChatMessage("tool", (ChatText("pong"),))


@pytest.mark.parametrize(
    ("sent", "choice"),
    [
        ("none", "none"),
        ("required", "required"),
        ({"type": "function", "function": {"name": "ping"}}, "ping"),
    ],
)
async def test_what_has_to_be_called_can_be_said(
    server: ChatServer, sent: object, choice: str
) -> None:
    await server.ask(tools=SOLD, tool_choice=sent, parallel_tool_calls=choice == "none")
    request = server.engine.requests[-1]
    assert (request.tool_choice, request.one_call) == (choice, choice != "none")


def tool(**function: object) -> dict[str, object]:
    return {"tools": [{"type": "function", "function": function}]}


def messages(*more: dict[str, object]) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": "hello"}, *more]}


CALLER = {"role": "assistant", "tool_calls": [{"id": "a", "function": {}}]}
REFUSED = [
    (tool(), "tools[0].function.name"),
    (tool(name="a b"), "tools[0].function.name"),
    (tool(name="a", parameters=[]), "tools[0].function.parameters"),
    (tool(name="a", description="\ud800"), "tools[0].function"),
    ({"tools": [{"type": "mcp"}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": SOLD * 2}, "tools[2].function.name"),
    ({"tools": SOLD * 70}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": "sometimes", "tools": SOLD}, "tool_choice"),
    (
        {"tool_choice": {"type": "function", "function": {"name": "x"}}, "tools": SOLD},
        "tool_choice",
    ),
    ({"parallel_tool_calls": 1, "tools": SOLD}, "parallel_tool_calls"),
    (messages({"role": "tool", "content": "x"}), "messages[1].tool_call_id"),
    (messages({"role": "tool", "content": "x", "tool_call_id": "z"}), "messages[1].tool_call_id"),
    (messages(CALLER), "messages[1].tool_calls[0].function.name"),
    (
        messages({"role": "assistant", "content": "x", "tool_calls": [{}] * 200}),
        "messages[1].tool_calls",
    ),
]


@pytest.mark.parametrize(("body", "param"), REFUSED, ids=[str(n) for n in range(len(REFUSED))])
async def test_what_is_wrong_is_named(
    server: ChatServer, body: dict[str, object], param: str
) -> None:
    error = await server.refusal(400, **json.loads(json.dumps(body)))
    assert error["param"] == param


async def test_an_engine_that_calls_no_functions_says_so() -> None:
    async with chat_server() as server:
        error = await server.refusal(400, tools=SOLD)
    assert (error["param"], error["code"]) == ("tools", "unsupported")
