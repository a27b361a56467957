"""Half-duplex sessions against the outputs of the public reference, in float32 on the CPU.

Every forward of the LLM, every vector of sound, every call of the speech LM. Deliberate deviations
that are set aside to compare: the reference lost the floor of its mel after the first session (put
back for the others), bans what cannot be read aloud in silent replies too (`parity`), and in two
sessions fed live sound with an overlap that it then did not cut off (the layout is set so). Not
compared are its rounds, whose lengths are those of text tokenised anew; ours are true.
"""

import dataclasses
import functools
from collections.abc import Generator
from typing import Any

import pytest
import torch
from torch import Tensor

from agent.chat_types import ChatPart, ChatPicture, ChatSound, ChatText
from agent.duplex import content, turn_memory
from agent.duplex.answer import AnswerPiece
from agent.duplex.conversation_settings import ConversationSettings
from agent.duplex.half_duplex import HalfDuplexConversation
from agent.duplex.half_duplex_rules import HalfDuplexRules
from agent.duplex.mel import TURN_BASED, offline_mel
from agent.duplex.model import DuplexModel
from agent.duplex.prompt import Content, Message, SoundSpan
from agent.duplex.sampling import TextSampling, speech_distribution
from agent.duplex.work import Choose, HearLive, HearRecording, Read, SpeakOn, Work
from tests.rig import tiny_mind
from tests.rig import tiny_model as tiny

LIMIT = 1e-5
GOLDEN = tiny.golden_tensors("chat_tiny.safetensors")
SESSIONS = tiny.golden_json("chat_cases.json")["half_duplex"]
NAMES = [session["name"] for session in SESSIONS]


@functools.cache
def model() -> DuplexModel:
    return dataclasses.replace(tiny_mind.whole_mind(), vocabulary=tiny_mind.real_vocabulary())


class _Session:
    """Plays a recorded session and compares all that it asks of the model."""

    def __init__(self, session: dict[str, Any]) -> None:
        self.name = session["name"]
        self.errors: dict[str, float] = {}
        self._steps = session["steps"]
        self._used = tiny_mind.runner(model())
        first = self._steps[0]
        opens = first["role"] != "user"
        talks = [step["generate"] for step in self._steps if "generate" in step]
        self._settings = ConversationSettings(
            text=TextSampling(greedy=True, length_penalty=1.0),
            speaks=any("speech_script" in one for one in talks),
            parity=True,
        )
        system, voice = self._system(first) if opens else (None, None)
        self.talk = HalfDuplexConversation(self._used, system, voice, self._settings)
        self._forwards: list[dict[str, Any]] = []
        self._key = ""

    def run(self) -> None:
        for number, step in enumerate(self._steps):
            self._key = f"half.{self.name}.{number}"
            self._forwards = list(step["forwards"])
            if "error" in step:
                return  # the reference cannot do it
            if "generate" in step:
                self._answer(step)
            else:
                self._read(number, step)
            assert not self._forwards
            assert self.talk.context_tokens == step["cache_after"]
            cached = self.talk._memory.audio.cached_frames
            assert cached == step["audio_encoder_cache_after"]

    # ---- what is read -----------------------------------------------------------------------

    def _system(self, step: dict[str, Any]) -> tuple[Message, Tensor | None]:
        """The opening; newlines where the session joined its parts by them."""
        joins = [] if step["options"].get("omni_mode", True) else ["\n"]
        parts: list[Content] = []
        voices = []
        for part in step["content"]:
            parts += joins if parts else []
            if isinstance(part, str):
                parts.append(part)
                continue
            mels = content.offline_mel(tiny.recipe().audio(*part["audio"]))
            voices.append(torch.cat(model().ears.hear_recordings(mels, None)))
            parts.append(SoundSpan(len(voices[-1])))
            self._compare(f"half.{self.name}.0.audio_vectors.0", voices[-1])
        return Message(step["role"], tuple(parts)), torch.cat(voices) if voices else None

    def _read(self, number: int, step: dict[str, Any]) -> None:
        if number == 0 and step["role"] != "user":
            return self._drive(self.talk.open_steps())
        options = step["options"]
        if step["role"] != "user":
            return self._drive(self.talk.remark_steps("".join(step["content"])))
        slices = options.get("max_slice_nums", 1)
        self.talk.update(dataclasses.replace(self._settings, max_slices=slices))
        if step.get("audio_path") == "streaming":
            return self._drive(self._live(step))
        parts = [_part(part) for part in step["content"]]
        joined = options.get("omni_mode", True)
        return self._drive(self.talk.read_steps(parts, joined=joined))

    def _live(self, step: dict[str, Any]) -> Generator[Work, None, None]:
        (sound,) = [one for one in step["content"] if "audio" in one]
        pictures = [one["picture"] for one in step["content"] if "picture" in one]
        return self.talk.hear_live_steps(
            tiny.recipe().audio(*sound["audio"]),
            [tiny.recipe().picture(*one) for one in pictures],
            is_last=step["options"].get("is_last_chunk", False),
        )

    def _drive(self, steps: Generator[Work, None, Any], script: list[int] | None = None) -> Any:
        while True:
            try:
                work = next(steps)
            except StopIteration as stop:
                return stop.value
            if isinstance(work, SpeakOn):
                self._speak(work)
                continue
            before = work.stream.length if isinstance(work, Read) else 0
            work.run(model(), self._used.slots)
            if isinstance(work, Read):
                self._compare_forward(before, work)
            elif isinstance(work, HearLive | HearRecording):
                self._compare(f"{self._key}.audio_vectors.0", work.vectors)
            if isinstance(work, Choose | Read) and work.choice and script is not None:
                self._choose(work, script.pop(0))

    def _compare(self, key: str, ours: Tensor) -> None:
        self.errors[key] = tiny.compare(key, ours, GOLDEN[key])

    def _compare_forward(self, start: int, work: Read) -> None:
        golden = self._forwards.pop(0)
        assert [start, work.count] == [golden["start"], golden["length"]]
        logits = model().llm.logits(work.state)
        size, name = float(logits.abs().max()), f"{self._key}.forward{start}"
        off = logits[golden["top_ids"]] - torch.tensor(golden["top_logits"])
        self.errors[name] = float(off.abs().max()) / size
        off = logits.topk(8).values - torch.tensor(golden["top_logits"])
        self.errors[f"{name}.largest"] = float(off.abs().max()) / size
        off_sum = float(logits.logsumexp(-1)) - golden["logsumexp"]
        self.errors[f"{name}.sum"] = abs(off_sum) / abs(golden["logsumexp"])

    # ---- what is answered -------------------------------------------------------------------

    def _answer(self, step: dict[str, Any]) -> None:
        asked = step["generate"]
        self.talk._rules = HalfDuplexRules(
            max_tokens=asked["max_new_tokens"],
            thinking=asked.get("enable_thinking", False),
            tts_template=asked.get("use_tts_template", True),
        )
        penalty = asked.get("length_penalty", 1.0)
        text = TextSampling(greedy=True, length_penalty=penalty)
        self.talk.update(dataclasses.replace(self._settings, text=text))
        self._step, self._codes = step, list(asked.get("speech_script", ()))
        self._turn_codes: list[int] = []
        self._drawn: list[Tensor] = []
        self._calls = 0
        self._forced = "script" in asked
        script = list(asked.get("script") or [one for ids in step["chunks"] for one in ids])
        pieces: list[AnswerPiece] = []
        while not pieces or pieces[-1].finish is None:
            pieces.append(self._drive(self.talk.answer_steps(), script))
        self._check_answer(step, pieces, script)

    def _choose(self, work: Choose | Read, token: int) -> None:
        """Greedy, and not forced: the golden token is the likeliest, or as likely as that."""
        if not self._forced:
            raw = model().llm.logits(work.state)
            assert work.choice is not None
            likely = work.choice.sampler.penalised(raw, work.choice.drawing)
            assert float(likely.max() - likely[token]) < LIMIT * float(raw.abs().max())
        work.token = token

    def _check_answer(
        self, step: dict[str, Any], pieces: list[AnswerPiece], left: list[int]
    ) -> None:
        assert left == []
        yielded, text = step["yielded"], "".join(piece.text for piece in pieces)
        speaks = "speech_script" in step["generate"]
        assert text == "".join(one[1] if speaks else one[0] for one in yielded)
        if speaks:
            self._check_speech(step, pieces)
            assert pieces[-1].finish == "stop"
            return
        assert [piece.text for piece in pieces if piece.text] == [one[0] for one in yielded]
        assert (pieces[-1].finish == "stop") == yielded[-1][1]

    # ---- what is spoken ---------------------------------------------------------------------

    def _speak(self, work: SpeakOn) -> None:
        """A whole call as it was recorded, its tokens given."""
        call, golden = work.call, self._step["speech_calls"][self._calls]
        speech, turn = model().speech, self._used.slots.speech
        condition = speech.condition(call.said, call.states, text_ended=call.text_ended)
        self._compare(f"{self._key}.speech_call{self._calls}.condition", condition)
        assert len(condition) == golden["condition_tokens"]
        assert call.text_ended == golden["text_finished"]
        assert work.stream.length == golden["start_position"]
        assert list(call.before) == self._turn_codes[-16:]
        end = self._codes.index(speech.config.audio_eos)
        call.tokens, self._codes = self._codes[:end], self._codes[end + 1 :]
        read = torch.cat([condition, speech.embed_codes(torch.tensor(call.tokens))])
        logits = speech.logits(speech.read(read, work.stream, turn)[len(condition) - 1 :])
        for row, logit in enumerate(logits):
            before = torch.tensor([*call.before, *call.tokens[:row]], dtype=torch.long)
            self._drawn.append(speech_distribution(logit, before[-16:], work.sampling, None))
        self._turn_codes += call.tokens
        call.ended = True
        self._calls += 1

    def _check_speech(self, step: dict[str, Any], pieces: list[AnswerPiece]) -> None:
        groups = [tokens for call in step["speech_calls"] for tokens, _ in call["groups"]]
        spoken = [token for piece in pieces for token in piece.speech_tokens]
        assert spoken == [token for group in groups for token in group]
        assert self._calls == len(step["speech_calls"]) and not self._codes
        top = torch.stack(self._drawn).topk(8)
        self._compare(f"{self._key}.sampler.top_probabilities", top.values)
        key = f"{self._key}.sampler.top_ids"
        real = GOLDEN[f"{self._key}.sampler.top_probabilities"] > 0
        self.errors[key] = tiny.compare(key, top.indices[real], GOLDEN[key][real])


def _part(part: Any) -> ChatPart:
    if isinstance(part, str):
        return ChatText(part)
    if "picture" in part:
        return ChatPicture(tiny.recipe().picture(*part["picture"]))
    return ChatSound(tiny.recipe().audio(*part["audio"]))


@pytest.mark.parametrize("name", NAMES)
def test_golden_half_duplex_session(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    number = NAMES.index(name)
    session = SESSIONS[number]
    overlap = session["constants"]["CNN_REDUNDANCY_MS"] // 10
    layout = dataclasses.replace(TURN_BASED, overlap_frames=overlap)
    monkeypatch.setattr(turn_memory, "TURN_BASED", layout)
    floored = functools.partial(offline_mel, floored=number == 0)
    monkeypatch.setattr(content, "offline_mel", floored)
    played = _Session(session)
    played.run()
    wanted = {key for key in GOLDEN if key.startswith(f"half.{name}.")}
    assert wanted <= played.errors.keys()
    assert max(played.errors.values()) < LIMIT, {
        k: e for k, e in played.errors.items() if e >= LIMIT
    }


def test_golden_live_sound_longer_than_a_second() -> None:
    """The deviation: the reference fails at it; here it is the same as second by second."""
    session = next(one for one in SESSIONS if any("error" in step for step in one["steps"]))
    step = next(step for step in session["steps"] if "error" in step)
    sound = tiny.recipe().audio(*step["content"][0]["audio"])
    lengths = []
    for pieces in ([sound], [sound[:16_000], sound[16_000:20_000], sound[20_000:]]):
        talk = HalfDuplexConversation(tiny_mind.runner(model()), None)
        for index, piece in enumerate(pieces):
            steps = talk.hear_live_steps(piece, is_last=index == len(pieces) - 1)
            talk._runner.run(steps)
        lengths.append(talk.context_tokens)
    assert lengths[0] == lengths[1] > 3 + 12 * int(step["content"][0]["audio"][0])


def test_golden_header_of_an_unasked_answer() -> None:
    """Nothing to compare with, but made of the reference's own parts: the answer before is closed
    as a user's turn would close it."""
    talk = HalfDuplexConversation(tiny_mind.runner(model()), None)
    talk.script = iter([9707, 151704, 9707, 151704])
    talk._runner.run(talk.read_text("Hi"))
    talk._runner.run(talk.answer_steps())
    before = talk.context_tokens
    talk._runner.run(talk.answer_steps())
    assert talk.context_tokens == before + 11 + 1
