"""Updates of the session that the engine has yet to take, and what holds when it refuses one."""

from collections import deque
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

from agent.commands import UpdateSettings
from agent.types import SessionSettings

_Data = TypeVar("_Data")


@dataclass(frozen=True, slots=True)
class _Update:
    """One step: what the engine is told, and what held before."""

    command: UpdateSettings
    before: SessionSettings
    after: SessionSettings


class Updates:
    """The updates under way, in their order; beyond `most` the oldest is forgotten, which then
    stays in force whatever the engine says."""

    def __init__(self, most: int) -> None:
        self._steps: deque[_Update] = deque(maxlen=most)

    def add(self, command: UpdateSettings, before: SessionSettings) -> None:
        """The client changed `before` to what `command` tells the engine."""
        self._steps.append(_Update(command, before, command.settings))

    def due(self, command: UpdateSettings) -> UpdateSettings:
        """What the engine is to be told instead of `command`, now that its turn has come.

        What was refused meanwhile is no longer in it. The updates before it are settled.
        """
        at = self._index(command)
        for _ in range(max(at, 0)):
            self._steps.popleft()
        return UpdateSettings(self._steps[0].after) if at >= 0 else command

    def refused(self, command: UpdateSettings, now: SessionSettings) -> SessionSettings:
        """What holds without what `command` changed; `now` as it is when that is forgotten."""
        at = self._index(command)
        if at < 0:
            return now
        steps = list(self._steps)
        base = steps[at].before
        self._steps = deque(steps[:at], maxlen=self._steps.maxlen)
        for step in steps[at + 1 :]:
            after = _changed_alike(base, step.before, step.after)
            self._steps.append(_Update(step.command, base, after))
            base = after
        return base

    def _index(self, command: UpdateSettings) -> int:
        """Where that very object stands, equal or not to others; −1 when it is forgotten."""
        places = (at for at, step in enumerate(self._steps) if step.command is command)
        return next(places, -1)


def _changed_alike(base: _Data, before: _Data, after: _Data) -> _Data:
    """`base`, changed in what differs between `before` and `after`, field by field and within."""
    alike = type(base) is type(before) is type(after)
    if not alike or not is_dataclass(base) or isinstance(base, type):
        return after
    changes: dict[str, Any] = {}
    for field in fields(base):
        old, new = getattr(before, field.name), getattr(after, field.name)
        if old != new:
            changes[field.name] = _changed_alike(getattr(base, field.name), old, new)
    return replace(base, **changes)
