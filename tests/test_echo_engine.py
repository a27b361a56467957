"""The echo engine: what it says back, when, and that it can be stopped."""

import asyncio
import gc
import weakref

import numpy as np
import pytest

from agent import resources
from agent.chat_types import AnswerRequest, ChatRequest, SpeechRequest
from agent.clock import Clock
from agent.commands import (
    AddText,
    ClearInput,
    CommitInput,
    ForceListen,
    Interrupt,
    Pause,
    Respond,
    Resume,
    UpdateSettings,
)
from agent.engines import EngineSettings, choose, create
from agent.engines.echo import EchoPartner
from agent.engines.greeting import Greeting, load_greeting
from agent.errors import CapacityError, ConfigError, UnsupportedError
from agent.types import (
    MIC_RATE_HZ,
    SPEECH_RATE_HZ,
    EngineEvent,
    FloatArray,
    Listened,
    SessionSettings,
    SpeechAudio,
    SpeechEnded,
    SpeechStarted,
    TextDelta,
    TurnDetection,
    TurnEnded,
    TurnStarted,
    Unit,
    UnitReport,
    VideoFrame,
)

GREETING = Greeting(np.full(SPEECH_RATE_HZ, 0.25, np.float32), "Hello.")


class Bench:
    """A partner on a clock that stands still until `run` moves it."""

    def __init__(self, settings: SessionSettings | None = None) -> None:
        self.partner = EchoPartner(settings or SessionSettings("echo"), GREETING)
        self.now_s = 100.0
        self.events: list[EngineEvent] = []
        self.unit = 0

    def run(self, seconds: float = 0.0) -> list[EngineEvent]:
        new: list[EngineEvent] = []
        for _ in range(max(1, int(seconds / 0.05))):
            new += self.partner.take(self.now_s)
            self.now_s += 0.05 if seconds else 0.0
        self.events += new
        return new

    def hear(self, audio: FloatArray, picture: VideoFrame | None = None) -> None:
        pictures = (picture,) if picture else ()
        self.partner.push(Unit(self.unit, audio, MIC_RATE_HZ, pictures))
        self.unit += 1


def tone(seconds: float, hz: float = 440) -> FloatArray:
    t = np.arange(int(seconds * MIC_RATE_HZ)) / MIC_RATE_HZ
    return (0.3 * np.sin(2 * np.pi * hz * t)).astype(np.float32)


def sound(events: list[EngineEvent]) -> FloatArray:
    pieces = [event.samples for event in events if isinstance(event, SpeechAudio)]
    return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)


def caption(events: list[EngineEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def greeted(settings: SessionSettings | None = None) -> Bench:
    bench = Bench(settings)
    bench.run(2)
    return bench


def test_greets_first_and_in_order() -> None:
    events = Bench().run(2)
    kinds = [type(event) for event in events]
    assert kinds[:2] == [TurnStarted, TextDelta]
    assert kinds[-1] is TurnEnded
    assert kinds[2:-1] == [SpeechAudio] * (len(kinds) - 3)
    assert np.array_equal(sound(events), GREETING.samples)
    starts = [event.start for event in events if isinstance(event, SpeechAudio)]
    assert starts == [index * SPEECH_RATE_HZ // 5 for index in range(len(starts))]


def test_speech_is_handed_out_in_real_time_with_a_little_lead() -> None:
    bench = Bench()
    assert sound(bench.run()).size <= 0.6 * SPEECH_RATE_HZ
    assert not any(isinstance(event, TurnEnded) for event in bench.events)
    bench.now_s += 0.5
    handed = sound(bench.events).size + sound(bench.run()).size
    assert 0.9 * SPEECH_RATE_HZ <= handed <= SPEECH_RATE_HZ


def test_says_back_the_utterance_and_nothing_else() -> None:
    bench = greeted()
    silence = np.zeros(MIC_RATE_HZ, np.float32)
    spoken = tone(1.0)
    bench.hear(silence)
    bench.partner.push(SpeechStarted(MIC_RATE_HZ))
    bench.hear(spoken)
    bench.partner.push(SpeechEnded(2 * MIC_RATE_HZ))
    assert not sound(bench.run()).size, "the end of the utterance is not heard yet"
    bench.hear(silence)
    events = bench.run(3)
    assert caption(events) == "You spoke for 1.0 s."
    said = sound(events)
    assert abs(said.size / SPEECH_RATE_HZ - 1.125) < 0.01
    power = np.abs(np.fft.rfft(said[: SPEECH_RATE_HZ - 4800]))
    peak_hz = power.argmax() * SPEECH_RATE_HZ / (SPEECH_RATE_HZ - 4800)
    assert abs(peak_hz - 440) < 5
    assert abs(float(np.abs(said[4800:19200]).max()) - 0.3) < 0.02


def test_a_long_utterance_comes_back_as_its_last_15_s() -> None:
    bench = greeted()
    bench.partner.push(SpeechStarted(0))
    for _ in range(40):
        bench.hear(tone(1.0))
    bench.partner.push(SpeechEnded(39 * MIC_RATE_HZ))
    events = bench.run(20)
    assert "39.0 s" in caption(events) and "last 15" in caption(events)
    assert abs(sound(events).size / SPEECH_RATE_HZ - 15) < 0.01


def test_caption_tells_size_brightness_and_rate_of_the_camera() -> None:
    bench = greeted()
    picture = VideoFrame(np.full((480, 640, 3), 51, np.uint8), 0)
    bench.partner.push(SpeechStarted(0))
    bench.hear(tone(1.0), picture)
    bench.hear(tone(1.0), picture)
    bench.partner.push(SpeechEnded(MIC_RATE_HZ + 8000))
    assert "640×480 pixels, brightness 20%, 1.0 pictures a second" in caption(bench.run(3))


def test_an_interruption_ends_the_turn_and_nothing_of_it_follows() -> None:
    bench = Bench()
    bench.run()
    bench.partner.control(Interrupt(1, 200))
    events = bench.run(3)
    ends = [event for event in events if isinstance(event, TurnEnded)]
    assert [(end.turn, end.reason) for end in ends] == [(1, "interrupted")]
    assert not sound(events).size


def test_late_interrupt_of_an_old_turn_changes_nothing() -> None:
    bench = greeted()
    bench.partner.control(Interrupt(1, 200))
    assert not bench.run(1)


def test_without_automatic_answers_it_speaks_when_asked() -> None:
    detection = TurnDetection(create_response=False)
    bench = greeted(SessionSettings("echo", turn_detection=detection))
    bench.partner.push(SpeechStarted(0))
    bench.hear(tone(1.0))
    bench.partner.push(SpeechEnded(8000))
    assert not sound(bench.run(2)).size
    bench.partner.control(Respond())
    said = bench.run(2)
    assert sound(said).size
    (turn,) = [event for event in said if isinstance(event, TurnStarted)]
    assert turn.asked


def test_client_commits_when_turn_detection_is_off() -> None:
    bench = greeted(SessionSettings("echo", turn_detection=None))
    bench.hear(tone(1.0))
    bench.hear(tone(1.0))
    bench.partner.control(CommitInput("item_1"))
    bench.partner.control(Respond())
    assert abs(sound(bench.run(4)).size / SPEECH_RATE_HZ - 2) < 0.01


def pressed(ends: list[ClearInput | CommitInput], units: int) -> Bench:
    """Turn detection off; the user talks for so many units, louder in each, and presses keys."""
    bench = greeted(SessionSettings("echo", turn_detection=None))
    for command in ends:
        bench.partner.control(command)
    for unit in range(units):
        bench.hear(np.full(MIC_RATE_HZ, 0.1 * (unit + 1), np.float32))
    return bench


def test_a_commit_in_the_middle_of_a_unit_holds_what_was_said_up_to_it() -> None:
    bench = pressed([], 1)
    bench.partner.control(CommitInput("item_1", 20_000))
    bench.partner.control(Respond())
    assert not sound(bench.run(3)).size, "its last quarter second is yet to come"
    bench.hear(np.full(MIC_RATE_HZ, 0.2, np.float32))
    said = sound(bench.run(4))
    assert said.size / SPEECH_RATE_HZ == pytest.approx(1.25, abs=0.01)
    assert said[SPEECH_RATE_HZ // 2] == pytest.approx(0.1, abs=0.01)
    assert said[SPEECH_RATE_HZ * 9 // 8] == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("first", [ClearInput(24_000), CommitInput("item_1", 24_000)])
def test_what_was_said_before_the_last_cut_is_not_said_back(
    first: ClearInput | CommitInput,
) -> None:
    bench = pressed([first], 2)
    bench.partner.control(CommitInput("item_2", 32_000))
    bench.partner.control(Respond())
    said = sound(bench.run(4))
    assert said.size / SPEECH_RATE_HZ == pytest.approx(0.5, abs=0.01)
    assert said[said.size // 2] == pytest.approx(0.2, abs=0.01)


def test_an_old_utterance_is_still_said_back_when_asked() -> None:
    bench = greeted()
    bench.partner.push(SpeechStarted(0))
    bench.hear(tone(1.0))
    bench.partner.push(SpeechEnded(8000))
    bench.run(2)
    for _ in range(30):
        bench.hear(np.zeros(MIC_RATE_HZ, np.float32))
    bench.partner.control(Respond())
    assert caption(bench.run(2)) == "You spoke for 0.5 s."


def test_an_empty_commit_is_answered_by_the_greeting() -> None:
    bench = greeted(SessionSettings("echo", turn_detection=None))
    bench.partner.control(CommitInput("item_1"))
    bench.partner.control(Respond())
    assert caption(bench.run(2)) == "Hello."


def test_a_user_who_only_paused_is_not_answered_yet() -> None:
    bench = greeted()
    bench.partner.push(SpeechStarted(0))
    bench.partner.push(SpeechEnded(8000))
    bench.partner.push(SpeechStarted(14000))
    bench.hear(tone(1.0))
    assert not sound(bench.run(2)).size
    bench.partner.push(SpeechEnded(24000))
    bench.hear(tone(1.0))
    assert caption(bench.run(3)) == "You spoke for 1.5 s."


def test_speech_left_open_when_turn_detection_goes_off_is_forgotten() -> None:
    bench = greeted()
    bench.partner.push(SpeechStarted(0))
    bench.partner.control(UpdateSettings(SessionSettings("echo", turn_detection=None)))
    bench.partner.control(UpdateSettings(SessionSettings("echo")))
    bench.partner.push(SpeechEnded(8000))
    bench.hear(tone(1.0))
    assert not sound(bench.run(2)).size


def test_pictures_are_not_kept() -> None:
    picture = VideoFrame(np.full((480, 640, 3), 51, np.uint8), 0)
    watched = weakref.ref(picture.rgb)
    bench = greeted()
    bench.hear(tone(1.0), picture)
    del picture
    gc.collect()
    assert watched() is None


def test_pause_silences_and_resume_listens_again() -> None:
    bench = Bench()
    bench.run()
    bench.partner.control(Pause())
    bench.hear(tone(1.0))
    assert not any(isinstance(event, Listened | SpeechAudio) for event in bench.run(2))
    bench.partner.control(Resume())
    bench.hear(tone(1.0))
    assert Listened(1) in bench.run()


def test_forced_to_listen_it_does_not_answer() -> None:
    bench = greeted()
    bench.partner.control(ForceListen(True))
    bench.partner.control(Respond())
    assert not sound(bench.run(2)).size
    bench.partner.control(ForceListen(False))
    assert sound(bench.run(2)).size


def test_text_only_sessions_get_captions_without_sound() -> None:
    bench = Bench(SessionSettings("echo", output_modalities=("text",)))
    events = bench.run(2)
    assert caption(events) == "Hello." and not sound(events).size
    assert isinstance(events[-1], TurnEnded)
    bench.partner.control(UpdateSettings(SessionSettings("echo")))
    bench.partner.control(Respond())
    assert sound(bench.run(2)).size


@pytest.mark.parametrize(
    ("request_", "what"), [(ChatRequest(()), "chat"), (SpeechRequest("Hi."), "read aloud")]
)
def test_it_neither_chats_nor_reads(request_: AnswerRequest, what: str) -> None:
    engine = create("echo", EngineSettings(resources.assets_folder(), slots=1))
    with pytest.raises(UnsupportedError, match=f"cannot {what}"):
        engine.chat(request_)


async def test_the_engine_has_slots_and_gets_them_back() -> None:
    engine = create("echo", EngineSettings(resources.assets_folder(), slots=1))
    first = await engine.open(SessionSettings("echo"))
    with pytest.raises(CapacityError):
        await engine.open(SessionSettings("echo"))
    assert engine.load().slots_free == 0
    await first.finish()
    await first.finish()
    assert engine.load().slots_free == 1
    await (await engine.open(SessionSettings("echo"))).finish()


async def test_the_conversation_ends_its_events_at_finish_and_reports_units() -> None:
    engine = create("echo", EngineSettings(resources.assets_folder(), slots=1))
    conversation = await engine.open(SessionSettings("echo"))
    await conversation.push(Unit(0, tone(1.0), MIC_RATE_HZ))
    seen: list[EngineEvent] = []

    async def read() -> None:
        async for event in conversation.events():
            seen.append(event)
            if isinstance(event, UnitReport):
                await conversation.finish()

    await asyncio.wait_for(read(), 60)
    assert isinstance(seen[0], Listened | TurnStarted)
    assert seen[-1].unit == 0 and isinstance(seen[-1], UnitReport)


def test_the_greeting_is_speech_at_24_khz() -> None:
    greeting = load_greeting(resources.assets_folder() / "ref_audio" / "echo_greeting.wav")
    assert 2 < greeting.samples.size / SPEECH_RATE_HZ < 8
    assert 0.05 < float(np.sqrt(np.mean(greeting.samples**2))) < 0.3


def test_auto_resolves_and_unknown_engines_are_refused() -> None:
    assert choose("auto").name == "echo" and choose("auto").reason
    with pytest.raises(ConfigError, match=r"engine\.name.*'nope'.*echo"):
        choose("nope")


def test_the_clock_of_the_seam_is_monotonic() -> None:
    clock = Clock()
    assert clock.now_s() <= clock.now_s()


# ---- who leads --------------------------------------------------------------------------------


def late_greeter() -> Bench:
    bench = Bench()
    bench.partner = EchoPartner(SessionSettings("echo"), GREETING, greets_after_s=0.5)
    return bench


def test_it_greets_whoever_waits() -> None:
    bench = late_greeter()
    assert bench.run() == []
    assert bench.partner.next_due_s() == bench.now_s + 0.5
    bench.now_s += 0.49
    assert bench.run() == []
    bench.now_s += 0.02
    assert caption(bench.run(2)) == GREETING.text
    assert bench.partner.next_due_s() is None


def test_a_client_that_asks_first_is_answered_and_not_greeted() -> None:
    bench = late_greeter()
    bench.run()
    bench.partner.control(AddText("item_1", "user", "Good evening"))
    bench.partner.control(Respond())
    events = bench.run(10)
    assert [event.asked for event in events if isinstance(event, TurnStarted)] == [True]
    assert caption(events) == "You wrote: Good evening"
