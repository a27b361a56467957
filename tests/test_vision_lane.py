"""Looking in batches, without a GPU: groups, what a batch is told, what is seen."""

import pytest
import torch

from agent.duplex.pictures import CutPatches, piece_grids
from agent.duplex.work import HearRecording, Look
from tests.rig import tiny_model as tiny
from tests.rig import triton_on_cpu  # noqa: F401


def piece(rows: int, columns: int, seed: int = 1) -> CutPatches:
    generator = torch.Generator().manual_seed(seed)
    return CutPatches(torch.rand(rows * columns, 588, generator=generator) * 2 - 1, rows, columns)


def test_every_piece_that_a_picture_is_cut_to_has_a_graph() -> None:
    from agent.duplex.cuda.vision_lane import MOST_PATCHES, PIECE_PATCHES

    usual = [(1280, 720), (720, 1280), (640, 480), (480, 640), (1920, 1080), (500, 500)]
    for size in usual:
        assert all(rows * columns <= PIECE_PATCHES for rows, columns in piece_grids(*size))
    longest = 0
    for width in (1, 13, 100, 449, 1000, 1999):
        for ratio in [1 + step / 40 for step in range(960)]:
            size = (int(width * ratio), width)
            longest = max(longest, *(r * c for r, c in piece_grids(*size, 1)))
            longest = max(longest, *(r * c for r, c in piece_grids(*size, 9)))
    assert 1080 < longest <= MOST_PATCHES


def test_groups_are_as_large_as_there_is_room() -> None:
    from agent.duplex.cuda.vision_lane import groups

    assert [len(group) for group in groups([piece(1, 1)] * 35, 16)] == [16, 16, 3]
    assert groups([], 16) == []
    # 1089 patches each: a group of four has room for three.
    assert [len(group) for group in groups([piece(33, 33)] * 7, 4)] == [3, 3, 1]
    mixed = [piece(33, 33), piece(30, 30), piece(33, 33), piece(2, 2), piece(2, 2)]
    made = groups(mixed, 4)
    assert [len(group) for group in made] == [4, 1]
    assert [one for group in made for one in group] == mixed


def test_who_goes_together() -> None:
    from agent.duplex.cuda.vision_lane import together

    looks = [Look([piece(1, 1)] * count) for count in (9, 6, 1, 1)]
    assert together(looks, 16) == 3
    assert together(looks[3:], 16) == 1
    assert together([Look([piece(1, 1)] * 40), *looks], 16) == 1
    other = HearRecording(torch.zeros(80, 10), None)
    assert together([looks[0], other, looks[1]], 16) == 1
    assert together([other, looks[0]], 16) == 1


def test_a_batch_is_told_where_each_patch_lies() -> None:
    from agent.duplex.cuda.vision_lane import PIECE_PATCHES, tell, told_words

    words = tell([piece(2, 3), piece(1, 2)], 4)
    assert len(words) == told_words(4)
    assert words[:8].tolist() == [0, 6, 0, 0, 6, 2, 0, 0]
    ids, rows, columns = words[8:].reshape(3, 4 * PIECE_PATCHES)
    assert rows[:8].tolist() == [0, 0, 0, 1, 1, 1, 0, 0]
    assert columns[:8].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert ids[:8].tolist() == [0, 23, 46, 2450, 2473, 2496, 0, 35]


def test_pieces_are_seen_as_the_modules_see_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from agent.duplex.cuda import vision_lane

    # Small graphs: the interpreter takes a second for what the device does in a microsecond.
    monkeypatch.setattr(vision_lane, "PIECE_PATCHES", 40)
    monkeypatch.setattr(vision_lane, "MOST_PATCHES", 64)
    torch.set_num_threads(1)
    eyes, measure = tiny.tiny_eyes(), tiny.tiny_eyes()
    pieces = [piece(3, 5), piece(1, 1, 2), piece(7, 9, 3)]
    size = 4
    pixels = torch.full((size * 40, 588), 1e3)
    torch.cat([one.pixels for one in pieces], out=pixels[: 15 + 1 + 63])
    with torch.no_grad():
        network = vision_lane.PiecesOfMany(eyes)
        ours = network(pixels, torch.from_numpy(vision_lane.tell(pieces, size)))
    assert ours.shape == (size, 64, 256)
    wanted = measure.see(pieces)
    assert (ours[:3] - wanted).abs().max() < 1e-5 * wanted.abs().max()
