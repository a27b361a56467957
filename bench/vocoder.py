"""The vocoder at full size with random weights: `python -m bench.vocoder --json`.

On a GPU: the time that a second of sound takes, of one stream and of 32 together, the first sound
of a turn, what a voice and a stream weigh, and how long a recording of six seconds takes to become
a voice; of all that the parts that are named. With `--device cpu` the last alone, for that is what
a machine without a GPU does of it.
"""

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from agent.clock import SYSTEM_CLOCK
from agent.interfaces import VocoderPush, VocoderStream
from agent.torch_parts.checkpoint import Target
from agent.types import FloatArray
from agent.vocoder.cosyvoice2 import ChunkSettings, Cosyvoice2
from agent.vocoder.cosyvoice2_loading import Cosyvoice2Settings, load_cosyvoice2
from agent.vocoder.files import HIFT, HIFT_ORIGINAL
from agent.vocoder.flow import EstimatorMemory
from agent.vocoder.hift_stream import open_tail
from agent.vocoder.loading import (
    Token2wavSettings,
    hift_noise,
    load_hift,
    load_token2wav,
    prepare_graphs,
)
from agent.vocoder.prepared_voice import PreparedVoice
from agent.vocoder.speech_tokenizer import TokenizerConfig
from agent.vocoder.token2wav import StreamSettings, Token2wav
from agent.vocoder.voice import VoicePreparation
from bench.random_preparation import write_preparation
from bench.random_vocoder import (
    FULL_SIZE,
    VocoderSizes,
    random_prompt,
    random_tokens,
    write_cosyvoice2,
    write_token2wav,
)
from bench.report import Report, add_arguments, at_most

StreamT = TypeVar("StreamT", bound=VocoderStream)

HOP_TOKENS = 25
"""A second of sound."""
FIRST_HOP_TOKENS = 12
PROMPT_TOKENS = 150
"""A voice of six seconds."""
TURN_S = 30
_WARM_UP_S = 6
_REPEATS = 12
_PREPARATIONS = 5
_LAUNCHES = 1000
_MEGABYTE = 1e6
_PREPARATION_RATE_HZ = 24_000

PARTS = ("token2wav", "cosyvoice2", "preparation")

TOGETHER = 32
"""Streams whose seconds come at once."""

SECOND_MS = at_most(40)
ONE_SECOND_MS, TOGETHER_MS = at_most(12), at_most(45)
"""Of one stream, and of all that come at once."""
STREAM_MB = at_most(240)
VOICE_MS = at_most(150)
PREPARATION_S = {"cuda": at_most(1), "cpu": at_most(5)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print; 1 when a target was missed, 2 without a GPU that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.vocoder", description=__doc__)
    add_arguments(parser)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; else all")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    parts = options.parts or PARTS
    torch.set_num_threads(options.threads)
    on_gpu = options.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        sys.stderr.write("bench.vocoder: torch finds no GPU; --device cpu measures the rest\n")
        return 2
    report = Report(as_json=options.json, gpu=torch.cuda.get_device_name() if on_gpu else "")
    with tempfile.TemporaryDirectory() as folder:
        if on_gpu:
            target = Target(torch.device("cuda"), torch.float16)
            measure_speech(report, Path(folder), target, parts=parts)
        if "preparation" in parts:
            measure_preparation(report, Path(folder) / "voices", torch.device(options.device))
    return 1 if report.missed else 0


# ---- speech -------------------------------------------------------------------------------------


def measure_speech(
    report: Report,
    folder: Path,
    target: Target,
    sizes: VocoderSizes = FULL_SIZE,
    parts: Sequence[str] = PARTS,
) -> None:
    """All rows of both vocoders, their weights written to `folder` first."""
    # What the libraries take for themselves at the first product is not the model's.
    square = torch.ones(64, 64, device=target.device, dtype=target.dtype)
    square @= square
    _measure_launch(report, square)
    if "token2wav" in parts:
        _measure_token2wav(report, folder / "token2wav", target, sizes)
    if "cosyvoice2" in parts:
        _measure_cosyvoice2(report, folder / "cosyvoice2", target, sizes)


def _measure_token2wav(report: Report, folder: Path, target: Target, sizes: VocoderSizes) -> None:
    token2wav = write_token2wav(folder, sizes, causal=True)
    took_ms: dict[int, float] = {}
    measure_together(report, token2wav, target, sizes)
    for steps in (10, 5):
        vocoder = _loaded(report, f"token2wav_n{steps}", token2wav, steps, target)
        _record_graphs(report, vocoder, 2, told=not took_ms)
        _measure_voice(report, f"token2wav_n{steps}", vocoder, sizes)
        took_ms[steps] = _measure_time(report, f"token2wav_n{steps}", vocoder, sizes)
        del vocoder
    _measure_memories(report, token2wav, target, sizes)
    _measure_hift(report, "classic", token2wav / HIFT_ORIGINAL, target)
    hift_ms = _measure_hift(report, "causal", token2wav / HIFT, target)
    for steps, whole_ms in took_ms.items():
        report.row(f"token2wav_n{steps}_hift_share", hift_ms / whole_ms, "")


def _measure_cosyvoice2(report: Report, folder: Path, target: Target, sizes: VocoderSizes) -> None:
    stream = ChunkSettings(first_hop_tokens=FIRST_HOP_TOKENS)
    settings = Cosyvoice2Settings(graphs=True, stream=stream)
    written, before = write_cosyvoice2(folder, sizes), allocated_mb()
    cosyvoice2 = load_cosyvoice2(written, settings, target)
    report.row("cosyvoice2_loaded_mb", allocated_mb() - before, "MB")
    _measure_voice(report, "cosyvoice2", cosyvoice2, sizes)
    _measure_time(report, "cosyvoice2", cosyvoice2, sizes)
    _measure_streams(report, "cosyvoice2", cosyvoice2, sizes)


def measure_together(report: Report, folder: Path, target: Target, sizes: VocoderSizes) -> None:
    """One stream, and many at once, as a call's seconds come; against the eager way."""
    settings = Token2wavSettings(
        estimator_memory="prompt_plus_recent", stream=StreamSettings(eager=True)
    )
    eager, vocoder = (load_token2wav(folder, settings, target) for _ in range(2))
    before, began_s = taken_mb(), SYSTEM_CLOCK.now_s()
    prepare_graphs(vocoder, TOGETHER)
    _finish_device()
    report.row("token2wav_graphs_capture_s", SYSTEM_CLOCK.now_s() - began_s, "s")
    each_mb = (taken_mb() - before) / TOGETHER
    report.row("token2wav_graphs_stream_mb", each_mb, "MB", target=STREAM_MB, n=TOGETHER)
    prompt = random_prompt(PROMPT_TOKENS, sizes)
    voices = [one.voice(prompt, "anna") for one in (eager, vocoder)]
    pairs = list(zip((eager, vocoder), voices, strict=True))
    for name, streams, limit in (
        ("token2wav_ms_per_s", 1, ONE_SECOND_MS),
        (f"token2wav_{TOGETHER}_streams_ms_per_s", TOGETHER, TOGETHER_MS),
    ):
        seconds = TURN_S if streams == 1 else _WARM_UP_S + _REPEATS
        before_ms, took = (seconds_of(*pair, streams, seconds) for pair in pairs)
        against, median = statistics.median(before_ms), statistics.median(took)
        report.row(name, median, "ms", target=limit, against=against, n=len(took))
        report.row(f"{name}_max", max(took), "ms", against=max(before_ms), n=len(took))
    before_ms, took = (timed(partial(first_sound, *pair), _REPEATS)[1:] for pair in pairs)
    against, median = statistics.median(before_ms), statistics.median(took)
    report.row("token2wav_first_sound_ms", median, "ms", against=against, n=len(took))
    stream, other = (spoken(one.open(voice)) for one, voice in pairs)
    report.row(
        "token2wav_stream_mb",
        other.nbytes / _MEGABYTE,
        "MB",
        target=STREAM_MB,
        against=stream.nbytes / _MEGABYTE,
    )


def first_sound(vocoder: Token2wav, voice: PreparedVoice) -> FloatArray:
    """What a new turn says of its first second of tokens."""
    return vocoder.open(voice).push(random_tokens(HOP_TOKENS).tolist())


def seconds_of(vocoder: Token2wav, voice: PreparedVoice, streams: int, seconds: int) -> list[float]:
    """Milliseconds that each second of so many turns takes, once what comes first is over."""
    turns = [vocoder.open(voice) for _ in range(streams)]
    tokens = random_tokens(seconds * HOP_TOKENS).reshape(seconds, -1).tolist()
    coming = iter(tokens)

    def say() -> None:
        second = next(coming)
        answers = vocoder.begin([VocoderPush(turn, second) for turn in turns]).take()
        assert all(isinstance(answer, np.ndarray) for answer in answers), "every turn speaks"

    return timed(say, seconds)[_WARM_UP_S:]


def _measure_launch(report: Report, square: torch.Tensor) -> None:
    """What the host needs to start a small step: eager time is some thousands of those."""

    def add_many() -> None:
        for _ in range(_LAUNCHES):
            torch.add(square, square)

    add_many()
    took = timed(add_many, _REPEATS)
    report.row("launch_us", statistics.median(took) * 1000 / _LAUNCHES, "µs", n=len(took))


def _loaded(report: Report, name: str, folder: Path, steps: int, target: Target) -> Token2wav:
    before, began_s = allocated_mb(), SYSTEM_CLOCK.now_s()
    vocoder = load_token2wav(folder, _settings(steps, "prompt_plus_recent"), target)
    _finish_device()
    report.row(f"{name}_load_s", SYSTEM_CLOCK.now_s() - began_s, "s")
    report.row(f"{name}_weights_mb", allocated_mb() - before, "MB")
    return vocoder


def _record_graphs(report: Report, vocoder: Token2wav, streams: int, *, told: bool) -> None:
    """As at load, with room for so many turns."""
    before, began_s = taken_mb(), SYSTEM_CLOCK.now_s()
    prepare_graphs(vocoder, streams)
    _finish_device()
    if told:
        report.row("graphs_capture_s", SYSTEM_CLOCK.now_s() - began_s, "s")
        report.row("graphs_mb", taken_mb() - before, "MB")


def _settings(steps: int, memory: EstimatorMemory) -> Token2wavSettings:
    stream = StreamSettings(first_hop_tokens=FIRST_HOP_TOKENS)
    return Token2wavSettings(steps=steps, estimator_memory=memory, stream=stream)


def _measure_voice(
    report: Report, name: str, vocoder: Token2wav | Cosyvoice2, sizes: VocoderSizes
) -> None:
    """From a stored voice to one that can be spoken with: what a call's start may wait for."""
    prompt = random_prompt(PROMPT_TOKENS, sizes)
    settle()
    took = timed(lambda: vocoder.voice(prompt, "anna"), _REPEATS)
    report.row(f"{name}_voice_first_ms", took[0], "ms")
    median = statistics.median(took[1:])
    report.row(f"{name}_voice_ms", median, "ms", target=VOICE_MS, n=len(took) - 1)


def _measure_time(report: Report, name: str, vocoder: Any, sizes: VocoderSizes) -> float:
    """→ milliseconds a second of sound."""
    voice = vocoder.voice(random_prompt(PROMPT_TOKENS, sizes), "anna")
    stream = vocoder.open(voice)
    seconds = iter(random_tokens(TURN_S * HOP_TOKENS).reshape(TURN_S, -1).tolist())
    took = timed(lambda: stream.push(next(seconds)), TURN_S)[_WARM_UP_S:]
    median = statistics.median(took)
    report.row(f"{name}_ms_per_s", median, "ms", target=SECOND_MS, n=len(took))
    report.row(f"{name}_ms_per_s_max", max(took), "ms", n=len(took))
    lookahead = vocoder.flow.config.encoder.lookahead_tokens
    first = random_tokens(FIRST_HOP_TOKENS + lookahead).tolist()
    took = timed(lambda: vocoder.open(voice).push(first), _REPEATS)[1:]
    report.row(f"{name}_first_sound_ms", statistics.median(took), "ms", n=len(took))
    return median


def _measure_memories(report: Report, folder: Path, target: Target, sizes: VocoderSizes) -> None:
    memory: EstimatorMemory
    for memory in ("prompt_plus_recent", "reference"):
        vocoder = load_token2wav(folder, _settings(10, memory), target)
        _measure_streams(report, f"token2wav_n10_{memory}", vocoder, sizes)
        del vocoder


def _measure_streams(report: Report, name: str, vocoder: Any, sizes: VocoderSizes) -> None:
    """What a voice takes, and each of two streams beside it after half a minute of speech."""
    prompt = random_prompt(PROMPT_TOKENS, sizes)
    voice = vocoder.voice(prompt, "anna")
    spoken(vocoder.open(voice))
    before = allocated_mb()
    other = vocoder.voice(prompt, "other")
    report.row(f"{name}_voice_mb", allocated_mb() - before, "MB")
    before = allocated_mb()
    streams = [spoken(vocoder.open(voice)) for _ in range(2)]
    each = (allocated_mb() - before) / len(streams)
    report.row(f"{name}_stream_mb", each, "MB", target=STREAM_MB, n=len(streams))
    del other, streams


def spoken(stream: StreamT) -> StreamT:
    """The stream after half a minute of speech."""
    for second in random_tokens(TURN_S * HOP_TOKENS).reshape(TURN_S, -1).tolist():
        stream.push(second)
    return stream


def _measure_hift(report: Report, generation: str, path: Path, target: Target) -> float:
    """→ milliseconds a second of sound."""
    hift = load_hift(path, target.device)
    noise = hift_noise(hift, 0)
    tail = open_tail(hift, noise)
    mel = torch.randn(1, hift.config.mel_bands, 2 * HOP_TOKENS, device=target.device) - 4
    with torch.inference_mode():
        took = timed(lambda: tail.push(mel).cpu(), TURN_S)[_WARM_UP_S:]
    median = statistics.median(took)
    report.row(f"hift_{generation}_ms_per_s", median, "ms", n=len(took))
    return median


# ---- voices -------------------------------------------------------------------------------------


def measure_preparation(
    report: Report, folder: Path, device: torch.device, size: TokenizerConfig | None = None
) -> None:
    """Six seconds of sound to a voice, its two models written to `folder` first."""
    write_preparation(folder, size)
    began_s = SYSTEM_CLOCK.now_s()
    preparation = VoicePreparation.of_folder(folder, device=device)
    report.row(f"prepare_{device.type}_load_s", SYSTEM_CLOCK.now_s() - began_s, "s")
    sound = _sound()
    settle()
    took = timed(lambda: preparation.prepare(sound, _PREPARATION_RATE_HZ), 1)
    began_core_s = time.process_time()
    took += timed(lambda: preparation.prepare(sound, _PREPARATION_RATE_HZ), _PREPARATIONS)
    core_s = (time.process_time() - began_core_s) / _PREPARATIONS
    limit = PREPARATION_S[device.type]
    report.row(f"prepare_{device.type}_first_s", took[0] / 1000, "s", target=limit)
    again_s = statistics.median(took[1:]) / 1000
    report.row(f"prepare_{device.type}_s", again_s, "s", target=limit, n=_PREPARATIONS)
    # Of all cores together: what it would take whatever else the machine does.
    report.row(f"prepare_{device.type}_core_s", core_s, "s", n=_PREPARATIONS)


def _sound() -> FloatArray:
    """As long as the voice; what it says does not matter."""
    rng = np.random.default_rng(3)
    samples = PROMPT_TOKENS * 960
    return (rng.standard_normal(samples) * 0.1).astype(np.float32)


# ---- measuring ----------------------------------------------------------------------------------


def timed(call: Callable[[], object], repeats: int) -> list[float]:
    """Milliseconds of each of so many calls, to the end of what they started."""
    took = []
    for _ in range(repeats):
        began_s = SYSTEM_CLOCK.now_s()
        call()
        _finish_device()
        took.append((SYSTEM_CLOCK.now_s() - began_s) * 1000)
    return took


def settle() -> None:
    """As a worker does once its models are loaded: or Python looks through them again and again."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def allocated_mb() -> float:
    """What lives in the GPU's memory."""
    settle()
    _finish_device()
    return torch.cuda.memory_allocated() / _MEGABYTE if torch.cuda.is_available() else 0.0


def taken_mb() -> float:
    """What is taken of the GPU's memory, be it by what torch does not count, such as graphs."""
    if not torch.cuda.is_available():
        return 0.0
    settle()
    _finish_device()
    torch.cuda.empty_cache()
    free, whole = torch.cuda.mem_get_info()
    return (whole - free) / _MEGABYTE


def _finish_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    raise SystemExit(main())
