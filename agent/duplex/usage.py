"""What a turn took: counted in positions of the context and in tokens that were generated."""

from collections.abc import Callable
from dataclasses import dataclass

from agent.types import Usage


@dataclass(frozen=True, slots=True)
class Held:
    """What a conversation's context holds, in positions.

    `audio` and `pictures` are vectors, without the marks around them; `generated` what the newest
    turn has said of itself up to now; all else is text.
    """

    total: int = 0
    audio: int = 0
    pictures: int = 0
    generated: int = 0


class Meter:
    """Counts a call's turns.

    A turn is answered from all that the context held, as OpenAI counts it; known of that was what
    the turn before it left.
    """

    def __init__(self, held: Callable[[], Held] = Held) -> None:
        """`held` says what the context holds now."""
        self._held = held
        self._known = self._words = self._speech = 0

    def add(self, words: int, speech: int = 0) -> None:
        """So many tokens of text and of speech were generated."""
        self._words += words
        self._speech += speech

    def now(self) -> Usage:
        """What the turn would have taken if it were over now."""
        return self._usage(self._held())

    def take(self) -> Usage:
        """The turn is over."""
        held = self._held()
        usage = self._usage(held)
        self._known, self._words, self._speech = held.total, 0, 0
        return usage

    def _usage(self, held: Held) -> Usage:
        taken = held.total - held.generated
        return Usage(
            text_in=taken - held.audio - held.pictures,
            audio_in=held.audio,
            pictures_in=held.pictures,
            cached_in=min(self._known, taken),
            text_out=self._words,
            audio_out=self._speech,
        )
