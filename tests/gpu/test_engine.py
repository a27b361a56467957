"""The tiny model on a GPU: the CPU's numbers, bfloat16 that stays finite, slots, a whole engine."""

import functools

import numpy as np
import pytest
import torch

from agent.chat_types import ChatDone, ChatMessage, ChatPicture, ChatRequest, ChatText
from agent.commands import Interrupt
from agent.duplex.call_parts import CallParts
from agent.duplex.engine import DuplexEngine
from agent.duplex.lanes import Runner
from agent.duplex.model import DuplexModel, load_model
from agent.duplex.slots import Slots, SlotSizes
from agent.torch_parts.checkpoint import Target
from agent.types import Abilities, Failed, TextDelta, VideoFrame
from tests.rig import tiny_model as tiny
from tests.rig.scripted_call import SETTINGS
from tests.rig.tiny_mind import (
    LISTEN,
    Script,
    cached,
    converse,
    letter_vocabulary,
    runner,
    says,
    second,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

UNITS = [LISTEN, says("ab"), says("cd", ends=True), LISTEN, says("ef")]


@functools.cache
def mind(dtype: torch.dtype) -> DuplexModel:
    target = Target(torch.device("cuda"), dtype)
    return load_model(tiny.RecipeSource(), tiny.tiny_config(), letter_vocabulary(), target=target)


def on_gpu(dtype: torch.dtype = torch.float32, slots: int = 1) -> Runner:
    model = mind(dtype)
    sizes = SlotSizes(slots=slots, context_tokens=1024, turn_tokens=512)
    return Runner(model, Slots(model.config, sizes, model.target))


def seen(index: int) -> tuple[VideoFrame, ...]:
    frame = np.random.default_rng(index).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    return (VideoFrame(frame, 0),) if index % 2 else ()


@pytest.fixture(autouse=True)
def exact() -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def test_a_gpu_in_float32_remembers_what_the_cpu_remembers() -> None:
    caches = []
    for used in (runner(), on_gpu()):
        talk = converse(used, Script(*UNITS))
        for index in range(len(UNITS)):
            talk.step(second(index, seen(index)))
        talk.flush()
        caches.append(cached(used, talk).cpu())
    apart = (caches[0] - caches[1]).abs().max() / caches[0].abs().max()
    assert float(apart) < 1e-4


def test_bfloat16_stays_finite_and_near() -> None:
    wide, narrow = on_gpu(), on_gpu(torch.bfloat16)
    caches = []
    for used in (wide, narrow):
        talk = converse(used, Script(*UNITS))
        for index in range(len(UNITS)):
            result = talk.step(second(index, seen(index)))
            assert all(0 <= token < 6561 for token in result.speech_tokens)
        caches.append(cached(used, talk).float())
    assert caches[1].isfinite().all()
    assert float((caches[0] - caches[1]).norm() / caches[0].norm()) < 0.1


def test_a_slot_is_left_and_taken_again_and_a_turn_is_taken_back() -> None:
    used = on_gpu(slots=2)
    talk = converse(used, Script(*UNITS))
    for index in range(3):
        talk.step(second(index))
    before = cached(used, talk)
    talk.park()
    other = converse(used, Script(LISTEN))
    other.step(second(0))
    talk.unpark()
    assert (cached(used, talk) == before).all()
    assert talk.rewind(1, 0) > 0
    assert talk.step(second(3)).outcome.listened


def test_an_engine_serves_calls_and_chats_side_by_side() -> None:
    used = on_gpu(torch.bfloat16, slots=4)
    waiting = [Script(*[LISTEN] * 2, says("ab"), says("cd")) for _ in range(2)]
    parts = CallParts(used, seed=1, script=lambda: waiting.pop(0))
    engine = DuplexEngine(parts, Abilities(duplex=True, chat=True))
    picture = ChatPicture(np.zeros((480, 640, 3), np.uint8))
    asked = ChatMessage("user", (picture, ChatText("What is this?")))
    for number in (1, 2):
        engine.open(number, SETTINGS)
    engine.chat(3, ChatRequest((asked,), max_tokens=20, seed=1))
    said = []
    for index in range(7):
        for number in (1, 2):
            engine.push(number, second(index, seen(index)))
        while engine.idle_s() == 0:
            said += engine.work()
    engine.control(1, Interrupt(1, 0))
    while engine.idle_s() == 0:
        said += engine.work()
    assert not any(isinstance(event, Failed) for _, event in said)
    for number in (1, 2):
        words = "".join(e.text for n, e in said if n == number and isinstance(e, TextDelta))
        assert words == "abcd"
    assert any(isinstance(event, ChatDone) for _, event in said)
    assert engine.load().slots_used == 2
