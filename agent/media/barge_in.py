"""When the user's voice silences the agent: policy alone, driven by sample counts."""

from dataclasses import dataclass
from typing import TypeAlias

from agent.media.overlap import Overlap, UserLevel, VoiceFrame
from agent.types import MIC_RATE_HZ, SpeechEnded, SpeechStarted, TurnDetection

_SAMPLES_PER_MS = MIC_RATE_HZ // 1000
_ECHO_TAIL_SAMPLES = 500 * _SAMPLES_PER_MS
"""So long after the agent's last word its echo may still come in."""
_FRESH_SAMPLES = 100 * _SAMPLES_PER_MS
"""Speech heard within this time goes on; older, it has paused or ended."""
_UNKNOWN_DELAY_MS = 120.0
_ROOM_MS = 130.0
"""So long after the echo's delay the room still rings."""
_UNSURE_LIFT_DB = 12.0
_GAP_MS = 215.0
"""Of the 300 ms of a good gap, what is left for the way there and back and for waiting."""
_LEAST_RESUME_MS = 64.0
_BOLD_FRAMES = 4
"""So many frames at the user's own level or above it are hardly somebody else's."""
_DISMISSED_PAUSE_SAMPLES = 400 * _SAMPLES_PER_MS
_UNKNOWN_WEIGHT = 0.5
"""Of a voice whose level is not known yet the benefit of the doubt; half the weight and more is
taken for the user's, who may be yielded to sooner when he tries again."""
_LEAST_WEIGHT = 0.2
"""Whatever does not sound like the user still counts so much: nobody is ignored for ever."""


@dataclass(frozen=True, slots=True)
class BargeInRules:
    """Every threshold of turn taking over the agent's speech, and one dial over all of them.

    `eagerness`, 0..1, is how readily the agent yields. At 0.5 the others hold as they are; at 1
    speech is yielded to in half the time, at 0 in twice the time, and `duck_score`, `user_db`
    and `stranger_db` move along.
    """

    eagerness: float = 0.5
    guard_s: float = 2.0
    """So much of the agent's first words only speech of `sure_ms` interrupts: the echo canceller
    still converges."""
    duck_score: float = 0.6
    """Sum of speech likelihoods, each frame's counting 0.8 of the next's, at which to duck."""
    yield_ms: int = 700
    """Speech of this length interrupts."""
    repeat_share: float = 0.5
    """So much of it is enough from somebody who tries again."""
    memory_ms: int = 1000
    """Who speaks again within this time tries again."""
    resume_ms: int = 128
    """Silence of this length lets the agent go on."""
    max_duck_ms: int = 2500
    """The agent is never held longer than this without being interrupted."""
    user_db: float = 5.5
    """Speech down to this much below the user's own level counts fully."""
    stranger_db: float = 9.5
    """At this much below it and more, it is somebody else's and counts a fifth."""
    sure_ms: int = 600
    """Speech of this length is the user's, guard or no guard, and whoever spoke first."""
    blip_ms: int = 400
    """Speech below this length, found inside the guard, is taken for a rest of echo."""

    @property
    def patience(self) -> float:
        """By how much times grow with less eagerness: 2 at 0, 1 at 0.5, 0.5 at 1."""
        return float(2 ** (1 - 2 * self.eagerness))


@dataclass(frozen=True, slots=True)
class DuckDue:
    """The agent must fall silent and hold its place, at sample `at` (16 kHz) of the microphone."""

    at: int


@dataclass(frozen=True, slots=True)
class ResumeDue:
    """It was nothing: the agent goes on where it ducked."""

    at: int


@dataclass(frozen=True, slots=True)
class BargeInDue:
    """The agent must give up what it is saying, at sample `at` (16 kHz) of the microphone."""

    at: int


BargeInEvent: TypeAlias = SpeechStarted | SpeechEnded | DuckDue | ResumeDue | BargeInDue


@dataclass(slots=True)
class _Segment:
    """Speech between its start and its end. All fields but the flags are sample indices.

    `over_agent`: it began while the agent played. `overlap_samples` counts what was heard of it,
    pauses left out, since the agent began to play; `silenced`: it stopped the agent already.
    """

    started: SpeechStarted
    onset: int
    voiced_until: int
    over_agent: bool
    guarded: bool
    reported: bool = False
    overlap_samples: int = 0
    silenced: bool = False
    ended: SpeechEnded | None = None

    @property
    def length(self) -> int:
        return self.voiced_until - self.onset


class BargeIn:
    """Silences the agent in two steps when the user talks over it.

    As soon as something sounds like speech the agent ducks (`DuckDue`): it falls silent and holds
    its place. Speech that lasts, loud enough to be the user's, interrupts it (`BargeInDue`); what
    fades, or is somebody else's, lets it go on (`ResumeDue`). Every duck ends in one of the two,
    after `max_duck_ms` at the latest, and also when the agent stops by itself, when settings
    forbid to interrupt, and at the end.

    Whoever goes on speaking when the agent begins has the floor: 600 ms of speech over the agent,
    pauses not counted, interrupt it at once.

    During the guard, the first two seconds that the agent plays in a call, what sounds like
    speech may be echo that is not cancelled yet, so decisions are postponed:
    `SpeechStarted` is held back until the speech has lasted 600 ms, or is still going on when the
    guard is over; ended before, it is reported late if it lasted 400 ms and forgotten otherwise.
    The agent ducks after 400 ms of it, and gives up when it goes on without any echo.

    Tell each frame of the detector with `hear`, what it found with `speech_started`,
    `speech_continues` and `speech_ended`, then ask with `advance`, once a frame of the
    microphone. All times are samples of the microphone at 16 kHz.
    """

    def __init__(self, rules: BargeInRules | None = None) -> None:
        self._rules = BargeInRules() if rules is None else rules
        self._detection: TurnDetection | None = TurnDetection()
        self._overlap = Overlap(self._rules.memory_ms * _SAMPLES_PER_MS)
        self._user = UserLevel()
        self._played = 0
        self._now = 0
        self._silent_since: int | None = None
        self._playing = False
        self._segment: _Segment | None = None
        self._ducked_at: int | None = None
        self._active_at = 0
        self._dismissed = False
        self._bold_frames = 0
        self.echo_delay_ms = 0.0
        """How long what is sent takes to come back; to be kept up to date; 0 while unknown."""

    @property
    def ducked(self) -> bool:
        """Whether the agent was told to fall silent, and neither to go on nor to give up."""
        return self._ducked_at is not None

    @property
    def user_dbfs(self) -> float | None:
        """How loud this user speaks; None while unknown."""
        return self._user.dbfs

    def update(self, detection: TurnDetection | None) -> None:
        """Follow these settings; None forgets the speech that is going on."""
        if detection is None:
            self._segment = None
            self._overlap.forget()
        self._detection = detection

    def hear(self, frame: VoiceFrame) -> None:
        """The next frame that the detector judged."""
        user_dbfs, silent = self._user.dbfs, not self._playing and not self._echo_lasts()
        unsure = self._is_unsure()
        echo_free = silent or (self.ducked and not unsure)
        voiced = self._overlap.push(frame, user_dbfs, echo_free=echo_free)
        if voiced and silent:
            self._user.push(frame)
        hidden = unsure and self._overlap.lift_db > _UNSURE_LIFT_DB
        if voiced or hidden or (self.ducked and self._overlap.sounding):
            self._active_at = frame.until
        if voiced and user_dbfs is not None and frame.cleaned_dbfs >= user_dbfs:
            self._bold_frames += 1

    def speech_started(self, at: int) -> None:
        """The detector found an onset; `at` includes its padding."""
        padding_ms = self._detection.prefix_padding_ms if self._detection else 0
        onset = min(at + padding_ms * _SAMPLES_PER_MS, self._now)
        self._segment = _Segment(
            SpeechStarted(at), onset, self._now, over_agent=self._playing, guarded=self._guarded()
        )

    def speech_continues(self, voiced_until: int) -> None:
        """The last sample of speech heard so far in the open segment, pauses not counted."""
        segment = self._segment
        if segment is None:
            return
        step = voiced_until - segment.voiced_until
        if self._playing and 0 < step <= _FRESH_SAMPLES:
            segment.overlap_samples += step
        segment.voiced_until = voiced_until

    def speech_ended(self, at: int) -> None:
        """The detector found the end of the open segment at sample `at`."""
        if self._segment is not None:
            self._segment.voiced_until = at
            self._segment.ended = SpeechEnded(at)

    def advance(self, now_samples: int, agent_playing: bool) -> list[BargeInEvent]:
        """What is to be told and done, now that the microphone stands at `now_samples`."""
        self._follow_agent(now_samples, agent_playing)
        events = self._report()
        events += self._contest()
        if self._segment is not None and self._segment.ended is not None:
            events += [self._segment.ended] if self._segment.reported else []
            self._segment = None
        return events

    def finish(self) -> list[BargeInEvent]:
        """End of the microphone: a reported segment that is still open ends where it was heard."""
        events = self._let_go()
        segment, self._segment = self._segment, None
        if segment is not None and segment.reported:
            events.append(SpeechEnded(segment.voiced_until))
        return events

    # ---- the agent ----------------------------------------------------------------------------

    def _follow_agent(self, now: int, agent_playing: bool) -> None:
        if self._playing:
            self._played += now - self._now
        if agent_playing:
            self._silent_since = None
        elif self._playing:
            self._silent_since = now
            self._forget_overlap()
        self._playing = agent_playing
        self._now = now

    def _forget_overlap(self) -> None:
        """The turn that was talked over is gone: what was said over it does not stop the next."""
        self._overlap.forget()
        self._dismissed = False
        if self._segment is not None:
            self._segment.over_agent = self._segment.silenced = False
            self._segment.overlap_samples = 0

    def _guarded(self) -> bool:
        if self._played >= self._rules.guard_s * MIC_RATE_HZ:
            return False
        return self._playing or self._echo_lasts()

    def _echo_lasts(self) -> bool:
        since = self._silent_since
        return since is not None and self._now - since < _ECHO_TAIL_SAMPLES

    # ---- what is reported ---------------------------------------------------------------------

    def _report(self) -> list[BargeInEvent]:
        segment = self._segment
        if segment is None or segment.reported or not self._is_speech(segment):
            return []
        segment.reported = True
        return [segment.started]

    def _is_speech(self, segment: _Segment) -> bool:
        if not segment.guarded or segment.length >= self._rules.sure_ms * _SAMPLES_PER_MS:
            return True
        if segment.ended is not None:
            return segment.length >= self._rules.blip_ms * _SAMPLES_PER_MS
        return not self._guarded() and self._goes_on(segment)

    def _goes_on(self, segment: _Segment) -> bool:
        return segment.ended is None and self._now - segment.voiced_until <= _FRESH_SAMPLES

    # ---- who speaks ---------------------------------------------------------------------------

    def _contest(self) -> list[BargeInEvent]:
        allowed = self._detection is not None and self._detection.interrupt_response
        if not allowed or not self._playing:
            return self._let_go()
        if self._segment is not None and self._has_won(self._segment):
            return self._interrupt(self._segment)
        if self._ducked_at is None:
            return self._duck() if self._is_suspicious() else []
        return self._let_go() if self._is_over(self._ducked_at) else []

    def _has_won(self, segment: _Segment) -> bool:
        if segment.silenced or not segment.reported or not self._goes_on(segment):
            return False
        sure = self._rules.sure_ms * _SAMPLES_PER_MS
        if segment.overlap_samples >= sure and not segment.over_agent:
            return True
        if self._guarded():
            attempt = self._overlap.attempt
            lasts = self.ducked and attempt is not None and attempt.known
            return segment.over_agent and segment.length >= sure and lasts
        return segment.over_agent and self._is_sustained()

    def _is_sustained(self) -> bool:
        attempt = self._overlap.attempt
        if attempt is None:
            return False
        rules, weight = self._rules, self._weight()
        repeated = attempt.spells > 1 and weight >= _UNKNOWN_WEIGHT
        share = rules.repeat_share if repeated else 1.0
        needed = rules.yield_ms * _SAMPLES_PER_MS * rules.patience * share
        return attempt.samples * weight >= needed

    def _weight(self) -> float:
        """How much what is heard sounds like the user, 0.2 to 1."""
        attempt, user_dbfs = self._overlap.attempt, self._user.dbfs
        if attempt is None or attempt.steady:
            return _LEAST_WEIGHT
        if user_dbfs is None:
            return 1.0
        shift_db = 6.0 * (self._rules.eagerness - 0.5)
        below_db = user_dbfs - attempt.level_dbfs - shift_db
        span_db = max(self._rules.stranger_db - self._rules.user_db, 0.1)
        likeness = (self._rules.stranger_db - below_db) / span_db
        return min(max(likeness, _LEAST_WEIGHT if attempt.known else _UNKNOWN_WEIGHT), 1.0)

    def _is_suspicious(self) -> bool:
        if self._has_floor():
            return False
        if self._dismissed:
            self._reconsider()
            return False
        if self._guarded():
            return self._outlasts_blips()
        eagerness = self._rules.eagerness
        return self._overlap.suspicion >= self._rules.duck_score * 2 ** (0.5 - eagerness)

    def _outlasts_blips(self) -> bool:
        segment = self._segment
        blip = self._rules.blip_ms * _SAMPLES_PER_MS
        return segment is not None and segment.length >= blip and self._goes_on(segment)

    def _reconsider(self) -> None:
        """Somebody was taken for another than the user; does he pause, or raise his voice?"""
        if self._bold_frames >= _BOLD_FRAMES:
            self._dismissed = False
            self._overlap.forget()
        elif self._now - self._active_at >= _DISMISSED_PAUSE_SAMPLES:
            self._dismissed = False

    def _has_floor(self) -> bool:
        """Whether the user began to speak before the agent, or stopped it, and has not finished."""
        segment = self._segment
        return segment is not None and (segment.silenced or not segment.over_agent)

    def _is_over(self, ducked_at: int) -> bool:
        if self._now - self._active_at >= self._patience_ms() * _SAMPLES_PER_MS:
            self._dismissed = self._guarded()
            return True
        too_long = self._now - ducked_at >= self._rules.max_duck_ms * _SAMPLES_PER_MS
        self._dismissed = too_long or self._is_stranger()
        self._bold_frames = 0
        return self._dismissed

    def _is_stranger(self) -> bool:
        """Whether it was heard for long enough to be sure that it is not the user."""
        attempt = self._overlap.attempt
        if attempt is None or not attempt.known:
            return False
        long = attempt.samples >= self._rules.sure_ms * _SAMPLES_PER_MS
        return long and self._weight() < 2 * _LEAST_WEIGHT

    def _is_unsure(self) -> bool:
        """Whether the agent's echo may still hide what there is."""
        if self._ducked_at is None:
            return False
        delay_ms = self.echo_delay_ms or _UNKNOWN_DELAY_MS
        return self._now - self._ducked_at < (delay_ms + _ROOM_MS) * _SAMPLES_PER_MS

    def _patience_ms(self) -> float:
        """How long to wait in silence for another word: less where the way to the page is long,
        so that the agent is heard again within 300 ms."""
        longest_ms = self._rules.resume_ms
        if not self.echo_delay_ms:
            return longest_ms
        return min(longest_ms, max(_LEAST_RESUME_MS, _GAP_MS - self.echo_delay_ms))

    def _duck(self) -> list[BargeInEvent]:
        self._ducked_at = self._active_at = self._now
        return [DuckDue(self._now)]

    def _interrupt(self, segment: _Segment) -> list[BargeInEvent]:
        segment.silenced = True
        self._ducked_at = None
        self._overlap.forget()
        return [BargeInDue(self._now)]

    def _let_go(self) -> list[BargeInEvent]:
        if self._ducked_at is None:
            return []
        self._ducked_at = None
        self._overlap.calm()
        return [ResumeDue(self._now)]
