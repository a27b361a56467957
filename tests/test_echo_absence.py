"""A client whose microphone does not hear the agent: that is found out, used, and unlearnt."""

from collections.abc import Iterator
from itertools import count

import numpy as np
import pytest

from agent.media.audio import Resampler
from agent.media.barge_in import BargeIn, BargeInDue
from agent.media.echo_absence import LATEST_ECHO_S, EchoAbsence
from agent.media.echo_canceller import DELAY_SAMPLES, Aec3
from agent.media.front_end import FrontEnd
from agent.media.units import UnitBuilder
from agent.media.vad import SileroModel, SileroVad
from agent.types import MIC_FRAME_SAMPLES, MIC_RATE_HZ, AudioFrame, FloatArray
from tests.rig.voices import say, talk

FRAMES_A_S = 100
NOISE_DBFS = -65.0
QUIET, LOUD = 10**-6.5, 10**-2.5


class World:
    """An agent that talks without end, and a microphone that may hear it `delay_s` later."""

    def __init__(self, *, echo_db: float | None, delay_s: float = 0.15, echo_from_s: float = 0):
        self.canceller = Aec3()
        self._sent = talk(30, 24_000)
        resampler = Resampler(24_000, MIC_RATE_HZ)
        back = np.concatenate((resampler.push(self._sent), resampler.finish()))
        noise = np.random.default_rng(5).standard_normal(30 * MIC_RATE_HZ)
        self.mic: FloatArray = (noise * 10 ** (NOISE_DBFS / 20)).astype(np.float32)
        if echo_db is not None:
            begin, late = int(echo_from_s * MIC_RATE_HZ), int(delay_s * MIC_RATE_HZ)
            echo = np.concatenate((np.zeros(late, np.float32), back))[: len(self.mic)]
            self.mic[begin:] += echo[begin:] * np.float32(10 ** (-echo_db / 20))

    def user_says(self, text: str, at_s: float, level_dbfs: float = -25) -> None:
        voice = say(text, MIC_RATE_HZ, "en-gb+m3", level_dbfs)
        begin = int(at_s * MIC_RATE_HZ)
        self.mic[begin : begin + len(voice)] += voice

    def frames(self, seconds: float) -> Iterator[FloatArray]:
        """The microphone's, 10 ms each; what is sent meanwhile goes to the canceller first."""
        for at in range(int(seconds * FRAMES_A_S)):
            if at % 2 == 0:
                sound = self._sent[at * 240 : at * 240 + 480]
                self.canceller.push_far(AudioFrame(sound, 24_000, at * 240))
            yield self.mic[at * MIC_FRAME_SAMPLES : (at + 1) * MIC_FRAME_SAMPLES]

    def known(self, seconds: float) -> list[bool]:
        """After each frame, whether there is known to be no echo."""
        told = []
        for frame in self.frames(seconds):
            self.canceller.cancel(frame)
            told.append(self.canceller.no_echo)
        return told


def test_the_microphone_goes_through_where_no_echo_comes_back() -> None:
    world = World(echo_db=None)
    world.user_says("Could you tell me when the next train leaves?", 4.0)
    out = np.concatenate([world.canceller.cancel(frame) for frame in world.frames(8)])
    begin = 3 * MIC_RATE_HZ
    plain = world.mic[begin - DELAY_SAMPLES : len(out) - DELAY_SAMPLES]
    assert np.array_equal(out[begin:], plain)


@pytest.mark.parametrize("delay_s", [0.0, 0.15, 0.7, 1.0])
@pytest.mark.parametrize("echo_db", [0, 20, 35])
def test_an_echo_that_can_be_heard_is_never_taken_for_none(delay_s: float, echo_db: float) -> None:
    assert not any(World(echo_db=echo_db, delay_s=delay_s).known(6))


def test_an_echo_that_begins_later_is_found() -> None:
    told = World(echo_db=12, echo_from_s=6).known(9)
    assert told[6 * FRAMES_A_S - 1] and not told[-1]


def test_an_agent_without_echo_is_interrupted_from_the_third_second_on() -> None:
    world = World(echo_db=None)
    world.user_says("Could you tell me when the next train leaves?", 3.0)
    front_end = FrontEnd(world.canceller, SileroVad(SileroModel()), UnitBuilder(), BargeIn())
    due = [
        event.at / MIC_RATE_HZ
        for at, frame in zip(count(), world.frames(6), strict=False)
        for event in front_end.push(AudioFrame(frame, MIC_RATE_HZ, at * MIC_FRAME_SAMPLES), True)
        if isinstance(event, BargeInDue)
    ]
    assert due and 3.0 < due[0] < 4.0


# ---- both ends' loudness alone ----------------------------------------------------------------


def fed(
    absence: EchoAbsence, near: float, far: float, seconds: float, *, found: bool = False
) -> bool:
    for _ in range(int(seconds * FRAMES_A_S)):
        absence.push(near, far, found=found)
    return absence.is_known


def test_it_takes_speech_that_the_latest_echo_could_have_answered() -> None:
    absence = EchoAbsence()
    assert not fed(absence, QUIET, LOUD, LATEST_ECHO_S)
    assert fed(absence, QUIET, LOUD, 0.5)


def test_a_silent_agent_tells_nothing() -> None:
    assert not fed(EchoAbsence(), QUIET, 0.0, 60)


def test_a_user_who_speaks_puts_it_off() -> None:
    absence = EchoAbsence()
    fed(absence, QUIET, LOUD, 1.0)
    assert not fed(absence, LOUD, LOUD, 1.0)
    assert fed(absence, QUIET, LOUD, LATEST_ECHO_S + 0.5)


def test_who_speaks_once_it_is_known_changes_nothing_and_an_echo_that_is_found_does() -> None:
    absence = EchoAbsence()
    fed(absence, QUIET, LOUD, 2.0)
    assert fed(absence, LOUD, LOUD, 3.0)
    assert not fed(absence, QUIET, LOUD, 0.01, found=True)
    assert not fed(absence, QUIET, LOUD, 5.0, found=True)
