"""A call on the tiny model whose decisions are written beforehand, and what it says."""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from agent.commands import Command
from agent.duplex.call import DuplexCall
from agent.duplex.call_parts import CallParts, CallVoices
from agent.duplex.lanes import Runner
from agent.duplex.slots import Slots, SlotSizes
from agent.duplex.turns_call import TurnsCall
from agent.duplex.voice_line import VoiceLine
from agent.duplex.window import WindowSettings
from agent.types import (
    EngineEvent,
    FloatArray,
    Listened,
    SessionSettings,
    TurnEnded,
    UnitReport,
    Usage,
    VideoFrame,
)
from tests.rig.jobs import advanced
from tests.rig.tiny_mind import Script, second, tiny_mind

E = TypeVar("E")
SETTINGS = SessionSettings(model="minicpm-o", instructions="ab")
FORCED = 3
"""Units in which the model is not asked."""


def parts(
    script: Iterator[int] | None = None,
    slots: int = 2,
    turn_tokens: int = 512,
    context_tokens: int = 1024,
    **changes: Any,
) -> CallParts:
    """Slots of the tiny model; `script` decides for every conversation."""
    mind = tiny_mind()
    sizes = SlotSizes(slots=slots, context_tokens=context_tokens, turn_tokens=turn_tokens)
    used = Runner(mind, Slots(mind.config, sizes, mind.target))
    made = CallParts(
        used,
        window=WindowSettings(high_tokens=800, low_tokens=600),
        seed=1,
        script=(lambda: script) if script is not None else None,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def without_usage(said: Iterable[E]) -> list[E]:
    """These events; what turns took is looked at elsewhere."""
    return [
        replace(event, usage=Usage()) if isinstance(event, TurnEnded) else event for event in said
    ]


def picture_file(width: int, height: int) -> bytes:
    """A grey PNG."""
    file = io.BytesIO()
    Image.new("L", (width, height), 90).save(file, "PNG")
    return file.getvalue()


def picture(width: int = 28, height: int = 28) -> VideoFrame:
    return VideoFrame(np.full((height, width, 3), 90, np.uint8), 0)


class Beeper:
    """A vocoder that makes 960 samples of each token, their value its number's thousandth."""

    lag_ms = 0

    def prepare(self, voice: str) -> None:
        pass

    def open(self, voice: str) -> "_Beeps":
        return _Beeps()


class _Beeps:
    def push(self, tokens: Sequence[int]) -> FloatArray:
        return np.repeat(np.asarray(tokens, np.float32) / 10_000, 960)

    def finish(self) -> FloatArray:
        return np.zeros(480, np.float32)


class Driven:
    """A call whose work is done as soon as it is there."""

    def __init__(
        self,
        *units: Sequence[int],
        settings: SessionSettings = SETTINGS,
        script: Iterator[int] | None = None,
        **parts_: Any,
    ):
        """`units` are decided one after the other, unless `script` decides."""
        self.script = script or Script(*units)
        self.parts = parts(self.script, **parts_)
        self.line = VoiceLine(self.parts.vocoder)
        kind = TurnsCall if settings.mode == "half_duplex" else DuplexCall
        voices = CallVoices.of(self.parts, settings)
        self.call = kind(self.parts, settings, self.line, voices)
        self.heard = 0
        self.usages: list[Usage] = []
        """Of each turn that is over; the events are told without."""

    def listen(self, count: int = 1, **changes: Any) -> list[EngineEvent]:
        """The next `count` units; all but reports of what came of them."""
        said: list[EngineEvent] = []
        for _ in range(count):
            self.call.push(replace(second(self.heard), **changes))
            self.heard += 1
            said += self.work()
        return said

    def tell(self, command: Command) -> list[EngineEvent]:
        """A command, carried out."""
        self.call.control(command)
        return self.work()

    def work(self) -> list[EngineEvent]:
        said = [event for event in self.work_all() if not isinstance(event, UnitReport)]
        self.usages += [event.usage for event in said if isinstance(event, TurnEnded)]
        return without_usage(said)

    def work_all(self) -> list[EngineEvent]:
        """The same, and all that is said as it is."""
        while self.work_once():
            pass
        return self.line.take()

    def work_once(self) -> bool:
        """The next job, if there is any → whether there was."""
        job = self.call.next_job()
        while job is not None and advanced(job, self.parts.runner):
            pass
        return job is not None

    @property
    def context_tokens(self) -> int:
        return self.call._talk.context_tokens


def begun(*units: Sequence[int], **changes: Any) -> Driven:
    """A call after the units in which the model only listens."""
    call = Driven(*units, **changes)
    assert call.listen(FORCED) == [Listened(0), Listened(1), Listened(2)]
    return call
