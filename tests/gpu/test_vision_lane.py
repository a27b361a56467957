"""Looking in batches on a GPU: what the modules see, whoever shares the batch; Pillow's pixels."""

import functools
import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from agent.duplex.lanes import EagerLane, Lane
from agent.duplex.model import DuplexModel, load_model
from agent.duplex.pictures import CutPatches, Patches, Picture, patch_picture
from agent.duplex.slots import Slots, SlotSizes
from agent.duplex.work import Look
from agent.torch_parts.checkpoint import Target
from agent.types import ByteArray
from tests.rig import tiny_model as tiny
from tests.rig.tiny_mind import letter_vocabulary

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)
pytest.importorskip("triton", reason="Triton is not installed")

from agent.duplex.cuda.picture_cutter import PictureCutter, to_device
from agent.duplex.cuda.vision_lane import MOST_PATCHES, VisionLane

DTYPES = [torch.float32, torch.bfloat16]
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
CUDA = torch.device("cuda")


@functools.cache
def mind(dtype: torch.dtype) -> DuplexModel:
    target = Target(CUDA, dtype)
    return load_model(tiny.RecipeSource(), tiny.tiny_config(), letter_vocabulary(), target=target)


@functools.cache
def lanes(dtype: torch.dtype) -> tuple[VisionLane, EagerLane]:
    model = mind(dtype)
    slots = Slots(model.config, SlotSizes(1, 16, 16), model.target)
    return VisionLane(model, slots), EagerLane(model, slots)


@pytest.fixture(autouse=True)
def exact() -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def photo(width: int, height: int, seed: int = 1) -> ByteArray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def cut(rows: int, columns: int, seed: int = 1) -> CutPatches:
    generator = torch.Generator().manual_seed(seed)
    return CutPatches(torch.rand(rows * columns, 588, generator=generator) * 2 - 1, rows, columns)


def look(lane: Lane, *looks: Sequence[Patches]) -> list[Tensor]:
    works = [Look(pieces) for pieces in looks]
    left = list(works)
    while left:
        count = lane.count(left)
        assert not lane.begin(left[:count]).finish()
        left = left[count:]
    return [work.vectors for work in works]


def apart(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


# ---- pixels -------------------------------------------------------------------------------------


def test_pictures_of_any_size_are_cut_to_pillow_s_pixels() -> None:
    rng = random.Random(4)
    sizes = [(1280, 720), (640, 480), (720, 1280), (1, 1), (333, 777), (2000, 100), (60, 1500)]
    sizes += [(rng.randint(1, 900), rng.randint(1, 900)) for _ in range(40)]
    cutter = PictureCutter(CUDA, torch.float32)
    for width, height in sizes:
        if max(width, height) > 25 * min(width, height):
            continue
        picture = Picture(photo(width, height, width), 9 if width % 3 == 0 else 1)
        pixels = to_device(picture.rgb, CUDA)
        for region, wanted in zip(picture.regions, picture.cut, strict=True):
            out = torch.full_like(wanted.pixels, torch.nan, device=CUDA)
            cutter.cut(pixels, region, out)
            assert (out.cpu() == wanted.pixels).all(), (width, height, region)


# ---- vectors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_pieces_of_any_shape_are_seen_as_the_modules_see_them(dtype: torch.dtype) -> None:
    lane, eager = lanes(dtype)
    looks = [
        patch_picture(photo(1280, 720)),
        [cut(3, 5), cut(1, 1), cut(12, 11)],
        patch_picture(photo(640, 480, 2), 9),
        [],
        patch_picture(photo(333, 777, 3), 9),
    ]
    together, wanted = look(lane, *looks), [look(eager, one)[0] for one in looks if one]
    assert together[3].shape == (0, 64, 256)
    del together[3]
    for ours, theirs in zip(together, wanted, strict=True):
        assert apart(ours, theirs) < LIMITS[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_piece_is_seen_the_same_in_any_company(dtype: torch.dtype) -> None:
    lane, _ = lanes(dtype)
    piece = patch_picture(photo(640, 480, 5))
    (alone,) = look(lane, piece)
    for company in (1, 2, 6, 15):
        others = [cut(30, 30, seed) for seed in range(company)]
        for looks in ([piece, others], [others, piece]):
            place = looks.index(piece)
            assert apart(look(lane, *looks)[place], alone) < LIMITS[dtype], company


def test_more_pieces_than_fit_go_one_group_after_the_other() -> None:
    lane, eager = lanes(torch.bfloat16)
    pieces = [cut(1 + seed % 7, 1 + seed % 5, seed) for seed in range(40)]
    (ours,), (theirs,) = look(lane, pieces), look(eager, pieces)
    assert ours.shape[0] == 40 and apart(ours, theirs) < LIMITS[torch.bfloat16]


def test_a_large_piece_takes_the_room_of_two() -> None:
    lane, eager = lanes(torch.bfloat16)
    for pieces in ([cut(32, 34)], [cut(32, 34, seed) for seed in range(16)]):
        (ours,), (theirs,) = look(lane, pieces), look(eager, pieces)
        assert apart(ours, theirs) < LIMITS[torch.bfloat16]


def test_a_piece_that_no_graph_is_made_for_is_seen_by_the_modules() -> None:
    lane, eager = lanes(torch.float32)
    long = cut(20, MOST_PATCHES // 20 + 1)
    (ours,), (theirs,) = look(lane, [long]), look(eager, [long])
    assert (ours == theirs).all()


def test_a_batch_s_vectors_are_its_own() -> None:
    lane, _ = lanes(torch.bfloat16)
    (first,) = look(lane, [cut(9, 9)])
    kept = first.clone()
    look(lane, [cut(9, 9, 2)])
    assert (first == kept).all()


def test_as_many_looks_as_fit_go_together() -> None:
    lane, _ = lanes(torch.bfloat16)
    works = [Look([cut(2, 2)] * count) for count in (3, 3, 2, 1)]
    assert lane.count(works) == 3
    assert lane.count([Look([cut(2, 2)] * 40), *works]) == 1
