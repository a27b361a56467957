"""What counts: whether the agent yielded, went on, and lost or repeated words."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agent.types import SPEECH_RATE_HZ, FloatArray
from bench.turns_call import Outcome, Record
from bench.turns_scenes import INTERRUPTION, coded_words
from tests.rig.coded_speech import account, decode

_RESUME_WITHIN_S = 0.3
_YIELD_WITHIN_S = 2.0
"""Of the beginning of an interruption, or `_YIELD_AFTER_S` of its end if that is later."""
_YIELD_AFTER_S = 0.3


@dataclass(frozen=True, slots=True)
class Verdict:
    """One event: what it was, and whether the agent did right.

    `silent_after_s`: from its onset to silence in the page; `gap_s`: from its end to the agent's
    next sound, where the agent had ducked; None where that did not happen.
    """

    kind: str
    what: str
    length_s: float
    over_user_db: float
    over_echo_db: float
    clean_link: bool
    right: bool
    silent_after_s: float | None
    gap_s: float | None
    ducks: int


@dataclass(frozen=True, slots=True)
class CallScore:
    """One call: its events, what happened while only the agent spoke, and its words."""

    verdicts: tuple[Verdict, ...]
    undisturbed_s: float
    stray_ducks: int
    stray_flushes: int
    leaked_frames: int
    words: int
    words_wrong: int


def score(record: Record, *, clean_link: bool, coded: bool) -> CallScore:
    """Judge a finished call; `coded` if the agent spoke coded words."""
    words, wrong = _words(record) if coded else (0, 0)
    return CallScore(
        tuple(_verdict(outcome, clean_link) for outcome in record.outcomes),
        record.undisturbed_s,
        record.stray_ducks,
        record.stray_flushes,
        record.leaked_frames,
        words,
        wrong,
    )


def _verdict(outcome: Outcome, clean_link: bool) -> Verdict:
    sound, silences = outcome.sound, outcome.silences
    right = _yielded(outcome) if sound.kind == INTERRUPTION else _kept(outcome)
    went_on = silences[-1][1] - outcome.end_s if silences and len(silences[-1]) == 2 else None
    return Verdict(
        sound.kind,
        sound.what,
        sound.length_s,
        sound.over_user_db,
        sound.over_echo_db,
        clean_link,
        right,
        silences[0][0] - outcome.onset_s if silences else None,
        None if went_on is None or outcome.flushed_s is not None else max(0.0, went_on),
        len(silences),
    )


def _yielded(outcome: Outcome) -> bool:
    """The turn was given up soon enough."""
    latest_s = max(outcome.onset_s + _YIELD_WITHIN_S, outcome.end_s + _YIELD_AFTER_S)
    return outcome.flushed_s is not None and outcome.flushed_s <= latest_s


def _kept(outcome: Outcome) -> bool:
    """The turn was neither given up nor silent later than 300 ms after the sound had faded."""
    latest_s = outcome.end_s + _RESUME_WITHIN_S
    went_on = all(len(silence) == 2 and silence[1] <= latest_s for silence in outcome.silences)
    return outcome.flushed_s is None and went_on


def _words(record: Record) -> tuple[int, int]:
    """How many words were to be heard, and how many of them were lost, damaged or repeated."""
    said_words = wrong = 0
    for turn, rendered in enumerate(record.rendered):
        heard, lost = _turn_words(rendered, coded_words(turn), turn in record.flushed_turns)
        said_words, wrong = said_words + heard, wrong + lost
    return said_words, wrong


def _turn_words(rendered: FloatArray, said: Sequence[int], flushed: bool) -> tuple[int, int]:
    """The same of one turn; of a turn that was given up, what came before its last word."""
    words = decode(rendered, SPEECH_RATE_HZ)
    result = account(words, said)
    until = len(said)
    if flushed:
        heard = np.setdiff1d(np.arange(len(said)), result.lost)
        until = int(heard[-1]) if len(heard) else 0
    faults = {*result.lost, *result.damaged, *result.repeated}
    return until, sum(position < until for position in faults)
