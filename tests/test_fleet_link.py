"""The link between processes: what crosses comes out the same, and nothing waits unbounded."""

import socket
import threading
from collections.abc import Callable, Iterator
from typing import cast

import numpy as np
import pytest

from agent.commands import Retract
from agent.errors import (
    AgentError,
    CapacityError,
    CheckpointError,
    ContextOverflow,
    EngineError,
    RequestError,
    UnsupportedError,
)
from agent.fleet.channel import Channel, ChannelClosed
from agent.fleet.link import Link, LinkClosed, QueueLink, SocketLink
from agent.fleet.messages import Answered, Control, Finish, Message, Push, Said
from agent.types import Failed, SpeechAudio, Unit, VideoFrame

Ends = tuple[Link, Link]


@pytest.fixture(params=["socket", "queue"])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    if request.param == "queue":
        one, other = cast(Ends, QueueLink.pair())
    else:
        here, there = socket.socketpair()
        one, other = SocketLink(here), SocketLink(there)
    yield one, other
    one.close()
    other.close()


def across(ends: Ends, message: Message) -> Message:
    """`message` as the other side gets it."""
    sending = threading.Thread(target=lambda: ends[0].send(ends[0].pack(message)))
    sending.start()
    received = ends[1].receive()
    sending.join()
    return received


def picture(seed: int) -> VideoFrame:
    rgb = np.random.default_rng(seed).integers(0, 256, (1080, 1920, 3), np.uint8)
    return VideoFrame(rgb, seed)


def test_a_unit_with_pictures_comes_out_the_same(ends: Ends) -> None:
    audio = np.random.default_rng(0).normal(size=16000).astype(np.float32)
    sent = Unit(3, audio, 15000, (picture(1), picture(2)), True, 640)
    received = across(ends, Push(7, sent))
    assert isinstance(received, Push) and received.number == 7
    unit = received.item
    assert isinstance(unit, Unit)
    assert (unit.index, unit.samples_valid, unit.pictures[1].captured_at) == (3, 15000, 2)
    assert unit.speculative and unit.start == 3 * 16_000 - 640
    assert across(ends, Control(1, 7, Retract(3))) == Control(1, 7, Retract(3))
    np.testing.assert_array_equal(unit.audio, audio)
    for one, other in zip(unit.pictures, sent.pictures, strict=True):
        np.testing.assert_array_equal(one.rgb, other.rgb)


def test_arrays_that_are_views_empty_or_many_cross_too(ends: Ends) -> None:
    whole = np.arange(4000, dtype=np.float32)
    pieces = [whole[at : at + 3] for at in range(0, 3000)]
    pieces += [whole[::7], whole[:0], whole[::-1]]
    events = tuple((1, SpeechAudio(1, 0, at, piece)) for at, piece in enumerate(pieces))
    received = across(ends, Said(events))
    assert isinstance(received, Said)
    for (_, event), piece in zip(received.events, pieces, strict=True):
        assert isinstance(event, SpeechAudio)
        np.testing.assert_array_equal(event.samples, piece)


def test_pictures_stay_out_of_what_the_event_loop_copies() -> None:
    here, there = socket.socketpair()
    link = SocketLink(here)
    sent = picture(1)
    parcel = link.pack(Push(1, Unit(0, np.zeros(16000, np.float32), 16000, (sent,))))
    assert parcel.size_bytes > sent.rgb.nbytes
    assert any(
        np.shares_memory(np.frombuffer(piece, np.uint8), sent.rgb) for piece in parcel.content
    )
    link.close()
    there.close()


def test_a_picture_whose_rows_lie_apart_stays_out_of_the_pickle_too() -> None:
    here, there = socket.socketpair()
    link, other = SocketLink(here), SocketLink(there)
    rgb = np.random.default_rng(0).integers(0, 256, (100, 110, 3), np.uint8)[:, :99]
    parcel = link.pack(Push(1, Unit(0, np.zeros(16000, np.float32), 16000, (VideoFrame(rgb, 0),))))
    assert sorted(len(piece) for piece in parcel.content)[-2:] == [rgb.nbytes, 64_000]
    link.send(parcel)
    received = other.receive()
    assert isinstance(received, Push) and isinstance(received.item, Unit)
    np.testing.assert_array_equal(received.item.pictures[0].rgb, rgb)
    link.close()
    other.close()


@pytest.mark.parametrize(
    "error",
    [
        RequestError("no", param="a.b", code="c"),
        UnsupportedError("cannot", param="x"),
        CapacityError("full", retry_after_s=3.5),
        CheckpointError("missing: model.safetensors"),
        ContextOverflow("too long"),
        EngineError(),
    ],
)
def test_errors_come_out_as_what_they_were(ends: Ends, error: AgentError) -> None:
    received = across(ends, Answered(4, error))
    assert isinstance(received, Answered) and received.error is not None
    assert type(received.error) is type(error)
    assert str(received.error) == str(error)
    assert vars(received.error) == vars(error)


def test_what_only_the_engine_knows_becomes_an_engine_error() -> None:
    class LibraryError(Exception):
        """Its module is not there on the other side."""

    class OwnError(UnsupportedError):
        """Nor is that."""

    here, there = socket.socketpair()
    ends = (SocketLink(here), SocketLink(there))
    received = across(ends, Said(((1, Failed(LibraryError("path /secret"))),)))
    assert isinstance(received, Said)
    failed = received.events[0][1]
    assert isinstance(failed, Failed) and type(failed.error) is EngineError
    assert "secret" not in str(failed.error)
    answered = across(ends, Answered(1, OwnError("no", param="p")))
    assert isinstance(answered, Answered)
    assert type(answered.error) is UnsupportedError and answered.error.param == "p"
    for end in ends:
        end.close()


def test_closing_ends_both_sides(ends: Ends) -> None:
    last = Finish(9)
    ends[0].send(ends[0].pack(last))
    ends[0].close()
    assert ends[1].receive() == last, "what was sent before still comes"
    with pytest.raises(LinkClosed):
        ends[1].receive()
    with pytest.raises(LinkClosed):
        ends[1].send(ends[1].pack(last))
    with pytest.raises(LinkClosed):
        ends[0].receive()


@pytest.mark.parametrize("waiting_to", ["receive", "send"])
def test_closing_frees_a_thread_that_waits(ends: Ends, waiting_to: str) -> None:
    wait = ends[0].receive if waiting_to == "receive" else lambda: _fill(ends[0])
    ended = threading.Event()
    waiting = threading.Thread(target=_until_closed, args=(wait, ended))
    waiting.start()
    assert not ended.is_set()
    ends[0].close()
    assert ended.wait(10)
    waiting.join()


def _fill(link: Link) -> None:
    while True:
        link.send(link.pack(Finish(1)))


def _until_closed(wait: Callable[[], object], ended: threading.Event) -> None:
    try:
        wait()
    except LinkClosed:
        ended.set()


# ---- the channel ------------------------------------------------------------------------------


def test_a_full_channel_refuses_or_lets_wait() -> None:
    channel: Channel[int] = Channel(2, max_bytes=100)
    assert channel.offer(1, 60)
    assert not channel.offer(2, 60), "too many bytes"
    assert channel.offer(2, 40)
    assert not channel.offer(3), "too many"
    assert channel.offer(3, 1000, must=True)
    putting = threading.Thread(target=lambda: channel.put(4))
    putting.start()
    assert [channel.get() for _ in range(4)] == [1, 2, 3, 4]
    putting.join()
    assert channel.offer(5, 1000), "alone, anything fits"


def test_a_closed_channel_gives_what_it_holds_and_takes_nothing() -> None:
    channel: Channel[int] = Channel(2)
    channel.put(1)
    channel.close()
    assert channel.closed
    with pytest.raises(ChannelClosed):
        channel.offer(2)
    assert channel.drain(60) == [1]
    with pytest.raises(ChannelClosed):
        channel.drain(60)
    with pytest.raises(ChannelClosed):
        channel.get()


def test_draining_waits_only_as_long_as_it_may() -> None:
    channel: Channel[int] = Channel(2)
    assert channel.drain() == [] and channel.drain(0.001) == []
    threading.Timer(0, channel.put, (1,)).start()
    assert channel.drain(60) == [1]
