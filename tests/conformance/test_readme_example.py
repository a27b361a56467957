"""The README's example, as it stands there, with the client that it names."""

import asyncio
import re

from tests.conformance.travel import ROOT, interpreter_of_clients
from tests.rig.server import running_server


async def test_the_example_of_the_readme_is_answered() -> None:
    """On the `echo` engine, which greets nobody who asks first."""
    (example,) = re.findall(
        r"```python\n(from openai .*?)```", (ROOT / "README.md").read_text(), re.S
    )
    python = interpreter_of_clients()
    async with running_server() as server:
        here = example.replace("127.0.0.1:8006", server.url.removeprefix("http://"))
        program = await asyncio.create_subprocess_exec(
            str(python), "-c", here, stdout=asyncio.subprocess.PIPE
        )
        said, _ = await asyncio.wait_for(program.communicate(), 60)
    assert program.returncode == 0
    assert said.decode() == "You wrote: Good evening"
