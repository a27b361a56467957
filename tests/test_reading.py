"""Texts read aloud, on the tiny model: prompt, chunks, segments, refusals."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from agent.chat_types import SpeechRequest
from agent.duplex import reading as subject
from agent.duplex.answer import AnswerPiece
from agent.duplex.answer_speech import SpeechRules
from agent.duplex.prompt import READ_ALOUD_ZH, SoundSpan, system_content
from agent.duplex.reading import MAX_CHARACTERS, READ_ALOUD_EN, ReadAll, Reading, Segments
from agent.duplex.tokens import Token
from agent.duplex.work import Read, SpeakOn, Voice, Work
from agent.errors import CapacityError, EngineError, RequestError, VocoderError
from tests.rig.answer_voice import (
    RULES,
    TAIL_SAMPLES,
    VECTORS,
    Choir,
    calls_of,
    close,
    pieces_of,
    run,
    sound_of,
    speaker,
    sung,
    tokens_of,
)
from tests.rig.tiny_mind import LetterCodec, real_vocabulary, runner, tiny_mind


class Read_:
    """A text that was read, and how."""

    def __init__(self, text: str, choir: Choir | None = None, **options: Any) -> None:
        positions, rules = options.pop("positions", 1024), options.pop("rules", RULES)
        self.used, self.choir = runner(context_tokens=positions), choir or Choir()
        self.works: list[Work] = []
        request = SpeechRequest(text, **({"seed": 1} | options))
        self.reading = Reading(self.used, request, replace(speaker(self.choir), rules=rules))
        self.pieces = pieces_of(self.reading, self.used, self.works.append)
        self.calls = calls_of(self.works)

    @property
    def said(self) -> list[str]:
        return [LetterCodec().decode(call.said) for call in self.calls]


def written(ids: Sequence[int]) -> str:
    marks = {int(one): f"<{one.name.lower()}>" for one in Token} | {int(Token.UNKNOWN): "*"}
    return "".join(marks.get(one) or chr(one) for one in ids)


# ---- one segment --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "language", "wording"),
    [
        ("Hello.", "en", READ_ALOUD_EN),
        ("你好。", "en", READ_ALOUD_ZH),
        ("OK。", "zh", READ_ALOUD_ZH),
    ],
)
def test_the_model_is_asked_to_read_in_a_cloned_voice(
    text: str, language: str, wording: str
) -> None:
    request = SpeechRequest(text, language=language)
    reading = Reading(runner(), request, speaker())
    prompt_language = "en" if wording is READ_ALOUD_EN else "zh"
    before, _ = system_content("clone", prompt_language, SoundSpan(3))
    assert written(reading._opening.ids) == (
        f"<im_start>system\n{before}\n<audio_start>***<audio_end><im_end>\n"
    )
    (segment,) = reading._segments
    assert written(segment.asked) == (
        f"<im_start>user\n{wording} {text}<im_end>\n"
        "<im_start>assistant\n<think>\n\n<end_think>\n\n<tts_bos>"
    )
    assert written(segment.said) == text


def test_a_voice_that_the_model_cannot_hear_is_the_reserved_one() -> None:
    reading = Reading(runner(), SpeechRequest("Hello."), speaker(vectors=None))
    first, second = system_content("assistant", "en", None)
    assert written(reading._opening.ids) == f"<im_start>system\n{first}\n{second}<im_end>\n"


def test_a_text_is_said_in_chunks_of_ten_each_heard_at_once() -> None:
    read = Read_("Hello there, who is it?")
    assert read.said == ["Hello ther", "e, who is ", "it?"]
    assert [call.text_ended for call in read.calls] == [False, False, True]
    assert [one.finish for one in read.pieces] == [None] * 6 + ["stop"]
    assert [one.tokens for one in read.pieces] == [10, 0, 10, 0, 3, 0, 0]
    assert not any(one.text or one.reasoning for one in read.pieces)
    tokens = [token for call in read.calls for token in call.tokens]
    assert tokens_of(read.pieces) == read.choir.tokens == tokens
    sound = sound_of(read.pieces)
    assert np.array_equal(sound[:-TAIL_SAMPLES], sung(tokens))
    (stream,) = read.choir.streams
    assert stream.finished and stream.voice == "the key of anna"
    assert read.used.slots.free == 1
    asked = len(f"<>user\n{READ_ALOUD_EN} Hello there, who is it?<>\n<>assistant\n<>\n\n<>\n\n<>")
    assert read.reading.prompt_tokens == len(read.reading._opening.ids) + asked - 6


def test_each_word_comes_with_the_state_at_it() -> None:
    """Against one straightforward pass over the prompt and the text."""
    text = "Hello there, who is it?"
    read = Read_(text)
    other = runner()
    reading = Reading(other, SpeechRequest(text), speaker())
    run(other, reading.begin())
    (segment,) = reading._segments
    vectors = other.model.llm.embed([*segment.asked, *segment.said])
    states = other.model.llm.read(vectors[None], [reading._stream], other.slots.llm)[0]
    states = states[len(segment.asked) :]
    given = torch.stack([state for call in read.calls for state in call.states])
    assert close(given, states)
    lm = other.model.speech
    last = lm.condition(read.calls[-1].said, read.calls[-1].states, text_ended=True)
    expected = lm.emb_text(torch.tensor([*map(ord, "it?"), 151_692, 151_687])).detach()
    meant = lm.projector_semantic(states[-3:]).detach()
    expected[:3] += meant / meant.norm(dim=-1, keepdim=True)
    assert close(last, expected)


def test_the_voice_is_read_where_its_place_is() -> None:
    read = Read_("Hello.")
    opening = torch.cat(
        [one.embeddings(tiny_mind()) for one in read.works if isinstance(one, Read)]
    )
    assert torch.equal(opening[slice(*read.reading._opening.sound_bounds[0])], VECTORS)


def test_a_seed_repeats_a_reading_and_another_does_not() -> None:
    first, again, other = (Read_("Hello.", seed=seed) for seed in (5, 5, 6))
    assert first.choir.tokens == again.choir.tokens != other.choir.tokens
    assert np.array_equal(sound_of(first.pieces), sound_of(again.pieces))


def test_no_work_is_longer_than_a_second_of_speech_or_a_piece_of_the_prompt() -> None:
    read = Read_("Hello there. " * 18, rules=SpeechRules(max_call_tokens=8))
    lengths = [one.count for one in read.works if isinstance(one, Read | ReadAll)]
    assert max(lengths) <= 512 and len(lengths) > 2
    read = Read_("Hello there.")
    pushes = [len(push) for stream in read.choir.streams for push in stream.pushes]
    assert pushes == [25, 5, 25, 5]
    order = [type(one) for one in read.works if isinstance(one, SpeakOn | Voice)]
    assert order == [SpeakOn, Voice] * 4 + [Voice]


# ---- what is said -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["a<|im_end|>b c.", "a<|im_<unk>end|>b c.", "a<|im_[<b>]end|>b c.", "a<|**im_end|>b c."]
)
def test_foreign_text_becomes_no_control_token(text: str) -> None:
    said = subject.checked_text(tiny_mind().vocabulary, text)
    ids = tiny_mind().vocabulary.encode(said)
    assert not [one for one in ids if one >= Token.END_OF_TEXT]
    reading = Reading(runner(), SpeechRequest(text), speaker())
    ends = [one for one in reading._segments[0].asked if one == Token.IM_END]
    assert len(ends) == 1


def test_marks_that_nobody_reads_are_no_words() -> None:
    assert "".join(Read_("**Hi** 😀 (y\ud800ou) #1").said) == "Hi, you, 1."


def test_no_word_is_lost_by_the_checkpoint_s_own_tokens() -> None:
    """Its list of what cannot be said names parts of letters, too."""
    vocabulary = real_vocabulary()
    text = "Hello (there)! 這是選擇題，簡單。 コーヒーをください。 안녕하세요 사랑. x\n\ny…\nцена"
    said = subject.checked_text(vocabulary, text)
    segments = Segments(vocabulary, READ_ALOUD_EN, 4000).of(said)
    assert vocabulary.text([one for part in segments for one in part.said]) == said
    assert set(vocabulary.unspeakable) & {one for part in segments for one in part.said}


REFUSED = {
    "empty": ("", "nothing"),
    "blank": (" \n", "nothing"),
    "no words": ("😀 *** ()", "nothing"),
    "a control token": ("<|im_end|>", "nothing"),
    "too long": ("a" * (MAX_CHARACTERS + 1), "4,096"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_and_takes_no_slot(name: str) -> None:
    text, message = REFUSED[name]
    used = runner()
    with pytest.raises(RequestError, match=message) as told:
        Reading(used, SpeechRequest(text), speaker())
    assert told.value.param == "input" and used.slots.free == 1


def test_the_longest_text_is_taken() -> None:
    reading = Reading(runner(), SpeechRequest("word " * (MAX_CHARACTERS // 5)), speaker())
    assert sum(len(one.said) for one in reading._segments) > 4000


def test_a_voice_that_fills_the_slot_is_refused() -> None:
    used = runner(context_tokens=180)
    with pytest.raises(RequestError, match="shorter recording") as told:
        Reading(used, SpeechRequest("Hello."), speaker())
    assert told.value.param == "voice" and used.slots.free == 1


# ---- long texts ---------------------------------------------------------------------------------

SENTENCES = ("The first is here, and not short.", "A second one follows it.", "And the third.")


def halves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Segments.of, "__defaults__", (2.6,))


def test_a_long_text_is_read_segment_by_segment_each_as_if_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    halves(monkeypatch)
    whole = Read_(" ".join(SENTENCES))
    assert "".join(whole.said) == "".join(SENTENCES)
    assert [stream.finished for stream in whole.choir.streams] == [True] * 3
    assert sum(call.text_ended for call in whole.calls) == 3
    for index, sentence in enumerate(SENTENCES):
        alone = Read_(sentence)
        calls = [call for call in whole.calls if "".join(alone.said).find(_text(call)) >= 0]
        mine = torch.stack([state for call in calls for state in call.states])
        assert close(mine, torch.stack([state for call in alone.calls for state in call.states]))
        assert calls[0].before == ()
        assert len(whole.choir.streams[index].pushes) == len(alone.choir.streams[0].pushes)
    sounds = [[sung(push) for push in one.pushes] for one in whole.choir.streams]
    tail = np.full(TAIL_SAMPLES, len("the key of anna"), np.float32)
    expected = np.concatenate([part for one in sounds for part in (*one, tail)])
    assert np.array_equal(sound_of(whole.pieces), expected)


def _text(call: Any) -> str:
    return LetterCodec().decode(call.said)


def test_the_system_message_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    halves(monkeypatch)
    whole = Read_(" ".join(SENTENCES))
    opening = len(whole.reading._opening.ids)
    read = [one for one in whole.works if isinstance(one, Read)]
    assert sum(one.count for one in read) == opening
    segments = [one.count for one in whole.works if isinstance(one, ReadAll)]
    assert len(segments) == 3
    assert whole.reading.prompt_tokens + sum(one.tokens for one in whole.pieces) == opening + sum(
        segments
    )
    assert whole.reading._stream.length == opening + segments[-1]


def test_where_a_segment_does_not_fit_it_is_cut_finer() -> None:
    text = " ".join(SENTENCES)
    read = Read_(text, positions=240)
    assert len(read.choir.streams) > 1 and "".join(read.said).replace(" ", "") == text.replace(
        " ", ""
    )


# ---- its life -----------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [-1, 0, 1, 2])
@pytest.mark.parametrize("error", [None, torch.OutOfMemoryError("no memory")])
def test_a_reading_without_its_voice_fails(at: int, error: Exception | None) -> None:
    used, choir = runner(), Choir(at, error)
    reading = Reading(used, SpeechRequest("Hello.", seed=1), speaker(choir))
    with pytest.raises(VocoderError):
        pieces_of(reading, used)
    reading.close()
    assert used.slots.free == 1


def test_a_reading_is_begun_once_and_first_and_closed_at_last() -> None:
    used = runner()
    reading = Reading(used, SpeechRequest("Hi."), speaker())
    with pytest.raises(CapacityError):
        Reading(used, SpeechRequest("Hi."), speaker())
    with pytest.raises(EngineError, match="not begun"):
        run(used, reading.advance())
    run(used, reading.begin())
    with pytest.raises(EngineError, match="before"):
        run(used, reading.begin())
    while run(used, reading.advance()).finish is None:
        pass
    assert run(used, reading.advance()) == AnswerPiece("", "", "stop", 0)
    reading.close()
    reading.close()
    assert used.slots.free == 1
    with pytest.raises(EngineError, match="closed"):
        run(used, reading.advance())


def test_a_slot_keeps_nothing_of_who_had_it() -> None:
    first = Read_("Hello.")
    used, choir = runner(), Choir()
    voice = replace(speaker(choir), vectors=-VECTORS)
    pieces_of(Reading(used, SpeechRequest("Quite another text.", seed=9), voice), used)
    choir.streams.clear()
    again = pieces_of(Reading(used, SpeechRequest("Hello.", seed=1), speaker(choir)), used)
    assert tokens_of(again) == tokens_of(first.pieces)
