"""Programs of the operating system that some tests need."""

import os
import shutil

import pytest


def require_program(name: str, apt: str) -> str:
    """The path of program `name`; without it the test is skipped, saying what to install.

    With VOICE_AGENT_REQUIRE_ALL=1 the test fails instead: there, nothing may go untested.
    """
    path = shutil.which(name)
    if path is not None:
        return path
    reason = f"needs {name}: apt install {apt}"
    if os.environ.get("VOICE_AGENT_REQUIRE_ALL") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
