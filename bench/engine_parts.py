"""What `bench.engine` measures: engines as they are served, on random weights of full size.

`make_engine` is the one place where they are put together: by `agent.engines.minicpm_o.parts_of`,
which serves calls, and then with what calls say written beforehand.
"""

import gc
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from agent.clock import SYSTEM_CLOCK, Clock
from agent.duplex.call_parts import CallParts
from agent.duplex.config import Numerics, parse_config
from agent.duplex.engine import DuplexEngine
from agent.duplex.lanes import LANES, Runner
from agent.duplex.model import DuplexModel, load_model
from agent.duplex.rehearsal import rehearse
from agent.duplex.slots import Slots, SlotSizes
from agent.duplex.tokens import WRITTEN, Vocabulary
from agent.engines import EngineSettings, ModelSettings, VoiceSettings
from agent.engines.minicpm_o import abilities, parts_of
from agent.scheduler import Relief
from agent.torch_parts.checkpoint import Target
from agent.types import SessionSettings
from agent.vocoder.config import DitConfig, EncoderConfig, FlowConfig
from agent.vocoder.preparing import FITS, vocoder_key
from agent.vocoder.voice_store import VoiceStore
from bench import random_model, random_vocoder
from bench.engine_script import TURN_UNITS, DecidedLane, WholeSeconds, WrittenAnswers, plans
from bench.engine_trace import Trace
from bench.random_vocoder import VocoderSizes, random_prompt, write_token2wav

ASSETS = Path(__file__).resolve().parent.parent / "assets"
SETTINGS = SessionSettings(model="minicpm-o")
_SEED = 1
_PROMPT_TOKENS = 150
"""A voice of six seconds."""
_TINY_PROMPT_TOKENS = 30
_TINY_ENCODER = EncoderConfig(16, 2, 8, 32, token_layers=2, mel_layers=1)
_TINY_VOCODER = VocoderSizes(
    FlowConfig(6561, 192, 80, 0.7, _TINY_ENCODER, DitConfig(80, 16, 32, 2, 2, 8)), hift_channels=16
)
_GB = 1e9


# ---- words --------------------------------------------------------------------------------------

_SPECIAL = {written: int(token) for token, written in WRITTEN.items()}
_PIECES = re.compile("|".join([*map(re.escape, _SPECIAL), r"\w+", r"[^\w\s]"]))
_FIRST_WORD, _WORDS = 1000, 100_000


class Words:
    """A token a word, so that prompts are about as long as they are: a tokenizer without files."""

    def encode(self, text: str) -> list[int]:
        return [_id(piece) for piece in _PIECES.findall(text)]

    def decode(self, ids: Sequence[int]) -> str:
        return "word " * len(ids)


def _id(piece: str) -> int:
    known = _SPECIAL.get(piece)
    return _FIRST_WORD + zlib.crc32(piece.encode()) % _WORDS if known is None else known


VOCABULARY = Vocabulary(Words(), unspeakable=(42, 43))


# ---- the model ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bed:
    """Weights, loaded once for all that is measured, and a folder with a vocoder and its voices."""

    weights: DuplexModel
    folder: Path
    graphs: bool = True
    """Whether engines of it have CUDA graphs; without, all of them are eager."""

    @property
    def device(self) -> torch.device:
        return self.weights.target.device

    @property
    def voice(self) -> VoiceSettings:
        """The vocoder as it is served."""
        folders = (self.folder / "token2wav", self.folder / "voices")
        return VoiceSettings("token2wav", *folders, graphs=self.graphs)


def make_bed(
    device: torch.device, folder: Path, numerics: Numerics | None = None, *, tiny: bool = False
) -> Bed:
    """Random weights on `device`; the vocoder's files are written into `folder` first.

    `tiny` takes the model of the tests, whose decisions and sizes mean nothing, on the CPU.
    """
    write_voice(folder, tiny=tiny)
    if tiny:
        from tests.rig.tiny_mind import tiny_mind

        return Bed(replace(tiny_mind(), vocabulary=VOCABULARY), folder)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    return Bed(random_weights(Target(device, dtype), numerics or Numerics()), folder)


def random_weights(target: Target, numerics: Numerics) -> DuplexModel:
    """The model at full size, with words of the usual length."""
    config = parse_config(random_model.FULL_SIZE)
    source = random_model.RandomSource(config)
    return load_model(source, config, VOCABULARY, target=target, numerics=numerics)


def write_voice(folder: Path, *, tiny: bool = False) -> None:
    """A vocoder's folder, and what every built-in voice becomes for it; once."""
    vocoder = folder / "token2wav"
    if (vocoder / "hift.pt").is_file():
        return
    sizes = _TINY_VOCODER if tiny else random_vocoder.FULL_SIZE
    store = VoiceStore(folder / "voices", ASSETS / "ref_audio")
    key = vocoder_key(write_token2wav(vocoder, sizes), FITS["token2wav"])
    prompt = random_prompt(_TINY_PROMPT_TOKENS if tiny else _PROMPT_TOKENS, sizes)
    for voice in store.voices():
        store.keep_prompt(voice.digest, key, prompt)


# ---- engines ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wanted:
    """How an engine is to be: its places, how much each holds, which share of its units is spoken
    and how many of them a turn has."""

    slots: int = 1
    context_tokens: int = 8192
    speak: float = 0.5
    turn_units: int = TURN_UNITS


class _NoRelief(Relief):
    def unit_over(self, call: int, late_s: float, *, sees: bool) -> None:
        """Nothing follows from it."""


@dataclass(frozen=True, slots=True)
class Made:
    """An engine, and what its calls share."""

    core: DuplexEngine
    parts: CallParts
    wanted: Wanted
    served: CallParts
    """The same, of which nothing is decided beforehand."""
    answers: WrittenAnswers
    """What its chats say."""

    @property
    def has_lanes(self) -> bool:
        """Whether it does its work in lanes of the device; else it is eager throughout."""
        return bool(self.served.runner.lanes)

    def renewed(self) -> "Made":
        """As it was when it was made: no call, and no memory of what was late."""
        return replace(self, core=_rehearsed(self.parts, self.served))

    @property
    def device(self) -> torch.device:
        return self.parts.runner.model.target.device

    def admit_all(self) -> None:
        """Take calls also where they will make others late: that is to be measured."""
        vars(self.core._admission)["fits"] = lambda *demands: True

    def look_at_all(self) -> None:
        """Leave no picture out, however late a unit is: its time is to be measured."""
        self.core._relief = _NoRelief()

    def admit_as_served(self) -> None:
        """Refuse them again."""
        vars(self.core._admission).pop("fits", None)


def make_engine(
    bed: Bed, wanted: Wanted, clock: Clock = SYSTEM_CLOCK, trace: Trace | None = None
) -> Made:
    """As it is served; what was taken of the device's memory before does not count as its peak.

    With a `trace` its lanes are noted there.
    """
    forget_peak(bed.device)
    model = ModelSettings(Path(), context_tokens=wanted.context_tokens, graphs=bed.graphs)
    settings = EngineSettings(ASSETS, wanted.slots, model, bed.voice)
    made = _decided(parts_of(bed.weights, model, settings), wanted, clock, trace)
    settle()
    return made


def make_eager(made: Made, wanted: Wanted) -> Made:
    """Slots of its own, the same weights and voice, and no lane but the plain modules."""
    shared = made.parts.runner
    sizes = SlotSizes(slots=wanted.slots, context_tokens=wanted.context_tokens)
    slots = Slots(shared.model.config, sizes, shared.model.target)
    runner = Runner(shared.model, slots, shared.clock)
    return _decided(replace(made.parts, runner=runner), wanted, shared.clock)


def restarted(made: Made, parts: CallParts) -> Made:
    """A new engine of `parts`, which are those of `made` but for what notes their work."""
    core = DuplexEngine(parts, abilities(parts), parts.runner.clock)
    return replace(made, core=core, parts=parts)


def _decided(parts: CallParts, wanted: Wanted, clock: Clock, trace: Trace | None = None) -> Made:
    served, answers = parts.runner, WrittenAnswers()
    lanes = {name: served.lane(name) for name in LANES}
    plan_of = plans(wanted.speak, wanted.turn_units)
    lanes["llm"] = DecidedLane(served.lane("llm"), plan_of, answers)
    lanes["speech"] = WholeSeconds(served.lane("speech"))
    if trace is not None:
        lanes = {name: trace.lane(name, lane) for name, lane in lanes.items()}
    decided = replace(parts, runner=replace(served, clock=clock, lanes=lanes), seed=_SEED)
    return Made(_rehearsed(decided, parts), decided, wanted, parts, answers)


def _rehearsed(parts: CallParts, served: CallParts) -> DuplexEngine:
    """An engine that knows what batches take, as one that is served."""
    core = DuplexEngine(parts, abilities(parts), parts.runner.clock)
    if served.runner.lanes:
        rehearse(served, core.costs)
    return core


def settle() -> None:
    """As a worker does once all is loaded: or Python looks through it again and again."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


# ---- the device ---------------------------------------------------------------------------------


def finish_device(device: torch.device) -> None:
    """Wait until it has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def taken_gb(device: torch.device) -> float:
    """What is taken of a GPU's memory, be it by what torch does not count; NaN of a CPU's."""
    if device.type != "cuda":
        return float("nan")
    settle()
    finish_device(device)
    torch.cuda.empty_cache()
    free, whole = torch.cuda.mem_get_info(device)
    return (whole - free) / _GB


def most_taken_gb(device: torch.device) -> float:
    """The most that was ever taken since `forget_peak`; NaN of a CPU's memory."""
    if device.type != "cuda":
        return float("nan")
    beside = taken_gb(device) - torch.cuda.memory_reserved(device) / _GB
    return beside + torch.cuda.max_memory_reserved(device) / _GB


def forget_peak(device: torch.device) -> None:
    """What was taken while weights were made is not what is needed to run them."""
    if device.type == "cuda":
        taken_gb(device)
        torch.cuda.reset_peak_memory_stats(device)
