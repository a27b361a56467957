from dataclasses import replace

import numpy as np
import pytest

from agent.interfaces import EchoCanceller
from agent.media.audio import level_dbfs
from agent.media.barge_in import BargeIn
from agent.media.echo_canceller import Aec3, PassThrough
from agent.media.front_end import BargeInDue, DuckDue, FrontEnd, FrontEndEvent, ResumeDue
from agent.media.units import UnitBuilder
from agent.media.vad import Judged, SileroModel, SileroVad
from agent.types import (
    AudioFrame,
    SessionSettings,
    SpeechEnded,
    SpeechStarted,
    TurnDetection,
    Unit,
    VideoFrame,
)
from tests.rig.echo_path import EchoPath
from tests.rig.voices import USER_TEXT, say, talk

SETTINGS = SessionSettings(model="echo")


class Doubling(PassThrough):
    """A canceller whose output tells itself from its input."""

    def cancel(self, near: np.ndarray) -> np.ndarray:
        return 2 * near


class WrittenDetector:
    """Reports what was written down, each at its sample, and in between is sure of it."""

    def __init__(self, script: dict[int, SpeechStarted | SpeechEnded] | None = None) -> None:
        self._script = script or {}
        self._position = 0
        self._judged: list[Judged] = []
        self.speaking = False
        self.voiced_until = 0
        self.detections: list[TurnDetection | None] = []

    def push(self, samples: np.ndarray) -> list[SpeechStarted | SpeechEnded]:
        before, self._position = self._position, self._position + len(samples)
        if self._position // 512 > before // 512:
            until = self._position // 512 * 512
            self._judged.append(Judged(until, 0.99 if self.speaking else 0.01))
            self.voiced_until = until if self.speaking else self.voiced_until
        event = self._script.get(self._position)
        if event is None:
            return []
        self.speaking = isinstance(event, SpeechStarted)
        self.voiced_until = self._position
        return [event]

    def take_judged(self) -> list[Judged]:
        judged, self._judged = self._judged, []
        return judged

    def update(self, detection: TurnDetection | None) -> None:
        self.detections.append(detection)


def make(
    canceller: EchoCanceller | None = None, detector: WrittenDetector | None = None
) -> FrontEnd:
    parts = canceller or PassThrough(), detector or WrittenDetector()
    return FrontEnd(*parts, UnitBuilder(), BargeIn())


def mic_frame(start: int, value: float = 1.0) -> AudioFrame:
    return AudioFrame(np.full(160, value, np.float32), 16_000, start)


def hear(
    front_end: FrontEnd, frames: int, start: int = 0, *, playing: bool = False, value: float = 1.0
) -> list[FrontEndEvent]:
    events: list[FrontEndEvent] = []
    for index in range(frames):
        events += front_end.push(mic_frame(start + index * 160, value), playing)
    return events


def units(events: list[FrontEndEvent]) -> list[Unit]:
    return [event for event in events if isinstance(event, Unit)]


# ---- a call with an echo --------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> SileroModel:
    return SileroModel()


class Room:
    """Agent, room and front end: the far end in 20 ms, the microphone in bursts of frames."""

    def __init__(self, model: SileroModel, canceller: EchoCanceller, burst_frames: int = 2) -> None:
        self._front_end = FrontEnd(canceller, SileroVad(model), UnitBuilder(), BargeIn())
        self._front_end.update(SETTINGS)
        self._burst_frames = burst_frames
        self._waiting: list[AudioFrame] = []
        self._start = 0

    def run(
        self, far: np.ndarray, mic: np.ndarray, stalls: dict[int, str] | None = None
    ) -> list[FrontEndEvent]:
        """`stalls`: at that 10 ms frame the microphone stalls for 300 ms, and then?"""
        stall_at = {at + 2 * n: how for at, how in (stalls or {}).items() for n in range(15)}
        events: list[FrontEndEvent] = []
        for slot in range(len(far) // 480):
            sent = AudioFrame(far[slot * 480 : slot * 480 + 480], 24_000, slot * 480)
            self._front_end.push_far(sent)
            how = stall_at.get(2 * slot, "")
            for begin in (slot * 320, slot * 320 + 160):
                self._capture(mic[begin : begin + 160], how)
            if not how and (2 * slot + 2) % self._burst_frames == 0:
                for frame in self._waiting:
                    events += self._front_end.push(frame, agent_playing=True)
                self._waiting = []
        return events

    def _capture(self, samples: np.ndarray, stalled: str) -> None:
        """A stall makes frames late, skips them, or skips them and says so by their `start`."""
        if stalled in ("", "late"):
            self._waiting.append(AudioFrame(samples, 16_000, self._start))
        if stalled != "skipped":
            self._start += 160


def starts(events: list[FrontEndEvent]) -> list[float]:
    return [event.at / 16_000 for event in events if isinstance(event, SpeechStarted)]


@pytest.mark.parametrize(
    ("delay_ms", "voice", "burst_frames"),
    [(60, "en-us", 2), (180, "en-gb+f3", 4), (280, "en-us", 4)],
)
def test_a_minute_of_the_agents_own_voice_opens_no_speech(
    model: SileroModel, delay_ms: int, voice: str, burst_frames: int
) -> None:
    far = talk(60, 24_000, voice)
    room = Room(model, Aec3(), burst_frames)
    stalls = {2000: "late", 3000: "skipped", 4000: "marked"}
    events = room.run(far, EchoPath(delay_ms).record(far), stalls)
    assert starts(events) == []
    assert not [event for event in events if isinstance(event, BargeInDue)]
    # Where the microphone loses sound without a word the echo has to be found anew.
    after_skip = range(30 * 16_000, 32 * 16_000)
    ducks = [event.at for event in events if isinstance(event, DuckDue)]
    assert [at for at in ducks if at not in after_skip] == []


def test_without_canceller_that_voice_is_taken_for_the_users(model: SileroModel) -> None:
    far = talk(6, 24_000)
    events = Room(model, PassThrough()).run(far, EchoPath().record(far))
    assert starts(events)
    assert [event for event in events if isinstance(event, BargeInDue)]


@pytest.mark.parametrize("delay_ms", [60, 200])
@pytest.mark.parametrize("user_voice", ["en-us+m3", "en-gb+f2"])
def test_user_over_the_agent_is_found_and_silences_it(
    model: SileroModel, delay_ms: int, user_voice: str
) -> None:
    far = talk(12, 24_000)
    mic = EchoPath(delay_ms).record(far)
    user = say(USER_TEXT, 16_000, user_voice, level_dbfs(mic) + 8)
    onset = 7 * 16_000
    mic[onset : onset + len(user)] += user
    events = [event for event in Room(model, Aec3()).run(far, mic) if not isinstance(event, Unit)]
    assert isinstance(events[0], DuckDue)
    assert 0 < events[0].at - onset < 0.25 * 16_000
    started = next(event for event in events if isinstance(event, SpeechStarted))
    assert abs(started.at + 0.3 * 16_000 - onset) < 0.4 * 16_000
    interrupted = next(event for event in events if isinstance(event, BargeInDue))
    assert 0.5 * 16_000 < interrupted.at - onset < 1.0 * 16_000


def test_a_backchannel_over_the_agent_only_ducks_it(model: SileroModel) -> None:
    far = talk(12, 24_000)
    mic = EchoPath(60).record(far)
    word = say("Yeah.", 16_000, "en-us+m3", level_dbfs(mic) + 8)
    mic[7 * 16_000 : 7 * 16_000 + len(word)] += word
    events = Room(model, Aec3()).run(far, mic)
    decisions = [event for event in events if isinstance(event, DuckDue | ResumeDue | BargeInDue)]
    ducked, resumed = decisions
    assert isinstance(ducked, DuckDue)
    assert isinstance(resumed, ResumeDue)
    assert resumed.at - (7 * 16_000 + len(word)) < 0.2 * 16_000


# ---- the parts in order -----------------------------------------------------------------------


def test_every_second_gives_a_unit_and_finish_the_rest() -> None:
    front_end = make()
    got = hear(front_end, 250)
    assert [unit.index for unit in units(got)] == [0, 1]
    (rest,) = units(front_end.finish())
    assert (rest.index, rest.samples_valid) == (2, 8000)
    assert make().finish() == []


def melody(frames: int) -> list[float]:
    """The level of a voice, frame by frame: it rises and falls."""
    return [0.05 * (1 + (frame // 5) % 3) for frame in range(frames)]


def speak(front_end: FrontEnd, frames: int, start: int) -> list[FrontEndEvent]:
    """A voice over the agent, from sample `start` on."""
    events: list[FrontEndEvent] = []
    for index, value in enumerate(melody(frames)):
        events += front_end.push(mic_frame(start + index * 160, value), True)
    return events


def test_a_duck_comes_first_and_speech_before_its_barge_in_and_both_before_the_unit() -> None:
    detector = WrittenDetector({48_000: SpeechStarted(44_000)})
    front_end = make(detector=detector)
    got = hear(front_end, 300, playing=True, value=0.0)
    got += speak(front_end, 100, 48_000)
    kinds = [type(event) for event in got[2:]]
    assert kinds == [SpeechStarted, Unit, DuckDue, BargeInDue, Unit]


def test_units_hear_the_bare_microphone_while_the_agent_is_ducked() -> None:
    class Known(Doubling):
        delay_ms = 100.0

    detector = WrittenDetector({48_000: SpeechStarted(44_000), 56_000: SpeechEnded(55_000)})
    front_end = make(Known(), detector)
    hear(front_end, 300, playing=True, value=0.0)
    got = speak(front_end, 50, 48_000) + hear(front_end, 50, 56_000, playing=True, value=0.001)
    ducked, resumed = (
        next(event.at for event in got if isinstance(event, kind)) for kind in (DuckDue, ResumeDue)
    )
    spoken = np.repeat(np.array([*melody(50), *[0.001] * 50], np.float32), 160)
    ratio = units(got)[-1].audio / spoken
    # The echo of what was sent before the duck still comes in for a while: 100 ms, and the room.
    bare = np.flatnonzero(np.isclose(ratio, 1.0)) + 48_000
    assert 0.3 * 16_000 < bare[0] - ducked < 0.4 * 16_000
    assert 0 <= resumed - bare[-1] < 0.02 * 16_000
    assert len(bare) > 0.1 * 16_000


def test_finish_ends_speech_that_is_still_open() -> None:
    front_end = make(detector=WrittenDetector({1600: SpeechStarted(0)}))
    assert hear(front_end, 20) == [SpeechStarted(0)]
    ended, rest = front_end.finish()
    assert ended == SpeechEnded(6 * 512)
    assert isinstance(rest, Unit)


def test_units_hear_the_bare_microphone_until_the_agent_plays_and_again_a_second_after() -> None:
    front_end = make(Doubling())
    got = hear(front_end, 100)
    got += hear(front_end, 50, start=16_000, playing=True)
    got += hear(front_end, 250, start=24_000)
    heard = np.concatenate([unit.audio for unit in units(got)])
    assert (heard[:16_000] == 1).all()
    assert (heard[16_160 : 24_000 + 15_840] == 2).all()
    assert (heard[24_000 + 16_000 :] == 1).all()
    up, down = heard[16_000:16_160], heard[24_000 + 15_840 : 24_000 + 16_000]
    assert np.all(np.diff(up) > 0)
    assert np.all(np.diff(down) < 0)
    assert np.abs(np.diff(heard)).max() < 0.02


def test_a_change_over_cuts_nothing_out_of_a_word() -> None:
    class Delaying(PassThrough):
        delay_samples = 128

        def __init__(self) -> None:
            self._line = np.zeros(128, np.float32)

        def cancel(self, near: np.ndarray) -> np.ndarray:
            line = np.concatenate((self._line, near))
            self._line = line[160:]
            return line[:160]

    front_end = make(Delaying())
    word = np.arange(64_000, dtype=np.float32) / 64_000
    got: list[FrontEndEvent] = []
    for start in range(0, len(word), 160):
        playing = 8000 <= start < 24_000
        got += front_end.push(AudioFrame(word[start : start + 160], 16_000, start), playing)
    heard = np.concatenate([unit.audio for unit in units(got)])
    np.testing.assert_allclose(heard[128:], word[:-128], atol=1e-6)


def test_speech_is_looked_for_without_echo() -> None:
    heard: list[float] = []

    class Listening(WrittenDetector):
        def push(self, samples: np.ndarray) -> list[SpeechStarted | SpeechEnded]:
            heard.append(float(samples[0]))
            return []

    hear(make(Doubling(), Listening()), 3)
    assert heard == [2.0, 2.0, 2.0]


def test_far_end_and_erle_are_the_cancellers() -> None:
    far: list[AudioFrame] = []

    class Measuring(PassThrough):
        erle_db = 12.5
        delay_ms = 140.0

        def push_far(self, frame: AudioFrame) -> None:
            far.append(frame)

    class Plain:
        delay_samples = 0

        def push_far(self, frame: AudioFrame) -> None: ...

        def cancel(self, near: np.ndarray) -> np.ndarray:
            return near

    front_end = make(Measuring())
    frame = AudioFrame(np.zeros(480, np.float32), 24_000, 0)
    front_end.push_far(frame)
    assert far == [frame]
    assert front_end.erle_db == 12.5
    assert front_end.echo_delay_ms == 140.0
    assert make(Plain()).erle_db == 0.0
    assert make(Plain()).echo_delay_ms == 0.0


def test_level_follows_the_microphone() -> None:
    front_end = make()
    assert front_end.near_level_dbfs == -100
    hear(front_end, 200, value=0.1)
    assert front_end.near_level_dbfs == pytest.approx(-20, abs=0.1)


@pytest.mark.parametrize(
    ("hole_samples", "filled_samples"), [(160, 160), (8000, 8000), (100, 0), (48_000, 16_000)]
)
def test_holes_of_up_to_a_second_become_silence(hole_samples: int, filled_samples: int) -> None:
    front_end = make()
    hear(front_end, 10)
    got = hear(front_end, 190, start=1600 + hole_samples) + front_end.finish()
    heard = np.concatenate([unit.audio[: unit.samples_valid] for unit in units(got)])
    expected = np.ones(200 * 160 + filled_samples)
    expected[1600 : 1600 + filled_samples] = 0
    np.testing.assert_array_equal(heard, expected)


def test_a_time_line_that_jumps_back_goes_on_without_filling() -> None:
    front_end = make()
    hear(front_end, 50, start=160_000)
    got = hear(front_end, 50) + front_end.finish()
    assert [unit.samples_valid for unit in units(got)] == [16_000]


def test_a_picture_joins_the_unit_that_its_frame_completes() -> None:
    front_end = make()
    picture = VideoFrame(np.zeros((2, 2, 3), np.uint8), 15_840)
    hear(front_end, 99)
    (unit,) = front_end.push(mic_frame(15_840), False, picture)
    assert isinstance(unit, Unit)
    assert unit.pictures == (picture,)


def test_settings_reach_detector_policy_and_units() -> None:
    detector = WrittenDetector({48_000: SpeechStarted(44_000)})
    front_end = make(detector=detector)
    polite = replace(TurnDetection(), interrupt_response=False)
    front_end.update(replace(SETTINGS, turn_detection=polite, pictures_per_unit=2))
    assert detector.detections == [polite]
    for _ in range(3):
        front_end.push(mic_frame(0), True, VideoFrame(np.zeros((1, 1, 3), np.uint8), 0))
    got = hear(front_end, 297, playing=True, value=0.0) + speak(front_end, 100, 48_000)
    assert [event for event in got if not isinstance(event, Unit)] == [SpeechStarted(44_000)]
    assert len(units(got)[0].pictures) == 2


def test_in_half_duplex_the_microphone_is_silent_while_the_agent_plays() -> None:
    front_end = make()
    front_end.update(replace(SETTINGS, mode="half_duplex"))
    got = hear(front_end, 50) + hear(front_end, 50, start=8_000, playing=True)
    (unit,) = units(got)
    assert (unit.audio[:8_000] == 1).all()
    assert (unit.audio[8_160:] == 0).all()


def test_other_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="10 ms"):
        make().push(AudioFrame(np.zeros(320, np.float32), 16_000, 0), False)
    with pytest.raises(ValueError, match="10 ms"):
        make().push(AudioFrame(np.zeros(160, np.float32), 24_000, 0), False)
