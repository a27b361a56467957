"""What happens in the simulated calls: every scene is drawn from a seed and a number."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from agent.types import MIC_RATE_HZ, SPEECH_RATE_HZ, FloatArray
from bench.turns_call import Link, Scene, Sound
from bench.turns_room import RoomTraits
from bench.turns_sounds import (
    BACKCHANNELS,
    COMMANDS,
    INTERRUPTIONS,
    LECTURE,
    QUESTIONS,
    SIDE_REMARKS,
    Random,
    Voice,
    draw_noise,
    draw_voice,
    say,
)
from tests.rig.coded_speech import encode

INTERRUPTION, BACKCHANNEL, SIDE_SPEECH, NOISE = (
    "interruption",
    "backchannel",
    "side speech",
    "noise",
)
KINDS = (INTERRUPTION, BACKCHANNEL, SIDE_SPEECH, NOISE)
NEAR_OVER_ECHO_DB = (8.0, 2.0, 8.0, 2.0, 14.0, 5.0)
"""How much louder than the echo the user is, one call after the other."""

_AGENT_LEVEL = 10 ** (-23 / 20)
_GREETING_S = 4.0
_TURN_S = 30.0
_WORDS_A_TURN = 120
_LOUDEST_USER_DBFS = -14.0
"""More would clip the microphone."""
_LONGEST_BACKCHANNEL_S = 0.7
_SHORTEST_INTERRUPTION_S = 0.8
_RAISED_VOICE_DB = 3.0
"""Who says a word again because it did not help says it louder."""
_SAFE_PEAK = 0.98
_HEADPHONES_ERL_DB = 90.0


def draw_scene(
    seed: int, number: int, *, sounds: int, coded: bool, one_step: bool, headphones: bool = False
) -> Scene:
    """Call `number` of a run: its room, its network, its voices and `sounds` events.

    In a `coded` call the agent speaks coded words, so that what was lost or repeated can be read
    back from what was rendered. With `headphones` nothing of it comes back, all else is the same.
    """
    random = np.random.default_rng((seed, number))
    room = RoomTraits(
        rt60_s=float(random.uniform(0.2, 0.5)),
        erl_db=float(random.uniform(3, 15)),
        drive=float(random.choice((1.0, 1.0, 3.0))),
        noise_dbfs=float(random.uniform(-80, -60)),
        air_ms=float(random.uniform(1, 10)),
        seed=int(random.integers(1 << 30)),
    )
    clean = has_clean_link(number)
    link = Link(
        up_steps=1 if clean else int(random.integers(1, 4)),
        down_steps=6 if clean else 2 * int(random.integers(3, 8)),
        phase=int(random.integers(2)),
        pull_first=bool(random.integers(2)),
    )
    agent, user = draw_voice(random), draw_voice(random)
    over_echo_db = NEAR_OVER_ECHO_DB[number % len(NEAR_OVER_ECHO_DB)]
    cast = _Cast(random, user, _other_voice(random, user), over_echo_db, _echo_dbfs(room))
    plan = _kinds(random, sounds)
    turns: Callable[[int], FloatArray] = partial(_spoken, agent)
    if coded:
        turns = _coded
    if headphones:
        room = replace(room, erl_db=_HEADPHONES_ERL_DB)
    return Scene(
        room, link, turns, cast.question(), tuple(cast.draw(kind) for kind in plan), one_step
    )


def has_clean_link(number: int) -> bool:
    """Two calls of three go over a network without delay or jitter: 20 ms up, 60 ms down."""
    return number % 3 != 0


def coded_words(turn: int) -> list[int]:
    """Which words the agent of a coded call says in its turn `turn`."""
    count = round(_GREETING_S / 0.25) if turn == 0 else _WORDS_A_TURN
    return [(turn * 37 + word) % 256 for word in range(count)]


def _coded(turn: int) -> FloatArray:
    return encode(coded_words(turn))


def _spoken(voice: Voice, turn: int) -> FloatArray:
    """The greeting is short; all other turns go on for half a minute."""
    lecture = say(LECTURE, voice, SPEECH_RATE_HZ) * np.float32(_AGENT_LEVEL)
    start = turn * 7 * SPEECH_RATE_HZ % len(lecture)
    length = int((_GREETING_S if turn == 0 else _TURN_S) * SPEECH_RATE_HZ)
    return np.resize(np.roll(lecture, -start), length)


def _echo_dbfs(room: RoomTraits) -> float:
    return -23.0 - room.erl_db


def _kinds(random: Random, count: int) -> list[str]:
    """Each class equally often, in any order."""
    kinds = [KINDS[index % len(KINDS)] for index in range(count)]
    return [str(kind) for kind in random.permutation(kinds)]


def _other_voice(random: Random, user: Voice) -> Voice:
    while (voice := draw_voice(random)).label == user.label:
        pass
    return voice


class _Cast:
    """Who and what makes sounds in one call."""

    def __init__(
        self, random: Random, user: Voice, other: Voice, over_echo_db: float, echo_dbfs: float
    ) -> None:
        self._random = random
        self._user = user
        self._other = other
        self._over_echo_db = min(over_echo_db, _LOUDEST_USER_DBFS - echo_dbfs)
        self._echo_dbfs = echo_dbfs

    def question(self) -> Sound:
        """What the user asks first; by it his level can be known."""
        text = str(self._random.choice(QUESTIONS))
        return self._sound("question", text, say(text, self._user), 0.0)

    def draw(self, kind: str) -> Sound:
        """The next event of its class."""
        draws = {
            INTERRUPTION: self._interruption,
            BACKCHANNEL: self._backchannel,
            SIDE_SPEECH: self._side_speech,
            NOISE: self._noise,
        }
        return draws[kind]()

    def _interruption(self) -> Sound:
        """A sentence, or in one case of five a short command, said two or three times."""
        sentence = self._random.random() < 0.8
        demand, raised_db = (self._sentence, 0.0) if sentence else (self._command, _RAISED_VOICE_DB)
        text, samples = demand()
        while len(samples) < _SHORTEST_INTERRUPTION_S * MIC_RATE_HZ:
            text, samples = demand()
        over_user_db = float(self._random.normal(raised_db, 1.5))
        return self._sound(INTERRUPTION, text, samples, over_user_db)

    def _sentence(self) -> tuple[str, FloatArray]:
        text = str(self._random.choice(INTERRUPTIONS))
        return text, say(text, self._user)

    def _command(self) -> tuple[str, FloatArray]:
        text, times = str(self._random.choice(COMMANDS)), int(self._random.integers(2, 4))
        once = say(text, self._user)
        pause = np.zeros(int(self._random.uniform(0.15, 0.45) * MIC_RATE_HZ), np.float32)
        return f"{times} × {text}", np.concatenate([*[once, pause] * (times - 1), once])

    def _backchannel(self) -> Sound:
        text, samples = "", np.zeros(MIC_RATE_HZ, np.float32)
        while len(samples) > _LONGEST_BACKCHANNEL_S * MIC_RATE_HZ:
            text = str(self._random.choice(BACKCHANNELS))
            samples = say(text, self._user)
        return self._sound(BACKCHANNEL, text, samples, float(self._random.uniform(-6, 0)))

    def _side_speech(self) -> Sound:
        text = str(self._random.choice(SIDE_REMARKS))
        samples = say(text, self._other)
        return self._sound(SIDE_SPEECH, text, samples, float(self._random.uniform(-12, -6)))

    def _noise(self) -> Sound:
        kind, samples = draw_noise(self._random)
        return self._sound(NOISE, kind, samples, float(self._random.uniform(-8, 4)))

    def _sound(self, kind: str, what: str, samples: FloatArray, over_user_db: float) -> Sound:
        over_echo_db = self._over_echo_db + over_user_db
        gain = 10 ** ((self._echo_dbfs + over_echo_db) / 20)
        gain = min(gain, _SAFE_PEAK / float(np.abs(samples).max()))
        heard = (samples * gain).astype(np.float32)
        after_s = float(self._random.uniform(1.2, 3.0))
        return Sound(kind, what, heard, over_echo_db, over_user_db, after_s)
