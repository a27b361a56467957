"""The responses of a call: which event of the chain is due when.

Two clocks meet here. The engine generates faster than the loudspeaker plays; the documented order
puts `output_audio_buffer.started` before the first word of the transcript. So words wait for the
first sample, and a turn that is generated to its end before it is heard waits with its closing,
and the turn after it waits behind it. Where sound comes inside of events, a response is open until
its last sample was sent.
"""

from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from agent.realtime.events import Event, error_event
from agent.realtime.limits import Limits
from agent.realtime.response import Response
from agent.realtime.turns import ClearReason, Turns
from agent.types import SessionSettings, ToolCalled, TurnEnded, Usage, Wire

Step: TypeAlias = Callable[[], list[Event]]


class Responses:
    """Lets everything happen to `turns` in the documented order."""

    def __init__(self, turns: Turns, limits: Limits, wire: Wire) -> None:
        self._turns = turns
        self._limits = limits
        self._wire = wire
        self._held: deque[tuple[int, Step]] = deque()
        self._calls: deque[tuple[ToolCalled, SessionSettings]] = deque()

    # ---- what the engine says -----------------------------------------------------------------

    def started(
        self,
        turn: int,
        settings: SessionSettings,
        *,
        is_asked: bool = True,
        usage: Usage | None = None,
    ) -> list[Event]:
        """The agent begins to speak, as it was asked to or not; a turn still open is given up.

        Here and below, `usage` is what the turn has taken by now; None: nobody says.
        """
        return self._in_order(
            turn, lambda: self._turns.start(turn, settings, is_asked=is_asked), usage
        )

    def text(self, turn: int, text: str, usage: Usage | None = None) -> list[Event]:
        """A piece of what the agent says."""
        return self._in_order(turn, lambda: self._turns.say(turn, text), usage)

    def sound(self, turn: int, end_samples: int, usage: Usage | None = None) -> list[Event]:
        """The turn has sound up to `end_samples` (24 kHz)."""
        return self._in_order(turn, lambda: self._turns.sound(turn, end_samples), usage)

    def took(self, turn: int, usage: Usage | None) -> list[Event]:
        """The turn has generated something, of which nothing may be told; 0: no turn has."""
        return self._in_order(turn, list, usage) if turn else []

    def ended(self, end: TurnEnded) -> list[Event]:
        """Nothing more will be generated for the turn."""
        return self._in_order(end.turn, lambda: self._turns.end(end))

    def tool_called(self, call: ToolCalled, settings: SessionSettings) -> list[Event]:
        """The agent calls a function within its turn, or beside all turns.

        Beside them it is a response of its own, as soon as no other is open; beyond
        `limits.max_waiting_calls` the newest is not made, and an error says so.
        """
        if call.turn:
            return self._in_order(call.turn, lambda: self._turns.call_tool(call))
        if len(self._calls) >= self._limits.max_waiting_calls:
            message = f"The function '{call.name}' is not called: too many calls wait already."
            return [error_event(message, kind="server_error", code="too_many_function_calls")]
        self._calls.append((call, settings))
        return self._release()

    # ---- what the loudspeaker does ------------------------------------------------------------

    def playout_started(self, turn: int) -> list[Event]:
        """The first sample of the turn is on its way."""
        events = self._drop_waiting_before(turn)
        response = self._turns.get(turn)
        if response is None or response.buffer == "stopped":
            return events
        response.drained = False
        if response.buffer == "playing":
            return events
        if self._turns.playing is not None:
            events += self._turns.stop(self._turns.playing)
        return events + self._turns.start_playing(response) + self._release()

    def speech_sent(self, turn: int, data: bytes) -> list[Event]:
        """Sound of the turn goes to the client inside of an event.

        Nothing of a response that is done: its client has closed that book.
        """
        if self._wire != "websocket":
            return []
        events = self.playout_started(turn)
        response = self._turns.get(turn)
        if response is None or response.closed or response.item.shape != "audio" or not data:
            return events
        return [*events, response.audio_delta(data)]

    def playout_drained(self, turn: int) -> list[Event]:
        """The queue ran empty; reported once nothing more can come."""
        response = self._turns.get(turn)
        if response is None or response.buffer != "playing":
            return []
        response.drained = True
        if response.closed:
            return self._turns.stop(response)
        if self._wire == "websocket" and response.ended is not None:
            return self._turns.complete(response) + self._release()
        return []

    def playout_cleared(self, turn: int, heard_ms: int, reason: ClearReason) -> list[Event]:
        """All that was queued is dropped; the user heard `heard_ms` of `turn`, and nothing of
        the turns behind it."""
        events = self._drop_waiting_before(turn)
        events += self._turns.clear(turn, heard_ms, reason) + self._release()
        while self._turns.active is not None and self._turns.active.buffer == "empty":
            self._turns.active.lost_ms = self._turns.active.item.generated_ms
            self._turns.active.cut_by = reason
            if not self._turns.active.waits:
                break
            events += self._turns.clear(self._turns.active.turn, 0, reason) + self._release()
        return events

    # ---- what the client or a failure does ----------------------------------------------------

    def cancel(self, response: Response) -> list[Event]:
        """The client wants no more of it; what is queued may play out."""
        return self._turns.close(response, "cancelled", "client_cancelled") + self._release()

    def fail(self, code: str | None) -> list[Event]:
        """The engine is gone; nothing follows."""
        self._held.clear()
        self._calls.clear()
        if self._turns.active is None:
            return []
        self._turns.active.error_code = code
        return self._turns.close(self._turns.active, "failed", None)

    # ---- order --------------------------------------------------------------------------------

    def _in_order(self, turn: int, step: Step, usage: Usage | None = None) -> list[Event]:
        """Do `step` now, or after the turn before it is done; with it the turn took `usage`."""

        def whole() -> list[Event]:
            events = step()
            self._turns.took(turn, usage)
            return events

        active = self._turns.active
        if active is None or not self._must_wait(turn):
            return whole() + self._release()
        self._held.append((turn, whole))
        if len(self._held) <= self._limits.max_waiting:
            return []
        events = self.playout_started(active.turn)
        return events if active.closed else events + self._turns.complete(active) + self._release()

    def _must_wait(self, turn: int) -> bool:
        active = self._turns.active
        return active is not None and active.waits and turn > active.turn

    def _release(self) -> list[Event]:
        events: list[Event] = []
        while self._held and not self._must_wait(self._held[0][0]):
            _, step = self._held.popleft()
            events += step()
        while self._calls and self._turns.active is None and not self._held:
            events += self._turns.call_beside(*self._calls.popleft())
        return events

    def _drop_waiting_before(self, turn: int) -> list[Event]:
        """Turns are played in order: one that still waits when a later one plays was sent to its
        end, or dropped if none of it was."""
        events: list[Event] = []
        while self._turns.active is not None and self._must_wait(turn):
            if self._turns.active.buffer == "playing":
                events += self._turns.complete(self._turns.active) + self._release()
            else:
                events += self._turns.clear(self._turns.active.turn, 0, "turn_detected")
                events += self._release()
        return events
