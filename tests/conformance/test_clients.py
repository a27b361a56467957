"""The clients' trips, judged feature by feature."""

from pathlib import Path

import pytest

from tests.conformance.travel import TRAVELLERS, Trip, travel
from tests.conformance.verdict import FEATURES, is_right, judge
from tests.rig.realtime_schema import check_events, check_order

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(420)]
SHOWS_EVENTS = [name for name in TRAVELLERS if name not in ("pipecat", "whip")]


@pytest.fixture(scope="module")
def trips(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> object:
    """All that the chosen tests ask for: they run side by side, against one server."""
    chosen = {
        item.callspec.params["client"]
        for item in request.session.items
        if item.module is request.module
    }
    folder: Path = tmp_path_factory.mktemp("conformance")
    return travel([name for name in TRAVELLERS if name in chosen], folder, is_right)


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("client", TRAVELLERS)
def test_conformance(trips: dict[str, Trip], client: str, feature: str) -> None:
    trip = trips[client]
    verdict = judge(trip, feature)
    circumstances = f"try {trip.tries}, the machine stood still for {trip.stood_still_s:.2f} s"
    assert verdict.fault == "", f"{verdict.fault}\n{circumstances}\n{trip.log[-3000:]}"


@pytest.mark.parametrize("client", SHOWS_EVENTS)
def test_conformance_of_events(trips: dict[str, Trip], client: str) -> None:
    """What the server said to it is right to the letter, and in order."""
    sessions = trips[client].sessions
    assert len(sessions) == 2
    for events in sessions:
        check_events(events)
        check_order(events, TRAVELLERS[client].wire)
