"""Early units from the microphone to a real engine and back: the echo's, and the tiny model's."""

import re
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

from agent.commands import Command, Interrupt, Retract
from agent.engines.echo import EchoPartner
from agent.engines.greeting import Greeting
from agent.types import (
    SPEECH_RATE_HZ,
    Listened,
    SessionSettings,
    SpeechEnded,
    SpeechStarted,
    TextDelta,
    TurnStarted,
    Unit,
    UnitReport,
)
from tests.rig.call_parts import DrivenClock, ScriptedConversation, settle
from tests.rig.early_call import EarlyCall, until_tried
from tests.rig.scripted_call import SETTINGS, Beeper, Driven
from tests.rig.tiny_mind import LISTEN, says

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

Item = Unit | SpeechStarted | SpeechEnded | Command
GREETING = Greeting(np.full(SPEECH_RATE_HZ // 10, 0.25, np.float32), "Hello.")


class Echo(ScriptedConversation):
    """The echo engine in driven time."""

    def __init__(self) -> None:
        super().__init__()
        self.partner = EchoPartner(SessionSettings(model="echo"), GREETING)
        self.clock: DrivenClock | None = None

    async def _take(self, item: Item) -> None:
        await super()._take(item)
        if isinstance(item, Unit | SpeechStarted | SpeechEnded):
            self.partner.push(item)
        else:
            self.partner.control(item)
        if isinstance(item, Unit):
            self.say(UnitReport(item.index, ()))

    def work(self) -> None:
        assert self.clock is not None
        self.say(*self.partner.take(self.clock.now_s()))


class Model(ScriptedConversation):
    """A call on the tiny model, decided by `units`; it takes no time."""

    def __init__(self, *units: Iterable[int]) -> None:
        super().__init__()
        self.call = Driven(*units, vocoder=Beeper())

    async def _take(self, item: Item) -> None:
        await super()._take(item)
        if isinstance(item, Unit | SpeechStarted | SpeechEnded):
            self.call.call.push(item)
        else:
            self.call.call.control(item)
        said = self.call.work()
        if isinstance(item, Unit):
            said.append(UnitReport(item.index, ()))
        self.say(*said)


class WholeCall(EarlyCall):
    """A call with a real engine."""

    def __init__(self, engine: Echo | Model, **settings: object) -> None:
        super().__init__(conversation=engine, **settings)
        if isinstance(engine, Echo):
            engine.clock = self.clock

    async def engine_works(self) -> None:
        if isinstance(self.engine, Echo):
            self.engine.work()
        await settle()


async def begun(call: WholeCall, silent_ms: int = 3000) -> WholeCall:
    await call.begin()
    await call.live(silent_ms)
    return call


# ---- the echo -----------------------------------------------------------------------------------


def times_spoken(call: WholeCall) -> list[float]:
    """How long the user spoke, as the echo says after each of his turns."""
    return [float(seconds) for seconds in re.findall(r"You spoke for (\S+) s\.", said(call))]


def said(call: WholeCall) -> str:
    """The echo's words so far."""
    return "".join(
        event["delta"] for event in call.events("response.output_audio_transcript.delta")
    )


async def test_the_echo_says_back_once_and_sooner() -> None:
    answered_ms = {}
    for early in (True, False):
        call = await begun(WholeCall(Echo(), early_units=early))
        await call.live(200, speaks=True)
        silent_s = call.clock.now_s()
        while "You spoke" not in said(call):
            await call.live(20)
        answered_ms[early] = 1000 * (call.clock.now_s() - silent_s)
        await call.live(4000)
        assert bool(call.tried) is early
        (spoken_s,) = times_spoken(call)
        assert abs(spoken_s - 0.5) < 0.05, "with what comes before its onset"
        await call.leave()
    # The end of speech is noticed after half a second, but for that nobody waits.
    assert 500 <= answered_ms[True] <= 600 and answered_ms[False] >= 780


async def test_the_echo_says_all_back_when_the_user_only_paused() -> None:
    call = await begun(WholeCall(Echo()))
    await call.live(200, speaks=True)
    await call.live(300)
    await call.live(700, speaks=True)
    sent = await call.live(3000)
    assert call.commands(Retract) == [Retract(3)]
    (spoken_s,) = times_spoken(call)
    assert abs(spoken_s - 1.5) < 0.05
    # Both words, and nothing of either twice.
    assert abs(np.count_nonzero(sent) / SPEECH_RATE_HZ - (0.2 + 0.7)) < 0.05
    await call.leave()


# ---- the tiny model -----------------------------------------------------------------------------


def model_settings(early: bool) -> dict[str, object]:
    return {"model": "minicpm-o", "instructions": SETTINGS.instructions, "early_units": early}


async def test_the_model_s_answer_begins_before_the_second_is_over() -> None:
    call = await begun(WholeCall(Model(says("ab"), says("c", ends=True)), **model_settings(True)))
    tried = await until_tried(call, spoken_ms=200)
    begin_s = call.clock.now_s()
    sent = await call.live(1600)
    sounding = np.flatnonzero(sent)
    assert tried.index == 3 and begin_s + sounding[0] / SPEECH_RATE_HZ < 1000 + 4.0
    assert call.units[4].start == tried.end
    # A second of sound for each second, also across the unit that was cut short.
    held = 24 * (1000 + 60) - SPEECH_RATE_HZ
    assert sounding[-1] > held
    gaps = np.diff(sounding)
    assert gaps.max() < 24 * 25, "no gap"
    await call.leave()


async def test_the_model_never_knows_of_what_was_taken_back() -> None:
    units = [LISTEN, says("de", ends=True), LISTEN]
    call = await begun(WholeCall(Model(says("ab"), *units), **model_settings(True)))
    other = await begun(WholeCall(Model(*units), **model_settings(False)))
    for one in (call, other):
        await one.live(200, speaks=True)
        await one.live(300)
        await one.live(500, speaks=True)
        await one.live(2000)
    assert call.commands(Retract) == [Retract(3)] and call.commands(Interrupt) == []
    ours, theirs = (model.call.call._talk for model in (call.engine, other.engine))
    assert ours._random.drawn == theirs._random.drawn
    assert ours.context_tokens == theirs.context_tokens
    ours_kept, theirs_kept = (
        model.call.parts.runner.slots.llm.tensor[:, :, 0, :, : theirs._memory.llm.length]
        for model in (call.engine, other.engine)
    )
    assert bool((ours_kept == theirs_kept).all())
    for one in (call, other):
        responses = [event["response"] for event in one.events("response.done")]
        (answer,) = [one for one in responses if one["status"] == "completed"]
        assert answer["output"][0]["content"][0]["transcript"] == "de"
    await call.leave()
    await other.leave()


async def test_the_events_of_the_turn_taken_back_name_it_and_the_next_number_follows() -> None:
    engine = Model(says("ab"), LISTEN, says("de", ends=True), LISTEN)
    call = await begun(WholeCall(engine, **model_settings(True)))
    await call.live(200, speaks=True)
    await call.live(300)
    await call.live(500, speaks=True)
    await call.live(1000)
    (first, second) = call.events("response.done")
    assert first["response"]["status"] == "cancelled"
    assert second["response"]["status"] == "completed"
    await call.leave()


@pytest.mark.parametrize("engine", ["echo", "half_duplex"])
def test_a_unit_that_comes_again_takes_the_place_of_the_tried_one(engine: str) -> None:
    tried = Unit(0, np.full(16_000, 0.5, np.float32), 4800, (), True)
    whole = replace(tried, audio=np.full(16_000, 0.1, np.float32), samples_valid=16_000)
    whole = replace(whole, speculative=False)
    if engine == "echo":
        partner = EchoPartner(SessionSettings(model="echo"), GREETING)
        take, control, units = partner.push, partner.control, partner._units
    else:
        call = Driven(settings=replace(SETTINGS, mode="half_duplex")).call
        take, control, units = call.push, call.control, call._heard.units
    take(tried)
    assert [one.end for one in units] == [4800]
    control(Retract(0))
    assert not units
    take(tried)
    take(whole)
    assert [one.end for one in units] == [16_000]
    assert float(units[-1].audio.max()) == np.float32(0.1)


def test_in_half_duplex_what_was_said_is_read_across_a_unit_that_was_cut_short() -> None:
    driven = Driven(settings=replace(SETTINGS, mode="half_duplex"))
    ramp = np.arange(40_000, dtype=np.float32) / 40_000
    audio = np.zeros(16_000, np.float32)
    audio[:4800] = ramp[:4800]
    driven.call.push(Unit(0, audio, 4800, (), True))
    driven.call.push(Unit(1, ramp[4800:20_800], 16_000, inserted_samples=11_200))
    driven.call.push(SpeechStarted(1600))
    driven.call.push(SpeechEnded(16_000))
    utterance = driven.call._awaited
    np.testing.assert_array_equal(driven.call._heard.sound(utterance), ramp[1600:16_000])
    assert Listened(1) in driven.line.take()


def test_texts_of_a_tried_unit_carry_its_number() -> None:
    engine = Model(says("ab"))
    engine.call.listen(3)
    said = engine.call.listen(speculative=True)
    assert [event for event in said if isinstance(event, TurnStarted | TextDelta)] == [
        TurnStarted(1),
        TextDelta(3, 1, "ab"),
    ]
