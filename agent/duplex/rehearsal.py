"""Units of nobody, done before the first call: so it is known what batches take, and what starts at
first use has started."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median

import numpy as np
import torch

from agent.duplex.audio_encoder import BLOCK_FRAMES, SECOND_MEL_FRAMES, AudioStream
from agent.duplex.call_parts import CallParts
from agent.duplex.kv_cache import KvStream
from agent.duplex.pictures import patch_picture
from agent.duplex.random_source import RandomSource
from agent.duplex.sampling import Drawing, History, SpeechSampling, TextSampler, TextSampling
from agent.duplex.speech_lm import UNIT_SPEECH_TOKENS
from agent.duplex.work import Choice, Hear, Look, Read, Speak, Voice, Work
from agent.errors import EngineError
from agent.scheduler import ENOUGH, Costs

SIZES = (1, 8, 32)
"""Calls at once, as far as there are slots."""
_TIMES = 4
_UNIT_POSITIONS = 14
_SAID = (97, 98, 99, 100, 101)
_PICTURE_PX = 448


def rehearse(parts: CallParts, costs: Costs, sizes: Iterable[int] = SIZES) -> None:
    """Do a unit's works for so many calls at once, each a few times, and keep what they take.

    While nobody has a slot. EngineError when something cannot be done, VocoderError among them;
    RequestError where there is no voice to speak with.
    """
    fitting = sorted({min(size, parts.runner.slots.count) for size in sizes})
    for stage, works in _kinds(parts, fitting[-1]).items():
        for size in fitting:
            _took(parts, works(size))  # the first time is another one
            done = [_took(parts, works(size)) for _ in range(_TIMES)]
            costs.took(stage, done[0][0], median(seconds for _, seconds in done), times=ENOUGH)


def _took(parts: CallParts, works: Sequence[Work]) -> tuple[int, float]:
    """Begin what can be begun together → how many works that were, and seconds."""
    runner = parts.runner
    lane = runner.lane(works[0].lane)
    count = lane.count(works)
    begun_s = runner.clock.now_s()
    failures = lane.begin(works[:count]).finish()
    seconds = runner.clock.now_s() - begun_s
    voiced = [work.error for work in works if isinstance(work, Voice) and work.error is not None]
    for failure in [*failures.values(), *voiced]:
        raise EngineError(f"a unit cannot be rehearsed: {failure}") from failure
    return count, seconds


def _kinds(parts: CallParts, most: int) -> Mapping[str, Callable[[int], Sequence[Work]]]:
    """By stage, what so many calls of middle age ask for, `most` or fewer."""
    model, slots = parts.runner.model, parts.runner.slots
    target, needed = model.target, model.config.parts
    sampler, source = TextSampler(TextSampling(), model.banned), RandomSource(0)
    vectors = torch.zeros(
        _UNIT_POSITIONS, model.config.llm.width, device=target.device, dtype=target.dtype
    )
    mel = torch.zeros(model.config.audio.mel_bands, SECOND_MEL_FRAMES)
    pixels = np.zeros((_PICTURE_PX, _PICTURE_PX, 3), np.uint8)
    heard = slots.audio.positions // 2 // BLOCK_FRAMES * BLOCK_FRAMES

    def read(slot: int, ids: Sequence[int], senses: torch.Tensor | None) -> Read:
        choice = Choice(sampler, Drawing(History(1), source, may_listen=True))
        return Read(KvStream(slot, slots.llm.positions // 2), ids, senses, choice)

    def speak(slot: int) -> Speak:
        stream = KvStream(slot, slots.speech.positions // 2)
        states = [vectors[0]] * len(_SAID)
        return Speak(_SAID, states, stream, SpeechSampling(), source, may_end=False)

    kinds: dict[str, Callable[[int], Sequence[Work]]] = {
        "audio": lambda n: [Hear(mel, AudioStream(at, heard, 2)) for at in range(n)],
        "prefill": lambda n: [read(at, (), vectors) for at in range(n)],
        "decode": lambda n: [read(at, _SAID[:1], None) for at in range(n)],
    }
    if needed.vision:
        kinds["vision"] = lambda n: [Look(patch_picture(pixels)) for _ in range(n)]
    if needed.speech and parts.vocoder is not None:
        kinds["speech"] = lambda n: [speak(at) for at in range(n)]
        voice, vocoder = parts.voices.resolve(""), parts.vocoder
        turns = [vocoder.open(voice) for _ in range(most)]
        kinds["vocoder"] = lambda n: [Voice(turn, range(UNIT_SPEECH_TOKENS)) for turn in turns[:n]]
    return kinds
