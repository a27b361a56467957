"""One half-duplex conversation: the user's turn, then the answer to it. To reset it, drop it.

A turn is read piece by piece (sound, pictures, words, in the order they come) behind a header that
closes the answer before it, since an answer's own end is never fed. The answer to it is a
`SpokenAnswer`. All is work for whoever runs it.

Where this is not the reference: the window (`turn_memory`); the floor of the mel, which the
reference loses after a session of less than 5 s; what cannot be read aloud is banned only where the
answer is spoken (`parity` bans it always); live sound may be longer than a second; an answer that
reaches its limit ends its speech; reasoning is not spoken; speech tokens are handed on as they
come, since the vocoder collects what it needs.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from agent.chat_types import ChatPart, ChatPicture, ChatSound, ChatText
from agent.duplex.answer import Answer, AnswerPiece, AnswerRules, TokenSource, read_in_pieces
from agent.duplex.answer_speech import CHUNK_TOKENS
from agent.duplex.answer_text import AnswerText
from agent.duplex.audio_encoder import AudioStream, vector_count
from agent.duplex.content import Senses, check_samples, defused_answer, fill, perceive
from agent.duplex.conversation_settings import ConversationSettings
from agent.duplex.half_duplex_answer import Speaking, SpokenAnswer
from agent.duplex.half_duplex_prompt import lay_out_opening, lay_out_turn, with_silence
from agent.duplex.half_duplex_rules import (
    ENDS,
    HalfDuplexRules,
    answer_sampler,
    answer_speech,
)
from agent.duplex.kv_cache import KvStream
from agent.duplex.lanes import Runner
from agent.duplex.memory import Parked
from agent.duplex.policy import expected_length
from agent.duplex.prompt import (
    ChatLayout,
    Content,
    LaidOut,
    Message,
    SoundSpan,
    answer_header,
    joined_content,
    user_header,
)
from agent.duplex.random_source import RandomSource
from agent.duplex.sampling import Drawing, History
from agent.duplex.tool_calls import CallReader
from agent.duplex.turn_context import TurnContext
from agent.duplex.turn_memory import (
    TurnMemory,
    TurnSnapshot,
    go_back_to,
    take_turn_snapshot,
)
from agent.duplex.usage import Held
from agent.duplex.window import Window
from agent.duplex.work import HearLive, Work
from agent.errors import ContextOverflow, EngineError
from agent.types import ByteArray, FloatArray

_HEADER_TOKENS = 32  # more than what opens a user's turn and an answer
_DEFAULTS = HalfDuplexRules()


class HalfDuplexConversation:
    """One conversation over shared weights. Not for two threads at once."""

    def __init__(
        self,
        runner: Runner,
        system: Message | None,
        voice: Tensor | None = None,
        settings: ConversationSettings | None = None,
        rules: HalfDuplexRules = _DEFAULTS,
        tools: str = "",
    ) -> None:
        """Take a slot for a conversation under `system` (`prompt.system_content`), and behind it
        what stands of functions (`tool_prompt.tool_block`).

        `voice` [n, W] (`content.hear_whole`) fills its sounds. Nothing is read before `open_steps`.
        CapacityError when no slot is free, RequestError when the prompt is too long.
        """
        self._runner = runner
        self._rules = rules
        self._voice = voice
        self._answer: SpokenAnswer | None = None
        self._notice, self._notice_tokens = "", 0
        self._parked: Parked | None = None
        self._closed = False
        self.script: Iterator[int] | None = None
        """Gives every token that would be drawn: for tests, which decide for the model."""
        settings = settings or ConversationSettings()
        self._opening = lay_out_opening(runner, system, tools)
        self._random = RandomSource.of(settings.seed)
        slot = runner.slots.take()
        memory = TurnMemory(
            llm=KvStream(slot),
            speech=KvStream(slot),
            audio=AudioStream(slot),
            window=Window(rules.window, len(self._opening.ids)),
        )
        self._context = TurnContext(runner.model, runner.slots, memory, exact_moves=False)
        self.update(settings)

    # ---- what is asked of it --------------------------------------------------------------------

    @property
    def slot(self) -> int:
        """Its place in the caches."""
        return self._memory.llm.slot

    @property
    def context_tokens(self) -> int:
        """Positions of the LLM that it takes."""
        return self._memory.llm.length

    @property
    def turn_room_tokens(self) -> int:
        """Positions that what comes next of the user's turn may take; an answer fits behind it."""
        room = self._context.room(opens=not self._memory.is_open) - self._notice_tokens
        return max(0, room - min(self._rules.max_tokens, room // 4) - _HEADER_TOKENS)

    @property
    def turn(self) -> int:
        """Number of the agent's last answer; 0 before its first."""
        return self._memory.answers

    @property
    def answering(self) -> bool:
        """Whether that answer goes on."""
        return self._answer is not None

    @property
    def held(self) -> Held:
        """What is in its context."""
        held = self._memory.held
        heard = 0 if self._voice is None else len(self._voice)
        return replace(held, audio=held.audio + heard)

    @property
    def has_begun(self) -> bool:
        """Whether anything stands behind its system message."""
        return self._memory.is_open or self._memory.answers > 0

    def update(self, settings: ConversationSettings) -> None:
        """From the next answer on these hold; one that is not spoken any more is muted at once.

        The seed is that of the beginning.
        """
        self.settings = settings
        if self._answer is not None and not settings.speaks:
            self._answer.mute()
        model, rules = self._runner.model, self._rules
        self._sampler = answer_sampler(model, settings, rules)
        self._silent = answer_sampler(model, settings, rules, is_calling=True)
        self._speech = answer_speech(settings, self._rules)
        self._context.exact_moves = settings.parity

    def open_steps(self) -> Generator[Work, None, None]:
        """Read the system message; once, before all else."""
        self._check_awake()
        laid = self._opening
        if self._memory.llm.length or not laid.ids:
            return
        embeddings = self._runner.model.llm.embed(laid.ids).detach()
        fill(embeddings, laid.sound_bounds, [] if self._voice is None else [self._voice])
        yield from read_in_pieces(embeddings, self._memory.llm)

    @property
    def _memory(self) -> TurnMemory:
        return self._context.memory

    # ---- the user's turn ------------------------------------------------------------------------

    def hear_steps(
        self, audio: FloatArray, pictures: Sequence[ByteArray] = ()
    ) -> Generator[Work, None, None]:
        """What the user said, f32 [T] at 16 kHz, and showed meanwhile: pictures [H, W, 3].

        A whole utterance, in which every moment sees every other. RequestError, with nothing
        changed, when it cannot be taken.
        """
        yield from self.read_steps([*map(ChatPicture, pictures), ChatSound(audio)])

    def read_text(self, text: str) -> Generator[Work, None, None]:
        """Typed words join the user's turn; none of them becomes a control token."""
        yield from self.read_steps([ChatText(text)])

    def read_written(self, text: str) -> Generator[Work, None, None]:
        """The same for text in which control tokens are written out, as they are meant."""
        self._check_awake()
        laid = self._open_turn([text])
        yield from self._read_turn(self._runner.model.llm.embed(laid.ids))

    def note(self, text: str) -> None:
        """A system message, with control tokens written out, that comes before the next answer;
        in the place of one that waits."""
        self._notice = text
        self._notice_tokens = len(self._runner.model.vocabulary.encode(text))

    def read_steps(
        self, parts: Sequence[ChatPart], *, joined: bool = True
    ) -> Generator[Work, None, None]:
        """Any content joins the user's turn; not `joined`: with newlines between its parts."""
        self._check_awake()
        model, senses = self._runner.model, Senses(self.settings.max_slices)
        padded = parts if self._memory.has_heard else with_silence(parts)
        added = [senses.add(part, model.vocabulary) for part in padded]
        content = joined_content([span for spans in added for span in spans], ChatLayout(joined))
        laid = self._open_turn(content)
        self._memory.has_heard = self._memory.has_heard or bool(senses.sounds)
        embeddings = yield from perceive(model, laid, senses, None)
        yield from self._read_turn(embeddings)

    def abandon_turn(self) -> None:
        """Forget the user's turn as far as it was read. Not between the steps of anything."""
        self._check_awake()
        self._answer = None
        self._memory.abandon_turn()

    def hear_live_steps(
        self, audio: FloatArray, pictures: Sequence[ByteArray] = (), *, is_last: bool = False
    ) -> Generator[Work, None, None]:
        """The same while the user goes on: f32 [T] of any length; whole seconds are read at once,
        less waits for more, or ends the turn's sound when it `is_last`."""
        self._check_awake()
        check_samples(audio)
        memory, senses = self._memory, Senses(self.settings.max_slices)
        seen = [senses.see(rgb, self.settings.max_slices) for rgb in pictures]
        mel = memory.mel.clone()
        mels = [*mel.push(audio), *(mel.finish() if is_last else [])]
        heard = [SoundSpan(vector_count(one.shape[1])) for one in mels]
        laid = self._open_turn([*seen, *heard]) if seen or heard else LaidOut((), (), ())
        self._memory.mel = mel
        if laid.ids:
            hearing = [HearLive(one, self._memory.audio) for one in mels]
            yield from hearing
            silent = replace(laid, sound_bounds=())
            embeddings = yield from perceive(self._runner.model, silent, senses, None)
            fill(embeddings, laid.sound_bounds, [one.vectors for one in hearing])
            yield from self._read_turn(embeddings)

    def remark_steps(self, text: str) -> Generator[Work, None, None]:
        """What the agent said, or was told, elsewhere follows as it stands; the turn is over."""
        self._check_awake()
        laid = lay_out_turn(self._runner, [defused_answer(self._runner.model.vocabulary, text)])
        self._context.make_room(len(laid.ids))
        self._memory.close_turn()
        yield from self._read_turn(self._runner.model.llm.embed(laid.ids))

    def _open_turn(self, content: Sequence[Content]) -> LaidOut:
        """Lay out what comes next of the turn, begun if need be, and make room for it."""
        opens = not self._memory.is_open
        header = [user_header(after_answer=self._memory.answers > 0)] if opens else []
        laid = lay_out_turn(self._runner, [*header, *content])
        self._context.make_room(len(laid.ids), opens=opens)
        self._memory.count(laid.sound_bounds, laid.picture_bounds)
        self._answer = None
        return laid

    def _read_turn(self, embeddings: Tensor) -> Generator[Work, None, None]:
        self._answer = None
        if len(embeddings):
            yield from self._context.read(embeddings)
            self._context.forget()

    # ---- the answer -----------------------------------------------------------------------------

    def answer_steps(self) -> Generator[Work, None, AnswerPiece]:
        """The next chunk of the answer with all of its speech; else as `piece_steps`."""
        piece = yield from self.piece_steps()
        while self._answer is not None and self._answer.waits:
            more = yield from self.piece_steps()
            codes = (*piece.speech_tokens, *more.speech_tokens)
            piece = replace(piece, finish=more.finish, speech_tokens=codes)
        return piece

    def piece_steps(self) -> Generator[Work, None, AnswerPiece]:
        """The next words of the answer, of a new one where none is under way; or a second of how
        those before sound.

        With a `finish` it is over. ContextOverflow when no answer fits into the slot any more.
        """
        self._check_awake()
        answer = self._answer or (yield from self._begin_answer())
        piece = yield from answer.steps()
        if piece.finish is not None and self._answer is answer:
            self._answer = None
            self._context.forget()
        return piece

    def _begin_answer(self) -> Generator[Work, None, SpokenAnswer]:
        memory, tools, model = self._memory, self.settings.tools, self._runner.model
        ids = model.vocabulary.encode(self._answer_header())
        asked = self.settings.most_tokens or self._rules.max_tokens
        most = min(asked, self._context.room() - len(ids))
        if most < 1:
            raise ContextOverflow(f"{memory.llm.length} positions are taken; no answer fits")
        self._context.make_room(len(ids) + most)
        self.note("")
        state = yield from self._context.read(model.llm.embed(ids))
        memory.begin_answer()
        calls = CallReader(tools.names) if tools.names else None
        thinks = self._rules.thinking and not tools.opening
        text = AnswerText(model.vocabulary.text, thinking=thinks, calls=calls)
        text.open_with(tools.opening)
        rules = AnswerRules(ENDS, most, looks_ahead=True, looks_back=self._rules.looks_back)
        answer = Answer(memory.llm, self._source(), rules, text)
        speaks = self.settings.speaks
        self._answer = SpokenAnswer(answer, memory, self._speaking(), calls, speaks=speaks)
        yield from answer.begin(state)
        return self._answer

    def _answer_header(self) -> str:
        """What is read before an answer: what closes all before it, a note, and its beginning."""
        memory, rules, opening = self._memory, self._rules, self.settings.tools.opening
        thinking = rules.thinking and not opening
        layout = ChatLayout(thinking=thinking, spoken=rules.tts_template, opening=opening)
        header = answer_header(layout, after_user=memory.is_open, notice=self._notice)
        after_answer = memory.answers > 0 and not memory.is_open
        return f"<|tts_eos|><|im_end|>\n{header}" if after_answer else header

    def _source(self) -> TokenSource:
        drawing = Drawing(History(self._rules.looks_back + CHUNK_TOKENS + 1), self._random)
        return TokenSource(self._sampler, drawing, self.script, self._silent)

    def _speaking(self) -> Speaking:
        return Speaking(
            self._speech,
            self._random,
            self._runner.slots.speech.positions,
            self._rules.max_call_tokens,
            self.settings.speech_lag_ms if self.settings.speaks else 0,
        )

    # ---- going back -----------------------------------------------------------------------------

    def stop(self, heard_ms: int) -> int:
        """The answer is given up after `heard_ms` of its sound: forget what was not heard of it,
        unless it has called a function.

        → how many tokens that were; 0 also when the user's next turn was read already, since then
        it is too late. What comes next closes the answer. Not between the steps of a piece.
        """
        self._check_awake()
        if self._answer is not None and self._answer.waits:
            self._memory.chunks = expected_length(self._memory.chunks)
        self._answer = None
        if self._memory.is_open or not self._memory.chunks:
            return 0
        return self._memory.give_up_answer(heard_ms)

    def remember_call(self) -> None:
        """Somebody was told of a call of the last answer: it stays."""
        self._memory.has_called = True

    def save(self) -> TurnSnapshot:
        """A point to go back to, before an answer that is only tried. EngineError during one."""
        self._check_awake()
        if self.answering:
            raise EngineError("an answer is under way; save before it")
        return take_turn_snapshot(self._memory, self._random, self._runner.slots)

    def restore(self, snapshot: TurnSnapshot) -> None:
        """Go back, once; EngineError when the conversation has moved on too far."""
        self._check_awake()
        slots = self._runner.slots
        self._context.memory = go_back_to(self._memory, snapshot, self._random, slots)
        self._answer = None

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

    def close(self) -> None:
        """Give the slot back; nothing can be asked after that. Idempotent."""
        if not self._closed and self._parked is None:
            self._runner.slots.give_back(self.slot)
        self._closed = True

    def _check_awake(self) -> None:
        if self._closed or self._parked is not None:
            raise EngineError(f"the conversation is {'closed' if self._closed else 'parked'}")
