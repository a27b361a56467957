"""What becomes of the file that somebody sends as a reference for a voice.

    examined = examine(data, limits)  # decoded, judged; accepted: trimmed, levelled, 24 kHz
    examined.report                   # for the user, as JSON

It takes torch and a second of a core, so it is called where it disturbs nobody. What comes back is
plain data, which loads nothing where it arrives.
"""

import io
import wave
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.media.audio import to_pcm16
from agent.media.recording import Recording, RecordingLimits, decode_recording
from agent.media.vad import SileroModel, SileroVad
from agent.types import MIC_RATE_HZ, SPEECH_RATE_HZ, FloatArray, SpeechStarted, TurnDetection

if TYPE_CHECKING:
    from agent.vocoder.reference_audio import Finding, ReferenceReport

_JOINED_MS = 200
"""Shorter gaps, the closures of stops among them, are part of the speech."""
_PADDING_MS = 64
_HEARD_PEAK = 0.5
"""The detector is shown quiet recordings at this peak; what it knows is speech of usual level."""
_OF_SPEECH = ("too_short", "too_long", "quiet", "noisy", "little_speech", "silent_end")
_LONGEST_S = 15
"""Longer ones the vocoders do not take."""


@dataclass(frozen=True, slots=True)
class Examined:
    """What was found out about a recording, and what was made of it.

    `report` is JSON: accepted, duration_s, rate_hz, channels, level_dbfs, snr_db, clipped_share,
    speech_s, speech_share and findings, each with code, severity and message. `recording` is a WAV
    file (24 kHz, mono, 16 bit), empty unless it was accepted.
    """

    report: dict[str, Any]
    recording: bytes = b""

    @property
    def accepted(self) -> bool:
        """Whether it can be cloned from."""
        return bool(self.report["accepted"])

    @property
    def refusal(self) -> str:
        """Why not, in sentences; empty when it can."""
        return " ".join(self._messages("refused"))

    @property
    def notes(self) -> tuple[str, ...]:
        """What else is to be said of it, a sentence each."""
        return (*self._messages("warning"), *self._messages("note"))

    @property
    def duration_s(self) -> float:
        """Of what was made of it."""
        return max(0, len(self.recording) - _HEADER_BYTES) / 2 / SPEECH_RATE_HZ

    def _messages(self, severity: str) -> list[str]:
        findings = self.report["findings"]
        return [str(each["message"]) for each in findings if each["severity"] == severity]


_HEADER_BYTES = 44


def examine(data: bytes, limits: RecordingLimits) -> Examined:
    """Decode and judge a file of any common format; RequestError when there is no sound to judge.

    Blocks for as long as that takes: some 0.3 s for a minute of sound.
    """
    recording = decode_recording(data, limits)
    # It loads torch, which what cannot be decoded need not wait for.
    from agent.vocoder.reference_audio import prepare_recording

    samples, rate_hz = recording.samples, recording.rate_hz
    speech = speech_spans(recording)
    prepared = prepare_recording(samples, rate_hz, None, speech, recording.duration_s)
    told = _as_json(prepared.report)
    if not prepared.report.accepted:
        return Examined(told)
    clean = _resampled(prepared.samples, rate_hz, SPEECH_RATE_HZ)
    return Examined(told, _wav(clean[: _LONGEST_S * SPEECH_RATE_HZ]))


def speech_spans(recording: Recording) -> list[tuple[float, float]] | None:
    """Where the voice detector hears speech, (from, to) in seconds, in order.

    It tells speech from music and noise, which level and pitch do not. None for a rate that it
    cannot be shown.
    """
    from agent.vocoder.resample import can_resample
    from agent.vocoder.sound_levels import one_channel

    if not can_resample(recording.rate_hz, MIC_RATE_HZ):
        return None
    mono, _ = one_channel(recording.samples)
    mono = mono - np.float32(mono.mean(dtype=np.float64))
    peak = float(np.abs(mono).max(initial=0.0))
    if 0.0 < peak < _HEARD_PEAK:
        mono = mono * np.float32(_HEARD_PEAK / peak)
    return _spans(_resampled(mono, recording.rate_hz, MIC_RATE_HZ))


def _spans(heard: FloatArray) -> list[tuple[float, float]]:
    """f32 [T] at 16 kHz."""
    rule = TurnDetection(prefix_padding_ms=_PADDING_MS, silence_duration_ms=_JOINED_MS)
    detector = SileroVad(SileroModel(), rule)
    edges = []
    # The silence lets it hear the end of what lasts to the end.
    for event in detector.push(np.pad(heard, (0, MIC_RATE_HZ // 2))):
        edges.append(event.at)
        assert isinstance(event, SpeechStarted) == (len(edges) % 2 == 1)
    if len(edges) % 2:
        edges.append(len(heard))
    times_s = [min(at, len(heard)) / MIC_RATE_HZ for at in edges]
    return list(zip(times_s[::2], times_s[1::2], strict=True))


def _resampled(samples: FloatArray, from_hz: int, to_hz: int) -> FloatArray:
    import torch

    from agent.vocoder.resample import resample

    changed: FloatArray = resample(torch.from_numpy(samples), from_hz, to_hz).numpy()
    return changed


def _as_json(report: "ReferenceReport") -> dict[str, Any]:
    return {
        "accepted": report.accepted,
        "duration_s": round(report.duration_s, 2),
        "rate_hz": int(report.rate_hz),
        "channels": int(report.channels),
        "level_dbfs": round(float(report.level_dbfs), 1),
        "snr_db": round(max(0.0, float(report.snr_db)), 1),
        "clipped_share": round(float(report.clipped_share), 5),
        "speech_s": round(float(report.speech_s), 2),
        "speech_share": round(float(report.speech_share), 3),
        "findings": [
            {"code": each.code, "severity": each.severity, "message": _sentence(each.message)}
            for each in _findings(report)
        ],
    }


def _findings(report: "ReferenceReport") -> "list[Finding]":
    """Where nobody speaks, nothing is to be said about the speech."""
    if not any(each.code == "no_speech" for each in report.findings):
        return list(report.findings)
    return [each for each in report.findings if each.code not in _OF_SPEECH]


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}."


def _wav(samples: FloatArray) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(SPEECH_RATE_HZ)
        written.writeframes(to_pcm16(samples).tobytes())
    return file.getvalue()
