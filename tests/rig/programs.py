"""Programs of the operating system that some tests need."""

import os
import shutil
from typing import NoReturn

import pytest


def require_all(reason: str) -> NoReturn:
    """Skip the test for `reason`, or fail where VOICE_AGENT_REQUIRE_ALL=1 forbids skipping."""
    if os.environ.get("VOICE_AGENT_REQUIRE_ALL") == "1":
        pytest.fail(f"{reason} (VOICE_AGENT_REQUIRE_ALL=1 forbids to skip)")
    pytest.skip(reason)


def require_program(name: str, apt: str) -> str:
    """The path of program `name`; without it the test is skipped, saying what to install.

    With VOICE_AGENT_REQUIRE_ALL=1 the test fails instead: there, nothing may go untested.
    """
    path = shutil.which(name)
    if path is not None:
        return path
    require_all(f"needs {name}: apt install {apt}")
