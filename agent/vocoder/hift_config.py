"""The sizes of HiFT, the mel-to-sound network, in the two generations that were released."""

from collections.abc import Mapping
from dataclasses import dataclass

from agent.errors import CheckpointError

FRAME_SAMPLES = 480
"""Sound of one mel frame, 20 ms."""
UP_RATES = (8, 5, 3)
UP_KERNELS = (16, 11, 7)
SOURCE_KERNELS = (7, 7, 11)
BLOCK_KERNELS = (3, 7, 11)
DILATIONS = (1, 3, 5)
WINDOW_SAMPLES = 16
HOP_SAMPLES = 4
BINS = WINDOW_SAMPLES // 2 + 1
LOOK_RIGHT_FRAMES = 4
"""What the causal generation's first convolution sees of the future."""
F0_LOOK_RIGHT_FRAMES = 3
"""The same of its pitch network."""

_PRE_KERNELS = {7: False, 5: True}
_F0_KERNELS = {False: 3, True: 4}


@dataclass(frozen=True, slots=True)
class HiftConfig:
    """What differs among checkpoints; the rest is the same in all of them."""

    causal: bool
    mel_bands: int = 80
    base_channels: int = 512
    f0_channels: int = 512
    harmonics: int = 9

    @property
    def pre_kernel(self) -> int:
        return 5 if self.causal else 7

    @property
    def f0_kernel(self) -> int:
        return _F0_KERNELS[self.causal]


def read_hift_config(shapes: Mapping[str, tuple[int, ...]], prefix: str = "") -> HiftConfig:
    """The generation and sizes of a checkpoint by the shapes of its tensors; file names lie.

    Raises CheckpointError where a tensor is missing or fits neither generation.
    """
    try:
        pre = shapes[f"{prefix}conv_pre.parametrizations.weight.original1"]
        pitch = shapes[f"{prefix}f0_predictor.condnet.0.parametrizations.weight.original1"]
        harmonics = shapes[f"{prefix}m_source.l_linear.weight"][-1]
        base_channels, mel_bands, pre_kernel = pre
        f0_channels, _, f0_kernel = pitch
        causal = _PRE_KERNELS[pre_kernel]
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(f"this is no HiFT checkpoint ({error})") from error
    if f0_kernel != _F0_KERNELS[causal] or base_channels % 2 ** len(UP_RATES):
        raise CheckpointError(
            f"a HiFT checkpoint of neither generation: conv_pre {list(pre)}, F0 {list(pitch)}"
        )
    return HiftConfig(causal, mel_bands, base_channels, f0_channels, harmonics)
