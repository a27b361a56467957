"""Which of pytest's processes runs which file, where there are several.

Some tests wait: for a browser, a call, another process. They take little of a core, but what they
take they need in time. The others compute. So two processes of three run what waits, and what
computes fills the time between, politely.
"""

import os
import re
from typing import Any

from xdist.scheduler import LoadFileScheduling

_WAITS = re.compile(
    r"tests/(conformance/|test_(bench_load|bench_media|browser|call|fleet|page|voices_workshop"
    r"|websocket|whip))"
)
_POLITE = 10


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
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    try:
        os.setpriority(os.PRIO_PROCESS, 0, 0 if _waits(nodeid) else _POLITE)
    except PermissionError:
        pass


def _waits(file: str) -> bool:
    return _WAITS.match(file) is not None
