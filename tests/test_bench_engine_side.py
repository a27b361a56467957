"""`bench.engine side`: a decision counts from when it is to be asked, and every token is drawn."""

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import bench.engine as bench
from agent.attendants.decision import MOST_TOKENS
from agent.chat_types import AnswerRequest, ChatDelta, ChatDone, ChatRequest, ChatSound, ChatText
from agent.duplex.chat_sampling import AnswerSampler
from agent.duplex.kv_cache import KvStream
from agent.duplex.lanes import Done
from agent.duplex.random_source import RandomSource
from agent.duplex.sampling import Drawing, History
from agent.duplex.tokens import Token
from agent.duplex.work import Choice, Choose, Read, Work
from agent.errors import CapacityError, EngineError
from agent.types import Failed
from bench.engine_parts import Bed, Wanted, make_bed, make_engine
from bench.engine_question import decision
from bench.engine_script import DecidedLane, WrittenAnswers, plans
from bench.engine_side import ANSWERS, FREE_SLOTS, PATIENCE_S, Questions, SideBench, SideOptions
from tests.rig.engine_rows import Rows
from tests.rig.timed_core import TimedCore
from tests.rig.virtual_time import VirtualClock, run_virtually

CPU = torch.device("cpu")


@pytest.fixture
def rows() -> Rows:
    return Rows()


# ---- the question -------------------------------------------------------------------------------


def test_the_question_is_a_call_s_own() -> None:
    asked = decision()
    assert [tool.name for tool in asked.tools] == [
        "opening_hours",
        "order_status",
        "change_delivery",
    ]
    assert (asked.greedy, asked.max_tokens, asked.speaks) == (True, MOST_TOKENS, False)
    (heard,) = asked.messages[-1].content
    assert isinstance(heard, ChatSound) and heard.samples.shape == (4 * 16_000,)
    written = [part for one in asked.messages[1:] for part in one.content]
    assert sum(isinstance(part, ChatText) for part in written) == 8
    assert [call.name for one in asked.messages for call in one.calls] == ["opening_hours"]


# ---- what is answered ---------------------------------------------------------------------------


class _Drawing7:
    """A lane that draws 7 for whoever wants a token."""

    def __init__(self) -> None:
        self.begun: list[Work] = []

    def count(self, works: Sequence[Work]) -> int:
        return len(works)

    def begin(self, works: Sequence[Work]) -> Done:
        self.begun += works
        for work in works:
            if isinstance(work, Choose) or (isinstance(work, Read) and work.choice is not None):
                work.token = 7
        return Done()


def choice() -> Choice:
    return Choice(None, Drawing(History(8), RandomSource.of(1)))  # type: ignore[arg-type]


def test_chats_and_calls_say_what_was_written_for_each() -> None:
    """A chat in the slot of a call that is over takes nothing of another's plan."""
    answers, inner = WrittenAnswers(), _Drawing7()
    lane = DecidedLane(inner, plans(1.0), answers)
    call, chat, next_chat = choice(), choice(), choice()

    def said(work: Choose | Read) -> int:
        lane.begin([work]).finish()
        return work.token

    def step(by: Choice) -> Read:
        return Read(KvStream(0), ids=(4,), choice=by)

    assert said(Read(KvStream(0), ids=(1, 2), choice=call)) == Token.SPEAK
    answers.says = (300, 301)
    assert said(Read(KvStream(0), ids=(1, 2))) == -1, "nothing is drawn behind a piece of a prompt"
    assert said(Choose(torch.zeros(1), chat)) == 300
    assert said(step(call)) == 1000
    answers.says = (400,)
    assert [said(step(chat)) for _ in range(3)] == [301, Token.IM_END, Token.IM_END]
    assert said(Choose(torch.zeros(1), next_chat)) == 400
    assert said(step(next_chat)) == Token.IM_END
    assert said(step(call)) == 1001
    assert len(inner.begun) == 10, "all of it was drawn before"


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Bed:
    return make_bed(CPU, tmp_path_factory.mktemp("bed"), tiny=True)


@pytest.mark.parametrize("kind", ANSWERS)
def test_every_token_of_a_decision_is_drawn_and_then_what_was_written(
    bed: Bed, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    drawn: list[int] = []
    choose = AnswerSampler.choose

    def noted(sampler: AnswerSampler, logits: Tensor, drawings: Sequence[Drawing]) -> list[int]:
        drawn.extend(choose(sampler, logits, drawings))
        return drawn[-1:]

    monkeypatch.setattr(AnswerSampler, "choose", noted)
    made = make_engine(bed, Wanted(FREE_SLOTS, 2048))
    made.answers.says = ANSWERS[kind]
    made.core.chat(1, decision())
    said = [event for _ in iter(made.core.idle_s, None) for _, event in made.core.work()]
    done, written = said[-1], len(ANSWERS[kind])
    assert isinstance(done, ChatDone) and done.reason == "stop"
    assert (done.answer_tokens, len(drawn)) == (written, written + 1), "its end is drawn, too"
    assert drawn[:-1] != list(ANSWERS[kind])
    text = "".join(event.text for event in said if isinstance(event, ChatDelta))
    assert text.split() == ["word"] * written


# ---- how long it takes --------------------------------------------------------------------------


@dataclass
class ChattingCore(TimedCore):
    """Whole units come first, then chats: `prompt_s` and `token_s` is what they take, in one go.

    `refuses` every so many chats from the first on; chats that are `held` never begin.
    """

    prompt_s: float = 0.05
    token_s: float = 0.01
    refuses: int = 0
    held: bool = False
    chat_failure: EngineError | None = None
    answers: WrittenAnswers = field(default_factory=WrittenAnswers)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.chats: deque[int] = deque()
        self.asked_s: list[float] = []

    def admit(self) -> None:
        self.admits_all = True

    def chat(self, number: int, request: AnswerRequest) -> None:
        assert isinstance(request, ChatRequest) and number not in self.calls
        self.asked_s.append(self.clock.now_s())
        if self.refuses and (len(self.asked_s) - 1) % self.refuses == 0:
            raise CapacityError("too many chats", retry_after_s=1)
        assert not self.chats, "one after the other"
        self.chats.append(number)

    def finish(self, number: int) -> None:
        if number in self.chats:
            self.chats.remove(number)
        else:
            super().finish(number)

    def idle_s(self) -> float | None:
        if self.waiting or (self.chats and not self.held):
            return 0.0
        return 0.001 if self.chats else None

    def work(self) -> list[tuple[int, Any]]:
        if self.waiting:
            return list(super().work())
        number = self.chats.popleft()
        if self.chat_failure is not None:
            return [(number, Failed(self.chat_failure))]
        count = len(self.answers.says)
        self.clock.spend_s(self.prompt_s + count * self.token_s)
        return [(number, ChatDelta("no")), (number, ChatDone("stop", 900, count))]


def measured(rows: Rows, beside: Sequence[int], seconds: float = 40.0, **core: Any) -> ChattingCore:
    async def measure() -> ChattingCore:
        made = ChattingCore(VirtualClock(), **core)
        parts = SimpleNamespace(window=SimpleNamespace(low_tokens=300))
        of = SimpleNamespace(core=made, parts=parts, answers=made.answers, admit_all=made.admit)
        side = SideBench(rows.report, of, made.clock)  # type: ignore[arg-type]
        await side.measure(beside, SideOptions(1.0, seconds))
        assert not made.chats and not made.calls
        return made

    return run_virtually(measure())


def pauses(asked_s: Sequence[float]) -> list[float]:
    return [after - before for before, after in itertools.pairwise(asked_s)]


def test_a_decision_takes_from_asking_to_its_end(rows: Rows) -> None:
    """40 tokens, or one, of 10 ms behind a prompt of 50; a unit takes 20."""
    measured(rows, [4, 0], unit_s=0.02)
    values, read = rows.values, rows.read()
    assert values["side_prompt_tokens"] == 900
    assert values["side_called_0_ms"] == values["side_called_0_p95_ms"] == 450
    assert values["side_none_0_ms"] == 60
    assert 450 <= values["side_called_4_ms"] <= 450 + 4 * 20
    assert 60 <= values["side_none_4_ms"] <= 60 + 4 * 20
    assert values["side_called_4_p95_ms"] > 450, "some wait for a unit"
    assert all(read[f"side_{kind}_{n}_ms"]["n"] >= 20 for kind in ANSWERS for n in (0, 4))
    assert "side_0_late_percent" not in values, "nobody was late"


def test_what_the_engine_is_at_when_it_is_asked_counts() -> None:
    async def measure() -> tuple[float, float]:
        core = ChattingCore(VirtualClock())
        questions = Questions(core, core.answers, core.clock)
        questions.begin(10.0)
        busy_s = 0.7
        core.clock.spend_s(questions.due_s + busy_s)
        questions.act()
        for number, event in core.work():
            assert questions.told(number, event, core.clock.now_s())
        assert not questions.told(3, ChatDelta("no"), 0.0), "that is a call's"
        (took_ms,) = questions.came.took_ms["called"]
        return took_ms, busy_s * 1000

    took_ms, busy_ms = run_virtually(measure())
    assert took_ms == pytest.approx(busy_ms + 450)


def test_what_decisions_cost_is_told_against_as_many_calls_alone(rows: Rows) -> None:
    """A chat of 1.2 s that nothing interrupts makes units late; alone each takes 0.1 s."""
    measured(rows, [1, 2], unit_s=0.1, prompt_s=1.2, token_s=0)
    read = rows.read()
    for calls in (1, 2):
        late, p95 = read[f"side_{calls}_late_percent"], read[f"side_{calls}_p95_ms"]
        assert late["n"] == p95["n"] == 40 * calls
        assert late["against"] == 0 and late["value"] > 10
        assert p95["against"] <= 100 * calls and p95["value"] > 1000


def test_questions_come_at_any_moment_and_no_more_when_time_is_up(rows: Rows) -> None:
    asked_s = measured(rows, [1], unit_s=0.01).asked_s
    assert {int(10 * (at_s % 1)) for at_s in asked_s} == set(range(10)), "all tenths of a second"
    assert min(pauses(asked_s)) >= 0.1 + 0.06
    # Some beside nobody; then the call has a second to settle, and forty to itself.
    warm = [at_s for at_s in asked_s if at_s < 10]
    level = asked_s[len(warm) :]
    assert warm and level[0] - warm[-1] > 1 + 40
    assert 38 < level[-1] - level[0] < 40


def test_refused_decisions_are_counted_and_the_others_go_on(rows: Rows) -> None:
    measured(rows, [1], refuses=3)
    read = rows.read()
    refused, kinds = read["side_1_refused"], [f"side_{kind}_1_ms" for kind in ANSWERS]
    assert refused["n"] == refused["value"] + sum(read[kind]["n"] for kind in kinds)
    assert refused["value"] == pytest.approx(refused["n"] / 3, abs=1)
    assert all(read[kind]["n"] > 10 for kind in kinds)
    assert read["side_1_given_up"]["value"] == 0


def test_decisions_that_are_held_are_given_up_as_a_call_does(rows: Rows) -> None:
    core = measured(rows, [1], held=True)
    read = rows.read()
    given_up = read["side_1_given_up"]
    assert given_up["value"] == given_up["n"] == 8, "one in 5.1 to 5.6 s"
    assert read["side_called_1_ms"]["value"] is None and read["side_none_1_ms"]["value"] is None
    assert read["side_prompt_tokens"]["value"] is None
    assert min(pauses(core.asked_s)) >= PATIENCE_S + 0.1


def test_a_chat_that_fails_ends_the_run(rows: Rows) -> None:
    with pytest.raises(EngineError, match="broken"):
        measured(rows, [1], chat_failure=EngineError("broken"))


def test_where_there_is_no_room_for_so_many_calls_it_is_said(rows: Rows) -> None:
    measured(rows, [2, 5], accepts=3)
    read = rows.read()
    assert read["side_called_2_ms"]["n"] >= 20
    assert read["side_called_5_ms"]["value"] is None
    assert "3 calls were taken: full" in read["side_called_5_ms"]["reason"]
    assert "side_none_5_ms" not in read


# ---- all of it ----------------------------------------------------------------------------------


class _Worked(VirtualClock):
    """Every look at it takes a millisecond."""

    def now_s(self) -> float:
        self.spend_s(0.001)
        return super().now_s()


def test_the_tiny_model_decides_beside_calls(bed: Bed, rows: Rows) -> None:
    async def measure() -> None:
        clock = _Worked()
        made = make_engine(bed, Wanted(1 + FREE_SLOTS, 2048), clock)
        await SideBench(rows.report, made, clock).measure([1], SideOptions(0.0, 3.0))
        assert made.core.load().slots_used == 0

    run_virtually(measure())
    read = rows.read()
    assert list(read) == [
        "side_prompt_tokens",
        *(f"side_{kind}_1{end}_ms" for kind in ANSWERS for end in ("", "_p95", "_p99")),
        "side_1_refused",
        "side_1_given_up",
        "side_1_late_percent",
        "side_1_p95_ms",
    ]
    assert 800 < read["side_prompt_tokens"]["value"] < 2048 - MOST_TOKENS
    assert read["side_called_1_ms"]["value"] > read["side_none_1_ms"]["value"] > 0
    assert read["side_1_refused"]["value"] == read["side_1_given_up"]["value"] == 0
    assert read["side_1_p95_ms"]["n"] == 3 and read["side_1_p95_ms"]["against"] > 0


def test_the_engine_has_room_for_the_calls_and_a_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, int]] = []
    measured_: list[tuple[Sequence[int], SideOptions]] = []

    class Side:
        def __init__(self, report: object, of: str) -> None:
            assert of == "anew"

        async def measure(self, beside: Sequence[int], options: SideOptions) -> None:
            measured_.append((beside, options))

    def engine(run: object, name: str, wanted: Wanted) -> object:
        made.append((name, wanted.slots))
        return SimpleNamespace(renewed=lambda: "anew")

    monkeypatch.setattr(bench._Run, "_made", engine)
    monkeypatch.setattr(bench, "SideBench", Side)
    command = ["side", "--tiny", "--beside", "2", "5", "--decide", "7", "--settle", "3"]
    assert bench.main(command) == 0
    assert made == [("loaded", 5 + FREE_SLOTS)]
    assert measured_ == [([2, 5], SideOptions(3.0, 7.0))]
