"""torchaudio imports beside any torch, and importing the package costs no torch."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# What the finder is asked for, without the seconds that the real torchaudio takes to import.
PRETENDED = """
import sys, types
import agent
from pathlib import Path
folder = Path(sys.argv[1])
(folder / "torchaudio").mkdir()
(folder / "torchaudio/__init__.py").write_text("from torchaudio import _extension")
(folder / "torchaudio/_extension.py").write_text(sys.argv[2])
sys.path.insert(0, str(folder))
import torchaudio._extension as extension
print(extension._IS_TORCHAUDIO_EXT_AVAILABLE, extension._IS_ALIGN_AVAILABLE)
extension._check_cuda_version()
try:
    extension.fail_if_no_align(len)()
except RuntimeError as error:
    print(error)
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_importing_the_package_imports_neither_torch_nor_numpy() -> None:
    result = run("import agent, sys; print({'torch', 'torchaudio', 'numpy'} & set(sys.modules))")
    assert result.stdout.strip() == "set()", result.stderr


def test_transformers_and_torchaudio_work_beside_the_torch_that_is_installed() -> None:
    code = (
        "import agent, torch\n"
        "from transformers.models.whisper import feature_extraction_whisper\n"
        # Here and nowhere else it is imported by transformers, whose models take seconds more.
        "from transformers.audio_utils import torchaudio\n"
        "print(torchaudio.functional.resample(torch.ones(1, 160), 16000, 24000).shape[-1])"
    )
    result = run(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "240"


def test_an_extension_without_its_libraries_is_marked_absent(tmp_path: Path) -> None:
    for error in ("OSError", "RuntimeError"):
        folder = tmp_path / error
        folder.mkdir()
        result = run(PRETENDED, str(folder), f"raise {error}('libc10_cuda.so is missing')")
        assert result.returncode == 0, result.stderr
        first, second = result.stdout.splitlines()
        assert first == "False False"
        assert "needs torchaudio's extension" in second


def test_an_extension_that_loads_is_left_alone(tmp_path: Path) -> None:
    body = (
        "_IS_TORCHAUDIO_EXT_AVAILABLE = _IS_ALIGN_AVAILABLE = True\n"
        "def _check_cuda_version(): pass\n"
        "def fail_if_no_align(function): return lambda: print('aligned')\n"
    )
    result = run(PRETENDED, str(tmp_path), body)
    assert result.stdout.splitlines() == ["True True", "aligned"], result.stderr


def test_other_errors_of_the_extension_are_not_hidden(tmp_path: Path) -> None:
    result = run(PRETENDED, str(tmp_path), "raise KeyError('a bug')")
    assert result.returncode != 0
    assert "a bug" in result.stderr


def test_the_finder_is_installed_once() -> None:
    code = (
        "import sys, agent\n"
        "from agent import torchaudio_import\n"
        "torchaudio_import.install()\n"
        "kinds = [type(finder).__name__ for finder in sys.meta_path]\n"
        "print(kinds.count('_ExtensionFinder'))"
    )
    assert run(code).stdout.strip() == "1"
