"""What is heard in a simulated call: synthetic voices and noises, each drawn from a seed."""

import io
import subprocess
import wave
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import signal

from agent.types import MIC_RATE_HZ, FloatArray
from tests.rig.programs import require_program

Random = np.random.Generator

_ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-029", "en-gb-x-rp", "en-gb-x-gbclan")
_TIMBRES = (
    *("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5", "klatt"),
    *("klatt2", "klatt4", "adam", "Alex", "Andy", "Annie", "belinda", "david", "Denis", "edward2"),
    *("Gene", "grandma", "grandpa", "Henrique", "iven", "Jacky", "john", "linda", "Marco", "max"),
    *("michael", "Michel", "Mike", "pablo", "paul", "pedro", "rob", "steph", "travis", "victor"),
)
_FLITE = ("kal16", "awb", "rms", "slt", "kal")

BACKCHANNELS = (
    *("mm-hmm", "uh-huh", "yeah", "right", "okay", "I see", "mhm", "hm", "aha", "sure", "yes"),
    *("[[m@hm]]", "[[mhm]]", "[[VhV]]", "yep", "oh", "cool", "of course", "I know", "exactly"),
)
INTERRUPTIONS = (
    "Wait a moment please, I wanted to ask about something else.",
    "No no no, that is not what I meant.",
    "Sorry, can I stop you there?",
    "Hold on, I already know that part.",
    "Actually, could you tell me about the night train instead?",
    "Okay okay, that is enough, thank you.",
    "Excuse me, what did you say about the platform?",
    "Let me interrupt you for a second.",
    "I have a different question.",
    "Please speak a little slower.",
    "Stop stop stop, go back to the beginning.",
    "How much does that cost?",
    "Yes I know, but what about Sunday?",
    "Hang on a second.",
    "But I do not want to leave in the morning.",
    "Never mind, forget about it.",
)
COMMANDS = ("Stop.", "Wait.", "No.", "Hold on.", "Stop it.", "Hey.", "Sorry.", "Be quiet.")
SIDE_REMARKS = (
    "Did you put the kettle on already?",
    "I will be down in a minute.",
    "No, the other one, on the left.",
    "Have you seen my keys anywhere?",
    "The children are still at school.",
    "He said he would call back later.",
    "Can you pass me the salt?",
    "That was on the news this morning.",
    "Who is at the door?",
    "Dinner is ready.",
)
QUESTIONS = (
    "Good morning, I would like to go to Hamburg on Saturday, as early as possible.",
    "Hello there, can you tell me which trains run on Sunday evening?",
    "I need a ticket for two adults and one child, please, and a seat by the window.",
    "What is the quickest way to the airport from here, and how long does it take?",
)
LECTURE = (
    "Good morning, and thank you for calling. I have looked at your question about the train to "
    "Hamburg. The next one leaves at half past nine from platform seven, and you will arrive "
    "shortly after noon. There is a dining car, and the seats by the window are still free. "
    "Would you like me to tell you about the way back as well? On Sunday evening there are two "
    "good connections, one of them without any change of trains. If you travel with a bicycle, "
    "you need a ticket for it, and a place must be booked at least one day before you leave. "
    "Children under six travel free of charge, and those under fifteen when their parents go "
    "with them. The return ticket is valid for a month, and it can be exchanged at any counter. "
)


@dataclass(frozen=True, slots=True)
class Voice:
    """How somebody speaks: which program and voice, how fast and how high."""

    program: str
    name: str
    speed: float
    pitch: float

    @property
    def label(self) -> str:
        """A name to tell voices apart by."""
        return f"{self.program}/{self.name}"


def draw_voice(random: Random) -> Voice:
    """Any voice; one in three is flite's, whose recordings sound less alike."""
    speed, pitch = float(random.uniform(0.85, 1.25)), float(random.uniform(0.8, 1.25))
    if random.random() < 1 / 3:
        return Voice("flite", str(random.choice(_FLITE)), speed, pitch)
    name = f"{random.choice(_ACCENTS)}+{random.choice(_TIMBRES)}"
    return Voice("espeak-ng", name, speed, pitch)


def say(text: str, voice: Voice, rate_hz: int = MIC_RATE_HZ) -> FloatArray:
    """Spoken `text` [T] at `rate_hz`, silence around it cut off, at an effective level of 1."""
    return _rated(text, voice, rate_hz) / _effective(_rated(text, voice, rate_hz))


@lru_cache(maxsize=256)
def _rated(text: str, voice: Voice, rate_hz: int) -> FloatArray:
    speak = _flite if voice.program == "flite" else _espeak
    pcm, from_hz = speak(text, voice)
    divisor = np.gcd(rate_hz, from_hz)
    spoken = signal.resample_poly(pcm, rate_hz // divisor, from_hz // divisor)
    loud = np.flatnonzero(np.abs(spoken) > 0.02 * np.abs(spoken).max())
    trimmed: FloatArray = spoken[loud[0] : loud[-1] + 1].astype(np.float32)
    return trimmed


def _espeak(text: str, voice: Voice) -> tuple[FloatArray, int]:
    program = require_program("espeak-ng", "espeak-ng")
    tempo, pitch = str(int(165 * voice.speed)), str(int(np.clip(50 * voice.pitch**2, 5, 95)))
    command = [program, "-v", voice.name, "-s", tempo, "-p", pitch, "--stdout", text]
    return _wave(subprocess.run(command, check=True, capture_output=True).stdout)


def _flite(text: str, voice: Voice) -> tuple[FloatArray, int]:
    program = require_program("flite", "flite")
    plain = text.replace("[[m@hm]]", "mmhm").replace("[[mhm]]", "mhm").replace("[[VhV]]", "uh huh")
    base_hz = 180 if voice.name == "slt" else 110
    options = (f"duration_stretch={1 / voice.speed:.3f}", f"{base_hz * voice.pitch:.0f}")
    settings = ["--setf", options[0], "--setf", f"int_f0_target_mean={options[1]}"]
    command = [program, "-voice", voice.name, *settings, "-t", plain, "-o", "/dev/stdout"]
    return _wave(subprocess.run(command, check=True, capture_output=True).stdout)


def _wave(content: bytes) -> tuple[FloatArray, int]:
    with wave.open(io.BytesIO(content)) as spoken:
        # The length in the header of a stream is a dummy: read what is there.
        pcm = np.frombuffer(spoken.readframes(1 << 30), "<i2")
        return _float(pcm / 32768), int(spoken.getframerate())


def _effective(samples: FloatArray) -> float:
    return float(np.sqrt(np.mean(samples**2)))


# ---- noises -----------------------------------------------------------------------------------


def draw_noise(random: Random) -> tuple[str, FloatArray]:
    """A noise [T] at 16 kHz, at an effective level of 1, and what it is."""
    kind = str(random.choice(list(_NOISES)))
    samples = _NOISES[kind](random)
    return kind, (samples / _effective(samples)).astype(np.float32)


def _cough(random: Random) -> FloatArray:
    """One to three explosions of breath through a throat, each with a voiced rest or without."""
    return _series(random, int(random.integers(1, 4)), (0.28, 0.45), _one_cough)


def _one_cough(random: Random) -> FloatArray:
    time_s = _time_s(random.uniform(0.18, 0.35))
    breath = random.standard_normal(len(time_s))
    tones_hz = random.uniform((450, 1200, 2300), (800, 1700, 3200))
    throat = np.sum([_resonance(_float(breath), float(hz), 0.25) for hz in tones_hz], axis=0)
    envelope = np.minimum(time_s / 0.008, 1) * np.exp(-time_s / random.uniform(0.05, 0.11))
    pitch_hz = random.uniform(110, 260) * np.exp(-time_s * 1.5)
    buzz = signal.sawtooth(2 * np.pi * np.cumsum(pitch_hz) / MIC_RATE_HZ)
    voices = [_resonance(_float(buzz), float(hz), 0.2) for hz in tones_hz]
    voiced = np.sum(voices, axis=0) * (time_s > 0.06)
    return _float(envelope * (throat / np.std(throat) + random.uniform(0, 0.8) * voiced))


def _knocks(random: Random) -> FloatArray:
    return _series(random, int(random.integers(2, 6)), (0.15, 0.4), _one_knock)


def _one_knock(random: Random) -> FloatArray:
    time_s = _time_s(0.12)
    tones = (
        np.sin(2 * np.pi * hz * time_s) * np.exp(-time_s / fall_s)
        for hz, fall_s in zip(
            random.uniform(90, 900, 4), random.uniform(0.01, 0.04, 4), strict=True
        )
    )
    click = random.standard_normal(len(time_s)) * np.exp(-time_s / 0.004)
    return _float(sum(tones) + click)


def _keyboard(random: Random) -> FloatArray:
    return _series(random, int(random.integers(5, 20)), (0.07, 0.22), _one_key)


def _one_key(random: Random) -> FloatArray:
    time_s = _time_s(0.05)
    click = random.standard_normal(len(time_s)) * np.exp(-time_s / random.uniform(0.002, 0.008))
    return _float(_resonance(_float(click), float(random.uniform(1500, 5000)), 0.6) + 0.3 * click)


def _burst(random: Random) -> FloatArray:
    """Paper, a tap, a chair: broadband noise of any colour."""
    time_s = _time_s(random.uniform(0.1, 1.2))
    noise = random.standard_normal(len(time_s))
    low_hz = random.uniform(80, 1500)
    bands = signal.butter(2, (low_hz, low_hz * random.uniform(2, 5)), "band", fs=MIC_RATE_HZ)
    return _float(signal.lfilter(*bands, noise) * np.hanning(len(time_s)) ** random.uniform(0.2, 2))


def _hum(random: Random) -> FloatArray:
    """A motor or a mains transformer that comes and goes."""
    time_s = _time_s(random.uniform(1.0, 2.5))
    base_hz = random.uniform(48, 130)
    tones = sum(
        random.uniform(0.2, 1) / order * np.sin(2 * np.pi * base_hz * order * time_s)
        for order in range(1, 12)
    )
    edge = np.clip(np.minimum(time_s, time_s[::-1]) / 0.2, 0, 1)
    return _float(tones * edge + 0.05 * random.standard_normal(len(time_s)))


_NOISES: dict[str, Callable[[Random], FloatArray]] = {
    "cough": _cough,
    "knocks": _knocks,
    "keyboard": _keyboard,
    "burst": _burst,
    "hum": _hum,
}


def _series(
    random: Random, count: int, gaps_s: tuple[float, float], one: Callable[[Random], FloatArray]
) -> FloatArray:
    starts_s = np.concatenate(([0.0], np.cumsum(random.uniform(*gaps_s, count - 1))))
    hits = [one(random) * random.uniform(0.6, 1) for _ in range(count)]
    starts = (starts_s * MIC_RATE_HZ).astype(int)
    whole = np.zeros(max(at + len(hit) for at, hit in zip(starts, hits, strict=True)))
    for at, hit in zip(starts, hits, strict=True):
        whole[at : at + len(hit)] += hit
    return _float(whole)


def _resonance(samples: FloatArray, hz: float, width: float) -> FloatArray:
    edges = (hz * (1 - width / 2), hz * (1 + width / 2))
    return _float(signal.lfilter(*signal.butter(1, edges, "band", fs=MIC_RATE_HZ), samples))


def _time_s(seconds: float) -> FloatArray:
    return _float(np.arange(int(seconds * MIC_RATE_HZ)) / MIC_RATE_HZ)


def _float(samples: object) -> FloatArray:
    return np.asarray(samples, np.float32)
