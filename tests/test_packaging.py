"""What is shipped: the wheel's contents, the container's description, the gate's own rules."""

import asyncio
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from agent import __version__
from tests.rig.server import running_server

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    result = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_brings_the_page_and_the_recordings_and_no_tests(wheel: Path) -> None:
    assert wheel.name.startswith(f"voice_agent-{__version__}-py3")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    page = {path.relative_to(ROOT / "web") for path in (ROOT / "web").glob("*.js")}
    assert {f"agent/_web/{name}" for name in page} <= names
    assert "agent/_web/index.html" in names
    for recording in ("echo_greeting", "clara", "james", "mei"):
        assert f"agent/_assets/ref_audio/{recording}.wav" in names
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "agent").rglob("*.py")}
    assert modules <= names
    assert {name.split("/")[0] for name in names} == {
        "agent",
        f"voice_agent-{__version__}.dist-info",
    }
    assert f"voice_agent-{__version__}.dist-info/licenses/LICENSE" in names


def test_the_wheel_runs_where_there_is_no_checkout(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import agent, sys\nfrom agent.resources import assets_folder, web_folder\n"
        "print(agent.__file__, web_folder(), assets_folder(), sep='\\n')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    package = tmp_path / "agent"
    assert result.stdout.splitlines() == [
        str(package / "__init__.py"),
        str(package / "_web"),
        str(package / "_assets"),
    ]


def test_the_command_is_the_function_main(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        entry = archive.read(f"voice_agent-{__version__}.dist-info/entry_points.txt").decode()
    assert "voice-agent = agent.__main__:main" in entry


def test_every_silenced_warning_says_why() -> None:
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    options = tomllib.loads("\n".join(lines))["tool"]["pytest"]["ini_options"]
    assert options["filterwarnings"][0] == "error"
    for rule in options["filterwarnings"][1:]:
        assert rule.startswith("ignore:")
        place = next(number for number, line in enumerate(lines) if rule in line)
        assert lines[place - 1].lstrip().startswith("# "), f"no reason above {rule}"


def test_the_container_serves_everyone_as_nobody_special() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    last_user = [line.split()[1] for line in text.splitlines() if line.startswith("USER ")][-1]
    assert last_user not in ("root", "0")
    assert "HEALTHCHECK" in text
    assert "/healthz" in text
    assert "EXPOSE 8006" in text
    assert '"serve"' in text
    assert "0.0.0.0" in text


async def test_the_container_is_well_without_tls_too_and_not_when_nobody_answers() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    command = json.loads(text.split("HEALTHCHECK", 1)[1].split("CMD ", 1)[1].split("\n", 1)[0])
    assert command[0] == "python"

    async def status(port: int) -> int:
        asks = await asyncio.create_subprocess_exec(
            sys.executable,
            *command[1:],
            env={**os.environ, "VOICE_AGENT__SERVER__PORT": str(port)},
            stderr=asyncio.subprocess.DEVNULL,
        )
        return await asks.wait()

    async with running_server() as server:
        port = int(server.url.rpartition(":")[2])
        assert await status(port) == 0
    assert await status(port) == 1


def test_the_changelog_opens_with_what_is_unreleased() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings[0] == "## [Unreleased]"
