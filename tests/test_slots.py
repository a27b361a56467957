"""The places of conversations in the caches, and the loading of all parts."""

import pytest
import torch

from agent.duplex.config import parse_config
from agent.duplex.model import load_model
from agent.duplex.slots import Slots, SlotSizes
from agent.errors import CapacityError, CheckpointError
from agent.torch_parts.checkpoint import Target
from bench.random_model import FULL_SIZE
from tests.rig import tiny_model as tiny
from tests.rig.tiny_mind import letter_vocabulary, tiny_mind


def test_slots_are_taken_once_and_given_back_once() -> None:
    slots = Slots(tiny.tiny_config(), SlotSizes(slots=2, context_tokens=32), tiny.FLOAT32)
    assert [slots.take(), slots.take(), slots.free] == [0, 1, 0]
    with pytest.raises(CapacityError) as caught:
        slots.take()
    assert caught.value.retry_after_s > 0
    slots.give_back(1)
    with pytest.raises(ValueError, match="before"):
        slots.give_back(1)
    assert slots.take() == 1


def test_all_memory_is_there_from_the_start() -> None:
    config = tiny.tiny_config()
    slots = Slots(config, SlotSizes(slots=3, context_tokens=32, turn_tokens=16), tiny.FLOAT32)
    assert slots.llm.tensor.shape == (3, 2, 3, 2, 32, 64)
    assert slots.speech.tensor.shape == (3, 2, 3, 2, 16, 64)
    assert slots.audio.keys.shape[1] == 3
    far = SlotSizes(context_tokens=config.llm.max_positions + 1)
    with pytest.raises(ValueError, match="no further"):
        Slots(config, far, tiny.FLOAT32)
    with pytest.raises(ValueError, match="at least one"):
        Slots(config, SlotSizes(slots=0), tiny.FLOAT32)


def test_the_whole_checkpoint_is_read_and_every_key_has_its_place() -> None:
    source = tiny.RecipeSource()
    del source.headers["llm.model.layers.1.self_attn.q_norm.weight"]
    source.headers["llm.model.layers.1.self_attn.bogus"] = source.headers["llm.model.norm.weight"]
    with pytest.raises(CheckpointError, match="q_norm") as caught:
        load_model(source, tiny.tiny_config(), letter_vocabulary(), target=tiny.FLOAT32)
    assert "bogus" in str(caught.value)


def test_weights_take_no_gradients_and_a_voice_becomes_vectors() -> None:
    mind = tiny_mind()
    assert not any(p.requires_grad for p in mind.llm.parameters())
    golden = tiny.golden_tensors()["voice.embeddings"]
    voice = mind.hear_voice(tiny.recipe().audio(3.3, tiny.seed() + 100))
    assert torch.allclose(voice, golden, atol=1e-5)
    assert mind.hear_voice(tiny.recipe().audio(0.0, 1)).shape == (0, 256)


def test_it_is_known_what_a_slot_takes_by_cache() -> None:
    config = tiny.tiny_config()
    slots = Slots(config, SlotSizes(slots=3, context_tokens=32, turn_tokens=16), tiny.FLOAT32)
    audio = slots.audio.keys.numel() * 2 * 4
    assert slots.bytes_each == {
        "llm": 3 * 2 * 2 * 32 * 64 * 4,
        "speech": 3 * 2 * 2 * 16 * 64 * 4,
        "audio": audio // 3,
    }


def test_at_full_size_a_slot_of_2048_tokens_leaves_room_for_the_vocoder_within_its_share() -> None:
    config = parse_config(FULL_SIZE)
    sizes = SlotSizes(slots=2, context_tokens=2048)
    each = Slots(config, sizes, Target(torch.device("meta"), torch.bfloat16)).bytes_each
    assert each["llm"] == 2048 * 147_456
    assert each["speech"] == 2048 * 61_440
    assert sum(each.values()) < 850e6 - 229e6  # 229 MB are a vocoder stream's
