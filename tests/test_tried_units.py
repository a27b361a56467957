"""What was tried and taken back was never there: random conversations, compared bit for bit.

Two conversations get the same things to do. One of them does others between, from a point that it
then goes back to; from there on nothing may tell it from the other.
"""

import hashlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from agent.duplex.conversation import Conversation
from agent.duplex.conversation_settings import UnitResult
from agent.duplex.lanes import Runner
from agent.duplex.policy import Order, SpeakingRules
from agent.duplex.prompt import DuplexPrompt
from agent.duplex.sampling import TextSampling
from agent.duplex.tokens import Token
from agent.duplex.window import WindowSettings
from agent.types import VideoFrame
from tests.rig import tiny_model as tiny
from tests.rig.tiny_mind import converse, free_settings, runner, second

Action = Callable[[Conversation], object]
ORDERS: tuple[Order, ...] = ("free", "free", "listen", "speak")
SHORT = SpeakingRules(forced_listen_units=0, max_tokens=5, max_turn_units=2)
CHATTY = TextSampling(listen_bias=-3.0)
WINDOWS = {
    "basic": WindowSettings(mode="basic", high_tokens=90, low_tokens=60),
    "context": WindowSettings(mode="context", max_units=4, previous_max_tokens=9),
    "full": WindowSettings(mode="basic"),  # only the slot's end makes it forget
}
EARS_FORGET_AT = 29
UNITS = 10


def unit(index: int, order: Order, *, shows: bool = False) -> Action:
    pictures = (VideoFrame(tiny.recipe().picture(64, 48, 3), 0),) if shows else ()
    return lambda talk: without_times(talk.step(second(index, pictures), order))


def without_times(result: UnitResult) -> UnitResult:
    return replace(result, stage_ms=())


def words(text: str) -> Action:
    return lambda talk: talk.put_in_text(text)


def shown(talk: Conversation) -> None:
    talk.put_in_picture(tiny.recipe().picture(64, 48, 3))


def interruption(heard_ms: int) -> Action:
    return lambda talk: talk.rewind(talk.turn, heard_ms) if talk.turn else 0


def other_prompt(letters: int) -> Action:
    prompt = DuplexPrompt((Token.IM_START, *range(40, 40 + letters)), (Token.IM_END,))
    return lambda talk: talk.replace_prompt(prompt)


def drawn_unit(random: np.random.Generator, index: int) -> Action:
    return unit(index, ORDERS[int(random.integers(4))], shows=random.random() < 0.15)


def drawn(random: np.random.Generator) -> Action:
    """Something that may happen between two units."""
    choice = random.random()
    if choice < 0.2:
        return words("xyz"[: int(random.integers(1, 4))])
    if choice < 0.3:
        return shown
    if choice < 0.6:
        return interruption(int(random.integers(0, 2500)))
    if choice < 0.7:
        return lambda talk: talk.flush()
    if choice < 0.85:
        return other_prompt(int(random.integers(2, 9)))
    return lambda talk: None


def try_something(talk: Conversation, random: np.random.Generator) -> None:
    point = talk.save()
    for _ in range(int(random.integers(1, 3))):
        drawn(random)(talk)
        drawn_unit(random, int(random.integers(40, 60)))(talk)
        drawn(random)(talk)
    talk.restore(point)


def state(used: Runner, talk: Conversation) -> dict[str, object]:
    """All that what it says next depends on; sound and caches as their bits."""
    memory, slots = talk._memory, used.slots
    llm, speech, audio = memory.llm, memory.speech, memory.audio
    return {
        "random": talk._random.drawn,
        "history": memory.history.ids,
        "next": (memory.tail, memory.put_in, len(memory.pictures), memory.turn_ms),
        "floor": memory.floor,
        "window": (memory.window.units, memory.window.previous, memory.window.protected),
        "records": [
            (one.unit, one.outcome, one.spoken, bits(one.senses)) for one in memory.records
        ],
        "lengths": (llm, speech, audio),
        "llm": bits(slots.llm.tensor[:, :, talk.slot, :, : llm.length]),
        "speech": bits(slots.speech.tensor[:, :, talk.slot, :, : speech.length]),
        "audio keys": bits(slots.audio.keys[:, talk.slot, :, : audio.cached_frames]),
        "audio values": bits(slots.audio.values[:, talk.slot, :, : audio.cached_frames]),
    }


def bits(values: torch.Tensor) -> str:
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()


def begun(window: WindowSettings, tokens: int) -> tuple[Runner, Conversation]:
    used = runner(context_tokens=tokens)
    settings = free_settings(window=window, rules=SHORT, text=CHATTY, seed=5)
    return used, converse(used, settings=settings)


@pytest.mark.parametrize("window", list(WINDOWS))
def test_a_conversation_that_tried_is_one_that_never_did(window: str) -> None:
    torch.set_num_threads(1)
    random, aside = np.random.default_rng(3), np.random.default_rng(4)
    tokens = 180 if window == "full" else 1024
    (used, talk), (other_used, other) = (begun(WINDOWS[window], tokens) for _ in range(2))
    spoke = tried_while_speaking = forgot = 0
    for index in range(UNITS):
        for action in (drawn(random), drawn_unit(random, index)):
            tried_while_speaking += talk.speaking
            if aside.random() < 0.6:
                try_something(talk, aside)
            assert action(talk) == action(other)
            assert state(used, talk) == state(other_used, other)
            spoke += talk.speaking
        forgot += len(talk._memory.window.units) <= index
    assert spoke and tried_while_speaking and forgot


def test_what_the_ear_is_about_to_forget_comes_back() -> None:
    (used, talk), (other_used, other) = (begun(WindowSettings(), 1024) for _ in range(2))
    for index in range(EARS_FORGET_AT - 2):
        for one in (talk, other):
            one.step(second(index), "listen")
    for index in range(EARS_FORGET_AT - 2, EARS_FORGET_AT + 2):
        for tried in range(1, 4):
            point = talk.save()
            for step in range(tried):
                talk.step(second(50 + step), "listen")
            talk.restore(point)
        assert without_times(talk.step(second(index))) == without_times(other.step(second(index)))
        assert state(used, talk) == state(other_used, other)
    assert talk._memory.audio.cached_frames < 50 * EARS_FORGET_AT


def test_a_unit_that_stands_forgets_what_it_had_put_off() -> None:
    window = WindowSettings(mode="basic", high_tokens=62, low_tokens=42)
    used = runner()
    talk = converse(used, settings=free_settings(window=window))
    sizes = []
    for index in range(6):
        talk.save()
        sizes.append(talk.step(second(index), "listen").context_tokens)
        talk.stand()
    assert sizes == [21, 34, 47, 60, 73, 47]


def test_settings_that_changed_meanwhile_stay() -> None:
    used = runner()
    talk = converse(used, settings=free_settings())
    point = talk.save()
    talk.step(second(0), "listen")
    small = WindowSettings(mode="basic", high_tokens=30, low_tokens=21)
    talk.update(free_settings(window=small))
    talk.restore(point)
    sizes = [talk.step(second(index), "listen").context_tokens for index in range(3)]
    assert sizes == [21, 21, 21]
