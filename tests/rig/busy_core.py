"""A core that needs no model: it is as busy, as broken or as slow to load as it is told to be.

It says a word for each unit, and while it is to speak, sound as fast as it can. What it is told by
text does the rest (`AddText`): "busy 20" keeps the interpreter for 20 ms of every unit and of every
other moment, "sleep 20" lets it go meanwhile, "speak" begins a turn without end, "hang", "raise"
and "exit" are what they say, and "freeze" hangs and keeps the interpreter. Files in
`settings.assets` shape how it loads.
"""

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from agent.chat_types import AnswerRequest, ChatDelta, ChatDone, ChatEvent, ChatRequest
from agent.commands import AddText, Command, Interrupt
from agent.engines import EngineSettings
from agent.errors import (
    CapacityError,
    CheckpointError,
    ContextOverflow,
    RequestError,
    UnsupportedError,
)
from agent.types import (
    MIC_RATE_HZ,
    SPEECH_RATE_HZ,
    Abilities,
    EngineEvent,
    Failed,
    Listened,
    Load,
    SessionSettings,
    SpeechAudio,
    SpeechEnded,
    SpeechStarted,
    TextDelta,
    TurnEnded,
    TurnStarted,
    Unit,
)

ABILITIES = Abilities(duplex=True, chat=True, speech=True, typed_text=True)
SPOKEN_AHEAD_S = 1.0
_PIECE_SAMPLES = SPEECH_RATE_HZ // 5
_HISS = np.random.default_rng(1).normal(0.0, 0.1, SPEECH_RATE_HZ).astype(np.float32)
"""A second that is said again and again: as rich as speech, so that its packets are as large."""
_LAYERS = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)

Said = tuple[int, EngineEvent | ChatEvent]


def load(
    name: str, settings: EngineSettings, on_progress: Callable[[int, int], None]
) -> "BusyCore":
    """As files in `settings.assets` want it.

    "pid" is written. A pipe "gate" is waited for; "refuse" holds the words of a `CheckpointError`;
    "die" ends the process.
    """
    assets = settings.assets
    fresh = assets / f"pid.{os.getpid()}"
    fresh.write_text(str(os.getpid()), "utf-8")
    fresh.replace(assets / "pid")  # whoever reads it meanwhile reads one or the other
    on_progress(1, 4)
    if (assets / "gate").exists():
        (assets / "gate").read_text("utf-8")
    if (assets / "die").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    if (assets / "refuse").exists():
        raise CheckpointError((assets / "refuse").read_text("utf-8"))
    on_progress(4, 4)
    return BusyCore(name, settings.slots)


def load_silent(
    name: str, settings: EngineSettings, on_progress: Callable[[int, int], None]
) -> "BusyCore":
    """One that cannot speak."""
    core = load(name, settings, on_progress)
    core.abilities = Abilities(duplex=True, typed_text=True)
    return core


def pid(assets: Path) -> int:
    """Of the process that loaded last."""
    return int((assets / "pid").read_text("utf-8"))


class BusyCore:
    """An `EngineCore`."""

    def __init__(self, name: str, slots: int) -> None:
        self.name = name
        self.abilities = ABILITIES
        self._slots = slots
        self._open: set[int] = set()
        self._said: list[Said] = []
        self._work: Callable[[], None] | None = None
        self._speaking: dict[int, int] = {}
        self._spoken_since_s = 0.0
        self._thread = threading.get_ident()

    def open(self, number: int, settings: SessionSettings) -> None:
        """Instructions "refuse" are refused, "do … and …" is done as if typed."""
        self._check_thread()
        if settings.instructions == "refuse":
            raise RequestError("not that", param="session.instructions", code="nonsense")
        if len(self._open) >= self._slots:
            raise CapacityError("every slot is taken", retry_after_s=7.5)
        self._open.add(number)
        if settings.instructions.startswith("do "):
            for order in settings.instructions[3:].split(" and "):
                self._obey(number, order)

    def chat(self, number: int, request: AnswerRequest) -> None:
        """Says `max_tokens` words; none are unsupported, and so are texts to be read aloud."""
        self._check_thread()
        if not isinstance(request, ChatRequest) or not request.max_tokens:
            raise UnsupportedError("nothing to say", param="max_tokens")
        self._open.add(number)
        for word in range(request.max_tokens):
            self._said.append((number, ChatDelta(f"{word} ")))
        if request.seed is None:
            self._said.append((number, ChatDone("stop", 1, request.max_tokens)))

    def push(self, number: int, item: Unit | SpeechStarted | SpeechEnded) -> None:
        """A word about each unit: its number, how loud, how bright."""
        self._check_thread()
        if number in self._open and isinstance(item, Unit):
            bright = sum(int(picture.rgb.sum()) for picture in item.pictures)
            self._said.append((number, Listened(item.index)))
            word = f"{item.index} {float(item.audio.sum()):.1f} {bright}"
            self._said.append((number, TextDelta(item.index, 1, word)))

    def control(self, number: int, command: Command) -> None:
        """What a text says, if it is known."""
        self._check_thread()
        if isinstance(command, Interrupt) and self._speaking.pop(number, None) is not None:
            self._said.append((number, TurnEnded(command.turn, "interrupted")))
        if isinstance(command, AddText):
            self._obey(number, command.text)

    def _obey(self, number: int, order: str) -> None:
        verb, _, argument = order.partition(" ")
        if verb in _WORK:
            self._work = _WORK[verb](int(argument or 0) / 1000)
        elif order == "rest":
            self._work = None
        elif order == "speak":
            self._speak(number)
        elif order == "exit":
            os._exit(3)
        elif order == "fail":
            self._said.append((number, Failed(ContextOverflow("too long"))))
        else:
            raise UnsupportedError(f"what is {order!r}?", param="item.content")

    def finish(self, number: int) -> None:
        """It is over."""
        self._check_thread()
        self._open.discard(number)
        self._speaking.pop(number, None)

    def work(self) -> list[Said]:
        """What was to be said; and whatever else keeps it busy."""
        self._check_thread()
        if self._work:
            self._work()
        self._go_on_speaking()
        said, self._said = self._said, []
        return said

    def idle_s(self) -> float | None:
        """Never idle while it is busy; a piece of sound from time to time."""
        if self._work or self._said:
            return 0.0
        return 0.0 if self._speaking and self._due() else 0.05 if self._speaking else None

    def load(self) -> Load:
        """Slots."""
        return Load(len(self._open), self._slots - len(self._open))

    def _check_thread(self) -> None:
        assert threading.get_ident() == self._thread, "only one thread may touch a core"

    def _speak(self, number: int) -> None:
        self._speaking[number] = 0
        self._spoken_since_s = time.monotonic()
        self._said += [(number, TurnStarted(1)), (number, TextDelta(0, 1, "Aaah"))]

    def _due(self) -> list[int]:
        until_s = time.monotonic() - self._spoken_since_s + SPOKEN_AHEAD_S
        return [at for at, done in self._speaking.items() if done < until_s * SPEECH_RATE_HZ]

    def _go_on_speaking(self) -> None:
        for number in self._due():
            at = self._speaking[number]
            piece = _HISS[np.arange(at, at + _PIECE_SAMPLES) % len(_HISS)]
            self._said.append((number, SpeechAudio(1, at // MIC_RATE_HZ, at, piece)))
            self._speaking[number] = at + _PIECE_SAMPLES


def _fail() -> None:
    raise ZeroDivisionError("a bug")


def _keep_busy(seconds: float) -> None:
    """As a loop that launches many small kernels: mostly the interpreter, now and then not."""
    until_s = time.monotonic() + seconds
    state = _LAYERS[0]
    table: dict[int, int] = {}
    while time.monotonic() < until_s:
        state = np.tanh(_LAYERS @ state)
        for key in range(50):
            table[key] = (key * 7 + len(table)) % 31


_WORK: dict[str, Callable[[float], Callable[[], None]]] = {
    "busy": lambda seconds: lambda: _keep_busy(seconds),
    "sleep": lambda seconds: lambda: time.sleep(seconds),
    "hang": lambda _: lambda: time.sleep(3600),
    # Unlike CDLL, this one does not let the interpreter go.
    "freeze": lambda _: lambda: ctypes.PyDLL(None).sleep(3600),
    "raise": lambda _: _fail,
}
"""What keeps the core busy from then on, of so many seconds."""
