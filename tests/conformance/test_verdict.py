"""What is wrong is called wrong: each check fails on a trip that went wrong in just that."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conformance.ground import SENTENCE, SPEECH_RATE_HZ
from tests.conformance.table import table
from tests.conformance.travel import MOST_TRIES, Trip
from tests.conformance.verdict import FEATURES, is_right, judge
from tests.rig.sound import write_wav
from tests.rig.voices import say

FULL = "Hello! I am the echo engine."
RIGHT: dict[str, dict[str, Any]] = {
    "connect": {"session": "sess_1", "taken_s": 0.1},
    "talk": {"user_turns": 1},
    "answered": {"text": "You spoke for 2.2 s."},
    "interrupt": {
        "status": "cancelled",
        "received_ms": 2300,
        "stopped_ms": 2000,
        "asked_ms": 2000,
        "cut_ms": 2000,
    },
    "history": {
        "full": FULL,
        "retrieved": "Hello! I am",
        "items": [
            {"role": "assistant", "text": "Hello! I am"},
            {"role": "user", "text": ""},
            {"role": "assistant", "text": "You spoke for 2.2 s."},
        ],
    },
    "tools": {
        "calls": [{"name": "look_up", "arguments": {"key": "colour"}}],
        "said": "look_up returned: a very dark green",
    },
    "picture": {"said": "You sent a picture of 64×48 pixels."},
    "reconnect": {"before": "sess_1", "after": "sess_2"},
    "close": {"faults": []},
}


@pytest.fixture
def trip(tmp_path: Path) -> Trip:
    """All went well."""
    write_wav(tmp_path / "heard.wav", say(SENTENCE, SPEECH_RATE_HZ), SPEECH_RATE_HZ)
    return Trip("openai_python", "openai 1", copy.deepcopy(RIGHT), heard=tmp_path / "heard.wav")


@pytest.mark.parametrize("feature", FEATURES)
def test_what_went_well_is_right(trip: Trip, feature: str) -> None:
    assert judge(trip, feature).fault == ""


@pytest.mark.parametrize(
    ("feature", "wrong"),
    [
        ("connect", {"session": ""}),
        ("talk", {"user_turns": 0}),
        ("answered", {"text": "Hello!"}),
        ("answered", {"text": "You spoke for 0.7 s."}),
        ("interrupt", {"status": "completed"}),
        ("interrupt", {"stopped_ms": -1}),
        ("interrupt", {"stopped_ms": 4733, "received_ms": 4733}),
        ("interrupt", {"received_ms": 4733}),
        ("interrupt", {"cut_ms": -1}),
        ("interrupt", {"cut_ms": 1200}),
        ("interrupt", {"cut_ms": 2100}),
        ("history", {"retrieved": FULL}),
        ("history", {"retrieved": ""}),
        ("history", {"retrieved": "Hello!"}),
        ("history", {"items": RIGHT["history"]["items"][:2]}),
        ("history", {"items": [{"role": "assistant", "text": FULL}], "retrieved": None}),
        ("tools", {"calls": []}),
        ("tools", {"calls": [{"name": "look_up", "arguments": {}}]}),
        ("tools", {"said": "You wrote: /look_up"}),
        ("picture", {"said": "Hello!"}),
        ("reconnect", {"after": "sess_1"}),
        ("reconnect", {"after": ""}),
        ("close", {"faults": ["unhandled"]}),
    ],
)
def test_what_went_wrong_is_a_fault(trip: Trip, feature: str, wrong: dict[str, Any]) -> None:
    trip.facts[feature] |= wrong
    assert judge(trip, feature).fault
    assert [name for name in FEATURES if judge(trip, name).fault] == [feature]


def test_another_sound_is_no_echo(trip: Trip) -> None:
    assert trip.heard is not None
    other = say("Every good boy deserves fruit and a glass of milk.", SPEECH_RATE_HZ)
    for sound in (other, np.zeros(48_000, np.float32)):
        write_wav(trip.heard, sound, SPEECH_RATE_HZ)
        assert "no echo" in judge(trip, "answered").fault
    trip.heard = None
    assert judge(trip, "answered").fault == "nothing was heard"


def test_a_call_that_is_left_on_the_server_is_a_fault(trip: Trip) -> None:
    trip.calls_left = 1
    assert judge(trip, "close").fault == "1 calls were left on the server"


def test_a_step_that_failed_or_never_came_is_a_fault(trip: Trip) -> None:
    del trip.facts["tools"], trip.facts["picture"]
    trip.take('{"feature": "tools", "error": "TimeoutError: no answer"}')
    trip.take("a banner")
    assert judge(trip, "tools").fault == "TimeoutError: no answer"
    assert judge(trip, "picture").fault == "never got there: tools"


def test_other_programs_or_a_machine_that_stood_still_give_another_try(trip: Trip) -> None:
    assert is_right(trip)
    trip.facts["talk"] = {"user_turns": 0}
    assert not is_right(trip)
    assert trip.may_be_tried_again
    trip.tries = 2
    assert not trip.may_be_tried_again
    trip.stood_still_s = 1.0
    assert trip.may_be_tried_again
    trip.tries = MOST_TRIES
    assert not trip.may_be_tried_again


def test_the_table_says_what_works_and_why_not(trip: Trip) -> None:
    text, fine = table({"openai_python": trip})
    assert fine
    assert "| openai 1 (Python, WebSocket) |" + " yes |" * len(FEATURES) in text
    trip.facts["picture"] = {"said": "nothing"}
    text, fine = table({"openai_python": trip})
    assert not fine
    assert "| no (1) |" in text
    assert "1. said 'nothing'" in text
    whip = Trip("whip", "whip 1", copy.deepcopy(RIGHT), heard=trip.heard)
    assert "| – (1) | – (2) |" in table({"whip": whip})[0]
