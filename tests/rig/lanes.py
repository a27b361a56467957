"""Which of pytest's processes runs which file, where there are several.

Some tests wait: for a browser, a call, another process. They take little of a core, but what they
take they need in time. The others compute. So two processes of three run what waits, and what
computes fills the time between, politely.

Where several processes share a machine, what came too late in one of them may say nothing of the
software: what talks to a browser or a server of its own is tried up to three times there. Run
alone, a test has one try.
"""

import os
import re
import subprocess
from collections.abc import Iterable
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

_WAITS = re.compile(
    r"tests/(conformance/|test_(bench_load|bench_media|browser|call|fleet|page|voices_workshop"
    r"|websocket|whip))"
)
_TALKERS = (
    "tests.rig.caller",
    "tests.rig.fleet_server",
    "tests.rig.keyed_server",
    "tests.rig.lossy_link",
    "tests.rig.server",
    "tests.rig.socket_caller",
    "tests.rig.socket_visits",
    "tests.rig.whip_caller",
    "tests.web_page",
)
"""Who uses something of these talks to somebody in real time; so does who starts a program."""
_POLITE = 10
_MORE_TRIES = 2


class Lanes(LoadFileScheduling):  # type: ignore[misc]
    """Whole files: to each process one of its own kind while there are any."""

    def _assign_work_unit(self, node: Any) -> None:
        wants_waiting = int(node.gateway.id.removeprefix("gw")) % 3 < 2
        mine = (file for file in self.workqueue if _waits(file) == wants_waiting)
        if (file := next(mine, None)) is not None:
            self.workqueue.move_to_end(file, last=False)
        super()._assign_work_unit(node)


def give_way(nodeid: str) -> None:
    """Let others go first while test `nodeid` computes; only root may come back from that."""
    if not _is_shared():
        return
    try:
        os.setpriority(os.PRIO_PROCESS, 0, 0 if _waits(nodeid) else _POLITE)
    except PermissionError:
        pass


def allow_more_tries(items: Iterable[pytest.Item]) -> None:
    """Of those among `items` that need others in time, a failure counts when it is the third."""
    if not _is_shared():
        return
    for item in items:
        if _waits(item.nodeid) or _talks(item):
            item.add_marker(pytest.mark.flaky(reruns=_MORE_TRIES))


def _talks(item: pytest.Item) -> bool:
    used = vars(item.module).values() if isinstance(item, pytest.Function) else ()
    return any(
        one is subprocess or str(getattr(one, "__module__", "")).startswith(_TALKERS)
        for one in used
    )


def _is_shared() -> bool:
    return "PYTEST_XDIST_WORKER" in os.environ


def _waits(file: str) -> bool:
    return _WAITS.match(file) is not None
