"""Whole calls in simulated time for bench.echo: an agent that talks, a room, nobody else."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from agent.interfaces import EchoCanceller
from agent.media.barge_in import BargeIn, BargeInDue, DuckDue, ResumeDue
from agent.media.front_end import FrontEnd, FrontEndEvent
from agent.media.units import UnitBuilder
from agent.media.vad import SileroModel, SileroVad
from agent.types import AudioFrame, FloatArray, SessionSettings
from bench.echo_speech import any_voice, sentence
from tests.rig.echo_path import EchoPath

BoolArray = npt.NDArray[np.bool_]

_SLOT_MS = 20
_FAR_SLOT, _NEAR_SLOT, _NEAR_FRAME = 480, 320, 160
_SILENCED_SLOTS = 50
_FADE = np.linspace(1.0, 0.0, _FAR_SLOT, dtype=np.float32)


@dataclass(slots=True)
class Outcome:
    """What the front end took for the user in a call that had none."""

    played_s: float = 0.0
    ducks: int = 0
    barge_ins: int = 0
    erle_db: list[float] = field(default_factory=list)

    def add(self, other: "Outcome") -> None:
        """Sum both up."""
        self.played_s += other.played_s
        self.ducks += other.ducks
        self.barge_ins += other.barge_ins
        self.erle_db += other.erle_db


def any_room(random: np.random.Generator) -> EchoPath:
    """A room, a loudspeaker, a network and two clocks as they come."""
    return EchoPath(
        delay_ms=round(20 * 50 ** random.uniform()),
        rt60_s=random.uniform(0.15, 0.6),
        erl_db=random.uniform(0.0, 18.0),
        drive=random.uniform(0.5, 5.0),
        noise_dbfs=random.uniform(-75.0, -50.0),
        seed=int(random.integers(1 << 30)),
        drift_ppm=float(random.choice((0.0, random.uniform(-150.0, 150.0)))),
    )


class Call:
    """An agent that says sentence after sentence and obeys its own front end."""

    def __init__(
        self, random: np.random.Generator, model: SileroModel, canceller: EchoCanceller
    ) -> None:
        self._random = random
        self._voice = any_voice(random)
        self._level_dbfs = random.uniform(-28.0, -18.0)
        self._room = any_room(random)
        self._front_end = FrontEnd(canceller, SileroVad(model), UnitBuilder(), BargeIn())
        self._front_end.update(SessionSettings(model="echo"))
        self._outcome = Outcome()
        self._far = np.zeros(0, np.float32)
        self._playing = np.zeros(0, bool)  # [slots]
        self._mic = np.zeros(0, np.float32)
        self._held: tuple[FloatArray, BoolArray] | None = None

    def run(self, seconds: float) -> Outcome:
        """So long a call, in simulated time."""
        slots = round(seconds * 1000 / _SLOT_MS)
        self._plan(slots)
        for slot in range(slots):
            for event in self._hear(slot):
                self._obey(event, slot + 1)
        self._outcome.erle_db.append(self._front_end.erle_db)
        return self._outcome

    def _plan(self, slots: int) -> None:
        """Utterances of one to three sentences, half a second to two seconds between them."""
        far: list[FloatArray] = []
        playing: list[BoolArray] = []
        while sum(len(part) for part in playing) < slots:
            said = [self._say() for _ in range(self._random.integers(1, 4))]
            spoken = np.concatenate(said)
            spoken = np.append(spoken, np.zeros(-len(spoken) % _FAR_SLOT, np.float32))
            pause_slots = int(self._random.integers(25, 100))
            far += [spoken, np.zeros(pause_slots * _FAR_SLOT, np.float32)]
            playing += [np.ones(len(spoken) // _FAR_SLOT, bool), np.zeros(pause_slots, bool)]
        self._far = np.concatenate(far)[: slots * _FAR_SLOT]
        self._playing = np.concatenate(playing)[:slots]
        self._record()

    def _say(self) -> FloatArray:
        pause = np.zeros(int(self._random.uniform(0.1, 0.4) * 24_000), np.float32)
        return np.append(sentence(self._random, self._voice, self._level_dbfs), pause)

    def _hear(self, slot: int) -> list[FrontEndEvent]:
        far = self._far[slot * _FAR_SLOT :][:_FAR_SLOT]
        self._front_end.push_far(AudioFrame(far, 24_000, slot * _FAR_SLOT))
        playing = bool(self._playing[slot])
        self._outcome.played_s += playing * _SLOT_MS / 1000
        events: list[FrontEndEvent] = []
        for start in range(slot * _NEAR_SLOT, (slot + 1) * _NEAR_SLOT, _NEAR_FRAME):
            frame = AudioFrame(self._mic[start : start + _NEAR_FRAME], 16_000, start)
            events += self._front_end.push(frame, playing)
        return events

    def _obey(self, event: FrontEndEvent, slot: int) -> None:
        """Duck, resume or fall silent from `slot` on, and let the room answer to that."""
        match event:
            case DuckDue():
                self._outcome.ducks += 1
                self._hush(slot)
            case ResumeDue():
                self._go_on(slot)
            case BargeInDue():
                self._outcome.barge_ins += 1
                self._hush(slot)
                self._playing[slot:] = False
                self._go_on(slot + _SILENCED_SLOTS)

    def _hush(self, slot: int) -> None:
        """Fade out; what was to be said is held."""
        if self._held is None:
            at = slot * _FAR_SLOT
            self._held = self._far[at:].copy(), self._playing[slot:].copy()
            self._far[at + _FAR_SLOT :] = 0.0
            self._far[at : at + _FAR_SLOT] *= _FADE[: len(self._far) - at]
            self._playing[slot:] = True
            self._record()

    def _go_on(self, slot: int) -> None:
        """Say from `slot` on what is held."""
        if self._held is not None:
            (far, playing), self._held = self._held, None
            at = slot * _FAR_SLOT
            self._far[at:] = far[: len(self._far[at:])]
            self._playing[slot:] = playing[: len(self._playing[slot:])]
            self._record()

    def _record(self) -> None:
        """All of the microphone anew: the same seeds answer the same to what was heard so far."""
        self._mic = self._room.record(self._far)


def listen_to_itself(
    seconds: float, seed: int, make: Callable[[], EchoCanceller], call_s: float = 45.0
) -> Outcome:
    """Calls one after the other until the agent has played for so many seconds in all."""
    model, whole, number = SileroModel(), Outcome(), 0
    while whole.played_s < seconds:
        random = np.random.default_rng((seed, number))
        whole.add(Call(random, model, make()).run(call_s))
        number += 1
    return whole
