"""What is forgotten: bookkeeping against a recorded run of the reference, and its limits."""

import pytest

from agent.duplex.tokens import Token
from agent.duplex.window import Cut, UnitSpan, Window, WindowSettings

MARKER = (271, 19702, 25, 220)
HELLO, WORLD = 9707, 1879


def listens(length: int = 13) -> UnitSpan:
    return UnitSpan(length, listened=True)


def says(length: int, *said: int) -> UnitSpan:
    return UnitSpan(length, listened=False, said=said)


def test_context_follows_the_recorded_run() -> None:
    settings = WindowSettings(mode="context", max_units=3, previous_max_tokens=4)
    window = Window(settings, prefix_tokens=5, suffix=(Token.IM_END,), marker=MARKER)
    units = [
        listens(),
        says(16, HELLO, WORLD),
        says(16, HELLO, Token.TURN_EOS),
        listens(),
        says(18, WORLD, WORLD, WORLD),
        listens(),
        listens(),
        listens(),
    ]
    seen = []
    for unit in units:
        window.add(unit)
        window.cut()
        lengths = [one.length for one in window.units]
        seen.append((lengths, window.previous, window.protected, window.length))
    assert seen[3:] == [
        ([16, 16, 13], (), 6, 51),
        ([16, 13, 18], (*MARKER, HELLO, WORLD), 12, 59),
        ([13, 18, 13], (*MARKER, HELLO, WORLD, HELLO), 13, 57),
        ([18, 13, 13], (*MARKER, HELLO, WORLD, HELLO), 13, 57),
        ([13, 13, 13], (*MARKER, HELLO, WORLD, WORLD, WORLD), 14, 53),
    ]


def test_basic_follows_the_recorded_run() -> None:
    settings = WindowSettings(mode="basic", high_tokens=60, low_tokens=40)
    window = Window(settings, prefix_tokens=6)
    lengths = []
    for _ in range(6):
        window.add(listens())
        before = window.length
        cut = window.cut()
        if cut is not None:
            assert before == 71
            assert cut == Cut(units=3, start=6 + 39, to=6, at=6, rewrite=None)
        lengths.append(window.length)
    assert lengths == [19, 32, 45, 58, 32, 45]


def test_a_cut_of_context_rewrites_what_changed_and_moves_the_rest() -> None:
    settings = WindowSettings(mode="context", max_units=1)
    window = Window(settings, prefix_tokens=5, suffix=(7,), marker=MARKER)
    window.add(listens())
    window.add(says(16, HELLO))
    assert window.cut() == Cut(units=1, start=6 + 13, to=6, at=6, rewrite=None)
    window.add(listens())
    cut = window.cut()
    assert cut == Cut(units=1, start=6 + 16, to=11, at=5, rewrite=(*MARKER, HELLO, 7))
    window.add(listens())
    assert window.cut() == Cut(units=1, start=11 + 13, to=11, at=11, rewrite=None)


def test_off_forgets_nothing() -> None:
    window = Window(WindowSettings(mode="off"), prefix_tokens=6)
    for _ in range(1000):
        window.add(listens())
    assert window.cut() is None and window.cut_to(10) is None
    assert len(window.units) == 1000


@pytest.mark.parametrize("mode", ["basic", "context"])
def test_a_slot_s_size_overrules_the_window_but_the_newest_unit_stays(mode: str) -> None:
    window = Window(WindowSettings(mode=mode), prefix_tokens=6)  # type: ignore[arg-type]
    for _ in range(4):
        window.add(listens())
    assert window.cut_to(58) is None
    cut = window.cut_to(57)
    assert cut is not None and cut.units == 1
    cut = window.cut_to(1)
    assert cut is not None and cut.units == 2
    assert len(window.units) == 1


def test_a_copy_goes_its_own_way_and_rewritten_units_take_their_places() -> None:
    window = Window(WindowSettings(), prefix_tokens=6)
    window.add(listens())
    window.add(says(20, HELLO))
    other = window.copy()
    other.replace_newest([says(15, HELLO)])
    other.add(listens())
    assert [unit.length for unit in window.units] == [13, 20]
    assert [unit.length for unit in other.units] == [13, 15, 13]


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="low_tokens"):
        WindowSettings(high_tokens=10, low_tokens=11)
    with pytest.raises(ValueError, match="one unit"):
        WindowSettings(max_units=0)
