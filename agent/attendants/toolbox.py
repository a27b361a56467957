"""Runs this server's functions: so many at a time, each within its time, none of them trusted."""

import asyncio
import contextvars
import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

from agent.clock import SYSTEM_CLOCK, Clock
from agent.tools import ServerTool, ToolContext, ToolError, result_text

log = logging.getLogger(__name__)

Outcome: TypeAlias = Literal["done", "refused", "failed", "late", "busy"]
"""refused: the function said so, or was called wrongly. busy: too many others wait."""
Call: TypeAlias = Callable[[], Any]

_ERROR = "Error: "
_CUT = " … (cut off here)"
_WAITING_FOR_EACH = 4
"""So many may wait for each that runs."""


@dataclass(frozen=True, slots=True)
class ToolRules:
    """How functions run."""

    timeout_s: float = 10.0
    max_running: int = 16
    max_result_chars: int = 4000


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of a function, as text for the model."""

    output: str
    outcome: Outcome
    took_s: float


class Toolbox:
    """The functions of this server by name, and who runs."""

    def __init__(
        self,
        tools: Iterable[ServerTool] = (),
        rules: ToolRules = ToolRules(),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.tools = {tool.name: tool for tool in tools}
        self._rules = rules
        self._clock = clock
        self._places = asyncio.Semaphore(rules.max_running)
        self._waiting = 0

    async def run(self, name: str, arguments: str, context: ToolContext) -> Ran:
        """Call the function `name`, one of `tools`. Never raises for what it does.

        One that is late, or whose call is cancelled, is waited for no more: an `async` one is
        cancelled, a thread goes on to its end. Until that is over it keeps its place.
        """
        began_s = self._clock.now_s()
        text, outcome = await self._outcome(self.tools[name], arguments, context)
        if outcome != "done":
            text = _ERROR + text
        if len(text) > self._rules.max_result_chars:
            text = text[: self._rules.max_result_chars] + _CUT
        return Ran(text, outcome, self._clock.now_s() - began_s)

    async def _outcome(
        self, tool: ServerTool, arguments: str, context: ToolContext
    ) -> tuple[str, Outcome]:
        limit_s = tool.timeout_s or self._rules.timeout_s
        try:
            call = partial(tool.function, **tool.read(arguments, context))
        except ToolError as error:
            return str(error), "refused"
        if self._waiting >= _WAITING_FOR_EACH * self._rules.max_running:
            return "too many functions run at the moment; try again later", "busy"
        try:
            async with asyncio.timeout(limit_s):
                future = await self._finished(tool, call)
        except TimeoutError:
            log.warning("the function %s took longer than %g s", tool.name, limit_s)
            return f"{tool.name} did not answer within {limit_s:g} s", "late"
        return _told(tool, future)

    async def _finished(self, tool: ServerTool, call: Call) -> "asyncio.Future[str]":
        """The function's end, whatever it was; waits for a place first."""
        self._waiting += 1
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1
        future = _in_loop(call) if tool.is_async else _in_thread(call, tool.name)
        future.add_done_callback(self._over)
        try:
            await asyncio.wait((future,))
        except asyncio.CancelledError:
            if isinstance(future, asyncio.Task):
                future.cancel()
            raise
        return future

    def _over(self, future: "asyncio.Future[str]") -> None:
        self._places.release()
        if not future.cancelled():
            future.exception()  # nobody may be there any more to whom it is news


def _told(tool: ServerTool, future: "asyncio.Future[str]") -> tuple[str, Outcome]:
    """What the model is told: of an error that was not meant for it, only that there was one."""
    try:
        return future.result(), "done"
    except ToolError as error:
        return str(error), "refused"
    except asyncio.CancelledError:
        log.warning("the function %s cancelled itself", tool.name)
    except Exception:  # it is somebody else's code, and may raise anything
        log.exception("the function %s failed", tool.name)
    return f"{tool.name} failed", "failed"


def _in_loop(call: Call) -> "asyncio.Future[str]":
    async def run() -> str:
        try:
            return result_text(await call())
        except SystemExit as error:
            raise RuntimeError("it wanted to end the server") from error

    return asyncio.ensure_future(run())


def _in_thread(call: Call, name: str) -> "asyncio.Future[str]":
    """In a thread of its own that nobody waits for in the end: one that hangs must not hold up
    the end of the server, as those of a pool do."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[str] = loop.create_future()
    context = contextvars.copy_context()

    def settle(error: BaseException | None, text: str) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(text)
        elif isinstance(error, Exception) and not isinstance(error, StopIteration):
            future.set_exception(error)
        else:
            future.set_exception(RuntimeError(f"it raised {type(error).__name__}"))

    def run() -> None:
        error: BaseException | None = None
        text = ""
        try:
            text = result_text(context.run(call))
        except BaseException as raised:  # noqa: BLE001 - as above; and nothing may end here
            error = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, error, text)

    threading.Thread(target=run, name=f"tool {name}", daemon=True).start()
    return future
