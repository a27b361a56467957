"""The same as in `test_realtime_fuzz`, of a client of vLLM-Omni's duplex API."""

import json
import random
from collections.abc import Callable

import pytest

from agent.types import Listened
from tests.rig.realtime_watch import Watched, kinds
from tests.test_realtime_fuzz import ABLE_TO_ALL, FIELDS, Party, client_message, value


class OmniParty(Party):
    """Whom somebody talks over all the time."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, "websocket")
        self.call.is_omni = True
        self.call.call.use_omni()

    def step(self) -> None:
        super().step()
        ways: list[Callable[[], object]] = [self.listen_on, self.talk_over, self.ask]
        self.dice.choice(ways)()

    def listen_on(self) -> None:
        self.call.engine(Listened(self.dice.randrange(100)))

    def talk_over(self) -> None:
        if self.queue and self.playing:
            tell = self.dice.choice((self.call.call.ducked, self.call.call.resumed))
            self.call.take(tell(self.queue[0], self.dice.randrange(900)))

    def ask(self) -> None:
        asked = ["session.heartbeat", "session.event_ack", "session.resume", "input.commit"]
        self.call.send(self.dice.choice([*asked, "input.cancel"]))
        if self.dice.random() < 0.2:
            self.barge_in()


@pytest.mark.parametrize("seed", range(20))
def test_any_run_of_events_keeps_the_documented_order(seed: int) -> None:
    party = OmniParty(seed)
    for _ in range(240):
        party.step()
    party.call.finish()
    assert {"response.listen", "overlap.decision"} <= set(kinds(party.call.events))


@pytest.mark.parametrize("seed", range(3))
def test_no_message_breaks_the_call_and_each_session_told_can_be_sent_again(seed: int) -> None:
    dice = random.Random(seed)
    call = Watched(abilities=ABLE_TO_ALL, wire="websocket", is_omni=True)
    taken = 0
    for _ in range(300):
        call.take(call.call.receive(client_message(dice, [])))
        session = {name: value(dice, 1) for name in dice.choices(FIELDS, k=2)}
        session |= {"sample_rate_hz": dice.choice([16_000, 24_000, 8_000, "16000", None])}
        if "error" in kinds(call.send("session.update", session=session)):
            continue
        taken += 1
        before = call.call.session
        assert kinds(call.send("session.update", session=before)) == ["session.updated"], session
        assert call.call.session == before, session
    call.finish()
    assert taken > 30


@pytest.mark.parametrize(
    "kind", [["session.close"], {"session.close": 1}, None, 5, "Session.close"]
)
def test_a_type_that_is_none_is_refused(kind: object) -> None:
    call = Watched(wire="websocket", is_omni=True)
    (told,) = call.take(call.call.receive(json.dumps({"type": kind})))
    assert told["error"]["param"] == "type"
