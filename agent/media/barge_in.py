"""When the user's voice silences the agent: policy alone, driven by sample counts."""

from agent.media.barge_in_agent import AgentVoice
from agent.media.barge_in_events import BargeInDue, BargeInEvent, DuckDue, ResumeDue
from agent.media.barge_in_rules import BargeInRules
from agent.media.echo_wait import echo_hides, has_listened, pause_samples
from agent.media.overlap import SURE_DB, Insistence, Overlap, UserLevel, VoiceFrame
from agent.media.speech_segment import SpeechSegment
from agent.types import MIC_RATE_HZ, SpeechEnded, SpeechStarted, TurnDetection

__all__ = ["BargeIn", "BargeInDue", "BargeInEvent", "BargeInRules", "DuckDue", "ResumeDue"]

_SAMPLES_PER_MS = MIC_RATE_HZ // 1000
_UNSURE_LIFT_DB = 12.0
_BOLD_FRAMES = 4
_BOLD_DB = 2.0
"""So many frames at about the user's own level are hardly somebody else's."""
_DISMISSED_PAUSE_SAMPLES = 400 * _SAMPLES_PER_MS
_UNKNOWN_WEIGHT = 0.5
"""The benefit of the doubt for a voice whose level is not known yet. Whose weight is above it is
taken for the user, and yielded to sooner when he tries again."""
_LEAST_CLEAR_SAMPLES, _CLEAR_SHARE = 64 * _SAMPLES_PER_MS, 0.25
"""So much, and so much of what interrupts, must be heard that cannot be echo."""
_INSISTENT_SHARE = 0.25
"""Of the time that speech takes to interrupt, so much is enough of words said again."""
_CALM, _HALF_SURE = 0.05, 0.5
_JUST_NOW_SAMPLES = 100 * _SAMPLES_PER_MS
_LEAST_SOUND_SAMPLES = 80 * _SAMPLES_PER_MS
"""What is heard of the agent between two ducks is not less: 20 ms of a word are but a click."""
_STRANGER_WEIGHT = 0.25
_LEAST_WEIGHT = 0.2
"""Whatever does not sound like the user still counts so much: nobody is ignored for ever."""


class BargeIn:
    """Silences the agent in two steps when the user talks over it.

    As soon as something sounds like speech the agent ducks (`DuckDue`): it falls silent and holds
    its place. Speech that lasts, loud enough to be the user's, interrupts it (`BargeInDue`), and
    so does whoever is as loud and makes it fall silent again and again; never what may be echo
    from first to last. What fades, or is somebody else's, lets it go on (`ResumeDue`). Every duck
    ends in one of the two, after `max_duck_ms` at the latest, and also when the agent stops by
    itself, when settings forbid to interrupt, and at the end.

    Whoever goes on speaking when the agent begins has the floor: 600 ms of speech over the agent,
    pauses not counted, interrupt it at once. For a turn that is held they count as if it played,
    and it ducks for whoever speaks: that costs nothing. Words said then are no try before it began.

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
        self._insistence = Insistence(self._rules.memory_ms * _SAMPLES_PER_MS)
        self._user = UserLevel()
        self._agent = AgentVoice(int(self._rules.guard_s * MIC_RATE_HZ))
        self._now = 0
        self._heard_until = 0
        self._segment: SpeechSegment | None = None
        self._ended_at = 0
        self._ducked_at: int | None = None
        self._ducked_unheard = False
        self._resumed_at = -_LEAST_SOUND_SAMPLES
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

    @property
    def hears_echo_alone(self) -> bool:
        """Whether, as far as it can tell, nobody but the agent is to be heard."""
        overlap = self._overlap
        suspected = overlap.suspicion >= _CALM or overlap.exceeds_echo >= _HALF_SURE
        return self._agent.sounding and not self.ducked and not suspected

    def update(self, detection: TurnDetection | None) -> None:
        """Follow these settings; None forgets the speech that is going on."""
        if detection is None:
            self._segment = None
            self._forget_speech()
        self._detection = detection

    def hear(self, frame: VoiceFrame) -> None:
        """The next frame that the detector judged."""
        begin, self._heard_until = self._heard_until, frame.until
        user_dbfs, silent = self._user.dbfs, self._agent.silent
        unsure = self._is_unsure()
        echo_free = silent or self._agent.unheard or (self.ducked and not unsure)
        voiced = self._overlap.push(frame, user_dbfs, echo_free=echo_free)
        if voiced and silent and not self._agent.held:
            self._user.push(frame)
        loud = self._agent.sounding and self._overlap.is_loud(frame, user_dbfs, echo_free=echo_free)
        if loud:
            self._insistence.hear(begin, frame.until)
        hidden = unsure and (
            self._overlap.lift_db > _UNSURE_LIFT_DB or frame.over_echo_db >= SURE_DB
        )
        if voiced or hidden or (self.ducked and (loud or self._overlap.sounding)):
            self._active_at = frame.until
        if voiced and user_dbfs is not None and frame.cleaned_dbfs >= user_dbfs - _BOLD_DB:
            self._bold_frames += 1

    def speech_started(self, at: int) -> None:
        """The detector found an onset; `at` includes its padding."""
        if self._segment is not None and not self._segment.detected:
            self._segment.detected = True
            return
        padding_ms = self._detection.prefix_padding_ms if self._detection else 0
        onset = min(at + padding_ms * _SAMPLES_PER_MS, self._now)
        started = SpeechStarted(max(at, self._ended_at))
        self._segment = SpeechSegment(
            started, onset, self._now, over_agent=self._agent.talking, guarded=self._agent.guarded
        )

    def speech_continues(self, voiced_until: int) -> None:
        """The last sample of speech heard so far in the open segment, pauses not counted."""
        if self._segment is not None:
            self._segment.hear(voiced_until, agent_playing=self._agent.talking)

    def speech_ended(self, at: int) -> None:
        """The detector found the end of the open segment at sample `at`."""
        if self._segment is not None:
            self._segment.end(at)

    def advance(
        self, now: int, playing: bool, *, held: bool = False, unheard: bool = False
    ) -> list[BargeInEvent]:
        """What is to be told and done, now that the microphone stands at `now` and the agent plays,
        or its next turn is `held`: there, and about to begin. `unheard`: nothing comes back."""
        self._agent.unheard = unheard
        self._follow_agent(now, playing, held)
        self._follow_undetected()
        return [*self._report(), *self._contest(), *self._close()]

    def agent_stopped(self) -> None:
        """Its turn was given up, between two frames of the microphone."""
        self._ducked_at = None
        self._follow_agent(self._now, False, False)

    def finish(self) -> list[BargeInEvent]:
        """End of the microphone: a reported segment that is still open ends where it was heard."""
        events = self._let_go()
        segment, self._segment = self._segment, None
        if segment is not None and segment.reported:
            events.append(SpeechEnded(segment.voiced_until))
        return events

    # ---- the agent ----------------------------------------------------------------------------

    def _follow_agent(self, now: int, playing: bool, held: bool) -> None:
        agent = self._agent
        talked, sounded = agent.talking, agent.sounding
        agent.follow(now, playing, held)
        self._now = now
        if not talked and agent.talking:
            # What was said before the agent began is no attempt to interrupt it.
            self._forget_speech()
        elif talked and not playing and (sounded or not held):
            self._forget_overlap()
        elif playing and not sounded and self._overlap.suspicion < _CALM:
            # Nor is what was said while its turn was held, unless that goes on.
            self._forget_speech()
            if self._segment is not None:
                self._segment.overlap_samples = 0

    def _forget_overlap(self) -> None:
        """The turn that was talked over is gone: what was said over it does not stop the next."""
        self._forget_speech()
        self._dismissed = False
        if self._segment is not None:
            self._segment.forget_overlap()

    def _forget_speech(self) -> None:
        self._overlap.forget()
        self._insistence.forget()

    # ---- what is reported ---------------------------------------------------------------------

    def _report(self) -> list[BargeInEvent]:
        segment = self._segment
        if segment is None or segment.reported or not self._is_speech(segment):
            return []
        segment.reported = True
        return [segment.started]

    def _is_speech(self, segment: SpeechSegment) -> bool:
        if not segment.guarded or segment.length >= self._rules.sure_ms * _SAMPLES_PER_MS:
            return True
        if segment.ended is not None:
            return segment.length >= self._rules.blip_ms * _SAMPLES_PER_MS
        return not self._agent.guarded and segment.goes_on(self._now)

    def _close(self) -> list[BargeInEvent]:
        segment = self._segment
        if segment is None or segment.ended is None:
            return []
        self._segment = None
        if not segment.reported:
            return []
        self._ended_at = segment.ended.at
        return [segment.ended]

    def _follow_undetected(self) -> None:
        """What interrupts without that the detector was sure of it is reported all the same."""
        segment, attempt, detection = self._segment, self._overlap.attempt, self._detection
        if detection is None or self._agent.guarded:
            return
        if segment is None:
            if self._insists():
                said = self._insistence
                self._segment = self._undetected(said.since, said.until, detection)
            elif attempt is not None and self.ducked and self._is_sustained():
                begin, until = attempt.spell_from, attempt.voiced_until
                self._segment = self._undetected(begin, until, detection)
        elif not segment.detected:
            segment.hear(self._active_at, agent_playing=self._agent.talking)
            silence_ms = detection.silence_duration_ms
            if self._now - segment.voiced_until >= silence_ms * _SAMPLES_PER_MS:
                segment.end(segment.voiced_until)

    def _undetected(self, onset: int, voiced_until: int, detection: TurnDetection) -> SpeechSegment:
        at = max(onset - detection.prefix_padding_ms * _SAMPLES_PER_MS, self._ended_at)
        return SpeechSegment(
            SpeechStarted(at),
            onset,
            voiced_until,
            over_agent=True,
            guarded=False,
            detected=False,
        )

    # ---- who speaks ---------------------------------------------------------------------------

    def _contest(self) -> list[BargeInEvent]:
        allowed = self._detection is not None and self._detection.interrupt_response
        if not allowed or not self._agent.talking:
            return self._let_go()
        if self._segment is not None and self._has_won(self._segment):
            return self._interrupt(self._segment)
        if self._ducked_at is None:
            return self._duck() if self._is_suspicious() else []
        return self._let_go() if self._is_over(self._ducked_at) else []

    def _has_won(self, segment: SpeechSegment) -> bool:
        if segment.silenced or not segment.reported:
            return False
        if segment.over_agent and self._insists():
            return True
        if not segment.goes_on(self._now):
            return False
        sure = self._rules.sure_ms * _SAMPLES_PER_MS
        if segment.overlap_samples >= sure and not segment.over_agent:
            return True
        if self._agent.guarded:
            attempt = self._overlap.attempt
            lasts = self.ducked and attempt is not None and attempt.known
            return segment.over_agent and segment.length >= sure and lasts
        return segment.over_agent and self._is_sustained()

    def _is_sustained(self) -> bool:
        attempt = self._overlap.attempt
        if attempt is None:
            return False
        weight = self._weight()
        again = weight > _UNKNOWN_WEIGHT and attempt.spell_clear_frames > 0
        tries = attempt.spells if again and not self._agent.held else 1
        needed = self._rules.yield_samples * self._rules.repeat_share ** (tries - 1)
        clear_needed = max(_LEAST_CLEAR_SAMPLES, _CLEAR_SHARE * needed / weight)
        return attempt.samples * weight >= needed and attempt.clear_samples >= clear_needed

    def _insists(self) -> bool:
        """Whether somebody as loud as the user makes the agent fall silent again and again."""
        said, attempt = self._insistence, self._overlap.attempt
        if not self.ducked or said.tries < 2 or (attempt is not None and attempt.steady):
            return False
        yield_samples = self._rules.yield_samples
        loud_enough = said.samples >= _INSISTENT_SHARE * yield_samples
        just_now = self._now - said.until <= _JUST_NOW_SAMPLES
        return loud_enough and just_now and said.span_samples >= yield_samples

    def _weight(self) -> float:
        """How much what is heard sounds like the user, 0.2 to 1."""
        attempt, user_dbfs = self._overlap.attempt, self._user.dbfs
        if attempt is None or attempt.steady or self._dismissed:
            return _LEAST_WEIGHT
        if user_dbfs is None:
            return 1.0
        shift_db = 6.0 * (self._rules.eagerness - 0.5)
        below_db = user_dbfs - attempt.level_dbfs - shift_db
        span_db = max(self._rules.stranger_db - self._rules.user_db, 0.1)
        likeness = (self._rules.stranger_db - below_db) / span_db
        return min(max(likeness, _LEAST_WEIGHT if attempt.known else _UNKNOWN_WEIGHT), 1.0)

    def _is_suspicious(self) -> bool:
        if self._agent.held:
            return not self._ignores() and self._sounds_like_speech()
        too_soon = self._now - self._resumed_at < _LEAST_SOUND_SAMPLES
        if self._has_floor() or too_soon or self._ignores():
            return False
        if self._agent.guarded:
            # What sounded like speech then shall not count when the guard is over.
            self._overlap.calm()
            return self._outlasts_blips()
        heard = self._sounds_like_speech()
        self._ducked_unheard = not heard
        return heard or self._overlap.exceeds_echo >= self._rules.reluctance

    def _sounds_like_speech(self) -> bool:
        return self._overlap.suspicion >= self._rules.duck_score * self._rules.reluctance

    def _outlasts_blips(self) -> bool:
        segment = self._segment
        blip_samples = self._rules.blip_ms * _SAMPLES_PER_MS
        return segment is not None and segment.length >= blip_samples and segment.goes_on(self._now)

    def _ignores(self) -> bool:
        """Whether somebody is taken for another than the user, until he pauses or grows loud."""
        if not self._dismissed:
            return False
        attempt = self._overlap.attempt
        steady = attempt is not None and attempt.steady
        if self._bold_frames >= _BOLD_FRAMES and not steady:
            self._dismissed = False
            self._forget_speech()
        elif self._now - self._active_at >= _DISMISSED_PAUSE_SAMPLES:
            self._dismissed = False
        return True

    def _has_floor(self) -> bool:
        """Whether the user began to speak before the agent, or stopped it, and has not finished."""
        segment = self._segment
        return segment is not None and (segment.silenced or not segment.over_agent)

    def _is_over(self, ducked_at: int) -> bool:
        silence = pause_samples(self._rules.resume_ms, self.echo_delay_ms)
        lasts, unheard = self._now - ducked_at, self._ducked_unheard
        listened = self._agent.held or has_listened(lasts, self.echo_delay_ms, unheard=unheard)
        if listened and self._now - self._active_at >= silence:
            if self._agent.guarded and not self._agent.held:
                self._dismissed = True
                self._forget_speech()
            return True
        too_long = lasts >= self._rules.max_duck_ms * _SAMPLES_PER_MS
        self._dismissed = too_long or self._is_stranger()
        self._bold_frames = 0
        return self._dismissed

    def _is_stranger(self) -> bool:
        """Whether it was heard for long enough to be sure that it is not the user."""
        attempt = self._overlap.attempt
        if attempt is None or not attempt.known:
            return False
        return attempt.samples >= self._rules.yield_samples and self._weight() < _STRANGER_WEIGHT

    def _is_unsure(self) -> bool:
        """Whether the agent's echo may still hide what there is."""
        if self._ducked_at is None or self._agent.held or self._agent.unheard:
            return self.ducked and not self._agent.unheard and not self._agent.silent
        return echo_hides(self._now - self._ducked_at, self.echo_delay_ms)

    def _duck(self) -> list[BargeInEvent]:
        self._insistence.try_again(self._now)
        self._ducked_at = self._active_at = self._now
        return [DuckDue(self._now)]

    def _interrupt(self, segment: SpeechSegment) -> list[BargeInEvent]:
        segment.silenced = True
        self._ducked_at = None
        self._forget_speech()
        return [BargeInDue(self._now)]

    def _let_go(self) -> list[BargeInEvent]:
        if self._ducked_at is None:
            return []
        self._ducked_at = None
        self._resumed_at = self._now
        self._overlap.calm()
        return [ResumeDue(self._now)]
