"""token2wav's CUDA graphs on a GPU: the modules' numbers, of many streams as of each alone."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agent.interfaces import VocoderPush
from agent.torch_parts.checkpoint import Target
from agent.vocoder.loading import Token2wavSettings, load_token2wav
from agent.vocoder.token2wav import StreamSettings, Token2wav
from tests.rig.tiny_vocoder import write_token2wav
from tests.rig.vocoder_voices import TOKENS, prompt, voice_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GPU = torch.device("cuda")
MEMORIES = ("prompt_plus_recent", "reference")
TOGETHER = 32


@pytest.fixture(autouse=True)
def exact() -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vocoders")
    return {
        "classic": write_token2wav(root / "classic", "classic"),
        "causal": write_token2wav(root / "causal", "causal"),
    }


def near(ours: Any, theirs: Any, limit_db: float) -> bool:
    """Whether what differs is so much less than what is there."""
    apart = np.linalg.norm(np.asarray(ours) - np.asarray(theirs))
    return bool(apart <= 10 ** (limit_db / 20) * np.linalg.norm(np.asarray(theirs)))


def with_graphs(
    folder: Path, dtype: torch.dtype, streams: int = 4, memory: Any = MEMORIES[0]
) -> Any:
    settings = Token2wavSettings(
        steps=4,
        estimator_memory=memory,
        graphs=True,
        streams=streams,
        stream=StreamSettings(eager=True),
    )
    return load_token2wav(folder, settings, Target(GPU, dtype))


def without_graphs(vocoder: Any) -> Any:
    """The same weights without a machine."""
    parts = (vocoder.flow, vocoder.sounding, vocoder.settings, vocoder.noise)
    return Token2wav(*parts, vocoder.flow.in_float32)


@pytest.fixture(scope="module", params=["classic", "causal"])
def recorded(folders: dict[str, Path], request: pytest.FixtureRequest) -> tuple[Any, Any, Any, Any]:
    """A vocoder with graphs in float32, the same without, and a voice of each."""
    torch.backends.cudnn.allow_tf32 = False
    vocoder = with_graphs(folders[request.param], torch.float32)
    eager = without_graphs(vocoder)
    voices = [voice_of(one, folders, request.param) for one in (vocoder, eager)]
    return vocoder, eager, *voices


def test_graphs_say_what_eager_says(recorded: tuple[Any, Any, Any, Any]) -> None:
    vocoder, eager, voice, eager_voice = recorded
    assert vocoder.machine is not None and voice.batched is not None
    streams = vocoder.open(voice), eager.open(eager_voice)
    # Full hops until the past is cut, lengths between, and the end.
    for start, end in itertools.pairwise([0, 25, 50, 75, 80, 93, 118, 143, 150]):
        text = (TOKENS * 2)[start:end]
        ours, theirs = (stream.push(text) for stream in streams)
        assert ours.shape == theirs.shape and near(ours, theirs, -60)
        assert streams[0].memory is not None
    assert near(*(stream.finish() for stream in streams), -60)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_in_half_precision_graphs_are_as_near_to_float32_as_eager_is(
    folders: dict[str, Path], dtype: torch.dtype, memory: Any
) -> None:
    vocoder = with_graphs(folders["classic"], dtype, memory=memory)
    eager, exact = without_graphs(vocoder), without_graphs(vocoder)
    exact.flow = vocoder.flow.in_float32()
    made = []
    for one in (vocoder, eager, exact):
        stream = one.open(voice_of(one, folders, "classic"))
        made.append(states_after(stream, 5))
    ours, theirs, wanted = made
    errors = [float((one - wanted).norm() / wanted.norm()) for one in (ours, theirs)]
    assert 0 < errors[0] < 1.2 * errors[1]
    if dtype == torch.float16:
        assert near(ours, theirs, -60)


def states_after(stream: Any, chunks: int) -> torch.Tensor:
    """All that the estimator remembers of a turn after so many full hops, f32."""
    for at in range(chunks):
        stream.push((TOKENS * 2)[25 * at : 25 * at + 25])
    state = stream._state
    if stream.memory is not None:
        place, turn = stream.memory
        state = stream._shared.machine.flow_state(turn, stream._voice.batched.memory, place)
        torch.cuda.synchronize()  # it is made on the machine's own stream
    turn = [torch.cat([part.float() for part in step.turn], 2) for step in state.steps]
    return torch.stack(turn).cpu()


def test_streams_that_come_and_go_say_what_each_says_alone(
    recorded: tuple[Any, Any, Any, Any], folders: dict[str, Path]
) -> None:
    vocoder, eager, voice, eager_voice = recorded
    spoken = prompt(folders["classic"], "crop")
    voices = [(voice, eager_voice), (vocoder.voice(spoken, "b"), eager.voice(spoken, "b"))]
    streams: dict[int, tuple[Any, Any]] = {}
    for number in range(9):
        if number < 6:
            ours, theirs = voices[number % 2]
            streams[number] = vocoder.open(ours), eager.open(theirs)
        texts = {one: (TOKENS * 3)[7 * one + 20 * number :][:20] for one in streams}
        pushes = [
            VocoderPush(pair[0], texts[one], last=number - one >= 3)
            for one, pair in streams.items()
        ]
        answers = vocoder.begin(pushes).take()
        for push, answer, (one, pair) in zip(pushes, answers, list(streams.items()), strict=True):
            expected = pair[1].say(texts[one], last=push.last)
            if push.last:
                del streams[one]
            assert near(answer, expected, -60)
    assert not streams
    del pushes, push, pair  # which hold the last of them
    rooms = vocoder.machine.rooms
    assert rooms.estimator_rows.left == rooms.estimator_rows.count


def test_a_batch_of_many_says_what_each_says_alone(folders: dict[str, Path]) -> None:
    vocoder = with_graphs(folders["causal"], torch.float16, TOGETHER)
    voice = voice_of(vocoder, folders, "causal")
    texts = [[(37 * number + 11 * one) % 6561 for number in range(125)] for one in range(TOGETHER)]
    streams = [vocoder.open(voice) for _ in texts]
    together = []
    for at in range(0, 125, 25):
        pushes = [
            VocoderPush(stream, text[at : at + 25])
            for stream, text in zip(streams, texts, strict=True)
        ]
        batch = vocoder.begin(pushes)
        together.append(batch.take())
        assert batch.done
    assert all(stream.memory is not None for stream in streams)
    for one in (0, TOGETHER // 2, TOGETHER - 1):
        alone = vocoder.open(voice)
        expected = states_after_text(alone, texts[one])
        assert near(states_of(streams[one]), expected, -60)
        sound = np.concatenate([answers[one] for answers in together])
        assert np.isfinite(sound).all() and np.abs(sound).max() > 0.05


def states_after_text(stream: Any, text: list[int]) -> torch.Tensor:
    for at in range(0, len(text), 25):
        stream.push(text[at : at + 25])
    return states_of(stream)


def states_of(stream: Any) -> torch.Tensor:
    place, turn = stream.memory
    state = stream._shared.machine.flow_state(turn, stream._voice.batched.memory, place)
    torch.cuda.synchronize()  # it is made on the machine's own stream
    return torch.stack(
        [torch.cat([one.float() for one in step.turn], 2) for step in state.steps]
    ).cpu()


def test_a_stream_that_is_not_finite_goes_on_in_float32_and_no_other(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    vocoder = with_graphs(folders["classic"], torch.float16)
    voice = voice_of(vocoder, folders, "classic")
    exact = without_graphs(vocoder)
    pairs = [(vocoder.open(voice), exact.open(voice_of(exact, folders, "classic"))) for _ in "ab"]
    begin = type(vocoder.machine).begin

    def begin_broken(machine: Any, plans: Any) -> Any:
        # What the first stream remembers of the turn is no number any more.
        target = int(plans[0][machine.rules.layout.target])
        round_ = begin(machine, plans)
        torch.cuda.synchronize()
        round_._staging.finite[0] = target < 0
        return round_

    for at in (0, 25, 50):
        broken = at == 25
        with monkeypatch.context() as patch:
            if broken:
                patch.setattr(type(vocoder.machine), "begin", begin_broken)
            pushes = [VocoderPush(ours, TOKENS[at : at + 25]) for ours, _ in pairs]
            answers = vocoder.begin(pushes).take()
        for answer, (_, theirs) in zip(answers, pairs, strict=True):
            expected = theirs.push(TOKENS[at : at + 25])
            assert answer.shape == expected.shape and near(answer, expected, -20)
    assert pairs[0][0].memory is None and pairs[1][0].memory is not None


def test_a_clone_goes_on_by_itself_with_graphs(recorded: tuple[Any, Any, Any, Any]) -> None:
    vocoder, _, voice, _ = recorded
    stream = vocoder.open(voice)
    stream.push(TOKENS[:50])
    clone = stream.clone()
    rest = [TOKENS[50:75], TOKENS[75:100]]
    expected = [stream.push(text) for text in rest]
    vocoder.open(voice).push(TOKENS[::-1])
    assert all(near(clone.push(text), one, -80) for text, one in zip(rest, expected, strict=True))


def test_what_was_forgotten_leaves_nothing_behind(recorded: tuple[Any, Any, Any, Any]) -> None:
    vocoder, _, voice, _ = recorded
    expected = vocoder.open(voice).push(TOKENS[:50])
    stores = vocoder.machine._stores
    torch.cuda.synchronize()
    held = int(voice.batched.place.slot.numbers[0])
    for part in (stores.encoder, stores.estimator, stores.window):
        for name in part.__slots__:
            store = getattr(part, name)
            rows = name.endswith("rows")
            kept = None if rows else store[held].clone()
            store.fill_(torch.nan)
            if kept is not None:
                store[held].copy_(kept)
    # Row 0 and slot 0 are nobody's, and read where a round has fewer streams than its graph.
    assert near(vocoder.open(voice).push(TOKENS[:50]), expected, -80)


def test_graphs_can_be_switched_off(folders: dict[str, Path]) -> None:
    vocoder = load_token2wav(
        folders["classic"], Token2wavSettings(steps=1), Target(GPU, torch.half)
    )
    assert vocoder.machine is None and vocoder.most_pushes == 1
    voice = voice_of(vocoder, folders, "classic")
    pushes = [VocoderPush(vocoder.open(voice), TOKENS[:28]) for _ in range(2)]
    assert all(len(answer) for answer in vocoder.begin(pushes).take())
