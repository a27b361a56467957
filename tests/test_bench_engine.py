"""`bench.engine`: what is forced is forced, and every row is there."""

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

import bench.engine as bench
from agent.clock import Clock
from agent.duplex.kv_cache import KvStream
from agent.duplex.lanes import Done
from agent.duplex.tokens import Token
from agent.duplex.work import Choice, Read, Speak, Work
from agent.errors import CapacityError, EngineError
from agent.fleet.callers import Material
from agent.types import SessionSettings
from bench import engine_memory, engine_unit
from bench.engine_drive import OneCall, Taken
from bench.engine_floor import Rates, Weights, floor_ms, measure_floor
from bench.engine_hour import HourOptions, measure_hour, report_hour
from bench.engine_memory import measure_memory
from bench.engine_parts import SETTINGS, VOCABULARY, Bed, Wanted, make_bed, make_engine
from bench.engine_script import DecidedLane, WholeSeconds, cycle, plans, spoken_unit
from bench.engine_unit import UnitOptions, measure_units, units_of
from tests.rig.engine_rows import Rows

CPU = torch.device("cpu")
LISTEN = (Token.LISTEN,)


@pytest.fixture
def rows() -> Rows:
    return Rows()


# ---- what is said -------------------------------------------------------------------------------


@pytest.mark.parametrize(("speak", "listened", "spoken"), [(0.5, 5, 5), (1, 0, 5), (0.2, 20, 5)])
def test_a_cycle_has_the_share_of_speech_that_is_asked_for(
    speak: float, listened: int, spoken: int
) -> None:
    units = cycle(speak)
    assert units[:listened] == [LISTEN] * listened
    assert units[listened:] == [spoken_unit(ends=False)] * (spoken - 1) + [spoken_unit(ends=True)]
    assert cycle(0) == [LISTEN]
    with pytest.raises(ValueError, match="share"):
        cycle(1.5)


def test_a_spoken_unit_says_five_words() -> None:
    begins, *words, ends_turn, ends = spoken_unit(ends=True)
    assert (begins, ends_turn, ends) == (Token.SPEAK, Token.TURN_EOS, Token.CHUNK_EOS)
    assert len(words) == 5 and len(VOCABULARY.text(words)) < 28
    assert spoken_unit(ends=False) == (begins, *words, ends)


def test_slots_are_at_different_places_of_the_same_cycle() -> None:
    taken = [list(itertools.islice(plans(0.5)(slot), 10)) for slot in range(10)]
    for at in range(10):
        assert sum(plan[at] != LISTEN for plan in taken) == 5
    assert sorted(taken[3]) == sorted(taken[0]) != taken[3]


class _Drawing:
    """A lane that draws 7 for whoever wants a token, and fails at the place `fails`."""

    def __init__(self, fails: int = -1) -> None:
        self.fails = fails
        self.begun: list[list[Work]] = []

    def count(self, works: Sequence[Work]) -> int:
        return 3

    def begin(self, works: Sequence[Work]) -> Done:
        self.begun.append(list(works))
        for work in works:
            if isinstance(work, Read) and work.choice is not None:
                work.token = 7
        return Done({self.fails: EngineError("no")} if self.fails >= 0 else {})


CHOICE = Choice(sampler=None, drawing=None)  # type: ignore[arg-type]


def prefill(slot: int, choice: Choice | None = CHOICE) -> Read:
    return Read(KvStream(slot), ids=(1, 2, 3), choice=choice)


def step(slot: int) -> Read:
    return Read(KvStream(slot), ids=(4,), choice=CHOICE)


def one_unit_plans(slot: int) -> Iterator[tuple[int, ...]]:
    return itertools.cycle([(100 + slot, 200 + slot), (300 + slot,)])


def run(lane: DecidedLane, *works: Read) -> list[int]:
    batch = lane.begin(works)
    assert batch.done
    batch.finish()
    return [work.token for work in works]


def test_what_was_drawn_becomes_what_was_decided_slot_by_slot() -> None:
    drawing = _Drawing()
    lane = DecidedLane(drawing, one_unit_plans)
    assert lane.count([]) == 3
    assert run(lane, prefill(0), prefill(1)) == [100, 101]
    assert run(lane, step(1), step(0)) == [201, 200]
    assert run(lane, step(0), prefill(1)) == [Token.CHUNK_EOS, 301], "a unit begins anew"
    assert run(lane, prefill(0, choice=None), prefill(0)) == [-1, 300], "nobody wanted the first"
    assert len(drawing.begun) == 4, "all of it was drawn before"


def test_a_work_that_failed_takes_nothing_of_its_plan() -> None:
    lane = DecidedLane(_Drawing(fails=0), one_unit_plans)
    assert run(lane, prefill(0), prefill(1)) == [7, 101]


def test_speech_never_ends_before_its_second() -> None:
    speak = Speak((), (), KvStream(0), None, None, may_end=True)  # type: ignore[arg-type]
    inner = _Drawing()
    lane = WholeSeconds(inner)
    assert lane.count([speak]) == 3
    lane.begin([speak, prefill(0)])
    assert inner.begun[0][0] is speak and not speak.may_end


# ---- the tiny model -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Bed:
    return make_bed(CPU, tmp_path_factory.mktemp("bed"), tiny=True)


class _Watched(WholeSeconds):
    """Notes what is spoken."""

    spoken: ClassVar[list[Speak]] = []

    def begin(self, works: Sequence[Work]) -> Any:
        self.spoken.extend(work for work in works if isinstance(work, Speak))
        return super().begin(works)


def test_a_call_says_what_was_written_and_all_of_it_sounds(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    decide = DecidedLane._decide
    monkeypatch.setattr(
        DecidedLane, "_decide", lambda lane, work: (drawn.append(work.token), decide(lane, work))
    )
    monkeypatch.setattr("bench.engine_parts.WholeSeconds", _Watched)
    made = make_engine(bed, Wanted(1, 1024, speak=1.0))
    call, material = OneCall(made.core, SETTINGS), Material(camera=False)
    taken = [call.take(material.unit(index)) for index in range(3 + 5)]
    call.end()
    assert [one.listened for one in taken] == [True] * 3 + [False] * 5
    assert [len(work.tokens) for work in _Watched.spoken] == [25] * 5
    words = spoken_unit(ends=False)[1:-1]
    assert [tuple(work.said) for work in _Watched.spoken[:4]] == [words] * 4
    assert tuple(_Watched.spoken[4].said) == (*words, Token.TURN_EOS)
    wanted = [token for token in drawn if token >= 0]
    assert len(wanted) == 4 * 7 + 8, "each was drawn: one for every token that was written"
    assert wanted != [token for unit in cycle(1.0) for token in unit]
    assert math.isfinite(taken[3].first_sound_ms) and math.isinf(taken[4].first_sound_ms)
    assert sum(one.samples for one in taken) == 5 * 24_000
    assert {"prefill", "decode", "speech", "vocoder"} <= taken[4].stage_ms.keys()
    assert 0 < taken[3].first_sound_ms <= taken[3].took_ms


def test_an_engine_takes_all_calls_or_as_many_as_when_it_serves(bed: Bed) -> None:
    made = make_engine(bed, Wanted(2, 512))
    refuse = made.core._admission
    vars(refuse)["estimate_s"] = lambda *demands: 9.0
    made.admit_all()
    made.core.open(1, SETTINGS)
    made.core.open(2, SETTINGS)
    made.core.finish(2)
    made.admit_as_served()
    with pytest.raises(CapacityError, match="others wait"):
        made.core.open(3, SETTINGS)
    made.core.finish(1)
    anew = made.renewed()
    assert anew.core is not made.core and anew.parts is made.parts
    anew.core.open(1, SETTINGS)
    anew.core.finish(1)


class _Slow(Clock):
    """Half a second passes at every look."""

    time_s = 0.0

    def now_s(self) -> float:
        self.time_s += 0.5
        return self.time_s


def test_pictures_are_looked_at_however_long_that_takes(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.engine_unit.cycle", lambda speak: [LISTEN] * 2)
    clock = _Slow()
    units = units_of(make_engine(bed, Wanted(1, 1024, speak=0), clock), "omni", 2, clock)
    assert len(units) == 4 and all("vision" in one.stage_ms for one in units)
    assert min(one.took_ms for one in units) > 1000, "each of them was late"


def test_an_hour_is_measured_behind_a_full_window(bed: Bed, rows: Rows) -> None:
    gigabytes = iter([20.0, 20.01])
    made = make_engine(bed, Wanted(1, 512))
    measure_hour(rows.report, made, HourOptions(4, 2), gpu_gb=lambda: next(gigabytes))
    measured = rows.read()
    assert measured["hour_memory_growth_mb"]["value"] == 10 and measured["hour_units"]["value"] == 4
    assert measured["hour_context_tokens"]["value"] > 0.6 * 512
    assert measured["hour_unit_time_growth_percent"]["target"] == 5


def test_a_call_s_memory_is_the_difference_of_few_and_more(
    bed: Bed, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_memory, "FEW", 1)
    monkeypatch.setattr(engine_memory, "MORE", 2)
    monkeypatch.setattr(engine_memory, "_HEARD_S", 1)
    gigabytes = iter([21.0, 21.8, math.nan, math.nan])
    made = make_engine(bed, Wanted())
    measure_memory(rows.report, made, lambda device: next(gigabytes), (2048,))
    row = rows.read()["vram_each_gb_2048"]
    assert (row["value"], row["target"], row["meets"]) == (0.8, 0.85, True)
    monkeypatch.setattr(engine_memory, "_taken_by", lambda *args: next(gigabytes))
    measure_memory(rows.report, made, windows=(8192,))
    assert rows.read()["vram_each_gb_8192"]["value"] is None


# ---- units --------------------------------------------------------------------------------------


def taken(mode: str, spoken: int, heard: int, base_ms: float) -> list[Taken]:
    stages = {"audio": 1.0, **({"vision": 2.0} if mode == "omni" else {})}
    units = [Taken(base_ms + at, stages, True, context_tokens=at) for at in range(heard)]
    first = Taken(10 * base_ms, {**stages, "speech": 5.0}, False, 9 * base_ms, 24_000)
    return units + [first] * spoken


@pytest.mark.parametrize("has_lanes", [True, False])
def test_the_rows_of_units(rows: Rows, monkeypatch: pytest.MonkeyPatch, has_lanes: bool) -> None:
    made = SimpleNamespace(has_lanes=has_lanes, device=CPU, wanted=Wanted())
    asked: list[tuple[str, int]] = []

    def units_of(of: object, mode: str, cycles: int, *others: object) -> list[Taken]:
        asked.append((mode, cycles))
        return taken(mode, 100, 100, 5.0 if of is made else 500.0)

    monkeypatch.setattr(engine_unit, "make_eager", lambda *args: SimpleNamespace())
    monkeypatch.setattr(engine_unit, "units_of", units_of)
    monkeypatch.setattr(engine_unit, "most_taken_gb", lambda device: 21.5)
    measure_units(rows.report, made, UnitOptions(7, 2))  # type: ignore[arg-type]
    lanes = [("audio", 7), ("omni", 7)]
    assert asked == ([*lanes, ("audio", 2), ("omni", 2)] if has_lanes else lanes)
    measured = rows.read()
    listen = measured["audio_listen_ms"]
    assert (listen["value"], listen["target"], listen["meets"]) == (54, 15, False)
    assert (listen["n"], listen["against"]) == (100, 550 if has_lanes else None)
    assert measured["audio_listen_p95_ms"]["value"] == 99
    assert measured["audio_listen_p95_ms"]["target"] == pytest.approx(1.3 * 54)
    assert measured["omni_speak_ms"]["value"] == 50 and measured["omni_speak_ms"]["meets"]
    assert measured["omni_listen_vision_ms"]["value"] == 2
    assert "audio_listen_vision_ms" not in measured
    assert (measured["first_sound_ms"]["value"], measured["first_sound_ms"]["target"]) == (45, 60)
    assert measured["vram_first_gb"]["meets"]
    assert measured["unit_lanes"]["value"] == has_lanes


def test_growth_is_that_of_the_last_units_over_the_first(rows: Rows) -> None:
    report_hour(rows.report, [Taken(10.0 + at // 100, {}) for at in range(600)], 100)
    values = rows.values
    assert (values["hour_unit_first_ms"], values["hour_unit_last_ms"]) == (10, 15)
    assert values["hour_unit_time_growth_percent"] == 50
    assert not rows.read()["hour_unit_time_growth_percent"]["meets"]


# ---- the floor ----------------------------------------------------------------------------------


def test_the_floor_is_the_longer_of_moving_and_multiplying() -> None:
    rates = Rates(1e12, 1e14)
    assert rates.step_ms(2e9, 1e11) == 2
    assert rates.step_ms(2e9, 1e12) == 10
    weights = Weights(audio=0, vision=0, llm=5 * 10**9, speech=0, vocoder=0, position_bytes=0)
    floors = floor_ms(weights, rates)
    assert floors["audio_listen"] == pytest.approx(10)
    assert floors["audio_speak"] - floors["audio_listen"] == pytest.approx(60 + 2.05)
    assert floors["omni_listen"] == pytest.approx(10), "80 positions multiply in less than that"


def test_the_weights_are_those_of_the_published_model(rows: Rows) -> None:
    measure_floor(rows.report, CPU, small=True)
    values = rows.values
    kinds = [f"floor_{mode}_{did}_ms" for mode in ("audio", "omni") for did in ("listen", "speak")]
    assert all(values[kind] > 0 for kind in kinds)
    step_s = values["floor_llm_step_ms"] / 1000
    # 15.1 GB of weights, and as many GFLOP: whichever takes longer is what is waited for.
    moved = step_s * values["floor_copy_gb_per_s"]
    computed = step_s * values["floor_matrix_tflop_per_s"] * 1000
    assert min(moved, computed) == pytest.approx(15.1, rel=0.02)


# ---- the command line ---------------------------------------------------------------------------


def test_rows_are_kept_behind_those_of_the_last_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "results" / "x.jsonl"
    for _ in range(2):
        assert bench.main(["floor", "--tiny", "--json", "--out", str(kept)]) == 0
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [line["name"] for line in lines if "name" in line].count("floor_copy_gb_per_s") == 2
    assert sum("command" in line for line in lines) == 2
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("name") for line in printed] == [line.get("name") for line in lines]


def test_a_missing_gpu_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main(["unit"]) == 2
    assert "finds no GPU" in capsys.readouterr().err


def test_every_name_is_measured_in_the_order_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []
    names = ["start", "unit", "memory", "hour", "load", "sweep", "side", "floor"]
    for name in names:
        monkeypatch.setattr(bench._Run, name, lambda run, name=name: done.append(name))
    assert bench.main([*names, "--tiny", "--json"]) == 0
    assert done == names
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["name"] for row in printed[1:]] == [f"{name}_took_s" for name in names]


def test_it_imports_where_the_server_s_libraries_are_missing() -> None:
    blocked = ["av", "aiortc", "aioice", "pydantic", "aiohttp", "silero_vad", "cryptography"]
    code = f"import sys\nsys.modules.update(dict.fromkeys({blocked!r}))\nimport bench.engine"
    root = Path(bench.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_a_text_is_about_as_long_as_a_tokenizer_makes_it() -> None:
    text = "<|im_start|>system\nYou are in duplex mode.\n<|audio_start|>"
    ids = VOCABULARY.encode(text)
    assert (ids[0], ids[-1], len(ids)) == (Token.IM_START, Token.AUDIO_START, 9)
    assert SessionSettings(model="minicpm-o") == SETTINGS
