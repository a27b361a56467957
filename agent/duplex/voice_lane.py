"""The lane of the vocoder, and what is asked of a vocoder besides sound.

One that makes the sound of many turns at once makes that of all who wait; to have a voice ready,
and to begin a turn in it, is done one by one, here and now.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from agent.duplex.lanes import Batch, Done, EagerLane, Failures
from agent.duplex.model import DuplexModel
from agent.duplex.slots import Slots
from agent.duplex.work import LaneName, Voice, Work, voice_failure
from agent.errors import VocoderError
from agent.interfaces import BatchVocoder, Vocoder, VocoderBatch, VocoderPush


@dataclass(slots=True)
class PrepareVoice:
    """Have a voice ready, before it is wanted; what goes wrong is kept as `Voice` keeps it."""

    vocoder: Vocoder
    voice: str
    error: VocoderError | None = None
    stage = "voice"
    lane: LaneName = "voice"

    def run(self, model: DuplexModel, slots: Slots) -> None:
        """Do it."""
        try:
            self.vocoder.prepare(self.voice)
        except (VocoderError, RuntimeError) as error:
            self.error = voice_failure(error)


class VoiceLane:
    """A `Lane` for a vocoder of batches."""

    def __init__(self, eager: EagerLane, vocoder: BatchVocoder) -> None:
        """`eager` does what is no sound."""
        self._eager = eager
        self._vocoder = vocoder

    def count(self, works: Sequence[Work]) -> int:
        """See `Lane`: sound of turns, each once."""
        streams: set[int] = set()

        def joins(work: Work) -> bool:
            is_new = isinstance(work, Voice) and id(work.stream) not in streams
            if isinstance(work, Voice):
                streams.add(id(work.stream))
            return is_new

        together = sum(1 for _ in takewhile(joins, works))
        return max(1, min(together, self._vocoder.most_pushes))

    def begin(self, works: Sequence[Work]) -> Batch:
        """See `Lane`."""
        voices = [work for work in works if isinstance(work, Voice)]
        if len(voices) < len(works):
            return self._eager.begin(works)
        pushes = [VocoderPush(one.stream, one.tokens, one.last) for one in voices]
        try:
            return _VoiceBatch(voices, self._vocoder.begin(pushes))
        except (VocoderError, RuntimeError) as error:
            _lose(voices, error)
            return Done()


@dataclass(frozen=True, slots=True)
class _VoiceBatch:
    voices: Sequence[Voice]
    batch: VocoderBatch

    @property
    def done(self) -> bool:
        """See `Batch`."""
        return self.batch.done

    def finish(self) -> Failures:
        """See `Batch`: what goes wrong is in the works, as it is with `Voice.run`."""
        try:
            for voice, sound in zip(self.voices, self.batch.take(), strict=True):
                if isinstance(sound, VocoderError):
                    voice.error = sound
                else:
                    voice.samples = sound
        except (VocoderError, RuntimeError) as error:
            _lose(self.voices, error)
        return {}


def _lose(voices: Sequence[Voice], error: VocoderError | RuntimeError) -> None:
    """What fails for all of them costs each its sound; raised where nothing works now."""
    failure = voice_failure(error)
    for voice in voices:
        voice.error = failure
