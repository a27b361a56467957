"""The mind against the outputs of the public reference, in float32 on the CPU."""

from typing import Any

import pytest
import torch
from torch import Tensor

from agent.duplex.config import Numerics
from agent.duplex.conversation import Conversation
from agent.duplex.conversation_settings import UnitResult, reference_settings
from agent.duplex.kv_cache import KvStream
from agent.duplex.lanes import Runner
from agent.duplex.model import DuplexModel
from agent.duplex.policy import SpeakingRules
from agent.duplex.prompt import DuplexPrompt
from agent.duplex.random_source import RandomSource
from agent.duplex.sampling import (
    Drawing,
    History,
    SpeechSampling,
    TextSampler,
    TextSampling,
    banned_ids,
    speech_distribution,
)
from agent.duplex.tokens import Vocabulary
from agent.duplex.work import Read, Speak
from agent.types import UNIT_SAMPLES, Unit, VideoFrame
from tests.rig import tiny_mind
from tests.rig import tiny_model as tiny
from tests.rig.tiny_mind import Script

LIMIT = 1e-5
GOLDEN = tiny.golden_tensors()
TRACE = tiny.golden_json("duplex_trace.json")
DECODE_CASES = tiny.golden_json("decode_cases.json")


_IDS = {
    "<|im_start|>system\nStreaming Omni Conversation.\n<|audio_start|>": [
        *(151644, 8948, 198, 76509, 85225, 50830, 624, 151697)
    ],
    "<|audio_end|><|im_end|>": [151699, 151645],
    "\n\nprevious: ": [271, 19702, 25, 220],
}
_WORDS = {9707: "Hello", 1879: " world", 1246: " how", 525: " are", 498: " you", 3351: " today"}


class _TraceCodec:
    """Just the words of the recorded session, so that a clone without a tokenizer can run it."""

    @staticmethod
    def knows(trace: Any) -> bool:
        said = {token for unit in trace["units"] for token in unit["script"] if token < 151643}
        return (
            said <= _WORDS.keys()
            and {trace["system_prefix"], trace["system_suffix"]} <= _IDS.keys()
        )

    def encode(self, text: str) -> list[int]:
        return list(_IDS[text])

    def decode(self, ids: list[int]) -> str:
        return "".join(_WORDS[one] for one in ids)


def _vocabulary() -> Vocabulary:
    if _TraceCodec.knows(TRACE):
        return Vocabulary(_TraceCodec(), unspeakable=())
    return tiny_mind.real_vocabulary()


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest) -> DuplexModel:
    torch.set_num_threads(1)
    return tiny_mind.build_mind(Numerics(attention=request.param), _vocabulary())


def _compare(errors: dict[str, float], **ours: Tensor) -> None:
    for key, tensor in ours.items():
        errors[key] = tiny.compare(key, tensor, GOLDEN[key])


def _check(errors: dict[str, float], prefix: str) -> None:
    assert errors.keys() == {key for key in GOLDEN if key.startswith(prefix)}
    assert max(errors.values()) < LIMIT, {k: e for k, e in errors.items() if e >= LIMIT}


# ---- the recorded session -----------------------------------------------------------------------


class _Session:
    """Runs the trace, and compares every forward of the LLM and every call of the speech LM."""

    def __init__(self, model: DuplexModel) -> None:
        self._model = model
        self._runner = tiny_mind.runner(model)
        self._script = Script()
        self._states: list[Tensor] = []
        self._calls = 0
        self.errors: dict[str, float] = {}
        encode = model.vocabulary.encode
        prompt = DuplexPrompt(
            tuple(encode(TRACE["system_prefix"])), tuple(encode(TRACE["system_suffix"]))
        )
        voice = model.hear_voice(tiny.recipe().audio(3.3, tiny.seed() + 100))
        settings = tiny_mind.free_settings(rules=SpeakingRules(forced_listen_units=0))
        self.talk = Conversation(self._runner, prompt, voice, settings, self._script)

    def run(self) -> None:
        hook = self._model.llm.model.register_forward_hook(
            lambda module, args, states: self._states.append(states[0])
        )
        try:
            last = None
            for unit in TRACE["units"]:
                self._run_unit(unit, last)
                last = unit
            self.talk.flush()
            self._compare_forward(last["forwards"][-1], self._states.pop()[0])
        finally:
            hook.remove()

    def _run_unit(self, unit: dict[str, Any], before: dict[str, Any] | None) -> None:
        self._script.add(unit["script"])
        self.talk.update(
            tiny_mind.free_settings(
                rules=SpeakingRules(forced_listen_units=0), max_slices=unit["max_slice_nums"]
            )
        )
        result = self._step(self.talk, unit)
        assert self._script.left == 0
        assert result.outcome.listened == unit["is_listen"]
        assert result.text == unit["text"]
        assert (result.outcome.ends_turn is not None) == unit["end_of_turn"]
        assert result.context_tokens == unit["cache_after_unit"]
        prefill, *steps = self._states
        if before is not None:  # its terminator came first in this prefill
            self._compare_forward(before["forwards"][-1], prefill[0])
        for number, states in zip(unit["forwards"], [prefill, *steps], strict=False):
            self._compare_forward(number, states[-1])
        assert len(steps) + 2 == len(unit["forwards"])
        self._states.clear()

    def _step(self, talk: Conversation, unit: dict[str, Any]) -> UnitResult:
        sound = tiny.recipe().stream_audio(tiny.seed() + 200)
        start = unit["unit"] * UNIT_SAMPLES
        pictures = tuple(
            VideoFrame(tiny.recipe().picture(*picture), start) for picture in unit["pictures"]
        )
        heard = sound[start : start + UNIT_SAMPLES]
        steps = talk.steps(Unit(unit["unit"], heard, UNIT_SAMPLES, pictures))
        is_first = True
        while True:
            try:
                work = next(steps)
            except StopIteration as stop:
                return stop.value
            if isinstance(work, Speak):
                self._speak(work)
                continue
            work.run(self._model, self._runner.slots)
            if isinstance(work, Read) and is_first:
                assert work.stream.length == unit["cache_after_prefill"]
                is_first = False

    def _compare_forward(self, number: int, state: Tensor) -> None:
        logits = self._model.llm.logits(state)
        top = logits.topk(16)
        name = f"duplex.forward{number:03d}"
        _compare(
            self.errors,
            **{
                f"{name}.top_ids": top.indices,
                f"{name}.top_logits": top.values,
                f"{name}.logsumexp": logits.logsumexp(-1, keepdim=True),
                f"{name}.hidden": state,
            },
        )

    def _speak(self, work: Speak) -> None:
        """The call as it was recorded, its tokens given."""
        call, name = TRACE["speech_calls"][self._calls], f"speech.call{self._calls}"
        self._calls += 1
        speech = self._model.speech
        condition = speech.condition(work.said, work.states)
        assert len(condition) == call["condition_tokens"]
        assert work.stream.length == call["start_position"]
        codes = speech.embed_codes(torch.tensor(call["speech_tokens"]))
        states = speech.read(torch.cat([condition, codes]), work.stream, self._runner.slots.speech)
        logits = speech.logits(states[len(condition) - 1 :])
        top = logits.topk(8)
        _compare(
            self.errors,
            **{
                f"{name}.condition": condition,
                f"{name}.top_ids": top.indices,
                f"{name}.top_logits": top.values,
                f"{name}.logsumexp": logits.logsumexp(-1),
            },
        )
        work.tokens = call["speech_tokens"]


def test_golden_duplex_session(model: DuplexModel) -> None:
    session = _Session(model)
    session.run()
    speech = {key: e for key, e in session.errors.items() if key.startswith("speech.")}
    duplex = {key: e for key, e in session.errors.items() if key.startswith("duplex.")}
    _check(duplex, "duplex.")
    _check(speech, "speech.")


# ---- what tokens are drawn from -----------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(DECODE_CASES)))
def test_golden_decode(number: int) -> None:
    case = DECODE_CASES[number]
    logits = tiny.recipe().logits(case["logits_seed"])
    for token, value in case["overwritten"].items():
        logits[int(token)] = value
    logits = logits.to(getattr(torch, case["dtype"]))
    banned = banned_ids(tiny_mind.real_vocabulary().unspeakable, torch.device("cpu"))
    window = TextSampling().repetition_window
    history = History(window, [(one, 1) for one in case["history"]])
    drawing = Drawing(history, RandomSource(0))
    ids, likely = TextSampler(TextSampling(), banned).distribution(logits, drawing)
    kept = likely > 0
    name = f"decode.case{number}"
    errors: dict[str, float] = {}
    order = ids[kept].argsort()
    golden_order = GOLDEN[f"{name}.ids"].argsort()
    errors[f"{name}.ids"] = tiny.compare(f"{name}.ids", ids[kept], GOLDEN[f"{name}.ids"])
    errors[f"{name}.probabilities"] = tiny.compare(
        f"{name}.probabilities",
        likely[kept][order].float(),
        GOLDEN[f"{name}.probabilities"][golden_order],
    )
    _check(errors, name)
    greedy = TextSampler(TextSampling(greedy=True), banned)
    assert greedy.choose(logits[None], [drawing]) == [case["greedy"]]


def test_golden_speech_sampler() -> None:
    model = tiny_mind.tiny_mind()
    tokens = GOLDEN["sampler.tokens"]
    logits = _teacher_forced(model, GOLDEN["speech.call0.condition"], tokens[:-1])
    eos = model.speech.config.audio_eos
    rows = [
        speech_distribution(logits[step], tokens[:step], SpeechSampling(), eos)
        for step in range(len(tokens))
    ]
    top = torch.stack(rows).topk(GOLDEN["sampler.top_ids"].shape[1])
    errors = {"sampler.tokens": tiny.compare("sampler.tokens", tokens, GOLDEN["sampler.tokens"])}
    _compare(errors, **{"sampler.top_ids": top.indices, "sampler.top_probabilities": top.values})
    _check(errors, "sampler.")


def _teacher_forced(model: DuplexModel, condition: Tensor, tokens: Tensor) -> Tensor:
    used: Runner = tiny_mind.runner(model)
    read = torch.cat([condition, model.speech.embed_codes(tokens)])
    states = model.speech.read(read, KvStream(0), used.slots.speech)
    return model.speech.logits(states[len(condition) - 1 :])


def test_reference_settings_are_the_demo_s() -> None:
    settings = reference_settings()
    assert settings.parity and settings.text.parity and settings.rules.parity
    assert settings.window.mode == "off"
