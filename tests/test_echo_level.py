import numpy as np
from scipy import signal

from agent.media.audio import level_dbfs
from agent.media.barge_in import BargeIn, DuckDue
from agent.media.echo_canceller import Aec3
from agent.media.echo_level import LEAST_DB, MOST_DB, EchoLevel
from agent.media.front_end import FrontEnd
from agent.media.units import UnitBuilder
from agent.media.vad import SileroModel, SileroVad
from agent.types import AudioFrame, FloatArray

SLOT = 160
DELAY_SLOTS = 12
ECHO_DB = -10.0


def speech_like(seed: int, slots: int) -> FloatArray:
    """Noise that rises and falls by 20 dB several times a second, with pauses: [slots, 160]."""
    random = np.random.default_rng(seed)
    time_s = np.arange(slots) / 100
    swell = sum(np.sin(2 * np.pi * hz * time_s + random.uniform(0, 6.28)) for hz in (0.7, 2.3, 4.1))
    gain = 10 ** ((-23 + 8 * np.asarray(swell)) / 20)
    noise = random.standard_normal((slots, SLOT)) * gain[:, None] * 0.5
    return noise.astype(np.float32)


class Call:
    """An agent, its echo 120 ms later and 10 dB down, and what else is in the microphone."""

    def __init__(self, slots: int, echo_db: float = ECHO_DB) -> None:
        self.sent = speech_like(1, slots)
        silence = np.zeros((DELAY_SLOTS, SLOT), np.float32)
        room = np.random.default_rng(2).standard_normal((slots, SLOT)).astype(np.float32) * 3e-4
        self.echo = np.concatenate((silence, self.sent))[:slots] * 10 ** (echo_db / 20)
        self.mic = (self.echo + room).astype(np.float32)

    def run(self, *, learn_until: int | None = None) -> FloatArray:
        """What is told of every slot."""
        level = EchoLevel()
        told = []
        for at, near in enumerate(self.mic):
            first = max(0, at - DELAY_SLOTS - 4)
            window = self.sent[first : max(1, at - DELAY_SLOTS + 5)]
            power = float(np.mean(window**2, axis=1).max())
            alone = learn_until is None or at < learn_until
            told.append(level.push(near, power, echo_alone=alone))
        return np.array(told, np.float32)


def runs(told: FloatArray) -> float:
    """The highest sum that the excess reaches, three slots being a frame of the detector."""
    highest = total = 0.0
    for over_db in told:
        total = max(0.0, total + float(over_db) / 3)
        highest = max(highest, total)
    return highest


def test_an_agent_alone_does_not_exceed_its_own_echo() -> None:
    told = Call(3000).run()
    assert runs(told[200:]) < 4.0
    assert np.mean(told[200:] > 0) < 0.06


def test_a_voice_hardly_louder_than_the_echo_exceeds_it_in_the_gaps() -> None:
    call = Call(2000)
    voice = speech_like(7, 60)
    voice *= 10 ** ((level_dbfs(call.echo.ravel()) + 2 - level_dbfs(voice.ravel())) / 20)
    call.mic[1500:1560] += voice
    told = call.run(learn_until=1500)
    assert runs(told[1500:1560]) > 12.0
    assert runs(told[1000:1500]) < 4.0


def test_how_much_comes_back_is_learnt_in_any_room() -> None:
    for echo_db in (0.0, -6.0, -20.0):
        assert runs(Call(2000, echo_db).run()[200:]) < 4.0


def test_the_rooms_own_noise_is_not_above_the_echo_of_a_silent_agent() -> None:
    call = Call(1500)
    call.sent[1000:] = 0.0
    call.mic[1000 + DELAY_SLOTS :] -= call.echo[1000 + DELAY_SLOTS :]
    told = call.run()
    assert np.all(told[1100:] <= 0.0)
    call.mic[1300:1310] += speech_like(3, 10)
    assert np.all(call.run()[1301:1309] == MOST_DB)


def test_nothing_is_told_before_enough_was_learnt() -> None:
    told = Call(600).run()
    assert np.all(told[:100] == LEAST_DB)
    assert np.any(told[200:] != LEAST_DB)


def test_without_a_known_delay_nothing_exceeds() -> None:
    level = EchoLevel()
    loud = np.full(SLOT, 0.5, np.float32)
    assert {level.push(loud, None, echo_alone=True) for _ in range(300)} == {LEAST_DB}


# ---- in the front end -------------------------------------------------------------------------


class Greedy:
    """A canceller that leaves nothing of a voice as long as there is echo, after 120 ms."""

    delay_samples = 0
    erle_db = 40.0
    delay_ms = 120.0
    no_echo = False

    def __init__(self, sent: FloatArray) -> None:
        self._sent = sent
        self._at = 0

    @property
    def sent_power(self) -> float | None:
        first = max(0, self._at - 1 - DELAY_SLOTS - 4)
        window = self._sent[first : max(1, self._at - DELAY_SLOTS + 4)]
        return float(np.mean(window**2, axis=1).max())

    def push_far(self, frame: AudioFrame) -> None:
        """Known already."""

    def cancel(self, near: FloatArray) -> FloatArray:
        self._at += 1
        return near * np.float32(1e-3)


def ducks(call: Call) -> list[float]:
    """When the agent would fall silent, in slots; it never does."""
    greedy = Greedy(call.sent)
    front_end = FrontEnd(greedy, SileroVad(SileroModel()), UnitBuilder(), BargeIn())
    events = [
        event
        for at, near in enumerate(call.mic)
        for event in front_end.push(AudioFrame(near, 16_000, at * SLOT), True)
    ]
    return [event.at / SLOT for event in events if isinstance(event, DuckDue)]


def test_the_agent_falls_silent_for_a_voice_of_which_the_canceller_leaves_nothing() -> None:
    call = Call(2000)
    assert ducks(call) == []
    voice = speech_like(7, 60)
    call.mic[1500:1560] += voice * 10 ** (
        (level_dbfs(call.echo.ravel()) + 3 - level_dbfs(voice.ravel())) / 20
    )
    assert [1500 < at < 1550 for at in ducks(call)][:1] == [True]


def test_the_canceller_tells_what_the_microphone_may_hear_an_echo_of() -> None:
    sent = speech_like(1, 800).ravel()
    far = signal.resample_poly(sent, 3, 2).astype(np.float32)
    mic = np.concatenate((np.zeros(DELAY_SLOTS * SLOT, np.float32), sent * np.float32(0.3)))
    canceller, told = Aec3(), []
    for at in range(780):
        if at % 2 == 0:
            canceller.push_far(AudioFrame(far[at * 240 : at * 240 + 480], 24_000, at * 240))
        canceller.cancel(mic[at * SLOT : at * SLOT + SLOT])
        told.append(canceller.sent_power)
    assert told[0] is None
    powers = np.mean(sent.reshape(-1, SLOT) ** 2, axis=1)
    for at in range(600, 780):
        begin = at - DELAY_SLOTS
        known = told[at]
        assert known is not None
        assert 0.8 * powers[begin - 2 : begin + 3].max() <= known
        assert known <= 1.2 * powers[begin - 6 : begin + 7].max()
