import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

from agent.errors import ConfigError
from agent.media.vad import Judged, SileroModel, SileroVad, packaged_model
from agent.types import SpeechEnded, SpeechStarted, TurnDetection
from tests.rig.voices import USER_TEXT, say

UNPADDED = TurnDetection(prefix_padding_ms=0)
NEAR = 3200
"""200 ms: what an onset or an end may be off, espeak's soft edges included."""


@pytest.fixture(scope="module")
def model() -> SileroModel:
    return SileroModel()


class FakeModel(SileroModel):
    """Answers with written likelihoods, one a frame, instead of listening."""

    def __init__(self, likelihoods: Iterable[float]) -> None:
        self._likelihoods = iter(likelihoods)

    def step(self, samples: np.ndarray, memory: np.ndarray) -> tuple[float, np.ndarray]:
        return next(self._likelihoods), memory


def judge(likelihoods: list[float], detection: TurnDetection = UNPADDED) -> list[object]:
    detector = SileroVad(FakeModel(likelihoods), detection)
    return list(detector.push(np.full(512 * len(likelihoods), 0.01, np.float32)))


def silence(seconds: float) -> np.ndarray:
    random = np.random.default_rng(7)
    return (1e-4 * random.standard_normal(int(16_000 * seconds))).astype(np.float32)


def test_speech_between_silences_is_one_segment_at_its_true_place(model: SileroModel) -> None:
    speech = say(USER_TEXT, 16_000)
    signal = np.concatenate((silence(1.0), speech, silence(1.5)))
    started, ended = SileroVad(model, UNPADDED).push(signal)
    assert isinstance(started, SpeechStarted) and isinstance(ended, SpeechEnded)
    assert abs(started.at - 16_000) < NEAR
    assert abs(ended.at - (16_000 + len(speech))) < NEAR


def test_in_pieces_is_in_one_go(model: SileroModel) -> None:
    signal = np.concatenate((silence(0.5), say("Hello there.", 16_000), silence(1.0)))
    whole = SileroVad(model).push(signal)
    assert len(whole) == 2
    for piece_samples in (160, 777):
        detector = SileroVad(model)
        pieces = np.split(signal, range(piece_samples, len(signal), piece_samples))
        assert [event for piece in pieces for event in detector.push(piece)] == whole


def test_noise_and_a_click_are_no_speech(model: SileroModel) -> None:
    random = np.random.default_rng(3)
    noise = (0.03 * random.standard_normal(16_000 * 4)).astype(np.float32)
    click = silence(2.0)
    click[16_000:16_160] += 0.5
    assert SileroVad(model).push(np.concatenate((noise, click))) == []


def test_starts_with_three_voiced_frames_in_a_row() -> None:
    assert judge([0.9, 0.9, 0.4, 0.9, 0.9, 0.2]) == []
    assert judge([0.0, 0.5, 0.5, 0.5]) == [SpeechStarted(512)]


def test_somebody_else_may_end_speech_and_what_follows_is_speech_anew() -> None:
    likelihoods = [0.9] * 4 + [0.1] * 4 + [0.9] * 3
    detector = SileroVad(FakeModel(likelihoods), UNPADDED)
    assert detector.end() == []
    assert detector.push(np.full(512 * 8, 0.01, np.float32)) == [SpeechStarted(0)]
    assert detector.end() == [SpeechEnded(4 * 512)]
    assert not detector.speaking and detector.end() == []
    assert detector.push(np.full(512 * 3, 0.01, np.float32)) == [SpeechStarted(8 * 512)]


def test_ends_where_the_voice_ended_once_the_silence_is_long_enough() -> None:
    # 500 ms are 16 frames; likelihoods between 0.35 and 0.5 keep a segment open.
    voiced = [0.9] * 3 + [0.4]
    assert judge(voiced + [0.3] * 15) == [SpeechStarted(0)]
    assert judge(voiced + [0.3] * 16) == [SpeechStarted(0), SpeechEnded(4 * 512)]
    assert judge(voiced + [0.3] * 15 + [0.36] + [0.3] * 15) == [SpeechStarted(0)]


def test_padding_reaches_back_but_not_into_what_was_reported() -> None:
    padded = TurnDetection(prefix_padding_ms=300, silence_duration_ms=32)
    quiet_then_voiced = [0.0] * 20 + [0.9] * 3
    assert judge(quiet_then_voiced, padded) == [SpeechStarted(20 * 512 - 4800)]
    assert judge([0.9] * 3, padded) == [SpeechStarted(0)]
    assert judge([0.9] * 3 + [0.0] * 2 + [0.9] * 3, padded) == [
        SpeechStarted(0),
        SpeechEnded(3 * 512),
        SpeechStarted(3 * 512),
    ]


@pytest.mark.parametrize(
    ("eagerness", "frames"), [("low", 32), ("auto", 16), ("medium", 16), ("high", 10)]
)
def test_eager_semantic_detection_waits_less(eagerness: str, frames: int) -> None:
    detection = replace(UNPADDED, kind="semantic_vad", eagerness=eagerness)
    assert len(judge([0.9] * 3 + [0.0] * (frames - 1), detection)) == 1
    assert len(judge([0.9] * 3 + [0.0] * frames, detection)) == 2


def test_update_changes_threshold_and_silence() -> None:
    detector = SileroVad(FakeModel([0.6] * 3 + [0.9] * 3 + [0.0] * 2), UNPADDED)
    detector.update(replace(UNPADDED, threshold=0.8, silence_duration_ms=64))
    events = detector.push(np.zeros(512 * 8, np.float32))
    assert events == [SpeechStarted(3 * 512), SpeechEnded(6 * 512)]


def test_switched_off_it_reports_nothing_and_keeps_counting() -> None:
    detector = SileroVad(FakeModel([0.9] * 6), UNPADDED)
    assert detector.push(np.zeros(512 * 3, np.float32)) == [SpeechStarted(0)]
    assert detector.speaking
    detector.update(None)
    assert not detector.speaking
    assert detector.push(np.zeros(512 * 20, np.float32)) == []
    detector.update(UNPADDED)
    assert detector.push(np.zeros(512 * 3, np.float32)) == [SpeechStarted(23 * 512)]


def test_every_frame_is_told_once_with_its_likelihood() -> None:
    detector = SileroVad(FakeModel([0.1, 0.6, 0.9]), UNPADDED)
    detector.push(np.zeros(512 * 2, np.float32))
    assert detector.take_judged() == [Judged(512, 0.1), Judged(1024, 0.6)]
    assert detector.take_judged() == []
    detector.push(np.zeros(600, np.float32))
    assert detector.take_judged() == [Judged(1536, 0.9)]
    detector.update(None)
    detector.push(np.zeros(512 * 3, np.float32))
    assert detector.take_judged() == []


def test_likelihoods_are_told_as_if_the_threshold_were_a_half() -> None:
    detector = SileroVad(FakeModel([0.0, 0.4, 0.8, 0.9, 1.0]), replace(UNPADDED, threshold=0.8))
    detector.push(np.zeros(512 * 5, np.float32))
    told = [judged.likelihood for judged in detector.take_judged()]
    assert told == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])
    for extreme in (0.0, 1.0):
        detector = SileroVad(FakeModel([0.0, 1.0]), replace(UNPADDED, threshold=extreme))
        detector.push(np.zeros(512 * 2, np.float32))
        assert [judged.likelihood for judged in detector.take_judged()] == [0.0, 1.0]


def test_frames_that_nobody_takes_do_not_pile_up() -> None:
    detector = SileroVad(FakeModel([0.1] * 100), UNPADDED)
    detector.push(np.zeros(512 * 100, np.float32))
    judged = detector.take_judged()
    assert len(judged) == 64
    assert judged[-1].until == 512 * 100


class Remembering(SileroModel):
    """Notes the age of its memory at every step, and answers with written likelihoods."""

    def __init__(self, likelihoods: Iterable[float]) -> None:
        self._likelihoods = iter(likelihoods)
        self.ages: list[int] = []

    def step(self, samples: np.ndarray, memory: np.ndarray) -> tuple[float, np.ndarray]:
        self.ages.append(int(memory[0, 0, 0]))
        return next(self._likelihoods), memory + 1


def test_after_a_second_of_quiet_the_memory_starts_afresh() -> None:
    model = Remembering([0.9] * 10 + [0.05] * 70 + [0.3] * 100)
    SileroVad(model).push(np.full(512 * 180, 0.01, np.float32))
    fresh = [frame for frame, age in enumerate(model.ages) if age == 0]
    assert fresh == [0, 40, 70]


def test_something_loud_that_is_taken_for_no_speech_is_listened_to_afresh() -> None:
    random = np.random.default_rng(1)
    quiet = 1e-3 * random.standard_normal(512 * 40)
    loud = 0.1 * random.standard_normal(512 * 12)
    model = Remembering([0.15] * 52)
    SileroVad(model).push(np.concatenate((quiet, loud)).astype(np.float32))
    assert [frame for frame, age in enumerate(model.ages) if age == 0] == [0, 45, 50]


def test_a_long_monotonous_residue_does_not_make_it_deaf(model: SileroModel) -> None:
    random = np.random.default_rng(5)
    residue = 3e-3 * random.standard_normal(16_000 * 60)
    residue *= 10 ** np.repeat(random.uniform(-1.5, 0.5, 600), 1600)
    signal = np.concatenate((residue.astype(np.float32), say("Wait, please.", 16_000)))
    detector = SileroVad(model, UNPADDED)
    events = detector.push(np.concatenate((signal, silence(1.0))))
    assert any(
        isinstance(event, SpeechStarted) and event.at > len(residue) - NEAR for event in events
    )


def test_calls_share_the_weights_and_nothing_else(model: SileroModel) -> None:
    signal = np.concatenate((silence(0.3), say("One, two, three.", 16_000), silence(0.8)))
    alone = SileroVad(model).push(signal)
    first, second = SileroVad(model), SileroVad(model)
    events: list[object] = []
    for piece in np.split(signal, range(1600, len(signal), 1600)):
        events += first.push(piece)
        second.push(piece[::-1])
    assert events == alone


def test_torch_is_never_loaded() -> None:
    program = (
        "import sys, numpy, agent.media.vad as vad\n"
        "vad.SileroVad(vad.SileroModel()).push(numpy.zeros(5120, 'f4'))\n"
        "assert not {'torch', 'silero_vad'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="silero-vad"):
        packaged_model()


class CountingModel(SileroModel):
    """The real model, counting how often it is asked."""

    asked = 0

    def step(self, samples: np.ndarray, memory: np.ndarray) -> tuple[float, np.ndarray]:
        self.asked += 1
        return super().step(samples, memory)


def test_of_lasting_silence_the_model_is_not_asked_and_the_next_word_is_found_as_well() -> None:
    speech = say(USER_TEXT, 16_000)
    counting = CountingModel()
    quiet = np.zeros(10 * 16_000, np.float32)
    (started, _) = SileroVad(counting, UNPADDED).push(np.concatenate((quiet, speech, quiet)))
    assert counting.asked < len(speech) / 512 + 40
    audible = 2e-3 * np.random.default_rng(3).standard_normal(len(quiet)).astype(np.float32)
    noisy = np.concatenate((audible, speech, audible)).astype(np.float32)
    (started_in_noise, _) = SileroVad(SileroModel(), UNPADDED).push(noisy)
    assert abs(started.at - started_in_noise.at) <= 3 * 512
