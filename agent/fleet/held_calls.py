"""As many calls on an engine as are wanted, none of them with anybody in it.

Each sends a unit a second. In half of them it asks the agent to speak, in the other half it lets
it listen only, six seconds each in turn: so no model decides how much work it is given.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Coroutine
from types import TracebackType
from typing import Any

from agent.clock import Clock
from agent.commands import Command, ForceListen, Respond
from agent.errors import AgentError, RequestError
from agent.fleet.callers import Caller, Material
from agent.fleet.unit_times import UnitLog
from agent.interfaces import Conversation, Engine
from agent.types import Failed, SessionSettings, TurnEnded, TurnStarted

BLOCK_UNITS = 6
"""So many units in a row the agent is to speak, and then as many to listen."""
_STAGGER = 5
"""By so many units the calls are apart in that: half of them speak at any time."""
_ASK_AHEAD_S = 0.4
"""What the agent is to do is told before the unit is there, not when it is due."""
_TASK = "Tell a long story."


class HeldCalls:
    """A context; its calls end with it. `log` hears of all that they send and are told."""

    def __init__(
        self, engine: Engine, settings: SessionSettings, material: Material, clock: Clock
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._material = material
        self._clock = clock
        self._numbers = itertools.count()
        self._calls: list[_Call] = []
        # What reads text has a model.
        self.log = UnitLog(by_model=engine.abilities.typed_text)

    def __len__(self) -> int:
        return len(self._calls)

    async def __aenter__(self) -> "HeldCalls":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.hold(0)

    @property
    def failure(self) -> AgentError | None:
        """What ended one of the calls that should go on, if that happened."""
        return next((call.failure for call in self._calls if call.failure is not None), None)

    async def hold(self, count: int) -> None:
        """Begin calls, or end the newest, until there are so many.

        CapacityError when the engine takes no more: those that it took stay.
        """
        while len(self._calls) > count:
            call = self._calls.pop()
            await call.end()
            self.log.ended(call.caller.number)
        while len(self._calls) < count:
            conversation = await self._engine.open(self._settings)
            caller = Caller(next(self._numbers), self._clock.now_s(), self._material)
            task = _TASK if self._engine.abilities.typed_text else None
            self._calls.append(_Call(conversation, caller, self.log, self._clock, task))


class _Call:
    """One of them: a task that sends and asks, and one that hears what is said."""

    def __init__(
        self,
        conversation: Conversation,
        caller: Caller,
        log: UnitLog,
        clock: Clock,
        task: str | None,
    ) -> None:
        self.caller = caller
        self.failure: AgentError | None = None
        self._conversation = conversation
        self._log = log
        self._clock = clock
        self._task = task
        self._speaks = self._only_listens = False
        works = (self._send(), self._hear())
        self._tasks = [asyncio.create_task(self._noting(work)) for work in works]

    async def end(self) -> None:
        """Hang up."""
        for task in self._tasks:
            task.cancel()
        outcomes = await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(AgentError):
            await self._conversation.finish()
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    async def _noting(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except AgentError as error:
            self.failure = self.failure or error

    async def _send(self) -> None:
        caller = self.caller
        while True:
            due_s = caller.next_s
            await self._clock.sleep_until(due_s - _ASK_AHEAD_S)
            await self._direct()
            await self._clock.sleep_until(due_s)
            unit = caller.take()
            self._log.arrived(caller.number, unit, due_s)
            await self._conversation.push(unit)

    async def _direct(self) -> None:
        """Have the next unit spoken, or listened to, as its place in the blocks says."""
        place = self.caller.index + self.caller.number * _STAGGER
        to_speak = place // BLOCK_UNITS % 2 == 1
        if to_speak == self._only_listens:
            self._only_listens = not to_speak
            await self._control(ForceListen(self._only_listens))
        if to_speak and not self._speaks:
            await self._control(Respond(self._task))

    async def _control(self, command: Command) -> None:
        # Refused is what does not fit, for one that has too much to do: the units show that.
        with contextlib.suppress(RequestError):
            await self._conversation.control(command)

    async def _hear(self) -> None:
        async for event in self._conversation.events():
            self._log.told(self.caller.number, event, self._clock.now_s())
            match event:
                case TurnStarted():
                    self._speaks = True
                case TurnEnded():
                    self._speaks = False
                case Failed(error=error):
                    self.failure = error if isinstance(error, AgentError) else AgentError(error)
                case _:
                    pass
