"""Calls of functions in any company: whoever shares a batch with whom, each calls what it calls
alone."""

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from agent.commands import AddAudio, AddToolResult, Respond
from agent.duplex.tokens import Token
from agent.types import SessionSettings, Tool, ToolCalled, TurnEnded
from tests.rig import tiny_model as tiny
from tests.rig.late_desk import Desk
from tests.rig.late_lanes import Watch
from tests.rig.scripted_call import SETTINGS
from tests.rig.tiny_mind import LISTEN, LetterCodec, says, second

ABLE = replace(SETTINGS, tools=(Tool("ping"),))
TURNS = replace(ABLE, mode="half_duplex")
PING = LetterCodec().encode('<tool_call>\n{"name": "ping", "arguments": {"n": 1}}\n</tool_call>')


def duplex_script(seed: int) -> Iterator[int]:
    """What a model might decide that calls a function now and then, without end."""
    chance = random.Random(seed)
    while True:
        kind = chance.random()
        if kind < 0.3:
            yield from [int(Token.SPEAK), *map(ord, "ab"), *PING]
        elif kind < 0.6:
            yield from says("cd", ends=chance.random() < 0.5)
        else:
            yield from LISTEN


def turns_script() -> Iterator[int]:
    while True:
        yield from [*map(ord, "One moment."), *PING, int(Token.TTS_EOS)]
        yield from [*map(ord, "It is done."), int(Token.TTS_EOS)]


def run(settings: dict[int, SessionSettings], watch: Watch | None = None) -> Desk:
    """Calls that hear some units, answer functions and send recordings, each at its own pace."""
    scripts = [
        turns_script() if one.mode == "half_duplex" else duplex_script(number)
        for number, one in settings.items()
    ]
    desk = Desk(*scripts, watch=watch, slots=len(settings), context_tokens=2048)
    for number, one in settings.items():
        desk.engine.open(number, one)
    at = dict.fromkeys(settings, 0)
    while at:
        for number in [one for one in at if desk.is_at_rest(one)]:
            _take_step(desk, number, at[number])
            at[number] += 1
            if at[number] == 7:
                del at[number]
        desk.step()
    desk.work()
    return desk


def _take_step(desk: Desk, number: int, step: int) -> None:
    engine = desk.engine
    engine.push(number, second(step))
    if step == 1:
        sound = tiny.recipe().audio(1.0, number)
        engine.control(number, AddAudio("a", sound.astype("float32")))
    for one in desk.of(number):
        if isinstance(one, ToolCalled) and one.turn == step - 2:
            engine.control(number, AddToolResult(one.call_id, "done"))
    if step % 3 == 2:
        engine.control(number, Respond(max_output_tokens=60))


def told(desk: Desk, number: int) -> list[Any]:
    """All that was said; ids are fresh each time."""
    return [
        replace(one, call_id="") if isinstance(one, ToolCalled) else one for one in desk.of(number)
    ]


def test_functions_are_called_in_any_company_as_alone() -> None:
    settings = {1: ABLE, 2: TURNS, 3: ABLE}
    watch = Watch(random.Random(5))
    together = run(settings, watch)
    for number, one in settings.items():
        assert told(together, number) == told(run({number: one}), number)
        said = told(together, number)
        assert any(isinstance(one, ToolCalled) for one in said)
        assert sum(one.usage.text_out for one in said if isinstance(one, TurnEnded)) > 20
    assert max(watch.sizes) > 1
