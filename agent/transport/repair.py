"""Repair of what is lost on the way to the listener: said twice, or once more when asked for.

Said twice: each packet carries the one before it, too (RFC 2198), which costs its bitrate again
and is therefore done only while packets are lost. Once more: the listener names what is missing
(RFC 4585), which costs next to nothing but takes a round trip. Both bring back the sound as it was
encoded; the redundancy inside of Opus brings back a coarse copy, and makes all the rest coarser.
"""

from collections.abc import Sequence
from dataclasses import dataclass

MAX_KEPT = 64
"""Packets that can be asked for: 1.3 s, longer than any jitter buffer waits."""
MAX_TIMES = 3
"""A listener that is far away asks again before the answer can have come."""
_MAX_OFFSET_TICKS = (1 << 14) - 1
_MAX_COPY_BYTES = (1 << 10) - 1
_ANOTHER_FOLLOWS = 0x80
_WINDOW_PACKETS = 100
"""Over so many packets, 2 s, lost ones are averaged."""
_LEAST_PACKETS = 25
"""Fewer wait for the next report: one that is asked for is still missing in the report beside."""
_DOUBLE_FROM, _DOUBLE_UNTIL = 0.008, 0.003
"""One lost packet in two seconds begins it, and a few seconds without any end it."""


@dataclass(frozen=True, slots=True)
class RedFormat:
    """Payload types of the format for redundancy, and of the codec in it."""

    payload_type: int
    inner_type: int


class Doubling:
    """Puts the payload before into each packet. `on` says whether to; at first it is not."""

    def __init__(self, form: RedFormat) -> None:
        self.form = form
        self.on = False
        self._before: tuple[int, bytes] | None = None

    def wrap(self, payload: bytes, ticks: int) -> bytes:
        """`payload`, which begins at `ticks`, behind a copy of what was given last.

        The copy is left out where the format has no room for its length or its distance.
        """
        before, self._before = self._before, (ticks, payload)
        last_header = bytes([self.form.inner_type])
        if before is None:
            return last_header + payload
        offset_ticks, copy = ticks - before[0], before[1]
        if not 0 < offset_ticks <= _MAX_OFFSET_TICKS or len(copy) > _MAX_COPY_BYTES:
            return last_header + payload
        # 1 bit, 7 bits of type, 14 of distance, 10 of length.
        header = (_ANOTHER_FOLLOWS | self.form.inner_type) << 24 | offset_ticks << 10 | len(copy)
        return header.to_bytes(4) + last_header + copy + payload


class SentPackets:
    """The newest `MAX_KEPT` packets as they were before encryption."""

    def __init__(self) -> None:
        self._kept: list[_Kept] = [_Kept() for _ in range(MAX_KEPT)]
        self.asked_for = 0
        """Different packets that were sent again."""

    def keep(self, sequence: int, datagram: bytes) -> None:
        """This went out under that number."""
        kept = self._kept[sequence % MAX_KEPT]
        kept.sequence, kept.datagram, kept.times = sequence, datagram, 0

    def again(self, numbers: Sequence[int]) -> list[bytes]:
        """What to send once more to a listener that misses these: not what is too old, unknown,
        or was sent too often.

        A browser asks for what came with the packet behind, too, and goes on until it is answered:
        35 times for each lost packet, measured.
        """
        return [datagram for sequence in numbers if (datagram := self._take(sequence))]

    def _take(self, sequence: int) -> bytes:
        kept = self._kept[sequence % MAX_KEPT]
        if kept.sequence != sequence or kept.times == MAX_TIMES:
            return b""
        self.asked_for += not kept.times
        kept.times += 1
        return kept.datagram


@dataclass(slots=True)
class _Kept:
    sequence: int = -1
    datagram: bytes = b""
    times: int = 0


class LossEstimate:
    """The share of packets lost on the way, by receiver reports and by what was asked for again.

    Both are needed: reports count what came at the second attempt as received, and come only
    every few seconds from a listener that does not ask. What a report covers is averaged over
    100 packets, so that a short one does not count as much as a long one.
    """

    def __init__(self, first: int = 0) -> None:
        """`first` is the number of the first packet."""
        self.share = 0.0
        """0..1."""
        self._highest = first - 1
        self._lost = self._asked_for = 0

    def report(self, highest: int, lost: int, asked_for: int = 0) -> None:
        """What the listener has counted by now: the highest number, its wraps included, and the
        lost; `asked_for` more it has missed since the last report and was sent again."""
        self._asked_for += asked_for
        expected = highest - self._highest
        if expected < _LEAST_PACKETS:
            return
        lately = lost - self._lost + self._asked_for
        self._highest, self._lost, self._asked_for = highest, lost, 0
        weight = min(1.0, expected / _WINDOW_PACKETS)
        self.share += weight * (min(1.0, max(0.0, lately / expected)) - self.share)


def is_worth_doubling(share: float, *, doubled: bool) -> bool:
    """Whether packets should be said twice at such a loss; it takes less to go on than to begin."""
    return share >= (_DOUBLE_UNTIL if doubled else _DOUBLE_FROM)
