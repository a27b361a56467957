"""The tensors that AutoAWQ writes in its `gemm` layout, as ours.

For a projection of K inputs and N outputs: `qweight` i32 [K, N / 8] and `qzeros` i32 [K / group,
N / 8] hold eight outputs a word, `scales` f16 [K / group, N]; a weight is (code − zero point) ·
scale. Of the outputs 0 to 7 of a word the bits 0–3, 4–7, … hold 0, 2, 4, 6, 1, 3, 5, 7.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from agent.duplex.quant_choice import GROUP
from agent.duplex.quant_formats import join_steps, pack_codes
from agent.errors import CheckpointError
from agent.torch_parts.layout import Stored

QWEIGHT, QZEROS, SCALES = "qweight", "qzeros", "scales"
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Of output i in a word the bits begin at 4 · _PLACES[i]."""


def stored(inputs: int, outputs: int, group: int) -> dict[str, Stored]:
    """What there must be of a projection."""
    groups = inputs // group
    return {
        QWEIGHT: Stored((inputs, outputs // 8), integers=True),
        QZEROS: Stored((groups, outputs // 8), integers=True),
        SCALES: Stored((groups, outputs)),
    }


def repack(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What AutoAWQ wrote of one projection → words i32 [N, K / 8] and steps i32 [K / 128, N]."""
    codes = _unpacked(tensors[QWEIGHT])
    zeros, scales = _unpacked(tensors[QZEROS]), tensors[SCALES].half()
    more = len(codes) // len(zeros) // GROUP
    # A group may be several of ours: each of them has its scale.
    steps = join_steps(scales, zeros).repeat_interleave(more, 0)
    return pack_codes(codes.t()), steps


def _unpacked(words: Tensor) -> Tensor:
    """i32 [R, N / 8] → codes u8 [R, N]."""
    places = torch.tensor(_PLACES, dtype=torch.int32, device=words.device) * 4
    return (words[:, :, None] >> places & 15).to(torch.uint8).reshape(len(words), -1)


def group_of(key: str, qzeros: tuple[int, ...], inputs: int) -> int:
    """The size of a group, by how many zero points there are; CheckpointError for one not read."""
    groups = qzeros[0] if qzeros else 0
    group = inputs // groups if groups else 0
    if not groups or inputs % groups or group % GROUP:
        raise CheckpointError(
            f"{key}: {groups} groups of {inputs} inputs; expected groups of {GROUP} or a multiple; "
            "use the bfloat16 checkpoint (openbmb/MiniCPM-o-4_5) and model.quantisation instead"
        )
    return group
