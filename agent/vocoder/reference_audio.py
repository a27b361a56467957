"""Recordings to clone a voice from: measured, judged in words, and made fit.

    report = inspect_recording(samples, rate_hz)
    if report.accepted:
        clean = improve_recording(samples, rate_hz)  # mono, trimmed, levelled; same rate

The mel of a reference is what the flow continues, so its noise, its room and its loudness are
cloned with the voice. Nothing here knows the models; all thresholds are `ReferenceLimits`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from agent.errors import RequestError
from agent.media.audio import SILENCE_DBFS, level_dbfs
from agent.types import FloatArray
from agent.vocoder.sound_levels import (
    SoundLevels,
    clipped_share,
    is_narrow,
    measure,
    one_channel,
)
from agent.vocoder.voice import is_usable_rate

Severity: TypeAlias = Literal["refused", "warning", "note"]
Spans: TypeAlias = Sequence[tuple[float, float]]
"""Where somebody speaks: (from, to) in seconds, in order."""

_MARGIN_S = 0.1
"""Of what is around the speech, kept at either end."""
_TAIL_S = 0.12
"""Silence at the end, or the look-ahead past the end of a prompt can be heard."""
_FADE_S = 0.005
_CUT_FROM = 0.6
"""A long recording is cut in a pause, but not before this share of what may stay."""
_HIGHEST_PEAK = 10 ** (-1.0 / 20)


@dataclass(frozen=True, slots=True)
class ReferenceLimits:
    """What a reference recording must be like."""

    shortest_s: float = 3.0
    longest_s: float = 15.0
    heard_s: float = 60.0
    """What comes later is not even looked at."""
    lowest_rate_hz: int = 8_000
    full_rate_hz: int = 16_000
    clipped_share: float = 0.001
    silent_dbfs: float = -60.0
    quiet_dbfs: float = -40.0
    noisy_db: float = 10.0
    noticeable_noise_db: float = 20.0
    speech_share: float = 0.5
    voiced_share: float = 0.2
    last_s: float = 2.0
    """The end of a prompt stays in sight for the whole turn."""
    level_dbfs: float = -23.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about a recording: a code for programs, a sentence for the user."""

    code: str
    severity: Severity
    message: str


@dataclass(frozen=True, slots=True)
class ReferenceReport:
    """What was measured, and what follows from it.

    `speech_s` is what is left when the ends are trimmed, `speech_share` how much of it is speech.
    """

    duration_s: float
    rate_hz: int
    channels: int
    level_dbfs: float
    snr_db: float
    clipped_share: float
    speech_s: float
    speech_share: float
    findings: tuple[Finding, ...]

    @property
    def accepted(self) -> bool:
        return not any(finding.severity == "refused" for finding in self.findings)

    @property
    def refusal(self) -> str:
        """Why it was refused, in one line; empty when it was not."""
        reasons = [f.message for f in self.findings if f.severity == "refused"]
        return "; ".join(reasons)


def inspect_recording(
    samples: FloatArray,
    rate_hz: int,
    limits: ReferenceLimits | None = None,
    speech: Spans | None = None,
) -> ReferenceReport:
    """Measure and judge f32 [T] or [channels, T], −1..1.

    `speech` is where a voice detector found speech; without, speech is told by its level and its
    pitch. Never raises for what is wrong with the sound: that is in the report.
    """
    limits = limits or ReferenceLimits()
    planar = np.atleast_2d(samples)
    unusable = _unusable(planar, rate_hz, limits)
    duration_s = planar.shape[-1] / rate_hz if rate_hz > 0 else 0.0
    if unusable:
        silent = SILENCE_DBFS
        return ReferenceReport(
            duration_s, rate_hz, len(planar), silent, 0.0, 0.0, 0.0, 0.0, (unusable,)
        )
    planar = planar[:, : int(limits.heard_s * rate_hz)]
    mono, chosen = one_channel(planar)
    levels = measure(mono, rate_hz, speech)
    return ReferenceReport(
        duration_s=duration_s,
        rate_hz=rate_hz,
        channels=len(planar),
        level_dbfs=levels.speech_dbfs,
        snr_db=levels.speech_dbfs - levels.noise_dbfs,
        clipped_share=clipped_share(planar),
        speech_s=levels.end_s - levels.start_s,
        speech_share=levels.share(levels.start_s, levels.end_s),
        findings=(
            *_of_file(planar, rate_hz, chosen, limits),
            *_of_length(levels, limits),
            *_of_level(levels, limits),
            *_of_speech(levels, limits),
        ),
    )


def improve_recording(
    samples: FloatArray,
    rate_hz: int,
    limits: ReferenceLimits | None = None,
    speech: Spans | None = None,
) -> FloatArray:
    """The recording as a prompt should be: f32 [T], mono, at the same rate.

    Without an offset, silence trimmed to 0.1 s, cut in a pause when it is too long, its speech at
    −23 dBFS with no peak above −1, and 0.12 s of quiet at its end. RequestError as
    `inspect_recording` refuses it.
    """
    limits = limits or ReferenceLimits()
    report = inspect_recording(samples, rate_hz, limits, speech)
    if not report.accepted:
        raise RequestError(f"the reference recording cannot be used: {report.refusal}")
    mono, _ = one_channel(np.atleast_2d(samples)[:, : int(limits.heard_s * rate_hz)])
    mono = mono - np.float32(mono.mean(dtype=np.float64))
    levels = measure(mono, rate_hz, speech)
    start_s = max(0.0, levels.start_s - _MARGIN_S)
    end_s = _end_s(levels, start_s, limits)
    first, last = int(start_s * rate_hz), int((end_s + _MARGIN_S) * rate_hz)
    kept = _faded(mono[first:last], int(_FADE_S * rate_hz))
    wanted = int((end_s + _TAIL_S - start_s) * rate_hz)
    padded = np.pad(kept, (0, max(0, wanted - len(kept))))
    return _levelled(padded, levels.speech_dbfs, limits.level_dbfs)


def _end_s(levels: SoundLevels, start_s: float, limits: ReferenceLimits) -> float:
    """Where what is kept of the speech ends: at its end, or in the longest pause in time."""
    latest_s = start_s + limits.longest_s - _TAIL_S
    if levels.end_s <= latest_s:
        return levels.end_s
    earliest_s = start_s + _CUT_FROM * (latest_s - start_s)
    pauses = [pause for pause in levels.pauses() if earliest_s <= pause[0] <= latest_s]
    if not pauses:
        return latest_s
    return max(pauses, key=lambda pause: pause[1] - pause[0])[0]


def _faded(samples: FloatArray, count: int) -> FloatArray:
    """Without a step at either end."""
    count = min(count, len(samples) // 2)
    faded = samples.copy()
    ramp = np.linspace(0, 1, count, endpoint=False, dtype=np.float32)
    faded[:count] *= ramp
    faded[len(faded) - count :] *= ramp[::-1]
    return faded


def _levelled(samples: FloatArray, speech_dbfs: float, wanted_dbfs: float) -> FloatArray:
    gain = 10 ** ((wanted_dbfs - speech_dbfs) / 20)
    peak = float(np.abs(samples).max(initial=0.0))
    if peak * gain > _HIGHEST_PEAK:
        gain = _HIGHEST_PEAK / peak
    levelled: FloatArray = (samples * np.float32(gain)).astype(np.float32)
    return levelled


# ---- what is said of it -------------------------------------------------------------------------


def _unusable(planar: FloatArray, rate_hz: int, limits: ReferenceLimits) -> Finding | None:
    """What makes it impossible even to measure."""
    if planar.ndim != 2 or not np.issubdtype(planar.dtype, np.floating):
        raise ValueError(f"a recording is f32 [channels, T], not {list(planar.shape)}")
    if rate_hz < limits.lowest_rate_hz or not is_usable_rate(rate_hz):
        return Finding(
            "unusable_rate",
            "refused",
            f"its sample rate of {rate_hz} Hz cannot be used; save it at 24 or 48 kHz",
        )
    if planar.shape[1] < rate_hz // 10:
        return Finding("too_short", "refused", f"it is shorter than {limits.shortest_s:g} s")
    if not np.isfinite(planar).all():
        return Finding("not_finite", "refused", "it holds samples that are no numbers")
    loudest_dbfs = max(level_dbfs(channel) for channel in planar.astype(np.float32))
    if loudest_dbfs < limits.silent_dbfs:
        return Finding("silent", "refused", "it is silent")
    return None


def _of_file(
    planar: FloatArray, rate_hz: int, chosen: int | None, limits: ReferenceLimits
) -> Iterator[Finding]:
    share = clipped_share(planar)
    if share > limits.clipped_share:
        yield Finding(
            "clipped",
            "refused",
            f"{share:.1%} of its samples are clipped; record it again at a lower level",
        )
    if rate_hz < limits.full_rate_hz:
        yield Finding(
            "low_rate",
            "warning",
            f"at {rate_hz} Hz it lacks the upper half of the voice, which will sound muffled",
        )
    elif is_narrow(planar.mean(0) if chosen is None else planar[chosen], rate_hz):
        yield Finding(
            "narrow_band",
            "warning",
            "there is nothing above 4 kHz, as on a telephone: the voice will sound muffled",
        )
    if len(planar) > 1:
        what = "mixed into one" if chosen is None else f"only number {chosen + 1} is used"
        yield Finding("channels", "note", f"it has {len(planar)} channels; {what}")


def _of_length(levels: SoundLevels, limits: ReferenceLimits) -> Iterator[Finding]:
    speech_s = levels.end_s - levels.start_s
    if speech_s < limits.shortest_s:
        yield Finding(
            "too_short",
            "refused",
            f"it has {speech_s:.1f} s of speech; {limits.shortest_s:g} to {limits.longest_s:g} s "
            "are needed",
        )
    elif speech_s > limits.longest_s:
        yield Finding(
            "too_long",
            "warning",
            f"only its first {limits.longest_s:g} s of speech are used, cut in a pause",
        )


def _of_level(levels: SoundLevels, limits: ReferenceLimits) -> Iterator[Finding]:
    if levels.speech_dbfs < limits.quiet_dbfs:
        yield Finding(
            "quiet",
            "warning",
            f"it is very quiet ({levels.speech_dbfs:.0f} dBFS), and raised with its noise",
        )
    snr_db = levels.speech_dbfs - levels.noise_dbfs
    if snr_db < limits.noticeable_noise_db:
        refused = snr_db < limits.noisy_db
        yield Finding(
            "noisy",
            "refused" if refused else "warning",
            f"the speech is only {max(snr_db, 0.0):.0f} dB louder than what is around it; the "
            "noise would be cloned too",
        )


def _of_speech(levels: SoundLevels, limits: ReferenceLimits) -> Iterator[Finding]:
    if levels.voiced_share < limits.voiced_share:
        yield Finding("no_speech", "refused", "no speech could be found in it")
        return
    share = levels.share(levels.start_s, levels.end_s)
    if share < limits.speech_share:
        yield Finding(
            "little_speech",
            "refused",
            f"only {share:.0%} of it is speech; cut out the pauses",
        )
    last = levels.share(max(levels.start_s, levels.end_s - limits.last_s), levels.end_s)
    if last < limits.speech_share:
        yield Finding(
            "silent_end",
            "warning",
            f"its last {limits.last_s:g} s are mostly silent; they shape the voice most",
        )
