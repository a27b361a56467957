"""Packets of a camera into whole pictures, whatever the network does to their order."""

import random
from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np

from agent.clock import Clock
from agent.transport.pictures import (
    ASK_EVERY_S,
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


VP8_KEY = b"\x10\x02\x00\x9d\x01\x2a"
VP8_LATER = b"\x11\x02\x00"


def part(picture: int, at: int, keys: tuple[int, ...] = (0,)) -> bytes:
    """Names picture and part, and says which pictures stand alone."""
    kind = b"" if at else VP8_KEY if picture in keys else VP8_LATER
    return kind + f"{picture}.{at} ".encode()


def camera(sizes: list[int], first: int = 0, keys: tuple[int, ...] = (0,)) -> list[Packet]:
    """Pictures of so many packets each."""
    packets: list[Packet] = []
    for picture, size in enumerate(sizes):
        for at in range(size):
            number = (first + len(packets)) % 65536
            data = part(picture, at, keys)
            packets.append(Packet(number, picture * 45_000, int(at == size - 1), data))
    return packets


def whole(picture: int, size: int, keys: tuple[int, ...] = (0,)) -> bytes:
    return b"".join(part(picture, at, keys) for at in range(size))


def pushed(order: PictureOrder, packets: list[Packet]) -> list[bytes]:
    return [picture.data for packet in packets for picture in order.add(packet)[1]]


def test_a_picture_is_given_at_its_last_packet_not_at_the_next_ones_first() -> None:
    order = PictureOrder(StoppedClock())
    packets = camera([3, 1])
    assert order.add(packets[0]) == (False, [])
    assert order.add(packets[1]) == (False, [])
    assert order.add(packets[2]) == (False, [WholePicture(whole(0, 3), 0)])
    assert order.add(packets[3]) == (False, [WholePicture(whole(1, 1), 45_000)])


def test_without_markers_the_next_picture_ends_the_one_before() -> None:
    packets = camera([2, 2, 1])
    for packet in packets:
        packet.marker = 0
    assert pushed(PictureOrder(StoppedClock()), packets) == [whole(0, 2), whole(1, 2)]


def test_any_order_within_a_picture_and_across_the_wrap_gives_the_same_pictures() -> None:
    sizes = [5, 3, 7, 1, 4]
    for seed in range(20):
        packets = camera(sizes, first=65530)
        shuffled = sorted(
            range(len(packets)),
            key=lambda at, seed=seed: at + random.Random(seed * 99 + at).random() * 4,
        )
        order = PictureOrder(StoppedClock())
        got = pushed(order, [packets[at] for at in shuffled])
        assert got == [whole(at, size) for at, size in enumerate(sizes)], seed
        assert order.given_up == 0


def test_a_packet_sent_again_fills_the_hole_and_releases_all_behind_it() -> None:
    order, packets = PictureOrder(StoppedClock()), camera([1, 2, 1, 2])
    late, last = packets.pop(1), packets.pop()
    assert pushed(order, packets) == [whole(0, 1)]
    assert pushed(order, [late]) == [whole(1, 2), whole(2, 1)]
    assert pushed(order, [last]) == [whole(3, 2)]


def test_copies_and_packets_of_the_past_are_ignored() -> None:
    order, packets = PictureOrder(StoppedClock()), camera([2, 2])
    doubled = [packet for packet in packets for _ in range(2)]
    assert pushed(order, doubled) == [whole(0, 2), whole(1, 2)]
    assert pushed(order, packets) == []


def test_padding_is_no_picture_wherever_it_comes() -> None:
    packets = camera([2, 2, 2])
    packets.insert(2, Packet(0, 0, 0))  # of the picture that has ended
    packets.insert(4, Packet(0, 45_000, 0))  # inside the next
    packets.insert(6, Packet(0, 45_000, 1))
    for number, packet in enumerate(packets):
        packet.sequence_number = number
    for padding in (2, 6):
        shuffled = [*packets[:padding], *packets[padding + 1 :], packets[padding]]
        for order_of_arrival in (packets, shuffled):
            got = pushed(PictureOrder(StoppedClock()), order_of_arrival)
            assert got == [whole(0, 2), whole(1, 2), whole(2, 2)]


def given_up_at(clock: StoppedClock, packets: list[Packet]) -> PictureOrder:
    """The last of `packets` comes when the hole before it has lasted too long."""
    order = PictureOrder(clock)
    for packet in packets[:-1]:
        order.add(packet)
    clock.now += HOLE_WAIT_S + 0.01
    assert order.add(packets[-1]) == (True, [])
    assert order.given_up == 1
    return order


def test_after_a_hole_only_a_key_picture_from_its_beginning_is_given() -> None:
    clock, keys = StoppedClock(), (0, 4)
    packets = camera([1, 3, 2, 2, 3, 1], keys=keys)
    del packets[2]
    order = given_up_at(clock, packets[:4])
    got = pushed(order, packets[4:])
    assert got == [whole(4, 3, keys), whole(5, 1, keys)]


def test_a_key_picture_is_asked_for_again_until_it_comes() -> None:
    clock = StoppedClock()
    packets = camera([1, 3, *[1] * 40], keys=(0, 31))
    del packets[2]
    order = given_up_at(clock, packets[:4])
    asked_at = []
    for at, packet in enumerate(packets[4:]):
        clock.now += 0.0625
        if order.add(packet)[0]:
            asked_at.append(at)
    assert asked_at == [4, 9, 14, 19, 24]  # every 0.3 s, and no more once it is there


def test_a_whole_key_picture_behind_a_hole_ends_the_wait() -> None:
    keys = (0, 2)
    packets = camera([1, 2, 3, 1], keys=keys)
    late = packets.pop(1)
    order = PictureOrder(StoppedClock())
    assert pushed(order, packets) == [
        whole(at, size, keys) for at, size in ((0, 1), (2, 3), (3, 1))
    ]
    assert order.add(late) == (False, [])
    assert order.given_up == 0


def test_a_key_picture_that_has_begun_before_the_hole_is_given_up_is_kept() -> None:
    clock, keys = StoppedClock(), (0, 2)
    packets = camera([1, 2, 3, 1], keys=keys)
    del packets[1]
    order = given_up_at(clock, packets[:4])
    assert pushed(order, packets[4:]) == [whole(2, 3, keys), whole(3, 1, keys)]


def test_a_key_picture_without_its_first_packet_is_not_begun_with() -> None:
    clock, keys = StoppedClock(), (1,)
    order = PictureOrder(clock)
    packets = camera([2, 3, 2], keys=keys)
    assert pushed(order, packets[:2] + packets[3:]) == []
    clock.now += ASK_EVERY_S + 0.01
    assert order.add(packets[-1]) == (True, [])
    assert pushed(order, [packets[2]]) == [whole(1, 3, keys), whole(2, 2, keys)]


def h264(kinds: list[int]) -> list[Packet]:
    """One picture of one packet for each; 0 stands for a further piece of the same slice."""
    data = [b"\0\0\0\1" + bytes([0x60 | kind]) + b"x" if kind else b"yy" for kind in kinds]
    last = len(kinds) - 1
    return [Packet(at, 9_000, int(at == last), each) for at, each in enumerate(data)]


def test_h264_begins_with_its_parameters_or_after_the_end_of_another_picture() -> None:
    for kinds, begins in (
        ([7, 8, 5, 0], True),
        ([9, 7, 8, 5], True),
        ([1, 0], False),
        ([5, 0], False),  # its parameters may have been lost, or half of it
    ):
        packets = h264(kinds)
        joined = b"".join(packet._data for packet in packets)
        expected = [joined] if begins else []
        assert pushed(PictureOrder(StoppedClock()), packets) == expected, kinds
    before = Packet(65535, 0, 1, b"\0\0\0\1\x61z")
    packets = [before, *h264([5, 0])]
    assert len(pushed(PictureOrder(StoppedClock()), packets)) == 1


def test_a_sender_that_counts_anew_is_followed_at_once() -> None:
    clock = StoppedClock()
    for restart in (20_000, 60_000):
        order = PictureOrder(clock)
        assert len(pushed(order, camera([2, 2, 1], first=40_000))) == 3
        clock.now += 1
        later = camera([1, 2, 1], first=restart, keys=(1,))
        assert order.add(later[0]) == (True, [])
        assert pushed(order, later[1:]) == [whole(1, 2, (1,)), whole(2, 1, (1,))]


def test_nothing_waits_without_bound() -> None:
    clock = StoppedClock()
    endless = camera([1] * (3 * MAX_WAITING_PACKETS))
    for packets in (camera([3 * MAX_WAITING_PACKETS]), endless[:1] + endless[2:], endless[1:]):
        order = PictureOrder(clock)
        asked = False
        for packet in packets:
            clock.now += 0.001
            asked = order.add(packet)[0] or asked
            assert len(order._waiting) <= MAX_WAITING_PACKETS
        assert asked


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
