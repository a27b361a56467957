"""When to listen, when to speak, when to stop: the rules around the model's own decisions.

No torch here. A unit asks `UnitDecision` for its tokens one by one: some are dictated, the others
are drawn, and every one is taken in by the rules. Where the reference is wrong, the rule says so,
and `parity` brings its behaviour back:

- a turn given up because of forced listening is over for the speech LM too;
- a unit that ends its turn and then listens still speaks what it said;
- `<|chunk_eos|>` alone, with no turn going on, is listening, not a turn of silence.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from agent.duplex.tokens import SPECIAL_IDS, Token, without_specials

TERMINATORS = frozenset({Token.LISTEN, Token.CHUNK_EOS, Token.CHUNK_TTS_EOS})
"""What ends a unit's tokens; fed with `</unit>`, before the next unit."""

Calls: TypeAlias = Literal["unknown", "banned", "free"]
"""Of functions: the model knows of none, and what looks like a call is text; it must call none;
it may."""
Order: TypeAlias = Literal["free", "listen", "speak"]
"""What a unit is told to do: decide by itself, listen, or begin to speak."""
EndReason: TypeAlias = Literal["completed", "interrupted", "max_tokens"]

SPEECH_LAG_MS = 280
"""A turn's sound begins with so much that is not speech: three tokens of silence before it and the
delay of the model's own vocoder. What was said is heard that much later."""
_WORD_MS = 200.0
"""What a text token usually takes to be said; where an answer has said some, they tell."""
_MOST_LISTEN_BIAS = 4.0


@dataclass(frozen=True, slots=True)
class SpeakingRules:
    """The limits on a unit and a turn. The first three are the public demo's.

    `max_turn_units` ends a turn that finds no end; a unit takes 44 of the speech LM's positions at
    most, and a turn that has no more of them is spoken anew from there on.
    `max_silent_units` is the watchdog: a turn that says nothing for so long is ended. 0 is off.
    """

    max_tokens: int = 20
    """Tokens of a unit, the terminator counted: 1 control token and 18 of text."""
    max_chars: int = 28
    """A unit's text stays below this many Unicode characters."""
    forced_listen_units: int = 3
    max_turn_units: int = 90
    max_silent_units: int = 8
    max_turn_tokens: int | None = None
    """Text and calls of a turn; the turn ends with the last of them."""
    calls: Calls = "unknown"
    max_call_unit_tokens: int = 128
    """So many more a unit may have that calls: nobody says them, so they need no pace."""
    max_call_tokens: int = 512
    """A turn whose call is longer is ended, and nothing is called."""
    parity: bool = False


def listen_bias(eagerness: float) -> float:
    """For the logit of `<|listen|>`: eagerness 0 (waits) → 4, 0.5 → 0, 1 (jumps in) → −4."""
    return (0.5 - min(max(eagerness, 0.0), 1.0)) * 2 * _MOST_LISTEN_BIAS


@dataclass(slots=True)
class Floor:
    """Who has the floor: all that the rules remember from unit to unit."""

    turn: int = 0
    """Number of the agent's last turn; 0 before its first."""
    speaking: bool = False
    """Whether that turn goes on."""
    decided_units: int = 0
    turn_units: int = 0
    """Units of the turn that goes on."""
    silent_units: int = 0
    """How many of them, up to now, said nothing more."""
    turn_tokens: int = 0
    """Text and calls of it."""
    call: tuple[int, ...] | None = None
    """What it has written of a call of a function; None: it writes none."""

    def copy(self) -> "Floor":
        return replace(self)

    def give_up(self) -> None:
        """The turn is over."""
        self.speaking = False
        self.turn_units = self.silent_units = self.turn_tokens = 0
        self.call = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a unit."""

    fed: tuple[int, ...]
    """Tokens decided and fed after the input, without the terminator."""
    said: tuple[int, ...]
    """Those that are text or an end of turn, and go to the speech LM; nothing of a call."""
    terminator: int
    listened: bool
    turn: int
    """The turn that the unit belongs to; 0 where nobody speaks."""
    begins_turn: bool = False
    ends_turn: EndReason | None = None
    """Why the turn is over with this unit; None while it goes on, or where there is none."""
    drops_speech: bool = False
    """What the speech LM has not spoken yet is given up."""
    said_at: tuple[int, ...] = ()
    """Where in `fed` each of `said` is."""
    calls: bool = False
    """Whether it writes a call, or some of one."""
    called: tuple[int, ...] | None = None
    """All that the call holds that is complete with it, between its tags."""


class UnitDecision:
    """One unit's tokens. While not `over`: draw a token unless one is `dictated`, then `take` it;
    feed it if so told.

        while not decision.over:
            token = decision.dictated or sampler.choose(...)
            if decision.take(token):
                state = llm.read(decision.last)
        outcome = decision.close()

    `before` are tokens to be fed before the terminator without asking the model. A turn ends with
    the call that it makes; `opening` is what one begins with that has to make one.
    """

    def __init__(
        self,
        floor: Floor,
        rules: SpeakingRules,
        text: Callable[[Sequence[int]], str],
        order: Order = "free",
        opening: Sequence[int] = (),
    ) -> None:
        self._opening = tuple(opening) if not floor.speaking else ()
        self._said_at: list[int] = []
        self._called: tuple[int, ...] | None = None
        self._calls = floor.call is not None
        self._is_cut = False
        self._floor = floor
        self._rules = rules
        self._text = text
        self._was_speaking = floor.speaking
        self._order = order
        if order == "free" and floor.decided_units < rules.forced_listen_units:
            self._order = "listen"
        self._fed: list[int] = []
        self._terminator: int | None = None
        self._given_up = self._reason_to_give_up(forced=order == "listen")
        if self._given_up is not None:
            self._order = "listen"
            self._fed = [int(Token.TURN_EOS)]
            floor.speaking, floor.call = False, None
        self.before = tuple(self._fed)
        if self._order == "listen":
            self._terminator = Token.LISTEN

    def _reason_to_give_up(self, *, forced: bool) -> EndReason | None:
        """Why the turn that goes on is ended before the model is asked; None to let it go on."""
        floor, rules = self._floor, self._rules
        if not floor.speaking:
            return None
        if forced:
            return "interrupted"
        if rules.max_turn_units and floor.turn_units >= rules.max_turn_units:
            return "max_tokens"
        if self._is_full:
            return "max_tokens"
        if rules.max_silent_units and floor.silent_units >= rules.max_silent_units:
            return "completed"
        return None

    @property
    def _is_full(self) -> bool:
        """Whether the turn holds as many tokens as it may."""
        most, call = self._rules.max_turn_tokens, self._floor.call
        too_long = call is not None and len(call) >= self._rules.max_call_tokens
        return too_long or (most is not None and self._floor.turn_tokens >= most)

    @property
    def over(self) -> bool:
        return self._terminator is not None

    @property
    def dictated(self) -> int | None:
        """The token to take without drawing one; None where the model is free."""
        begins = not self._was_speaking
        if not self._fed:
            return int(Token.SPEAK) if self._order == "speak" and begins else None
        if not self._floor.speaking:
            return None
        if self._called is not None or self._is_full:
            return int(Token.TURN_EOS)
        return self._opening[len(self._fed) - 1] if len(self._fed) <= len(self._opening) else None

    @property
    def is_calling(self) -> bool:
        """Whether the next token is of a call: nobody says it."""
        return self._floor.call is not None

    @property
    def may_listen(self) -> bool:
        """Whether `<|listen|>` would be obeyed if it came now."""
        return not self._floor.speaking

    @property
    def turn(self) -> int:
        """The turn that the token taken last belongs to; 0 where nobody speaks."""
        return self._floor.turn if self._was_speaking or self._fed else 0

    @property
    def last(self) -> int:
        """The token taken last, as it is fed."""
        return self._fed[-1]

    def take(self, token: int) -> bool:
        """Whether `token` is to be fed (as `last`); otherwise the unit is over."""
        if token == Token.LISTEN and not self.may_listen:
            # Nobody listens in the middle of a turn; so the model was trained.
            token = int(Token.TTS_BOS)
        if token in TERMINATORS:
            self._terminator = token
            return False
        if self._fed and self._is_refused(token):
            self._terminator = Token.CHUNK_EOS  # the token is dropped, though it was drawn
            return False
        self._open_turn()
        self._fed.append(token)
        self._note(token)
        self._floor.speaking = token != Token.TURN_EOS
        if self._ends_with(token):
            self._terminator = Token.CHUNK_EOS
        return True

    def _is_refused(self, token: int) -> bool:
        if self._floor.call is not None or token == Token.TURN_EOS:
            return False
        if token == Token.TOOL_CALL and self._rules.calls != "unknown":
            return self._rules.calls == "banned"
        return self._too_long(token)

    def _note(self, token: int) -> None:
        """Whether the token is said, or of a call, or ends one."""
        floor, place = self._floor, len(self._fed) - 1
        self._is_cut = token == Token.TURN_EOS and self._called is None and self._is_full
        floor.turn_tokens += token not in SPECIAL_IDS
        if floor.call is None:
            if token == Token.TOOL_CALL and self._rules.calls == "free":
                floor.call, self._calls = (), True
            elif place:
                self._said_at.append(place)
        elif token == Token.TURN_EOS:
            self._said_at.append(place)
            self._called, floor.call = None if self._is_cut else floor.call, None
        elif token == Token.END_TOOL_CALL:
            self._called, floor.call = floor.call, None
        else:
            floor.call = (*floor.call, token)

    def _ends_with(self, token: int) -> bool:
        """Whether the unit is over with this token."""
        if token == Token.TURN_EOS and (self._called is not None or self._is_cut):
            return True
        if self._called is not None or self._is_full:
            return False  # the end of the turn comes next
        most = self._rules.max_tokens - 1
        return len(self._fed) == most + (self._rules.max_call_unit_tokens if self._calls else 0)

    def _open_turn(self) -> None:
        if not self._floor.speaking and not self._fed:
            self._floor.turn += 1
            self._floor.turn_units = self._floor.silent_units = self._floor.turn_tokens = 0
            self._floor.call = None
        self._floor.speaking = True

    def _too_long(self, token: int) -> bool:
        said = [*self._fed[1:], token]
        return bool(self._rules.max_chars) and len(self._text(said)) >= self._rules.max_chars

    def close(self) -> Outcome:
        """What became of the unit, once it is over; the floor is settled for the next one."""
        assert self._terminator is not None, "the unit is not over"
        floor = self._floor
        floor.decided_units += 1
        outcome = self._given_up_outcome() if self._given_up is not None else self._outcome()
        if outcome.listened:
            floor.turn_units = floor.silent_units = 0
        else:
            floor.turn_units += 1
            silent = not without_specials(outcome.said) and not outcome.calls
            floor.silent_units = floor.silent_units + 1 if silent else 0
        return outcome

    def _outcome(self) -> Outcome:
        assert self._terminator is not None
        took_part = self._was_speaking or bool(self._fed)
        ended = bool(self._fed) and self._fed[-1] == Token.TURN_EOS
        reason: EndReason = "max_tokens" if self._is_cut else "completed"
        return Outcome(
            fed=tuple(self._fed),
            said=tuple(self._fed[place] for place in self._said_at),
            terminator=int(self._terminator),
            listened=self._listened(took_part),
            turn=self._floor.turn if took_part else 0,
            begins_turn=bool(self._fed) and not self._was_speaking,
            ends_turn=reason if ended else None,
            said_at=tuple(self._said_at),
            calls=self._calls,
            called=self._called,
        )

    def _listened(self, took_part: bool) -> bool:
        if self._rules.parity:
            return self._terminator == Token.LISTEN
        return not took_part

    def _given_up_outcome(self) -> Outcome:
        return Outcome(
            fed=self.before,
            said=(),
            terminator=int(Token.LISTEN),
            listened=True,
            turn=self._floor.turn,
            ends_turn=self._given_up,
            drops_speech=not self._rules.parity,
        )


# ---- what was heard -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spoken:
    """One unit of a turn as it can be heard."""

    said: tuple[int, ...]
    start_ms: int
    """When its first speech token sounds, counted from the turn's first sample."""
    length_ms: int


def heard_tokens(unit: Spoken, heard_ms: int) -> int:
    """How many of the unit's `said` sounded in full when the turn was heard for `heard_ms`.

    Text is taken to sound evenly over the unit's speech; a unit's text is paced to its second.
    """
    words = len(without_specials(unit.said))
    since_ms = heard_ms - unit.start_ms
    if since_ms >= unit.length_ms:
        return len(unit.said)
    return words * max(0, since_ms) // max(1, unit.length_ms)


def expected_length(chunks: Sequence[Spoken]) -> tuple[Spoken, ...]:
    """The chunks of an answer, the last as long as it would have become: only its beginning was
    made when it was given up. Words are taken to last as long as those before them."""
    *before, last = chunks
    words = sum(len(without_specials(one.said)) for one in before)
    word_ms = sum(one.length_ms for one in before) / words if words else _WORD_MS
    whole_ms = int(word_ms * len(without_specials(last.said)))
    return (*before, replace(last, length_ms=max(last.length_ms + 1, whole_ms)))


def first_unheard(units: Iterable[Spoken], heard_ms: int) -> int | None:
    """The first of a turn's units that holds text which was not heard; None if all was."""
    for index, unit in enumerate(units):
        if without_specials(unit.said) and heard_tokens(unit, heard_ms) < len(unit.said):
            return index
    return None
