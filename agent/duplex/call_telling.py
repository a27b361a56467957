"""What a duplex call tells of its units: turns, words, sound, and the functions that are called."""

from collections.abc import Generator, Sequence
from typing import Any, TypeAlias

from agent.chat_types import ChatToolCall
from agent.duplex.conversation import Conversation
from agent.duplex.conversation_settings import UnitResult
from agent.duplex.pace import Pace
from agent.duplex.policy import Outcome
from agent.duplex.tokens import without_specials
from agent.duplex.trial import TurnNumbers
from agent.duplex.usage import Meter
from agent.duplex.voice_line import VoiceLine
from agent.duplex.work import Work
from agent.types import Listened, ToolCalled, TurnEndReason

Steps: TypeAlias = Generator[Work, None, Any]


class CallTelling:
    """Tells over `line` what `talk` does.

    What a function did cannot be undone: a call in a unit that is only tried waits until that
    stands, and the end of its turn with it.
    """

    def __init__(self, talk: Conversation, line: VoiceLine, pace: Pace) -> None:
        self._talk = talk
        self._line = line
        self._pace = pace
        self._turns = TurnNumbers()
        self._meter = line.meter = Meter(lambda: talk.held(self.own(line.turn)))
        self.is_asked = False
        """Whether the unit under way is told to speak."""
        self._held: tuple[ChatToolCall, TurnEndReason | None, int] | None = None

    def own(self, turn: int) -> int:
        """The conversation's number of a turn; 0 for one that never was, or is long forgotten."""
        return self._turns.own(turn)

    def decided(
        self, unit: int, outcome: Outcome, text: str, voice: str, came_s: float
    ) -> Sequence[Work]:
        """Tell what a unit that came at `came_s` decides → what can be done while it speaks."""
        line, beside = self._line, list[Work]()
        self._pace.begin(came_s)
        self._meter.add(len(without_specials(outcome.fed)))
        if outcome.begins_turn:
            speaks = self._talk.settings.speaks
            beside += line.begin(voice, speaks=speaks, asked=self.is_asked, pace=self._pace)
            self._turns.begin(line.turn, outcome.turn)
        if not outcome.listened:
            line.tell_words(unit, text)
        return beside

    def say(self, result: UnitResult, *, is_tried: bool) -> Steps:
        """Let its speech be heard, and its call be known."""
        outcome, line, ends = result.outcome, self._line, result.outcome.ends_turn
        self._meter.add(0, len(result.speech_tokens))
        if result.call is not None and is_tried:
            self._held, ends = (result.call.told(), ends, result.unit), None
        elif result.call is not None:
            self._tell_call(result.call.told())
        if outcome.listened:
            line.tell(Listened(result.unit))
            if ends is not None:
                yield from line.say(result.unit, ends=ends)
        else:
            yield from line.say(result.unit, result.speech_tokens, ends)
            self._pace.over()

    def _tell_call(self, call: ChatToolCall) -> None:
        self._line.tell(ToolCalled(self._line.turn, call.call_id, call.name, call.arguments))

    def stand(self) -> Steps:
        """What was tried is no trial any more."""
        held, self._held = self._held, None
        if held is not None:
            call, ends, unit = held
            self._tell_call(call)
            yield from self._line.say(unit, (), ends)

    def take_back(self) -> None:
        """What was tried never was."""
        self._held = None
        if self._line.turn in self._turns.take_back(self._talk.turn):
            self._line.end("interrupted")

    def interrupted(self, turn: int) -> None:
        """`turn` is over."""
        if turn == self._line.turn:
            self._held = None
            self._line.end("interrupted")
