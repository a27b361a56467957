"""What all tests share: a home of their own, and the check that nothing is left behind.

Fixtures of one part of the system live in that part's own test file.
"""

import asyncio
import gc
import importlib.util
import os
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

# Of what is collected nothing is garbage: a tenth of the time would go into looking for some.
gc.disable()


def pytest_collection_finish() -> None:
    """From here on there is, but not among what was imported."""
    gc.freeze()
    gc.enable()


# Tests of a GPU run where little more than torch is installed.
if importlib.util.find_spec("pytest_asyncio") is not None:
    import pytest_asyncio

    @pytest_asyncio.fixture(scope="session", loop_scope="session", autouse=True)
    async def page_driver_ends() -> AsyncIterator[None]:
        """Stops what drives the browser, where a test has started it."""
        yield
        if (browser := sys.modules.get("tests.web_page.browser")) is not None:
            await browser.stop_driving()


if importlib.util.find_spec("xdist") is not None:
    from tests.rig.lanes import Lanes, allow_more_tries, give_way

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Lanes:
        """Where several processes run the tests."""
        return Lanes(config, log)

    def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
        """Once all that is to be run is known."""
        allow_more_tries(items)

    def pytest_runtest_logstart(nodeid: str) -> None:
        """Before anything of a test is begun."""
        give_way(nodeid)


@pytest.fixture(scope="session", autouse=True)
def own_data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Servers keep voices and certificates in the user's data folder: not in that of the tester."""
    before = os.environ.get("XDG_DATA_HOME")
    os.environ["XDG_DATA_HOME"] = str(tmp_path_factory.mktemp("data"))
    yield
    if before is None:
        del os.environ["XDG_DATA_HOME"]
    else:
        os.environ["XDG_DATA_HOME"] = before


@pytest.fixture
async def nothing_left_behind() -> AsyncIterator[None]:
    """Fails the test when a task or a thread that it started is still there at its end."""
    threads = set(threading.enumerate())
    tasks = asyncio.all_tasks()
    yield
    for _ in range(10):  # what was just cancelled needs a few turns of the loop to be gone
        await asyncio.sleep(0)
    current = asyncio.current_task()
    left = {task for task in asyncio.all_tasks() - tasks if task is not current}
    assert not left, f"tasks still running: {left}"
    # The loop keeps the threads of its default executor until it is closed itself.
    started = set(threading.enumerate()) - threads
    lasting = {thread.name for thread in started if not thread.name.startswith("asyncio_")}
    assert not lasting, f"threads still running: {lasting}"
