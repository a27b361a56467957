"""What a duplex conversation takes: what is put in, refused, and forgotten."""

import numpy as np
import pytest
import torch
from torch import Tensor

from agent.duplex.conversation import MAX_PICTURES, MAX_PUT_IN_TOKENS, Conversation
from agent.duplex.prompt import DuplexPrompt, duplex_prompt
from agent.duplex.tokens import Token
from agent.duplex.window import WindowSettings
from agent.duplex.work import Read
from agent.errors import ContextOverflow, RequestError
from agent.types import UNIT_SAMPLES, Unit, VideoFrame
from tests.rig.tiny_mind import (
    LISTEN,
    Script,
    cached,
    free_settings,
    letter_vocabulary,
    picture,
    runner,
    same,
    says,
    scripted,
    second,
    told,
)

PROMPT_TOKENS = 8
LISTENING_TOKENS = 13

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
