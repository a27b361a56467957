"""What is heard while the agent speaks: how much of it sounds like the user, and how long."""

from collections import deque
from dataclasses import dataclass

import numpy as np

from agent.media.audio import SILENCE_DBFS, power_dbfs
from agent.types import MIC_RATE_HZ

_SAMPLES_PER_MS = MIC_RATE_HZ // 1000

_LIKELY = 0.5
_STILL_LIKELY = 0.35
"""A voice that is there already needs less to count on."""
_AGAIN_LIKELY = 0.3
_AS_LOUD_DB = 10.0
"""Down to this much below its loudest moment a voice is known by its loudness."""
_LEAST_LIFT_DB = 6.0
_FULL_LIFT_DB = 18.0
"""So far above the residual echo a likelihood counts fully; below the first, not at all."""
_LOUD_LIFT_DB = 15.0
_FULLY_LOUD_LIFT_DB = 25.0
"""The same for a sound that the canceller may have made unlike any voice."""
_USERLIKE_DB = 10.0
"""Such a sound is not weaker than the user by more than this."""
_FAR_DB = 20.0
_MAX_BACKDATE_SAMPLES = 400 * _SAMPLES_PER_MS
_FADED_DB = 25.0
"""So far below its loudest moment a voice has ended, whatever its reverberation looks like."""
_GOING_ON_DB = 20.0
"""A sound this far below the loudest moment of a voice may still be that voice."""
_SYLLABLE_GAP_SAMPLES = 128 * _SAMPLES_PER_MS
_SPELL_GAP_SAMPLES = 250 * _SAMPLES_PER_MS
"""A shorter pause belongs to a word or lies between two; after a longer one it is a new attempt."""
_STEADY_DB = 1.2
"""Speech rises and falls; what varies less than this is a motor, a tone or a hum."""
_KNOWN_FRAMES = 8
"""So many frames without echo tell how loud a voice is."""
_MAX_LEVELS = 64
SURE_DB = 2.0
"""So far above all that the echo should be, a sound is none, even while the agent is heard."""
_TAIL_DB = 12.0
"""So far below the loudest moment before, a sound may be what the room makes of it."""
_EXCESS = 9.0
"""A sum of decibels above the echo. In 12 simulated rooms the agent alone came up to 7 in five
minutes; 35 of 36 voices 2 to 14 dB above the echo surpassed it, after 120 ms in the middle."""
_USER_LOUD_DB = 6.0
"""Down to this much below the user's own level a frame is as loud as he is."""


@dataclass(frozen=True, slots=True)
class VoiceFrame:
    """A step of the voice detector, which ends at sample `until` (16 kHz) of the microphone.

    `likelihood`, 0..1, that it holds speech; its level after the echo was taken out; that of the
    microphone, and how far it is above all that the echo should be, as `EchoLevel` tells it.
    """

    until: int
    likelihood: float
    cleaned_dbfs: float
    near_dbfs: float = SILENCE_DBFS
    over_echo_db: float = 0.0


class Attempt:
    """Speech over the agent: one spell of it, or several with pauses of up to a second."""

    def __init__(self, onset: int) -> None:
        self.spells = 1
        self.voiced_until = onset
        self.loudest_dbfs = SILENCE_DBFS
        self.spell_from = onset
        self.spell_clear_frames = 0
        """So many of its newest spell cannot be echo."""
        self.clear_samples = 0
        """So much of it cannot be echo."""
        self._earlier_samples = 0
        self._disturbed = _Power()
        self._undisturbed = _Power()
        self._clear = _Power()
        self._levels_dbfs: deque[float] = deque(maxlen=_MAX_LEVELS)

    @property
    def samples(self) -> int:
        """How long it has lasted, short pauses counted, long ones not."""
        return self._earlier_samples + self.spell_samples

    @property
    def spell_samples(self) -> int:
        """How long its newest spell has lasted."""
        return self.voiced_until - self.spell_from

    @property
    def known(self) -> bool:
        """Whether enough of it was heard without echo to tell how loud it is."""
        return self._undisturbed.frames >= _KNOWN_FRAMES

    @property
    def level_dbfs(self) -> float:
        """Its effective level; before that is `known`, rather too low."""
        if not self.known:
            return self._disturbed.dbfs
        return max(self._undisturbed.dbfs, self._clear.dbfs)

    @property
    def steady(self) -> bool:
        """Whether its level hardly varies, as no speech is."""
        return self.known and float(np.std(list(self._levels_dbfs))) < _STEADY_DB

    def add(self, frame: VoiceFrame, begin: int, *, undisturbed: bool) -> None:
        """Another frame of voice, from sample `begin` on; does it have its true level?"""
        if begin - self.voiced_until >= _SPELL_GAP_SAMPLES:
            self._earlier_samples = self.samples
            self.spell_from = begin
            self.spells += 1
            self.spell_clear_frames = 0
        is_tail = frame.cleaned_dbfs < self.loudest_dbfs - _TAIL_DB
        stands_out = frame.over_echo_db >= SURE_DB
        if stands_out or (undisturbed and not is_tail):
            self.spell_clear_frames += 1
            self.clear_samples += frame.until - begin
            self._clear.add(frame.near_dbfs if stands_out else frame.cleaned_dbfs)
        self.voiced_until = frame.until
        self.loudest_dbfs = max(self.loudest_dbfs, frame.cleaned_dbfs)
        self._disturbed.add(frame.cleaned_dbfs)
        if undisturbed:
            self._undisturbed.add(frame.cleaned_dbfs)
            self._levels_dbfs.append(frame.cleaned_dbfs)


class _Power:
    """A mean of levels, taken as power."""

    def __init__(self) -> None:
        self.frames = 0
        self._sum = 0.0

    def add(self, level_dbfs: float) -> None:
        self.frames += 1
        self._sum += 10 ** (level_dbfs / 10)

    @property
    def dbfs(self) -> float:
        return power_dbfs(self._sum / max(1, self.frames))


class Overlap:
    """Follows the voice in the microphone, a frame of the detector at a time.

    `suspicion` is quick and forgetful: the likelihoods of the last 150 ms or so, weighed by how
    far the sound stands out of the residual echo. To these comes a little for any sound as loud
    as the user: the canceller takes so much out of a voice that is not louder than the echo that
    the detector may not know it any more.

    `excess` sums up how far the microphone is above the echo, which tells of a voice of which the
    canceller leaves nothing at all.

    `attempt` is what has been said since the last pause of `memory_samples`; None before anybody
    spoke.
    """

    _suspicion_kept = 0.8
    _presence_kept = 0.85
    _presence_weight = 0.1
    _floor_falls, _floor_rises = 0.3, 0.03

    def __init__(self, memory_samples: int) -> None:
        self._memory_samples = memory_samples
        self._until = 0
        self._floor_dbfs = -50.0
        self._voice = 0.0
        self._presence = 0.0
        self._excess = 0.0
        self._sound_from = 0
        self._sound_until = 0
        self._level_dbfs = SILENCE_DBFS
        self.lift_db = 0.0
        """How far the last frame stood out of the residual echo."""
        self.attempt: Attempt | None = None

    @property
    def suspicion(self) -> float:
        """That somebody speaks; 1 is as good as sure."""
        return self._voice + self._presence_weight * self._presence

    def push(self, frame: VoiceFrame, user_dbfs: float | None, *, echo_free: bool) -> bool:
        """The next frame, and how loud the user speaks, if known; whether it holds voice.

        Levels are believed only where there is no echo: with it the canceller takes away voice.
        """
        begin, self._until = self._until, frame.until
        self._level_dbfs = frame.cleaned_dbfs
        self.lift_db = frame.cleaned_dbfs - self._floor_dbfs
        self._follow_floor(frame)
        weight = _share(self.lift_db, _LEAST_LIFT_DB, _FULL_LIFT_DB)
        likely = weight * frame.likelihood * self._userlike(frame, user_dbfs)
        self._voice = self._suspicion_kept * self._voice + likely
        self._follow_sound(frame, begin, user_dbfs)
        if weight == 0 or not self._is_voice(frame):
            return False
        if self.attempt is None:
            onset = max(self._sound_from, begin - _MAX_BACKDATE_SAMPLES)
            self.attempt = Attempt(onset)
        self.attempt.add(frame, begin, undisturbed=echo_free)
        return True

    @property
    def sounding(self) -> bool:
        """Whether what somebody said may go on, although the detector does not know it."""
        attempt = self.attempt
        if attempt is None or self.lift_db < _FULL_LIFT_DB:
            return False
        return self._level_dbfs > attempt.loudest_dbfs - _GOING_ON_DB

    def is_loud(self, frame: VoiceFrame, user_dbfs: float | None, *, echo_free: bool) -> bool:
        """Whether this frame, the last one pushed, is no echo and as loud as the user.

        The canceller may have taken it out: where it is far above the echo the microphone tells.
        """
        if user_dbfs is None:
            return False
        if frame.over_echo_db >= SURE_DB:
            return frame.near_dbfs >= user_dbfs - _USER_LOUD_DB
        stands_out = echo_free and self.lift_db >= _FULL_LIFT_DB
        return stands_out and frame.cleaned_dbfs >= user_dbfs - _USER_LOUD_DB

    @property
    def exceeds_echo(self) -> float:
        """That there is more than echo; 1 is as good as sure."""
        return self._excess / _EXCESS

    def forget(self) -> None:
        """Nobody has spoken."""
        self.calm()
        self.attempt = None
        self._sound_from = self._until

    def calm(self) -> None:
        """Suspect nobody, but remember the attempt."""
        self._voice = self._presence = self._excess = 0.0

    def _follow_sound(self, frame: VoiceFrame, begin: int, user_dbfs: float | None) -> None:
        """Where the sound that goes on began, and how much there was of it lately."""
        quiet = user_dbfs is not None and frame.cleaned_dbfs < user_dbfs - _USERLIKE_DB
        loud = 0.0 if quiet else _share(self.lift_db, _LOUD_LIFT_DB, _FULLY_LOUD_LIFT_DB)
        self._presence = self._presence_kept * self._presence + loud
        self._excess = min(max(self._excess + frame.over_echo_db, 0.0), 2.0 * _EXCESS)
        if self.lift_db >= _FULL_LIFT_DB or frame.over_echo_db >= SURE_DB:
            if begin - self._sound_until > _SYLLABLE_GAP_SAMPLES:
                self._sound_from = begin
            self._sound_until = frame.until
        elif begin - self._sound_until > _SYLLABLE_GAP_SAMPLES:
            self._sound_from = begin

    @staticmethod
    def _userlike(frame: VoiceFrame, user_dbfs: float | None) -> float:
        """What is far weaker than the user is rather a rest of echo."""
        if user_dbfs is None:
            return 1.0
        return _share(frame.cleaned_dbfs, user_dbfs - _FAR_DB, user_dbfs - _USERLIKE_DB)

    def _follow_floor(self, frame: VoiceFrame) -> None:
        """Down at once, up slowly, and hardly up while somebody speaks."""
        level = min(max(frame.cleaned_dbfs, SILENCE_DBFS), self._floor_dbfs + 10.0)
        speed = self._floor_falls if level < self._floor_dbfs else self._floor_rises
        self._floor_dbfs += speed * (level - self._floor_dbfs)

    def _is_voice(self, frame: VoiceFrame) -> bool:
        """Whether somebody speaks: a voice that is known already is believed in more readily."""
        pause = frame.until - self.attempt.voiced_until if self.attempt else self._memory_samples
        if pause >= self._memory_samples:
            self.attempt = None
        if self.attempt is None:
            return frame.likelihood >= _LIKELY
        below_db = self.attempt.loudest_dbfs - frame.cleaned_dbfs
        if pause > _SPELL_GAP_SAMPLES:
            return frame.likelihood >= (_AGAIN_LIKELY if below_db < _AS_LOUD_DB else _LIKELY)
        if self.lift_db >= _FULL_LIFT_DB and below_db < _AS_LOUD_DB:
            return True
        return frame.likelihood >= _STILL_LIKELY and below_db < _FADED_DB


def _share(value: float, none: float, full: float) -> float:
    """0 up to `none`, 1 from `full` on, straight between."""
    return min(max((value - none) / (full - none), 0.0), 1.0)


class Insistence:
    """Sounds as loud as the user over the agent, whatever the detector takes them for.

    Of a short word that is said again and again the detector may know none: the canceller spoils
    its beginning, and it is over before the echo is. Nobody coughs that often.
    """

    def __init__(self, memory_samples: int) -> None:
        self._memory_samples = memory_samples
        self._latest = 0
        self.since = 0
        """Where the first of them began."""
        self.until = 0
        """Where the last of them ended."""
        self.samples = 0
        """How long they were in all, pauses left out."""
        self.tries = 0
        """How often the agent fell silent for them."""

    @property
    def span_samples(self) -> int:
        """From the first to the last, pauses counted."""
        return self.until - self.since

    def hear(self, begin: int, until: int) -> None:
        """Another sound that is no echo and as loud as the user."""
        self._follow(begin, until)
        if not self.samples:
            self.since = begin
        self.samples += until - begin
        self.until = until

    def try_again(self, now: int) -> None:
        """The agent falls silent."""
        self._follow(now, now)
        self.tries += 1

    def forget(self) -> None:
        """Nothing was heard yet."""
        self.since = self.until
        self.samples = self.tries = 0

    def _follow(self, begin: int, until: int) -> None:
        if begin - self._latest >= self._memory_samples:
            self.forget()
        self._latest = until


class UserLevel:
    """How loud this user speaks, learned from what he says while the agent is silent."""

    _rises, _falls, _falls_far = 0.3, 0.3, 0.05
    _far_db = 5.0
    _chunk_frames = 16

    def __init__(self) -> None:
        self.dbfs: float | None = None
        """Effective level of his voice; None before he has spoken for half a second."""
        self._chunk = _Power()

    def push(self, frame: VoiceFrame) -> None:
        """A frame that holds his voice and no echo."""
        self._chunk.add(frame.cleaned_dbfs)
        if self._chunk.frames == self._chunk_frames:
            self._learn(self._chunk.dbfs)
            self._chunk = _Power()

    def _learn(self, level_dbfs: float) -> None:
        if self.dbfs is None:
            self.dbfs = level_dbfs
            return
        change_db = level_dbfs - self.dbfs
        # What is much weaker may be somebody else in the room.
        falls = self._falls_far if change_db < -self._far_db else self._falls
        self.dbfs += (self._rises if change_db > 0 else falls) * change_db
