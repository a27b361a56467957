"""Calls of this server's functions in one call: run, answered, and spoken of.

The client sees the call and its result pass like those of its own functions, and need not act:
what it answers all the same is kept among the items, but the engine does not hear it. A function
that the client itself offers under the same name is the client's in that call: this server's is
neither offered nor run.

A result joins the conversation behind `response.done` of the response that asked for it. The agent
is asked to speak of it as soon as nobody speaks, once for all results that have come by then, and
not at all when it has begun to speak meanwhile, or somebody has asked it to: it knew them by then.
Where it may not, since an answer was asked for before that is still to come, it is asked behind it.
"""

import asyncio
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.attendants.equipment import Equipment
from agent.attendants.record import CallRecord
from agent.attendants.toolbox import Toolbox
from agent.clock import SYSTEM_CLOCK, Clock
from agent.commands import Command, Respond
from agent.interfaces import CallDesk
from agent.telemetry import Telemetry
from agent.tools import ToolContext
from agent.types import SpeechEnded, SpeechStarted, Tool, Unit

log = logging.getLogger(__name__)

MOST_RUNS = 16
"""Of one call, at a time."""
MOST_ASKED = 60
ASK_EVERY_S = 1.0
"""How often the agent is asked to speak of a result, where that is refused."""


@dataclass(slots=True, eq=False)
class _Run:
    call_id: str
    name: str
    arguments: str
    asked_s: float | None
    response_id: str = ""
    output: str | None = None
    is_due: bool = False
    """The response that asked for it is done."""
    task: asyncio.Task[None] | None = None


class ServerTools:
    """An attendant, behind the `CallRecord` that it asks."""

    def __init__(
        self,
        record: CallRecord,
        toolbox: Toolbox,
        equipment: Equipment,
        context: ToolContext,
        telemetry: Telemetry,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._record = record
        self._toolbox = toolbox
        self._equipment = equipment
        self._context = context
        self._telemetry = telemetry
        self._clock = clock
        self._runs: dict[str, _Run] = {}
        self._owed: int | None = None
        """How many responses may have begun before one speaks of the results that are told."""
        self._asked = 0
        self._ask_from_s = 0.0
        self._delivering = ""
        self._news = asyncio.Event()

    @property
    def offered(self) -> tuple[Tool, ...]:
        """Those that are called here: the client has no function of that name."""
        names = {tool.name for tool in self._record.settings.tools}
        tools = self._toolbox.tools.values()
        return tuple(tool.definition for tool in tools if tool.name not in names)

    def begin(
        self, call_id: str, name: str, arguments: str, *, asked_s: float | None = None
    ) -> None:
        """Run a function now, maybe before the client is told that it was called.

        `asked_s`: when the user asked for it, where that is known.
        """
        if call_id in self._runs or name not in {tool.name for tool in self.offered}:
            return
        run = self._runs[call_id] = _Run(call_id, name, arguments, asked_s)
        self._equipment.answer(call_id, None)
        if len(self._runs) > MOST_RUNS:
            run.output = f"Error: {MOST_RUNS} functions run already; try again later"
        self._news.set()

    # ---- what is told ---------------------------------------------------------------------------

    def told_engine(self, item: Unit | SpeechStarted | SpeechEnded | Command) -> None:
        """Pauses and the like decide when a result may be spoken of; an answer that is asked for
        from now on speaks of those that are told."""
        if isinstance(item, Respond):
            self._owed = None
        self._wake()

    def told_client(self, event: Mapping[str, Any]) -> None:
        """Calls of functions are told here."""
        match event["type"]:
            case "response.output_item.done":
                self._called(event["item"], event["response_id"])
            case "response.done":
                self._response_done(event["response"]["id"])
            case "conversation.item.added":
                self._delivered(event["item"])
        self._wake()

    def _wake(self) -> None:
        if self._runs or self._owed is not None:
            self._news.set()

    def _called(self, item: Mapping[str, Any], response_id: str) -> None:
        if item["type"] != "function_call" or item.get("status") != "completed":
            return
        self.begin(item["call_id"], item["name"], item["arguments"])
        if (run := self._runs.get(item["call_id"])) is not None:
            run.response_id = response_id

    def _response_done(self, response_id: str) -> None:
        for run in self._runs.values():
            run.is_due = run.is_due or run.response_id == response_id

    def _delivered(self, item: Mapping[str, Any]) -> None:
        """A result has joined the conversation: ours, or one that does not count."""
        if self._delivering and item.get("call_id") == self._delivering:
            del self._runs[self._delivering]
            self._owed, self._asked = self._record.floor.responses, 0

    # ---- what is done ---------------------------------------------------------------------------

    async def run(self, desk: CallDesk) -> None:
        """Run and answer, until the call ends."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._news.wait()
                self._news.clear()
                for run in self._runs.values():
                    if run.task is None and run.output is None:
                        run.task = group.create_task(self._work(run))
                self._deliver(desk)
                self._ask(desk)

    async def _work(self, run: _Run) -> None:
        ran = await self._toolbox.run(run.name, run.arguments, self._context)
        self._telemetry.beside("function", ran.outcome, ran.took_s)
        run.output = ran.output
        self._news.set()

    def _deliver(self, desk: CallDesk) -> None:
        """Tell the results that may be told by now."""
        for run in [one for one in self._runs.values() if one.is_due and one.output is not None]:
            self._delivering = run.call_id
            self._equipment.answer(run.call_id, run.output)
            desk.receive(_result(run))
            self._delivering = ""
            # It is gone, unless the protocol has refused it, of which the client was told.
            refused = self._runs.pop(run.call_id, None) is not None
            if run.asked_s is not None:
                took_s = self._clock.now_s() - run.asked_s
                self._telemetry.beside("result", "refused" if refused else "told", took_s)

    def _ask(self, desk: CallDesk) -> None:
        """Have the agent speak of what was told."""
        floor = self._record.floor
        if self._owed is not None and floor.responses > self._owed:
            self._owed = None
        more_to_come = any(run.is_due for run in self._runs.values())
        waits = more_to_come or self._clock.now_s() < self._ask_from_s
        if self._owed is None or not floor.is_free or waits:
            return
        self._owed = None
        desk.receive(json.dumps({"type": "response.create"}), self._not_asked)

    def _not_asked(self, refusal: Mapping[str, Any]) -> None:
        """What speaks next was asked for before and may not know the result: behind it, again."""
        self._asked += 1
        if self._asked == 1:
            log.info("call %s: %s", self._context.call_id, refusal["error"]["message"])
        if self._asked == MOST_ASKED:
            log.warning("call %s: a result is not spoken of", self._context.call_id)
            return
        self._owed = self._record.floor.responses + 1
        self._ask_from_s = self._clock.now_s() + ASK_EVERY_S


def _result(run: _Run) -> str:
    item = {"type": "function_call_output", "call_id": run.call_id, "output": run.output}
    return json.dumps({"type": "conversation.item.create", "item": item}, ensure_ascii=False)
