"""Batches of a vocoder's streams: what each says alone, however they come together and go."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from agent.errors import VocoderError
from agent.interfaces import VocoderPush
from agent.types import FloatArray
from agent.vocoder.flow import FlowSettings, Noise
from agent.vocoder.loading import HiftSound
from agent.vocoder.token2wav import PreparedVoice, StreamSettings, Token2wav, Token2wavStream
from agent.vocoder.voice import SpeakerPrompt
from tests.rig.module_machine import ModuleMachine
from tests.rig.tiny_flow import golden, golden_prompt, tiny_flow
from tests.rig.tiny_hift import causal_hift, classic_hift

TOKENS = [int(token) for token in golden("tokens")] + [(37 * number) % 6561 for number in range(90)]
EAGER = StreamSettings(eager=True)


@functools.cache
def _sound(causal: bool) -> HiftSound:
    hift = causal_hift() if causal else classic_hift()
    return HiftSound(hift, hift, 1, "unity")


def _prompt(tokens: int) -> SpeakerPrompt:
    speech, mel, embedding = golden_prompt(tokens)
    return SpeakerPrompt(speech.numpy(), mel.numpy(), embedding.numpy())


def _vocoder(
    settings: StreamSettings = EAGER, *, causal: bool = False, memory: Any = ""
) -> Token2wav:
    flow = tiny_flow(FlowSettings(steps=1, estimator_memory=memory or "prompt_plus_recent"))
    return Token2wav(flow, _sound(causal), settings, Noise.seeded(1), tiny_flow)


class Case:
    """The same vocoder with a machine and without, and voices of both."""

    def __init__(self, settings: StreamSettings = EAGER, **machine: Any) -> None:
        memory, causal = machine.pop("memory", ""), machine.get("causal", False)
        self.alone = _vocoder(settings, causal=causal, memory=memory)
        self.vocoder = _vocoder(settings, causal=causal, memory=memory)
        self.machine = ModuleMachine(self.vocoder, **machine)
        self.vocoder.machine = self.machine
        self._voices: dict[tuple[int, bool], PreparedVoice] = {}

    def voice(self, tokens: int, *, batched: bool) -> PreparedVoice:
        key = tokens, batched
        if key not in self._voices:
            vocoder = self.vocoder if batched else self.alone
            self._voices[key] = vocoder.voice(_prompt(tokens), f"of {tokens}")
        return self._voices[key]

    def pair(self, tokens: int = 30) -> "Pair":
        return Pair(
            self.vocoder.open(self.voice(tokens, batched=True)),
            self.alone.open(self.voice(tokens, batched=False)),
        )

    def take(self, pushes: Sequence[tuple["Pair", Sequence[int], bool]]) -> None:
        """One batch, held against what each says alone."""
        begun = [VocoderPush(pair.batched, tokens, last) for pair, tokens, last in pushes]
        answers = self.vocoder.begin(begun).take()
        for answer, (pair, tokens, last) in zip(answers, pushes, strict=True):
            expected = pair.alone.say(tokens, last=last)
            assert isinstance(answer, np.ndarray) and np.array_equal(answer, expected)


class Pair:
    def __init__(self, batched: Token2wavStream, alone: Token2wavStream) -> None:
        self.batched = batched
        self.alone = alone


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# ---- together as alone --------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
def test_streams_that_come_and_go_say_what_each_says_alone(causal: bool) -> None:
    case = Case(streams=4, causal=causal)
    early, late, short = case.pair(), case.pair(40), case.pair()
    case.take([(early, TOKENS[:25], False)])
    case.take([(early, TOKENS[25:38], False), (late, TOKENS[:25], False)])
    case.take(
        [(short, TOKENS[50:57], True), (early, TOKENS[38:63], True), (late, TOKENS[25:50], False)]
    )
    newcomer = case.pair()
    case.take([(late, TOKENS[50:75], False), (newcomer, TOKENS[9:60], False)])
    case.take([(newcomer, [], True), (late, TOKENS[75:76], True)])
    # Each push's first chunk is in the first round, and what follows it in the next ones.
    assert case.machine.rounds == [1, 2, 3, 2, 1, 2]


@pytest.mark.parametrize("memory", ["prompt_plus_recent", "reference"])
@pytest.mark.parametrize("sizes", [[25] * 6, [5, 25, 11, 25, 25, 8, 25]])
def test_what_is_remembered_is_cut_as_alone(memory: str, sizes: list[int]) -> None:
    case = Case(memory=memory)
    pair = case.pair(60)
    at = 0
    for size in sizes:
        case.take([(pair, TOKENS[at : at + size], False)])
        at += size
        assert pair.batched.memory is not None
        _, state = pair.batched.memory
        alone = pair.alone._state
        assert (*state.held.tolist(), *state.prompt.tolist()) == alone.held  # type: ignore[union-attr]
        assert len(state.held) == len(state.rows) and state.position == alone.position
        assert len(state.token_rows) == alone.encoder.tokens - 60  # type: ignore[union-attr]
        assert len(state.mel_rows) == alone.encoder.frames - 120  # type: ignore[union-attr]


def test_more_pushes_than_go_together_take_turns() -> None:
    case = Case(streams=5, most=2)
    pairs = [case.pair() for _ in range(5)]
    case.take([(pair, TOKENS[at : at + 25], False) for at, pair in enumerate(pairs)])
    assert case.machine.rounds == [2, 2, 1]
    assert case.vocoder.most_pushes == 2 and case.alone.most_pushes == 1


def test_a_long_push_is_as_many_rounds() -> None:
    case = Case()
    case.take([(case.pair(), TOKENS[:120], True)])
    assert case.machine.rounds == [1] * 5


def test_push_and_finish_are_batches_of_one() -> None:
    case = Case()
    pair = case.pair()
    for piece in ([], TOKENS[:3], TOKENS[3:40]):
        assert np.array_equal(pair.batched.push(piece), pair.alone.push(piece))
    assert np.array_equal(pair.batched.finish(), pair.alone.finish())
    with pytest.raises(VocoderError, match="over"):
        pair.batched.push([1])


def test_a_clone_goes_on_by_itself() -> None:
    case = Case()
    pair = case.pair()
    case.take([(pair, TOKENS[:50], False)])
    clone = Pair(pair.batched.clone(), pair.alone.clone())
    case.take([(pair, TOKENS[50:75], False), (clone, TOKENS[20:45], False)])
    case.take([(clone, TOKENS[45:80], True)])
    case.take([(pair, TOKENS[75:100], True)])


def test_a_batch_that_nobody_took_is_over_before_the_next_begins() -> None:
    case = Case()
    pair = case.pair()
    case.machine.asleep = 1
    first = case.vocoder.begin([VocoderPush(pair.batched, TOKENS[:25])])
    assert not first.done
    second = case.vocoder.begin([VocoderPush(pair.batched, TOKENS[25:50])])
    assert first.done and second.done
    for batch, at in ((second, 25), (first, 0)):
        (answer,) = batch.take()
        if at == 0:
            assert np.array_equal(answer, pair.alone.push(TOKENS[:25]))
    assert len(batch.take()) == 1


# ---- what goes wrong ----------------------------------------------------------------------------


def test_what_is_no_speech_token_fails_its_own_push_alone() -> None:
    case = Case()
    wrong, right = case.pair(), case.pair()
    batch = case.vocoder.begin(
        [VocoderPush(wrong.batched, [1, 6561]), VocoderPush(right.batched, TOKENS[:25])]
    )
    failure, sound = batch.take()
    assert isinstance(failure, VocoderError) and "6561" in str(failure)
    assert np.array_equal(sound, right.alone.push(TOKENS[:25]))
    # The turn goes on as if that had not been said.
    case.take([(wrong, TOKENS[:25], True)])


def test_a_chunk_that_is_not_finite_is_made_again_by_the_stream_itself() -> None:
    case = Case()
    pair, other = case.pair(), case.pair()
    case.machine.broken = {TOKENS[30]}
    case.take([(pair, TOKENS[:25], False), (other, TOKENS[60:85], False)])
    case.take([(pair, TOKENS[25:75], False), (other, TOKENS[85:110], False)])
    assert pair.batched.memory is None and other.batched.memory is not None
    rounds = len(case.machine.rounds)
    case.take([(pair, TOKENS[75:100], True)])
    assert len(case.machine.rounds) == rounds
    free = case.machine.rooms.estimator_rows.left
    del pair, other
    assert case.machine.rooms.estimator_rows.left > free


def test_a_turn_that_fails_itself_ends_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case()
    pair, other = case.pair(), case.pair()
    case.machine.broken = {TOKENS[30]}

    def advance(*arguments: Any, **named: Any) -> Any:
        raise VocoderError("the flow gave numbers that are not finite")

    monkeypatch.setattr(case.vocoder, "advance", advance)
    batch = case.vocoder.begin(
        [VocoderPush(pair.batched, TOKENS[:60]), VocoderPush(other.batched, TOKENS[60:85])]
    )
    sound, others = batch.take()
    # What was made before is heard; the next call raises.
    assert np.array_equal(sound, pair.alone.push(TOKENS[:25]))
    assert np.array_equal(others, other.alone.push(TOKENS[60:85]))
    with pytest.raises(VocoderError, match="not finite"):
        pair.batched.push([1])
    with pytest.raises(VocoderError, match="not finite"):
        pair.batched.finish()


def test_of_a_first_chunk_that_fails_nothing_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case()
    pair = case.pair()
    case.machine.broken = {TOKENS[3]}
    monkeypatch.setattr(case.vocoder, "advance", _out_of_memory)
    (answer,) = case.vocoder.begin([VocoderPush(pair.batched, TOKENS[:60], last=True)]).take()
    assert isinstance(answer, VocoderError) and "no room" in str(answer)
    assert answer.__cause__ is None
    with pytest.raises(VocoderError):
        pair.batched.push([1])


def _out_of_memory(*arguments: Any, **named: Any) -> Any:
    raise RuntimeError("no room")


# ---- room ---------------------------------------------------------------------------------------


def test_a_turn_for_which_there_is_no_room_goes_on_by_itself() -> None:
    case = Case(streams=1, most=1)
    pairs = [case.pair() for _ in range(3)]
    for at in range(0, 100, 25):
        for pair in pairs:
            case.take([(pair, TOKENS[at : at + 25], False)])
    batched = [pair.batched.memory is not None for pair in pairs]
    assert any(batched) and not all(batched)
    for pair in pairs:
        case.take([(pair, TOKENS[100:110], True)])


def test_places_of_turns_that_are_over_serve_others() -> None:
    case = Case(streams=2, most=2)
    rooms = case.machine.rooms
    case.pair()
    free = [places.left for places in (rooms.slots, rooms.token_rows, rooms.mel_rows)]
    for turn in range(6):
        pair, other = case.pair(), case.pair()
        for at in range(0, 75, 25):
            start = turn + at
            case.take([(pair, TOKENS[start : start + 25], False), (other, TOKENS[:25], False)])
        assert pair.batched.memory is not None and other.batched.memory is not None
        case.take([(pair, [], True), (other, [], turn % 2 == 0)])
        del pair, other
        assert [places.left for places in (rooms.slots, rooms.token_rows, rooms.mel_rows)] == free
        assert rooms.estimator_rows.left == rooms.estimator_rows.count


def test_a_hop_that_is_longer_than_the_plan_is_said_alone() -> None:
    case = Case(StreamSettings(first_hop_tokens=10, hop_tokens=10))
    voice = case.voice(30, batched=True)
    assert voice.batched is not None
    case.vocoder.settings = StreamSettings(first_hop_tokens=30, hop_tokens=30)
    case.alone.settings = case.vocoder.settings
    pair = case.pair()
    case.take([(pair, TOKENS[:40], False)])
    assert pair.batched.memory is None and not case.machine.rounds


def test_without_a_machine_pushes_are_done_one_by_one() -> None:
    vocoder = _vocoder()
    voice = vocoder.voice(_prompt(30), "anna")
    streams = [vocoder.open(voice) for _ in range(3)]
    texts = [TOKENS[:25], [7000], TOKENS[25:50]]
    pushes = [VocoderPush(*both) for both in zip(streams, texts, strict=True)]
    batch = vocoder.begin([*pushes[:2], VocoderPush(streams[2], texts[2], last=True)])
    assert batch.done
    first, failure, last = batch.take()
    again = [vocoder.open(voice) for _ in range(2)]
    assert np.array_equal(first, again[0].push(texts[0]))
    expected: list[FloatArray] = [again[1].push(texts[2]), again[1].finish()]
    assert np.array_equal(last, np.concatenate(expected))
    assert isinstance(failure, VocoderError)
    assert len(list(itertools.chain(first, last))) > 0
