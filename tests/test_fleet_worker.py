"""The side of an engine's process: who touches the core, in which order, and when it is let be."""

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.chat_types import ChatRequest
from agent.commands import Command, ForceListen
from agent.engines import EngineSettings, Progress
from agent.errors import CapacityError, EngineError
from agent.fleet.channel import Channel
from agent.fleet.link import QueueLink
from agent.fleet.messages import (
    Answered,
    Chat,
    Control,
    Finish,
    Message,
    Open,
    Pulse,
    Push,
    Ready,
    Said,
    Stop,
    Unable,
)
from agent.fleet.messages import Progress as Loaded
from agent.fleet.worker import Job, run, serve_core
from agent.types import Abilities, Listened, Load, SessionSettings, SpeechEnded, SpeechStarted, Unit

SETTINGS = SessionSettings("scripted")
ENGINE = EngineSettings(Path(), 1)


class ScriptedCore:
    """Notes what is done to it; has work while something was pushed."""

    name = "scripted"
    abilities = Abilities(duplex=True)

    def __init__(self) -> None:
        self.done: list[str] = []
        self.threads: set[int] = set()
        self._waiting: list[int] = []
        self._open = 0

    def open(self, number: int, settings: SessionSettings) -> None:
        self._note(f"open {number}")
        if self._open:
            raise CapacityError("full", retry_after_s=2.0)
        self._open += 1

    def chat(self, number: int, request: ChatRequest) -> None:
        self._note(f"chat {number}")

    def push(self, number: int, item: Unit | SpeechStarted | SpeechEnded) -> None:
        self._note(f"push {number}")
        self._waiting.append(number)

    def control(self, number: int, command: Command) -> None:
        self._note(f"control {number}")

    def finish(self, number: int) -> None:
        self._note(f"finish {number}")
        self._open = max(0, self._open - 1)

    def work(self) -> list[tuple[int, Listened]]:
        self._note("work")
        return [(self._waiting.pop(0), Listened(0))]

    def idle_s(self) -> float | None:
        return 0.0 if self._waiting else None

    def load(self) -> Load:
        return Load(self._open, 1 - self._open)

    def _note(self, what: str) -> None:
        self.done.append(what)
        self.threads.add(threading.get_ident())


@pytest.fixture
def ends() -> Iterator[tuple[QueueLink, QueueLink]]:
    one, other = QueueLink.pair()
    yield one, other
    one.close()


def served(
    core: ScriptedCore, messages: list[Message], ends: tuple[QueueLink, QueueLink]
) -> list[Message]:
    """What is said when all of `messages` wait at once, up to the end."""
    inbox: Channel[Message] = Channel(100)
    for message in messages:
        inbox.put(message)
    here, there = ends
    serve_core(core, inbox, there, pulse_s=60)
    there.send(there.pack(Stop()))
    return list(iter(here.receive, Stop()))


def test_all_that_waits_is_obeyed_before_the_next_piece_of_work(
    ends: tuple[QueueLink, QueueLink],
) -> None:
    core = ScriptedCore()
    heard = SpeechStarted(1)
    inbox: Channel[Message] = Channel(100)
    for message in (Open(1, 7, SETTINGS), Push(7, heard), Control(2, 7, ForceListen(on=True))):
        inbox.put(message)
    serving = threading.Thread(target=serve_core, args=(core, inbox, ends[1], 60))
    serving.start()
    said: list[Message] = []
    while not isinstance(said[-1:] and said[-1], Said):
        said.append(ends[0].receive())
    inbox.put(Finish(7))
    inbox.put(Stop())
    serving.join()
    assert core.done == ["open 7", "push 7", "control 7", "work", "finish 7"]
    assert said == [
        Ready("scripted", core.abilities, Load(0, 1)),
        Pulse(Load(1, 0)),
        Answered(1, None),
        Answered(2, None),
        Said(((7, Listened(0)),)),
    ]
    assert core.threads == {serving.ident}


def test_refusals_are_answered_and_idle_cores_are_let_be(
    ends: tuple[QueueLink, QueueLink],
) -> None:
    core = ScriptedCore()
    said = served(core, [Open(1, 7, SETTINGS), Open(2, 8, SETTINGS), Stop(), Finish(7)], ends)
    assert core.done == ["open 7", "open 8"], "nothing after the end, and no work without need"
    (refused,) = [one for one in said if isinstance(one, Answered) and one.error]
    assert refused.ticket == 2 and isinstance(refused.error, CapacityError)


class BrokenCore(ScriptedCore):
    """Opens its first conversation; at all else it raises `error`."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def open(self, number: int, settings: SessionSettings) -> None:
        super().open(number, settings)
        if number > 1:
            raise self._error

    def chat(self, number: int, request: ChatRequest) -> None:
        raise self._error

    def control(self, number: int, command: Command) -> None:
        raise self._error


class AcceleratorError(RuntimeError):
    """As torch's."""


def test_a_bug_that_a_caller_sets_off_is_told_to_it_alone(
    ends: tuple[QueueLink, QueueLink], caplog: pytest.LogCaptureFixture
) -> None:
    core = BrokenCore(TypeError("no such text"))
    asked: list[Message] = [
        Chat(1, 8, ChatRequest(())),
        Control(2, 7, ForceListen(on=True)),
        Open(3, 1, SETTINGS),
        Push(1, SpeechStarted(1)),
        Stop(),
    ]
    with caplog.at_level(logging.ERROR, "agent.fleet.worker"):
        said = served(core, asked, ends)
    answers = {one.ticket: one.error for one in said if isinstance(one, Answered)}
    assert [type(answers[ticket]) for ticket in (1, 2, 3)] == [EngineError, EngineError, type(None)]
    assert core.done == ["finish 8", "open 1", "push 1"], "and a conversation is left to its caller"
    assert "no such text" in caplog.text and "no such text" not in str(answers[1])


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        AcceleratorError("device-side assert"),
    ],
)
def test_a_broken_gpu_ends_the_process(ends: tuple[QueueLink, QueueLink], error: Exception) -> None:
    wrapped = ValueError("while it looked")
    wrapped.__cause__ = error
    for each in (error, wrapped):
        with pytest.raises(type(each)):
            served(BrokenCore(each), [Chat(1, 8, ChatRequest(())), Stop()], ends)


def test_a_sign_of_life_comes_while_nothing_happens(ends: tuple[QueueLink, QueueLink]) -> None:
    inbox: Channel[Message] = Channel(100)
    serving = threading.Thread(target=serve_core, args=(ScriptedCore(), inbox, ends[1], 0.01))
    serving.start()
    assert [type(ends[0].receive()) for _ in range(4)] == [Ready, Pulse, Pulse, Pulse]
    inbox.put(Stop())
    serving.join()


def load_in_a_thousand_steps(
    _: str, settings: EngineSettings, on_progress: Progress
) -> ScriptedCore:
    for step in range(1001):
        on_progress(step, 1000)
    raise CapacityError("no memory", retry_after_s=1.0)


def test_loading_tells_how_far_it_is_but_not_all_the_time() -> None:
    here, there = QueueLink.pair()
    orphaned: list[str] = []
    job = Job(load_in_a_thousand_steps, "scripted", ENGINE)
    assert not run(job, there, lambda: orphaned.append("orphaned"))
    told: list[Message] = []
    while not isinstance(told[-1:] and told[-1], Unable):
        told.append(here.receive())
    steps = [one.done for one in told if isinstance(one, Loaded)]
    assert steps[0] == 0 and steps[-1] == 1000 and 100 < len(steps) < 250
    assert isinstance(told[-1], Unable) and isinstance(told[-1].error, CapacityError)
    assert orphaned == [], "it ended by itself"


def load_until_left(_: str, settings: EngineSettings, on_progress: Progress) -> ScriptedCore:
    return ScriptedCore()


def test_whoever_is_left_alone_hears_of_it() -> None:
    here, there = QueueLink.pair()
    orphaned = threading.Event()
    results: list[bool] = []
    job = Job(load_until_left, "scripted", ENGINE)
    running = threading.Thread(target=lambda: results.append(run(job, there, orphaned.set)))
    running.start()
    assert isinstance(here.receive(), Ready)
    here.close()
    assert orphaned.wait(10)
    running.join()
    assert results == [False]


def test_an_engine_s_process_needs_nothing_of_the_server_s() -> None:
    blocked = ("av", "aiortc", "aioice", "aiohttp", "pydantic", "prometheus_client", "torch")
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); import agent.fleet.worker"
    subprocess.run([sys.executable, "-c", code], check=True)
