import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from agent.errors import ConfigError
from agent.media.onnx_tensors import float_tensors
from agent.media.silero import SileroModel, packaged_model
from tests.rig.voices import USER_TEXT, say


@pytest.fixture(scope="module")
def model() -> SileroModel:
    return SileroModel()


def frames_of(sound: np.ndarray) -> list[np.ndarray]:
    """Each step's 512 samples behind the last 64 of the step before."""
    whole = np.concatenate((np.zeros(64, np.float32), sound))
    return [whole[at : at + 576] for at in range(0, len(sound) - 511, 512)]


def some_sound() -> np.ndarray:
    random = np.random.default_rng(2)
    speech = say(USER_TEXT, 16_000)
    noise = 10 ** random.uniform(-5, 0, 20).repeat(3200) * random.standard_normal(64_000)
    return np.concatenate((speech, noise, 0.01 * speech)).astype(np.float32)


def test_it_judges_as_onnx_runtime_does_with_the_packages_main_file(model: SileroModel) -> None:
    main_file = packaged_model().with_name("silero_vad.onnx")
    session = onnxruntime.InferenceSession(str(main_file), providers=["CPUExecutionProvider"])
    ours = theirs = np.zeros((2, 1, 128), np.float32)
    likelihoods = []
    for frame in frames_of(some_sound()):
        likelihood, ours = model.step(frame, ours)
        inputs = {"input": frame[None], "state": theirs, "sr": np.array(16_000, np.int64)}
        expected, theirs = session.run(None, inputs)
        assert likelihood == pytest.approx(float(expected[0, 0]), abs=5e-5)
        likelihoods.append(likelihood)
    np.testing.assert_allclose(ours, theirs, atol=2e-4)
    assert max(likelihoods) > 0.9 and min(likelihoods) < 0.05


def test_neither_its_input_nor_its_memory_is_written_to(model: SileroModel) -> None:
    frame, memory = some_sound()[:576], np.full((2, 1, 128), 0.1, np.float32)
    frame.flags.writeable = memory.flags.writeable = False
    first, after = model.step(frame, memory)
    second, again = model.step(frame, memory)
    assert first == second
    np.testing.assert_array_equal(after, again)


def test_no_thread_is_woken_for_it() -> None:
    program = (
        "import numpy, os, pathlib, agent.media.silero as silero\n"
        "model, memory = silero.SileroModel(), numpy.zeros((2, 1, 128), 'f4')\n"
        "frame, tasks = numpy.full(576, 0.1, 'f4'), pathlib.Path('/proc/self/task')\n"
        "others = [each for each in tasks.iterdir() if int(each.name) != os.getpid()]\n"
        "spent_ns = lambda: sum(int((each / 'schedstat').read_text().split()[0])"
        " for each in others)\n"
        "before_ns = spent_ns()\n"
        "for _ in range(200): memory = model.step(frame, memory)[1]\n"
        # One that has only just been made may still begin.
        "assert others and spent_ns() - before_ns < 1e6, spent_ns() - before_ns\n"
    )
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "4", "OMP_NUM_THREADS": "4"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


def test_a_file_that_is_none_and_one_of_another_model_are_refused(tmp_path: Path) -> None:
    whole = packaged_model().read_bytes()
    for name, content in {"none": b"", "text": b"not a model", "half": whole[:600_000]}.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=name):
            SileroModel(path)
    with pytest.raises(ConfigError, match="no model can be read"):
        SileroModel(tmp_path / "missing")
    with pytest.raises(ConfigError, match="holds another model"):
        SileroModel(packaged_model().with_name("silero_vad.onnx"))


def test_tensors_are_read_as_the_onnx_package_reads_them() -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(str(packaged_model())).graph
    expected = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    tensors = float_tensors(packaged_model())
    assert tensors.keys() == expected.keys() and len(tensors) == 15
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, expected[name])
