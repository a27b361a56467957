"""A duplex conversation on the tiny model: units, turns, interruptions, forgetting, company."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from agent.duplex.conversation import MAX_PICTURES, MAX_PUT_IN_TOKENS, Conversation
from agent.duplex.conversation_settings import UnitResult
from agent.duplex.lanes import Runner
from agent.duplex.memory import KEPT_UNITS
from agent.duplex.policy import SpeakingRules
from agent.duplex.prompt import DuplexPrompt, duplex_prompt
from agent.duplex.sampling import TextSampler, TextSampling
from agent.duplex.tokens import Token
from agent.duplex.window import WindowSettings
from agent.duplex.work import Hear, Read, Speak, Together
from agent.errors import CapacityError, ContextOverflow, EngineError, RequestError
from agent.types import UNIT_SAMPLES, Unit, VideoFrame
from tests.rig import tiny_model as tiny
from tests.rig.tiny_mind import (
    LISTEN,
    Script,
    cached,
    converse,
    free_settings,
    letter_vocabulary,
    runner,
    says,
    second,
    tiny_mind,
)

CLOSE = 1e-4
PROMPT_TOKENS = 8
LISTENING_TOKENS = 13


def picture(width: int = 64, height: int = 48) -> VideoFrame:
    return VideoFrame(tiny.recipe().picture(width, height, 3), 0)


def same(ours: Tensor, theirs: Tensor, close: float = CLOSE) -> bool:
    assert ours.shape == theirs.shape
    return bool((ours - theirs).abs().max() <= close * theirs.abs().max())


def scripted(used: Runner, *units: list[int], **settings: object) -> Conversation:
    return converse(used, Script(*units), free_settings(**settings))


def told(used: Runner, *units: list[int], first: int = 0, **settings: object) -> Conversation:
    """A conversation in which this was said, unit by unit, every position read."""
    talk = scripted(used, *units, **settings)
    for index in range(len(units)):
        talk.step(second(first + index))
    talk.flush()
    return talk


# ---- units --------------------------------------------------------------------------------------


def _say(monkeypatch: pytest.MonkeyPatch, *units: list[int]) -> None:
    """Draw these instead."""
    script = Script(*units)
    monkeypatch.setattr(TextSampler, "choose", lambda *_: [next(script)])


def test_a_unit_is_one_prefill_with_what_ended_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used = runner()
    settings = free_settings(text=TextSampling(greedy=True))
    talk = converse(used, settings=settings)
    _say(monkeypatch, LISTEN, says("ab"))
    kinds = []
    for unit in (second(0), second(1, (picture(),))):
        reads = []
        steps = talk.steps(unit)
        for work in steps:
            work.run(used.model, used.slots)
            is_read = isinstance(work, Read)
            reads.append((type(work), work.count if is_read else 0))
        kinds.append(reads)
    assert kinds[0] == [(Hear, 0), (Read, 11)]
    speaking = [(Together, 0), (Read, 2 + 1 + 66 + 10), *[(Read, 1)] * 3, (Speak, 0)]
    assert kinds[1] == speaking


def test_a_result_tells_the_turn_its_text_and_its_speech() -> None:
    talk = scripted(runner(), LISTEN, says("ab"), says("c", ends=True), LISTEN)
    results = [talk.step(second(index)) for index in range(4)]
    assert [one.text for one in results] == ["", "ab", "c", ""]
    assert [one.outcome.turn for one in results] == [0, 1, 1, 0]
    assert [one.outcome.listened for one in results] == [True, False, False, True]
    assert [one.outcome.begins_turn for one in results] == [False, True, False, False]
    assert [one.outcome.ends_turn for one in results] == [None, None, "completed", None]
    assert [len(one.speech_tokens) for one in results][::3] == [0, 0]
    assert 0 < len(results[1].speech_tokens) <= 25
    assert [one.context_tokens for one in results] == [21, 21 + 16, 37 + 16, 53 + 13]
    assert {"audio", "prefill", "decode", "speech"} == {name for name, _ in results[1].stage_ms}
    assert (talk.turn, talk.speaking) == (1, False)


def test_a_going_turn_speaks_25_tokens_a_unit() -> None:
    talk = scripted(runner(), says("ab"), says("cd"), says(""))
    results = [talk.step(second(index)) for index in range(3)]
    assert [len(one.speech_tokens) for one in results[1:]] == [25, 25]


def test_text_only_needs_no_speech_lm() -> None:
    used = runner()
    talk = scripted(used, says("ab"), speaks=False)
    result = talk.step(second(0))
    assert result.text == "ab" and result.speech_tokens == ()
    assert not used.slots.speech.tensor.any()


def test_sampled_conversations_repeat_with_their_seed() -> None:
    rules = SpeakingRules(forced_listen_units=0, max_tokens=4)
    settings = free_settings(text=TextSampling(listen_bias=-50.0), rules=rules)
    runs = []
    for seed in (7, 7, 8):
        talk = converse(runner(), settings=replace(settings, seed=seed))
        runs.append([replace(talk.step(second(index)), stage_ms=()) for index in range(2)])
    assert runs[0] == runs[1] != runs[2]
    assert any(not one.outcome.listened for one in runs[0])


# ---- several on one set of weights --------------------------------------------------------------


def test_conversations_side_by_side_do_not_hear_each_other() -> None:
    scripts = [
        [LISTEN, says("ab"), says("c", ends=True)],
        [says("xyz"), says("uvw"), LISTEN],
        [LISTEN, LISTEN, LISTEN],
        [LISTEN, says("ab"), says("c", ends=True)],
    ]
    scripts[1][2] = says("", ends=True)
    starts = (0, 10, 20, 0)
    alone_on = runner()
    alone = told(alone_on, *scripts[0])
    used = runner(slots=4)
    talks = [scripted(used, *script) for script in scripts]
    results: list[list[UnitResult]] = [[] for _ in talks]
    for index in range(3):
        for talk, start, mine in zip(talks, starts, results, strict=True):
            mine.append(talk.step(second(start + index)))
    for talk in talks:
        talk.flush()
    assert torch.equal(cached(used, talks[0]), cached(used, talks[3]))
    assert same(cached(used, talks[0]), cached(alone_on, alone), 1e-5)
    assert [one.speech_tokens for one in results[0]] == [one.speech_tokens for one in results[3]]
    assert [one.speech_tokens for one in results[0]] != [one.speech_tokens for one in results[1]]


def test_a_slot_is_one_conversation_s_until_it_closes() -> None:
    used = runner()
    first = told(used, LISTEN, says("ab"))
    with pytest.raises(CapacityError):
        converse(used)
    first.close()
    first.close()
    with pytest.raises(EngineError, match="closed"):
        first.step(second(0))
    second_talk = told(used, LISTEN, says("ab"))
    fresh = runner()
    assert same(cached(used, second_talk), cached(fresh, told(fresh, LISTEN, says("ab"))), 1e-6)


def test_a_parked_conversation_goes_on_in_any_slot() -> None:
    used = runner(slots=2)
    script = [LISTEN, says("ab"), says("cd"), says("e", ends=True)]
    stays = scripted(runner(), *script)
    moves = scripted(used, *script)
    expected = [stays.step(second(index)) for index in range(4)]
    results = [moves.step(second(index)) for index in range(2)]
    moves.park()
    moves.park()
    assert used.slots.free == 2
    with pytest.raises(EngineError, match="parked"):
        moves.step(second(2))
    told(used, LISTEN, LISTEN)  # takes the slot that was left
    moves.unpark()
    moves.unpark()
    assert moves.slot == 1
    results += [moves.step(second(index)) for index in (2, 3)]
    assert [one.speech_tokens for one in results] == [one.speech_tokens for one in expected]


# ---- what is dictated ---------------------------------------------------------------------------


def test_forced_listening_ends_the_turn_in_text_and_in_speech() -> None:
    used = runner()
    talk = scripted(used, says("ab"), says("cd"))
    talk.step(second(0))
    result = talk.step(second(1), order="listen")
    assert result.outcome.ends_turn == "interrupted" and result.outcome.listened
    assert result.speech_tokens == () and not talk.speaking
    begun = []
    for work in talk.steps(second(2)):
        if isinstance(work, Speak):
            begun.append((work.stream.length, work.may_end))
        work.run(used.model, used.slots)
    assert begun == [(0, True)] and talk.turn == 2


def test_forced_listening_reads_like_the_end_of_a_turn() -> None:
    used, fresh = runner(), runner()
    talk = scripted(used, says("ab"))
    talk.step(second(0))
    talk.step(second(1), order="listen")
    talk.flush()
    other = told(fresh, says("ab"), [Token.TURN_EOS, Token.LISTEN])
    assert same(cached(used, talk), cached(fresh, other), 1e-5)


def test_the_reference_goes_on_with_the_speech_of_a_turn_given_up() -> None:
    rules = SpeakingRules(forced_listen_units=0, parity=True)
    lengths = []
    for used_rules in (rules, replace(rules, parity=False)):
        used = runner()
        talk = scripted(used, says("ab"), says("cd"), rules=used_rules)
        talk.step(second(0))
        talk.step(second(1), order="listen")
        before = used.slots.speech.tensor[:, :, 0, :, 0].clone()
        talk.step(second(2))
        lengths.append(torch.equal(before, used.slots.speech.tensor[:, :, 0, :, 0]))
    assert lengths == [True, False]


def test_who_is_told_to_speak_does() -> None:
    talk = scripted(runner(), [ord("a"), Token.TURN_EOS, Token.CHUNK_EOS])
    result = talk.step(second(0), order="speak")
    assert result.text == "a" and result.outcome.fed[0] == Token.SPEAK


def test_a_turn_that_ends_and_listens_is_spoken_and_over() -> None:
    used = runner()
    talk = scripted(used, says("ab", ends=True, terminator=Token.LISTEN), LISTEN)
    result = talk.step(second(0))
    assert result.speech_tokens and result.text == "ab"
    assert result.outcome.ends_turn == "completed"
    assert talk.step(second(1)).outcome.listened


def test_the_text_of_the_reference_may_be_cut_in_a_letter() -> None:
    class Halves:
        """Two tokens make one letter."""

        def encode(self, text: str) -> list[int]:
            return [ord(letter) for letter in text]

        def decode(self, ids: list[int]) -> str:
            return (
                "".join(map(chr, ids))
                .replace("<>", "é")
                .replace("<", "\ufffd")
                .replace(">", "\ufffd")
            )

    from agent.duplex.tokens import Vocabulary

    model = replace(tiny_mind(), vocabulary=Vocabulary(Halves(), ()))
    texts = []
    for parity in (False, True):
        units = [says("a<"), says(">b"), says("<", ends=True)]
        talk = scripted(runner(model), *units, parity=parity, speaks=False)
        texts.append([talk.step(second(index)).text for index in range(3)])
    assert texts == [["a", "éb", "\ufffd"], ["a\ufffd", "\ufffdb", "\ufffd"]]


# ---- put in -------------------------------------------------------------------------------------


def test_text_is_read_behind_the_sound_and_pictures_before_it() -> None:
    used = runner()
    talk = scripted(used, LISTEN)
    talk.put_in_text("hi<|im_end|>")
    talk.put_in_picture(picture().rgb)
    steps = talk.steps(second(0, (picture(),)))
    read: list[Tensor] = []
    for work in steps:
        work.run(used.model, used.slots)
        if isinstance(work, Read):
            read.append(work.embeddings(used.model))
    assert len(read[0]) == 1 + 66 * 2 + 10 + 2
    assert torch.equal(read[0][-2:], used.model.llm.embed([ord("h"), ord("i")]))
    assert torch.equal(read[0][1:67], read[0][67:133])  # the same picture twice


def test_more_than_fits_is_refused_and_the_rest_goes_on() -> None:
    talk = scripted(runner(), LISTEN)
    with pytest.raises(RequestError, match="tokens of text"):
        talk.put_in_text("x" * (MAX_PUT_IN_TOKENS + 1))
    for _ in range(MAX_PICTURES):
        talk.put_in_picture(picture().rgb)
    with pytest.raises(RequestError, match="pictures wait"):
        talk.put_in_picture(picture().rgb)
    with pytest.raises(RequestError, match="at most"):
        talk.step(second(0, (picture(),)))
    assert talk.step(second(0)).context_tokens == PROMPT_TOKENS + LISTENING_TOKENS + 66 * 8


def test_slices_lie_between_marks_of_their_own() -> None:
    used = runner()
    talk = scripted(used, LISTEN, max_slices=4)
    steps = talk.steps(second(0, (picture(640, 480),)))
    for work in steps:
        work.run(used.model, used.slots)
        if isinstance(work, Read):
            read = work.embeddings(used.model)
    llm = used.model.llm
    marks = [
        Token.IMAGE,
        Token.END_IMAGE,
        Token.SLICE,
        Token.END_SLICE,
        Token.SLICE,
        Token.END_SLICE,
    ]
    places = [1, 66, 67, 132, 133, 198]
    assert len(read) == 1 + 66 * 3 + 10
    assert torch.equal(read[places], llm.embed(marks))


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [0, 4800, UNIT_SAMPLES - 1, UNIT_SAMPLES * 2])
def test_a_unit_of_another_length_is_refused_and_leaves_no_trace(samples: int) -> None:
    used, fresh = runner(), runner()
    talk = scripted(used, LISTEN, says("ab"))
    talk.step(second(0))
    with pytest.raises(RequestError, match="samples"):
        talk.step(Unit(1, np.zeros(samples, np.float32), samples))
    talk.step(second(1))
    talk.flush()
    assert same(cached(used, talk), cached(fresh, told(fresh, LISTEN, says("ab"))), 1e-6)


def test_a_picture_that_is_refused_leaves_no_trace() -> None:
    used, fresh = runner(), runner()
    talk = scripted(used, LISTEN, says("ab"))
    talk.step(second(0))
    strip = VideoFrame(np.zeros((1, 4000, 3), np.uint8), 0)
    with pytest.raises(RequestError, match="narrow"):
        talk.step(second(1, (picture(), strip)))
    talk.step(second(1))
    talk.flush()
    assert same(cached(used, talk), cached(fresh, told(fresh, LISTEN, says("ab"))), 1e-6)


def test_sound_that_is_no_number_is_silence() -> None:
    talk = scripted(runner(), LISTEN, LISTEN)
    noise = np.full(UNIT_SAMPLES, np.nan, np.float32)
    assert talk.step(Unit(0, noise, UNIT_SAMPLES)).outcome.listened
    assert torch.isfinite(talk._memory.records[-1].senses).all()


def test_a_prompt_that_takes_the_whole_context_is_refused() -> None:
    used = runner(context_tokens=100)
    prompt = duplex_prompt(letter_vocabulary(), "x" * 60)
    with pytest.raises(RequestError, match="at most half"):
        Conversation(used, prompt)
    assert used.slots.free == 1


# ---- forgetting ---------------------------------------------------------------------------------


def test_without_a_window_the_context_overflows_and_says_so() -> None:
    used = runner(context_tokens=64)
    talk = scripted(used, *[LISTEN] * 9, window=WindowSettings(mode="off"))
    for index in range(2):
        talk.step(second(index))
    with pytest.raises(ContextOverflow, match="64"):
        talk.step(second(2))


@pytest.mark.parametrize("mode", ["basic", "context"])
def test_a_long_conversation_stays_within_its_slot(mode: str) -> None:
    window = WindowSettings(mode=mode)  # type: ignore[arg-type]
    units = [LISTEN, says("abcdefgh"), says("ij", ends=True)] * 5
    used = runner(context_tokens=128)
    talk = scripted(used, *units, window=window, speaks=False)
    sizes = [talk.step(second(index)).context_tokens for index in range(len(units))]
    assert max(sizes) <= 128 and sizes[-1] > 40
    assert talk._memory.window.length == talk.context_tokens
    assert len(talk._memory.records) == len(talk._memory.window.units)


def test_basic_drops_whole_units_when_there_are_too_many() -> None:
    window = WindowSettings(mode="basic", high_tokens=62, low_tokens=42)
    talk = scripted(runner(), *[LISTEN] * 6, window=window)
    sizes = [talk.step(second(index)).context_tokens for index in range(6)]
    assert sizes == [21, 34, 47, 60, 34, 47]


def test_context_keeps_what_was_said_and_its_first_layer_is_that_of_a_prompt_with_it() -> None:
    used, fresh = runner(), runner()
    window = WindowSettings(mode="context", max_units=2)
    talk = told(used, says("ab", ends=True), LISTEN, LISTEN, window=window)
    remembered = [*letter_vocabulary().encode("\n\nprevious: "), ord("a"), ord("b")]
    assert talk._memory.window.previous == tuple(remembered)
    prompt = DuplexPrompt(
        (Token.IM_START, 115, Token.AUDIO_START), (*remembered, Token.AUDIO_END, Token.IM_END)
    )
    voice = torch.linspace(-1, 1, 3 * 256).view(3, 256)
    other = Conversation(fresh, prompt, voice, free_settings(), Script(LISTEN, LISTEN, LISTEN))
    for index in range(3):
        other.step(second(index))
    other.flush()
    ours, theirs = cached(used, talk), cached(fresh, other)
    protected = talk._memory.window.protected
    # The prompt is as if it had always been so; of the units, what depends on the token alone.
    assert same(ours[:, :, :, :protected], theirs[:, :, :, :protected], 1e-5)
    units = theirs[0, :, :, protected + 13 : protected + 39]
    shift = used.model.llm.model.rotary.frequencies * -13
    from agent.duplex.kv_cache import turned

    assert same(ours[0, 1, :, protected:], units[1], 1e-5)
    assert same(ours[0, 0, :, protected:], turned(units[0], shift), 1e-5)


def test_a_unit_bigger_than_a_slot_overflows_instead_of_writing_elsewhere() -> None:
    used = runner(slots=2, context_tokens=96)
    talk = scripted(used, LISTEN, LISTEN)
    talk.step(second(0))
    with pytest.raises(ContextOverflow):
        talk.step(second(1, (picture(), picture())))


def test_another_prompt_can_take_the_place_of_the_first() -> None:
    used, fresh = runner(), runner()
    talk = scripted(used, LISTEN, says("ab", ends=True), LISTEN)
    for index in range(2):
        talk.step(second(index))
    longer = DuplexPrompt((Token.IM_START, *range(40, 60)), (Token.IM_END,))
    talk.replace_prompt(longer)
    assert talk.context_tokens == 22 + 13 + 17
    other = Conversation(fresh, longer, None, free_settings(), Script(LISTEN))
    assert same(cached(used, talk)[..., :22, :], cached(fresh, other)[..., :22, :], 1e-5)
    assert talk.step(second(2)).outcome.listened


# ---- an interruption ----------------------------------------------------------------------------


def interrupted(
    heard_ms: int, units: list[list[int]], expected: list[list[int]], after: list[list[int]]
) -> tuple[Tensor, Tensor, Conversation, int]:
    """A conversation interrupted, and one that was always as it should be after that."""
    used, fresh = runner(), runner()
    talk = scripted(used, *units, *after)
    for index in range(len(units)):
        talk.step(second(index, (picture(),) if index == 1 else ()))
    refed = talk.rewind(turn=1, heard_ms=heard_ms)
    for index in range(len(after)):
        talk.step(second(len(units) + index))
    talk.flush()
    other = scripted(fresh, *expected, *after)
    for index in range(len(expected) + len(after)):
        other.step(second(index, (picture(),) if index == 1 else ()))
    other.flush()
    assert talk.context_tokens == other.context_tokens
    return cached(used, talk), cached(fresh, other), talk, refed


CUT = [Token.TURN_EOS, Token.CHUNK_EOS]
SPOKEN = [LISTEN, says("abcd"), says("efgh"), says("ijkl")]


@pytest.mark.parametrize(
    ("heard_ms", "expected", "refed"),
    [
        (0, [LISTEN, [Token.SPEAK, *CUT], LISTEN, LISTEN], 3),
        (800, [LISTEN, [Token.SPEAK, *b"ab", *CUT], LISTEN, LISTEN], 3),
        (1280 + 250, [LISTEN, says("abcd"), [Token.SPEAK, *b"e", *CUT], LISTEN], 2),
        (2280 + 999, [LISTEN, says("abcd"), says("efgh"), [Token.SPEAK, *b"ijk", *CUT]], 1),
        (9999, [LISTEN, says("abcd"), says("efgh"), [Token.SPEAK, *b"ijkl", *CUT]], 1),
    ],
)
def test_after_an_interruption_all_is_as_if_only_what_was_heard_had_been_said(
    heard_ms: int, expected: list[list[int]], refed: int
) -> None:
    after = [LISTEN, says("zz")]
    ours, theirs, talk, count = interrupted(heard_ms, SPOKEN, expected, after)
    assert same(ours, theirs)
    assert count == refed
    assert talk.turn == 2


def test_a_turn_that_has_ended_may_still_be_interrupted_while_it_plays() -> None:
    units = [LISTEN, says("abcd"), says("ef", ends=True), LISTEN]
    expected = [LISTEN, [Token.SPEAK, *b"ab", *CUT], LISTEN, LISTEN]
    ours, theirs, _, _ = interrupted(800, units, expected, [says("zz")])
    assert same(ours, theirs)


def test_a_turn_heard_to_its_end_is_left_alone() -> None:
    units = [LISTEN, says("ab"), says("cd", ends=True), LISTEN]
    ours, theirs, _, refed = interrupted(60_000, units, units, [LISTEN])
    assert refed == 0 and same(ours, theirs, 1e-6)


def test_an_interruption_of_a_turn_nobody_knows_changes_nothing() -> None:
    used = runner()
    talk = told(used, LISTEN, says("ab"))
    before = cached(used, talk)
    assert talk.rewind(turn=7, heard_ms=0) == 0
    assert torch.equal(cached(used, talk), before) and talk.speaking


def test_an_interruption_drops_speech_and_sampling_history_of_its_turn() -> None:
    used = runner()
    talk = scripted(used, LISTEN, says("ab"), says("cd"), LISTEN, says("xy"))
    for index in range(3):
        talk.step(second(index))
    assert talk._memory.history.ids != [Token.LISTEN]
    talk.rewind(turn=1, heard_ms=300)
    assert talk._memory.history.ids == [Token.LISTEN]
    assert talk._memory.speech.length == 0 and not talk.speaking
    talk.step(second(3))
    spoken = talk.step(second(4))
    assert spoken.outcome.turn == 2 and spoken.text == "xy"
    assert talk._memory.records[-1].spoken.start_ms == 280


def test_a_turn_without_a_limit_keeps_its_time_when_its_voice_starts_anew() -> None:
    """28 positions of the speech LM's 512 a unit: it starts anew in the nineteenth."""
    used = runner()
    units = 20
    talk = scripted(used, *[says("ab")] * units, parity=True)
    lengths = []
    for index in range(units):
        talk.step(second(index))
        lengths.append(talk._memory.speech.length)
    assert lengths[17] > lengths[18] > 0, "what is tested here came to pass"
    starts = [one.spoken.start_ms for one in talk._memory.records]
    assert starts == [280 + 1000 * index for index in range(units)][-KEPT_UNITS:]
    talk.rewind(turn=1, heard_ms=280 + 19_000)
    heard = [len(one.outcome.said) for one in talk._memory.records if one.outcome.turn == 1]
    assert heard[:-1] == [2] * (KEPT_UNITS - 1) and heard[-1] < 2


def test_vectors_are_kept_for_so_many_units_and_no_more() -> None:
    talk = scripted(runner(), *[LISTEN] * (KEPT_UNITS + 3))
    for index in range(KEPT_UNITS + 3):
        talk.step(second(index))
    assert [one.unit for one in talk._memory.records] == list(range(3, KEPT_UNITS + 3))


def test_captions_alone_are_heard_a_second_a_unit() -> None:
    used = runner()
    talk = scripted(used, says("abcd"), says("efgh"), speaks=False)
    for index in range(2):
        talk.step(second(index))
    talk.rewind(turn=1, heard_ms=1500)
    assert talk._memory.records[-1].outcome.said == (*b"ef", Token.TURN_EOS)


def test_another_vocoder_s_delay_moves_what_was_heard() -> None:
    said = []
    for lag_ms in (0, 500):
        talk = scripted(runner(), says("abcd"), says("efgh"), speech_lag_ms=lag_ms)
        for index in range(2):
            talk.step(second(index))
        talk.rewind(turn=1, heard_ms=500)
        said.append(talk._memory.records[0].outcome.said[:-1])
    assert said == [tuple(b"ab"), ()]


# ---- going back ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tried", [LISTEN, says("xyz"), says("x", ends=True)])
@pytest.mark.parametrize("before", [[LISTEN, LISTEN], [LISTEN, says("ab")]])
def test_what_was_only_tried_leaves_no_trace(before: list[list[int]], tried: list[int]) -> None:
    if tried == LISTEN and before[1] != LISTEN:
        tried = says("")
    used, fresh = runner(), runner()
    talk = scripted(used, *before, tried, says("cd"), says("ef"))
    for index in range(2):
        talk.step(second(index))
    point = talk.save()
    talk.step(second(40))
    talk.restore(point)
    results = [talk.step(second(index)) for index in (2, 3)]
    other = scripted(fresh, *before, says("cd"), says("ef"))
    expected = [other.step(second(index)) for index in range(4)][2:]
    assert [replace(one, stage_ms=()) for one in results] == [
        replace(one, stage_ms=()) for one in expected
    ]
    talk.flush()
    other.flush()
    assert same(cached(used, talk), cached(fresh, other), 1e-6)


def test_going_back_reaches_over_the_second_in_which_the_ear_forgets() -> None:
    used, fresh = runner(), runner()
    talk, other = (scripted(one, *[LISTEN] * 40) for one in (used, fresh))
    for index in range(29):
        talk.step(second(index))
        other.step(second(index))
    point = talk.save()
    talk.step(second(50))
    talk.restore(point)
    talk.step(second(29))
    other.step(second(29))
    assert same(talk._memory.records[-1].senses, other._memory.records[-1].senses, 1e-6)


def test_a_point_is_good_once_and_not_behind_a_later_one() -> None:
    talk = scripted(runner(), *[LISTEN] * 3, says("ab"), *[LISTEN] * 9)
    talk.step(second(0))
    point = talk.save()
    talk.step(second(1))
    talk.restore(point)
    with pytest.raises(EngineError, match="too far"):
        talk.restore(point)
    early, late = talk.save(), talk.save()
    with pytest.raises(EngineError, match="too far"):
        talk.restore(early)
    talk.step(second(1))
    talk.restore(late)
    stood = talk.save()
    talk.step(second(1))
    talk.stand()
    with pytest.raises(EngineError, match="too far"):
        talk.restore(stood)


def test_a_slot_is_given_back_when_the_prompt_cannot_be_read() -> None:
    used = runner()
    prompt = DuplexPrompt((Token.IM_START,), (Token.IM_END,))
    with pytest.raises(RuntimeError):
        Conversation(used, prompt, torch.zeros(3, 7))
    assert used.slots.free == 1
