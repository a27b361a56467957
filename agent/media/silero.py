"""The network of the Silero voice detector at 16 kHz, computed by numpy.

It is so small that ONNX Runtime, which the package's own code runs it with, takes more time to get
to its products than for them: measured side by side, 115 µs a step against 54 µs here.

The sound's spectrum, four frames of 256 samples every 128, goes through four convolutions along
time (kernel 3, the second and the third in steps of 2), which leave one column, that through one
LSTM cell and one weighted sum. Of what a kernel meets beyond the edges, zeros, nothing is computed.
"""

import importlib.util
from math import tanh
from pathlib import Path

import numpy as np
import numpy.typing as npt

from agent.errors import ConfigError
from agent.media.onnx_tensors import float_tensors
from agent.types import FloatArray

CONTEXT_SAMPLES = 64
STEP_SAMPLES = 512
_IN = CONTEXT_SAMPLES + STEP_SAMPLES
_PADDED = _IN + 64
_FRAMES, _WINDOW, _HOP, _BINS = 4, 256, 128, 129
_STATE = 128
_GATE_BLOCKS = 16
"""OpenBLAS wakes threads for the product of a matrix and a vector from 9216 weights on, on some
processors: no block is that large."""

_SHAPES = {
    "stft.forward_basis_buffer": (2 * _BINS, 1, _WINDOW),
    "encoder.0.reparam_conv.weight": (128, _BINS, 3),
    "encoder.0.reparam_conv.bias": (128,),
    "encoder.1.reparam_conv.weight": (64, 128, 3),
    "encoder.1.reparam_conv.bias": (64,),
    "encoder.2.reparam_conv.weight": (64, 64, 3),
    "encoder.2.reparam_conv.bias": (64,),
    "encoder.3.reparam_conv.weight": (128, 64, 3),
    "encoder.3.reparam_conv.bias": (128,),
    "decoder.rnn.weight_ih": (4 * _STATE, 128),
    "decoder.rnn.weight_hh": (4 * _STATE, _STATE),
    "decoder.rnn.bias_ih": (4 * _STATE,),
    "decoder.rnn.bias_hh": (4 * _STATE,),
    "decoder.decoder.2.weight": (1, _STATE, 1),
    "decoder.decoder.2.bias": (1,),
}

Tensors = dict[str, FloatArray]


def packaged_model() -> Path:
    """The model file of the `silero-vad` package, which itself is not imported: it loads torch.

    Raises `ConfigError` when the package or its file is missing.
    """
    spec = importlib.util.find_spec("silero_vad")
    folders = spec.submodule_search_locations if spec else None
    if not folders:
        raise ConfigError("no voice detector: the package silero-vad is not installed")
    # The same weights as in silero_vad.onnx, where they are buried in branches for two rates. The
    # package's .safetensors holds another training of the network.
    path = Path(folders[0]) / "data" / "silero_vad_16k_op15.onnx"
    if not path.is_file():
        raise ConfigError(f"no voice detector: {path} is missing, reinstall silero-vad")
    return path


class SileroModel:
    """The weights, loaded once and shared by every call; safe to use from several threads."""

    def __init__(self, path: Path | None = None) -> None:
        """`path` of the ONNX file, by default the packaged one; `ConfigError` if there is none."""
        tensors = _checked(packaged_model() if path is None else path)
        self._window = _window(tensors["stft.forward_basis_buffer"])
        self._conv1 = _taps(tensors, 0, 0, 3)
        self._conv2 = _taps(tensors, 1, 0, 3)
        self._conv3 = _taps(tensors, 2, 1, 3)
        self._conv4 = _taps(tensors, 3, 1, 2)
        self._biases = [tensors[f"encoder.{layer}.reparam_conv.bias"] for layer in range(4)]
        self._gates, self._gate_bias = _gates(tensors)
        self._weights_out = tensors["decoder.decoder.2.weight"].ravel()
        self._bias_out = float(tensors["decoder.decoder.2.bias"][0])

    def step(self, samples: FloatArray, memory: FloatArray) -> tuple[float, FloatArray]:
        """64 samples of context and 512 new ones [576], and memory [2, 1, 128], in.

        Out: how likely the new samples hold speech, 0..1, and the memory for the next step.
        """
        state = np.empty(128 + _STATE, np.float32)
        self._encode(self._spectrum(samples), state[:128])
        state[128:] = memory[0, 0]
        after = self._remember(state, memory[1, 0])
        score = float(np.dot(np.maximum(after[0, 0], 0.0), self._weights_out)) + self._bias_out
        return 0.5 + 0.5 * tanh(0.5 * score), after

    def _spectrum(self, samples: FloatArray) -> FloatArray:
        """Magnitudes between two empty frames, [6, 129]."""
        padded = np.empty(_PADDED, np.float32)
        padded[:_IN] = samples
        padded[_IN:] = samples[_IN - 2 : 2 * _IN - _PADDED - 2 : -1]
        frames = np.ndarray((_FRAMES, _WINDOW), np.float32, padded, strides=(4 * _HOP, 4))
        spectrum = np.zeros((_FRAMES + 2, _BINS), np.float32)
        np.abs(np.fft.rfft(frames * self._window), out=spectrum[1:-1])
        return spectrum

    def _encode(self, spectrum: FloatArray, column: FloatArray) -> None:
        """The four convolutions; the last one's result goes into `column` [128]."""
        bias1, bias2, bias3, bias4 = self._biases
        # Each row holds the three frames that a kernel covers, for one product with all kernels.
        rows = np.ndarray((4, 3 * _BINS), np.float32, spectrum, strides=(4 * _BINS, 4)).copy()
        wide = np.zeros((5, 128), np.float32)
        _rectified(np.matmul(rows, self._conv1, out=wide[1:]), bias1)
        rows = np.ndarray((2, 3 * 128), np.float32, wide, strides=(8 * 128, 4)).copy()
        narrow = _rectified(rows @ self._conv2, bias2)
        narrow = _rectified(narrow.ravel() @ self._conv3, bias3)
        _rectified(np.matmul(narrow, self._conv4, out=column), bias4)

    def _remember(self, state: FloatArray, cell: FloatArray) -> FloatArray:
        """The LSTM cell: input and output of before [256], and its cell [128], to [2, 1, 128]."""
        gates = np.matmul(self._gates, state).ravel()
        gates += self._gate_bias
        np.tanh(gates, out=gates)
        opening = 0.5 * gates + 0.5
        after = np.empty((2, 1, _STATE), np.float32)
        output, kept = after[0, 0], after[1, 0]
        np.multiply(opening[_STATE : 2 * _STATE], cell, out=kept)
        kept += opening[:_STATE] * gates[2 * _STATE : 3 * _STATE]
        np.tanh(kept, out=output)
        output *= opening[3 * _STATE :]
        return after


def _rectified(sums: FloatArray, bias: FloatArray) -> FloatArray:
    """In place."""
    sums += bias
    return np.maximum(sums, 0.0, out=sums)


def _checked(path: Path) -> Tensors:
    tensors = {name.removeprefix("model."): each for name, each in float_tensors(path).items()}
    for name, shape in _SHAPES.items():
        found = tensors[name].shape if name in tensors else "nothing"
        if found != shape:
            raise ConfigError(f"{path} holds another model: {name} is {found}, not {shape}")
    return tensors


def _window(basis: FloatArray) -> FloatArray:
    """The window of a basis of windowed cosines and sines, which a real FFT replaces."""
    window: FloatArray = basis[0, 0].copy()
    turns = np.arange(_BINS)[:, None] * np.arange(_WINDOW) * (2.0 * np.pi / _WINDOW)
    waves = np.concatenate((np.cos(turns), -np.sin(turns)))
    if np.abs(basis[:, 0] - window * waves).max() > 1e-5:
        raise ConfigError("the voice detector's first layer is no short-time Fourier transform")
    return window


def _taps(tensors: Tensors, layer: int, first: int, end: int) -> FloatArray:
    """Weights of a convolution, [taps * inputs, outputs], of those taps that meet something."""
    weights = tensors[f"encoder.{layer}.reparam_conv.weight"][:, :, first:end]
    return np.ascontiguousarray(weights.transpose(2, 1, 0).reshape(-1, len(weights)))


def _gates(tensors: Tensors) -> tuple[FloatArray, npt.NDArray[np.float32]]:
    """Weights [16, 32, 256] and bias [512] of input, forget, cell and output gate.

    All but the cell's are halved: 0.5 + 0.5 tanh(x / 2) is the logistic function of x.
    """
    scale = np.full((4 * _STATE, 1), 0.5, np.float32)
    scale[2 * _STATE : 3 * _STATE] = 1.0
    both = [tensors["decoder.rnn.weight_ih"], tensors["decoder.rnn.weight_hh"]]
    weights = np.concatenate(both, axis=1) * scale
    bias = (tensors["decoder.rnn.bias_ih"] + tensors["decoder.rnn.bias_hh"]) * scale[:, 0]
    return np.ascontiguousarray(weights.reshape(_GATE_BLOCKS, -1, 128 + _STATE)), bias
