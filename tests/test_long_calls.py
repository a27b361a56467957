"""Calls that last for hours: what is forgotten goes in place and between turns, and neither memory
nor the work of a unit grows."""

import gc
import itertools
import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from agent.duplex import conversation
from agent.duplex.conversation import Conversation
from agent.duplex.conversation_settings import ConversationSettings
from agent.duplex.kv_cache import KvCache, KvStream, turned
from agent.duplex.lanes import Runner
from agent.duplex.moving import Move
from agent.duplex.policy import Order
from agent.duplex.sampling import TextSampling
from agent.duplex.window import WindowSettings
from agent.duplex.work import Read, Together, Voice, Work
from agent.types import EngineEvent, SpeechAudio, TurnEnded, Unit, UnitReport
from tests.rig.scripted_call import Beeper, Driven, begun
from tests.rig.tiny_mind import (
    LISTEN,
    Script,
    cached,
    converse,
    free_settings,
    runner,
    says,
    second,
)

WINDOW = WindowSettings(mode="basic", high_tokens=120, low_tokens=70)
OFF = WindowSettings(mode="off")


def worked(used: Runner, talk: Conversation, unit: Unit, order: Order = "free") -> list[Work]:
    """Do a unit → its work."""
    works = []
    for work in talk.steps(unit, order):
        work.run(used.model, used.slots)
        works.append(work)
    return works


def settings(window: WindowSettings, **changes: object) -> ConversationSettings:
    return free_settings(window=window, speaks=False, **changes)


# ---- in place -----------------------------------------------------------------------------------


def move_apart(cache: KvCache, stream: KvStream, start: int, to: int, frequencies: object) -> None:
    """What a move is, all at once."""
    assert isinstance(frequencies, torch.Tensor)
    block = cache.tensor[:, :, stream.slot, :, start : stream.length].clone()
    block[:, 0] = turned(block[:, 0], frequencies * (to - start))
    cache.tensor[:, :, stream.slot, :, to : to + block.shape[3]] = block
    stream.length = to + block.shape[3]


@pytest.mark.parametrize(("length", "start", "to"), [(300, 40, 3), (300, 3, 40), (257, 130, 129)])
def test_a_move_in_pieces_is_a_move_in_one_go(length: int, start: int, to: int) -> None:
    frequencies = torch.linspace(1, 0.01, 8)
    ours, theirs = (KvCache(torch.randn(2, 2, 2, 2, 400, 16)) for _ in range(2))
    theirs.tensor.copy_(ours.tensor)
    mine, other = KvStream(1, length), KvStream(1, length)
    ours.move(mine, start, to, frequencies)
    move_apart(theirs, other, start, to, frequencies)
    assert mine.length == other.length
    assert torch.equal(
        ours.tensor[:, :, 1, :, : mine.length], theirs.tensor[:, :, 1, :, : mine.length]
    )
    assert torch.equal(ours.tensor[:, :, 0], theirs.tensor[:, :, 0])


def test_a_move_takes_no_more_memory_for_more_to_move(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = []
    clone = torch.Tensor.clone
    monkeypatch.setattr(
        torch.Tensor, "clone", lambda one: largest.append(one.numel()) or clone(one)
    )
    cache, most = KvCache(torch.zeros(2, 2, 1, 2, 4000, 16)), []
    for length in (500, 4000):
        cache.move(KvStream(0, length), 20, 5, torch.ones(8))
        most.append(max(largest))
        largest.clear()
    assert most[0] == most[1]


def test_what_is_said_after_a_rollover_is_what_the_same_moves_by_hand_lead_to() -> None:
    greedy = TextSampling(greedy=True)
    used, other = runner(), runner()
    talk = converse(used, settings=settings(WINDOW, text=greedy))
    apart = converse(other, settings=settings(OFF, text=greedy))
    rolled = 0
    orders: list[Order] = [*["listen"] * 12, "speak", *["listen"] * 6, "speak"]  # type: ignore[list-item]
    for index, order in enumerate(orders):
        unit = second(index)
        cuts = [one for one in worked(used, talk, unit, order) if isinstance(one, Move)]
        assert apart.step(unit, order).outcome == talk._context.memory.records[-1].outcome
        for cut in cuts:
            apart.flush()
            memory = apart._context.memory
            memory.window.settings = WINDOW
            assert memory.window.cut() is not None
            memory.window.settings = OFF
            move_apart(other.slots.llm, memory.llm, cut.start, cut.to, cut.frequencies)
            memory.records = memory.records[-len(memory.window.units) :]
            rolled += 1
        assert torch.equal(cached(used, talk), cached(other, apart))
    assert rolled >= 2
    assert not talk._context.memory.records[-1].outcome.listened


# ---- between turns ------------------------------------------------------------------------------


def test_nothing_is_forgotten_within_a_turn_and_at_its_end_all_that_was_put_off() -> None:
    used = runner()
    units = [*[LISTEN] * 5, *[says("abc")] * 6, says("d", ends=True), LISTEN]
    talk = converse(used, Script(*units), settings(WINDOW))
    when, sizes = [], []
    for index in range(len(units)):
        was_speaking = talk.speaking
        moves = [one for one in worked(used, talk, second(index)) if isinstance(one, Move)]
        when += [index] * len(moves)
        assert not moves or not (was_speaking and talk.speaking)
        sizes.append(talk.context_tokens)
    assert when == [11]
    assert sizes[10] > WINDOW.high_tokens + 40 and sizes[11] <= WINDOW.low_tokens


def test_a_turn_that_leaves_no_room_for_its_next_second_is_the_exception_and_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    used = runner(context_tokens=160)
    units = [LISTEN, *[says("abc")] * 12]
    talk = converse(used, Script(*units), settings(WINDOW))
    with caplog.at_level(logging.WARNING):
        moved = [
            index
            for index in range(len(units))
            for one in worked(used, talk, second(index))
            if isinstance(one, Move)
        ]
    assert talk.speaking and len(moved) == len(caplog.records)
    # Once it has to be, there is room for some seconds.
    assert 1 <= len(moved) <= 4 and all(after - before > 1 for before, after in pairs(moved))
    assert "within a turn" in caplog.text


def pairs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    return itertools.pairwise(numbers)


# ---- while the end of a turn is spoken ----------------------------------------------------------

TALK = (
    *[LISTEN] * 3,
    says("ab"),
    says("cd", ends=True),
    LISTEN,
    says("ef"),
    says("gh"),
    says("i", ends=True),
    *[LISTEN] * 2,
    says("jk", ends=True),
    LISTEN,
)
"""Three turns, at whose ends there is more than CROWDED allows."""
CROWDED = WindowSettings(high_tokens=100, low_tokens=70)
REMEMBERING = WindowSettings(mode="context", max_units=6)


def driven(window: WindowSettings, vocoder: Beeper | None = None) -> Driven:
    return begun(*TALK, window=window, vocoder=vocoder)


def next_unit(call: Driven) -> tuple[list[Work], list[EngineEvent]]:
    """Do it → its work, and all that was said, with nothing in it that depends on the time."""
    works = list[Work]()
    call.call.push(second(call.heard))
    call.heard += 1
    while (job := call.call.next_job()) is not None:
        while (work := job.next()) is not None:
            call.parts.runner.do(work)
            works.append(work)
            for part in work.parts if isinstance(work, Together) else [work]:
                job.did(part, 0.0)
    return works, [untimed(event) for event in call.line.take()]


def untimed(event: EngineEvent) -> EngineEvent:
    if isinstance(event, SpeechAudio):
        samples: object = event.samples.tobytes()
        return replace(event, samples=samples, hold_ms=0)  # type: ignore[arg-type]
    if isinstance(event, UnitReport):
        return replace(event, stage_ms=tuple(sorted(event.stage_ms)))
    return event


def in_turn(*several: Iterator[Work]) -> Iterator[Work]:
    """What `alongside` does, one after the other."""
    return itertools.chain.from_iterable(several)


def test_the_rest_of_a_turn_is_made_sound_while_its_last_words_are_read_to_forget() -> None:
    call, ends = driven(CROWDED, Beeper()), 0
    for _ in TALK:
        works, events = next_unit(call)
        if not any(isinstance(work, Move) for work in works):
            continue
        ends += 1
        assert any(isinstance(event, TurnEnded) for event in events)
        together, move = works[-2:]
        assert isinstance(together, Together) and isinstance(move, Move)
        reading, voice = together.parts
        assert isinstance(reading, Read) and isinstance(voice, Voice) and voice.last
        assert not any(isinstance(work, Voice) for work in works)
    assert ends == 3


@pytest.mark.parametrize("vocoder", [Beeper(), None])
@pytest.mark.parametrize("window", [CROWDED, REMEMBERING])
def test_what_is_told_of_a_turn_is_the_same_as_if_all_was_forgotten_first(
    monkeypatch: pytest.MonkeyPatch, window: WindowSettings, vocoder: Beeper | None
) -> None:
    call = driven(window, vocoder)
    told_beside = [next_unit(call)[1] for _ in TALK]
    monkeypatch.setattr(conversation, "alongside", in_turn)
    other = driven(window, vocoder)
    assert told_beside == [next_unit(other)[1] for _ in TALK]
    assert call.context_tokens == other.context_tokens


def test_a_unit_is_reported_with_what_is_left_after_its_forgetting() -> None:
    call, left = driven(CROWDED, Beeper()), []
    for _ in TALK:
        works, events = next_unit(call)
        (report,) = (event for event in events if isinstance(event, UnitReport))
        assert report.context_tokens == call.context_tokens
        left += [report.context_tokens] * any(isinstance(work, Move) for work in works)
    assert len(left) == 3 and max(left) <= CROWDED.low_tokens


# ---- for hours ----------------------------------------------------------------------------------


def tensor_bytes() -> int:
    """Of all tensors that live, each memory once."""
    gc.collect()
    stores = {
        one.untyped_storage().data_ptr(): one.untyped_storage().nbytes()
        for one in gc.get_objects()
        if type(one) is torch.Tensor
    }
    return sum(stores.values())


def test_six_hundred_seconds_take_as_much_memory_and_work_as_sixty() -> None:
    used = runner(context_tokens=256)
    units = [*[LISTEN] * 4, says("ab"), says("c", ends=True)] * 100
    talk = converse(used, Script(*units), settings(WINDOW))
    taken, reads, lengths = [], [], []
    for index, _ in enumerate(units):
        unit = replace(second(index % 60), index=index)
        works = worked(used, talk, unit)
        reads.append(sum(one.count for one in works if isinstance(one, Read)))
        lengths.append(talk.context_tokens)
        if index in {99, 349, 599}:
            taken.append(tensor_bytes())
    assert max(taken[1:]) <= taken[0] * 1.001
    assert max(lengths[100:]) <= max(lengths[:100]) <= WINDOW.high_tokens + 60
    assert max(reads[100:]) <= max(reads[:100])
    memory = talk._context.memory
    assert len(memory.window.units) < 12 and len(memory.records) < 12
