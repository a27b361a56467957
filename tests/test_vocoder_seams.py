"""Where a turn's pieces meet nothing is heard: tokens to sound, against HiFT on the whole mel.

What a stream's flow makes differs from what it makes of a whole utterance, everywhere and by
design. That is no seam, so both sides here are made of the mel of the stream.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from agent.vocoder.cosyvoice2 import ChunkSettings
from agent.vocoder.cosyvoice2_loading import Cosyvoice2Settings, load_cosyvoice2
from agent.vocoder.flow import EstimatorMemory
from agent.vocoder.hift import REACH_FRAMES
from agent.vocoder.hift_config import FRAME_SAMPLES
from agent.vocoder.hift_stream import HiftStreamSettings, VocoderTail, open_tail
from agent.vocoder.loading import Token2wavSettings, load_token2wav
from agent.vocoder.token2wav import StreamSettings
from agent.vocoder.voice import SpeakerPrompt
from tests.rig.speaking_hift import make_speaking
from tests.rig.tiny_cosyvoice2 import golden_prompt
from tests.rig.tiny_model import FLOAT32
from tests.rig.tiny_vocoder import write_cosyvoice2, write_token2wav

AROUND_SAMPLES = FRAME_SAMPLES
"""20 ms on either side of a seam."""
LIMIT_DB = -40.0
HELD = HiftStreamSettings()
"""The last frame said then lacks nothing but the pitch of what it sees. In a wider sweep, of 234
seams, the worst is −37 dB with 13 frames held, −46 with 14, −59 with 15 and −67 with 16."""
TOKENS = [(37 * number) % 6561 for number in range(88)]


@dataclass(frozen=True, slots=True)
class Case:
    """A turn: who says it, how its flow is solved, and how long its first chunk is."""

    voice: Literal["anna", "ben", "cy"]
    first_hop: int
    steps: int = 5
    memory: EstimatorMemory = "prompt_plus_recent"
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.voice}-{self.first_hop}-{self.steps}-{self.memory}-{self.seed}"


CASES = (
    Case("anna", 4),
    Case("anna", 18),
    Case("ben", 25),
    Case("cy", 8, memory="reference", seed=1),
    Case("ben", 18, memory="reference", seed=1),
    Case("cy", 18, steps=10, memory="reference", seed=2),
    Case("ben", 12, steps=10, seed=2),
    Case("anna", 25, steps=10, memory="reference"),
)
COSYVOICE2 = (Case("anna", 4), Case("ben", 25, seed=1), Case("cy", 12, steps=10))


def _prompt(voice: str) -> SpeakerPrompt:
    tokens, loudness, seed = {"anna": (30, 1.0, 3), "ben": (40, 0.5, 5), "cy": (50, 1.0, 9)}[voice]
    prompt = golden_prompt(tokens)
    embedding = torch.randn(192, generator=torch.Generator().manual_seed(seed)).numpy()
    return replace(prompt, mel=prompt.mel * loudness, embedding=embedding)


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vocoders")
    return {
        "classic": write_token2wav(root / "classic", "classic"),
        "causal": write_token2wav(root / "causal", "causal"),
        "cosyvoice2": write_cosyvoice2(root / "cosyvoice2"),
    }


def _vocoder(folders: dict[str, Path], kind: str, case: Case) -> Any:
    if kind == "cosyvoice2":
        chunks = ChunkSettings(first_hop_tokens=case.first_hop)
        settings = Cosyvoice2Settings(steps=case.steps, seed=case.seed, stream=chunks)
        return load_cosyvoice2(folders[kind], settings, FLOAT32)
    stream = StreamSettings(first_hop_tokens=case.first_hop)
    return load_token2wav(
        folders[kind],
        Token2wavSettings(
            steps=case.steps, estimator_memory=case.memory, seed=case.seed, stream=stream
        ),
        FLOAT32,
    )


class _Silent:
    """A tail that makes nothing of its mel but the right length."""

    held_frames = 0

    def push(self, mel: Tensor, last: bool = False) -> Tensor:
        return torch.zeros(FRAME_SAMPLES * mel.shape[-1])

    def clone(self) -> "_Silent":
        return self


class _Watched:
    """A tail that keeps what goes in and what comes out."""

    def __init__(self, tail: VocoderTail) -> None:
        self._tail = tail
        self.held_frames = tail.held_frames
        self.mel: list[Tensor] = []
        self.sound: list[Tensor] = []

    def push(self, mel: Tensor, last: bool = False) -> Tensor:
        self.mel.append(mel)
        self.sound.append(self._tail.push(mel, last=last))
        return self.sound[-1]

    def clone(self) -> VocoderTail:
        """What a stream goes back to where a chunk fails; none does here, so nobody listens."""
        return self._tail.clone()


def _turn(
    folders: dict[str, Path], kind: str, case: Case, settings: HiftStreamSettings
) -> tuple[list[Tensor], Tensor]:
    """The pieces of a turn's sound, and what HiFT says of its mel as a whole."""
    vocoder = _vocoder(folders, kind, case)
    voice = vocoder.voice(_prompt(case.voice), case.voice)
    hift, noise = vocoder.sounding.streaming, vocoder.sounding.noise
    own = noise.of_voice(case.voice)
    mel = _said(vocoder.open(voice), _Silent()).mel
    make_speaking(hift, torch.cat(mel, -1))
    watched = _said(vocoder.open(voice), open_tail(hift, own, settings=settings))
    assert all(map(torch.equal, watched.mel, mel))
    return [piece for piece in watched.sound if len(piece)], hift.whole(torch.cat(mel, -1), own)


def _said(stream: Any, tail: VocoderTail) -> _Watched:
    """Tokens to sound; what leaves the stream is what its tail gave, but for the silent lead."""
    watched = stream._tail = _Watched(tail)
    heard = [stream.push(TOKENS[at : at + 10]) for at in range(0, len(TOKENS), 10)]
    sound = np.concatenate([*heard, stream.finish()])
    assert len(sound) == 960 * len(TOKENS)
    assert np.array_equal(torch.cat(watched.sound).numpy()[-len(sound) :], sound)
    return watched


def _seams(pieces: Sequence[Tensor]) -> list[int]:
    return list(itertools.accumulate(len(piece) for piece in pieces[:-1]))


def _errors_db(pieces: Sequence[Tensor], whole: Tensor) -> list[float]:
    """The error around each seam over the sound of the whole utterance around it."""
    sound, errors = torch.cat(list(pieces)), []
    assert len(sound) == len(whole)
    for seam in _seams(pieces):
        around = slice(seam - AROUND_SAMPLES, seam + AROUND_SAMPLES)
        error = (sound[around] - whole[around]).square().mean() / whole[around].square().mean()
        errors.append(float(10 * error.log10()))
    return errors


def _assert_no_step(pieces: Sequence[Tensor], whole: Tensor) -> None:
    """No sample step at a seam above the 99.9th percentile of those elsewhere.

    But for one that the whole utterance has there too: it has a thousandth of such steps anywhere.
    """
    steps, expected = torch.cat(list(pieces)).diff().abs(), whole.diff().abs()
    elsewhere = torch.ones(len(steps), dtype=torch.bool)
    elsewhere[[seam - 1 for seam in _seams(pieces)]] = False
    largest = float(steps[elsewhere].quantile(0.999))
    for seam in _seams(pieces):
        assert float(steps[seam - 1]) <= max(largest, 1.02 * float(expected[seam - 1]))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_classic_generation_has_no_seams(folders: dict[str, Path], case: Case) -> None:
    pieces, whole = _turn(folders, "classic", case, HELD)
    errors = _errors_db(pieces, whole)
    assert len(errors) >= 3
    assert max(errors) <= LIMIT_DB
    _assert_no_step(pieces, whole)


@pytest.mark.parametrize("case", CASES[::3], ids=str)
def test_the_causal_generation_has_no_seams(folders: dict[str, Path], case: Case) -> None:
    pieces, whole = _turn(folders, "causal", case, HELD)
    errors = _errors_db(pieces, whole)
    assert len(errors) >= 3
    # Exact but for rounding.
    assert max(errors) <= -90
    _assert_no_step(pieces, whole)


@pytest.mark.parametrize("case", COSYVOICE2, ids=str)
def test_cosyvoice2_has_no_seams(folders: dict[str, Path], case: Case) -> None:
    pieces, whole = _turn(folders, "cosyvoice2", case, HELD)
    errors = _errors_db(pieces, whole)
    assert len(errors) >= 3
    assert max(errors) <= LIMIT_DB
    _assert_no_step(pieces, whole)


@pytest.mark.parametrize(("held", "least_db"), [(8, -25), (REACH_FRAMES - 1, LIMIT_DB)])
def test_holding_fewer_frames_leaves_a_seam(
    folders: dict[str, Path], held: int, least_db: float
) -> None:
    """What the measure is worth: it tells fourteen frames from the reference's eight, and from one
    less than the decoder sees ahead."""
    settings = HiftStreamSettings(held_frames=held)
    pieces, whole = _turn(folders, "cosyvoice2", COSYVOICE2[1], settings)
    assert max(_errors_db(pieces, whole)) > least_db
