"""One duplex conversation: a unit in, what the model made of it out. To reset it, drop it.

A unit is one fused prefill (the terminator and `</unit>` of the unit before it, `<unit>`, its
pictures, ten vectors of sound) and then a token at a time while the policy lets the model speak;
what it said goes through the speech LM. `steps` tells that story and leaves the work to whoever
runs it; `step` runs it here and now. What is refused is refused before anything was fed, and the
conversation goes on as if it had not come.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
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
    new_memory,
    take_snapshot,
)
from agent.duplex.pictures import patch_picture
from agent.duplex.policy import Order, Outcome, UnitDecision
from agent.duplex.prompt import DuplexPrompt
from agent.duplex.random_source import RandomSource
from agent.duplex.sampling import Drawing, History, TextSampler, banned_ids
from agent.duplex.tokens import TextStream, Token, Vocabulary
from agent.duplex.tool_calls import WrittenCall, known_call
from agent.duplex.unit_senses import MAX_PICTURES, Sensed, sense
from agent.duplex.unit_speech import Sounds, UnitSpeech
from agent.duplex.usage import Held
from agent.duplex.window import Window
from agent.duplex.work import Choice, Read, Work, alongside
from agent.errors import EngineError, RequestError
from agent.types import ByteArray, FloatArray, Unit

T = TypeVar("T")

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
        self._voice_vectors = 0 if voice is None else len(voice)
        self._prepare_draws()
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
        return max(0, free // 2 - _UNIT_TOKENS - self._most_tokens)

    @property
    def _most_tokens(self) -> int:
        """What a unit may decide, and the end of its turn."""
        rules = self.settings.rules
        return rules.max_tokens + rules.max_call_unit_tokens * (rules.calls == "free")

    def held(self, turn: int) -> Held:
        """What is in its context, where that `turn` is the newest."""
        held = self._memory.held(turn)
        return replace(held, audio=held.audio + self._voice_vectors)

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
        say: Callable[[UnitResult], Generator[Work, None, None]] | None = None,
    ) -> Generator[Work, None, UnitResult]:
        """The same, piece of work by piece of work; to be run to its end.

        `max_slices` of the unit's own pictures, where it is less than the settings say. `tell` is
        called with what was decided and its text before it is spoken; what it returns is done
        meanwhile. What `say` makes of the result is done while the oldest units are forgotten.
        """
        self._check_awake()
        slices = max_slices or self.settings.max_slices
        senses = yield from sense(self._context, self._runner.slots, unit, slices)
        yield from self._context.make_room(len(senses.vectors) + self._most_tokens + 2)
        memory, rules = self._memory, self.settings.rules
        decision = UnitDecision(
            memory.floor, rules, self._vocabulary.text, order, self._call_opening
        )
        states = yield from self._decide(senses.vectors, decision)
        outcome = decision.close()
        text = self._text(outcome)
        beside = tell(outcome, text) if tell is not None else ()
        speech = UnitSpeech(memory, self._runner.slots, self.settings, self._random)
        codes = yield from speech.steps(outcome, states, beside)
        self._settle(unit, senses, outcome, speech.sounds(outcome, len(states), len(codes)))
        memory.is_uncut = True
        call = self._called(outcome)
        taken = memory.context_tokens
        result = UnitResult(unit.index, outcome, text, tuple(codes), taken, call=call)
        # A cut is in the books first, which tell what a turn took.
        said = () if say is None else (say(result),)
        yield from alongside(self._context.forget(), *said)
        return replace(result, context_tokens=memory.context_tokens)

    def _called(self, outcome: Outcome) -> WrittenCall | None:
        if outcome.called is None:
            return None
        return known_call(self._vocabulary.text(outcome.called), self.settings.tools.names)

    def put_in_text(self, text: str) -> None:
        """Typed words for the model, read with the next unit behind its sound.

        RequestError when more waits than fits.
        """
        self.put_in_written(self._vocabulary.defused(text))

    def put_in_written(self, text: str) -> None:
        """The same for text in which control tokens are written out, as they are meant."""
        ids = self._vocabulary.encode(text)
        if len(self._memory.put_in) + len(ids) > MAX_PUT_IN_TOKENS:
            raise RequestError(f"more than {MAX_PUT_IN_TOKENS} tokens of text wait", param="text")
        self._memory.put_in += tuple(ids)

    def put_in_picture(self, rgb: ByteArray) -> None:
        """A picture [H, W, 3] for the next unit, before its own; RequestError if it is refused."""
        if len(self._memory.pictures) >= MAX_PICTURES:
            raise RequestError(f"more than {MAX_PICTURES} pictures wait", param="picture")
        self._memory.pictures += (patch_picture(rgb, self.settings.max_slices),)

    def put_in_sound(self, samples: FloatArray) -> None:
        """A recording f32 [T] at 16 kHz for the next unit, read behind its sound."""
        self._memory.sounds += (samples,)

    def update(self, settings: ConversationSettings) -> None:
        """From the next unit on these hold. The seed is that of the beginning."""
        self.settings = settings
        self._prepare_draws()
        self._context.exact_moves = settings.parity
        self._memory.window.settings = settings.window

    def _prepare_draws(self) -> None:
        """Inside of a call anything may be drawn: nobody says it aloud."""
        model, text = self._runner.model, self.settings.text
        self._sampler = TextSampler(text, model.banned)
        unbanned = banned_ids((), model.target.device)
        self._silent = TextSampler(text, unbanned, own_bans=True)
        opening = self.settings.tools.opening
        self._call_opening = model.vocabulary.encode(opening) if opening else []

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
        return Choice(self._silent if decision.is_calling else self._sampler, drawing)

    def _take_next(self, reading: Read, decision: UnitDecision) -> bool:
        """Dictate the next token, or take the one that was drawn → whether it is to be fed."""
        if decision.dictated is not None:
            return decision.take(decision.dictated)
        token = reading.token if self._script is None else next(self._script)
        is_fed = decision.take(token)
        if token != Token.CHUNK_EOS:  # the stop check's, which leaves no trace
            self._memory.history.append(token, decision.turn)
        return is_fed

    def _settle(self, unit: Unit, senses: Sensed, outcome: Outcome, heard: Sounds) -> None:
        """Remember the unit; what ends it is fed with the next one."""
        memory = self._memory
        record = UnitRecord(
            unit.index, senses.vectors, outcome, heard.spoken, senses.audio, senses.pictures
        )
        memory.tail = record.ids[heard.fed :]
        memory.remember(record)
        memory.turn_ms = heard.spoken.start_ms + heard.spoken.length_ms
        if outcome.ends_turn is not None and not outcome.listened:
            memory.forget_speech()

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
        self._voice_vectors = 0 if voice is None else len(voice)

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
