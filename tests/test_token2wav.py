"""token2wav as a stream: the same sound however tokens come, for any number of turns at once."""

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from agent.errors import CheckpointError, VocoderError
from agent.types import FloatArray
from agent.vocoder.flow import Flow, FlowSettings, Noise
from agent.vocoder.hift_stream import VocoderTail
from agent.vocoder.loading import HiftSound, Token2wavSettings, load_token2wav
from agent.vocoder.token2wav import (
    LEAD_TOKENS,
    PreparedVoice,
    StreamSettings,
    Token2wav,
    Token2wavStream,
)
from agent.vocoder.voice import SpeakerPrompt
from tests.rig.failing_tail import FailingSound
from tests.rig.tiny_flow import RecipeFlow, flow_yaml, golden, golden_prompt, tiny_flow
from tests.rig.tiny_hift import HiftRecipe, causal_recipe, classic_hift, classic_recipe
from tests.rig.tiny_model import FLOAT32

TOKENS = [int(token) for token in golden("tokens")]


def _prompt(tokens: int = 30, scale: float = 1.0) -> SpeakerPrompt:
    speech, mel, embedding = golden_prompt(tokens)
    return SpeakerPrompt(speech.numpy(), (mel * scale).numpy(), embedding.numpy())


@functools.cache
def _sound() -> HiftSound:
    return HiftSound(classic_hift(), classic_hift(), 1, "unity")


def _token2wav(
    settings: StreamSettings = StreamSettings(),  # noqa: B008  # frozen
    *,
    flow: Flow | None = None,
    exact: Callable[[], Flow] = tiny_flow,
) -> Token2wav:
    used = flow if flow is not None else tiny_flow()
    return Token2wav(used, _sound(), settings, Noise.seeded(1), exact)


@functools.cache
def _voice(tokens: int = 30, scale: float = 1.0, name: str = "anna") -> PreparedVoice:
    return _token2wav().voice(_prompt(tokens, scale), name)


def _said(vocoder: Token2wav, tokens: Sequence[int], pieces: Sequence[int]) -> list[FloatArray]:
    """What each push and the end give; the last piece is as long as it takes."""
    stream, at, made = vocoder.open(_voice()), 0, []
    for piece in (*pieces, len(tokens)):
        made.append(stream.push(tokens[at : at + piece]))
        at += piece
    return [*made, stream.finish()]


def _same(ours: FloatArray, theirs: FloatArray) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-6


def _held_samples() -> int:
    """What HiFT keeps back until more mel is there."""
    return 480 * _sound().open_tail("anna").held_frames


# ---- windows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [[], [1] * 60, [7, 0, 31, 2, 25], [24, 1, 3, 22]])
def test_sound_is_the_same_however_the_tokens_come(pieces: list[int]) -> None:
    vocoder = _token2wav()
    once = np.concatenate(_said(vocoder, TOKENS[:61], []))
    assert once.dtype == np.float32
    assert len(once) == 960 * 61
    _same(np.concatenate(_said(vocoder, TOKENS[:61], pieces)), once)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 22, 24, 25, 26, 28, 47, 53])
@pytest.mark.parametrize("lead", ["dropped", "heard", "none"])
def test_every_token_is_said_once(count: int, lead: str) -> None:
    vocoder = _token2wav(StreamSettings(lead=lead))  # type: ignore[arg-type]
    sound = np.concatenate(_said(vocoder, TOKENS[:count], []))
    assert len(sound) == 960 * (count + (3 if lead == "heard" else 0))


def test_the_lead_s_sound_is_all_that_dropping_it_takes_away() -> None:
    heard = _said(_token2wav(StreamSettings(lead="heard")), TOKENS[:40], [])
    dropped = _said(_token2wav(), TOKENS[:40], [])
    _same(np.concatenate(dropped), np.concatenate(heard)[3 * 960 :])


def test_a_turn_without_tokens_has_no_sound() -> None:
    stream = _token2wav().open(_voice())
    assert len(stream.push([])) == 0
    assert len(stream.finish()) == 0


def test_the_first_sound_comes_as_soon_as_the_first_hop_allows() -> None:
    sounding = {}
    for hop in (12, 25):
        stream = _token2wav(StreamSettings(first_hop_tokens=hop)).open(_voice())
        counts = [len(stream.push([token])) for token in TOKENS[:60]]
        sounding[hop] = [at + 1 for at, count in enumerate(counts) if count]
        first = counts[sounding[hop][0] - 1]
        assert first == 960 * (hop - 3) - _held_samples()
    # The lead is silence that is there before anything is said, so it saves three tokens of wait.
    assert sounding == {12: [12, 37], 25: [25, 50]}


def test_eager_chunks_say_all_that_can_be_said() -> None:
    vocoder = _token2wav(StreamSettings(eager=True, lead="heard"))
    stream = vocoder.open(_voice())
    lengths = [len(stream.push(TOKENS[at : at + 10])) for at in range(0, 60, 10)]
    assert lengths == [960 * 10 - _held_samples()] + [960 * 10] * 5
    # Three of silence and sixty, of which three wait for what comes after them.
    assert len(stream.finish()) == 960 * 3 + _held_samples()


def test_eager_and_patient_streams_are_as_long() -> None:
    eager = _said(_token2wav(StreamSettings(eager=True)), TOKENS[:77], [4, 1, 30, 9])
    assert len(np.concatenate(eager)) == 960 * 77


def test_the_last_hop_of_an_eager_turn_is_one_chunk_where_the_end_comes_with_it() -> None:
    vocoder = _token2wav(StreamSettings(eager=True))
    stream = vocoder.open(_voice())
    (first,) = stream.accept(TOKENS[:25], last=False)
    assert (first.count, first.final) == (25, False), "three of them are the lead"
    (end,) = stream.accept(TOKENS[25:50], last=True)
    assert (end.count, end.tokens, end.final) == (28, tuple(TOKENS[22:50]), True)
    assert end.count == vocoder.settings.most_tokens(3)
    patient = _token2wav(StreamSettings()).open(_voice())
    patient.accept(TOKENS[:25], last=False)
    assert [one.count for one in patient.accept(TOKENS[25:50], last=True)] == [25, 3]


def test_a_turn_whose_end_comes_with_its_last_tokens_is_as_long_and_begins_alike() -> None:
    vocoder = _token2wav(StreamSettings(eager=True))
    stream, other = vocoder.open(_voice()), vocoder.open(_voice())
    at_once = [stream.say(TOKENS[:25], last=False), stream.say(TOKENS[25:50], last=True)]
    apart = [other.push(TOKENS[:25]), other.push(TOKENS[25:50]), other.finish()]
    whole, parts = np.concatenate(at_once), np.concatenate(apart)
    assert len(whole) == len(parts) == 960 * 50
    before = 960 * 22 - _held_samples()
    _same(whole[:before], parts[:before])
    assert np.abs(whole[before:]).max() > 0


@pytest.mark.parametrize(
    "fields", [{"first_hop_tokens": 3}, {"hop_tokens": 51}, {"hop_tokens": 4, "eager": True}]
)
def test_hops_out_of_range_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="hop_tokens"):
        StreamSettings(**fields)  # type: ignore[arg-type]


# ---- several at once ----------------------------------------------------------------------------


def test_a_clone_goes_on_by_itself() -> None:
    stream = _token2wav().open(_voice())
    stream.push(TOKENS[:40])
    other = stream.clone()
    ours = np.concatenate([stream.push(TOKENS[40:80]), stream.finish()])
    theirs = np.concatenate([other.push(TOKENS[40:80]), other.finish()])
    assert np.array_equal(ours, theirs)


def test_streams_and_voices_do_not_hear_each_other() -> None:
    vocoder, other_voice = _token2wav(), _voice(40, 0.5, "ben")
    alone = []
    for voice, tokens in ((_voice(), TOKENS[:70]), (other_voice, TOKENS[70:140])):
        stream = vocoder.open(voice)
        alone.append(np.concatenate([stream.push(tokens), stream.finish()]))
    first, second = vocoder.open(_voice()), vocoder.open(other_voice)
    mixed: list[list[FloatArray]] = [[], []]
    for at in range(0, 70, 14):
        mixed[0].append(first.push(TOKENS[at : at + 14]))
        mixed[1].append(second.push(TOKENS[70 + at : 84 + at]))
    for stream, pieces, expected in zip((first, second), mixed, alone, strict=True):
        _same(np.concatenate([*pieces, stream.finish()]), expected)
    assert np.abs(alone[0] - alone[1]).max() > 0.01


def test_an_interrupted_turn_leaves_nothing_to_the_next() -> None:
    vocoder = _token2wav()
    fresh = np.concatenate(_said(vocoder, TOKENS[:30], []))
    interrupted = vocoder.open(_voice())
    interrupted.push(TOKENS[50:120])
    del interrupted
    assert np.array_equal(np.concatenate(_said(vocoder, TOKENS[:30], [])), fresh)


def test_what_is_random_follows_from_seed_and_voice() -> None:
    vocoder, prompt = _token2wav(), _prompt()
    sounds = []
    for name in ("anna", "anna", "ben"):
        stream = vocoder.open(vocoder.voice(prompt, name))
        sounds.append(np.concatenate([stream.push(TOKENS[:30]), stream.finish()]))
    assert np.array_equal(sounds[0], sounds[1])
    assert not np.array_equal(sounds[0], sounds[2])


# ---- what goes wrong ----------------------------------------------------------------------------


def test_a_turn_that_is_over_takes_no_more() -> None:
    stream = _token2wav().open(_voice())
    stream.push(TOKENS[:3])
    stream.finish()
    for call in (lambda: stream.push([1]), stream.finish):
        with pytest.raises(VocoderError, match="over"):
            call()


@pytest.mark.parametrize("token", [6561, -1])
def test_what_is_no_speech_token_is_refused_before_it_is_taken(token: int) -> None:
    stream = _token2wav().open(_voice())
    with pytest.raises(VocoderError, match="no speech token"):
        stream.push([5, token])
    assert len(np.concatenate([stream.push(TOKENS[:30]), stream.finish()])) == 960 * 30


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (_prompt(24), "1 s to 30 s"),
        (replace(_prompt(), embedding=np.ones(7, np.float32)), "embedding of 7"),
        (replace(_prompt(), mel=np.ones((60, 40), np.float32)), "40 mel bands"),
        (replace(_prompt(), speech_tokens=np.full(30, 7000)), "no speech token"),
    ],
)
def test_a_voice_of_another_model_is_refused(prompt: SpeakerPrompt, message: str) -> None:
    with pytest.raises(VocoderError, match=message):
        _token2wav().voice(prompt, "x")


class _Overflowing(Flow):
    """A flow whose numbers run over from the second chunk on: in a lesser precision, or always."""

    always = False

    def chunk(self, state, tokens, noise, *, final):  # type: ignore[no-untyped-def]
        mel, after = super().chunk(state, tokens, noise, final=final)
        late = state.position > state.prompt_frames
        over = late and (self.always or self.dtype != torch.float32)
        return mel * float("inf") if over else mel, after


def _overflowing(dtype: torch.dtype = torch.bfloat16, *, always: bool = False) -> Flow:
    flow = copy.deepcopy(tiny_flow()).narrow(dtype)
    flow.__class__ = _Overflowing
    flow.always = always
    return flow


def test_a_chunk_that_is_not_finite_is_computed_again_in_float32() -> None:
    vocoder = _token2wav(flow=_overflowing())
    stream = vocoder.open(vocoder.voice(_prompt(), "anna"))
    sound = np.concatenate([stream.push(TOKENS[:80]), stream.finish()])
    assert len(sound) == 960 * 80
    assert np.isfinite(sound).all()
    expected = np.concatenate(_said(_token2wav(), TOKENS[:80], []))
    assert np.abs(sound - expected).mean() < np.abs(expected).mean()


def test_a_chunk_that_stays_so_ends_the_turn() -> None:
    vocoder = _token2wav(
        flow=_overflowing(), exact=lambda: _overflowing(torch.float32, always=True)
    )
    stream = vocoder.open(vocoder.voice(_prompt(), "anna"))
    assert len(stream.push(TOKENS[:25])) > 0
    with pytest.raises(VocoderError, match="flow gave numbers that are not finite"):
        stream.push(TOKENS[25:60])
    with pytest.raises(VocoderError, match="failed"):
        stream.push(TOKENS[60:])


@pytest.mark.parametrize("error", [None, torch.OutOfMemoryError("no memory")])
@pytest.mark.parametrize("asks", [lambda one: one.push([1]), lambda one: one.finish()])
def test_a_push_that_fails_late_gives_what_it_made_before(
    error: RuntimeError | None, asks: Callable[[Token2wavStream], FloatArray]
) -> None:
    vocoder = _token2wav()
    vocoder.sounding = FailingSound(_sound(), at=2, error=error)
    once, pieces = vocoder.open(_voice()), vocoder.open(_voice())
    sound = once.push(TOKENS[:110])
    assert len(sound) == 960 * (50 - LEAD_TOKENS) - _held_samples()
    _same(sound, np.concatenate([pieces.push(TOKENS[:25]), pieces.push(TOKENS[25:50])]))
    for stream in (once, once.clone()):
        with pytest.raises(VocoderError, match=str(error) if error else "HiFT gave numbers"):
            asks(stream)


@pytest.mark.parametrize("at", [0, 1])
def test_what_a_broken_gpu_or_the_first_chunk_fails_with_is_raised_at_once(at: int) -> None:
    vocoder = _token2wav()
    error = torch.AcceleratorError("broken") if at else torch.OutOfMemoryError("no memory")
    vocoder.sounding = FailingSound(_sound(), at=at, error=error)
    stream = vocoder.open(_voice())
    with pytest.raises(type(error), match=str(error)):
        stream.push(TOKENS[:110])
    with pytest.raises(VocoderError, match="failed"):
        stream.push([1])


# ---- from a folder ------------------------------------------------------------------------------


def _saved(recipe: RecipeFlow | HiftRecipe, path: Path, prefix: str = "") -> None:
    read = recipe.read(recipe.headers, torch.device("cpu"))
    torch.save({prefix + key: tensor for key, tensor in read}, path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for generation, recipe in (("classic", classic_recipe()), ("causal", causal_recipe())):
        folder = made[generation] = tmp_path_factory.mktemp(generation)
        (folder / "flow.yaml").write_text(flow_yaml())
        _saved(RecipeFlow(), folder / "flow.pt")
        _saved(recipe, folder / "hift.pt", "generator.")
    _saved(classic_recipe(), made["causal"] / "hift_original.pt")
    return made


@pytest.mark.parametrize("generation", ["classic", "causal"])
def test_a_folder_speaks_whole_and_as_a_stream(folders: dict[str, Path], generation: str) -> None:
    vocoder = load_token2wav(folders[generation], Token2wavSettings(steps=3), FLOAT32)
    expected: dict[str, str] = {"classic": "silence", "causal": "prompt"}
    assert vocoder.flow.settings.filler == expected[generation]
    voice = vocoder.voice(_prompt(), "anna")
    stream = vocoder.open(voice)
    sound = np.concatenate([stream.push(TOKENS[:40]), stream.finish()])
    whole = vocoder.whole(voice, TOKENS[:40])
    for made in (sound, whole):
        assert made.shape == (960 * 40,)
        assert 0.001 < np.abs(made).max() <= 0.99
    assert len(vocoder.whole(voice, [])) == 0
    with pytest.raises(VocoderError, match="too many at once"):
        vocoder.whole(voice, [1] * 1501)


def test_a_loaded_flow_is_that_of_the_golden_files(folders: dict[str, Path]) -> None:
    vocoder = load_token2wav(folders["classic"], Token2wavSettings(steps=3), FLOAT32)
    noise = Noise(golden("noise.first_600_frames"))
    with torch.inference_mode():
        mel: Tensor = vocoder.flow.whole(golden("tokens")[:50], *golden_prompt(75), noise)
    assert (mel[0] - golden("whole.mel")).abs().max() < 1e-4


def test_a_lesser_precision_is_for_the_flow_alone(folders: dict[str, Path]) -> None:
    half = replace(FLOAT32, dtype=torch.bfloat16)
    vocoder = load_token2wav(folders["classic"], Token2wavSettings(steps=3), half)
    assert vocoder.flow.dtype == torch.bfloat16
    voice = vocoder.voice(_prompt(), "anna")
    assert voice.nbytes * 2 == _voice().nbytes
    tail: VocoderTail = vocoder.sounding.open_tail("anna")
    assert tail.push(torch.zeros(1, 80, 20), last=True).dtype == torch.float32
    assert len(vocoder.whole(voice, TOKENS[:30])) == 960 * 30


def test_a_folder_of_other_sizes_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("flow.pt", "hift.pt"):
        (tmp_path / name).symlink_to(folders["classic"] / name)
    (tmp_path / "flow.yaml").write_text(flow_yaml(depth=16))
    with pytest.raises(CheckpointError, match=r"estimator\.depth is 16"):
        load_token2wav(tmp_path, Token2wavSettings(), FLOAT32)


def test_what_comes_before_the_first_token_is_told() -> None:
    lags = {
        lead: _token2wav(StreamSettings(lead=lead)).lag_ms for lead in ("dropped", "heard", "none")
    }
    assert lags == {"dropped": 0, "heard": 120, "none": 0}


def test_the_number_of_steps_is_bounded() -> None:
    with pytest.raises(ValueError, match="steps"):
        FlowSettings(steps=0)
