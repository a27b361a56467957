"""Who speaks, as a vector: CAM++, run by onnxruntime on the CPU."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from agent.errors import CheckpointError
from agent.types import FloatArray
from agent.vocoder.mel import speaker_bands
from agent.vocoder.onnx_file import CpuSession


class SpeakerModel:
    """`campplus.onnx`, loaded when it is first asked; about 30 MB.

    CheckpointError, then, when the file is missing or another model.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._session: CpuSession | None = None

    def embed(self, sound: Tensor) -> FloatArray:
        """Mono f32 [T] at 16 kHz, at least 25 ms → the embedding f32 [192], not normalised."""
        bands = speaker_bands(sound)
        return self.embed_bands(bands - bands.mean(0))

    def embed_bands(self, bands: Tensor) -> FloatArray:
        """`speaker_bands` less their mean over time, [T, 80] → the embedding f32 [192]."""
        if self._session is None:
            self._session = CpuSession(self._path)
        batch = bands[None].to("cpu", torch.float32).numpy()
        try:
            output = self._session.run(batch)
        except ValueError as error:
            raise CheckpointError(f"{self._path}: is no speaker model ({error})") from error
        if output.ndim != 2 or len(output) != 1 or not np.issubdtype(output.dtype, np.floating):
            raise CheckpointError(f"{self._path}: is no speaker model: gives {list(output.shape)}")
        embedding: FloatArray = output[0].astype(np.float32)
        return embedding
