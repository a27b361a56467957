"""One simulated call: agent, network, page, room, user, and the real media plane between them.

Time goes in steps of 10 ms. Playout is pulled every 20 ms and heard in the page after the way
down; the microphone hears the room and the user, and comes in packets of 20 ms after the way up.
The loop is closed: an agent that ducks leaves its echo behind some 150 ms later.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from agent.media.barge_in import BargeInDue, DuckDue, ResumeDue
from agent.media.front_end import FrontEnd, FrontEndEvent
from agent.media.playout import Playout
from agent.types import (
    MIC_RATE_HZ,
    SPEECH_FRAME_SAMPLES,
    SPEECH_RATE_HZ,
    AudioFrame,
    FloatArray,
    SpeechAudio,
    SpeechStarted,
)
from bench.turns_room import Delay, Room, RoomTraits

STEP_S = 0.01
_STEP_SAMPLES = MIC_RATE_HZ // 100
_MAX_CALL_S = 240.0
_AFTERMATH_S = 1.2
"""So long after a sound it may still do something to the agent."""
_ANSWER_AFTER_S = 0.7


@dataclass(frozen=True, slots=True)
class Sound:
    """Something that happens at the microphone; `after_s` the agent went on since the last."""

    kind: str
    what: str
    samples: FloatArray  # [T] at 16 kHz, at its level
    over_echo_db: float
    over_user_db: float
    after_s: float

    @property
    def length_s(self) -> float:
        """From its first sample to its last."""
        return len(self.samples) / MIC_RATE_HZ


@dataclass(frozen=True, slots=True)
class Link:
    """The network, in steps of 10 ms; `phase`: which steps pull, `pull_first`: who comes first."""

    up_steps: int
    down_steps: int
    phase: int
    pull_first: bool


@dataclass(frozen=True, slots=True)
class Scene:
    """All that a call needs; `turns(n)` is what the agent says in its turn n, [T] at 24 kHz."""

    room: RoomTraits
    link: Link
    turns: Callable[[int], FloatArray]
    question: Sound | None
    sounds: tuple[Sound, ...]
    one_step: bool = False


@dataclass(slots=True)
class Outcome:
    """What a sound did, as heard in the page; times in seconds since the call began."""

    sound: Sound
    onset_s: float
    silences: list[list[float]] = field(default_factory=list)
    """When the agent fell silent and, when it did, went on again."""
    flushed_s: float | None = None

    @property
    def end_s(self) -> float:
        """When the sound faded."""
        return self.onset_s + self.sound.length_s


@dataclass(slots=True)
class Record:
    """What came of a call. `rendered` holds each turn as the page played it, at 24 kHz."""

    outcomes: list[Outcome] = field(default_factory=list)
    undisturbed_s: float = 0.0
    stray_ducks: int = 0
    stray_flushes: int = 0
    leaked_frames: int = 0
    rendered: list[FloatArray] = field(default_factory=list)
    flushed_turns: list[int] = field(default_factory=list)


class Call:
    """Carries a `Scene` through; `run` it once."""

    def __init__(self, scene: Scene, front_end: FrontEnd) -> None:
        self._scene = scene
        self._front_end = front_end
        self._playout = Playout(max_queued_ms=120_000)
        self._playout.tap(front_end.push_far)
        self._room = Room(scene.room, scene.turns(0))
        quiet = np.zeros(SPEECH_FRAME_SAMPLES, np.float32)
        self._down = Delay(max(0, scene.link.down_steps // 2), quiet)
        self._up: deque[tuple[int, FloatArray]] = deque()
        self._packet: FloatArray = np.zeros(0, np.float32)
        self._mic: FloatArray = np.zeros(0, np.float32)
        self._near: FloatArray = np.zeros(0, np.float32)
        self._step = 0
        self._mic_samples = 0
        self._turn = 0
        self._answer_at: float | None = 0.0
        self._in_turn = False
        self._pieces: list[FloatArray] = []
        self._was_ducked = False
        self._current: Outcome | None = None
        self.record = Record()

    def run(self) -> Record:
        """The whole call."""
        script = self._script()
        done = False
        while not done and self._now_s < _MAX_CALL_S:
            done = next(script)
            self._advance()
        self._finish_turn(flushed=True)
        return self.record

    @property
    def _now_s(self) -> float:
        return self._step * STEP_S

    # ---- what the user does -------------------------------------------------------------------

    def _script(self) -> Iterator[bool]:
        """Makes each sound in its time; yields once a step, True at the end."""
        if self._scene.question is not None:
            yield from self._ask(self._scene.question)
        for sound in self._scene.sounds:
            yield from self._await_agent(sound.after_s)
            yield from self._make(sound)
        yield True

    def _ask(self, question: Sound) -> Iterator[bool]:
        """The greeting plays out; the user asks; the agent answers."""
        while self._turn == 0 or self._playout.playing or self._playout.queued_ms:
            yield False
        self._answer_at = None
        yield from self._pause(0.5)
        self._near = question.samples
        yield from self._pause(question.length_s)
        self._answer_at = self._now_s + _ANSWER_AFTER_S

    def _await_agent(self, seconds: float) -> Iterator[bool]:
        """Until the agent has been heard for so long without a break."""
        heard_s = 0.0
        while heard_s < seconds:
            sounding = self._playout.playing and not self._playout.ducked
            heard_s = heard_s + STEP_S if sounding else 0.0
            self.record.undisturbed_s += STEP_S if sounding else 0.0
            yield False

    def _make(self, sound: Sound) -> Iterator[bool]:
        self._near = sound.samples
        self._current = Outcome(sound, self._now_s - STEP_S)
        self.record.outcomes.append(self._current)
        yield from self._pause(sound.length_s + _AFTERMATH_S)
        self._current = None

    def _pause(self, seconds: float) -> Iterator[bool]:
        until_s = self._now_s + seconds
        while self._now_s < until_s:
            yield False

    # ---- one step of the world ----------------------------------------------------------------

    def _advance(self) -> None:
        link = self._scene.link
        self._speak()
        pulls = self._step % 2 == link.phase
        if pulls and link.pull_first:
            self._pull()
        self._hear()
        if pulls and not link.pull_first:
            self._pull()
        self._step += 1

    def _speak(self) -> None:
        """The engine: a new turn when the last is over, after a pause."""
        if self._playout.playing or self._playout.queued_ms:
            return
        if self._in_turn:
            self._finish_turn(flushed=False)
        if self._answer_at is None or self._now_s < self._answer_at:
            return
        self._turn += 1
        self._in_turn = True
        samples = self._scene.turns(self._turn - 1)
        self._playout.push(SpeechAudio(self._turn, 0, 0, samples, last=True))
        self._answer_at = self._now_s + len(samples) / SPEECH_RATE_HZ + _ANSWER_AFTER_S

    def _pull(self) -> None:
        frame = self._playout.pull()
        rendered = self._down.pass_on(frame)
        if self._in_turn:
            self._pieces.append(frame)
        if self._playout.ducked and self._was_ducked and np.abs(frame).max() > 10 ** (-60 / 20):
            self.record.leaked_frames += 1
        self._was_ducked = self._playout.ducked
        self._mic = np.concatenate((self._mic, self._room.hear(rendered)))

    def _hear(self) -> None:
        """10 ms at the microphone; a packet leaves every other time and arrives later."""
        if len(self._mic) < _STEP_SAMPLES:
            return
        block, self._mic = self._mic[:_STEP_SAMPLES].copy(), self._mic[_STEP_SAMPLES:]
        near, self._near = self._near[:_STEP_SAMPLES], self._near[_STEP_SAMPLES:]
        block[: len(near)] += near
        self._packet = np.concatenate((self._packet, block))
        if len(self._packet) == 2 * _STEP_SAMPLES:
            self._up.append((self._step + self._scene.link.up_steps, self._packet))
            self._packet = self._packet[:0]
        while self._up and self._up[0][0] <= self._step:
            self._receive(self._up.popleft()[1])

    def _receive(self, packet: FloatArray) -> None:
        for samples in np.split(packet, 2):
            frame = AudioFrame(samples, MIC_RATE_HZ, self._mic_samples)
            self._mic_samples += len(samples)
            for event in self._told(frame):
                self._obey(event)

    def _told(self, frame: AudioFrame) -> list[FrontEndEvent]:
        playing, held = self._playout.playing, self._playout.held
        return self._front_end.push(frame, playing, agent_held=held)

    def _obey(self, event: object) -> None:
        if self._scene.one_step:
            if isinstance(event, SpeechStarted) and self._playout.playing:
                self._silenced(self._flush)
            return
        if isinstance(event, DuckDue) and self._playout.duck() is not None:
            self._silenced(lambda: None)
        elif isinstance(event, ResumeDue) and self._playout.resume() is not None:
            self._resumed()
        elif isinstance(event, BargeInDue):
            self._silenced(self._flush)

    # ---- what the page hears of it ------------------------------------------------------------

    def _heard_s(self) -> float:
        """When what is pulled next begins to sound in the page."""
        wait = (self._scene.link.phase - self._step) % 2
        if wait == 0 and self._scene.link.pull_first:
            wait = 2
        return (self._step + wait + self._scene.link.down_steps) * STEP_S

    def _silenced(self, flush: Callable[[], None]) -> None:
        if not self._playout.playing:
            return
        outcome = self._current
        flushing = flush == self._flush
        if outcome is None:
            self.record.stray_ducks += not flushing
            self.record.stray_flushes += flushing
        elif not outcome.silences or len(outcome.silences[-1]) == 2:
            # The fade takes 10 ms of the first frame.
            outcome.silences.append([self._heard_s() + 0.01])
        if outcome is not None and flushing:
            outcome.flushed_s = self._heard_s() + 0.01
        flush()

    def _resumed(self) -> None:
        if self._current and self._current.silences and len(self._current.silences[-1]) == 1:
            self._current.silences[-1].append(self._heard_s())

    def _flush(self) -> None:
        self._playout.flush()
        self._finish_turn(flushed=True)
        end_s = self._current.end_s if self._current else self._now_s
        self._answer_at = max(self._now_s, end_s) + _ANSWER_AFTER_S

    def _finish_turn(self, *, flushed: bool) -> None:
        if not self._in_turn:
            return
        self._in_turn = False
        if flushed:
            self.record.flushed_turns.append(len(self.record.rendered))
        self.record.rendered.append(np.concatenate(self._pieces))
        self._pieces = []
