"""From the queue to the ear: what waits, what wakes, and how much of it was heard."""

import asyncio

import numpy as np
import pytest

from agent.loudspeaker import Loudspeaker, Silenced
from agent.media.playout import Playout
from agent.types import FloatArray, LinkQuality, SpeechAudio
from tests.rig.call_parts import MS, PULL_MS, DrivenClock, ScriptedPeer, settle, voice

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


class Speaking:
    """A loudspeaker that a peer pulls."""

    def __init__(self, max_queued_ms: int = 30_000) -> None:
        self.clock, self.peer = DrivenClock(), ScriptedPeer()
        self.playout = Playout(max_queued_ms)
        self.loudspeaker = Loudspeaker(self.playout, self.peer, self.clock)
        self.peer.play(self.loudspeaker)

    def pull(self, ms: int) -> FloatArray:
        frames = []
        for _ in range(ms // PULL_MS):
            frames.append(self.peer.pull())
            self.clock.advance(PULL_MS / 1000)
        return np.concatenate(frames)

    def report(self, position_ms: float, late_ms: float = 0.0) -> None:
        """By a clock that is 77 s ahead of the server's; `late_ms` ago."""
        at_ms = (self.clock.now_s() + 77) * 1000 - late_ms
        self.loudspeaker.reported(round(position_ms * 48), at_ms)


def audio(turn: int, samples: FloatArray, start: int = 0, *, last: bool = False) -> SpeechAudio:
    return SpeechAudio(turn, 0, start, samples, last)


# ---- what waits and what wakes ----------------------------------------------------------------


async def test_sound_that_finds_no_room_waits_for_pulls_and_none_of_it_is_lost() -> None:
    line = Speaking(max_queued_ms=100)
    sound = voice(260)
    pieces = [sound[begin : begin + 60 * MS] for begin in range(0, len(sound), 60 * MS)]

    async def speak() -> None:
        for number, piece in enumerate(pieces):
            await line.loudspeaker.play(audio(1, piece, number * 60 * MS))

    speaking = asyncio.ensure_future(speak())
    heard = []
    for _ in range(13):
        await settle()
        assert line.playout.queued_ms <= 100
        heard.append(line.pull(20))
    assert speaking.done()
    assert line.playout.dropped_ms == 0
    assert np.array_equal(np.concatenate(heard), sound)


async def test_a_chunk_larger_than_the_queue_waits_for_it_to_be_empty_and_loses_its_end() -> None:
    line = Speaking(max_queued_ms=100)
    await line.loudspeaker.play(audio(1, voice(40)))
    large = asyncio.ensure_future(line.loudspeaker.play(audio(1, voice(300, 1), 40 * MS)))
    await settle()
    line.pull(20)
    await settle()
    assert not large.done()
    line.pull(20)
    await settle()
    assert large.done()
    assert (line.playout.queued_ms, line.playout.dropped_ms) == (100, 200)


async def test_sound_that_waited_while_its_turn_was_silenced_is_not_played() -> None:
    line = Speaking(max_queued_ms=100)
    await line.loudspeaker.play(audio(1, voice(100)))
    waiting = asyncio.ensure_future(line.loudspeaker.play(audio(1, voice(100, 1), 100 * MS)))
    line.pull(20)
    await settle()
    assert not waiting.done()
    assert line.loudspeaker.silence() == [Silenced(1, 20)]
    line.pull(20)  # the fade-out
    await settle()
    assert waiting.done()
    assert not line.pull(200).any()


async def test_only_pulls_with_news_wake_those_who_follow() -> None:
    line = Speaking()
    line.pull(20)
    assert not line.loudspeaker.pulled.is_set()
    await line.loudspeaker.play(audio(1, voice(60), last=True))
    assert not line.loudspeaker.pulled.is_set()
    line.pull(20)
    assert line.loudspeaker.pulled.is_set()
    line.playout.take_events()
    line.loudspeaker.pulled.clear()
    line.pull(20)
    assert not line.loudspeaker.pulled.is_set()
    line.pull(20)
    assert line.loudspeaker.pulled.is_set()


# ---- what was heard ---------------------------------------------------------------------------


async def test_without_reports_the_way_decides_what_was_heard() -> None:
    line = Speaking()
    await line.loudspeaker.play(audio(1, voice(3000)))
    line.pull(1000)
    assert line.loudspeaker.heard_ms(1) == pytest.approx(940, abs=20)
    line.peer.quality = LinkQuality(rtt_ms=400, jitter_ms=100)
    assert line.loudspeaker.heard_ms(1) == pytest.approx(600, abs=20)
    assert line.loudspeaker.heard_ms(2) == 0


async def test_reports_by_a_foreign_clock_say_what_was_heard() -> None:
    line = Speaking()
    await line.loudspeaker.play(audio(1, voice(9000)))
    for _ in range(10):
        line.pull(100)
        line.report(line.peer.pulled_ms - 250)
    assert line.loudspeaker.heard_ms(1) == pytest.approx(750 - 20, abs=1)
    line.pull(100)
    line.report(line.peer.pulled_ms - 250 - 60, late_ms=60)
    assert line.loudspeaker.heard_ms(1) == pytest.approx(850 - 20, abs=1)


async def test_reports_are_as_old_as_half_a_round_trip() -> None:
    line = Speaking()
    line.peer.quality = LinkQuality(rtt_ms=200)
    await line.loudspeaker.play(audio(1, voice(9000)))
    for _ in range(10):
        line.pull(100)
        line.report(max(0, line.peer.pulled_ms - 250 - 100), late_ms=100)
    assert line.loudspeaker.heard_ms(1) == pytest.approx(750 - 20, abs=1)


async def test_a_report_before_anything_was_sent_says_nothing() -> None:
    line = Speaking()
    line.loudspeaker.reported(0, 0.0)
    await line.loudspeaker.play(audio(1, voice(3000)))
    line.pull(1000)
    assert line.loudspeaker.heard_ms(1) == pytest.approx(940, abs=20)


async def test_what_will_be_heard_is_what_was_sent_and_what_waits() -> None:
    line = Speaking()
    await line.loudspeaker.play(audio(1, voice(700), last=True))
    await line.loudspeaker.play(audio(2, voice(300, 1), last=True))
    assert line.loudspeaker.to_be_heard_ms(1) == 700
    line.pull(200)
    assert line.loudspeaker.to_be_heard_ms(1) == 700
    assert line.loudspeaker.to_be_heard_ms(2) == 300
    line.pull(2000)
    assert [line.loudspeaker.to_be_heard_ms(turn) for turn in (1, 2)] == [700, 300]


# ---- silence ----------------------------------------------------------------------------------


async def test_silencing_counts_what_is_on_its_way_and_names_the_turns_behind_as_unheard() -> None:
    line = Speaking()
    sounds = {turn: voice(1000, turn) for turn in (1, 2, 3)}
    for turn, sound in sounds.items():
        await line.loudspeaker.play(audio(turn, sound, last=True))
    line.pull(400)
    silenced = line.loudspeaker.silence()
    assert silenced == [Silenced(1, 400), Silenced(2, 0), Silenced(3, 0)]
    rest = line.pull(100)
    assert np.all(np.abs(rest[: 10 * MS]) <= sounds[1][400 * MS : 410 * MS])
    assert not rest[10 * MS :].any()
    assert line.loudspeaker.silence() == []


async def test_silencing_a_held_turn_counts_up_to_where_it_is_held() -> None:
    line = Speaking()
    await line.loudspeaker.play(audio(1, voice(1000)))
    line.pull(300)
    line.playout.duck()
    line.pull(500)
    assert line.loudspeaker.silence() == [Silenced(1, 300)]
    assert not line.pull(100).any()


async def test_when_the_way_is_broken_only_what_came_through_is_claimed() -> None:
    line = Speaking()
    await line.loudspeaker.play(audio(1, voice(9000)))
    for _ in range(10):
        line.pull(100)
        line.report(line.peer.pulled_ms - 100)
    for _ in range(8):
        line.pull(100)
        line.report(920)
    assert line.loudspeaker.heard_ms(1) == pytest.approx(920, abs=1)
    assert line.loudspeaker.silence() == [Silenced(1, 920)]


async def test_nothing_queued_is_nothing_to_silence() -> None:
    line = Speaking()
    assert line.loudspeaker.silence() == []
    await line.loudspeaker.play(audio(1, voice(40), last=True))
    line.pull(60)
    assert line.loudspeaker.silence() == []
