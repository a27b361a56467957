"""Whose voice a call speaks with, what the model hears of it, when its first sound may begin."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from agent.clock import Clock
from agent.commands import Interrupt, UpdateSettings
from agent.duplex.call import DuplexCall
from agent.duplex.call_parts import CallParts, CallVoices
from agent.duplex.engine import DuplexEngine
from agent.duplex.lanes import Runner
from agent.duplex.pace import Pace
from agent.duplex.voice_line import VoiceLine
from agent.errors import RequestError, VocoderError
from agent.types import Abilities, FloatArray, SpeechAudio, TextDelta, TurnEnded, TurnStarted, Unit
from tests.rig.jobs import sounded
from tests.rig.scripted_call import SETTINGS, Beeper, Driven
from tests.rig.scripted_call import parts as scripted_parts
from tests.rig.tiny_mind import LISTEN, runner, says, second, tiny_mind

VECTORS = {"a": 3, "b": 5}


class TwoVoices:
    """Voice `a` of three vectors and `b` of five; keys are in capitals."""

    def ids(self) -> tuple[str, ...]:
        return ("a", "b")

    def resolve(self, voice_id: str, language: str = "") -> str:
        if voice_id not in ("", "a", "b"):
            raise RequestError("no such voice", param="voice")
        return (voice_id or ("b" if language == "zh" else "a")).upper()

    def duplex(self, key: str) -> Tensor:
        width = tiny_mind().config.llm.width
        return torch.full((VECTORS[key.lower()], width), 0.1)

    turns = duplex


class Choir(Beeper):
    """Remembers in which voices it was asked to speak."""

    def __init__(self) -> None:
        self.prepared: list[str] = []
        self.opened: list[str] = []

    def prepare(self, voice: str) -> None:
        self.prepared.append(voice)

    def open(self, voice: str) -> object:
        self.opened.append(voice)
        return super().open(voice)


def call_with(
    *units: object, voice: str = "", choir: Choir | None = None, **changes: object
) -> tuple[Driven, Choir]:
    choir = choir or Choir()
    settings = replace(SETTINGS, voice=voice, **changes)
    return Driven(*units, settings=settings, vocoder=choir, voices=TwoVoices()), choir


def test_a_call_speaks_with_the_voice_it_picked_and_the_model_hears_it() -> None:
    spoken = {}
    for voice in ("", "a", "b"):
        call, choir = call_with(says("c", ends=True), voice=voice)
        call.listen(4)
        assert choir.prepared == choir.opened == [(voice or "a").upper()]
        spoken[voice] = call.context_tokens
    assert spoken["a"] == spoken[""]
    assert spoken["b"] - spoken["a"] == VECTORS["b"] - VECTORS["a"]


def test_the_voice_is_ready_before_the_first_turn() -> None:
    call, choir = call_with(LISTEN, voice="b")
    assert choir.prepared == []
    call.work()
    assert (choir.prepared, choir.opened) == (["B"], [])


def test_a_call_in_text_prepares_no_voice() -> None:
    call, choir = call_with(says("c"), output_modalities=("text",))
    call.listen(4)
    assert choir.prepared == choir.opened == []


@pytest.mark.parametrize("mode", ["duplex", "half_duplex"])
def test_a_voice_that_does_not_exist_opens_no_call(mode: str) -> None:
    with pytest.raises(RequestError, match="no such voice"):
        call_with(LISTEN, voice="c", mode=mode)


def test_another_voice_is_heard_and_spoken_with_from_the_next_turn_on() -> None:
    call, choir = call_with(says("c", ends=True), says("d"), voice="a")
    call.listen(4)
    before = call.context_tokens
    with pytest.raises(RequestError, match="no such voice"):
        call.tell(UpdateSettings(replace(SETTINGS, voice="x")))
    assert call.context_tokens == before
    call.tell(UpdateSettings(replace(SETTINGS, voice="b")))
    assert call.context_tokens == before + VECTORS["b"] - VECTORS["a"]
    call.listen()
    assert choir.opened == ["A", "B"]


@pytest.mark.parametrize("mode", ["duplex", "half_duplex"])
def test_without_a_choice_the_voice_is_one_of_the_language(mode: str) -> None:
    for language, voice in (("en", "A"), ("zh", "B")):
        call, choir = call_with(LISTEN, mode=mode, language=language)
        call.work()
        assert choir.prepared == [voice]
    chosen, choir = call_with(LISTEN, voice="a", language="zh")
    chosen.work()
    assert choir.prepared == ["A"]


def test_another_language_brings_another_voice_where_none_was_picked() -> None:
    call, choir = call_with(says("c", ends=True))
    call.listen(3)
    call.tell(UpdateSettings(replace(SETTINGS, language="zh")))
    call.listen()
    assert choir.opened == ["B"]


@pytest.mark.parametrize("mode", ["duplex", "half_duplex"])
def test_the_model_may_hear_another_voice_than_the_vocoder_speaks_with(mode: str) -> None:
    lengths = {}
    for prompt_voice in ("", "a", "b"):
        call, choir = call_with(LISTEN, voice="a", mode=mode, prompt_voice=prompt_voice)
        call.work()
        assert choir.prepared == ["A"]
        lengths[prompt_voice] = call.context_tokens
    assert lengths[""] == lengths["a"] == lengths["b"] + VECTORS["a"] - VECTORS["b"]
    with pytest.raises(RequestError, match="no such voice"):
        call_with(LISTEN, voice="a", mode=mode, prompt_voice="c")


def test_another_prompt_voice_changes_the_prompt_alone() -> None:
    call, choir = call_with(says("c", ends=True), says("d"), voice="a")
    call.listen(4)
    before = call.context_tokens
    call.tell(UpdateSettings(replace(SETTINGS, voice="a", prompt_voice="b")))
    assert call.context_tokens == before + VECTORS["b"] - VECTORS["a"]
    call.listen()
    assert choir.opened == ["A", "A"]


def test_half_duplex_answers_in_the_voice_with_the_instructions_behind_it() -> None:
    lengths = {}
    for voice in ("a", "b"):
        call, choir = call_with(voice=voice, mode="half_duplex")
        call.work()
        assert choir.prepared == [voice.upper()]
        lengths[voice] = call.context_tokens
    assert lengths["b"] - lengths["a"] == VECTORS["b"] - VECTORS["a"]


def test_a_voice_that_cannot_be_spoken_with_leaves_captions() -> None:
    class Hoarse(Choir):
        def prepare(self, voice: str) -> None:
            raise VocoderError("hoarse")

        def open(self, voice: str) -> object:
            raise VocoderError("hoarse")

    call, _ = call_with(says("c", ends=True), choir=Hoarse())
    assert call.listen(4)[3:] == [
        TurnStarted(1),
        TextDelta(3, 1, "c"),
        TurnEnded(1, "completed"),
    ]


# ---- when the first sound may begin --------------------------------------------------------------


class Watch(Clock):
    """Time that the test drives."""

    def __init__(self) -> None:
        self.s = 0.0

    def now_s(self) -> float:
        return self.s

    def spend(self, seconds: float) -> None:
        self.s += seconds


class Slow(Choir):
    """Takes its time for a piece."""

    work: Callable[[], None] = staticmethod(lambda: None)

    def open(self, voice: str) -> object:
        stream, choir = super().open(voice), self
        push, finish = stream.push, stream.finish

        class Taking:
            def push(self, tokens: Sequence[int]) -> FloatArray:
                choir.work()
                return push(tokens)

            def finish(self) -> FloatArray:
                return finish()

        return Taking()


def first_holds(*units: tuple[float, float]) -> list[int]:
    """The holds of the first sounds of turns of two units each; a unit takes as many seconds in
    the model and in the vocoder as given."""
    watch, choir = Watch(), Slow()
    call, _ = call_with(*[says("c"), says("", ends=True)] * (len(units) // 2), choir=choir)
    parts: CallParts = call.parts
    runner = Runner(parts.runner.model, parts.runner.slots, watch)
    settings = replace(SETTINGS)
    call.parts = replace(parts, runner=runner)
    call.call.close()
    call.call = DuplexCall(call.parts, settings, call.line, CallVoices.of(call.parts, settings))
    call.listen(3)
    holds = []
    for model_s, vocoder_s in units:
        choir.work = lambda took_s=vocoder_s: watch.spend(took_s)
        call.call.push(_unit(call))
        watch.spend(model_s)
        sounds = [event for event in call.work() if isinstance(event, SpeechAudio)]
        holds += [sound.hold_ms for sound in sounds if not sound.start]
    return holds


def _unit(call: Driven) -> Unit:
    call.heard += 1
    return second(call.heard - 1)


def test_the_first_sound_waits_for_what_it_lacks_of_a_second_and_for_the_slowest_of_late() -> None:
    quick = (0.1, 0.0)
    even = first_holds(quick, quick, quick, quick)
    assert len(set(even)) == 1 and 60 <= even[0] <= 160
    assert first_holds(quick, (0.3, 0.0), quick, quick) == [even[0], even[0] + 200]
    assert first_holds(quick, (5.0, 0.0), quick, quick) == [even[0], even[0] - 60 + 500]


def test_what_the_vocoder_takes_is_learnt_too() -> None:
    quick = (0.1, 0.0)
    (even, _) = first_holds(quick, quick, quick, quick)
    assert first_holds(quick, (0.1, 0.3), quick, quick) == [even, even + 300]
    # A first piece that is itself late is held for less.
    assert first_holds(quick, (0.1, 0.3), (0.1, 0.1), quick) == [even, even + 200]


def test_a_pace_makes_up_for_a_short_first_piece() -> None:
    pace = Pace(Watch(), 1000)
    assert (pace.hold_ms(720), pace.hold_ms(1200)) == (340, 60)


def test_only_the_first_sound_of_a_turn_is_held_and_none_without_a_pace() -> None:
    for pace, holds in ((Pace(Watch(), 1000), [100, 0]), (None, [0, 0])):
        line = VoiceLine(Beeper())
        for opening in line.begin("", speaks=True, asked=False, pace=pace):
            opening.run(tiny_mind(), runner().slots)
        for unit in range(2):
            sounded(line.say(unit, tuple(range(24))))
        sounds = [event for event in line.take() if isinstance(event, SpeechAudio)]
        assert [sound.hold_ms for sound in sounds] == holds


# ---- turns without a voice -----------------------------------------------------------------------


class Failing(Choir):
    """Its voice fails with `error` at the push of this number."""

    def __init__(self, error: Exception, at: int) -> None:
        super().__init__()
        self.error, self.left = error, at

    def open(self, voice: str) -> object:
        stream, choir = super().open(voice), self
        push, finish = stream.push, stream.finish

        class Stream:
            def push(self, tokens: Sequence[int]) -> FloatArray:
                choir.left -= 1
                if choir.left < 0:
                    raise choir.error
                return push(tokens)

            def finish(self) -> FloatArray:
                return finish()

        return Stream()


@pytest.mark.parametrize(
    "error",
    [VocoderError("hoarse"), RuntimeError("cuFFT failed"), torch.OutOfMemoryError("no room")],
)
@pytest.mark.parametrize("at", [0, 1])
def test_a_voice_that_fails_costs_the_turn_its_sound_and_nothing_else(
    error: Exception, at: int
) -> None:
    call, _ = call_with(says("a"), says("b"), says("c", ends=True), choir=Failing(error, at))
    said = call.listen(6)[3:]
    assert [event for event in said if not isinstance(event, SpeechAudio)] == [
        TurnStarted(1),
        TextDelta(3, 1, "a"),
        TextDelta(4, 1, "b"),
        TextDelta(5, 1, "c"),
        TurnEnded(1, "completed"),
    ]
    assert len(said) - 5 == at


def test_a_broken_gpu_is_not_taken_for_a_hoarse_voice() -> None:
    broken = RuntimeError("CUDA error: an illegal memory access was encountered")
    call, _ = call_with(says("a"), choir=Failing(broken, 0))
    with pytest.raises(RuntimeError, match="CUDA error"):
        call.listen(4)


def test_what_was_read_instead_of_heard_is_not_forgotten() -> None:
    kept = {}
    for name, choir in (("heard", Choir()), ("read", Failing(VocoderError("hoarse"), 0))):
        call, _ = call_with(says("ab"), says("cd"), choir=choir)
        call.listen(5)
        told = call.context_tokens
        assert call.tell(Interrupt(1, 0)) == [TurnEnded(1, "interrupted")]
        kept[name] = call.context_tokens - told
    assert kept["read"] == 1  # the end of the turn
    assert kept["heard"] < 0


def test_a_call_that_turns_to_text_says_no_more_and_one_that_turns_to_sound_is_ready() -> None:
    call, choir = call_with(says("ab"), says("cd"), says("e", ends=True), says("f"))
    call.listen(4)
    call.tell(UpdateSettings(replace(SETTINGS, output_modalities=("text",))))
    assert [one for one in call.listen(2) if isinstance(one, SpeechAudio)] == []
    assert choir.prepared == ["A"]
    call.tell(UpdateSettings(SETTINGS))
    assert choir.prepared == ["A", "A"]
    assert any(isinstance(one, SpeechAudio) for one in call.listen())


class Forgetful(TwoVoices):
    """Its voices can be deleted."""

    gone = False

    def resolve(self, voice_id: str, language: str = "") -> str:
        if self.gone:
            raise RequestError("no such voice", param="voice")
        return super().resolve(voice_id, language)


@pytest.mark.parametrize("mode", ["duplex", "half_duplex"])
def test_a_call_that_begins_anew_keeps_its_voice_whatever_became_of_its_name(mode: str) -> None:
    voices, choir = Forgetful(), Choir()
    settings = replace(SETTINGS, voice="b", mode=mode)
    made = scripted_parts(vocoder=choir, voices=voices)
    engine = DuplexEngine(made, Abilities())
    engine.open(1, settings)
    voices.gone = True
    other = "half_duplex" if mode == "duplex" else "duplex"
    for changed in (
        replace(settings, instructions="cd"),
        replace(settings, mode=other),
    ):
        engine.control(1, UpdateSettings(changed))
        while engine.idle_s() == 0.0:
            engine.work()
    assert set(choir.prepared) == {"B"}
    with pytest.raises(RequestError, match="no such voice"):
        engine.control(1, UpdateSettings(replace(settings, mode=other, voice="a")))
