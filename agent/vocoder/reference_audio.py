"""Recordings to clone a voice from: measured, judged in words, and made fit.

    prepared = prepare_recording(samples, rate_hz)
    if prepared.report.accepted:
        prepared.samples  # mono, trimmed, levelled, 15 s at most; same rate

Of a long recording the best part is chosen first (see `excerpt`), and only that is judged.

The mel of a reference is what the flow continues, so its noise, its room and its loudness are
cloned with the voice. Nothing here knows the models; all thresholds are `ReferenceLimits`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, TypeAlias

import numpy as np

from agent.errors import RequestError
from agent.media.audio import SILENCE_DBFS, level_dbfs
from agent.types import FloatArray
from agent.vocoder.excerpt import Excerpt, cut, excerpts
from agent.vocoder.sound_levels import (
    STEP_S,
    SoundLevels,
    clipped_share,
    heaping,
    is_narrow,
    measure,
    one_channel,
)
from agent.vocoder.voice import is_usable_rate

Severity: TypeAlias = Literal["refused", "warning", "note"]
Spans: TypeAlias = Sequence[tuple[float, float]]
"""Where somebody speaks: (from, to) in seconds, in order."""

_FADE_S = 0.005
_HIGHEST_PEAK = 10 ** (-1.0 / 20)
_NOTHING: FloatArray = np.zeros(0, np.float32)


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
    clipped_heaping: float = 6.0
    likely_clipped_heaping: float = 4.0
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
    """What was measured, and what follows from it: of the part that would be cloned.

    Only `duration_s`, `rate_hz` and `channels` are those of the whole. `speech_s` is what is left
    when the ends are trimmed, `speech_share` how much of it is speech.
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


@dataclass(frozen=True, slots=True, eq=False)
class PreparedRecording:
    """What was found out, and f32 [T] to clone from, mono, at the same rate; empty if refused."""

    report: ReferenceReport
    samples: FloatArray


def prepare_recording(
    samples: FloatArray,
    rate_hz: int,
    limits: ReferenceLimits | None = None,
    speech: Spans | None = None,
    duration_s: float | None = None,
) -> PreparedRecording:
    """Choose what to clone of f32 [T] or [channels, T], −1..1; judge that, and make it fit.

    `speech` is where a voice detector found speech; without, speech is told by its level and its
    pitch. `duration_s` is how long the whole is of which `samples` are the beginning. Never raises
    for what is wrong with the sound: that is in the report.
    """
    limits = limits or ReferenceLimits()
    planar = np.atleast_2d(samples)
    given_s = planar.shape[-1] / rate_hz if rate_hz > 0 else 0.0
    whole = _Whole(max(given_s, duration_s or 0.0), rate_hz, len(planar), limits)
    unusable = _unusable(planar, whole)
    if unusable:
        report = ReferenceReport(
            whole.duration_s, rate_hz, len(planar), SILENCE_DBFS, 0.0, 0.0, 0.0, 0.0, (unusable,)
        )
        return PreparedRecording(report, _NOTHING)
    planar = planar[:, : int(limits.heard_s * rate_hz)]
    levels = measure(one_channel(planar)[0], rate_hz, speech)
    chosen = excerpts(levels, limits.longest_s)
    if not chosen:
        return PreparedRecording(_judge(planar, levels, None, whole), _NOTHING)
    # What is best by its length and its noise may still be clipped.
    each = (_prepared(planar, one, whole, speech is not None) for one in chosen)
    first = next(each)
    return next((one for one in chain((first,), each) if one.report.accepted), first)


def inspect_recording(
    samples: FloatArray,
    rate_hz: int,
    limits: ReferenceLimits | None = None,
    speech: Spans | None = None,
) -> ReferenceReport:
    """Measure and judge what `prepare_recording` would make of it."""
    return prepare_recording(samples, rate_hz, limits, speech).report


def improve_recording(
    samples: FloatArray,
    rate_hz: int,
    limits: ReferenceLimits | None = None,
    speech: Spans | None = None,
) -> FloatArray:
    """The recording as a prompt should be: f32 [T], mono, at the same rate.

    Without an offset, silence trimmed to 0.1 s, the best part of it when it is too long, its speech
    at −23 dBFS with no peak above −1, and 0.12 s of quiet at its end. RequestError as
    `inspect_recording` refuses it.
    """
    prepared = prepare_recording(samples, rate_hz, limits, speech)
    if not prepared.report.accepted:
        raise RequestError(f"the reference recording cannot be used: {prepared.report.refusal}")
    return prepared.samples


@dataclass(frozen=True, slots=True)
class _Whole:
    """The recording as it came, and what it must be like."""

    duration_s: float
    rate_hz: int
    channels: int
    limits: ReferenceLimits

    @property
    def heard(self) -> str:
        """Where was looked, in words; empty when that is everywhere."""
        heard_s = self.limits.heard_s
        is_longer = self.duration_s > heard_s + STEP_S
        return f" in its first {heard_s:g} s, and no more is looked at" if is_longer else ""


def _prepared(
    planar: FloatArray, excerpt: Excerpt, whole: _Whole, is_detected: bool
) -> PreparedRecording:
    kept = cut(planar, whole.rate_hz, excerpt)
    mono, _ = one_channel(kept)
    levels = measure(mono, whole.rate_hz, excerpt.spoken_s() if is_detected else None)
    report = _judge(kept, levels, excerpt, whole)
    if not report.accepted:
        return PreparedRecording(report, _NOTHING)
    mono = mono - np.float32(mono.mean(dtype=np.float64))
    faded = _faded(mono, int(_FADE_S * whole.rate_hz))
    padded = np.pad(faded, (0, int(excerpt.missing_tail_s * whole.rate_hz)))
    samples = _levelled(padded, levels.speech_dbfs, whole.limits.level_dbfs)
    return PreparedRecording(report, samples)


def _judge(
    planar: FloatArray, levels: SoundLevels, excerpt: Excerpt | None, whole: _Whole
) -> ReferenceReport:
    """What is said of f32 [channels, T], the excerpt."""
    mono, number = one_channel(planar)
    used = planar if number is None else planar[number : number + 1]
    share = clipped_share(used)
    findings = [
        *_of_clipping(share, heaping(used), whole.limits),
        *_of_file(mono, number, whole),
        *_of_length(levels, excerpt, whole),
        *_of_level(levels, whole.limits),
        *_of_speech(levels, whole),
    ]
    return ReferenceReport(
        duration_s=whole.duration_s,
        rate_hz=whole.rate_hz,
        channels=whole.channels,
        level_dbfs=levels.speech_dbfs,
        snr_db=levels.speech_dbfs - levels.noise_dbfs,
        clipped_share=share,
        speech_s=levels.end_s - levels.start_s,
        speech_share=levels.share(levels.start_s, levels.end_s),
        findings=tuple(_about_speech(findings)),
    )


def _about_speech(findings: Sequence[Finding]) -> Iterable[Finding]:
    """Where there is no speech, that alone: what is measured of a hum says nothing of a voice."""
    missing = [one for one in findings if one.code == "no_speech"]
    notes = [one for one in findings if one.severity == "note"]
    return (*missing, *notes) if missing else findings


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


def _unusable(planar: FloatArray, whole: _Whole) -> Finding | None:
    """What makes it impossible even to measure."""
    rate_hz, limits = whole.rate_hz, whole.limits
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
    heard = planar[:, : int(limits.heard_s * rate_hz)].astype(np.float32)
    loudest_dbfs = max(level_dbfs(channel) for channel in heard)
    if loudest_dbfs < limits.silent_dbfs:
        return Finding("silent", "refused", f"it is silent{whole.heard}")
    return None


def _of_clipping(share: float, heaped: float, limits: ReferenceLimits) -> Iterator[Finding]:
    if share > limits.clipped_share:
        yield Finding(
            "clipped",
            "refused",
            f"{share:.1%} of its samples are clipped; record it again at a lower level",
        )
    elif heaped > limits.clipped_heaping:
        yield Finding(
            "clipped",
            "refused",
            "it was clipped before it was stored; record it again at a lower level",
        )
    elif heaped > limits.likely_clipped_heaping:
        yield Finding(
            "clipped",
            "warning",
            "its loudest sounds seem to be clipped; recorded at a lower level it may sound cleaner",
        )


def _of_file(mono: FloatArray, number: int | None, whole: _Whole) -> Iterator[Finding]:
    if whole.rate_hz < whole.limits.full_rate_hz:
        yield Finding(
            "low_rate",
            "warning",
            f"at {whole.rate_hz} Hz it lacks the upper half of the voice, which will sound muffled",
        )
    elif is_narrow(mono, whole.rate_hz):
        yield Finding(
            "narrow_band",
            "warning",
            "there is nothing above 4 kHz, as on a telephone: the voice will sound muffled",
        )
    if whole.channels > 1:
        what = "mixed into one" if number is None else f"only number {number + 1} is used"
        yield Finding("channels", "note", f"it has {whole.channels} channels; {what}")


def _of_length(levels: SoundLevels, excerpt: Excerpt | None, whole: _Whole) -> Iterator[Finding]:
    limits, speech_s = whole.limits, levels.end_s - levels.start_s
    if speech_s < limits.shortest_s:
        yield Finding(
            "too_short",
            "refused",
            f"it has {speech_s:.1f} s of speech{whole.heard}; {limits.shortest_s:g} to "
            f"{limits.longest_s:g} s are needed",
        )
    elif excerpt and not excerpt.is_all:
        shorter = ", with its long pauses shortened" if excerpt.has_shorter_pauses else ""
        minutes, seconds = divmod(int(excerpt.start_s), 60)
        yield Finding(
            "too_long",
            "warning",
            f"only the {excerpt.kept_s:.1f} s from {minutes}:{seconds:02d} on are used{shorter}",
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


def _of_speech(levels: SoundLevels, whole: _Whole) -> Iterator[Finding]:
    limits = whole.limits
    if levels.voiced_share < limits.voiced_share:
        yield Finding("no_speech", "refused", f"no speech could be found{whole.heard or ' in it'}")
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
