"""Where speech starts and ends: the rule around the Silero model."""

from collections import deque
from dataclasses import dataclass
from math import ceil
from typing import Final

import numpy as np

from agent.media.audio import level_dbfs
from agent.media.silero import CONTEXT_SAMPLES, STEP_SAMPLES, SileroModel, packaged_model
from agent.types import (
    MIC_RATE_HZ,
    Eagerness,
    FloatArray,
    SpeechEnded,
    SpeechStarted,
    TurnDetection,
)

__all__ = ["Judged", "SileroModel", "SileroVad", "packaged_model"]

VAD_FRAME_SAMPLES = STEP_SAMPLES
"""32 ms, the only step that the model takes at 16 kHz."""
ONSET_FRAMES = 3
"""So many voiced frames in a row open a segment: 96 ms, longer than a click or a key stroke."""

_MAX_JUDGED = 64
_QUIET_LIKELIHOOD = 0.1
_QUIET_FRAMES = 30
_UNKNOWN_LIKELIHOOD = 0.2
_UNKNOWN_FRAMES = 5
_LOUD_DB = 20.0
_HYSTERESIS = 0.15
_SAMPLES_PER_MS = MIC_RATE_HZ // 1000
_SEMANTIC_SILENCE_MS: Final[dict[Eagerness, int]] = {
    "low": 1000,
    "auto": 500,
    "medium": 500,
    "high": 300,
}


@dataclass(frozen=True, slots=True)
class Judged:
    """One frame of the detector, ending at sample `until`: how likely it holds speech, 0..1.

    Likelihoods are told as if the threshold were 0.5: below it is below the threshold.
    """

    until: int
    likelihood: float


_SILENT_POWER = 1e-7
"""−70 dBFS: no voice that anybody would answer."""
_SILENT_FRAMES = 16


class _SpeechState:
    """What the model remembers of one stream, and when it had better forget.

    Remembering for minutes, above all what an echo canceller leaves behind, makes the model deaf:
    in simulated calls it knew 36 % of the frames of voices that began over the agent's. When it
    starts afresh after about a second without speech, it knows 69 % of them. It also does after
    160 ms of something loud that it takes for no speech: the first sounds of a voice over the
    agent's are spoilt by the canceller, and go on spoiling what follows.
    """

    def __init__(self, model: SileroModel) -> None:
        self._model = model
        self._memory = np.zeros((2, 1, 128), np.float32)
        self._input = np.zeros(CONTEXT_SAMPLES + VAD_FRAME_SAMPLES, np.float32)
        self._quiet_frames = 0
        self._unknown_frames = 0
        self._silent_frames = 0
        self._floor_dbfs = -60.0

    def likelihood(self, frame: FloatArray) -> float:
        self._input[:CONTEXT_SAMPLES] = self._input[-CONTEXT_SAMPLES:]
        self._input[CONTEXT_SAMPLES:] = frame
        if self._is_lasting_silence(frame):
            return 0.0
        likelihood, self._memory = self._model.step(self._input, self._memory)
        quiet = likelihood < _QUIET_LIKELIHOOD
        unknown = self._lift_db(frame) > _LOUD_DB and likelihood < _UNKNOWN_LIKELIHOOD
        self._quiet_frames = self._quiet_frames + 1 if quiet else 0
        self._unknown_frames = self._unknown_frames + 1 if unknown else 0
        if self._quiet_frames >= _QUIET_FRAMES or self._unknown_frames >= _UNKNOWN_FRAMES:
            self._memory = np.zeros_like(self._memory)
            self._quiet_frames = self._unknown_frames = 0
        return likelihood

    def _is_lasting_silence(self, frame: FloatArray) -> bool:
        """A muted microphone, or a user who listens: the model need not be asked. What it
        remembers by then is silence, so it stays as it is."""
        silent = float(np.dot(frame, frame)) < _SILENT_POWER * len(frame)
        self._silent_frames = self._silent_frames + 1 if silent else 0
        return self._silent_frames > _SILENT_FRAMES

    def _lift_db(self, frame: FloatArray) -> float:
        """How far this frame stands out of the background, which is followed down at once."""
        lift_db = level_dbfs(frame) - self._floor_dbfs
        self._floor_dbfs += 0.3 * lift_db if lift_db < 0 else 0.03 * min(lift_db, 10.0)
        return lift_db


class SileroVad:
    """The voice detector of one call: a `VoiceDetector`.

    Speech starts with three 32 ms frames in a row at or above `threshold`; `SpeechStarted.at` is
    the first of them less the prefix padding, but not before the last reported end. It ends
    after `silence_duration_ms` of frames below `threshold` − 0.15; `SpeechEnded.at` is where
    the last louder frame ended, not where that was noticed. While switched off (`update(None)`)
    it only counts samples; a segment open at that moment is closed without a report.
    """

    def __init__(self, model: SileroModel, detection: TurnDetection | None = None) -> None:
        self._model = model
        self._state = _SpeechState(model)
        self._detection: TurnDetection | None = detection or TurnDetection()
        self._frame = np.zeros(VAD_FRAME_SAMPLES, np.float32)
        self._filled = 0
        self._position = 0
        self._voiced_frames = 0
        self._reported_end = 0
        self._judged: deque[Judged] = deque(maxlen=_MAX_JUDGED)
        self.speaking = False
        """Whether a segment is open: reported as started, not yet as ended."""
        self.voiced_until = 0
        """Where the last frame that held speech ended, in samples."""

    def update(self, detection: TurnDetection | None) -> None:
        """Use these thresholds from the next frame on; None stops reporting."""
        if detection is None:
            self._close()
        elif self._detection is None:
            self._state = _SpeechState(self._model)
        self._detection = detection

    def push(self, samples: FloatArray) -> list[SpeechStarted | SpeechEnded]:
        """The next samples at 16 kHz, any number of them; what was noticed in them."""
        events: list[SpeechStarted | SpeechEnded] = []
        while self._filled + len(samples) >= VAD_FRAME_SAMPLES:
            missing = VAD_FRAME_SAMPLES - self._filled
            self._frame[self._filled :] = samples[:missing]
            samples = samples[missing:]
            self._filled = 0
            self._position += VAD_FRAME_SAMPLES
            if self._detection is not None:
                events += self._judge(self._frame, self._detection)
        self._frame[self._filled : self._filled + len(samples)] = samples
        self._filled += len(samples)
        return events

    def end(self) -> list[SpeechEnded]:
        """Somebody else knows that speech is over: it ended where it was heard last."""
        if not self.speaking:
            return []
        self._close()
        self._reported_end = self.voiced_until
        return [SpeechEnded(self.voiced_until)]

    def take_judged(self) -> list[Judged]:
        """The frames since the last call, in order; of frames not taken the newest 64 stay."""
        judged = list(self._judged)
        self._judged.clear()
        return judged

    def _judge(
        self, frame: FloatArray, detection: TurnDetection
    ) -> list[SpeechStarted | SpeechEnded]:
        likelihood = self._state.likelihood(frame)
        self._judged.append(Judged(self._position, _centred(likelihood, detection.threshold)))
        if self.speaking:
            return self._watch_for_end(likelihood, detection)
        self._voiced_frames = self._voiced_frames + 1 if likelihood >= detection.threshold else 0
        if self._voiced_frames < ONSET_FRAMES:
            return []
        self.speaking = True
        self.voiced_until = self._position
        onset = self._position - ONSET_FRAMES * VAD_FRAME_SAMPLES
        padding = detection.prefix_padding_ms * _SAMPLES_PER_MS
        return [SpeechStarted(max(self._reported_end, onset - padding))]

    def _watch_for_end(
        self, likelihood: float, detection: TurnDetection
    ) -> list[SpeechStarted | SpeechEnded]:
        if likelihood >= max(detection.threshold - _HYSTERESIS, 0.01):
            self.voiced_until = self._position
        silent_frames = (self._position - self.voiced_until) // VAD_FRAME_SAMPLES
        return list(self.end()) if silent_frames >= _silence_frames(detection) else []

    def _close(self) -> None:
        self.speaking = False
        self._voiced_frames = 0


def _centred(likelihood: float, threshold: float) -> float:
    """`likelihood` on a scale on which `threshold` is at 0.5."""
    middle = min(max(threshold, 0.01), 0.99)
    if likelihood < middle:
        return 0.5 * likelihood / middle
    return 1.0 - 0.5 * (1.0 - likelihood) / (1.0 - middle)


def _silence_frames(detection: TurnDetection) -> int:
    silence_ms = detection.silence_duration_ms
    if detection.kind == "semantic_vad":
        silence_ms = _SEMANTIC_SILENCE_MS[detection.eagerness]
    return max(1, ceil(silence_ms * _SAMPLES_PER_MS / VAD_FRAME_SAMPLES))
