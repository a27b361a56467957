"""One duplex conversation: a unit in, what the model made of it out. To reset it, drop it.

A unit is one fused prefill (the terminator and `</unit>` of the unit before it, `<unit>`, its
pictures, ten vectors of sound) and then a token at a time while the policy lets the model speak;
what it said goes through the speech LM. `steps` tells that story and leaves the work to whoever
runs it; `step` runs it here and now. What is refused is refused before anything was fed, and the
conversation goes on as if it had not come.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import Tensor

from agent.duplex.context import Context, lay_out_window
from agent.duplex.conversation_settings import ConversationSettings, UnitResult
from agent.duplex.lanes import Runner
from agent.duplex.memory import (
    Memory,
    Parked,
    Snapshot,
    UnitRecord,
    go_back,
    keep_speech,
    new_memory,
    take_snapshot,
)
from agent.duplex.pictures import patch_picture
from agent.duplex.policy import Order, Outcome, Spoken, UnitDecision
from agent.duplex.prompt import DuplexPrompt
from agent.duplex.random_source import RandomSource
from agent.duplex.sampling import Drawing, History, TextSampler
from agent.duplex.speech_lm import SPEECH_TOKEN_MS, UNIT_SPEECH_TOKENS
from agent.duplex.tokens import TextStream, Token, Vocabulary
from agent.duplex.unit_senses import MAX_PICTURES, sense
from agent.duplex.window import Window
from agent.duplex.work import Choice, Read, Speak, Together, Work
from agent.errors import EngineError, RequestError
from agent.types import ByteArray, Unit

T = TypeVar("T")

UNIT_MS = 1000
MAX_PUT_IN_TOKENS = 2048
"""Text that may wait for the next unit."""
_UNIT_TOKENS = 20  # sound, marks and what closes a unit, rounded up


class Conversation:
    """One conversation over shared weights. Not for two threads at once."""

    def __init__(
        self,
        runner: Runner,
        prompt: DuplexPrompt,
        voice: Tensor | None = None,
        settings: ConversationSettings | None = None,
        script: Iterator[int] | None = None,
        *,
        opened: bool = True,
    ) -> None:
        """Take a slot and read the prompt, with the vectors [n, W] of a reference voice in it.

        Not `opened`: `open_steps` reads it, before all else. `script` gives every token that would
        be drawn: for tests, which decide for the model.
        CapacityError when no slot is free, RequestError when the prompt is too long.
        """
        self._runner = runner
        self._script = script
        self._parked: Parked | None = None
        self._closed = False
        self.settings = settings or ConversationSettings()
        self._random = RandomSource.of(self.settings.seed)
        self._sampler = TextSampler(self.settings.text, runner.model.banned)
        window = self._laid_out(prompt, voice)
        memory = new_memory(
            runner.slots.take(),
            window,
            runner.model.vocabulary.text,
            History(self.settings.text.repetition_window),
        )
        memory.llm.length = window.protected
        self._context = Context(
            runner.model, runner.slots, memory, exact_moves=self.settings.parity
        )
        self._opening: tuple[DuplexPrompt, Tensor | None] | None = (prompt, voice)
        if opened:
            self._open()

    def _open(self) -> None:
        with ExitStack() as undo:
            undo.callback(self.close)  # nobody else knows the slot that was taken
            self._run(self.open_steps())
            undo.pop_all()

    def open_steps(self) -> Generator[Work, None, None]:
        """Read the prompt; once."""
        self._check_awake()
        if self._opening is not None:
            prompt, voice = self._opening
            self._opening = None
            yield from self._context.write_prompt(prompt, voice)

    # ---- what is asked of it --------------------------------------------------------------------

    @property
    def slot(self) -> int:
        """Its place in the caches."""
        return self._memory.llm.slot

    @property
    def context_tokens(self) -> int:
        """Positions of the LLM that it takes."""
        return self._memory.context_tokens

    @property
    def unit_room_tokens(self) -> int:
        """What a unit may hold of pictures and text: two fit, as the newest is never forgotten."""
        free = self._runner.slots.llm.positions - self._memory.window.protected
        return max(0, free // 2 - _UNIT_TOKENS - self.settings.rules.max_tokens)

    @property
    def turn(self) -> int:
        """Number of the agent's last turn; 0 before its first."""
        return self._memory.floor.turn

    @property
    def speaking(self) -> bool:
        """Whether that turn goes on."""
        return self._memory.floor.speaking

    def step(self, unit: Unit, order: Order = "free") -> UnitResult:
        """The next second. RequestError, with nothing changed, when the unit cannot be taken."""
        result, stage_ms = self._runner.run(self.steps(unit, order))
        return replace(result, stage_ms=stage_ms)

    def steps(
        self,
        unit: Unit,
        order: Order = "free",
        max_slices: int | None = None,
        tell: Callable[[Outcome, str], Sequence[Work]] | None = None,
    ) -> Generator[Work, None, UnitResult]:
        """The same, piece of work by piece of work; to be run to its end.

        `max_slices` of the unit's own pictures, where it is less than the settings say. `tell` is
        called with what was decided and its text before it is spoken; what it returns is done
        meanwhile.
        """
        self._check_awake()
        slices = max_slices or self.settings.max_slices
        senses = yield from sense(self._context, self._runner.slots, unit, slices)
        yield from self._context.make_room(len(senses) + self.settings.rules.max_tokens + 2)
        memory, rules = self._memory, self.settings.rules
        decision = UnitDecision(memory.floor, rules, self._vocabulary.text, order)
        states = yield from self._decide(senses, decision)
        outcome = decision.close()
        text = self._text(outcome)
        beside = tell(outcome, text) if tell is not None else ()
        speech = yield from self._speak(outcome, states, beside)
        self._settle(unit, senses, outcome, self._sounds(outcome, len(states), len(speech)))
        memory.is_uncut = True
        yield from self._context.forget()
        return UnitResult(unit.index, outcome, text, tuple(speech), memory.context_tokens)

    def put_in_text(self, text: str) -> None:
        """Typed words for the model, read with the next unit behind its sound.

        RequestError when more waits than fits.
        """
        ids = self._vocabulary.encode_foreign(text)
        if len(self._memory.put_in) + len(ids) > MAX_PUT_IN_TOKENS:
            raise RequestError(f"more than {MAX_PUT_IN_TOKENS} tokens of text wait", param="text")
        self._memory.put_in += tuple(ids)

    def put_in_picture(self, rgb: ByteArray) -> None:
        """A picture [H, W, 3] for the next unit, before its own; RequestError if it is refused."""
        if len(self._memory.pictures) >= MAX_PICTURES:
            raise RequestError(f"more than {MAX_PICTURES} pictures wait", param="picture")
        self._memory.pictures += (patch_picture(rgb, self.settings.max_slices),)

    def update(self, settings: ConversationSettings) -> None:
        """From the next unit on these hold. The seed is that of the beginning."""
        self.settings = settings
        self._sampler = TextSampler(settings.text, self._runner.model.banned)
        self._context.exact_moves = settings.parity
        self._memory.window.settings = settings.window

    def close(self) -> None:
        """Give the slot back; nothing can be asked after that. Idempotent."""
        if not self._closed and self._parked is None:
            self._runner.slots.give_back(self.slot)
        self._closed = True

    @property
    def _memory(self) -> Memory:
        return self._context.memory

    @property
    def _vocabulary(self) -> Vocabulary:
        return self._runner.model.vocabulary

    # ---- a unit ---------------------------------------------------------------------------------

    def _decide(
        self, senses: Tensor, decision: UnitDecision
    ) -> Generator[Work, None, list[Tensor]]:
        """Read the unit and let the model speak → the state at each token that was fed."""
        memory = self._memory
        states: list[Tensor] = []
        reading = Read(memory.llm, memory.tail, senses, self._choice(decision))
        yield reading
        memory.tail = ()
        while not decision.over:
            if self._take_next(reading, decision):
                reading = Read(memory.llm, (decision.last,), choice=self._choice(decision))
                yield reading
                states.append(reading.state)
        return states

    def _choice(self, decision: UnitDecision) -> Choice | None:
        """How the next token is drawn, unless nobody asks the model for one."""
        if decision.over or decision.dictated is not None or self._script is not None:
            return None
        drawing = Drawing(self._memory.history, self._random, decision.may_listen)
        return Choice(self._sampler, drawing)

    def _take_next(self, reading: Read, decision: UnitDecision) -> bool:
        """Dictate the next token, or take the one that was drawn → whether it is to be fed."""
        if decision.dictated is not None:
            return decision.take(decision.dictated)
        token = reading.token if self._script is None else next(self._script)
        is_fed = decision.take(token)
        if token != Token.CHUNK_EOS:  # the stop check's, which leaves no trace
            self._memory.history.append(token, decision.turn)
        return is_fed

    def _speak(
        self, outcome: Outcome, states: list[Tensor], beside: Sequence[Work]
    ) -> Generator[Work, None, list[int]]:
        """The unit's speech tokens, with `beside`; the first token it decided is never spoken."""
        memory = self._memory
        if outcome.drops_speech:
            memory.forget_speech()
        if outcome.listened or not self.settings.speaks:
            yield from beside
            return []
        most = memory.speech.length + len(outcome.said) + 1 + UNIT_SPEECH_TOKENS
        if most > self._runner.slots.speech.positions:
            memory.speech.length = 0  # a turn without a limit alone comes here: it speaks anew
        if not memory.speech.length:
            keep_speech(memory, self._runner.slots)
        speech = Speak(
            outcome.said,
            states[1:],
            memory.speech,
            self.settings.speech,
            self._random,
            may_end=outcome.ends_turn is not None or not memory.speech.length,
        )
        yield Together([speech, *beside]) if beside else speech
        return speech.tokens

    def _settle(self, unit: Unit, senses: Tensor, outcome: Outcome, heard: "_Sounds") -> None:
        """Remember the unit; what ends it is fed with the next one."""
        memory = self._memory
        record = UnitRecord(unit.index, senses, outcome, heard.spoken)
        memory.tail = record.ids[heard.fed :]
        memory.remember(record)
        memory.turn_ms = heard.spoken.start_ms + heard.spoken.length_ms
        if outcome.ends_turn is not None and not outcome.listened:
            memory.forget_speech()

    def _sounds(self, outcome: Outcome, fed: int, speech_tokens: int) -> "_Sounds":
        """When the unit sounds within its turn. Without speech, a unit's text takes a second."""
        if outcome.listened:
            return _Sounds(fed, Spoken((), 0, 0))
        lag_ms = self.settings.speech_lag_ms if self.settings.speaks else 0
        start_ms = lag_ms if outcome.begins_turn else self._memory.turn_ms
        if not self.settings.speaks:
            return _Sounds(fed, Spoken(outcome.said, start_ms, UNIT_MS))
        return _Sounds(fed, Spoken(outcome.said, start_ms, speech_tokens * SPEECH_TOKEN_MS))

    def _text(self, outcome: Outcome) -> str:
        """The unit's text, as far as its letters are whole."""
        decode = self._vocabulary.text
        if self.settings.parity:
            return decode(outcome.said)
        stream = self._memory.text
        text = stream.push(outcome.said)
        if outcome.ends_turn is None:
            return text
        self._memory.text = TextStream(decode)
        return text + stream.finish() if not outcome.listened else text

    # ---- the prompt -----------------------------------------------------------------------------

    def flush(self) -> None:
        """Feed now what would go with the next unit."""
        self._check_awake()
        self._run(self._context.flush())

    def replace_prompt(self, prompt: DuplexPrompt, voice: Tensor | None = None) -> None:
        """Go on under another system prompt; RequestError when it is too long."""
        self._run(self.replace_prompt_steps(prompt, voice))

    def replace_prompt_steps(
        self, prompt: DuplexPrompt, voice: Tensor | None = None
    ) -> Generator[Work, None, None]:
        """The same, piece of work by piece of work; to be run to its end."""
        self._check_awake()
        yield from self._context.replace_prompt(prompt, voice, self._laid_out(prompt, voice))

    def check_prompt(self, prompt: DuplexPrompt, voice: Tensor | None = None) -> None:
        """RequestError when that system prompt is too long to go on under."""
        self._laid_out(prompt, voice)

    def _laid_out(self, prompt: DuplexPrompt, voice: Tensor | None) -> Window:
        model, slots = self._runner.model, self._runner.slots
        return lay_out_window(model, slots, self.settings.window, prompt, voice)

    # ---- going back -----------------------------------------------------------------------------

    def rewind(self, turn: int, heard_ms: int) -> int:
        """`turn` was interrupted after `heard_ms` of its sound: forget what was not heard of it.

        The units since then are fed again with their own pictures and sound, the agent's words
        only as far as they were heard, and the turn is over. Returns how many units; 0 when the
        turn had ended and was heard to its end.
        """
        self._check_awake()
        return self._run(self.rewind_steps(turn, heard_ms))

    def rewind_steps(self, turn: int, heard_ms: int) -> Generator[Work, None, int]:
        """The same, piece of work by piece of work; to be run to its end."""
        units = yield from self._context.retell(turn, heard_ms)
        if units:
            self._give_up(turn)
        return units

    def _give_up(self, turn: int) -> None:
        memory = self._memory
        memory.history.forget(turn)
        if memory.floor.turn == turn:
            memory.floor.give_up()
            memory.forget_speech()
            memory.text = TextStream(self._vocabulary.text)

    def save(self) -> Snapshot:
        """A point to go back to, for a unit that is only tried. Only the newest is good."""
        self._check_awake()
        return take_snapshot(self._memory, self._random)

    def restore(self, snapshot: Snapshot) -> None:
        """Go back, once, to all but the settings; EngineError for a point that was left behind."""
        self._check_awake()
        self._context.memory = go_back(self._memory, snapshot, self._random, self._runner.slots)
        self.update(self.settings)

    def stand(self) -> None:
        """What was tried is not taken back any more."""
        self._run(self.stand_steps())

    def stand_steps(self) -> Generator[Work, None, None]:
        """The same, piece of work by piece of work; to be run to its end."""
        self._memory.way_back = None
        yield from self._context.forget()

    # ---- leaving the slot -----------------------------------------------------------------------

    def park(self) -> None:
        """Move what is in the slot to the host's memory and give the slot back. Idempotent."""
        if self._parked is None and not self._closed:
            self._parked = Parked.of(self._memory, self._runner.slots)
            self._runner.slots.give_back(self.slot)

    def unpark(self) -> None:
        """Take a slot again and go on; CapacityError when none is free. Idempotent."""
        if self._parked is not None and not self._closed:
            self._parked.put_back(self._memory, self._runner.slots, self._runner.slots.take())
            self._parked = None

    def _check_awake(self) -> None:
        if self._closed or self._parked is not None:
            raise EngineError(f"the conversation is {'closed' if self._closed else 'parked'}")

    def _run(self, steps: Generator[Work, None, T]) -> T:
        return self._runner.run(steps)[0]


@dataclass(frozen=True, slots=True)
class _Sounds:
    """How many tokens of a unit are in the cache already, and when it sounds."""

    fed: int
    spoken: Spoken
