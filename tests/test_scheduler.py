"""Whose work is next, what batches cost, whether one more call fits, and what is left out."""

import logging
import math
import random
from dataclasses import dataclass, field, replace

import pytest

from agent.duplex.engine_loop import LaneLoop, Task
from agent.duplex.job import Job
from agent.scheduler import (
    DEADLINE_SHARE,
    ENOUGH,
    PATIENCE_S,
    RECOVERED_UNITS,
    STARVED_S,
    UNIT_S,
    Admission,
    Costs,
    Demand,
    Relief,
    Waiting,
    line_up,
)
from tests.rig.timed_device import Cost, TimedDevice, unit_works


def unit(order: int, due_s: float = 1.0, kind: str = "decode", size: int = 1) -> Waiting:
    return Waiting(0, order, kind, size, due_s)


def behind(
    order: int, rank: int = 2, kind: str = "decode", size: int = 1, since_s: float = 0.0
) -> Waiting:
    return Waiting(rank, order, kind, size, since_s=since_s)  # type: ignore[arg-type]


# ---- whose work is next -------------------------------------------------------------------------


def test_what_is_due_first_goes_first_and_among_equals_what_came_first() -> None:
    assert line_up([unit(1, 3.0), unit(2, 1.0), unit(4, 2.0), unit(3, 2.0)], 0.0) == [1, 3, 2, 0]


def test_works_of_the_leaders_kind_come_before_others_that_are_due_sooner() -> None:
    waiting = [unit(1, 1.0), unit(2, 1.5, "prefill"), unit(3, 2.0)]
    assert line_up(waiting, 0.0) == [0, 2, 1]


def test_chats_are_behind_half_duplex_turns_and_these_behind_every_unit() -> None:
    waiting = [behind(1), behind(2, 1), unit(3, 9.0)]
    assert line_up(waiting, 0.0) == [2, 1, 0]
    assert line_up(waiting[:2], 0.0) == [1, 0]


def test_what_is_no_units_comes_along_only_where_it_makes_the_batch_no_longer() -> None:
    long = behind(2, kind="prefill", size=512)
    assert line_up([unit(1, 1.0, "prefill", 16), long], 0.0) == [0]
    short = behind(2, kind="prefill", size=16)
    assert line_up([unit(1, 1.0, "prefill", 16), short], 0.0) == [0, 1]
    assert line_up([unit(1, 1.0, "prefill", 16), behind(2)], 0.0) == [0]


def test_what_is_no_units_waits_while_a_unit_elsewhere_cannot_spare_the_time() -> None:
    assert line_up([behind(1)], 0.0, spare_s=0.02, takes_s=0.03) == []
    assert line_up([behind(1)], 0.0, spare_s=0.04, takes_s=0.03) == [0]


def test_what_has_waited_for_long_goes_first_where_the_units_can_spare_the_time() -> None:
    waiting = [unit(1, 1.0), behind(2)]
    now_s = PATIENCE_S[2] + 0.1
    assert line_up(waiting, now_s, spare_s=0.2, takes_s=0.03)[0] == 1
    assert line_up(waiting, now_s, spare_s=0.01, takes_s=0.03)[0] == 0
    # It never starves, and those of its kind come along.
    assert line_up(waiting, STARVED_S + 0.1, spare_s=-1.0, takes_s=0.03) == [1, 0]


def test_chats_that_are_held_go_again_when_there_are_no_units() -> None:
    waiting = [behind(1), behind(2, 1)]
    assert line_up(waiting, 0.0, spare_s=0.5, held=True) == [1]
    assert line_up(waiting, 0.0, held=True) == [1, 0]


# ---- what things cost ---------------------------------------------------------------------------


def test_a_cost_lies_on_the_line_through_what_was_measured_and_is_proportional_before() -> None:
    costs = Costs()
    costs.took("decode", 1, 0.008, times=ENOUGH)
    assert costs.expected_s("decode", 4) == pytest.approx(0.032)
    costs.took("decode", 8, 0.015)
    assert costs.expected_s("decode", 1) == pytest.approx(0.008)
    assert costs.expected_s("decode", 4) == pytest.approx(0.011)
    assert costs.expected_s("speech", 4) == 0.0


def test_a_cost_is_an_average_that_follows_and_no_cost_before_it_was_measured_often() -> None:
    costs = Costs()
    for _ in range(ENOUGH - 1):
        costs.took("audio", 1, 0.010)
    assert costs.expected_s("audio", 1) == 0.0
    costs.took("audio", 1, 0.020)
    assert costs.expected_s("audio", 1) == pytest.approx(0.011)
    costs.took("audio", 1, 0.020, times=100)
    assert costs.expected_s("audio", 1) == pytest.approx(0.020, rel=1e-3)


def test_a_cost_never_falls_with_the_size_and_is_never_less_than_nothing() -> None:
    costs = Costs()
    costs.took("audio", 1, 0.020, times=ENOUGH)
    costs.took("audio", 4, 0.010, times=ENOUGH)
    assert costs.expected_s("audio", 64) >= costs.expected_s("audio", 1) > 0
    steep = Costs()
    steep.took("audio", 4, 0.004, times=ENOUGH)
    steep.took("audio", 8, 0.100, times=ENOUGH)
    assert steep.expected_s("audio", 1) > 0


# ---- whether one more fits ----------------------------------------------------------------------

H200: dict[str, Cost] = {
    "vision": lambda n: 0.006 + 0.004 * n,
    "audio": lambda n: 0.004 + 0.0002 * n,
    "prefill": lambda n: 0.009 + 0.0006 * n,
    "decode": lambda n: 0.007 + 0.00008 * n,
    "speech": lambda n: 0.040 + 0.0010 * n,
    "vocoder": lambda n: 0.014 + 0.0010 * n,
}
SLOW: dict[str, Cost] = {
    name: lambda n, cost=cost: 3 * cost(n)  # type: ignore[misc]
    for name, cost in H200.items()
}


@dataclass
class Service:
    """Calls on a device in virtual time, each with a unit a second."""

    costs: dict[str, Cost]
    seed: int = 0
    seeing: bool = False
    late_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.device = TimedDevice(self.costs)
        self.known = Costs()
        self.admission = Admission(self.known)
        self.loop = LaneLoop(self.device.runner, self.known, self.device.pause)
        self.chance = random.Random(self.seed)
        self.next_s: list[float] = []
        self.chats = 0
        self.chats_done_s: list[float] = []

    def know(self) -> None:
        """What batches cost is measured before the first call."""
        for kind, cost in self.costs.items():
            for size in (1, 8, 32):
                self.known.took(kind, size, cost(size), times=ENOUGH)

    @property
    def calls(self) -> Demand:
        count = len(self.next_s)
        return Demand(count, count if self.seeing else 0)

    def may_open(self) -> bool:
        more = self.calls.calls + 1
        return self.admission.fits(Demand(more, more if self.seeing else 0))

    def open(self) -> None:
        self.next_s.append(self.device.clock.time_s + self.chance.random())

    def run_until(self, end_s: float) -> None:
        while self.device.clock.time_s < end_s:
            now_s = self.device.clock.time_s
            for call, due_s in enumerate(self.next_s):
                if due_s <= now_s:
                    self.next_s[call] += UNIT_S
                    self._begin_unit(due_s)
            if self.loop.is_busy:
                self.loop.step()
            else:
                self.device.pass_time(min([end_s, *self.next_s]) - now_s + 1e-6)

    def _begin_unit(self, came_s: float) -> None:
        speaks = self.chance.random() < 0.5
        job = Job(unit_works(speaks=speaks, sees=self.seeing), lambda _, __: None, came_s + UNIT_S)

        def over(error: Exception | None) -> None:
            took_s = self.device.clock.time_s - came_s
            self.late_s.append(took_s - UNIT_S)
            self.admission.unit_over(took_s, 6 if speaks else 0, self.calls)
            self.loop.margin_s = self.admission.margin_s()

        self.loop.start(Task(job, 0, over))

    def chat(self, pieces: int) -> None:
        """One piece of work behind all units after the other."""
        if pieces:
            job = Job(unit_works(speaks=True), lambda _, __: None)
            self.chats_done_s.append(self.device.clock.time_s)
            self.loop.start(Task(job, 2, lambda _: self.chat(pieces - 1)))


@pytest.mark.parametrize(
    ("costs", "seeing", "least"), [(H200, False, 64), (H200, True, 24), (SLOW, False, 3)]
)
def test_no_unit_of_the_calls_that_are_let_in_is_late_and_far_more_would_be(
    costs: dict[str, Cost], seeing: bool, least: int
) -> None:
    service = Service(costs, seeing=seeing)
    service.know()
    while service.may_open() and len(service.next_s) < 400:
        service.open()
        service.run_until(service.device.clock.time_s + 0.02)
    held = len(service.next_s)
    service.run_until(service.device.clock.time_s + 4)
    assert max(service.late_s) < 0 and held >= least
    crowd = Service(costs, seeing=seeing)
    for _ in range(4 * held):
        crowd.open()
    crowd.run_until(5)
    assert max(crowd.late_s) > 0
    assert not crowd.may_open()


def test_chats_never_make_a_unit_late_and_never_starve() -> None:
    service = Service(H200, seed=3)
    service.know()
    for _ in range(48):
        service.open()
    for _ in range(8):
        service.chat(1000)
    service.run_until(10)
    assert max(service.late_s) < 0
    begun_s = service.chats_done_s
    assert all(any(at < one < at + 3 for one in begun_s) for at in (1, 4, 7))


def test_the_first_call_fits_and_so_does_any_before_something_was_measured() -> None:
    admission = Admission(Costs())
    assert admission.fits(Demand(1)) and admission.fits(Demand(99))
    slow = Costs()
    slow.took("audio", 1, 5.0, times=ENOUGH)
    admission = Admission(slow)
    assert admission.fits(Demand(1)) and not admission.fits(Demand(2))


def test_calls_with_a_camera_count_for_more() -> None:
    service = Service(H200)
    service.know()
    blind = [n for n in range(1, 400) if service.admission.fits(Demand(n))]
    seeing = [n for n in range(1, 400) if service.admission.fits(Demand(n, n))]
    assert max(seeing) < max(blind) / 2
    mixed = Demand(max(seeing) + 5, max(seeing) - 5)
    assert service.admission.fits(mixed)


def test_what_units_really_took_counts_where_it_is_more_than_reckoned() -> None:
    service = Service(H200)
    service.know()
    reckoned_s = service.admission.estimate_s(Demand(20))
    assert service.admission.fits(Demand(20))
    for _ in range(ENOUGH):
        service.admission.unit_over(DEADLINE_SHARE, 6, Demand(19))
    assert service.admission.estimate_s(Demand(20)) > 1.5 * reckoned_s
    assert not service.admission.fits(Demand(20))


def test_half_the_calls_are_expected_to_speak_whoever_speaks_now() -> None:
    service = Service(H200)
    service.know()
    before = [n for n in range(1, 400) if service.admission.fits(Demand(n))]
    for _ in range(50):
        service.admission.unit_over(0.01, 0, Demand(10))
    after = [n for n in range(1, 400) if service.admission.fits(Demand(n))]
    assert before == after


def test_a_refused_caller_is_told_when_a_call_has_probably_ended() -> None:
    admission = Admission(Costs())
    assert admission.retry_after_s([100.0] * 10) == pytest.approx(100.0)
    for _ in range(10):
        admission.ended(120.0)
    # Ten ended after two minutes, four have lasted for one: 144 s each, 36 s for the first.
    assert admission.retry_after_s([60.0] * 4) == pytest.approx((1200 + 240) / 10 / 4)
    assert admission.retry_after_s([]) >= 1.0
    assert admission.retry_after_s([1e9]) <= 600


# ---- when units fall behind ---------------------------------------------------------------------


def test_pictures_shrink_then_go_then_chats_are_held_and_only_for_the_call_that_is_late() -> None:
    relief = Relief()
    relief.unit_over(1, -0.5, sees=True)
    relief.unit_over(2, -0.5, sees=True)
    seen = []
    for _ in range(4):
        relief.unit_over(1, 0.1, sees=True)
        seen.append((relief.shown(1), relief.holds_chats))
    assert seen == [
        ("thumbnail", False),
        ("none", False),
        ("none", True),
        ("none", True),
    ]
    assert relief.shown(2) == "all"


def test_for_a_late_call_without_a_camera_chats_are_held_at_once() -> None:
    relief = Relief()
    relief.unit_over(1, 0.1, sees=False)
    assert relief.holds_chats
    relief.forget(1)
    assert not relief.holds_chats


def test_what_was_left_out_comes_back_step_by_step_when_units_are_in_time() -> None:
    relief = Relief()
    for _ in range(3):
        relief.unit_over(1, 0.1, sees=True)
    seen = []
    for _ in range(3 * RECOVERED_UNITS):
        relief.unit_over(1, -0.1, sees=True)
        seen.append((relief.shown(1), relief.holds_chats))
    turns = [seen[at * RECOVERED_UNITS - 1] for at in (1, 2, 3)]
    assert turns == [("none", False), ("thumbnail", False), ("all", False)]
    assert seen[RECOVERED_UNITS - 2] == ("none", True)


def test_each_step_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    relief = Relief()
    with caplog.at_level(logging.WARNING):
        for _ in range(6):
            relief.unit_over(7, 0.25, sees=True)
    assert [record.getMessage() for record in caplog.records] == [
        "call 7 is 0.2 s late: its pictures are seen as thumbnails",
        "call 7 is 0.2 s late: its pictures are not seen",
        "call 7 is 0.2 s late: its pictures are not seen, and chats are held",
    ]


def test_a_wait_without_an_end_is_no_number_of_seconds() -> None:
    assert replace(unit(1), due_s=math.inf).due_s == math.inf
