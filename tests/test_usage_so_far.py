"""What a response took that was cut short: told with its end, before the engine's own count."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, replace
from itertools import islice, pairwise, product
from typing import Any

import pytest

from agent.commands import Interrupt, Respond
from agent.errors import EngineError
from agent.media.barge_in import BargeInDue
from agent.realtime.events import usage_object
from agent.types import (
    EngineEvent,
    Failed,
    SpeechAudio,
    SpeechEnded,
    SpeechStarted,
    TextDelta,
    ToolCalled,
    TurnEnded,
    TurnStarted,
    Unit,
    UnitReport,
    Usage,
)
from tests.rig.call_parts import ScriptedConversation, voice
from tests.rig.jobs import advanced
from tests.rig.realtime_watch import Watched
from tests.rig.scripted_call import FORCED, SETTINGS, Beeper, Driven
from tests.rig.server import running_server
from tests.rig.socket_caller import SocketCaller
from tests.rig.tiny_mind import LISTEN, says, second
from tests.test_duplex_tools_call import ABLE, CALL, calling
from tests.test_duplex_tools_turns import begun as answering
from tests.test_early_whole_call import Echo, Item, Model, WholeCall, begun, model_settings
from tests.test_websocket_sideband import attached

FIRST = Usage(text_in=11, audio_in=20, cached_in=4, text_out=1)
NEXT = Usage(text_in=11, audio_in=30, cached_in=4, text_out=2, audio_out=25)


def told(call: Watched) -> list[dict[str, Any]]:
    """The `usage` of each response that is done."""
    done = [event["response"] for event in call.events if event["type"] == "response.done"]
    for one in done:
        check(one["usage"])
    return [one["usage"] for one in done]


def check(usage: dict[str, Any]) -> None:
    """Its numbers add up."""
    taken, given = usage["input_token_details"], usage["output_token_details"]
    kinds = ("text_tokens", "audio_tokens", "image_tokens")
    assert usage["input_tokens"] == sum(taken[kind] for kind in kinds)
    assert usage["output_tokens"] == given["text_tokens"] + given["audio_tokens"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert 0 <= taken["cached_tokens"] <= usage["input_tokens"]
    assert min(*(taken[kind] for kind in kinds), *given.values()) >= 0


# ---- the protocol -------------------------------------------------------------------------------


def speaking(call: Watched, turn: int = 1) -> None:
    """A turn under way that tells what it has taken."""
    samples = voice(500)
    call.engine(TurnStarted(turn, usage=replace(FIRST, text_out=0)))
    call.engine(TextDelta(0, turn, "One", FIRST), SpeechAudio(turn, 0, 0, samples, usage=NEXT))


def barge_in(call: Watched) -> None:
    call.take(call.call.playout_cleared(1, 100, "turn_detected"))


ENDINGS: dict[str, Callable[[Watched], object]] = {
    "cancelled": lambda call: call.send("response.cancel"),
    "barge_in": barge_in,
    "next": lambda call: call.start(2),
    "failed": lambda call: call.engine(Failed(EngineError("lost"))),
    "lost": lambda call: call.end(1, "interrupted"),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_response_that_is_cut_short_tells_what_it_took_until_then(ending: str) -> None:
    call = Watched()
    speaking(call)
    call.take(call.call.playout_started(1))
    ENDINGS[ending](call)
    assert told(call) == [usage_object(NEXT)]
    call.engine(TurnEnded(1, "interrupted", replace(NEXT, text_out=9)))
    assert told(call) == [usage_object(NEXT)], "once"


def test_one_that_is_withdrawn_tells_what_it_was_to_be_answered_from() -> None:
    call = Watched()
    call.send("response.create")
    call.send("response.cancel")
    call.engine(TurnStarted(1, asked=True, usage=FIRST))
    assert told(call) == [usage_object(FIRST)]


def test_it_is_never_less_than_before_whatever_was_forgotten_since() -> None:
    call = Watched()
    speaking(call)
    fewer = Usage(text_in=5, audio_in=12, cached_in=17, text_out=3, audio_out=26)
    call.engine(UnitReport(1, (), 0, 1, fewer))
    call.send("response.cancel")
    most = Usage(text_in=11, audio_in=30, cached_in=17, text_out=3, audio_out=26)
    assert told(call) == [usage_object(most)]


@pytest.mark.parametrize("reason", ["completed", "max_tokens"])
def test_where_the_engine_has_counted_that_alone_is_told(reason: Any) -> None:
    call = Watched()
    speaking(call)
    call.take(call.call.playout_started(1))
    counted = Usage(text_in=3, text_out=2, audio_out=30)
    call.engine(TurnEnded(1, reason, counted))
    call.engine(UnitReport(1, (), 0, 1, NEXT))
    assert told(call) == [usage_object(counted)]


def test_what_nothing_is_said_of_counts_too() -> None:
    call = Watched()
    call.engine(TurnStarted(1), UnitReport(0, (), 0, 1, NEXT), UnitReport(1, (), 0))
    call.send("response.cancel")
    assert told(call) == [usage_object(NEXT)]


def test_what_is_answered_before_any_second_was_heard_is_of_none() -> None:
    call = Watched()
    assert call.engine(UnitReport(-1, (), 0, 1, NEXT)) == []
    assert [one["unit"] for one in call.engine(UnitReport(0, ()))] == [0]


def test_a_turn_that_waits_behind_another_keeps_its_own_count() -> None:
    call = Watched()
    speaking(call)
    call.engine(TurnEnded(1, "completed", FIRST))
    more = replace(NEXT, text_out=7)
    speaking(call, 2)
    call.engine(UnitReport(3, (), 0, 2, more))
    assert told(call) == [], "the first has not sounded yet"
    barge_in(call)
    call.send("response.cancel")
    assert told(call) == [usage_object(FIRST), usage_object(more)]


# ---- the model ----------------------------------------------------------------------------------

UNITS = (says("abc"), says("de"), says("f", ends=True), LISTEN, says("gh"), says("i", ends=True))


def pieces(call: Driven) -> Iterator[None]:
    """Do what there is to do, a piece of the model's work at a time."""
    while (job := call.call.next_job()) is not None:
        while advanced(job, call.parts.runner):
            yield


def heard(call: Driven, client: Watched) -> list[EngineEvent]:
    """What the engine says, which the client is told."""
    said = call.line.take()
    client.engine(*said)
    return said


def ended(said: Iterable[EngineEvent]) -> list[Usage]:
    """What turns took by the engine's own count."""
    return [one.usage for one in said if isinstance(one, TurnEnded)]


def cancelled(call: Driven, client: Watched) -> tuple[dict[str, Any], Usage]:
    """The client cancels the turn under way → what it is told, and what the engine counts then."""
    client.send("response.cancel")
    usage = told(client)[-1]
    call.call.control(Interrupt(call.line.turn, 0))
    (count,) = ended(call.work_all())
    return usage, count


def in_reply(*units: Sequence[int], **changes: Any) -> tuple[Driven, Watched]:
    """A call whose agent may speak now, and its client."""
    call = Driven(*units, vocoder=Beeper(), **changes)
    call.listen(FORCED)
    return call, Watched()


def test_what_a_turn_has_taken_only_grows_up_to_what_it_took() -> None:
    call, client = in_reply(*UNITS)
    for index in range(3):
        call.call.push(second(FORCED + index))
    said = [one for _ in pieces(call) for one in heard(call, client)] + heard(call, client)
    counts = [one.usage for one in said if getattr(one, "usage", None) is not None]  # type: ignore[union-attr]
    sounds = [one.usage for one in said if isinstance(one, SpeechAudio)]
    assert [one.audio_out for one in sounds if one is not None][:2] == [25, 50]
    assert [one.text_out for one in counts] == sorted(one.text_out for one in counts)
    assert {one.text_out for one in counts} == {3, 5, 6}
    for before, after in pairwise(map(astuple, counts)):
        assert all(old <= new for old, new in zip(before, after, strict=True))
    assert counts[-1] == ended(said)[0]


def test_cancelled_between_any_two_pieces_of_work_it_took_all_that_was_told_by_then() -> None:
    given, is_whole, at = [0], False, 0
    while not is_whole:
        at += 1
        call, client = in_reply(*UNITS)
        for index in range(2):
            call.call.push(second(FORCED + index))
        steps = pieces(call)
        said = [one for _ in islice(steps, at) for one in heard(call, client)]
        is_whole = next(steps, steps) is steps
        said += heard(call, client) if is_whole else []
        if not any(isinstance(one, TurnStarted) for one in said):
            continue
        client.send("response.cancel")
        (usage,) = told(client)
        text, sound = usage["output_token_details"].values()
        assert text >= sum(len(one.text) for one in said if isinstance(one, TextDelta))
        assert sound == generated_sound(said)
        assert usage["input_tokens"] > FORCED * 10 and usage["output_tokens"] >= given[-1]
        given.append(usage["output_tokens"])
    assert sorted(set(given)) == [0, 3, 3 + 25, 5 + 25, 5 + 50]


def generated_sound(said: Iterable[EngineEvent]) -> int:
    """How many speech tokens were made sound."""
    return sum(len(one.samples) // 960 for one in said if isinstance(one, SpeechAudio))


def play(client: Watched, said: Iterable[EngineEvent]) -> None:
    """Tell the client, who plays it at once."""
    for one in said:
        client.engine(one)
        if isinstance(one, SpeechAudio):
            client.take(client.call.playout_started(one.turn))


@pytest.mark.parametrize("cuts", list(product((False, True), repeat=3)))
def test_what_all_responses_gave_out_is_what_the_model_generated(cuts: tuple[bool, ...]) -> None:
    call, client = in_reply(*UNITS, LISTEN)
    sound, is_cut = 0, dict(zip((0, 1, 4), cuts, strict=True))
    for index in range(len(UNITS) + 1):
        call.call.push(second(FORCED + index))
        said = call.work_all()
        play(client, said)
        sound += generated_sound(said)
        if is_cut.get(index):
            usage, count = cancelled(call, client)
            assert usage == usage_object(count)
    usages = told(client)
    assert len(usages) == 2 + sum(cuts)
    assert sum(one["output_token_details"]["text_tokens"] for one in usages) == 9
    assert sum(one["output_token_details"]["audio_tokens"] for one in usages) == sound > 100


def test_a_function_that_is_still_being_written_counts_though_nothing_is_said_of_it() -> None:
    long = CALL.replace("Bonn", "B" * 200)
    call, client = in_reply(calling(call=long), settings=ABLE, context_tokens=2048)
    call.call.push(second(FORCED))
    said = call.work_all()
    client.engine(*said)
    assert not any(isinstance(one, TextDelta | ToolCalled) for one in said)
    usage, count = cancelled(call, client)
    assert usage == usage_object(count) and usage["output_tokens"] > 100


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_response_that_ends_at_its_limit_took_that_and_one_cut_short_before_less(
    is_cut: bool,
) -> None:
    settings = replace(SETTINGS, max_output_tokens=4)
    call, client = in_reply(says("abc"), says("d")[:2], settings=settings)
    for index in range(1 if is_cut else 2):
        call.call.push(second(FORCED + index))
    play(client, call.work_all())
    if is_cut:
        cancelled(call, client)
    done = client.last("response.done")["response"]
    assert done["status"] == ("cancelled" if is_cut else "incomplete")
    assert told(client)[0]["output_token_details"]["text_tokens"] == (3 if is_cut else 4)


def test_a_half_duplex_answer_is_cancelled_after_any_piece_of_it() -> None:
    given, jobs = [], 0
    while True:
        jobs += 1
        call, client = answering("Hello there, you", vocoder=Beeper()), Watched()
        call.call.control(Respond())
        for _ in range(jobs):
            call.work_once()
            heard(call, client)
        if not call.line.is_open:
            break
        usage, count = cancelled(call, client)
        assert usage == usage_object(count)
        given.append(usage["output_token_details"]["text_tokens"])
    assert sorted(set(given)) == [0, 10, 16] and given == sorted(given)


# ---- whole calls --------------------------------------------------------------------------------


class Counting(ScriptedConversation):
    """Notes what the turns of the engine took that it plays."""

    def __init__(self, *units: Iterable[int]) -> None:
        super().__init__(*units)  # type: ignore[misc]
        self.counts: list[Usage] = []

    def say(self, *events: EngineEvent) -> None:
        self.counts += ended(events)
        super().say(*events)


class CountedEcho(Counting, Echo):
    """The echo."""


class CountedModel(Counting, Model):
    """The tiny model; what it says is told whole."""

    async def _take(self, item: Item) -> None:
        await ScriptedConversation._take(self, item)
        if isinstance(item, Unit | SpeechStarted | SpeechEnded):
            self.call.call.push(item)
        else:
            self.call.call.control(item)
        self.say(*self.call.work_all())


def outputs(call: WholeCall) -> list[tuple[int, int]]:
    """Words and sound of each response that is done, in tokens."""
    done = [event["response"]["usage"] for event in call.events("response.done")]
    for usage in done:
        check(usage)
    return [tuple(usage["output_token_details"].values()) for usage in done]


async def until_it_answers(call: WholeCall, responses: int) -> None:
    for _ in range(300):
        await call.live(20)
        if len(call.events("output_audio_buffer.started")) == responses:
            break
    await call.live(200)


@pytest.mark.parametrize("how", ["client", "user"])
@pytest.mark.parametrize("kind", ["echo", "model"])
async def test_a_call_in_which_an_answer_is_cut_short(kind: str, how: str) -> None:
    units = [says("ab"), says("cd"), says("e", ends=True), *[LISTEN] * 9]
    engine = CountedEcho() if kind == "echo" else CountedModel(*units)
    settings = {} if kind == "echo" else model_settings(False)
    call = await begun(WholeCall(engine, **{**settings, "early_units": False}))
    if kind == "echo":
        await call.live(1000, speaks=True)
    before = len(call.events("response.done"))
    await until_it_answers(call, before + 1)
    if how == "client":
        await call.client("response.cancel")
    else:
        await call.hear(BargeInDue(call.front_end.position))
    assert call.events("response.done")[-1]["response"]["status"] == "cancelled"
    words, sound = outputs(call)[-1]
    assert len(outputs(call)) == before + 1 and words > 0 and sound > 0
    assert call.events("response.done")[-1]["response"]["usage"]["input_tokens"] > 0
    await call.live(4000)
    assert outputs(call) == [(one.text_out, one.audio_out) for one in engine.counts]
    assert len(engine.counts) >= 2
    await call.leave()


async def test_over_a_socket_a_response_that_a_sideband_cancels_has_cost_something() -> None:
    async with running_server() as server:
        caller = SocketCaller(server.url)
        await caller.dial()
        side = await attached(server, caller.location)
        await caller.wait_for("response.output_audio.delta")
        await side.send("response.cancel")
        for one in (caller, side):
            done: Any = (await one.wait_for("response.done"))["response"]
            assert done["status"] == "cancelled"
            check(done["usage"])
            assert min(done["usage"]["output_token_details"].values()) > 0
        await side.hang_up()
        await caller.hang_up()
