"""What a unit said becomes speech tokens, and how long it sounds."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from torch import Tensor

from agent.duplex.conversation_settings import ConversationSettings
from agent.duplex.memory import Memory, keep_speech
from agent.duplex.policy import Outcome, Spoken
from agent.duplex.random_source import RandomSource
from agent.duplex.slots import Slots
from agent.duplex.speech_lm import SPEECH_TOKEN_MS, UNIT_SPEECH_TOKENS
from agent.duplex.tokens import without_specials
from agent.duplex.work import Speak, Together, Work

UNIT_MS = 1000


@dataclass(frozen=True, slots=True)
class Sounds:
    """How many tokens of a unit are in the cache already, and when it sounds."""

    fed: int
    spoken: Spoken


@dataclass(frozen=True, slots=True)
class UnitSpeech:
    """One conversation's way to speak."""

    memory: Memory
    slots: Slots
    settings: ConversationSettings
    random: RandomSource

    def steps(
        self, outcome: Outcome, states: Sequence[Tensor], beside: Sequence[Work]
    ) -> Generator[Work, None, list[int]]:
        """The unit's speech tokens, with `beside`; `states` [W] are those at each token fed.

        The first token it decided is never spoken, nor is what calls a function: a turn that has
        said nothing else is silent, and one that has goes on to sound.
        """
        memory = self.memory
        if outcome.drops_speech:
            memory.forget_speech()
        if outcome.listened or not self.settings.speaks or self._is_silent(outcome):
            yield from beside
            return []
        most = memory.speech.length + len(outcome.said) + 1 + UNIT_SPEECH_TOKENS
        if most > self.slots.speech.positions:
            memory.speech.length = 0  # a turn without a limit alone comes here: it speaks anew
        if not memory.speech.length:
            keep_speech(memory, self.slots)
        speech = Speak(
            outcome.said,
            [states[place] for place in outcome.said_at],
            memory.speech,
            self.settings.speech,
            self.random,
            may_end=outcome.ends_turn is not None or not memory.speech.length,
        )
        yield Together([speech, *beside]) if beside else speech
        return speech.tokens

    def _is_silent(self, outcome: Outcome) -> bool:
        says_words = bool(without_specials(outcome.said)) or self.memory.speech.length > 0
        return outcome.calls and not says_words

    def sounds(self, outcome: Outcome, fed: int, speech_tokens: int) -> Sounds:
        """When the unit sounds within its turn. Without speech, a unit's text takes a second."""
        if outcome.listened:
            return Sounds(fed, Spoken((), 0, 0))
        lag_ms = self.settings.speech_lag_ms if self.settings.speaks else 0
        start_ms = lag_ms if outcome.begins_turn else self.memory.turn_ms
        length_ms = speech_tokens * SPEECH_TOKEN_MS if self.settings.speaks else UNIT_MS
        return Sounds(fed, Spoken(outcome.said, start_ms, length_ms))
