"""The checkpoint that tests write is one: it opens, fits the model and has the real tokenizer."""

from pathlib import Path

import pytest
import torch

from agent.duplex.config import read_config
from agent.duplex.model import load_model
from agent.duplex.tokens import load_vocabulary
from agent.torch_parts.checkpoint import Target, open_checkpoint
from tests.rig import tiny_model as tiny
from tests.rig.tiny_checkpoint import shared_checkpoint, write_checkpoint


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_checkpoint(tmp_path_factory)


def test_it_loads_as_the_official_one_does(folder: Path) -> None:
    torch.set_num_threads(1)
    model = load_model(
        open_checkpoint(folder),
        read_config(folder),
        load_vocabulary(folder),
        target=Target(torch.device("cpu"), torch.bfloat16),
    )
    key = "llm.model.norm.weight"
    recipe = tiny.recipe().tensor(key, tiny.parameters()[key], tiny.seed())
    assert torch.equal(model.llm.get_parameter("model.norm.weight"), recipe.to(torch.bfloat16))
    assert model.vocabulary.encode("<|speak|>") == [151706]


def test_it_is_written_once(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert shared_checkpoint(tmp_path_factory) == folder


@pytest.mark.parametrize("shards", [1, 3])
def test_holes_have_the_headers_of_the_recipe_s(tmp_path: Path, folder: Path, shards: int) -> None:
    write_checkpoint(tmp_path, shards=shards, weights="holes", tokenizer="none")
    holes, recipe = open_checkpoint(tmp_path).headers, open_checkpoint(folder).headers
    assert {key: (one.shape, one.dtype) for key, one in holes.items()} == {
        key: (one.shape, one.dtype) for key, one in recipe.items()
    }
    assert len({one.path for one in holes.values()}) == shards
    assert sum(path.stat().st_blocks for path in tmp_path.iterdir()) * 512 < 1_000_000
