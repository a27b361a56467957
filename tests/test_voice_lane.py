"""The vocoder's lane: sound of many turns at once, everything else one by one."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from agent.duplex.answer_speech import OpenVoice
from agent.duplex.lanes import EagerLane
from agent.duplex.voice_lane import PrepareVoice, VoiceLane
from agent.duplex.work import Voice, Work
from agent.errors import VocoderError
from agent.interfaces import VocoderPush
from agent.types import FloatArray
from tests.rig.late_desk import Desk
from tests.rig.late_lanes import Watch
from tests.rig.scripted_call import SETTINGS, Beeper
from tests.rig.tiny_mind import runner, says, second


@dataclass
class Answers:
    """A batch whose sounds are there when they were asked for so often."""

    sounds: list[FloatArray | VocoderError]
    error: Exception | None = None
    patience: int = 3
    asked: int = 0

    @property
    def done(self) -> bool:
        self.asked += 1
        return self.asked >= self.patience

    def take(self) -> Sequence[FloatArray | VocoderError]:
        if self.error is not None:
            raise self.error
        return self.sounds


@dataclass
class Chorus(Beeper):
    """Beeps for many turns at once."""

    most_pushes: int = 3
    patience: int = 3
    batches: list[list[VocoderPush]] = field(default_factory=list)
    prepared: list[str] = field(default_factory=list)
    begin_error: Exception | None = None
    take_error: Exception | None = None
    fails: Any = None

    def prepare(self, voice: str) -> None:
        self.prepared.append(voice)

    def begin(self, pushes: Sequence[VocoderPush]) -> Answers:
        if self.begin_error is not None:
            raise self.begin_error
        self.batches.append([*pushes])
        sounds = [self._sound(push) for push in pushes]
        return Answers(sounds, self.take_error, self.patience)

    def _sound(self, push: VocoderPush) -> FloatArray | VocoderError:
        if push.stream is self.fails:
            return VocoderError("not finite")
        tokens = push.stream.push(push.tokens) if push.tokens else np.zeros(0, np.float32)
        return np.concatenate([tokens, push.stream.finish()]) if push.last else tokens


@pytest.fixture
def chorus() -> Chorus:
    return Chorus()


@pytest.fixture
def lane(chorus: Chorus) -> VoiceLane:
    used = runner()
    return VoiceLane(EagerLane(used.model, used.slots), chorus)


def test_the_sound_of_many_turns_is_asked_for_at_once(lane: VoiceLane, chorus: Chorus) -> None:
    works = [Voice(chorus.open(""), (1,)), Voice(chorus.open(""), (2, 3), last=True)]
    batch = lane.begin(works)
    assert not batch.done and works[0].samples.size == 0
    assert batch.finish() == {}
    assert [len(one.samples) for one in works] == [960, 2 * 960 + 480]
    assert [(push.tokens, push.last) for push in chorus.batches[0]] == [
        ((1,), False),
        ((2, 3), True),
    ]


def test_as_many_go_together_as_the_vocoder_takes_and_no_turn_twice(
    lane: VoiceLane, chorus: Chorus
) -> None:
    streams = [chorus.open("") for _ in range(4)]
    works: list[Work] = [Voice(one, (1,)) for one in streams]
    assert lane.count(works) == 3
    assert lane.count([works[0], Voice(streams[0], last=True), works[1]]) == 1
    opening = OpenVoice(lambda: chorus.open(""))
    assert lane.count([works[0], opening, works[1]]) == 1
    assert lane.count([opening, opening]) == 1


def test_voices_are_prepared_and_opened_here_and_now(lane: VoiceLane, chorus: Chorus) -> None:
    preparing, opening = PrepareVoice(chorus, "anna"), OpenVoice(lambda: chorus.open("anna"))
    for work in (preparing, opening):
        batch = lane.begin([work])
        assert batch.done and batch.finish() == {}
    assert chorus.prepared == ["anna"] and opening.stream is not None


def test_what_fails_of_one_turn_costs_that_one_its_sound(lane: VoiceLane, chorus: Chorus) -> None:
    works = [Voice(chorus.open(""), (1,)), Voice(chorus.open(""), (2,))]
    chorus.fails = works[0].stream
    assert lane.begin(works).finish() == {}
    assert isinstance(works[0].error, VocoderError) and works[1].error is None
    assert works[0].samples.size == 0 and works[1].samples.size


@pytest.mark.parametrize("at", ["begin_error", "take_error"])
def test_what_fails_of_all_turns_costs_each_its_sound_and_a_broken_device_everything(
    lane: VoiceLane, chorus: Chorus, at: str
) -> None:
    works = [Voice(chorus.open(""), (1,)), Voice(chorus.open(""), (2,))]
    setattr(chorus, at, RuntimeError("CUDA error: out of memory"))
    assert lane.begin(works).finish() == {}
    assert all(isinstance(one.error, VocoderError) for one in works)
    setattr(chorus, at, RuntimeError("CUDA error: an illegal memory access"))
    with pytest.raises(RuntimeError, match="illegal"):
        lane.begin(works).finish()


def test_a_voice_that_cannot_be_prepared_is_kept_as_an_error(
    lane: VoiceLane, chorus: Chorus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Chorus, voice: str) -> None:
        raise VocoderError("no such voice")

    monkeypatch.setattr(Chorus, "prepare", fail)
    preparing = PrepareVoice(chorus, "anna")
    assert lane.begin([preparing]).finish() == {}
    assert isinstance(preparing.error, VocoderError)


def test_calls_speak_through_it_as_they_do_without_and_their_words_come_before_the_sound() -> None:
    def desk(vocoder: Beeper) -> Desk:
        scripts = [iter([*says("ab"), *says("c", ends=True)]) for _ in range(3)]
        watch = Watch(random.Random(2)) if isinstance(vocoder, Chorus) else None
        made = Desk(*scripts, watch=watch, slots=3, vocoder=vocoder)
        if isinstance(vocoder, Chorus):
            eager = EagerLane(made.engine._parts.runner.model, made.slots)
            made.engine._loop._stations["voice"].lane = VoiceLane(eager, vocoder)
        for number in (1, 2, 3):
            made.engine.open(number, SETTINGS)
            for index in range(5):
                made.engine.push(number, second(index))
        made.work()
        return made

    chorus = Chorus(patience=60)
    ours, theirs = desk(chorus), desk(Beeper())
    assert all(ours.of(number) == theirs.of(number) for number in (1, 2, 3))
    kinds = [type(event).__name__ for event in ours.of(1)]
    assert kinds.index("TextDelta") < kinds.index("SpeechAudio")
    assert max(map(len, chorus.batches)) == 2
