"""Chat answers that are spoken, on the tiny model: prompt, chunks, voice, failures."""

from collections.abc import Generator

import numpy as np
import pytest
import torch

from agent.chat_types import (
    ChatPicture,
    ChatRequest,
    ChatSound,
)
from agent.duplex.answer import AnswerPiece
from agent.duplex.answer_speech import Chunk, Speaker, parted
from agent.duplex.chat import Chat
from agent.duplex.lanes import Runner
from agent.duplex.prompt import SoundSpan, system_content
from agent.duplex.tokens import Token
from agent.duplex.work import Choose, Read, SpeakOn, Voice, Work
from tests.rig import tiny_model as tiny
from tests.rig.answer_voice import (
    RULES,
    TAIL_SAMPLES,
    VECTORS,
    Choir,
    close,
    pieces_of,
    run,
    sound_of,
    speaker,
    sung,
    tokens_of,
)
from tests.rig.tiny_mind import LetterCodec, Script, runner, tiny_mind
from tests.rig.told_chat import Told, asked, script

PICTURE = ChatPicture(np.asarray(tiny.recipe().picture(32, 24, 3)))


# ---- the prompt ---------------------------------------------------------------------------------


def written(request: ChatRequest, voice: Speaker | None = None) -> str:
    """The prompt as it is written, a star for each vector."""
    chat = Chat(runner(), request, speaker=voice or speaker())
    marks = {int(Token.UNKNOWN): "*"} | {int(one): f"<{one.name.lower()}>" for one in Token}
    marks[int(Token.UNKNOWN)] = "*"
    return "".join(marks.get(one) or chr(one) for one in chat._laid.ids)


HEARD = "<audio_start>***<audio_end>"
ANSWER = "<im_start>assistant\n<think>\n\n<end_think>\n\n<tts_bos>"


def test_without_a_system_message_the_model_is_told_whose_voice_it_has() -> None:
    before, _, behind = system_content("assistant", "en", SoundSpan(3))
    assert written(asked("Hi")) == (
        f"<im_start>system\n{before}\n{HEARD}\n{behind}<im_end>\n"
        f"<im_start>user\nHi<im_end>\n{ANSWER}"
    )


def test_one_s_own_system_message_follows_the_voice() -> None:
    before, _ = system_content("clone", "en", SoundSpan(3))
    assert written(asked("Hi", system="You are Bob.")).startswith(
        f"<im_start>system\n{before}\n{HEARD}\nYou are Bob.<im_end>\n<im_start>user\nHi"
    )
    assert written(asked("Hi", system="Bob."), speaker(vectors=None)).startswith(
        "<im_start>system\nBob.<im_end>\n"
    )


def test_a_voice_that_cannot_be_heard_is_the_reserved_one() -> None:
    first, second = system_content("assistant", "en", None)
    assert f"system\n{first}\n{second}<" in written(asked("Hi"), speaker(vectors=None))


def test_the_system_message_is_in_the_language_that_is_asked_in() -> None:
    assert "模仿音频样本的音色" in written(asked("你好，今天天气怎么样？"))
    assert "Use the voice in" in written(asked("What does 你好 mean in English?"))


def test_who_is_shown_something_answers_as_one_who_sees() -> None:
    before, _, behind = system_content("omni", "en", SoundSpan(3))
    prompt = written(asked(PICTURE, "Hi"))
    assert prompt.startswith(f"<im_start>system\n{before}\n{HEARD}\n{behind}<im_end>")


def test_the_voice_s_vectors_are_read_where_its_place_is_and_the_user_s_sound_in_its_own() -> None:
    used = runner()
    sound = ChatSound(np.asarray(tiny.recipe().audio(0.5, 3), np.float32))
    chat = Chat(used, asked(sound), script=script("a"), speaker=speaker())
    works: list[Work] = []
    run(used, chat.begin(), works.append)
    read = torch.cat([one.embeddings(tiny_mind()) for one in works if isinstance(one, Read)])
    voice, user = chat._laid.sound_bounds
    assert torch.equal(read[slice(*voice)], VECTORS)
    plain = Chat(runner(), asked(sound, speaks=False), script=script("a"))
    works.clear()
    run(runner(), plain.begin(), works.append)
    alone = torch.cat([one.embeddings(tiny_mind()) for one in works if isinstance(one, Read)])
    assert torch.equal(read[slice(*user)], alone[slice(*plain._laid.sound_bounds[0])])


def test_a_speaker_is_for_answers_that_are_spoken() -> None:
    with pytest.raises(ValueError, match="speaker"):
        Chat(runner(), asked("Hi"))
    with pytest.raises(ValueError, match="speaker"):
        Chat(runner(), asked("Hi", speaks=False), speaker=speaker())


# ---- words and sound ----------------------------------------------------------------------------


def test_sound_comes_behind_the_words_that_it_says_and_before_the_next() -> None:
    told = Told("Hello there, who is it?")
    kinds = "".join("t" if one.text else "s" for one in told.pieces)
    assert kinds == "tss" * 3 + "s"  # 25 tokens, 5 more, and at the end what is left
    assert [one.text for one in told.pieces if one.text] == ["Hello ther", "e, who is ", "it?"]
    assert [one.finish for one in told.pieces] == [None] * 9 + ["stop"]
    assert [len(one.said) for one in told.calls] == [10, 10, 3]
    assert [one.text_ended for one in told.calls] == [False, False, True]
    assert (
        tokens_of(told.pieces)
        == told.choir.tokens
        == [token for call in told.calls for token in call.tokens]
    )
    sound = sound_of(told.pieces)
    assert np.array_equal(sound[:-TAIL_SAMPLES], sung(told.choir.tokens))
    (stream,) = told.choir.streams
    assert stream.finished and told.used.slots.free == 1


def test_the_speech_lm_gets_each_word_with_the_state_at_it() -> None:
    """Against one straightforward pass over the prompt and the whole answer."""
    said = "Hello there, who is it?"
    told = Told(said)
    other = runner()
    chat = Chat(other, asked("Hi"), script=script(said), speaker=speaker())
    prompt = run(other, chat._perceived())
    words = other.model.llm.embed([*map(ord, said)])
    states = other.model.llm.read(
        torch.cat([prompt, words])[None], [chat._stream], other.slots.llm
    )[0][len(prompt) :]
    lm, config = other.model.speech, other.model.speech.config
    for index, call in enumerate(told.calls):
        part = slice(10 * index, 10 * index + 10)
        assert list(call.said) == [*map(ord, said[part])]
        condition = lm.condition(call.said, call.states, text_ended=call.text_ended)
        ends = [config.text_eos] * (index == 2) + [config.audio_bos]
        expected = lm.emb_text(torch.tensor([*map(ord, said[part]), *ends])).detach()
        meant = lm.projector_semantic(states[part]).detach()
        expected[: len(call.said)] += meant / meant.norm(dim=-1, keepdim=True)
        assert close(condition, expected)


def test_speech_goes_on_behind_what_was_said() -> None:
    told = Told("Hello there, who is it?")
    first, then, last = told.calls
    assert first.before == () and list(then.before) == first.tokens[-16:]
    assert list(last.before) == then.tokens[-16:]
    spoken = sum(len(one.tokens) for one in told.calls)
    assert told.chat._speech._voice._stream.length == 23 + 3 + 1 + spoken


def test_in_pieces_is_in_one_go() -> None:
    request = asked("Hi", max_tokens=12)
    whole = Told(request=request)
    used, pieces = runner(), []
    chat = Chat(used, request, speaker=speaker())
    run(used, chat.begin())
    while not pieces or pieces[-1].finish is None:
        pieces.append(run(used, chat.advance(1)))
    assert "".join(one.text for one in pieces) == whole.text
    assert tokens_of(pieces) == tokens_of(whole.pieces)
    assert np.array_equal(sound_of(pieces), sound_of(whole.pieces))


def test_a_seed_repeats_words_and_sound_and_another_does_not() -> None:
    first, again, other = (Told(request=asked("Hi", seed=seed, max_tokens=6)) for seed in (3, 3, 4))
    assert first.text == again.text and tokens_of(first.pieces) == tokens_of(again.pieces)
    assert tokens_of(first.pieces) != tokens_of(other.pieces)


def test_no_work_takes_longer_than_a_second_of_speech() -> None:
    told = Told("Hello")
    kinds = [type(one) for one in told.works]
    assert kinds[-5:] == [SpeakOn, Voice, SpeakOn, Voice, Voice]
    assert [len(push) for push in told.choir.streams[0].pushes] == [25, 5]


def test_what_nobody_can_read_aloud_is_banned() -> None:
    choices: list[Choose] = []
    used = runner()
    for speaks in (True, False):
        request = asked("Hi", max_tokens=1, speaks=speaks)
        chat = Chat(used, request, speaker=speaker() if speaks else None)
        pieces_of(chat, used, lambda one: isinstance(one, Choose) and choices.append(one))
    logits = torch.zeros(151_748)
    spoken, silent = (
        one.choice.sampler.penalised(logits, one.choice.drawing)
        for one in (choices[0], choices[-1])
    )
    for mark in "*#:":
        assert spoken[ord(mark)] == -torch.inf and silent[ord(mark)] == 0
    assert spoken[Token.UNKNOWN] == -torch.inf and spoken[ord("a")] == 0


# ---- ends ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [Token.TTS_EOS, Token.IM_END, Token.END_OF_TEXT])
def test_an_answer_ends_where_the_model_stops_speaking(end: Token) -> None:
    used = runner()
    words = Script([*map(ord, "ab"), int(end), *map(ord, "cd")])
    pieces = pieces_of(Chat(used, asked("Hi"), script=words, speaker=speaker()), used)
    assert "".join(one.text for one in pieces) == "ab" and pieces[-1].finish == "stop"


def test_an_answer_that_is_cut_off_ends_its_speech() -> None:
    told = Told("Hello there", request=asked("Hi", max_tokens=5))
    assert told.text == "Hello" and told.pieces[-1].finish == "length"
    (call,) = told.calls
    assert call.text_ended and list(call.said) == [*map(ord, "Hello")]


def test_an_empty_answer_is_silent() -> None:
    told = Told("")
    assert told.pieces == [AnswerPiece("", "", "stop", 0)]
    assert not told.calls and not sound_of(told.pieces).size


def test_reasoning_is_not_spoken() -> None:
    thought = (int(Token.THINK), "hm", int(Token.END_THINK), "Yes")
    told = Told(*thought, request=asked("Hi", thinking=True))
    assert told.text == "Yes" and "".join(one.reasoning for one in told.pieces) == "hm"
    assert [list(one.said) for one in told.calls] == [[*map(ord, "Yes")]]


def test_the_end_of_speech_and_what_lies_beyond_never_reach_the_vocoder() -> None:
    choir, used = Choir(), runner()
    end = used.model.speech.config.audio_eos

    def meddle(work: Work) -> None:
        if isinstance(work, SpeakOn) and work.call.ended:
            work.call.tokens[-3:] = [end, end + 1, 7]

    chat = Chat(used, asked("Hi"), script=script("Hello"), speaker=speaker(choir))
    pieces = pieces_of(chat, used, meddle)
    assert end == 6561 and 7 in choir.tokens and max(choir.tokens) < end
    assert tokens_of(pieces) == choir.tokens


def test_a_long_answer_starts_its_speech_anew_behind_a_sentence() -> None:
    """At 60 % of the speech LM's 512 positions: after the eighth chunk. The sound goes on."""
    told = Told("0123456789" * 8 + "So it is. 3.5. Oh", request=asked("Hi", max_tokens=100))
    said = [LetterCodec().decode(call.said) for call in told.calls]
    assert said[8:] == ["So it is.", " ", "3.5. Oh"]
    starts = [call.text_ended for call in told.calls]
    assert starts[:9] == [False] * 8 + [True] and starts[-1]
    (stream,) = told.choir.streams
    assert stream.finished and tokens_of(told.pieces) == told.choir.tokens
    whole = told.chat._speech._voice._stream.length
    after = told.calls[9:]
    assert whole == sum(len(one.said) + 1 + one.text_ended + len(one.tokens) for one in after)
    assert list(after[0].before) == told.calls[8].tokens[-16:]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("So. And", ["So.", " And"]),
        ("a! b? c", ["a! b?", " c"]),
        ("好。的", ["好。", "的"]),
        ("3.5 of it", ["3.5 of it"]),
        ("It ends.", ["It ends."]),
        ("", [""]),
    ],
)
def test_a_chunk_is_cut_only_where_a_sentence_surely_ends(text: str, parts: list[str]) -> None:
    codec = LetterCodec()
    states = list(torch.arange(len(text)))
    cut = parted(Chunk(codec.encode(text), states, text_ended=False, most=9), codec.decode)
    assert [codec.decode(one.said) for one in cut] == parts
    assert [state for one in cut for state in one.states] == states
    assert [one.goes_on and one.text_ended for one in cut] == [True] * (len(parts) - 1) + [False]


# ---- failures and company -----------------------------------------------------------------------


@pytest.mark.parametrize("at", [-1, 0, 1, 3, 4])
def test_an_answer_whose_voice_fails_goes_on_in_text(at: int) -> None:
    whole, broken = Told("Hello there!"), Told("Hello there!", choir=Choir(fails_at=at))
    assert whole.text == broken.text == "Hello there!" and broken.pieces[-1].finish == "stop"
    assert whole.chat.is_voiced and not broken.chat.is_voiced
    pushes = [push for one in broken.choir.streams for push in one.pushes]
    assert len(pushes) == max(0, at)
    sound, rest = sound_of(broken.pieces), sound_of(whole.pieces)
    assert np.array_equal(sound, rest[: len(sound)]) and len(sound) < len(rest)
    asked_for = [one for one in broken.works if isinstance(one, SpeakOn)]
    assert len(asked_for) <= max(0, at + 1)


@pytest.mark.parametrize("at", [-1, 0, 2])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), RuntimeError("a bug")])
def test_memory_that_ran_out_costs_an_answer_its_sound_alone(error: Exception, at: int) -> None:
    broken = Told("Hello there!", choir=Choir(at, error))
    assert broken.text == "Hello there!" and broken.pieces[-1].finish == "stop"
    assert not broken.chat.is_voiced and broken.chat._speech._voice._sound is None


def test_a_broken_gpu_is_everybody_s() -> None:
    with pytest.raises(torch.AcceleratorError):
        Told("Hello there!", choir=Choir(0, torch.AcceleratorError("broken")))


def test_a_request_that_does_not_fit_takes_no_slot() -> None:
    used = runner(context_tokens=256)
    with pytest.raises(Exception, match="max_tokens"):
        Chat(used, asked("Hi", max_tokens=200), speaker=speaker())
    assert used.slots.free == 1


def test_two_chats_in_two_voices_say_what_each_says_alone() -> None:
    def begun(used: Runner, text: str, choir: Choir, sign: int) -> Chat:
        voice = Speaker(sign * VECTORS, lambda: choir.open(f"voice {sign}"), RULES)
        return Chat(used, asked(text), script=script(f"{text} yourself"), speaker=voice)

    alone = []
    for text, sign in (("Hi", 1), ("Who?", -1)):
        used, choir = runner(), Choir()
        alone.append((pieces_of(begun(used, text, choir, sign), used), choir))
    used, choirs = runner(slots=2), (Choir(), Choir())
    pieces: tuple[list[AnswerPiece], list[AnswerPiece]] = ([], [])

    def steps(chat: Chat, into: list[AnswerPiece]) -> Generator[Work, None, None]:
        yield from chat.begin()
        while not into or into[-1].finish is None:
            into.append((yield from chat.advance()))

    waiting = [
        steps(begun(used, "Hi", choirs[0], 1), pieces[0]),
        steps(begun(used, "Who?", choirs[1], -1), pieces[1]),
    ]
    while waiting:
        current = waiting.pop(0)
        if (work := next(current, None)) is not None:
            work.run(used.model, used.slots)
            waiting.append(current)
    for ours, choir, (theirs, other) in zip(pieces, choirs, alone, strict=True):
        assert [one.text for one in ours] == [one.text for one in theirs]
        assert choir.tokens == other.tokens
        assert np.array_equal(sound_of(ours), sound_of(theirs))
        assert [one.voice for one in choir.streams] == [one.voice for one in other.streams]
    assert choirs[0].tokens != choirs[1].tokens
