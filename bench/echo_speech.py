"""The agent's speech for bench.echo: sentences in different voices, drawn from a seed."""

import io
import subprocess
import wave
from functools import lru_cache

import numpy as np

from agent.types import SPEECH_RATE_HZ, FloatArray
from tests.rig.programs import require_program
from tests.rig.voices import say

SENTENCES = (
    "The museum opens at ten and closes at six, except on Mondays, when it stays shut all day.",
    "I found three recipes that need nothing but flour, eggs, butter and a little patience.",
    "Your appointment has been moved to Thursday afternoon, a quarter past three.",
    "Most of the rain will fall before noon, and the evening should be dry and rather mild.",
    "If you turn left behind the bakery, you will see the entrance on the other side.",
    "The battery lasts about eleven hours, a bit less when the screen is very bright.",
    "She wrote her first novel in a kitchen, between two shifts at the hospital.",
    "Let me check that for you. Yes, there are still four seats left in the second row.",
    "In the year eighteen sixty nine the canal was opened, after ten years of work.",
    "Mix the two powders carefully, add water, and wait until the bubbles have gone.",
    "That is a good question, and the honest answer is that nobody knows for certain.",
    "You have two new messages, one from your sister and one from the garage.",
    "The shortest way takes forty minutes, but the road along the coast is far nicer.",
    "First we measure the window, then we cut the board, and only then we drill the holes.",
    "Penguins can hold their breath for more than twenty minutes and dive very deep.",
    "I would not worry about it. Prices usually fall again at the end of the season.",
)
ESPEAK_VOICES = ("en-us", "en-gb+f3", "en-us+m3", "en-gb-scotland+f2", "en-us+f4", "en-gb+m5")
FLITE_VOICES = ("slt", "rms", "awb", "kal16")


def sentence(random: np.random.Generator, voice: str, level_dbfs: float) -> FloatArray:
    """One of the sentences [T] at 24 kHz."""
    text = SENTENCES[random.integers(len(SENTENCES))]
    if voice not in FLITE_VOICES:
        return say(text, SPEECH_RATE_HZ, voice, level_dbfs)
    spoken = _flite(text, voice)
    return spoken * np.float32(10 ** (level_dbfs / 20) / np.sqrt(np.mean(spoken**2)))


def any_voice(random: np.random.Generator) -> str:
    """The name of an espeak-ng or flite voice."""
    return str(random.choice((*ESPEAK_VOICES, *FLITE_VOICES)))


def monologue(random: np.random.Generator, seconds: float, voice: str) -> FloatArray:
    """Sentence after sentence with pauses between them, [T] at 24 kHz, at −23 dBFS or so."""
    pieces, missing = [], round(seconds * SPEECH_RATE_HZ)
    while missing > 0:
        pause = np.zeros(int(random.uniform(0.1, 0.5) * SPEECH_RATE_HZ), np.float32)
        pieces += [sentence(random, voice, -23.0), pause]
        missing -= len(pieces[-2]) + len(pause)
    return np.concatenate(pieces)[: round(seconds * SPEECH_RATE_HZ)]


@lru_cache(maxsize=64)
def _flite(text: str, voice: str) -> FloatArray:
    program = require_program("flite", "flite")
    command = [program, "-voice", voice, "-t", text, "-o", "/dev/stdout"]
    result = subprocess.run(command, check=True, capture_output=True)
    with wave.open(io.BytesIO(result.stdout)) as file:
        pcm = np.frombuffer(file.readframes(1 << 30), "<i2").astype(np.float32) / 32768
        rate_hz = file.getframerate()
    # Padding the spectrum is an exact change of rate, good enough off line.
    size = round(len(pcm) * SPEECH_RATE_HZ / rate_hz)
    spoken: FloatArray = np.fft.irfft(np.fft.rfft(pcm), size).astype(np.float32)
    return spoken * np.float32(SPEECH_RATE_HZ / rate_hz)
