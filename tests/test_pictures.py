"""Packets of a camera into whole pictures, whatever the network does to their order."""

import random
from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np

from agent.clock import Clock
from agent.transport.pictures import (
    HOLE_WAIT_S,
    MAX_WAITING_PACKETS,
    NewestPicture,
    PictureOrder,
    WholePicture,
)


class StoppedClock(Clock):
    """Time passes only when the test says so."""

    now = 50.0

    def now_s(self) -> float:
        return self.now


@dataclass
class Packet:
    sequence_number: int
    timestamp: int
    marker: int
    _data: bytes = field(default=b"")


def camera(sizes: list[int], first: int = 0) -> list[Packet]:
    """Pictures of so many packets each; the data names picture and part."""
    packets: list[Packet] = []
    for picture, size in enumerate(sizes):
        for part in range(size):
            number = (first + len(packets)) % 65536
            text = f"{picture}.{part} ".encode()
            packets.append(Packet(number, picture * 45_000, int(part == size - 1), text))
    return packets


def whole(picture: int, size: int) -> bytes:
    return b"".join(f"{picture}.{part} ".encode() for part in range(size))


def pushed(order: PictureOrder, packets: list[Packet]) -> list[bytes]:
    given = [order.add(packet)[1] for packet in packets]
    return [picture.data for picture in given if isinstance(picture, WholePicture)]


def test_a_picture_is_given_at_its_last_packet_not_at_the_next_ones_first() -> None:
    order = PictureOrder(StoppedClock())
    packets = camera([3, 1])
    assert order.add(packets[0]) == (False, None)
    assert order.add(packets[1]) == (False, None)
    assert order.add(packets[2]) == (False, WholePicture(whole(0, 3), 0))
    assert order.add(packets[3]) == (False, WholePicture(whole(1, 1), 45_000))


def test_without_markers_the_next_picture_ends_the_one_before() -> None:
    packets = camera([2, 2, 1])
    for packet in packets:
        packet.marker = 0
    assert pushed(PictureOrder(StoppedClock()), packets) == [whole(0, 2), whole(1, 2)]


def test_any_order_within_a_picture_and_across_the_wrap_gives_the_same_pictures() -> None:
    sizes = [5, 3, 7, 1, 4]
    for seed in range(20):
        packets = camera(sizes, first=65530)
        head, rest = packets[:1], packets[1:]
        shuffled = sorted(
            range(len(rest)),
            key=lambda at, seed=seed: at + random.Random(seed * 99 + at).random() * 4,
        )
        tail = camera([1] * 8, first=(65530 + len(packets)) % 65536)
        order = PictureOrder(StoppedClock())
        got = pushed(order, head + [rest[at] for at in shuffled] + tail)
        assert got[: len(sizes)] == [whole(at, size) for at, size in enumerate(sizes)], seed
        assert order.given_up == 0


def test_a_packet_sent_again_fills_the_hole() -> None:
    order, packets = PictureOrder(StoppedClock()), camera([3, 2])
    late = packets.pop(1)
    assert pushed(order, packets) == []
    assert pushed(order, [late]) == [whole(0, 3)]


def test_copies_and_packets_of_the_past_are_ignored() -> None:
    order, packets = PictureOrder(StoppedClock()), camera([2, 2])
    doubled = [packet for packet in packets for _ in range(2)]
    assert pushed(order, doubled) == [whole(0, 2), whole(1, 2)]
    assert pushed(order, packets) == []


def test_a_hole_is_given_up_in_time_and_a_fresh_start_is_asked_for() -> None:
    clock = StoppedClock()
    order, packets = PictureOrder(clock), camera([3, 2, 2, 2])
    del packets[1]
    assert pushed(order, packets[:3]) == []
    clock.now += HOLE_WAIT_S + 0.01
    assert order.add(packets[3]) == (True, None)
    assert pushed(order, packets[4:]) == [whole(2, 2), whole(3, 2)]
    assert order.given_up == 1


def test_nothing_waits_without_bound() -> None:
    order = PictureOrder(StoppedClock())
    asked = [order.add(packet)[0] for packet in camera([3 * MAX_WAITING_PACKETS])]
    assert any(asked)
    order = PictureOrder(StoppedClock())
    endless = camera([1] * (3 * MAX_WAITING_PACKETS))
    order.add(endless[0])
    del endless[:2]
    asked = [order.add(packet)[0] for packet in endless]
    assert any(asked) and len(order._waiting) <= MAX_WAITING_PACKETS


def frame(level: int) -> av.VideoFrame:
    made = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), format="rgb24")
    made.pts, made.time_base = 0, Fraction(1, 90_000)
    return made


def test_the_newest_picture_is_stamped_with_when_it_came() -> None:
    clock = StoppedClock()
    newest = NewestPicture(clock)
    newest.put(frame(10))
    newest.put(frame(200))
    clock.now += 0.25
    taken = newest.take(now_at=16_000)
    assert taken is not None and taken.captured_at == 12_000
    assert taken.rgb.shape == (48, 64, 3) and abs(int(taken.rgb[0, 0, 0]) - 200) <= 2
    assert newest.take(now_at=17_000) is None


def test_a_picture_from_before_the_microphone_is_stamped_at_its_beginning() -> None:
    clock = StoppedClock()
    newest = NewestPicture(clock)
    newest.put(frame(10))
    clock.now += 3
    taken = newest.take(now_at=160)
    assert taken is not None and taken.captured_at == 0
