"""What of a client's trip was right."""

import re
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agent.types import FloatArray
from tests.conformance.ground import PICTURE_SIZE, SENTENCE, SPEECH_RATE_HZ
from tests.conformance.travel import TRAVELLERS, Trip
from tests.rig.sound import alike, alike_in_pieces
from tests.rig.voices import say

FEATURES = (
    *("connect", "talk", "answered", "interrupt", "history"),
    *("tools", "picture", "reconnect", "close"),
)
GREETING_MS = 4733
"""How long the greeting of the echo engine is: all clients talk over it."""
_TOLERANCE_MS = {"websocket": 500, "webrtc": 900}
"""How far the cut may be from what the client played. Over WebRTC it can only count what came out
of the jitter buffer, silence before and after the words included."""
_LIKENESS = {"websocket": 0.7, "webrtc": 0.4}
"""Over WebRTC it was coded twice, and the echo canceller was at work on its first half second."""
_OTHER_SENTENCE = "Every good boy deserves fruit and a glass of milk."
_SPOKE = re.compile(r"You spoke for (\d+\.\d) s\.")
_RESULT = "a very dark green"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`fault` is empty where all was right; `note` says what a reader should know."""

    fault: str = ""
    note: str = ""
    applies: bool = True
    word: str = "yes"


def judge(trip: Trip, feature: str) -> Verdict:
    """Whether `feature` works for the client."""
    if reason := NOT_FOR.get((trip.client, feature)):
        return Verdict(note=reason, applies=False)
    if feature in trip.errors:
        return Verdict(trip.errors[feature])
    if feature not in trip.facts:
        failed = ", ".join(trip.errors) or trip.log[-500:] or "nothing was told"
        return Verdict(f"never got there: {failed}")
    fault = _JUDGES[feature](trip, trip.facts[feature])
    word, note = NOTES.get((trip.client, feature), ("yes", ""))
    return Verdict(fault, note, word=word)


def is_right(trip: Trip) -> bool:
    """Whether all of it went well."""
    return not any(judge(trip, feature).fault for feature in FEATURES)


NOT_FOR = {
    ("whip", "history"): "WHIP carries sound and pictures alone: its clients keep no conversation.",
    ("whip", "tools"): "WHIP has no events, so a client has no functions.",
}
NOTES = {
    ("pipecat", "history"): (
        "partly",
        "Pipecat writes down the words that came, not those that were played; what it retrieves "
        "from the server is what was heard.",
    ),
    ("whip", "picture"): (
        "yes",
        "The camera's track; what the agent says of it is read over a sideband.",
    ),
}


def _connect(trip: Trip, facts: dict[str, Any]) -> str:
    if trip.client == "pipecat":
        return ""  # does not show the session
    named = str(facts["session"])
    return "" if named.startswith(("sess_", "rtc_")) else f"no session: {named!r}"


def _talk(trip: Trip, facts: dict[str, Any]) -> str:
    return "" if facts["user_turns"] >= 1 else "the user's speech was not noticed"


def _answered(trip: Trip, facts: dict[str, Any]) -> str:
    """What was said comes back: as sound, and in words that tell how long it was."""
    speech = say(SENTENCE, SPEECH_RATE_HZ, level_dbfs=-20)
    said_s = len(speech) / SPEECH_RATE_HZ
    found = _SPOKE.search(str(facts["text"]))
    if found is None or abs(float(found[1]) - said_s) > 0.7:
        return f"{facts['text']!r}, after {said_s:.1f} s of speech"
    if trip.heard is None:
        return "nothing was heard"
    wire = TRAVELLERS[trip.client].wire
    likeness = _likeness(_read(trip.heard), SENTENCE)
    other = _likeness(_read(trip.heard), _OTHER_SENTENCE)
    if likeness < _LIKENESS[wire] or likeness < other + 0.15:
        return f"what came back is no echo: {likeness:.2f}, and {other:.2f} of another sentence"
    return ""


def _likeness(heard: FloatArray, sentence: str) -> float:
    """Of all of it at once, or of its pieces where these were moved on the way."""
    said = say(sentence, SPEECH_RATE_HZ, level_dbfs=-20)
    return max(alike(heard, said), alike_in_pieces(heard, said, SPEECH_RATE_HZ))


def _interrupt(trip: Trip, facts: dict[str, Any]) -> str:
    """It stopped in the midst, and both sides agree on where."""
    if facts["status"] not in ("cancelled", "incomplete"):
        return f"the answer ended as {facts['status']!r}"
    if not 1000 < facts["stopped_ms"] < GREETING_MS - 500:
        return f"stopped after {facts['stopped_ms']} ms"
    if facts["received_ms"] > GREETING_MS - 500:
        return f"it was sent to its end: {facts['received_ms']} ms"
    cut_ms = facts["cut_ms"]
    if cut_ms < 0:
        return "" if trip.client == "pipecat" else "nobody said where it was cut"
    if facts["asked_ms"] >= 0 and cut_ms > facts["asked_ms"]:
        return f"cut at {cut_ms} ms, though {facts['asked_ms']} was asked for"
    wire = TRAVELLERS[trip.client].wire
    if abs(cut_ms - facts["stopped_ms"]) > _TOLERANCE_MS[wire]:
        return f"cut at {cut_ms} ms, stopped at {facts['stopped_ms']}"
    return ""


def _history(trip: Trip, facts: dict[str, Any]) -> str:
    """The words of the interrupted answer end where it was cut; what came after is there, too."""
    full, retrieved = str(facts["full"]), facts["retrieved"]
    spoken = [item["text"] for item in facts["items"] if item["role"] == "assistant"]
    if retrieved is not None and not _is_cut(retrieved, full):
        return f"retrieved {retrieved!r} of {full!r}"
    if not any(_SPOKE.search(text) for text in spoken):
        return f"the answer is not in it: {spoken}"
    if trip.client == "pipecat":
        return "" if retrieved else "nothing was retrieved"
    if not _is_cut(spoken[0], full):
        return f"holds {spoken[0]!r} of {full!r}"
    if retrieved is not None and spoken[0] != retrieved:
        return f"holds {spoken[0]!r}, but {retrieved!r} was heard"
    return ""


def _is_cut(text: str, full: str) -> bool:
    return bool(text.strip()) and full.startswith(text.strip()) and len(text) < len(full)


def _tools(trip: Trip, facts: dict[str, Any]) -> str:
    given: dict[str, str] = {} if trip.client == "pipecat" else {"key": "colour"}
    if facts["calls"] != [{"name": "look_up", "arguments": given}]:
        return f"called {facts['calls']}"
    return "" if _RESULT in facts["said"] else f"the result was not used: {facts['said']!r}"


def _picture(trip: Trip, facts: dict[str, Any]) -> str:
    wanted = "×".join(str(length) for length in PICTURE_SIZE)
    return "" if f"{wanted} pixels" in facts["said"] else f"said {facts['said']!r}"


def _reconnect(trip: Trip, facts: dict[str, Any]) -> str:
    if trip.client == "pipecat":
        return ""  # told only once the second greeting was heard
    fresh = facts["after"] and facts["after"] != facts["before"]
    return "" if fresh else f"session {facts['before']}, then {facts['after']}"


def _close(trip: Trip, facts: dict[str, Any]) -> str:
    if facts["faults"]:
        return f"errors on the way: {facts['faults']}"
    return f"{trip.calls_left} calls were left on the server" if trip.calls_left else ""


_JUDGES: dict[str, Callable[[Trip, dict[str, Any]], str]] = {
    "connect": _connect,
    "talk": _talk,
    "answered": _answered,
    "interrupt": _interrupt,
    "history": _history,
    "tools": _tools,
    "picture": _picture,
    "reconnect": _reconnect,
    "close": _close,
}


def _read(path: Path) -> FloatArray:
    with wave.open(str(path), "rb") as file:
        assert file.getframerate() == SPEECH_RATE_HZ
        pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return pcm.astype(np.float32) / 32768
