"""`voice-agent bench`: its one sentence for whatever is found, and what it asks of an engine."""

import json
import math

import pytest

from agent import bench_command
from agent.__main__ import main
from agent.bench_command import Findings, as_json, measure, sentence
from agent.fleet.capacity import Capacity, Effort, LoadResult, Why
from agent.fleet.unit_times import Times
from agent.types import Abilities, SessionSettings
from tests.rig.timed_engine import TimedCall, TimedEngine
from tests.rig.virtual_time import VirtualClock, run_virtually


def load(calls: int, *latencies_s: float, spoken: int = 2) -> LoadResult:
    return LoadResult(calls, Times(tuple(latencies_s), spoken=spoken))


def found(calls: int, why: Why = "late", spoken: int = 2, quickest_s: float = 0.2) -> Capacity:
    best = load(calls, 0.3, 0.41, 0.93, spoken=spoken) if calls else LoadResult(0, Times())
    return Capacity(best, why, (best,), quickest_s)


def said(voice: Capacity, camera: Capacity | None = None, **changes: object) -> str:
    facts = {"places": "model.slots", "has_model": True, "speaks": True} | changes
    return sentence(Findings("minicpm-o", **facts, voice=voice, camera=camera))  # type: ignore[arg-type]


def test_the_sentence_names_calls_with_and_without_a_camera() -> None:
    assert said(found(12), found(5)) == (
        "This machine holds 12 calls with voice, or 5 with a camera, at once; a unit took 0.41 s "
        "of its second at that load, the slowest 0.93 s."
    )
    assert said(found(1), found(0)).startswith(
        "This machine holds 1 call with voice, but none with a camera, at once; "
    )
    assert said(found(2)).startswith("This machine holds 2 calls with voice at once; ")


@pytest.mark.parametrize(
    ("why", "quickest_s", "words"),
    [
        ("late", 14.2, "a unit takes 14 s, and it has one second."),
        ("late", math.inf, "a unit was not done in the time that there was"),
        ("late", 0.9, "not every unit of a single one is done within its second."),
        ("refused", math.inf, "the engine takes none."),
        ("failed", math.inf, "the first one failed, and the log says why."),
    ],
)
def test_no_call_is_no_call_and_why(why: Why, quickest_s: float, words: str) -> None:
    told = said(found(0, why, quickest_s=quickest_s), found(0))
    assert told.startswith("This machine holds no call: ") and words in told


@pytest.mark.parametrize(
    ("voice", "changes", "words"),
    [
        (found(4, "places"), {}, "model.slots allows no more: set it higher"),
        (found(4, "refused"), {}, "refused by the engine itself."),
        (found(4, "time"), {}, "no time to try more"),
        (found(4, "failed"), {}, "a call failed"),
        (found(4, spoken=1), {}, "The agent spoke in 33% of the units"),
        (found(4), {"speaks": False}, "It answered in captions"),
        (found(4), {"has_model": False}, "has no model: what limits it is the processor"),
    ],
)
def test_what_makes_of_it_more_or_less_is_said(
    voice: Capacity, changes: dict[str, object], words: str
) -> None:
    assert words in said(voice, **changes)
    assert "allows no more" not in said(found(4)) and "captions" not in said(found(4))


def test_the_document_is_json_and_holds_every_load() -> None:
    late = load(2, 0.5, math.inf)
    voice = Capacity(load(1, 0.1, 0.2), "late", (load(1, 0.1, 0.2), late), 0.1)
    document = json.loads(as_json(Findings("minicpm-o", "model.slots", True, True, voice)))
    assert document["camera"] is None
    assert document["voice"]["calls"] == 1 and document["voice"]["p99_ms"] == 200
    first, second = document["voice"]["loads"]
    assert (first["held"], first["late"], first["spoken_percent"]) == (True, 0, 100)
    assert (second["held"], second["late"], second["max_ms"]) == (False, 1, None)
    assert document["sentence"].startswith("This machine holds 1 call with voice at once")


def test_an_engine_is_measured_as_configured_and_with_a_camera(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[SessionSettings] = []
    engine = TimedEngine(VirtualClock(), unit_s=0.15, picture_s=0.15, slots=9)
    engine.name = "minicpm-o"
    opened = engine.open

    async def open_noting(settings: SessionSettings) -> TimedCall:
        asked.append(settings)
        return await opened(settings)

    engine.open = open_noting  # type: ignore[method-assign]
    settings = SessionSettings(model="minicpm-o", voice="anna", mode="half_duplex")
    findings = run_virtually(measure(engine, settings, Effort(70), camera=True, clock=engine.clock))
    assert findings.camera is not None
    assert (findings.voice.best.calls, findings.camera.best.calls) == (6, 3)
    assert {(one.voice, one.mode) for one in asked} == {("anna", "duplex")}
    told = capsys.readouterr().err
    assert "6 calls with voice: the slowest unit took 0." in told and "in time\n" in told
    assert "calls with a camera: " in told and "too late\n" in told


def test_an_engine_of_this_process_is_told_from_one_with_a_model() -> None:
    able = Abilities(duplex=True, speech=True)
    engine = TimedEngine(VirtualClock(), unit_s=0.001, slots=2, abilities=able)
    engine.name = "echo"
    settings = SessionSettings(model="echo")
    findings = run_virtually(
        measure(engine, settings, Effort(40), camera=False, clock=engine.clock)
    )
    assert (findings.has_model, findings.places) == (False, "calls.max_calls")
    assert findings.voice.best.calls == 2


@pytest.mark.parametrize("seconds", ["5", "x", "nan", "99999"])
def test_times_that_cannot_be_are_refused(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["bench", "--seconds", seconds])
    assert left.value.code == 2
    assert "from 30 to 3600 seconds" in capsys.readouterr().err


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What would be measured, which takes a minute."""
    asked: list[object] = []

    async def note(config: object, effort: Effort, *, camera: bool) -> Findings:
        asked.extend((config, effort, camera))
        return Findings("minicpm-o", "model.slots", True, True, found(3), None)

    monkeypatch.setattr(bench_command, "_found", note)
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    return asked


def test_the_command_prints_one_line(
    asked: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--camera", "--seconds", "90", "--set", "model.slots=12"]) == 0
    config, effort, camera = asked
    assert (config.model.slots, effort.seconds, camera) == (12, 90, True)  # type: ignore[attr-defined]
    assert capsys.readouterr().out.splitlines() == [said(found(3))]


def test_flags_are_settings(asked: list[object], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--engine", "echo", "--model", "here", "--json"]) == 0
    config = asked[0]
    assert (config.engine.name, config.model.source) == ("echo", "here")  # type: ignore[attr-defined]
    assert json.loads(capsys.readouterr().out)["voice"]["calls"] == 3
