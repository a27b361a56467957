"""What is said in a measurement, and what is read from what was heard."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.signal import resample_poly

from agent.types import MIC_RATE_HZ, SPEECH_RATE_HZ, AudioFrame, FloatArray
from bench.media_page import RATE_HZ, Recording
from tests.rig.coded_speech import SLOT_S, CodedWord, decode, encode

SILENT_DB = -40.0
"""So far below what was playing, nothing plays any more."""
_LEVEL_S = 0.002
_MAX_EXTRA_S = 0.04
_MAX_LATE_S = 1.5


def spread_words(count: int, seed: int) -> tuple[FloatArray, list[int]]:
    """Words at 48 kHz, up to 40 ms apart more than usual: no packet grid must favour them."""
    random = np.random.default_rng(seed)
    indices = [number % 256 for number in range(count)]
    pieces: list[FloatArray] = []
    for index in indices:
        extra = np.zeros(int(random.uniform(0, _MAX_EXTRA_S) * SPEECH_RATE_HZ), np.float32)
        pieces += [encode([index]), extra]
    return at_page_rate(np.concatenate(pieces)), indices


def at_page_rate(speech: FloatArray) -> FloatArray:
    """24 kHz to the page's 48 kHz."""
    return np.asarray(resample_poly(speech, 2, 1), np.float32)


def at_mic_rate(played: FloatArray) -> FloatArray:
    """The page's 48 kHz to 16 kHz."""
    return np.asarray(resample_poly(played, 1, 3), np.float32)


def began_s(word: CodedWord) -> float:
    """When the word began, or would have, had its beginning not been lost."""
    return word.start_s - word.from_s


@dataclass(slots=True)
class MicrophoneLog:
    """The microphone as the engine gets it, and when each piece arrived."""

    rate_hz: int = MIC_RATE_HZ
    pieces: list[FloatArray] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    arrived_s: list[float] = field(default_factory=list)

    def add(self, frame: AudioFrame, now_s: float) -> None:
        """A frame came at `now_s` (`time.time`)."""
        self.rate_hz = frame.rate_hz
        self.pieces.append(frame.samples)
        self.ends.append((self.ends[-1] if self.ends else 0) + len(frame.samples))
        self.arrived_s.append(now_s)

    def sound(self) -> FloatArray:
        """All of it, one after the other."""
        return np.concatenate(self.pieces) if self.pieces else np.zeros(0, np.float32)

    def arrival_s(self, at_s: float) -> float:
        """When the sample at `at_s` was there."""
        piece = int(np.searchsorted(self.ends, int(at_s * self.rate_hz), side="right"))
        return self.arrived_s[min(piece, len(self.arrived_s) - 1)]


@dataclass(frozen=True, slots=True)
class Passage:
    """One word on its way: when it was said, when it came, and where it stands in both streams."""

    index: int
    said_s: float
    came_s: float
    said_at_s: float
    came_at_s: float

    @property
    def latency_ms(self) -> float:
        """From saying to hearing."""
        return (self.came_s - self.said_s) * 1000


def uplink_passages(recording: Recording, log: MicrophoneLog) -> list[Passage]:
    """The words of the user, from the page's microphone to the engine's."""
    came = decode(log.sound(), log.rate_hz)
    said = decode(recording.said, RATE_HZ)
    return [
        Passage(
            word.index,
            recording.wall_s(began_s(word)),
            log.arrival_s(began_s(heard)),
            began_s(word),
            began_s(heard),
        )
        for word, heard in _paired(said, came, recording, log)
    ]


def _paired(
    said: Sequence[CodedWord], came: Sequence[CodedWord], recording: Recording, log: MicrophoneLog
) -> Iterator[tuple[CodedWord, CodedWord]]:
    """Each word that was said, with the first piece of it that came within 1.5 s."""
    for word in said:
        spoken_s = recording.wall_s(began_s(word))
        for heard in came:
            late_s = log.arrival_s(began_s(heard)) - spoken_s
            if heard.index == word.index and 0 <= late_s < _MAX_LATE_S:
                yield word, heard
                break


def last_sound_s(sound: FloatArray, rate_hz: int, *, reference_db: float) -> float:
    """Where `sound` was last louder than 40 dB below `reference_db`, in seconds; 0.0 if nowhere."""
    step = int(_LEVEL_S * rate_hz)
    frames = sound[: len(sound) // step * step].reshape(-1, step)
    loud = np.flatnonzero(np.mean(frames**2, axis=1) > 10 ** ((reference_db + SILENT_DB) / 10))
    return float((loud[-1] + 1) * _LEVEL_S) if len(loud) else 0.0


def first_silence_s(
    sound: FloatArray, rate_hz: int, *, reference_db: float, after_s: float, longer_than_s: float
) -> float:
    """Where the first silence (40 dB below `reference_db`) begins that lasts longer than
    `longer_than_s` and goes on after `after_s`; the end of `sound` where there is none."""
    step = int(_LEVEL_S * rate_hz)
    frames = sound[: len(sound) // step * step].reshape(-1, step)
    loud = np.mean(frames**2, axis=1) > 10 ** ((reference_db + SILENT_DB) / 10)
    edges = np.flatnonzero(np.diff(np.concatenate(([1], loud.astype(int), [1]))))
    for begin, end in edges.reshape(-1, 2) * _LEVEL_S:
        if end > after_s and end - begin > longer_than_s:
            return float(begin)
    return len(sound) / rate_hz


def active_level_db(sound: FloatArray) -> float:
    """Effective level of what is not silence."""
    loud = sound[np.abs(sound) > 1e-4]
    return float(10 * np.log10(np.mean(loud**2))) if len(loud) else -100.0


def rendered_ms(words: Sequence[CodedWord], said: Sequence[int]) -> tuple[float, float]:
    """How much of `said` was rendered: between these, as the end may lie in a word's pause."""
    if not words:
        return 0.0, 0.0
    last = max(words, key=lambda word: word.end_s)
    near = [place for place, index in enumerate(said) if index == last.index]
    reached_s = near[0] * SLOT_S + last.to_s
    return reached_s * 1000, ((near[0] + 1) * SLOT_S if last.whole else reached_s) * 1000
