"""`bench.engine side`: what a decision of the tools' side channel takes, and costs the calls.

Beside calls in real time, as under `load`, the engine is asked the question of a call's side
channel, again and again, a moment after each answer. What is answered is written beforehand: a call
of a function, or one word. A decision counts from when it was to be asked, whatever the engine was
doing then, to its end. Before that the same calls have as much time to themselves.
"""

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from agent.chat_types import ChatDone, ChatEvent
from agent.clock import SYSTEM_CLOCK, Clock
from agent.errors import CapacityError
from agent.fleet.callers import Material
from agent.fleet.unit_times import DEADLINE_S, Times
from agent.interfaces import EngineCore
from agent.types import EngineEvent, Failed
from bench.engine_drive import Calls
from bench.engine_parts import SETTINGS, Made
from bench.engine_question import decision
from bench.engine_report import EngineReport
from bench.engine_script import WrittenAnswers

BESIDE = (1, 8, 32)
"""Calls."""
FREE_SLOTS = 2
"""One for the chat, and the one that the engine keeps for a call."""
PATIENCE_S = 5.0
"""As `tools.side_timeout_s`: then a decision is given up."""
_FIRST_WORD = 1000
ANSWERS = {"called": tuple(range(_FIRST_WORD, _FIRST_WORD + 40)), "none": (_FIRST_WORD,)}
"""Tokens: a call with two arguments has about as many, and `no` is one."""
_PAUSES_S = (0.1, 0.6)
"""From an answer to the next question: so that it comes at any moment of the calls' seconds."""
_WARM_S = 2.0
_STEP_S = 0.1
_FIRST_CHAT = 1_000_000
"""Its number; those of calls are small."""
_SEED = 9


@dataclass(frozen=True, slots=True)
class SideOptions:
    """So long calls are alone, and then beside decisions; `settle_s` before that do not count."""

    settle_s: float = 4.0
    seconds: float = 28.0


@dataclass(slots=True)
class Decided:
    """What came of the decisions of a stretch of time, by what was answered."""

    took_ms: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in ANSWERS})
    prompt_tokens: int = 0
    refused: int = 0
    given_up: int = 0

    @property
    def asked(self) -> int:
        """How many decisions there should have been."""
        return sum(map(len, self.took_ms.values())) + self.refused + self.given_up


@dataclass(frozen=True, slots=True)
class _Asked:
    number: int
    kind: str
    since_s: float


class Questions:
    """Decisions asked of an engine, one after the other; see `engine_drive.Beside`."""

    def __init__(self, core: EngineCore, answers: WrittenAnswers, clock: Clock) -> None:
        """`answers` is what the engine's chats say."""
        self._core = core
        self._answers = answers
        self._clock = clock
        self._request = decision()
        self._numbers = itertools.count(_FIRST_CHAT)
        self._kinds = itertools.cycle(ANSWERS)
        self._random = random.Random(_SEED)
        self._until_s = -math.inf
        self._asked: _Asked | None = None
        self.due_s = math.inf
        """When the next one is asked, or the one that waits is given up."""
        self.came = Decided()

    @property
    def waits(self) -> bool:
        """Whether one is not answered yet."""
        return self._asked is not None

    def begin(self, until_s: float) -> None:
        """Forget what came; ask from now on, and from `until_s` on no more."""
        self.came, self._until_s = Decided(), until_s
        self._pause(self._clock.now_s())

    def act(self) -> None:
        """Ask, or give up; EngineError, RequestError for what is wrong with the question."""
        if self._asked is None:
            self._ask(self.due_s)
            return
        self._core.finish(self._asked.number)
        self.came.given_up += 1
        self._pause(self._clock.now_s())

    def told(self, number: int, event: EngineEvent | ChatEvent, now_s: float) -> bool:
        """What the engine said; False: to a call. Raises what ended a chat."""
        if self._asked is None or number != self._asked.number:
            return number >= _FIRST_CHAT
        match event:
            case Failed(error=error):
                raise error
            case ChatDone(prompt_tokens=tokens):
                took_ms = (now_s - self._asked.since_s) * 1000
                self.came.took_ms[self._asked.kind].append(took_ms)
                self.came.prompt_tokens = tokens
                self._pause(now_s)
            case _:
                pass
        return True

    def _ask(self, since_s: float) -> None:
        kind, number = next(self._kinds), next(self._numbers)
        self._answers.says = ANSWERS[kind]
        try:
            self._core.chat(number, self._request)
        except CapacityError:
            self.came.refused += 1
            self._pause(self._clock.now_s())
            return
        self._asked = _Asked(number, kind, since_s)
        self.due_s = since_s + PATIENCE_S

    def _pause(self, now_s: float) -> None:
        self._asked = None
        due_s = now_s + self._random.uniform(*_PAUSES_S)
        self.due_s = due_s if due_s < self._until_s else math.inf


class SideBench:
    """One engine, more and more calls on it, and decisions beside them."""

    def __init__(self, report: EngineReport, made: Made, clock: Clock = SYSTEM_CLOCK) -> None:
        """`made` has FREE_SLOTS more than there are calls at most. It takes every call that it has
        room for."""
        made.admit_all()
        self._report = report
        self._clock = clock
        self._window_tokens = made.parts.window.low_tokens
        self._calls = Calls(made.core, SETTINGS, Material(camera=False), clock)
        self._questions = Questions(made.core, made.answers, clock)

    async def measure(self, beside: Sequence[int], options: SideOptions) -> None:
        """The rows of decisions beside so many calls, for each of these numbers."""
        # The first ones, beside nobody, are slower than all others, and do not count.
        tokens = (await self._decide(_WARM_S)).prompt_tokens
        self._report.row("side_prompt_tokens", tokens or math.nan, "tokens")
        for count in sorted(set(beside)):
            try:
                self._calls.grow(count, self._window_tokens)
            except CapacityError as error:
                reason = f"{len(self._calls)} calls were taken: {error}"
                self._report.not_measured(f"side_called_{count}_ms", "ms", reason)
                break
            await self._level(count, options)
        self._calls.end_all()

    async def _level(self, count: int, options: SideOptions) -> None:
        await self._calls.run_until(self._clock.now_s() + options.settle_s)
        begins_s = self._clock.now_s()
        decides_s = begins_s + options.seconds
        await self._calls.run_until(decides_s)
        came = await self._decide(options.seconds)
        ends_s = decides_s + options.seconds
        # Whoever came last has a second, too, while the others go on.
        await self._calls.run_until(ends_s + DEADLINE_S)
        log = self._calls.log
        alone, beside = log.times(begins_s, decides_s), log.times(decides_s, ends_s)
        log.forget(ends_s)
        self._tell_decisions(count, came)
        self._tell_units(count, beside, alone)

    async def _decide(self, seconds: float) -> Decided:
        """What comes of so many seconds of questions, the last answer awaited."""
        until_s = self._clock.now_s() + seconds
        self._questions.begin(until_s)
        await self._calls.run_until(until_s, self._questions)
        while self._questions.waits:
            await self._calls.run_until(self._clock.now_s() + _STEP_S, self._questions)
        return self._questions.came

    def _tell_decisions(self, count: int, came: Decided) -> None:
        for kind, took_ms in came.took_ms.items():
            name = f"side_{kind}_{count}"
            if took_ms:
                self._report.spread(name, took_ms)
            else:
                self._report.not_measured(f"{name}_ms", "ms", "there was no such decision")
        row, n = self._report.row, came.asked
        row(f"side_{count}_refused", came.refused, "decisions", n=n)
        row(f"side_{count}_given_up", came.given_up, "decisions", n=n)

    def _tell_units(self, count: int, beside: Times, alone: Times) -> None:
        """How late units were beside decisions, against as many calls alone."""
        if not (beside.units and alone.units):
            return
        row, n = self._report.row, beside.units
        shares = [100 * times.late / times.units for times in (beside, alone)]
        row(f"side_{count}_late_percent", shares[0], "%", against=shares[1], n=n)
        p95_ms = [1000 * times.latency_s(0.95) for times in (beside, alone)]
        row(f"side_{count}_p95_ms", p95_ms[0], "ms", against=p95_ms[1], n=n)
