"""What a call's attendants ask of the model, held against its own prompt and the tiny weights."""

import dataclasses
import functools
from contextlib import nullcontext

import numpy as np
import pytest

from agent.attendants.asides import Asides, PictureReader
from agent.attendants.asking import Asker
from agent.attendants.decision import decision_request
from agent.attendants.record import CallRecord, Utterance
from agent.attendants.transcriber import transcript_request
from agent.attendants.transcript import Entry
from agent.chat_types import ChatRequest, ChatSound, ChatText, ChatToolCall
from agent.duplex.chat import Chat
from agent.duplex.chat_prompt import lay_out_chat
from agent.duplex.content import Senses
from agent.duplex.model import DuplexModel
from agent.duplex.tokens import Token
from agent.realtime.question import Question, Said
from agent.telemetry import Telemetry
from agent.types import FloatArray, Tool, Transcription
from tests.rig import tiny_mind
from tests.rig.answer_voice import pieces_of
from tests.rig.attended_call import CHATTING, ScriptedChats

HOURS = Tool(
    "opening_hours",
    "When the shop is open.",
    '{"type":"object","properties":{"day":{"type":"string"}},"required":["day"]}',
)


@functools.cache
def model() -> DuplexModel:
    return dataclasses.replace(tiny_mind.tiny_mind(), vocabulary=tiny_mind.real_vocabulary())


def sound(seconds: float) -> FloatArray:
    noise = np.random.default_rng(1).uniform(-0.1, 0.1, round(seconds * 16_000))
    return noise.astype(np.float32)


def laid_out(request: ChatRequest) -> tuple[str, int]:
    """The prompt in words, and how many sounds are in it."""
    laid = lay_out_chat(model().vocabulary, request, Senses())
    return model().vocabulary.text(laid.ids), len(laid.sound_bounds)


def begins_aloud(request: ChatRequest) -> bool:
    """Whether the answer begins as one that is spoken."""
    return Token.TTS_BOS in lay_out_chat(model().vocabulary, request, Senses()).ids


def answered(request: ChatRequest) -> int:
    """How many tokens the model, whose words mean nothing, answers with."""
    used = tiny_mind.runner(model(), context_tokens=2048)
    pieces = pieces_of(Chat(used, dataclasses.replace(request, max_tokens=8)), used)
    return sum(piece.tokens for piece in pieces)


def conversation() -> list[Entry]:
    called = ChatToolCall("call_1", "opening_hours", '{"day": "Monday"}')
    return [
        Entry("item_1", "user", "And on Monday?"),
        Entry("item_2", "assistant", call=called, result="from nine"),
        Entry("item_3", "assistant", "From nine", is_cut=True),
        Entry("item_4", "user", sound=sound(1.5)),
        Entry("item_5", "assistant", "Well,"),
    ]


@pytest.mark.parametrize("choice", ["auto", "required", "opening_hours"])
def test_golden_a_decision_is_asked_in_the_model_s_own_template(choice: str) -> None:
    request = decision_request(conversation(), "item_4", [HOURS], choice)
    prompt, sounds = laid_out(request)
    assert sounds == 1
    order = [
        "You listen to a voice call",
        "<tools>",
        '"name": "opening_hours"',
        "</tools>",
        "And on Monday?",
        "<tool_call>",
        '"day": "Monday"',
        "</tool_call>",
        "<tool_response>\nfrom nine\n</tool_response>",
        "From nine — (interrupted)",
    ]
    at = 0
    for words in order:
        at = prompt.find(words, at)
        assert at >= 0, f"{words} is not where it should be in {prompt}"
    assert "Well," not in prompt, "how the agent began to answer tells nothing"
    assert not begins_aloud(request), "functions are called in writing, whatever was heard"
    assert answered(request) > 0


async def asked_aside(question: Question) -> ChatRequest:
    """What the model is asked for an out-of-band response."""
    asker = Asker(ScriptedChats(CHATTING), 1)
    pictures, telemetry = PictureReader(), Telemetry()
    asides = Asides(CallRecord(), asker, pictures, nullcontext, telemetry)
    return await asides._request(question)


async def test_golden_an_out_of_band_question_is_asked_in_the_model_s_own_template() -> None:
    called = ChatToolCall("call_1", "opening_hours", '{"day": "Monday"}')
    said = (
        Said("user", (ChatText("And on Monday?"),)),
        Said("assistant", calls=(called,)),
        Said("tool", (ChatText("from nine"),)),
        Said("assistant", (ChatText("From nine."),)),
        Said("user", (ChatSound(sound(1.5)), ChatText("What does he want?"))),
    )
    request = await asked_aside(Question("Judge.", said, (HOURS,)))
    prompt, sounds = laid_out(request)
    assert sounds == 1
    at = 0
    for words in ("system\nJudge.", "<tools>", "And on Monday?", "<tool_call>", "from nine\n",
                  "assistant\nFrom nine.", "What does he want?\nassistant"):  # fmt: skip
        at = prompt.find(words, at)
        assert at >= 0, f"{words} is not where it should be in {prompt}"
    assert answered(request) > 0


async def test_golden_instructions_alone_are_enough_to_answer() -> None:
    request = await asked_aside(Question("Say good day.", ()))
    prompt, _ = laid_out(request)
    assert "system\nSay good day.\nassistant" in prompt
    assert answered(request) > 0


def test_golden_a_transcript_is_asked_in_the_model_s_own_words() -> None:
    utterance = Utterance("item_1", sound(2.0), 0.0)
    request = transcript_request(utterance, Transcription(), "en")
    prompt, sounds = laid_out(request)
    assert sounds == 1
    assert "Please listen to the audio snippet carefully and transcribe the content.\n" in prompt
    assert begins_aloud(request), "as the reference has what was heard answered"
    assert answered(request) > 0
