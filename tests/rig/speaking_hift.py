"""The golden files' HiFT, whose weights are random, made to speak: a pitch, and no clipping."""

import torch
from torch import Tensor

from agent.vocoder.causal_hift import CausalHift
from agent.vocoder.hift import Hift

MIDDLE_HZ = 150.0
SPREAD_HZ = 50.0


def make_speaking(hift: Hift | CausalHift, mel: Tensor) -> None:
    """Change it in place: its pitch wanders about 150 Hz on mel f32 [1, 80, T] like this one.

    As the recipe has it, every frame is unvoiced, and so loud that clipping hides errors.
    """
    classifier = hift.f0_predictor.classifier
    kept: list[Tensor] = []
    hook = classifier.register_forward_hook(lambda module, given, out: kept.append(out))
    with torch.no_grad():
        hift.f0(mel)
        classifier.weight.mul_(SPREAD_HZ / kept[-1].std())
        classifier.bias.zero_()
        hift.f0(mel)
        # Before its sign is lost.
        classifier.bias.fill_(MIDDLE_HZ - float(kept[-1].mean()))
        hift.conv_post.bias[:9] -= 2.5
    hook.remove()
