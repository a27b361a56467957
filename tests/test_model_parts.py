"""A service that needs only part of the model: what is not loaded, what it saves, what it says."""

from collections.abc import Collection, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from agent.duplex.config import DuplexConfig, ServiceParts, parse_config
from agent.duplex.lanes import EagerLane, Runner
from agent.duplex.model import DuplexModel, build_parts, by_prefix, load_model, unread_prefixes
from agent.duplex.pictures import patch_picture
from agent.duplex.slots import Slots, SlotSizes
from agent.duplex.work import Look
from agent.errors import CheckpointError, UnsupportedError
from agent.torch_parts.checkpoint import stored_shapes
from bench.random_model import FULL_SIZE
from tests.rig import tiny_model as tiny
from tests.rig.tiny_mind import (
    LISTEN,
    Script,
    converse,
    free_settings,
    letter_vocabulary,
    says,
    second,
)

EARS_ALONE = ServiceParts(vision=False, speech=False)


class Watched(tiny.RecipeSource):
    """Notes what is read."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted: set[str] = set()

    def read(self, keys: Collection[str], device: torch.device) -> Iterator[tuple[str, Tensor]]:
        self.wanted |= set(keys)
        return super().read(keys, device)


def config(parts: ServiceParts) -> DuplexConfig:
    return replace(tiny.tiny_config(), parts=parts)


def load(parts: ServiceParts, source: Watched) -> DuplexModel:
    return load_model(source, config(parts), letter_vocabulary(), target=tiny.FLOAT32)


@pytest.fixture(scope="module")
def ears_alone() -> DuplexModel:
    torch.set_num_threads(1)
    return load(EARS_ALONE, Watched())


@pytest.mark.parametrize(
    ("parts", "unread"),
    [
        (ServiceParts(), set()),
        (ServiceParts(vision=False), {"vpm.", "resampler."}),
        (ServiceParts(speech=False), {"tts."}),
        (EARS_ALONE, {"vpm.", "resampler.", "tts."}),
    ],
)
def test_what_a_service_does_without_is_not_read(parts: ServiceParts, unread: set[str]) -> None:
    assert set(unread_prefixes(parts)) == unread
    source = Watched()
    model = load(parts, source)
    read = {f"{key.split('.')[0]}." for key in source.wanted}
    everything = {"vpm.", "resampler.", "apm.", "audio_projection_layer.", "llm.", "tts."}
    assert read == everything - unread
    for prefix, part in by_prefix(model.eyes, model.ears, model.llm, model.speech).items():
        assert all(one.is_meta == (prefix in unread) for one in part.parameters()), prefix


def test_what_is_read_must_fit_all_the_same() -> None:
    source = Watched()
    del source.headers["apm.conv1.weight"]
    del source.headers["vpm.post_layernorm.weight"]
    with pytest.raises(CheckpointError, match=r"1 keys are missing: apm\.conv1"):
        load(EARS_ALONE, source)


def test_pictures_are_refused_by_the_name_of_the_setting(ears_alone: DuplexModel) -> None:
    slots = Slots(ears_alone.config, SlotSizes(1, 256, 16), tiny.FLOAT32)
    look = Look(patch_picture(np.zeros((20, 20, 3), np.uint8)))
    failures = EagerLane(ears_alone, slots).begin([look]).finish()
    assert isinstance(failures[0], UnsupportedError)
    assert "model.vision" in str(failures[0]) and failures[0].code == "unsupported_by_engine"


def test_speech_is_refused_by_the_name_of_the_setting(ears_alone: DuplexModel) -> None:
    with pytest.raises(UnsupportedError, match=r"vocoder\.name"):
        ears_alone.speech.condition([1], [])


def test_a_call_without_pictures_and_speech_is_heard_and_answered(ears_alone: DuplexModel) -> None:
    runner = Runner(ears_alone, Slots(ears_alone.config, SlotSizes(1, 512, 16), tiny.FLOAT32))
    talk = converse(runner, Script(LISTEN, says("ab", ends=True)), free_settings(speaks=False))
    assert talk.step(second(0)).outcome.listened
    answer = talk.step(second(1))
    assert (answer.text, answer.speech_tokens) == ("ab", ())


@pytest.mark.parametrize(
    ("parts", "saved_gb"),
    [(ServiceParts(vision=False), 1.0), (ServiceParts(speech=False), 0.6), (EARS_ALONE, 1.6)],
)
def test_what_each_part_saves_at_full_size(parts: ServiceParts, saved_gb: float) -> None:
    shapes = stored_shapes(by_prefix(*build_parts(parse_config(FULL_SIZE))))
    unread = tuple(unread_prefixes(parts))
    saved = sum(
        2 * torch.Size(shape).numel() for k, shape in shapes.items() if k.startswith(unread)
    )
    assert saved / 1e9 == pytest.approx(saved_gb, abs=0.06)
