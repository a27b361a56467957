"""Reference voices as the model hears them: in the prompt of a call, and before its answers.

A call holds on to its voice by a key, which stays the same voice whatever becomes of its name.
"""

from functools import partial
from typing import Protocol
from weakref import WeakKeyDictionary

from torch import Tensor

from agent.duplex.content import hear_whole
from agent.duplex.model import DuplexModel
from agent.errors import CheckpointError, RequestError
from agent.interfaces import VoiceKey
from agent.types import FloatArray


class Recordings(Protocol):
    """Where voices come from."""

    def ids(self) -> tuple[str, ...]:
        """Of all that can be spoken with."""

    def resolve(self, voice_id: str, language: str = "") -> VoiceKey:
        """The key of the voice that is called so now; RequestError.

        For "" that of the first one that speaks `language`, or of the first.
        """

    def samples(self, key: VoiceKey) -> FloatArray:
        """Its recording f32 [T] at 16 kHz; CheckpointError when that is gone or damaged."""


class Voices(Protocol):
    """Voices by their ids."""

    def ids(self) -> tuple[str, ...]:
        """Of all that can be spoken with."""

    def resolve(self, voice_id: str, language: str = "") -> VoiceKey:
        """The key of the voice that is called so now; RequestError.

        For "" that of the first one that speaks `language`, or of the first.
        """

    def duplex(self, key: VoiceKey) -> Tensor | None:
        """The voice for the prompt of a duplex call [n, W]; None: there is nothing to hear."""

    def turns(self, key: VoiceKey) -> Tensor | None:
        """The voice for the system message of a turn-based conversation [n, W], or None."""


class NoVoices:
    """Where nothing is known of voices: every name will do, and says nothing."""

    def ids(self) -> tuple[str, ...]:
        """None."""
        return ()

    def resolve(self, voice_id: str, language: str = "") -> VoiceKey:
        """The name itself."""
        return VoiceKey(voice_id)

    def duplex(self, key: VoiceKey) -> None:
        """Nothing."""

    def turns(self, key: VoiceKey) -> None:
        """Nothing."""


class HeardVoices:
    """The recordings of voices, heard once each. For the one thread that works on the model.

    The vectors of a voice, 150 at most, are kept as long as somebody holds its key.
    """

    def __init__(self, model: DuplexModel, recordings: Recordings) -> None:
        self._model = model
        self._recordings = recordings
        self._heard: WeakKeyDictionary[VoiceKey, dict[bool, Tensor]] = WeakKeyDictionary()

    def ids(self) -> tuple[str, ...]:
        """See `Voices`."""
        return self._recordings.ids()

    def resolve(self, voice_id: str, language: str = "") -> VoiceKey:
        """See `Voices`."""
        return self._recordings.resolve(voice_id, language)

    def duplex(self, key: VoiceKey) -> Tensor:
        """See `Voices`; RequestError when the recording is gone or damaged."""
        return self._vectors(key, whole=False)

    def turns(self, key: VoiceKey) -> Tensor:
        """See `Voices`; errors as above."""
        return self._vectors(key, whole=True)

    def _vectors(self, key: VoiceKey, *, whole: bool) -> Tensor:
        heard = self._heard.setdefault(key, {})
        if whole not in heard:
            hear = partial(hear_whole, self._model) if whole else self._model.hear_voice
            heard[whole] = hear(self._samples(key))
        return heard[whole]

    def _samples(self, key: VoiceKey) -> FloatArray:
        try:
            return self._recordings.samples(key)
        except CheckpointError as error:
            raise RequestError(
                f"the voice cannot be used: {error}", param="voice", code="voice_damaged"
            ) from error
