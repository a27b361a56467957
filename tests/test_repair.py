"""What is sent twice or again, as another's parser reads it, and how much is lost on the way."""

import pytest

from agent.transport.repair import (
    MAX_KEPT,
    MAX_TIMES,
    Doubling,
    LossEstimate,
    RedFormat,
    SentPackets,
    is_worth_doubling,
)

FORM = RedFormat(payload_type=63, inner_type=111)


def split(packet: bytes) -> list[tuple[int, int, bytes]]:
    """Payload type, distance in ticks and sound of each part, by the text of RFC 2198."""
    heads: list[tuple[int, int, int]] = []
    while packet[0] & 0x80:
        kind, bits = packet[0] & 0x7F, int.from_bytes(packet[1:4])
        heads.append((kind, bits >> 10, bits & 0x3FF))
        packet = packet[4:]
    last, packet = packet[0], packet[1:]
    parts = []
    for kind, offset, length in heads:
        parts.append((kind, offset, packet[:length]))
        packet = packet[length:]
    return [*parts, (last, 0, packet)]


def test_each_packet_carries_the_one_before_it() -> None:
    doubling = Doubling(FORM)
    assert split(doubling.wrap(b"one", 0)) == [(111, 0, b"one")]
    assert split(doubling.wrap(b"two!", 960)) == [(111, 960, b"one"), (111, 0, b"two!")]
    assert split(doubling.wrap(b"3", 1920)) == [(111, 960, b"two!"), (111, 0, b"3")]


@pytest.mark.parametrize(
    ("before", "ticks", "copied"),
    [
        (bytes(1023), 960, True),
        (bytes(1024), 960, False),
        (b"x", 16383, True),
        (b"x", 16384, False),
        (b"x", 0, False),
    ],
    ids=["longest", "too long", "furthest", "too far", "no distance"],
)
def test_a_copy_without_room_is_left_out(before: bytes, ticks: int, copied: bool) -> None:
    doubling = Doubling(FORM)
    doubling.wrap(before, 0)
    parts = split(doubling.wrap(b"now", ticks))
    assert parts[-1] == (111, 0, b"now")
    assert parts[:-1] == ([(111, ticks, before)] if copied else [])


def test_what_is_asked_for_is_there_as_it_was_but_not_for_ever() -> None:
    sent = SentPackets()
    for number in range(MAX_KEPT + 1):
        sent.keep(number, b"packet %d" % number)
    assert sent.again([0]) == [], "its place is taken by a newer one"
    assert sent.again([1, 7]) == [b"packet 1", b"packet 7"]
    assert sent.again([MAX_KEPT + 1]) == [], "not sent yet"
    assert sent.asked_for == 2


def test_a_listener_that_asks_without_end_is_answered_a_few_times() -> None:
    sent = SentPackets()
    sent.keep(7, b"seven")
    times = [len(sent.again([7])) for _ in range(MAX_TIMES + 2)]
    assert times == [1] * MAX_TIMES + [0, 0]
    assert sent.asked_for == 1, "counted once however often it was asked for"
    sent.keep(7 + MAX_KEPT, b"newer")
    assert sent.again([7 + MAX_KEPT]) == [b"newer"]


def test_loss_follows_reports_by_how_much_they_cover() -> None:
    loss = LossEstimate(first=1000)
    loss.report(highest=1009, lost=1)
    assert loss.share == 0.0, "ten packets say nothing"
    loss.report(highest=1049, lost=2)
    assert loss.share == pytest.approx(0.5 * 2 / 50), "50 say something"
    loss.report(highest=1299, lost=2 + 25)
    assert loss.share == pytest.approx(0.1), "250 say it all"
    loss.report(highest=1299, lost=27)
    assert loss.share == pytest.approx(0.1), "a report without news changes nothing"
    loss.report(highest=1399, lost=27)
    assert loss.share == 0.0


def test_what_came_at_the_second_attempt_was_lost_all_the_same() -> None:
    asked, told = LossEstimate(), LossEstimate()
    for at in range(1, 20):
        asked.report(highest=100 * at, lost=0, asked_for=5)
        told.report(highest=100 * at, lost=6 * at - 1)
        # What is asked for is missing in the report beside, and comes a little later.
        asked.report(highest=100 * at + 10, lost=1, asked_for=1)
        told.report(highest=100 * at + 10, lost=6 * at)
    assert asked.share == pytest.approx(told.share) == pytest.approx(0.06, abs=0.002)


def test_reports_that_make_no_sense_stay_shares() -> None:
    loss = LossEstimate(first=100)
    for highest, lost, asked_for in ((50, 9, 0), (200, 1 << 22, 0), (300, -5, 0), (301, 0, 999)):
        loss.report(highest, lost, asked_for)
        assert 0.0 <= loss.share <= 1.0


def test_doubling_begins_with_some_loss_and_ends_with_little() -> None:
    assert not is_worth_doubling(0.005, doubled=False)
    assert is_worth_doubling(0.01, doubled=False)
    assert is_worth_doubling(0.005, doubled=True)
    assert not is_worth_doubling(0.001, doubled=True)
